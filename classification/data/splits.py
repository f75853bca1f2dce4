"""Which training posts are a fold's test, validation and training posts: the same for the same seed."""

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from .columns import mend
from .labels import SINGLE


def same_text(cells: Sequence) -> np.ndarray:
    """
    A group for each post, ids (n,): posts whose texts differ in nothing but case and white space are in one, posts
    without a text each in its own.
    """
    texts = ["" if cell is None else " ".join(mend(str(cell)).lower().split()) for cell in cells]
    ids = {}
    return np.array([ids.setdefault(text or row, len(ids)) for row, text in enumerate(texts)])


def deal_folds(labels: Sequence, groups: np.ndarray, problem_type: str, folds: int, seed: int) -> np.ndarray:
    """
    Deals posts into folds of about equal size, of every class alike for single labels; a group stays together.

    Args:
        labels: of n posts, as the problem type says
        groups: ids (n,)
        folds: how many
        seed: other seeds, other folds

    Returns:
        the fold of each post, 0 to folds - 1, shape (n,)
    """
    classes = np.array(labels) if problem_type == SINGLE else np.zeros(len(labels), dtype=int)
    found = np.empty(len(classes), dtype=int)
    with warnings.catch_warnings():  # of classes with fewer posts than folds, which are checked where it matters
        warnings.simplefilter("ignore", UserWarning)
        dealt = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(classes, classes, groups)
        for fold, (_, inside) in enumerate(dealt):
            found[inside] = fold
    return found


def rows_of_fold(labels, cells, problem_type, *, names, place, folds, fold, share, seed) -> dict[str, list[int]]:
    """
    The rows of one fold's splits.

    Args:
        labels: of all n rows, as the problem type says
        cells: their texts, or None where there are none to go by
        names: the labels' names, for messages
        place: what the rows are of, for messages
        folds, fold: how many, and which one, from 1 on
        share: of the rows that aren't in the fold, about how many are for validation: 0 to a half
        seed: of the dealing

    Returns:
        {"train": rows, "validation": rows, "test": rows} in order, without validation if `share` is 0

    Raises:
        ValueError: more folds than posts of a label, or than different posts; a share above a half.
    """
    groups = np.arange(len(labels)) if cells is None else same_text(cells)
    _check_enough(labels, groups, problem_type, names, place, folds)
    in_test = deal_folds(labels, groups, problem_type, folds, seed) == fold - 1
    rest = np.flatnonzero(~in_test)
    found = {"train": rest, "validation": [], "test": np.flatnonzero(in_test)}
    if share > 0.5:
        raise ValueError(f"--validation_split {share}: with --folds at most a half of the training posts, 0.5.")
    if share > 0:
        parts = min(round(1 / share), len(np.unique(groups[rest])))
        if parts < 2:
            raise ValueError(
                f"{place} has too few different texts to set some aside for validation: --validation_split 0."
            )
        aside = deal_folds([labels[row] for row in rest], groups[rest], problem_type, parts, seed) == 0
        found["train"], found["validation"] = rest[~aside], rest[aside]
    return {split: [*map(int, rows)] for split, rows in found.items() if split != "validation" or share > 0}


def _check_enough(labels, groups, problem_type, names, place, folds):
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
