"""
Is one model better than another on the same posts?

    python -m hf_mamba.classification.compare outputs/seed0 outputs/seed1
    python -m hf_mamba.classification.compare a/predictions.csv b/predictions.jsonl --json comparison.json

Both files hold the same posts in the same order, as `predictions.write_predictions` writes them, with the truth; a
folder stands for the one predictions file in it. Differences are B minus A.
"""

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .data.labels import MULTI, REGRESSION, SINGLE
from .evaluation.bootstrap import LEVEL, RESAMPLES, bootstrap_intervals
from .evaluation.metrics import DEFAULT_METRIC, PostMetrics, metrics_for
from .evaluation.predictions import Predictions, read_predictions
from .support.command_line import run_command
from .support.files import write_json
from .support.markdown import markdown_table


# The metrics that are compared, the main one first
_COMPARED = {SINGLE: ("accuracy", "f1_macro"), MULTI: ("f1_micro", "f1_macro"), REGRESSION: ("rmse", "mae")}


def check_same_posts(a: Predictions, b: Predictions) -> None:
    """
    Raises:
        ValueError: the files don't hold the same posts, labels and truth in the same order; says where they first
            differ, with both values.
    """
    if a.problem_type != b.problem_type or a.label_names != b.label_names:
        kinds = [f"{p.path} has {', '.join(p.label_names) or 'numbers'} ({p.problem_type})" for p in (a, b)]
        raise ValueError(f"The files don't have the same labels: {'; '.join(kinds)}. Compare models of one task.")
    length = min(len(a.ids), len(b.ids))
    different = [one != other for one, other in zip(a.ids, b.ids)]
    wrong_truth = (a.truth[:length] != b.truth[:length]).reshape(length, -1).any(axis=1)
    for row in range(length):
        if different[row] or wrong_truth[row]:
            what = "id" if different[row] else "truth"
            one, other = (p.ids[row] if different[row] else _named(p, row) for p in (a, b))
            raise ValueError(
                f"Row {row + 1} is not the same post: {what} {one!r} in {a.path}, {other!r} in {b.path}. Compare "
                "predictions of the same test posts in the same order."
            )
    if len(a.ids) != len(b.ids):
        raise ValueError(
            f"Row {length + 1} is only in one file: {a.path} has {len(a.ids):,} rows, {b.path} {len(b.ids):,}. "
            "Compare predictions of the same test posts."
        )


def _named(predictions: Predictions, row: int) -> object:
    """The truth of a row as it stands in the file."""
    truth = predictions.truth[row]
    if predictions.problem_type == REGRESSION:
        return float(truth)
    names = predictions.label_names
    return names[truth] if predictions.problem_type == SINGLE else [n for n, there in zip(names, truth) if there]


def mcnemar(only_a: int, only_b: int) -> float:
    """
    The exact two-sided p of McNemar's test: if A and B were equally good, each post that only one of them predicts
    right would be A's or B's by the toss of a coin. McNemar (1947), *Psychometrika* 12. In whole numbers, for any
    size.

    Args:
        only_a, only_b: how many posts only A, only B predicts right
    """
    tosses, fewer = only_a + only_b, min(only_a, only_b)
    ways = term = 1
    for k in range(fewer):
        term = term * (tosses - k) // (k + 1)
        ways += term
    return min(1.0, 2 * ways / 2**tosses)


