"""Which posts make up a split: as given, set aside of the training posts, or a fold of them; the same for a seed."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold
from transformers.utils import logging

from .arguments import DataArguments
from .columns import repair_surrogates
from .labels import SINGLE, LabelScheme, is_varied
from .raw_split import RawSplit


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class ChosenRows:
    """The rows of a raw split that make up a split, and the labels of all rows of the raw split, if known."""

    raw: RawSplit
    rows: Sequence[int]
    labels: list | None

    @property
    def row_labels(self) -> list:
        """The labels of the rows alone; none if they aren't known."""
        return [] if self.labels is None else [self.labels[row] for row in self.rows]


# A share of the training posts is set aside


def set_aside_missing(
    chosen: Mapping[str, ChosenRows], scheme: LabelScheme, args: DataArguments, seed: int
) -> dict[str, ChosenRows]:
    """Test and validation posts out of the training posts where none are given, as --test_split and
    --validation_split say."""
    found = dict(chosen)
    for split, share in (("test", args.test_split), ("validation", args.validation_split)):
        if "train" in found and split not in found and share > 0:
            found = _cut(found, split, scheme.problem_type, share, seed)
    return found


def _cut(
    chosen: Mapping[str, ChosenRows], split: str, problem_type: str, share: float, seed: int
) -> dict[str, ChosenRows]:
    """Sets `share` of the training rows aside as `split`, the same rows for the same seed."""
    train = chosen["train"]
    picked = set_aside(train.row_labels, problem_type, share, seed)
    if not picked:
        raise ValueError(
            f"{train.raw.place} has too few rows ({len(train.rows)}) to set some aside for {split}: give "
            f"--{split}_file, or --{split}_split 0 to do without."
        )
    aside = [train.rows[i] for i in picked]
    logger.info(
        f"No {split} posts are given: {len(aside)} of {len(train.rows)} posts of {train.raw.place} are set aside"
        f"{' of each class alike' if problem_type == SINGLE else ''} (--{split}_split {share}, seed {seed})."
    )
    kept = sorted({*train.rows} - {*aside})
    others = {name: part for name, part in chosen.items() if name != "train"}
    return {"train": replace(train, rows=kept), split: replace(train, rows=aside)} | others


def set_aside(values: Sequence, problem_type: str, share: float, seed: int) -> list[int]:
    """
    The rows, in order, to set aside for another split: `share` of all, the same for the same seed. Of every class
    alike for single labels, at random otherwise. Empty if there are too few.
    """
    classes = np.array(values) if problem_type == SINGLE else np.zeros(len(values), dtype=int)
    counts = np.bincount(classes)
    quota = share * counts
    sizes = np.floor(quota).astype(int)
    # rounding: the largest remainders get the rows that are left, and every class keeps a row to train on
    left = max(1, round(share * len(classes))) - sizes.sum()
    sizes[np.argsort(sizes - quota, kind="stable")[:left]] += 1
    sizes = np.minimum(sizes, np.maximum(counts - 1, 0))
    generator = np.random.default_rng(seed)
    picked = [generator.permutation(np.flatnonzero(classes == label))[:size] for label, size in enumerate(sizes)]
    return sorted(np.concatenate(picked).tolist())


# Folds


def only_train(raw_splits: Mapping[str, RawSplit]) -> dict[str, RawSplit]:
    """For --folds: the training posts, alone."""
    if "train" not in raw_splits:
        raise ValueError("--folds splits the training posts, and there are none: give --train_file.")
    if len(raw_splits) > 1:
        others = ", ".join(split for split in raw_splits if split != "train")
        logger.warning(f"--folds splits the training posts alone and leaves out: {others}.")
    return {"train": raw_splits["train"]}


def splits_of_fold(
    train: ChosenRows, text_column: str | None, scheme: LabelScheme, args: DataArguments, seed: int
) -> dict[str, ChosenRows]:
    """Test, validation and training rows of --fold, all of the training split."""
    if args.folds is None or args.fold is None:
        raise ValueError("--folds and --fold go together here: give the number of the fold to read, from 1 on.")
    cells = train.raw.cells(text_column) if text_column in train.raw.columns else None
    rows = rows_of_fold(
        train.labels or [],
        cells,
        scheme.problem_type,
        names=scheme.names,
        place=train.raw.place,
        folds=args.folds,
        fold=args.fold,
        share=args.validation_split,
        seed=seed,
    )
    same = f"posts of the same {text_column!r} together" if cells is not None else "no texts to keep together"
    logger.info(f"Fold {args.fold} of {args.folds} of {train.raw.place} is the test posts, {same} (seed {seed}).")
    return {split: ChosenRows(train.raw, part, train.labels) for split, part in rows.items()}


