"""Parts of messages: what a misspelt name may have meant, a user's words in a table, lists for people."""

import difflib
from collections.abc import Iterable


def nearest(name: object, candidates: Iterable[object], cutoff: float = 0.6) -> object | None:
    """The candidate whose spelling is nearest to `name` whatever its case, None if none is near."""
    by_lower = {str(candidate).lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[close[0]] if close else None


def did_you_mean(name: object, candidates: Iterable[object], otherwise: str = "") -> str:
    """' Did you mean ...?' for the candidate nearest to a misspelt name, else `otherwise`."""
    meant = nearest(name, candidates)
    return otherwise if meant is None else f" Did you mean {meant!r}?"


def in_a_cell(text: object, longest: int | None = None) -> str:
    """
    A user's words as one cell of a Markdown table.

    Args:
        text: anything with a str
        longest: characters after which it is cut, with an ellipsis; None for no limit
    """
    cell = " ".join(str(text).replace("|", "\\|").split())
    return cell if longest is None or len(cell) <= longest else f"{cell[: longest - 1]}…"


def one_line(error: object, longest: int = 500) -> str:
    """An error's message with its line breaks taken out, or what kind of error it is."""
    return " ".join(str(error).split())[:longest] or type(error).__name__
