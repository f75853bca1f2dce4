"""How a command of this package, `python -m hf_mamba.classification.<name>`, tells a mistake."""

import os


def run_command(main):
    """
    Runs `main()`: what a user can mend (ValueError, OSError) is one line and exit code 1; HF_MAMBA_TRACEBACK=1 in the
    environment shows where it came from.
    """
    try:
        main()
    except (ValueError, OSError) as error:
        if os.environ.get("HF_MAMBA_TRACEBACK"):
            raise
        raise SystemExit(f"error: {error}") from None
