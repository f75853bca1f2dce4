"""What a run reports on the screen and in its model card: tables of metrics, what their columns mean, a summary."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.labels import MULTI, REGRESSION, SINGLE
from ..data.posts import Posts
from ..evaluation.bootstrap import LEVEL
from ..evaluation.metrics import DEFAULT_METRIC
from ..support.markdown import markdown_table
from ..support.messages import in_a_cell
from ..support.run_files import REPORT_FILES


Reports = Mapping[str, dict[str, Any]]  # split -> its report, see evaluation/split_report.py

# The metrics that a summary and a card show, in this order.
SHOWN = {
    "accuracy": "accuracy",
    "f1_macro": "macro F1",
    "f1_weighted": "weighted F1",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "majority_accuracy": "majority class",
}
SHOWN_OF = {
    SINGLE: SHOWN,
    MULTI: {
        "f1_micro": "micro F1",
        "f1_macro": "macro F1",
        "f1_samples": "F1 per post",
        "subset_accuracy": "all labels right",
        "label_accuracy": "a label right",
        "majority_f1_micro": "majority, micro F1",
        "majority_label_accuracy": "majority, a label right",
        "every_label_f1_micro": "every label, micro F1",
    },
    REGRESSION: {
        "rmse": "RMSE",
        "mae": "MAE",
        "r2": "R²",
        "pearson": "Pearson",
        "spearman": "Spearman",
        "mean_rmse": "mean, RMSE",
        "mean_mae": "mean, MAE",
    },
}
OF_BASELINE = ("majority_", "mean_", "every_label_")  # how the names of the baselines' metrics begin
MAX_LINES = 20  # labels or groups that are shown


def metrics_table(reports: Reports, problem_type: str) -> str:
    """
    A Markdown table of a run's metrics, a row for each split and, where measured, for a modality withheld.

    Args:
        reports: {"validation": report, ...}
        problem_type: decides the columns
    """
    of_row = {}
    for split, report in reports.items():
        of_row[split] = report["metrics"]
        withheld = report.get("withheld")
        if withheld and withheld["both"]["num_posts"] < report["num_posts"]:
            of_row[f"{split}, posts with both"] = withheld["both"]
        if withheld:
            of_row[f"{split}, text withheld"] = withheld["text"]
            of_row[f"{split}, images withheld"] = withheld["images"]
    return _table_of("split", of_row, SHOWN_OF[problem_type], problem_type)


def _table_of(title: str, of_row: Mapping[str, Mapping[str, Any]], names: Mapping[str, str], problem_type: str) -> str:
    """
    A Markdown table of metrics under readable names, the main one with its interval.

    Args:
        title: of the first column
        of_row: first cell -> metrics
        names: metric -> title of its column
        problem_type: decides which metric is the main one
    """
    shown = [key for key in names if any(key in metrics for metrics in of_row.values())]
    main = DEFAULT_METRIC[problem_type]
    digits = ".4g" if problem_type == REGRESSION else ".4f"  # errors have the targets' size, whatever that is
    rows = [[title, "posts", *(names[key] for key in shown)]]
    for name, metrics in of_row.items():
        cells = [f"{metrics[key]:{digits}}" if key in metrics else "" for key in shown]
        rows.append([in_a_cell(name, 40), f"{metrics['num_posts']:,}" if "num_posts" in metrics else "", *cells])
    if main in shown and any(f"{main}_low" in metrics for metrics in of_row.values()):
        column = shown.index(main) + 3
        rows[0].insert(column, f"{100 * LEVEL:g} % interval")
        for row, metrics in zip(rows[1:], of_row.values()):
            ends = [f"{metrics[f'{main}_{end}']:{digits}}" for end in ("low", "high") if f"{main}_{end}" in metrics]
            row.insert(column, " to ".join(ends))
    return markdown_table(rows)


def labels_table(report: Mapping[str, Any]) -> str:
    """A Markdown table of each label's precision, recall and F1, the most frequent first."""
    several = report["problem_type"] == MULTI
    rows = [["label", "posts", "predicted", "precision", "recall", "F1", *(["right", "majority"] if several else [])]]
    for name, metrics in sorted(report["per_label"].items(), key=lambda item: -item[1]["support"]):
        numbers = ["precision", "recall", "f1", *(["accuracy", "majority_accuracy"] if several else [])]
        cells = [f"{metrics[key]:.4f}" if key in metrics else "" for key in numbers]
        rows.append([in_a_cell(name, 40), f"{metrics['support']:,}", f"{metrics['predicted']:,}", *cells])
    return markdown_table(rows[: MAX_LINES + 1])


