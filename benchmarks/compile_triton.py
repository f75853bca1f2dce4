"""
Compiles the scan's Triton kernels for NVIDIA GPUs, where there may be none, and prints what ptxas says of them: a
Markdown table of registers per thread, bytes spilled, instructions, and how many programs of a kernel one
multiprocessor holds at once as far as registers go.

    python benchmarks/compile_triton.py                 # needs `pip install triton`
    python benchmarks/compile_triton.py --states 16 --dtypes fp32
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

import torch
from triton import compile as triton_compile
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_mamba import selective_scan_triton as scan


LENGTHS = {"u", "delta", "B", "C", "z", "x", "y"} | {f"grad_{x}" for x in ("u", "delta", "B", "C", "z", "y")}
FP32 = {"A2", "D", "delta_bias", "states", "starts", "carries", "sums_B", "sums_C", "sums", "ends", "totals"}
FP32 |= {"grad_A", "grad_D", "grad_bias"}
KERNELS = ["forward", "segment_ends", "chain_segments", "backward", "add_up"]
REGISTERS, WARPS = 65536, 64  # of a multiprocessor of an A100 or H100


def source(kernel, state_size, dtype, channels, everything):
    """A kernel, with all its optional inputs or none, as it is launched for tensors in (b, l, k) memory."""
    sizes = scan._programs(torch.empty(128, channels, 324, device="meta"), state_size, 2)[0]
    warps = sizes.pop("num_warps")
    constants = {"CHUNK": scan.CHUNK, "GROUP": scan.GROUP, "e": channels, "s": state_size, **sizes}
    constants |= {"BLOCK": scan.ADDED, "COLUMNS": scan.ADDED_COLUMNS, "blocks": -(-channels // sizes["CHANNELS"])}
    signature, values, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        name = parameter.name
        if parameter.is_constexpr:
            signature[name], values[(index,)] = "constexpr", constants.get(name, everything)
        elif name in LENGTHS | FP32:
            signature[name] = f"*{dtype if name in LENGTHS else 'fp32'}"
        else:
            signature[name] = "i32"
        # a launch specialises memory that begins, and strides that are, at a multiple of 16, as all of the model's but
        # those of B and C, which lie beside Δ; lengths are whatever they are
        lengths = ("l", "steps", "segments", "b", "size", "parts", "B_b", "B_l", "C_b", "C_l")
        if signature[name] != "constexpr" and name not in lengths:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, values, attributes), warps


def report(compiled):
    """Registers per thread, bytes spilled, instructions."""
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "kernel.cubin").write_bytes(compiled.asm["cubin"])
        tool = knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True)
        sass = subprocess.run([tool, "-sass", path], capture_output=True, text=True, check=True).stdout
    text = usage.stdout + usage.stderr
    instructions = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+\S", sass, re.MULTILINE))
    return int(re.search(r"REG:(\d+)", text)[1]), int(re.search(r"STACK:(\d+)", text)[1]), instructions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capabilities", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--kernels", nargs="+", default=KERNELS)
    parser.add_argument("--states", type=int, nargs="+", default=[1, 8, 16, 64])
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--nothing_optional", action="store_true", help="without D, z, delta_bias, softplus, segments")
    args = parser.parse_args()
    print("| kernel | sm | dtype | state size | warps | registers | stack bytes | instructions | programs per SM |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kernel in (getattr(scan, f"_{name}") for name in args.kernels):
        for capability in args.capabilities:
            for dtype in args.dtypes:
                for state_size in args.states:
                    code, warps = source(kernel, state_size, dtype, args.channels, not args.nothing_optional)
                    target = GPUTarget("cuda", capability, 32)
                    compiled = triton_compile(code, target=target, options={"num_warps": warps})
                    registers, stack, instructions = report(compiled)
                    programs = min(REGISTERS // (32 * warps * registers), WARPS // warps, 32)
                    cells = (kernel.__name__, capability, dtype, state_size, warps, registers, stack, instructions)
                    print(f"| {' | '.join(map(str, cells))} | {programs} |", flush=True)


if __name__ == "__main__":
    main()
