"""
Which transformers this code works with. The modules that build on transformers import this one first, so that a
version it can't work with is named before something deep inside fails.
"""

import transformers
from packaging.version import Version
from transformers.utils import logging


# As in pyproject.toml. Below 5.10.1, transformers fails on a local checkpoint's modules that import further ones.
OLDEST, NEXT_MAJOR = "5.10.1", "6"


def check_transformers_version(version):
    """
    Args:
        version: of the transformers that is installed

    Raises:
        ImportError: it is older than `OLDEST`. About one newer than what was tested, a warning is logged, once.
    """
    fix = f"pip install 'transformers>={OLDEST},<{NEXT_MAJOR}'"
    if Version(version) < Version(OLDEST):
        raise ImportError(f"HF-Mamba needs transformers {OLDEST} or newer, but {version} is installed: {fix}")
    if Version(version).major >= int(NEXT_MAJOR):
        # transformers' own logger: checkpoints bring several copies of this file, and each has a logger of its own
        logging.get_logger("transformers").warning_once(
            f"HF-Mamba was tested with transformers {OLDEST} and newer below {NEXT_MAJOR}, but {version} is "
            f"installed. If something fails: {fix}"
        )


check_transformers_version(transformers.__version__)
