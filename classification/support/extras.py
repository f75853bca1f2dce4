"""Packages that only some flags need: asked for before anything is read, named with the extra that brings them."""

from importlib.util import find_spec


def install_command(extra: str) -> str:
    """How to get an extra of pyproject.toml, for messages and help texts."""
    return f'pip install "hf-mamba[{extra}]" (in a checkout: pip install -e ".[{extra}]")'


def require(package: str, extra: str, flag: str) -> None:
    """
    Raises:
        ValueError: `package` is not installed; names the extra of pyproject.toml and the flag that needs it.
    """
    if find_spec(package) is None:
        raise ValueError(f"{flag} needs {package}, which is not installed: {install_command(extra)}.")