def compare(a: Predictions, b: Predictions, *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """
    Both models' metrics, the differences B - A with paired bootstrap intervals (both models are scored on the same
    resampled posts), and for single labels McNemar's test.

    Raises:
        ValueError: as `check_same_posts`.
    """
    check_same_posts(a, b)
    metrics = metrics_for(a.problem_type, a.label_names)
    names = _COMPARED[a.problem_type]
    result: dict[str, Any] = {
        "problem_type": a.problem_type,
        "num_posts": len(a.ids),
        "a": {"file": a.path},
        "b": {"file": b.path},
    }
    for key, one in (("a", a), ("b", b)):
        scores = metrics.compute(predictions=one.predictions, references=one.truth)
        intervals = metrics.intervals(one.predictions, one.truth, seed=seed, resamples=resamples)
        result[key] |= {name: {"value": scores[name], **_ends(intervals[name])} for name in names}
    intervals = _paired_intervals(metrics, a, b, seed, resamples)
    result["difference"] = {
        name: {"value": result["b"][name]["value"] - result["a"][name]["value"], **_ends(intervals[name])}
        for name in names
    }
    if a.problem_type == SINGLE:
        right_a, right_b = a.predictions == a.truth, b.predictions == b.truth
        only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
        result["mcnemar"] = {
            "both_right": int((right_a & right_b).sum()),
            "only_a_right": only_a,
            "only_b_right": only_b,
            "both_wrong": int((~right_a & ~right_b).sum()),
            "p": mcnemar(only_a, only_b),
        }
    method = "percentile bootstrap over posts, paired for differences"
    result["intervals"] = {"method": method, "level": LEVEL, "resamples": resamples, "seed": seed}
    return result


def _ends(interval: Iterable[float]) -> dict[str, float]:
    return dict(zip(("low", "high"), interval))


def _paired_intervals(
    metrics: PostMetrics, a: Predictions, b: Predictions, seed: int, resamples: int
) -> dict[str, tuple[float, float]]:
    """The interval of every metric's difference: both models' statistics of a post are resampled together."""
    both = [metrics.statistics(one.predictions, one.truth) for one in (a, b)]
    kinds, counts = np.unique(np.concatenate(both, axis=1), axis=0, return_counts=True)

    def differences(sums: np.ndarray, num_posts: int) -> dict[str, np.ndarray]:
        of_a, of_b = (metrics.scores(half, num_posts) for half in np.split(sums, 2, axis=-1))
        return {name: of_b[name] - of_a[name] for name in of_a}

    return bootstrap_intervals(kinds, counts, differences, seed=seed, resamples=resamples)


def describe_comparison(result: dict[str, Any]) -> str:
    """The comparison for people: a table, and what it means."""
    rows = [["", "A", "B", "B - A"]]
    for name in _COMPARED[result["problem_type"]]:
        cells = [(result[key][name], sign) for key, sign in (("a", ""), ("b", ""), ("difference", "+"))]
        rows.append([name, *(f"{c['value']:{s}.4f} ({c['low']:{s}.4f} to {c['high']:{s}.4f})" for c, s in cells)])
    lines = [f"A: {result['a']['file']}", f"B: {result['b']['file']}", f"{result['num_posts']:,} posts", ""]
    lines += [markdown_table(rows), "", _about_intervals(result["intervals"])]
    if "mcnemar" in result:
        counts = result["mcnemar"]
        p = f"{counts['p']:.4f}" if counts["p"] >= 0.0001 else f"{counts['p']:.2g}"
        lines += [
            f"Right: both {counts['both_right']:,}, only A {counts['only_a_right']:,}, only B "
            f"{counts['only_b_right']:,}, neither {counts['both_wrong']:,}. McNemar's exact test: p = {p}.",
        ]
    main = DEFAULT_METRIC[result["problem_type"]]
    low, high = (result["difference"][main][end] for end in ("low", "high"))
    verdict = (
        "contains 0: these posts don't show a difference between the two" if low <= 0 <= high else "does not contain 0"
    )
    lines.append(
        f"The interval of the difference in {main} {verdict}. Other seeds of the same recipes may differ by more."
    )
    return "\n".join(lines)


def _about_intervals(intervals: dict[str, Any]) -> str:
    return f"In brackets: {100 * intervals['level']:g} % intervals, {intervals['method']}."


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_mamba.classification.compare", description=(__doc__ or "").strip().split("\n")[0]
    )
    parser.add_argument("a", help="a predictions file, or an output folder that holds one")
    parser.add_argument("b", help="another one, of the same posts")
    parser.add_argument("--json", metavar="FILE", help="also write the comparison there, for programs")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    args = parser.parse_args(argv)
    a = read_predictions(args.a)
    result = compare(a, read_predictions(args.b, a.label_names), seed=args.seed)
    if args.json is not None:
        write_json(args.json, result)
    print(describe_comparison(result))


if __name__ == "__main__":
    run_command(main)
