"""
The scan against transformers' own, interleaved in one run; prints a Markdown table of medians and ratios.

    python benchmarks/bench_scan.py --threads 1

Peers run only where they end in reasonable time: the backward pass of transformers' eager scan is quadratic in length.
Peak memory is what torch's CPU allocator held at once beyond the inputs, counted by its profiler in a run of its own.
"""

import argparse
import statistics
import time

import torch
from torch.profiler import ProfilerActivity, profile
from transformers.models.mamba.modeling_mamba import mamba_selective_scan

from hf_mamba.selective_scan import selective_scan


CHANNELS, STATE_SIZE = 128, 16
# (batch, length), backward too, reference and transformers as well
CASES = [
    (1, 211, False, True),
    (128, 324, False, False),
    (1, 211, True, True),
    (8, 324, True, True),
    (32, 211, True, False),
    (128, 324, True, False),
]


def make_inputs(batch, length, requires_grad):
    """u, delta, A, B, C, D, z, delta_bias as the model passes them: views of (b, l, k) memory."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    A = -torch.arange(1.0, STATE_SIZE + 1).repeat(CHANNELS, 1)
    u, delta, z = (randn(batch, length, CHANNELS).transpose(1, 2) for _ in range(3))
    B, C = (randn(batch, length, STATE_SIZE).transpose(1, 2) for _ in range(2))
    inputs = (u, delta, A, B, C, randn(CHANNELS), z, randn(CHANNELS) - 4)
    return [x.requires_grad_(requires_grad) for x in inputs]


def run(scan, inputs, backward):
    with torch.set_grad_enabled(backward):
        y = scan(*inputs)
        if backward:
            torch.autograd.grad(y, inputs, torch.ones_like(y))


def interleaved_medians(scans, inputs, backward, repeats):
    """Median milliseconds of each scan, the scans taking turns so that a busy machine slows all of them alike."""
    times = {name: [] for name in scans}
    for name in [*scans] * (repeats + 1):  # the first round warms up
        start = time.perf_counter()
        run(scans[name], inputs, backward)
        times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def peak_mebibytes(scan, inputs, backward):
    """The largest running sum of the allocator's events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run(scan, inputs, backward)
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="torch's intra-op threads")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each scan, after one to warm up")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    scans = {
        "torch": lambda *x: selective_scan(*x, True, scan_implementation="torch"),
        "reference": lambda *x: selective_scan(*x, True, scan_implementation="reference"),
        "transformers": lambda *x: mamba_selective_scan(*x, True),
    }
    print(f"{args.threads} thread(s), e = {CHANNELS}, s = {STATE_SIZE}, torch {torch.__version__}, milliseconds\n")
    print("| (batch, length) | torch | reference | transformers | transformers / torch | peak MiB of torch |")
    print("|---|---|---|---|---|---|")
    for batch, length, backward, with_peers in CASES:
        inputs = make_inputs(batch, length, backward)
        chosen = scans if with_peers else {"torch": scans["torch"]}
        median = interleaved_medians(chosen, inputs, backward, args.repeats)
        cells = [f"{median[name]:.1f}" if name in median else "-" for name in scans]
        ratio = f"{median['transformers'] / median['torch']:.0f}" if with_peers else "-"
        peak = peak_mebibytes(scans["torch"], inputs, backward)
        kind = "forward + backward" if backward else "forward"
        print(f"| ({batch}, {length}) {kind} | {' | '.join(cells)} | {ratio} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
