"""
Could these published scores come from one confusion matrix?

    python -m hf_mamba.classification.possible_scores --positives 959 --negatives 1450 --precision .9210 \\
        --recall .8816 --accuracy .9191

For a test set of known size, the true positives tp and false positives fp are whole numbers, so that rounded scores
leave few of them possible, or none. Arithmetic is in whole numbers throughout; nothing depends on floating point.
"""

import argparse
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from .support.command_line import run_command


ROUNDINGS = ("half up", "half even", "truncation")
METRICS = ("accuracy", "precision", "recall", "f1")
MAX_LINES = 20  # confusion matrices that the screen shows

Score = str | float | Decimal | Fraction  # from 0 to 1

CAVEAT = (
    "This is about one run on one test set, with precision, recall and F1 of the positive label. A mean over several "
    "runs, or over labels, need not be possible."
)


def possible_matrices(
    positives: int,
    negatives: int,
    *,
    accuracy: Score | None = None,
    precision: Score | None = None,
    recall: Score | None = None,
    f1: Score | None = None,
    decimals: int = 4,
) -> dict[str, list[tuple[int, int]]]:
    """
    Every (tp, fp) whose rounded scores are the given ones, for each way of rounding.

    Args:
        positives, negatives: posts of the test set with and without the positive label
        accuracy, precision, recall, f1: published scores from 0 to 1, best as text (".9210"); None if not published.
            A score with nothing to divide by is 0, as in scikit-learn
        decimals: digits the scores are published with

    Returns:
        {"half up": [(tp, fp), ...], "half even": [...], "truncation": [...]}; all empty if the scores are not possible

    Raises:
        ValueError: counts below 0, no posts, no score, or a score that isn't one of so many decimals.
    """
    given = dict(zip(METRICS, (accuracy, precision, recall, f1)))
    published = _published(positives, negatives, given, decimals)
    of_recall = {name: value for name, value in published.items() if name == "recall"}
    others = {name: value for name, value in published.items() if name != "recall"}
    sizes = (positives, negatives)
    possible = {}
    for rounding in ROUNDINGS:
        tps = [tp for tp in range(positives + 1) if _fits(tp, 0, *sizes, of_recall, decimals, rounding)]
        candidates = ((tp, fp) for tp in tps for fp in _false_positives(tp, *sizes, others, decimals))
        possible[rounding] = [pair for pair in candidates if _fits(*pair, *sizes, others, decimals, rounding)]
    return possible


def explain_impossible(
    positives: int,
    negatives: int,
    *,
    accuracy: Score | None = None,
    precision: Score | None = None,
    recall: Score | None = None,
    f1: Score | None = None,
    decimals: int = 4,
) -> list[str]:
    """Why scores are not possible, a sentence for each reason; arguments as of `possible_matrices`."""
    given = {name: value for name, value in zip(METRICS, (accuracy, precision, recall, f1)) if value is not None}
    shown = {name: f"{Decimal(str(value)):.{decimals}f}" for name, value in given.items()}
    lines = []
    for name, value in given.items():
        alone: dict[str, Any] = {name: value}
        if len(given) > 1 and not any(possible_matrices(positives, negatives, **alone, decimals=decimals).values()):
            lines.append(f"{name} {shown[name]} is by itself that of no confusion matrix")
            if name == "recall":
                nearest = int(Fraction(str(value)) * positives)
                sides = [tp for tp in (nearest, nearest + 1) if tp <= positives]
                around = " and ".join(f"tp = {tp} gives {tp / positives:.6f}" for tp in sides)
                lines[-1] += f": of {positives:,} positives, {around}"
    if precision is not None and recall is not None and Fraction(str(precision)) > 0:
        implied = _implied(positives, negatives, Fraction(str(precision)), Fraction(str(recall)), decimals)
        for name, (low, middle, high) in implied.items():
            if name in given:
                lines.append(
                    f"precision {shown['precision']} and recall {shown['recall']} imply {name} {middle:.{decimals}f} "
                    f"({low:.6f} to {high:.6f} as far as rounding or truncation goes), published is {shown[name]}"
                )
    return lines or ["each score is possible by itself, but no confusion matrix gives all of them"]


def _implied(
    positives: int, negatives: int, precision: Fraction, recall: Fraction, decimals: int
) -> dict[str, tuple[float, float, float]]:
    """Accuracy and F1 as (low, middle, high), ends from precision and recall off by one last digit."""

    def scores(p: Fraction, r: Fraction) -> dict[str, float]:
        p, r = max(p, Fraction(1, 10**9)), min(max(r, Fraction(0)), Fraction(1))
        tp = r * positives
        fp = tp / min(p, Fraction(1)) - tp
        f1 = 2 * p * r / (p + r)
        return {"accuracy": float((tp + negatives - fp) / (positives + negatives)), "f1": float(f1)}

    half, unit = Fraction(1, 2 * 10**decimals), Fraction(1, 10**decimals)
    ends = [scores(precision + p, recall + r) for p in (-half, unit) for r in (-half, unit)]
    middle = scores(precision, recall)
    return {name: (min(e[name] for e in ends), middle[name], max(e[name] for e in ends)) for name in middle}


