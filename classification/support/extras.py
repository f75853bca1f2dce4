"""Packages that only some flags need: asked for before anything is read, named with the extra that brings them."""

from importlib.util import find_spec


def require(package, extra, flag):
    """
    Raises:
        ValueError: `package` is not installed; names the extra of pyproject.toml and the flag that needs it.
    """
    if find_spec(package) is None:
        raise ValueError(f'{flag} needs {package}, which is not installed: pip install "hf-mamba[{extra}]".')


def check_trackers(report_to):
    """
    Args:
        report_to: TrainingArguments.report_to, a list of names

    Raises:
        ValueError: TensorBoard is asked for but not installed.
    """
    if "tensorboard" in report_to:
        require("tensorboard", "tensorboard", "--report_to tensorboard")