def rows_of_fold(
    labels: Sequence,
    cells: Sequence | None,
    problem_type: str,
    *,
    names: Sequence[str],
    place: str,
    folds: int,
    fold: int,
    share: float,
    seed: int,
) -> dict[str, list[int]]:
    """
    The rows of one fold's splits.

    Args:
        labels: of all n rows, as the problem type says
        cells: their texts, or None where there are none to go by
        names: the labels' names, for messages
        place: what the rows are of, for messages
        folds, fold: how many, and which one, from 1 on
        share: of the rows that aren't in the fold, about how many are for validation: 0 to a half
        seed: of the assignment

    Returns:
        {"train": rows, "validation": rows, "test": rows} in order, without validation if `share` is 0

    Raises:
        ValueError: more folds than posts of a label, or than different posts; a share above a half.
    """
    groups = np.arange(len(labels)) if cells is None else same_text(cells)
    _check_enough(labels, groups, problem_type, names, place, folds)
    in_test = assign_folds(labels, groups, problem_type, folds, seed) == fold - 1
    rest = np.flatnonzero(~in_test)
    found = {"train": rest, "test": np.flatnonzero(in_test)}
    if share > 0.5:
        raise ValueError(f"--validation_split {share}: with --folds at most a half of the training posts, 0.5.")
    if share > 0:
        parts = min(round(1 / share), len(np.unique(groups[rest])))
        if parts < 2:
            raise ValueError(
                f"{place} has too few different texts to set some aside for validation: --validation_split 0."
            )
        aside = assign_folds([labels[row] for row in rest.tolist()], groups[rest], problem_type, parts, seed) == 0
        found = {"train": rest[~aside], "validation": rest[aside], "test": found["test"]}
    return {split: [*map(int, rows)] for split, rows in found.items()}


def same_text(cells: Sequence) -> np.ndarray:
    """
    A group for each post, ids (n,): posts whose texts differ in nothing but case and white space are in one, posts
    without a text each in its own.
    """
    texts = ["" if cell is None else " ".join(repair_surrogates(str(cell)).lower().split()) for cell in cells]
    ids: dict[str | int, int] = {}
    return np.array([ids.setdefault(text or row, len(ids)) for row, text in enumerate(texts)])


def assign_folds(labels: Sequence, groups: np.ndarray, problem_type: str, folds: int, seed: int) -> np.ndarray:
    """
    Assigns posts to folds of about equal size, of every class alike for single labels; a group stays together.

    Args:
        labels: of n posts, as the problem type says
        groups: ids (n,)
        folds: how many
        seed: other seeds, other folds

    Returns:
        the fold of each post, 0 to folds - 1, shape (n,)
    """
    classes = np.array(labels) if problem_type == SINGLE else np.zeros(len(labels), dtype=int)
    fold_of = np.empty(len(classes), dtype=int)
    with warnings.catch_warnings():  # of classes with fewer posts than folds, which are checked where it matters
        warnings.simplefilter("ignore", UserWarning)
        parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(classes, classes, groups)
        for fold, (_, inside) in enumerate(parts):
            fold_of[inside] = fold
    return fold_of


def _check_enough(
    labels: Sequence, groups: np.ndarray, problem_type: str, names: Sequence[str], place: str, folds: int
) -> None:
    different = len(np.unique(groups))
    if folds > different:
        raise ValueError(f"--folds {folds}: {place} has only {different} different posts. Give fewer folds.")
    if problem_type == SINGLE:
        label, count = min(Counter(labels).items(), key=lambda item: (item[1], item[0]))
        if count < folds:
            raise ValueError(
                f"--folds {folds}: {place} has only {count} posts of the label {names[label]!r}, too few for each "
                "fold to have one. Give fewer folds, or leave that label out."
            )


# The first posts of each split


def keep_first(chosen: Mapping[str, ChosenRows], args: DataArguments) -> dict[str, ChosenRows]:
    """
    As many rows of each split as --max_*_samples says.

    Raises:
        ValueError: all of them have the same label, and it isn't a split where that is only worth a warning.
    """
    flags = {"train": "max_train_samples", "validation": "max_eval_samples", "test": "max_predict_samples"}
    first = {split: replace(part, rows=part.rows[: getattr(args, flags[split])]) for split, part in chosen.items()}
    for split, part in first.items():
        if part.labels is None or is_varied(part.row_labels):
            continue
        cut = f" in the first {len(part.rows)} rows (--{flags[split]})" if getattr(args, flags[split]) else ""
        what = f"{part.raw.place} has only one label{cut}"
        cut_from_train = split == "validation" and "train" in chosen and part.raw is chosen["train"].raw
        if split == "test" or cut_from_train or (part.raw.streamed is not None and split == "train"):
            logger.warning(f"{what} among the {split} posts: their metrics say little.")
            continue
        raise ValueError(
            f"{what}: there is nothing to learn or to measure. Give {split} posts of two labels or more, or name the "
            "right column with --label_column_name."
        )
    return first
