"""What a label cell means: one class, several labels or a number; and which of these a column of labels is.

| cells | problem type | what a post's label becomes |
|---|---|---|
| strings, whole numbers, booleans | `single_label_classification` | the id of its class |
| lists (in csv files JSON lists, or names joined by --label_separator) | `multi_label_classification` | a 0/1 vector |
| numbers, not all of them whole | `regression` | a float |

The data decide, --problem_type overrides, and a checkpoint's own type and labels rule when it is evaluated.
"""

import ast
import json
import math
import re
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, List, Value
from transformers.utils import logging

from ..support.messages import did_you_mean
from .columns import is_missing, repair_surrogates
from .raw_split import RawSplit


logger = logging.get_logger(__name__)

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WHOLE_FLOAT = re.compile(r"([+-]?\d+)\.0*")
_MANY_CLASSES = 50  # more different whole numbers than this look like scores


@dataclass(frozen=True)
class LabelScheme:
    """
    What the labels are.

    Args:
        problem_type: single_label_classification, multi_label_classification or regression
        names: the names of the model's outputs in their order: the labels', or the label column's for regression
        unknown: why a label isn't among these, for messages
        separator: what separates labels in a cell of a csv file, if not JSON
    """

    problem_type: str
    names: list[str]
    unknown: str = "unknown to the checkpoint"
    separator: str | None = None

    @classmethod
    def from_training(
        cls,
        raw: RawSplit,
        cells: Sequence,
        column: str,
        problem_type: str | None = None,
        separator: str | None = None,
    ) -> "LabelScheme":
        """
        Finds out what the training labels are; `problem_type` overrides what they look like.

        Raises:
            ValueError: numbers among words, or cells that can't be of the problem type asked for.
        """
        decided = problem_type or _problem_type_of(raw, cells, column, separator)
        scheme = cls(decided, [column], "unseen in training", separator)
        if decided != REGRESSION:
            labels = {label for labels in scheme._parsed(raw, cells, column) for label in labels}
            scheme = cls(decided, _sorted_names(raw, labels, column), "unseen in training", separator)
            if not scheme.names:
                raise ValueError(f"{raw.place}, column {column!r}: no row has any label. Name the right column.")
        logger.info(scheme._described(raw, cells, column, asked=problem_type is not None))
        return scheme

    def values(self, raw: RawSplit, cells: Sequence, column: str) -> list:
        """
        A row's label each: an id, a boolean array (num_labels,), or a float.

        Raises:
            ValueError: names the row whose label is missing, unknown or of another kind.
        """
        parsed = self._parsed(raw, cells, column)
        if self.problem_type == REGRESSION:
            return parsed
        ids = self._ids(raw, parsed)
        if self.problem_type == SINGLE:
            return [first for (first,) in ids]
        vectors = np.zeros((len(ids), len(self.names)), dtype=bool)
        for row, row_ids in enumerate(ids):
            vectors[row, row_ids] = True
        return list(vectors)

    def feature(self) -> ClassLabel | Value | List:
        """The column type of the labels in a `datasets.Dataset`."""
        if self.problem_type == SINGLE:
            return ClassLabel(names=list(self.names))
        return Value("float64") if self.problem_type == REGRESSION else List(Value("bool"), length=len(self.names))

    def _parsed(self, raw: RawSplit, cells: Sequence, column: str) -> list:
        """Each row's list of label names or its number."""
        parsers: dict[str, Callable[..., Any]] = {SINGLE: _as_one_label, MULTI: as_labels, REGRESSION: as_score}
        parse = parsers[self.problem_type]
        more = [self.separator] if self.problem_type == MULTI else []
        parsed = [parse(cell, raw.where(row), column, *more) for row, cell in enumerate(cells)]
        missing = [row for row, labels in enumerate(parsed) if labels is None]
        if missing:
            hint = " A post without any label is written []." if self.problem_type == MULTI else ""
            raise ValueError(
                f"{raw.where(missing[0])}, column {column!r}: the label is missing ({len(missing)} of {len(parsed)} "
                "rows have none). Label these rows or drop them; only a test split may have no labels at all." + hint
            )
        return parsed

    def _ids(self, raw: RawSplit, parsed: Sequence[Sequence[str]]) -> list[list[int]]:
        fold: Callable[[str], str] = str.lower if _are_booleans(self.names) else str
        id_of = {fold(name): index for index, name in enumerate(self.names)}
        for row, labels in enumerate(parsed):
            unknown = next((label for label in labels if fold(label) not in id_of), None)
            if unknown is None:
                continue
            count = sum(any(fold(label) not in id_of for label in labels) for labels in parsed)
            known = ", ".join(map(repr, self.names[:20])) + (", ..." if len(self.names) > 20 else "")
            several = self.problem_type == MULTI and not self.separator and re.search("[,;|]", unknown)
            hint = f" Or separate labels in a cell by --label_separator '{several[0]}'." if several else ""
            raise ValueError(
                f"{raw.where(row)}: the label {unknown!r} is {self.unknown} ({count} of {len(parsed)} rows have such "
                f"labels). Known labels: {known}. Correct the label or drop the row, or train with posts that have "
                f"it.{hint}"
            )
        return [[id_of[fold(label)] for label in labels] for labels in parsed]

    def _described(self, raw: RawSplit, cells: Sequence, column: str, asked: bool) -> str:
        """For the log: what the labels were taken for."""
        why = "asked for" if asked else "inferred from the labels; --problem_type overrides"
        if self.problem_type == REGRESSION:
            scores = np.array([as_score(cell, raw.where(row), column) or 0 for row, cell in enumerate(cells)])
            kind = f"numbers from {scores.min():g} to {scores.max():g}, mean {scores.mean():.4g}"
        else:
            shown = ", ".join(self.names[:10]) + (", ..." if len(self.names) > 10 else "")
            kind = (
                f"{len(self.names)} classes" if self.problem_type == SINGLE else f"lists of {len(self.names)} labels"
            )
            kind += f" ({shown})"
        many = not asked and self.problem_type == SINGLE and len(self.names) > _MANY_CLASSES
        if many and all(map(_NUMBER.fullmatch, self.names)):
            why += ", with regression if these are scores"
        return f"Labels of column {column!r}: {kind}; problem type {self.problem_type} ({why})."


