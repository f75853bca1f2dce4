"""The evaluation of a split: its metrics and, in its report, intervals, labels, groups and withheld modalities.

`<split>_report.json`, written by `write_report`, is a JSON object with

| key | value |
|---|---|
| `split`, `problem_type`, `num_posts` | what was evaluated |
| `posts` | split -> how many posts of it the run uses, {"train": 4000, ...}; streamed splits are absent |
| `metrics` | the flat metrics, as in all_results.json: {"accuracy": 0.9, "accuracy_low": ..., "accuracy_high": ...} |
| `intervals` | how `*_low` and `*_high` came about: `method`, `level`, `resamples`, `seed` |
| `baseline` | the prediction that looks at no post: a label, a list of labels, or a number; null if unknown |
| `per_label` | label -> `precision`, `recall`, `f1`, `support` (posts that have it), `predicted` (posts it is predicted for); with several labels per post also `accuracy` and `majority_accuracy`; absent for regression |
| `confusion_matrix` | for one label per post: `labels`, and `counts` with the truth as rows and predictions as columns |
| `per_group` | with --group_column_name: group -> its flat metrics |
| `calibration` | with --calibrate: how good the probabilities are before and after it, see calibration.py |
| `withheld` | with --report_withheld, of the posts that have both: `both`, `text` (withheld) and `images` -> flat metrics |
"""  # noqa: E501

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from transformers.utils import logging

from ..data.labels import MULTI, REGRESSION, SINGLE
from ..data.modalities import Withheld, rows_with_both
from ..data.posts import Posts
from ..support.files import write_text
from ..support.run_files import REPORT_FILES
from .bootstrap import LEVEL, RESAMPLES
from .calibration import flat_calibration_metrics
from .metrics import Baseline, PostMetrics, as_predictions, logits_of


if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.get_logger(__name__)

MAX_GROUPS = 500

# The name of the baseline among the training metrics.
BASELINE_KEYS = {SINGLE: "train_majority_label", MULTI: "train_majority_labels", REGRESSION: "train_mean"}


def evaluate_split(
    trainer: "Trainer", posts: Posts, split: str, metrics: PostMetrics, *, with_withheld: bool = False
) -> tuple[dict[str, Any] | None, np.ndarray]:
    """
    Predicts a split and, where its labels are known, scores it.

    Args:
        trainer: a Trainer with the model and PostCollator; all its processes call this
        posts: `Posts`
        split: validation or test
        metrics: of the problem type
        with_withheld: also predict the posts that have both modalities without the one and without the other

    Returns:
        the report (see above), None without labels, and the logits (n, num_labels)
    """
    rows = posts.splits[split]
    output = trainer.predict(rows, metric_key_prefix=split)
    logits = logits_of(output.predictions)
    if output.label_ids is None:
        return None, logits
    predictions, references = as_predictions(metrics, logits, output.label_ids)
    seed = trainer.args.seed
    of_trainer = {name.removeprefix(f"{split}_"): value for name, value in (output.metrics or {}).items()}
    report: dict[str, Any] = {
        "split": split,
        "problem_type": metrics.problem_type,
        "num_posts": len(references),
        "posts": {name: len(part) for name, part in posts.stored.items()},
        "metrics": of_trainer | scores_with_intervals(metrics, predictions, references, seed),
        "intervals": {
            "method": "percentile bootstrap over posts", "level": LEVEL, "resamples": RESAMPLES, "seed": seed
        },
        "baseline": name_baseline(metrics.baseline, metrics.problem_type, metrics.label_names),
    }  # fmt: skip
    if metrics.problem_type != REGRESSION:
        report["per_label"] = per_label(metrics, predictions, references)
    if metrics.problem_type == SINGLE:
        counts = confusion_matrix(predictions, references, len(metrics.label_names))
        report["confusion_matrix"] = {"labels": metrics.label_names, "counts": counts.tolist()}
    if metrics.calibration is not None:
        report["calibration"] = metrics.calibration.report(logits, references)
        before = metrics.compute(predictions=metrics.uncalibrated_predictions(logits), references=references)
        report["metrics"] |= flat_calibration_metrics(report["calibration"], before)
    if "group" in rows.column_names:
        report["per_group"] = per_group(metrics, predictions, references, posts.column(split, "group"), seed)
    if with_withheld and (both := rows_with_both(rows)):
        of_both = scores_with_intervals(metrics, predictions[both], references[both], seed)
        report["withheld"] = {"both": of_both, **_withheld(trainer, rows.select(both), references[both], metrics)}
    return report, logits


