"""How every command of this package reports a mistake: in a line, with the same exit codes."""

import os
import sys
from collections.abc import Callable

import torch
from huggingface_hub.errors import StrictDataclassError


def run_command(main: Callable[[], object], interrupted: str = "Interrupted.") -> None:
    """
    Runs `main()`: what a user can fix (ValueError, OSError, a config's strict check) is one line and exit code 1,
    Ctrl-C a line and exit code 130. HF_MAMBA_TRACEBACK=1 in the environment shows where a mistake came from.

    Args:
        main: the command
        interrupted: what Ctrl-C prints
    """
    try:
        main()
    except (ValueError, OSError, StrictDataclassError) as error:
        if os.environ.get("HF_MAMBA_TRACEBACK"):
            raise
        raise SystemExit(f"error: {str(error).strip()}") from None
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        raise SystemExit(130) from None
    finally:  # a process that ends with its group's threads still running may be aborted, after all was done
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