def read_label_cells(split: str, raw: RawSplit, column: str | None) -> list | None:
    """The label cells of all rows as they stand; None for a test split without labels."""
    if column is None or column not in raw.columns:
        if split == "validation":
            raise ValueError(
                f"{raw.place} has no label column{f' {column!r}' if column else ''}, which validation needs. Columns "
                f"there: {', '.join(map(repr, raw.columns))}. Name it with --label_column_name, or give posts without "
                "labels as --test_file."
            )
        logger.info(f"{raw.place} has no label column: its posts are unlabelled.")
        return None
    cells = raw.cells(column)
    return None if split == "test" and all(_is_blank(cell) for cell in cells) else cells


def _is_blank(cell: Any) -> bool:
    return is_missing(cell) or (isinstance(cell, str) and not cell.strip())


def _problem_type_of(raw: RawSplit, cells: Sequence, column: str, separator: str | None) -> str:
    if separator or any(_as_list(cell) is not None for cell in cells):
        return MULTI
    if raw.class_names(column) is not None:
        return SINGLE
    numbers = [None if _is_blank(cell) else _as_number(cell) for cell in cells]
    fraction = next((row for row, number in enumerate(numbers) if number is not None and number % 1), None)
    if fraction is None:
        return SINGLE
    word = next((row for row, cell in enumerate(cells) if numbers[row] is None and not _is_blank(cell)), None)
    if word is None:
        return REGRESSION
    if isinstance(cells[fraction], str) and isinstance(cells[word], str):
        return SINGLE  # "1.5" is a name among names
    raise ValueError(
        f"{raw.where(fraction)}, column {column!r}: the number {cells[fraction]} among labels that aren't "
        f"numbers, such as {cells[word]!r} of {raw.where(word)}. Write numbers only for regression, or names only for "
        "classes."
    )


