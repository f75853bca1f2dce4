"""What to say, in one line with the fix, when the Hub can't give or take something."""

import os
from pathlib import Path

import httpx2
from huggingface_hub import constants, get_token, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)


_LOG_IN = "log in by `hf auth login`, or put a token of https://huggingface.co/settings/tokens into HF_TOKEN"


def explain(error) -> str:
    """
    One sentence about an error of huggingface_hub or transformers, with the fix: of all the errors that led to it, the
    one that tells most. Anything unknown is given in its own words.
    """
    errors = [error]
    while (earlier := errors[-1].__cause__ or errors[-1].__context__) is not None:
        errors.append(earlier)
    for known, sentence in _SENTENCES.items():
        found = next((e for e in errors if isinstance(e, known)), None)
        if found is not None:
            return sentence(found)
    return one_line(error)


def one_line(error) -> str:
    """An error's message with its line breaks taken out, or what kind of error it is."""
    return " ".join(str(error).split())[:500] or type(error).__name__


def _http(error):
    status = getattr(error.response, "status_code", None)
    if status == 401:
        return f"the Hub refuses the token that was sent, or none was sent (401): {_LOG_IN}"
    if status == 403:
        return f"the token may not do this (403): {_LOG_IN}, one with write access where something is uploaded"
    return f"the Hub answered {one_line(error)}"


def _no_repository(_):
    if get_token() is None:
        return f"the Hub has no repository of that name for everybody: check the spelling; if it is private, {_LOG_IN}"
    return "the Hub has no repository of that name that your token may read: check the spelling, and whose token it is"


# The first that occurs among an error and its causes: subclasses stand before their bases.
_SENTENCES = {
    OfflineModeIsEnabled: lambda _: "HF_HUB_OFFLINE is set, and it is not in the cache: unset it, or give a folder",
    GatedRepoError: lambda _: f"its authors want to be asked first: do so on its page on the Hub, then {_LOG_IN}",
    RepositoryNotFoundError: _no_repository,
    HfHubHTTPError: _http,
    HFValidationError: lambda _: "it is no possible name on the Hub, which has the form owner/name",
    httpx2.TransportError: lambda e: f"{constants.ENDPOINT} can't be reached ({one_line(e)}): check the network",
    LocalEntryNotFoundError: lambda _: f"{constants.ENDPOINT} can't be reached, and it is not in the cache",
}


def find_checkpoint(name: str) -> str:
    """
    The folder of a checkpoint, or its name if it is one on the Hub (whose config.json is then in the cache).

    Raises:
        FileNotFoundError, ValueError: there is no such folder or repository, or it is none of a model's; says what to
            do about it.
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
            raise ValueError(f"{flag}: there is no such folder here, and {explain(error)}.") from error
        raise ValueError(f"{flag}: that repository holds no config.json, so it is no model's.") from error
    except (OSError, ValueError, httpx2.HTTPError) as error:
        raise ValueError(f"{flag}: there is no such folder here, and {explain(error)}.") from error
    return name