def _published(positives: int, negatives: int, given: Mapping[str, Score | None], decimals: int) -> dict[str, int]:
    """The given scores as whole numbers of the last digit."""
    if positives < 0 or negatives < 0 or positives + negatives == 0:
        raise ValueError(f"positives {positives}, negatives {negatives}: give counts of 0 or more, not both 0.")
    if decimals < 1:
        raise ValueError(f"decimals {decimals}: give 1 or more.")
    published = {}
    for name, value in given.items():
        if value is None:
            continue
        try:
            scaled = Decimal(str(value)).scaleb(decimals)
        except InvalidOperation:
            raise ValueError(f"{name} {value!r} isn't a number: give a score such as .9191.") from None
        if not scaled.is_finite() or not 0 <= scaled <= 10**decimals:
            raise ValueError(f"{name} {value} must be from 0 to 1: divide percent by 100.")
        if scaled != int(scaled):
            raise ValueError(f"{name} {value} has more than {decimals} decimals: give decimals as many as published.")
        published[name] = int(scaled)
    if not published:
        raise ValueError(f"Nothing to check: give at least one of {', '.join(METRICS)}.")
    return published


def _ratios(tp: int, fp: int, positives: int, negatives: int) -> dict[str, tuple[int, int]]:
    """Every score as (above, below)."""
    return {
        "accuracy": (tp + negatives - fp, positives + negatives),
        "precision": (tp, tp + fp),
        "recall": (tp, positives),
        "f1": (2 * tp, tp + fp + positives),
    }


def _fits(
    tp: int, fp: int, positives: int, negatives: int, published: Mapping[str, int], decimals: int, rounding: str
) -> bool:
    ratios = _ratios(tp, fp, positives, negatives)
    return all(_rounded(*ratios[name], decimals, rounding) == value for name, value in published.items())


def _rounded(above: int, below: int, decimals: int, rounding: str) -> int:
    """above / below (0 if there is nothing to divide by) as a whole number of the last digit."""
    if below == 0:
        return 0
    whole, rest = divmod(above * 10**decimals, below)
    if rounding == "truncation" or 2 * rest < below:
        return whole
    if 2 * rest == below and rounding == "half even":
        return whole + whole % 2
    return whole + 1


def _false_positives(tp: int, positives: int, negatives: int, published: Mapping[str, int], decimals: int) -> range:
    """A range that holds every fp that fits, and a few more: all three scores fall as fp grows."""
    low, high = 0, negatives
    for name in ("accuracy", "precision", "f1"):
        if name not in published or (tp == 0 and name != "accuracy"):  # those are 0 whatever fp is
            continue
        for shift, lower in ((1, True), (-1, False)):
            score = Fraction(published[name] + shift, 10**decimals)
            if score <= 0:
                continue
            if name == "accuracy":
                bound = tp + negatives - score * (positives + negatives)
            else:
                bound = tp / score - tp if name == "precision" else 2 * tp / score - tp - positives
            if lower:
                low = max(low, int(bound))
            else:
                high = min(high, int(bound) + 1)
    return range(max(low, 0), high + 1)


def report_scores(positives: int, negatives: int, *, decimals: int = 4, **scores: Any) -> str:
    """What the command line prints."""
    possible = possible_matrices(positives, negatives, decimals=decimals, **scores)
    given = {name: value for name, value in scores.items() if value is not None}
    shown = ", ".join(f"{name} {Decimal(str(value)):.{decimals}f}" for name, value in given.items())
    lines = [f"{shown} with {positives:,} positives and {negatives:,} negatives:"]
    pairs: dict[tuple[int, int], list[str]] = {}
    for rounding, of_rounding in possible.items():
        for pair in of_rounding:
            pairs.setdefault(pair, []).append(rounding)
    if not pairs:
        lines.append(f"not possible: no confusion matrix gives these scores ({', '.join(ROUNDINGS)} tried).")
        lines += [f"- {line}" for line in explain_impossible(positives, negatives, decimals=decimals, **scores)]
    else:
        lines.append(f"possible: {len(pairs):,} confusion matri{'x' if len(pairs) == 1 else 'ces'}.")
        for (tp, fp), roundings in list(pairs.items())[:MAX_LINES]:
            counts = f"tp {tp:,}, fn {positives - tp:,}, fp {fp:,}, tn {negatives - fp:,}"
            values = ", ".join(
                f"{name} {above / below if below else 0:.{decimals + 2}f}"
                for name, (above, below) in _ratios(tp, fp, positives, negatives).items()
            )
            lines.append(f"- {counts}: {values} ({', '.join(roundings)})")
        if len(pairs) > MAX_LINES:
            lines.append(f"and {len(pairs) - MAX_LINES:,} more")
    return "\n".join([*lines, CAVEAT])


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_mamba.classification.possible_scores", description=(__doc__ or "").strip().split("\n")[0]
    )
    parser.add_argument("--positives", type=int, required=True, help="test posts that have the positive label")
    parser.add_argument("--negatives", type=int, required=True, help="test posts that don't")
    for name in METRICS:
        parser.add_argument(f"--{name}", help="as published, from 0 to 1")
    parser.add_argument("--decimals", type=int, default=4, help="digits they are published with (default: 4)")
    print(report_scores(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    run_command(main)
