"""Percentile bootstrap intervals of metrics that depend on sums over posts; numpy, seeded, no loop over resamples."""

from collections.abc import Callable

import numpy as np


LEVEL, RESAMPLES = 0.95, 1000  # of every interval that a run reports
_CELLS_AT_ONCE = 4_000_000  # of 8 bytes


def bootstrap_intervals(
    kinds: np.ndarray,
    counts: np.ndarray,
    scores: Callable[[np.ndarray, int], dict[str, np.ndarray]],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> dict[str, tuple[float, float]]:
    """
    The interval in which a metric lies when the posts are resampled with replacement.

    To draw n of n posts is to draw how often each occurs: a multinomial. The same holds for how often each kind of
    post occurs, so that with few classes a million posts cost no more than a hundred. Efron & Tibshirani, *An
    Introduction to the Bootstrap* (1993), chapter 13.

    Args:
        kinds: the statistics of a post that the metrics sum up, for each kind of post, shape (k, q)
        counts: how many posts are of each kind, shape (k,); n in all
        scores: function of the sums, shape (r, q), and n to the metrics, shape (r,) each
        seed: of the resamples
        resamples: r in all
        level: share of the resamples inside the interval

    Returns:
        metric -> (low, high); resamples in which a metric is undefined (nan) are left out
    """
    num_posts, kinds = int(counts.sum()), kinds.astype(np.float64)  # of integers, numpy's product is slow
    generator = np.random.default_rng(seed)
    resampled = []
    step = max(1, _CELLS_AT_ONCE // len(kinds))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        weights = generator.multinomial(num_posts, counts / num_posts, size=size)  # (r, k)
        resampled.append(scores(weights.astype(np.float64) @ kinds, num_posts))
    tail = (1 - level) / 2
    intervals = {}
    for name in resampled[0]:
        values = np.concatenate([np.atleast_1d(part[name]) for part in resampled])
        if not np.isnan(values).all():
            low, high = np.nanquantile(values, (tail, 1 - tail))
            intervals[name] = (float(low), float(high))
    return intervals