def _as_number(value: Any) -> int | float | None:
    """The finite number that a cell holds, else None."""
    if isinstance(value, str):
        value = float(value) if _NUMBER.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def _as_list(value: Any) -> list | None:
    """The list that a cell is, or that is written in it as JSON or Python; else None."""
    if not isinstance(value, str) or not value.strip().startswith("["):
        return value if isinstance(value, list) else None
    for read in (json.loads, ast.literal_eval):  # the latter reads what pandas makes of a list in a csv file
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = read(value.strip())
            return value if isinstance(value, list) else None
    return None  # a name with brackets


def as_label(value: Any, where: str, column: str) -> str | None:
    """A label cell as the label's name; 1, 1.0, "1" and "1.0" are all "1"."""
    if is_missing(value):
        return None
    if isinstance(value, (list, dict)):
        raise ValueError(
            f"{where}, column {column!r}: a {type(value).__name__} where one label belongs. Several labels per post "
            "are --problem_type multi_label_classification, for all posts alike."
        )
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = repair_surrogates(str(value)).strip()
    whole = _WHOLE_FLOAT.fullmatch(text)
    return (whole[1] if whole else text) or None


def _as_one_label(value: Any, where: str, column: str) -> list[str] | None:
    """As a list of one, to be treated like those of `as_labels`."""
    inside = _as_list(value)
    label = as_label(inside[0] if inside and len(inside) == 1 else value if inside is None else inside, where, column)
    return None if label is None else [label]


def as_labels(value: Any, where: str, column: str, separator: str | None = None) -> list[str] | None:
    """A label cell as the names of its labels: a list, a JSON list, names joined by `separator`, or one name."""
    inside = _as_list(value)
    if inside is None and separator:
        inside = [] if _is_blank(value) else str(value).split(separator)
        inside = [part for part in inside if part.strip()]
    if inside is None:
        label = as_label(value, where, column)
        return None if label is None else [label]
    if any(isinstance(part, float) and part % 1 for part in inside):
        raise ValueError(f"{where}, column {column!r}: {inside!r}, but regression predicts one number per post.")
    named = [as_label(part, where, column) for part in inside]
    labels = [label for label in named if label is not None]
    if len(labels) < len(named):
        raise ValueError(f"{where}, column {column!r}: an empty label among {inside!r}. Leave it out of the list.")
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        hint = (
            " If this is a vector of 0 and 1, write the names of the labels that hold." if twice in ("0", "1") else ""
        )
        raise ValueError(f"{where}, column {column!r}: the label {twice!r} occurs twice.{hint}")
    return labels


def as_score(value: Any, where: str, column: str) -> float | None:
    """A label cell as the number to be predicted."""
    if _is_blank(value):
        return None
    number = _as_number(value)
    if number is None:
        raise ValueError(
            f"{where}, column {column!r}: {value!r} where a number belongs, because the problem type is regression. "
            "Correct it or drop the row."
        )
    return float(number)


def _sorted_names(raw: RawSplit, labels: Collection[str], column: str) -> list[str]:
    """Numbers by size, other names as strings; a ClassLabel column keeps its own order."""
    if (names := raw.class_names(column)) is not None:
        return names
    if _are_booleans(labels):
        return sorted({label.lower() for label in labels})
    if all(map(_NUMBER.fullmatch, labels)):
        return sorted(labels, key=lambda label: (float(label), label))
    return sorted(labels)


def _are_booleans(names: Collection[str]) -> bool:
    """Whether these are true and false; then True, "true" and "TRUE" are the same label."""
    return {name.lower() for name in names} <= {"true", "false"}


def is_varied(values: Sequence) -> bool:
    """Whether there are two different values or more."""
    return len(np.unique(np.asarray(values), axis=0)) > 1


def label_id(name: str, names: Sequence[str], flag: str) -> int:
    """
    The id of the label that a flag names.

    Raises:
        ValueError: there is no such label.
    """
    if name in names:
        return list(names).index(name)
    known = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
    raise ValueError(f"{flag} {name}: there is no such label.{did_you_mean(name, names)} Labels: {known}.")
