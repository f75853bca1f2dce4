"""How the benchmarks measure: one clock, medians of functions that take turns, and peak memory."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.profiler import ProfilerActivity, profile


Clock = Callable[[], float]


def wall_clock() -> float:
    """Seconds of real time, after all kernels that were launched are done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def processor_clock() -> float:
    """Seconds that this process has spent on a processor, likewise: for a busy machine, with one thread only."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.process_time()


def interleaved_medians(
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Clock = wall_clock,
    *,
    turn_ms: float | None = None,
) -> dict[str, float]:
    """
    Median milliseconds of a call of each function. They take turns, so that a noisy machine disturbs all alike; what
    counts are medians and ratios.

    Args:
        functions: by name
        repeats: timed turns of each, after one that warms up
        clock: seconds
        turn_ms: a turn is as many calls as last about that long, which a second turn to warm up counts, and functions
            that take seconds run once or three times only; None: a turn is one call
    """
    warm_up = 1 if turn_ms is None else 2
    calls, times = dict.fromkeys(functions, 1), {name: [] for name in functions}
    for turn in range(repeats + warm_up):
        for name, function in functions.items():
            if turn_ms is not None and times[name] and _has_run_enough(times[name]):
                continue
            start = clock()
            for _ in range(calls[name]):
                function()
            elapsed = clock() - start
            if turn >= warm_up:
                times[name].append(elapsed / calls[name] * 1e3)
            elif turn_ms is not None and turn == 1:
                calls[name] = max(1, min(200, round(turn_ms / max(elapsed * 1e3, 1e-3))))
    return {name: statistics.median(values) for name, values in times.items()}


def _has_run_enough(times: list[float]) -> bool:
    """Whether a slow function needs no further turn: once from 5 seconds on, three times from one second on."""
    return times[0] > 5000 or len(times) >= 3 and times[0] > 1000


def peak_mebibytes(function: Callable[[], object], device: str) -> float:
    """
    What torch's allocator held at once during a call, beyond what it held before: on CUDA it counts that itself, on
    CPU it is the largest running sum of the allocator's events.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20