def _withheld(
    trainer: "Trainer", rows: Dataset, references: np.ndarray, metrics: PostMetrics
) -> dict[str, dict[str, float]]:
    """The flat metrics of posts that have both modalities, predicted without their text and without their images."""
    scores = {}
    for modality in ("text", "images"):
        output = trainer.predict(Withheld(rows, modality), metric_key_prefix="withheld")
        predictions, _ = as_predictions(metrics, output.predictions, output.label_ids)
        scores[modality] = scores_with_intervals(metrics, predictions, references, trainer.args.seed)
    return scores


def scores_with_intervals(
    metrics: PostMetrics, predictions: np.ndarray, references: np.ndarray, seed: int
) -> dict[str, float]:
    """The flat metrics, with `<name>_low` and `<name>_high` of those that have an interval."""
    scores = metrics.compute(predictions=predictions, references=references)
    for name, (low, high) in metrics.intervals(predictions, references, seed=seed).items():
        scores |= {f"{name}_low": low, f"{name}_high": high}
    return scores


def confusion_matrix(predictions: np.ndarray, references: np.ndarray, num_labels: int) -> np.ndarray:
    """Counts (num_labels, num_labels), the truth as rows."""
    cells = np.bincount(references * num_labels + predictions, minlength=num_labels**2)
    return cells.reshape(num_labels, num_labels)


def per_label(metrics: PostMetrics, predictions: np.ndarray, references: np.ndarray) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and numbers of posts of every label; 0 where there is nothing to divide by."""
    ids = list(range(len(metrics.label_names)))
    several = metrics.problem_type == MULTI
    positive = predictions == 1 if several else predictions[:, None] == ids  # (n, num_labels)
    true = references == 1 if several else references[:, None] == ids
    of_label: dict[str, dict[str, float]] = {}
    for index, name in enumerate(metrics.label_names):
        hits, support, predicted = ((part[:, index]).sum().item() for part in (positive & true, true, positive))
        of_label[name] = {
            "precision": hits / predicted if predicted else 0.0,
            "recall": hits / support if support else 0.0,
            "f1": 2 * hits / (support + predicted) if support + predicted else 0.0,
            "support": support,
            "predicted": predicted,
        }
        if several:
            of_label[name]["accuracy"] = float(np.mean(positive[:, index] == true[:, index]))
            if isinstance(metrics.baseline, list):
                of_label[name]["majority_accuracy"] = float(np.mean(true[:, index] == metrics.baseline[index]))
    return of_label


def per_group(
    metrics: PostMetrics, predictions: np.ndarray, references: np.ndarray, groups: list[str], seed: int
) -> dict[str, dict[str, float]]:
    """The flat metrics of each group's posts, the largest group first."""
    names, ids, counts = np.unique(np.array(groups, dtype=object), return_inverse=True, return_counts=True)
    largest = sorted(range(len(names)), key=lambda group: (-counts[group], group))[:MAX_GROUPS]
    if len(largest) < len(names):
        logger.warning(f"Of {len(names)} groups (--group_column_name) only the {MAX_GROUPS} largest are reported.")
    of_group = {}
    for group in largest:
        rows = np.flatnonzero(ids == group)
        of_group[str(names[group])] = scores_with_intervals(metrics, predictions[rows], references[rows], seed)
    return of_group


def name_baseline(
    baseline: Baseline | None, problem_type: str, label_names: list[str]
) -> str | list[str] | float | None:
    """A baseline with names in place of ids, as results hold it."""
    if isinstance(baseline, list):
        return [name for name, there in zip(label_names, baseline) if there]
    if problem_type == SINGLE and isinstance(baseline, int):
        return label_names[baseline]
    return baseline


def read_baseline(named: object, problem_type: str, label_names: list[str]) -> Baseline | None:
    """The reverse of `name_baseline`; None for what isn't a baseline of this problem type and these labels."""
    if problem_type == REGRESSION:
        return named if isinstance(named, float) else None
    if problem_type == SINGLE:
        return label_names.index(named) if isinstance(named, str) and named in label_names else None
    if not isinstance(named, list) or not set(named) <= set(label_names):
        return None
    return [int(name in named) for name in label_names]


def write_report(folder: str | Path, report: dict[str, Any]) -> None:
    """Writes `<split>_report.json`."""
    text = json.dumps(report, indent=2, ensure_ascii=False)
    # a row of the confusion matrix on one line; in strings JSON has no line breaks that this could meet
    text = re.sub(r"\[\n\s+\d+(,\n\s+\d+)*\n\s+\]", lambda row: re.sub(r"\n\s+", " ", row[0]), text)
    write_text(Path(folder) / REPORT_FILES[report["split"]], text + "\n")
