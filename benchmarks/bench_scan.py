"""
The scan against others' scans, taking turns in one run; prints a Markdown table of medians, ratios, errors and memory.

    python benchmarks/bench_scan.py --threads 1
    MAMBA_SKIP_CUDA_BUILD=TRUE pip download mamba-ssm==2.3.2.post1 --no-deps --no-binary :all: --no-build-isolation
    python benchmarks/bench_scan.py --threads 1 --mamba_ssm_source mamba_ssm-2.3.2.post1.tar.gz
    python benchmarks/bench_scan.py --device cuda       # Triton's kernel, and mamba_ssm's if it can be imported

Peers: transformers' eager scan; mambapy's parallel scan if it can be imported (`pip install mambapy`); the pure-Python
`selective_scan_ref` of mamba_ssm, read out of its source distribution. Peers run only where they end in reasonable
time: the backward pass of transformers' eager scan is quadratic in length. On CUDA mamba_ssm gets its inputs in the
memory layout it wants, (b, e, l); "from (b, l, e)" is what it costs in a model whose projections give the other.
Errors are the largest of y and of all gradients against float64, relative to the largest value. Peak memory is what
torch's allocator held at once beyond inputs and dL/dy, counted in a run of its own. On CUDA "replayed" is the time of
the same call as a CUDA graph, which is that of its kernels alone: what is more in the other is Python and launches.
"""

import argparse
import ast
import tarfile
from functools import partial

import torch
import torch.nn.functional as F
from measuring import interleaved_medians, peak_mebibytes, processor_clock, wall_clock
from transformers.models.mamba.modeling_mamba import mamba_selective_scan

from hf_mamba.selective_scan import resolve_scan_implementation, scan_implementations, selective_scan


CHANNELS, STATE_SIZE = 128, 16
# (batch, length), backward too, and the peers that take less than minutes
ALL, NO_TRANSFORMERS = ("transformers", "mambapy", "mamba_ssm"), ("mambapy",)
CASES = [
    (1, 211, False, ALL),
    (8, 324, False, ALL),
    (128, 324, False, ALL),
    (1, 211, True, ALL),
    (8, 324, True, ALL),
    (32, 211, True, ALL),
    (128, 324, True, NO_TRANSFORMERS),
]
CUDA_CASES = [(b, l, backward, ()) for backward in (False, True) for b, l in ((128, 324), (8, 4096), (1, 65536))]
FROM_OURS = "mamba_ssm from (b, l, e)"
OURS = [
    "triton",
    "numba",
    "torch",
    "mamba_ssm",
    FROM_OURS,
    "reference",
]  # by selective_scan; the first that runs is the measure


def make_inputs(batch, length, requires_grad, device):
    """u, delta, A, B, C, D, z, delta_bias as the model passes them: views of (b, l, k) memory."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    A = -torch.arange(1.0, STATE_SIZE + 1).repeat(CHANNELS, 1)
    u, delta, z = (randn(batch, length, CHANNELS).transpose(1, 2) for _ in range(3))
    B, C = (randn(batch, length, STATE_SIZE).transpose(1, 2) for _ in range(2))
    inputs = (u, delta, A, B, C, randn(CHANNELS), z, randn(CHANNELS) - 4)
    return [x.to(device).requires_grad_(requires_grad) for x in inputs]


def mambapy_scan(pscan):
    """As transformers' MambaMixer calls mambapy."""

    def scan(u, delta, A, B, C, D, z, delta_bias):
        delta = F.softplus(delta + delta_bias[:, None])
        decays = torch.exp(A[None, :, None, :] * delta[:, :, :, None])  # (b, e, l, s)
        added = delta[:, :, :, None] * B.transpose(1, 2)[:, None] * u[:, :, :, None]
        h = pscan(decays.transpose(1, 2), added.transpose(1, 2))  # (b, l, e, s)
        y = (h @ C.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)
        return (y + u * D[:, None]) * F.silu(z)

    return scan


def mamba_ssm_reference(source):
    """The function `selective_scan_ref` alone, out of mamba_ssm's source distribution, which needs CUDA to import."""
    with tarfile.open(source) as archive:
        names = [name for name in archive.getnames() if name.endswith("ops/selective_scan_interface.py")]
        text = archive.extractfile(names[0]).read().decode()
    (function,) = [x for x in ast.parse(text).body if getattr(x, "name", None) == "selective_scan_ref"]
    namespace = {"torch": torch, "F": F}
    for line in text.splitlines():
        if line.startswith("from einops"):
            exec(line, namespace)
    exec(compile(ast.Module([function], []), names[0], "exec"), namespace)
    return lambda *inputs: namespace["selective_scan_ref"](*inputs, True)


