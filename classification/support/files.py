"""Small files: read with an error that names the file and the fix, written whole or not at all.

Every file of a few megabytes that this package writes goes through `write_text`: a process that is killed while it
writes leaves the earlier file, or none.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


# The folder of the package: of the model's modules, the recipes and the model card's template
PACKAGE_FOLDER = Path(__file__).resolve().parents[2]


def read_text(path: str | Path, what: str = "") -> str:
    """
    The text of a UTF-8 file.

    Args:
        path: the file
        what: how the error names it ("Recipe"), before its path; empty for the path alone

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it isn't UTF-8.
    """
    name = f"{what} {path}".strip()
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} can't be read: it isn't UTF-8 text ({error}). Save it as UTF-8.") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: there is no such file.") from None


def read_mapping(path: str | Path, what: str = "", fix: str = "") -> dict[str, Any]:
    """
    A JSON (.json) or YAML (any other suffix) file that holds one mapping; an empty YAML file is an empty one.

    Args:
        path: the file
        what: how an error names it ("Recipe"), before its path
        fix: what to do about a file that can't be read, a sentence

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it isn't UTF-8, isn't JSON or YAML, or holds something else than a mapping; names line and column
            where the parser knows them.
    """
    text = read_text(path, what)
    name, is_json = f"{what} {path}".strip(), Path(path).suffix == ".json"
    try:
        content = json.loads(text) if is_json else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{name} can't be read: {' '.join(str(error).split())}. {fix}".strip()) from None
    if content is None and not is_json:
        return {}
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"{name} holds a {kind}, but must hold a mapping of names to values. {fix}".strip())
    return content


def write_text(path: str | Path, text: str) -> None:
    """
    Writes a UTF-8 file whole or not at all: into a temporary file beside it, synchronised to the disk, renamed.

    An existing file keeps its permissions; a link is followed, so that the file it points to changes.

    Raises:
        FileNotFoundError: there is no folder to write it into.
        OSError: it can't be written; names the file, and not the temporary one.
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} can't be written: there is no folder {path.parent}. Make it first.")
    try:
        _write_and_rename(path, text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_and_rename(path: Path, text: str) -> None:
    """The steps of `write_text`; whatever fails, no temporary file stays."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, path.stat().st_mode & 0o7777 if path.exists() else 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, content: Any, *, indent: int = 2, sort_keys: bool = False) -> None:
    """Writes JSON that people can read, with a final newline, see `write_text`."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False, sort_keys=sort_keys) + "\n")


def write_yaml(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes YAML in the order of the mapping, see `write_text`."""
    write_text(path, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))


def _umask() -> int:
    """The process's mask of permissions, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
