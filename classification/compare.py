"""
Is one model better than another on the same posts?

    python -m hf_mamba.classification.compare outputs/seed0 outputs/seed1
    python -m hf_mamba.classification.compare a/predictions.csv b/predictions.jsonl --json comparison.json

Both files hold the same posts in the same order, as `predictions.write_predictions` writes them, with the truth; a
folder stands for the one predictions file in it. Differences are B minus A.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from .data.labels import MULTI, REGRESSION, SINGLE
from .evaluation.bootstrap import LEVEL, RESAMPLES, bootstrap_intervals
from .evaluation.metrics import DEFAULT_METRIC, metrics_for
from .evaluation.predictions import Predictions, read_predictions
from .support.command_line import run_command
from .support.markdown import markdown_table


# The metrics that are compared, the main one first
_COMPARED = {SINGLE: ("accuracy", "f1_macro"), MULTI: ("f1_micro", "f1_macro"), REGRESSION: ("rmse", "mae")}


def check_same_posts(a: Predictions, b: Predictions) -> None:
    """
    Raises:
        ValueError: the files are not of the same posts, labels and truth in the same order: says where they first
            differ, and both values.
    """
    if a.problem_type != b.problem_type or a.label_names != b.label_names:
        kinds = [f"{p.path} has {', '.join(p.label_names) or 'numbers'} ({p.problem_type})" for p in (a, b)]
        raise ValueError(f"The files are not of the same labels: {'; '.join(kinds)}. Compare models of one task.")
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


def _named(predictions, row):
    """The truth of a row as the file says it."""
    truth = predictions.truth[row]
    if predictions.problem_type == REGRESSION:
        return float(truth)
    names = predictions.label_names
    return names[truth] if predictions.problem_type == SINGLE else [n for n, there in zip(names, truth) if there]


def mcnemar(only_a: int, only_b: int) -> float:
    """
    The exact two-sided p of McNemar's test: were A and B equally good, each post that one alone has right would be
    either's by the toss of a coin. McNemar (1947), *Psychometrika* 12; in whole numbers, for any size.

    Args:
        only_a, only_b: posts that only A, only B has right
    """
    tosses, fewer = only_a + only_b, min(only_a, only_b)
    ways = term = 1
    for k in range(fewer):
        term = term * (tosses - k) // (k + 1)
        ways += term
    return min(1.0, 2 * ways / 2**tosses)


def compare(a: Predictions, b: Predictions, *, seed: int = 0, resamples: int = RESAMPLES) -> dict:
    """
    Both models' metrics, the differences B - A with paired bootstrap intervals (a resample draws posts, and both
    models are scored on the same ones), and for single labels McNemar's test.

    Raises:
        ValueError: as `check_same_posts`.
    """
    check_same_posts(a, b)
    metrics = metrics_for(a.problem_type, a.label_names)
    names = _COMPARED[a.problem_type]
    result = {"problem_type": a.problem_type, "num_posts": len(a.ids), "a": {"file": a.path}, "b": {"file": b.path}}
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


def _ends(interval):
    return dict(zip(("low", "high"), interval))


def _paired_intervals(metrics, a, b, seed, resamples):
    """Of every metric's difference: both models' statistics of a post are drawn together."""
    both = [metrics.statistics(one.predictions, one.truth) for one in (a, b)]
    kinds, counts = np.unique(np.concatenate(both, axis=1), axis=0, return_counts=True)

    def differences(sums, num_posts):
        of_a, of_b = (metrics.scores(half, num_posts) for half in np.split(sums, 2, axis=-1))
        return {name: of_b[name] - of_a[name] for name in of_a}

    return bootstrap_intervals(kinds, counts, differences, seed=seed, resamples=resamples)


def describe(result: dict) -> str:
    """The comparison as a table and what it means, for people."""
    rows = [["", "A", "B", "B - A"]]
    for name in _COMPARED[result["problem_type"]]:
        cells = [(result[key][name], sign) for key, sign in (("a", ""), ("b", ""), ("difference", "+"))]
        rows.append([name, *(f"{c['value']:{s}.4f} ({c['low']:{s}.4f} to {c['high']:{s}.4f})" for c, s in cells)])
    lines = [f"A: {result['a']['file']}", f"B: {result['b']['file']}", f"{result['num_posts']:,} posts", ""]
    lines += [markdown_table(rows), "", f"In brackets: 95 % intervals, {result['intervals']['method']}."]
    if "mcnemar" in result:
        counts = result["mcnemar"]
        p = f"{counts['p']:.4f}" if counts["p"] >= 0.0001 else f"{counts['p']:.2g}"
        lines += [
            f"Right: both {counts['both_right']:,}, only A {counts['only_a_right']:,}, only B "
            f"{counts['only_b_right']:,}, neither {counts['both_wrong']:,}. McNemar's exact test: p = {p}.",
        ]
    main = DEFAULT_METRIC[result["problem_type"]]
    low, high = (result["difference"][main][end] for end in ("low", "high"))
    verdict = "contains 0: these posts don't tell the two apart" if low <= 0 <= high else "does not contain 0"
    lines.append(
        f"The interval of the difference in {main} {verdict}. Other seeds of the same recipes may differ more."
    )
    return "\n".join(lines)


def main(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_mamba.classification.compare", description=__doc__.strip().split("\n")[0]
    )
    parser.add_argument("a", help="a predictions file, or an output folder that holds one")
    parser.add_argument("b", help="another one, of the same posts")
    parser.add_argument("--json", metavar="FILE", help="also write the comparison there, for programs")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    args = parser.parse_args(argv)
    a = read_predictions(args.a)
    result = compare(a, read_predictions(args.b, a.label_names), seed=args.seed)
    if args.json is not None:
        Path(args.json).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(describe(result))


if __name__ == "__main__":
    run_command(main)
