"""The machine's cores, and the processes of one command: how many, and what the main one decides for all."""

import os
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers.utils import logging


logger = logging.get_logger(__name__)

T = TypeVar("T")


def usable_cores() -> int:
    """The cores that this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def default_num_workers() -> int:
    """
    The processes that make batches beside each training process.

    Without a GPU the model has use for every core, and a worker would take one away from it: with decoded images a
    batch costs a few hundredths of a step (benchmarks/bench_epoch.py measures both). With a GPU they work while it
    does; the cores are shared by the processes of `torchrun`, and each keeps one for itself.
    """
    if not torch.cuda.is_available():
        return 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return max(0, min(4, usable_cores() // processes - 1))


def on_main_process(decide: Callable[[], T]) -> T:
    """What `decide()` returns on the main process, given to every process of the command; the others wait for it."""
    return broadcast_object_list([decide() if PartialState().is_main_process else None])[0]


def warn_of_one_process(world_size: int, environment: Mapping[str, str] = os.environ) -> None:
    """
    Says that `accelerate launch --cpu --num_processes 2` has started one process: without --mpirun_hostfile it does,
    and says nothing. It is known by the address it sets for processes that meet, without their number.
    """
    on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if world_size == 1 and on_cpu and "MASTER_PORT" in environment and "WORLD_SIZE" not in environment:
        logger.warning(
            "accelerate was asked for several processes and has started one: use `torchrun --nproc_per_node N "
            "run_classification.py ...`."
        )
