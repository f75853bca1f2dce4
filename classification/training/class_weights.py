"""What --class_weights asks for, as a number for each label."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..data.labels import REGRESSION, label_id
from ..data.posts import Posts


def resolve_class_weights(
    asked: str | Mapping[str, float] | Sequence[float] | None, posts: Posts
) -> list[float] | None:
    """
    What --class_weights asks for as a weight for each label, in their order; None for none.

    "auto" gives each label the inverse of its frequency in training, scaled to a mean of 1 over the labels that occur
    there (a label that doesn't gets 1: it has no loss). With several labels per post the weight multiplies a label's
    whole loss, of posts that have it and that don't: it balances labels among each other, not yes against no.

    Args:
        asked: "none", "auto", {label: weight} with 1 for labels not named, or a list of numbers
        posts: "auto" counts their training split

    Raises:
        ValueError: regression, "auto" without training posts, an unknown label, a wrong number of weights, or a weight
            that is negative.
    """
    names = posts.label_names
    if asked in (None, "none"):
        return None
    if posts.problem_type == REGRESSION:
        raise ValueError(
            "--class_weights is for classes and labels, but the problem type is regression: leave it out."
        )
    if asked == "auto":
        if "train" not in posts.splits:
            raise ValueError("--class_weights auto counts the training posts, and there are none: leave it out.")
        values = np.asarray(posts.column("train", "label"))
        counts = values.sum(0) if values.ndim == 2 else np.bincount(values, minlength=len(names))
        inverse = 1 / np.maximum(counts, 1)
        balanced = np.where(counts > 0, inverse / inverse[counts > 0].mean(), 1.0)
        return [round(float(weight), 6) for weight in balanced]
    if isinstance(asked, Mapping):
        weights = [1.0] * len(names)
        for name, weight in asked.items():
            weights[label_id(name, names, "--class_weights")] = float(weight)
    else:
        weights = [float(weight) for weight in asked]
    if len(weights) != len(names):
        raise ValueError(
            f"--class_weights has {len(weights)} numbers for {len(names)} labels: give one for each, in the order "
            f'{", ".join(names[:20])}, or name them as {{"{names[0]}": 2.0}}.'
        )
    if any(not 0 <= weight < math.inf for weight in weights):
        raise ValueError(f"--class_weights {asked}: every weight must be 0 or more.")
    return weights