def scans_by_name(mamba_ssm_source, device):
    """Those that `selective_scan` can run there, then, on CPU, the peers."""
    scans = {}
    for name in scan_implementations():
        try:
            if name != "auto" and resolve_scan_implementation(name, device) == name:
                scans[name] = lambda *x, name=name: selective_scan(*x, True, scan_implementation=name)
        except ValueError:
            continue  # it can't run here
    if "mamba_ssm" in scans:
        scans[FROM_OURS] = scans["mamba_ssm"]
    scans = dict(sorted(scans.items(), key=lambda item: OURS.index(item[0])))
    if device == "cuda":
        return scans
    scans["transformers"] = lambda *x: mamba_selective_scan(*x, True)
    try:
        from mambapy.pscan import pscan

        scans["mambapy"] = mambapy_scan(pscan)
    except ImportError:
        pass
    if mamba_ssm_source is not None:
        scans["mamba_ssm"] = mamba_ssm_reference(mamba_ssm_source)
    return scans


def run(scan, inputs, grad_y):
    """y, and the gradients of all inputs if there is a grad_y."""
    if grad_y is None:
        with torch.no_grad():
            return [scan(*inputs)]
    return torch.autograd.grad([scan(*inputs)], inputs, [grad_y])


def own_layout(name, inputs, grad_y):
    """inputs and grad_y, for mamba_ssm in (b, e, l) memory."""
    if name != "mamba_ssm" or not inputs[0].is_cuda:
        return inputs, grad_y
    inputs = [x.detach().contiguous().requires_grad_(x.requires_grad) for x in inputs]
    return inputs, None if grad_y is None else grad_y.contiguous()


def as_graph(function):
    """A function that replays the kernels of `function`."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # whatever happens once only
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def largest_error(scan, inputs, grad_y):
    """Against our torch path in float64, which the tests hold against the reference."""
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    expected = run(
        lambda *x: selective_scan(*x, True, scan_implementation="torch"),
        exact,
        None if grad_y is None else grad_y.double(),
    )
    pairs = zip(run(scan, inputs, grad_y), expected)
    return max(((got.double() - x).abs().max() / x.abs().max()).item() for got, x in pairs)


def error_and_peak(scan, inputs, grad_y):
    """As two cells of the table."""
    peak = peak_mebibytes(partial(run, scan, inputs, grad_y), inputs[0].device.type)
    return [f"{largest_error(scan, inputs, grad_y):.0e}", f"{peak:.0f}"]


def compare(scans, case, args, clock):
    """Prints the rows of one case, (batch, length, backward too, peers)."""
    batch, length, backward, peers = case
    on_cuda, ours = args.device == "cuda", next(iter(scans))
    inputs = make_inputs(batch, length, backward, args.device)
    grad_y = torch.randn(batch, length, CHANNELS, device=args.device).transpose(1, 2) if backward else None
    skipped = set() if batch * length < 4000 else {"reference"}
    skipped |= {*ALL} - {*peers} if not on_cuda else {"torch"} if length > 8192 else set()
    chosen = {name: scan for name, scan in scans.items() if name not in skipped}
    arguments = {name: own_layout(name, inputs, grad_y) for name in chosen}
    functions = {name: partial(run, scan, *arguments[name]) for name, scan in chosen.items()}
    # turns of about 20 ms, since inside a model a scan's inputs are as warm in the caches
    medians = [interleaved_medians(functions, args.repeats, clock, turn_ms=20)]
    if on_cuda:
        graphs = {name: as_graph(function) for name, function in functions.items()}
        medians.append(interleaved_medians(graphs, args.repeats, clock, turn_ms=20))
    for name, scan in chosen.items():
        cells = [f"({batch}, {length}) {'forward + backward' if backward else 'forward'}", name]
        for times in medians:
            digits = 3 if on_cuda else 2
            cells += [f"{times[name]:.{digits}f}", f"{times[name] / times[ours]:.{digits - 1}f}"]
        is_traced = name in ("triton", "numba", "torch") or medians[0][name] < 500  # a trace of more fills the memory
        cells += error_and_peak(scan, *arguments[name]) if is_traced else ["-", "-"]
        print(f"| {' | '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="torch's intra-op threads")
    parser.add_argument("--repeats", type=int, default=7, help="timed turns of each scan, after two to warm up")
    parser.add_argument("--mamba_ssm_source", help="mamba_ssm's source distribution, a .tar.gz")
    parser.add_argument("--largest_batch", type=int, default=128, help="8 leaves out what takes minutes")
    parser.add_argument("--cpu_time", action="store_true", help="for a busy machine, with one thread only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scans = scans_by_name(args.mamba_ssm_source, args.device)
    ours = next(iter(scans))
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{args.threads} thread(s)"
    print(f"{where}, e = {CHANNELS}, s = {STATE_SIZE}, fp32, torch {torch.__version__}")
    print("processor time\n" if args.cpu_time else "")
    columns = ["(batch, length)", "scan", "ms", f"over {ours}"]
    columns += ["ms, replayed", f"over {ours}"] if args.device == "cuda" else []
    columns += ["error", "peak MiB"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    clock = processor_clock if args.cpu_time else wall_clock
    for case in CUDA_CASES if args.device == "cuda" else CASES:
        if case[0] <= args.largest_batch:
            compare(scans, case, args, clock)


if __name__ == "__main__":
    main()
