"""Which column is what, and what a cell of it means: texts and image paths out of raw rows."""

import math
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from transformers.utils import logging

from ..support.messages import did_you_mean, nearest
from .raw_split import RawSplit


logger = logging.get_logger(__name__)

MODALITIES = ("text", "image")

# Usual names of each role's column, the first that is there wins. "question" is a text and "answer" a label: in visual
# question answering a post is a question with an image.
_USUAL = {
    "text": "text sentence tweet post content caption review question comment message body title texts",
    "image": "image images file_name file_names image_path image_paths image_file image_files image_file_name photo "
    "photos picture pictures img path filename",
    "label": "label labels target class sentiment answer category rating stars sarcasm is_sarcastic emotion",
    "id": "id post_id tweet_id image_id idx guid _id",
}
USUAL_NAMES = {role: tuple(names.split()) for role, names in _USUAL.items()}


def parse_modalities(modalities: str | Iterable[str]) -> tuple[str, ...]:
    """
    "text,image" or ("text", "image") as a tuple.

    Raises:
        ValueError: something else is named, or nothing is.
    """
    names = modalities.split(",") if isinstance(modalities, str) else modalities
    names = [name.strip().lower() for name in names if name.strip()]
    unknown = [name for name in names if name not in MODALITIES]
    if unknown or not names:
        wrong = f"{unknown[0]!r} is not a modality" if unknown else "both modalities are left out"
        raise ValueError(f"--modalities {modalities!r}: {wrong}; give text,image or text or image.")
    return tuple(name for name in MODALITIES if name in names)


def find_columns(
    splits: Mapping[str, RawSplit], named: Mapping[str, str | None], modalities: Sequence[str]
) -> dict[str, str]:
    """
    Which column holds what.

    Args:
        splits: the raw splits
        named: role ("text", "image", "label", "id", "group") -> the column that its flag names, or None
        modalities: those in use; the other's column is left out

    Returns:
        role -> column. Every split has the columns of text and image; the others may be absent from some.

    Raises:
        ValueError: a named column that no split has, no column for any modality or for the training labels, a column
            that looks like a misspelt usual name, a split that lacks a column which another has.
    """
    roles = (*modalities, "label", "id", "group")
    first = next(iter(splits.values()))
    columns: dict[str, str] = {}
    for role in roles:
        if name := named[role]:
            if not any(name in raw.columns for raw in splits.values()):
                raise _no_such_column(first, role, name)
            columns[role] = name
    for role in roles:
        if role in columns or role not in USUAL_NAMES:  # a group is only what the user calls one
            continue
        if column := usual_column(splits, role, set(columns.values())):
            columns[role] = column
    _check_found(splits, columns, modalities)
    for raw in splits.values():
        for role in modalities:
            if role in columns and columns[role] not in raw.columns:
                raise _no_such_column(raw, role, columns[role])
    if "train" in splits and columns["label"] not in splits["train"].columns:
        raise _no_such_column(splits["train"], "label", columns["label"])
    logger.info("Columns: " + ", ".join(f"{role} from {column!r}" for role, column in columns.items()))
    return columns


def usual_column(splits: Mapping[str, RawSplit], role: str, taken: Collection[str]) -> str | None:
    """The column of a usual name, whatever its case."""
    for raw in splits.values():
        by_lower = {column.lower(): column for column in raw.columns if column not in taken}
        for name in USUAL_NAMES[role]:
            if name in by_lower:
                return by_lower[name]
    return None


def _check_found(splits: Mapping[str, RawSplit], columns: Mapping[str, str], modalities: Sequence[str]) -> None:
    first = next(iter(splits.values()))
    there = ", ".join(map(repr, first.columns)) or "none"
    free = [column for column in first.columns if column not in columns.values()]
    for role in modalities:
        if role in columns:
            continue
        for column in free:  # better to ask than to train without the images because of a typing error
            if nearest(column, USUAL_NAMES[role], cutoff=0.8):
                other = "text" if role == "image" else "image"
                raise ValueError(
                    f"{first.place} has no {role} column of a usual name, but {column!r} looks like one: name it with "
                    f"--{role}_column_name {column}, or give --modalities {other}. Columns there: {there}."
                )
    if not any(role in columns for role in modalities):
        flags = " or ".join(f"--{role}_column_name" for role in modalities)
        raise ValueError(
            f"{first.place} has no {' or '.join(modalities)} column of a usual name. Columns there: {there}. Name the "
            f"right one with {flags}."
        )
    for role in modalities:
        if role not in columns:
            logger.warning(f"{first.place} has no {role} column: posts have no {role}. Columns there: {there}.")
    if "train" in splits and "label" not in columns:
        raise ValueError(
            f"{first.place} has no label column of a usual name. Columns there: {there}. Name the right one with "
            "--label_column_name."
        )


def _no_such_column(raw: RawSplit, role: str, column: str) -> ValueError:
    there = ", ".join(map(repr, raw.columns)) or "none"
    hint = did_you_mean(column, raw.columns)
    return ValueError(f"{raw.place} has no column {column!r} (--{role}_column_name).{hint} Columns there: {there}.")


def repair_surrogates(text: str) -> str:
    """Halves of surrogate pairs (a JSON escape cut in two) become U+FFFD; Arrow and tokenizers refuse them."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: Any, where: str, column: str) -> str | None:
    """A text cell; None where it holds no visible character."""
    if is_missing(value):
        return None
    if isinstance(value, (int, float)):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(
            f"{where}, column {column!r}: a {type(value).__name__} where a text belongs. Write it as one string, or "
            "name the right column with --text_column_name."
        )
    # Of control, format and lone combining characters a tokenizer leaves nothing
    visible = any(c != "\ufffd" and unicodedata.category(c)[0] not in "CZ" and not _is_mark(c) for c in value)
    return repair_surrogates(value) if visible else None


def _is_mark(character: str) -> bool:
    return unicodedata.category(character) == "Mn"
