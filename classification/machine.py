"""What the machine has, and what follows from it for the data path."""

import os

import torch


def usable_cores() -> int:
    """The cores that this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def default_num_workers() -> int:
    """
    The processes that make batches beside each training process.

    Without a GPU the model has use for every core, and a worker would take one away from it: with decoded pictures a
    batch costs a few hundredths of a step (benchmarks/bench_epoch.py measures both). With a GPU they work while it
    does; the cores are shared by the processes of `torchrun`, and each keeps one for itself.
    """
    if not torch.cuda.is_available():
        return 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return max(0, min(4, usable_cores() // processes - 1))
