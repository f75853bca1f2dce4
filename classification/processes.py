"""The warning when several processes were asked for and turn out to be one."""

import os

from transformers.utils import logging


logger = logging.get_logger(__name__)


def warn_of_one_process(world_size, environment=os.environ):
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