def groups_table(report: Mapping[str, Any]) -> str:
    """A Markdown table of each group's metrics, the largest first."""
    problem_type = report["problem_type"]
    columns = {
        SINGLE: ("accuracy", "f1_macro", "majority_accuracy"),
        MULTI: ("f1_micro", "majority_f1_micro"),
        REGRESSION: ("rmse", "r2", "mean_rmse"),
    }
    names = {key: SHOWN_OF[problem_type][key] for key in columns[problem_type]}
    return _table_of("group", dict(list(report["per_group"].items())[:MAX_LINES]), names, problem_type)


def results_note(reports: Reports, posts: Posts, positive_label: int | None = None) -> str:
    """What the columns of `metrics_table` mean."""
    shown = {key for report in reports.values() for key in report["metrics"]}
    notes = []
    if "majority_accuracy" in shown:
        notes.append("'majority class' is the accuracy of always predicting the label most common in training.")
    if "majority_f1_micro" in shown:
        notes.append("'majority' predicts of each label what is more common in training, 'every label' all of them.")
    if "mean_rmse" in shown:
        notes.append("'mean' always predicts the mean of the training posts.")
    if posts.problem_type == SINGLE and "f1" in shown:
        name = posts.label_names[1 if positive_label is None else positive_label]
        notes.append(f"Precision, recall and F1 are those of the label '{name}'.")
    if reports:
        notes.append("Intervals are bootstrapped over the posts: they say nothing about other seeds.")
    if any("calibration" in report for report in reports.values()):
        notes.append("Predictions are those of the calibrated model (temperature, thresholds).")
    if any("withheld" in report for report in reports.values()):
        notes.append("'withheld' rows are for the posts that have both modalities, without the one or the other.")
    return " ".join(notes)


def calibration_table(reports: Reports) -> str:
    """A Markdown table of how good each split's probabilities are, as computed and calibrated; empty if never were."""
    rows = [["probabilities", "ECE", "NLL", "Brier"]]
    for split, report in reports.items():
        for when in ("before", "after") if "calibration" in report else ():
            quality = report["calibration"]
            fitted = ", fitted on these" if when == "after" and split == quality["fitted_on"] else ""
            name = f"{split}, {'calibrated' if when == 'after' else 'as computed'}{fitted}"
            rows.append([name, *(f"{quality[when][key]:.4f}" for key in ("ece", "nll", "brier"))])
    return markdown_table(rows) if len(rows) > 1 else ""


def results_tables(reports: Reports, problem_type: str) -> str:
    """The tables of a card's results."""
    tables = [metrics_table(reports, problem_type), calibration_table(reports)] if reports else ["Not evaluated."]
    return "\n\n".join(filter(None, tables))


def training_time(train_metrics: Mapping[str, Any] | None) -> list[str]:
    """A sentence about how long training took; none if it isn't known."""
    if not train_metrics or "train_runtime" not in train_metrics:
        return []
    minutes, seconds = divmod(round(train_metrics["train_runtime"]), 60)
    rate = train_metrics["train_samples_per_second"]
    return [f"Training took {minutes}:{seconds:02d} minutes, {rate:,.0f} posts per second."]


def summarise_run(
    reports: Reports,
    *,
    num_parameters: int,
    posts: Posts,
    train_metrics: Mapping[str, Any],
    output_dir: str | Path,
    positive_label: int | None = None,
    name: str = "HF-Mamba",
) -> str:
    """
    The run in a few lines, for the end of the log.

    Args:
        reports: as in `metrics_table`
        num_parameters: of the model
        posts: the posts of the run
        train_metrics: Trainer's metrics of training; empty if nothing was trained
        output_dir: the folder of the run
        positive_label: the id of the label that precision, recall and F1 are about
        name: of the model
    """
    lines = ["", f"{name} with {num_parameters:,} parameters; posts: {posts.counts()}"]
    if posts.left_out():
        lines.append(f"Left out: {posts.left_out()}")
    lines += training_time(train_metrics)
    if reports:
        lines += ["", metrics_table(reports, posts.problem_type), ""]
        lines.append(textwrap.fill(results_note(reports, posts, positive_label), 100))
        if of_probabilities := calibration_table(reports):
            lines += ["", of_probabilities]
        split, report = list(reports.items())[-1]
        for key, table in (("per_label", labels_table), ("per_group", groups_table)):
            if key in report:
                more = len(report[key]) - MAX_LINES
                lines += ["", f"{split}:", table(report), *([f"and {more} more"] if more > 0 else [])]
        lines += ["", f"All of it, for programs, is in {', '.join(REPORT_FILES[split] for split in reports)}."]
    lines.append(f"Everything is in {output_dir}")
    return "\n".join(lines)
