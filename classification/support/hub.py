"""The Hub: what a name means, whether uploading is allowed, and every error in one line with its fix."""

import os
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from .messages import one_line


_LOG_IN = "log in by `hf auth login`, or put a token of https://huggingface.co/settings/tokens into HF_TOKEN"


def explain_hub_error(error: BaseException) -> str:
    """
    One sentence about an error of huggingface_hub or transformers, with the fix: of all the errors that led to it, the
    most informative one. Anything unknown is given in its own words.
    """
    errors = [error]
    while (earlier := errors[-1].__cause__ or errors[-1].__context__) is not None:
        errors.append(earlier)
    for is_of_kind, sentence in _SENTENCES:
        for one in errors:
            if is_of_kind(one):
                return sentence(one)
    return one_line(error)


def explain_push_error(error: BaseException) -> str:
    """`explain_hub_error`, for what went wrong with uploading."""
    return "HF_HUB_OFFLINE is set: unset it" if isinstance(error, OfflineModeIsEnabled) else explain_hub_error(error)


def is_transport_error(error: BaseException) -> bool:
    """
    Did a request fail before the Hub answered it? Known by the names of its classes, for huggingface_hub has changed
    its HTTP client several times (requests, httpx, httpx2) and wraps the client's errors in none of its own.
    """
    return any(cls.__name__ in ("TransportError", "ConnectionError", "Timeout") for cls in type(error).__mro__)


def _http(error: BaseException) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return f"the Hub refuses the token that was sent, or none was sent (401): {_LOG_IN}"
    if status == 403:
        return f"the token may not do this (403): {_LOG_IN}, one with write access where something is uploaded"
    return f"the Hub answered {one_line(error)}"


def _no_repository(_: BaseException) -> str:
    if get_token() is None:
        return f"the Hub has no public repository of that name: check the spelling; if it is private, {_LOG_IN}"
    return "the Hub has no repository of that name that your token may read: check the spelling, and whose token it is"


def _is(kind: type[BaseException]) -> Callable[[BaseException], bool]:
    return lambda error: isinstance(error, kind)


# Kind of error -> sentence. The first that occurs among an error and its causes: subclasses stand before their bases.
_SENTENCES: list[tuple[Callable[[BaseException], bool], Callable[[BaseException], str]]] = [
    (
        _is(OfflineModeIsEnabled),
        lambda _: "HF_HUB_OFFLINE is set, and it is not in the cache: unset it, or give a folder",
    ),
    (_is(GatedRepoError), lambda _: f"it is gated: ask for access on its page on the Hub, then {_LOG_IN}"),
    (_is(RepositoryNotFoundError), _no_repository),
    (_is(HfHubHTTPError), _http),
    (_is(HFValidationError), lambda _: "it isn't a valid name on the Hub: these have the form owner/name"),
    (
        is_transport_error,
        lambda error: f"{constants.ENDPOINT} can't be reached ({one_line(error)}): check the network",
    ),
    (_is(LocalEntryNotFoundError), lambda _: f"{constants.ENDPOINT} can't be reached, and it is not in the cache"),
]


def check_may_write(repo_id: str) -> None:
    """
    Raises what the Hub does to a token without the right to write: that a repository exists does not prove it.

    Raises:
        HfHubHTTPError and others, see `explain_push_error`
    """
    HfApi().preupload_lfs_files(repo_id, [CommitOperationAdd("README.md", b"\n")])  # only asks how it would be sent


def find_checkpoint(name: str) -> str:
    """
    The folder of a checkpoint, or its name if it is one on the Hub (whose config.json is then in the cache).

    Raises:
        FileNotFoundError, ValueError: there is no such folder or repository, or it isn't a model's; says what to do.
    """
    flag = f"--model_name_or_path {name}"
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            saved = sorted(folder.glob("checkpoint-*/config.json"), key=lambda path: path.stat().st_mtime)
            hint = f" Did you mean {saved[-1].parent}?" if saved else ""
            raise FileNotFoundError(f"{flag} holds no config.json: give a folder that save_pretrained wrote.{hint}")
        return str(folder)
    if folder.is_file():
        raise ValueError(f"{flag} is a file: give the folder that it is in.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or os.sep != "/" and os.sep in name:
        raise FileNotFoundError(f"{flag}: there is no such folder.")
    try:
        hf_hub_download(name, "config.json")
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise ValueError(f"{flag}: there is no such folder here, and {explain_hub_error(error)}.") from error
        raise ValueError(f"{flag}: that repository holds no config.json, so it isn't a model's.") from error
    except Exception as error:  # those of the Hub's HTTP client have no other base class in common
        raise ValueError(f"{flag}: there is no such folder here, and {explain_hub_error(error)}.") from error
    return name
