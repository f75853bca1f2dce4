"""What a run leaves for people: results, a summary on the screen, and the checkpoint's model card."""

import json
import platform
import textwrap
from pathlib import Path

import torch
import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.trainer_callback import ProgressCallback

from ..audit.report import audit_for_card
from ..data.labels import MULTI, REGRESSION, SINGLE
from ..evaluation.calibration import calibration_table, card_text
from ..evaluation.metrics import DEFAULT_METRIC
from ..support.files import PACKAGE_FOLDER
from ..support.run_files import REPORT_FILES, RESULTS_FILE


CARD_TEMPLATE = PACKAGE_FOLDER / "model_card.md"

# What a summary and a card show of the metrics, in this order.
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
_OF_BASELINE = ("majority_", "mean_", "every_label_")  # how the names of the baselines' metrics start
MAX_LINES = 20  # of the labels or groups that the screen shows


class ReadableProgress(ProgressCallback):
    """Trainer's progress bars, with a line a pass for people in place of the logged dicts."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None:
            return
        names = {
            "loss": "training loss",
            "eval_loss": "validation loss",
            "eval_accuracy": "validation accuracy",
            "eval_f1_micro": "validation micro F1",
            "eval_rmse": "validation RMSE",
        }
        parts = [f"{name} {logs[key]:.4f}" for key, name in names.items() if key in logs]
        if parts:
            total = f"{state.num_train_epochs:g}" if state.num_train_epochs else "?"
            self.training_bar.write(f"pass {logs['epoch']:.4g} of {total}: {', '.join(parts)}")


def write_results(folder, metrics_of_split):
    """
    Writes all_results.json, which marks a run as finished: {"test_accuracy": 0.9, ...}. What an earlier command found
    out about other splits stays.
    """
    path = Path(folder) / RESULTS_FILE
    results = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    for split, metrics in metrics_of_split.items():
        for name, value in metrics.items():
            results[name if name.startswith(f"{split}_") else f"{split}_{name}"] = value
    path.write_text(json.dumps(results, indent=4, sort_keys=True) + "\n", "utf-8")


def metrics_table(reports, problem_type):
    """
    A Markdown table of a run's metrics, a row for each split and, where measured, for a modality withheld.

    Args:
        reports: {"validation": report, ...}, see `evaluation`
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
    return _table("split", of_row, SHOWN_OF[problem_type], problem_type)


def _table(title, of_row, names, problem_type):
    """Rows of metrics under readable names; the main metric with its interval, every one of its baseline beside it."""
    shown = [key for key in names if any(key in metrics for metrics in of_row.values())]
    main = DEFAULT_METRIC[problem_type]
    digits = ".4g" if problem_type == REGRESSION else ".4f"  # errors have the targets' size, whatever that is
    rows = [[title, "posts", *(names[key] for key in shown)]]
    for name, metrics in of_row.items():
        cells = [f"{metrics[key]:{digits}}" if key in metrics else "" for key in shown]
        rows.append([_in_a_cell(name), f"{metrics['num_posts']:,}" if "num_posts" in metrics else "", *cells])
    if main in shown and any(f"{main}_low" in metrics for metrics in of_row.values()):
        column = shown.index(main) + 3
        rows[0].insert(column, "95 % interval")
        for row, metrics in zip(rows[1:], of_row.values()):
            ends = [f"{metrics[f'{main}_{end}']:{digits}}" for end in ("low", "high") if f"{main}_{end}" in metrics]
            row.insert(column, " to ".join(ends))
    return _markdown(rows)


def _in_a_cell(name):
    """A name of the user's as one cell of a Markdown table."""
    name = " ".join(str(name).replace("|", "\\|").split())
    return name if len(name) <= 40 else f"{name[:39]}…"


def _markdown(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def labels_table(report):
    """A Markdown table of each label's precision, recall and F1, the most frequent first."""
    several = report["problem_type"] == MULTI
    rows = [["label", "posts", "predicted", "precision", "recall", "F1", *(["right", "majority"] if several else [])]]
    for name, metrics in sorted(report["per_label"].items(), key=lambda item: -item[1]["support"]):
        numbers = ["precision", "recall", "f1", *(["accuracy", "majority_accuracy"] if several else [])]
        cells = [f"{metrics[key]:.4f}" if key in metrics else "" for key in numbers]
        rows.append([_in_a_cell(name), f"{metrics['support']:,}", f"{metrics['predicted']:,}", *cells])
    return _markdown(rows[: MAX_LINES + 1])


def groups_table(report):
    """A Markdown table of each group's metrics, the largest first."""
    names = {SINGLE: ("accuracy", "f1_macro", "majority_accuracy"), MULTI: ("f1_micro", "majority_f1_micro")}
    shown = SHOWN_OF[report["problem_type"]]
    names = {key: shown[key] for key in names.get(report["problem_type"], ("rmse", "r2", "mean_rmse"))}
    groups = dict(list(report["per_group"].items())[:MAX_LINES])
    return _table("group", groups, names, report["problem_type"])


def results_note(reports, posts, positive_label=None):
    """What the columns of `metrics_table` mean."""
    shown = {key for report in reports.values() for key in report["metrics"]}
    notes = []
    if "majority_accuracy" in shown:
        notes.append("'majority class' is the accuracy of always answering the label most common in training.")
    if "majority_f1_micro" in shown:
        notes.append("'majority' answers of each label what is more common in training, 'every label' all of them.")
    if "mean_rmse" in shown:
        notes.append("'mean' always answers the mean of the training posts.")
    if posts.problem_type == SINGLE and "f1" in shown:
        name = posts.label_names[1 if positive_label is None else positive_label]
        notes.append(f"Precision, recall and F1 are those of the label '{name}'.")
    if reports:
        notes.append("Intervals are bootstrapped over the posts: they say nothing of other seeds.")
    if any("calibration" in report for report in reports.values()):
        notes.append("Answers are those of the calibrated model (temperature, thresholds).")
    if any("withheld" in report for report in reports.values()):
        notes.append("'withheld' rows are of the posts that have both, without the one or the other.")
    return " ".join(notes)


def summary(reports, *, num_parameters, posts, train_metrics, output_dir, positive_label=None, name="HF-Mamba"):
    """The run in a few lines, for the end of the log; `name` is that of the model."""
    lines = ["", f"{name} with {num_parameters:,} parameters; posts: {posts.counts()}"]
    if posts.left_out():
        lines.append(f"Left out: {posts.left_out()}")
    if train_metrics:
        minutes, seconds = divmod(round(train_metrics["train_runtime"]), 60)
        rate = train_metrics["train_samples_per_second"]
        lines.append(f"Training took {minutes}:{seconds:02d} minutes, {rate:,.0f} posts per second.")
    if reports:
        lines += ["", metrics_table(reports, posts.problem_type), ""]
        lines.append(textwrap.fill(results_note(reports, posts, positive_label), 100))
        if table := calibration_table(reports):
            lines += ["", table]
        split, report = list(reports.items())[-1]
        for key, table in (("per_label", labels_table), ("per_group", groups_table)):
            if key in report:
                more = len(report[key]) - MAX_LINES
                lines += ["", f"{split}:", table(report), *([f"and {more} more"] if more > 0 else [])]
        lines += ["", f"More of it, for programs, is in {', '.join(REPORT_FILES[split] for split in reports)}."]
    lines.append(f"Everything is in {output_dir}")
    return "\n".join(lines)


def write_model_card(folder, *, model, processor, posts, reports, recipe, seed, positive_label=None, calibration=None):
    """
    Fills model_card.md and writes it as the checkpoint's README.md.

    Args:
        folder: the checkpoint folder
        model, processor: what was trained and what prepares its input
        posts: the data it was trained on
        reports: as in `metrics_table`
        recipe: the effective recipe
        seed: of this run
        positive_label: the id of the label that precision, recall and F1 are about
        calibration: the model's Calibration, if it has one
    """
    name = Path(folder).resolve().name
    start = recipe.get("model_name_or_path")
    card = ModelCard.from_template(
        _card_data(name, posts, reports, base_model=None if start and Path(start).exists() else start),
        template_path=str(CARD_TEMPLATE),
        name=name,
        repo_id=recipe.get("hub_model_id") or name,
        source=posts.source[0].upper() + posts.source[1:],
        modalities=recipe.get("modalities", "text,image").replace(",", " and "),
        counts=posts.counts(),
        left_out=f" Left out: {posts.left_out()}." if posts.left_out() else "",
        audit=audit_for_card(folder, posts),
        **_task(posts),
        num_parameters=f"{model.num_parameters():,}",
        start=f"trained further from `{_without_folders(start)}`" if start else "trained from scratch",
        scratch="" if start else ": nothing was pretrained",
        **_architecture(model.config),
        max_length=processor.tokenizer.model_max_length,
        results_table=_results_tables(reports, posts.problem_type),
        calibration=card_text(calibration),
        results_note=results_note(reports, posts, positive_label),
        recipe=yaml.safe_dump(shareable_recipe(recipe), sort_keys=False, allow_unicode=True).strip(),
        seed=seed,
        environment=environment(),
    )
    (Path(folder) / "README.md").write_text(f"{str(card).strip()}\n", "utf-8")


def _results_tables(reports, problem_type):
    """The tables of a card's results."""
    tables = [metrics_table(reports, problem_type), calibration_table(reports)] if reports else ["Not evaluated."]
    return "\n\n".join(filter(None, tables))


def shareable_recipe(recipe):
    """
    The recipe without its output folder and without the folders above what it names: these may tell who ran it, and
    exist on no other machine.
    """
    shared = {flag: value for flag, value in recipe.items() if flag != "output_dir"}
    return {flag: _without_folders(value) if isinstance(value, str) else value for flag, value in shared.items()}


def _without_folders(value):
    """An absolute path as its last part, anything else as it is."""
    return Path(value).name if Path(value).is_absolute() else value


def _task(posts):
    """What the card says of what goes in and comes out."""
    labels = ", ".join(f"`{label}`" for label in posts.label_names)
    order = "in the order of\n`model.config.id2label`"
    return {
        SINGLE: {
            "task": f"Classifies posts made of text, images or both as one of: {labels}.",
            "meaning": f"`logits.softmax(-1)` are probabilities, {order}.",
        },
        MULTI: {
            "task": f"Says which of these labels a post made of text, images or both has, none to all: {labels}.",
            "meaning": f"`logits.sigmoid()` are the probabilities of each label by itself, {order}. A label is\n"
            "taken to hold above a half.",
        },
        REGRESSION: {
            "task": f"Predicts a number, {labels}, for posts made of text, images or both.",
            "meaning": "`logits[:, 0]` is the number, in the units of\nthe training data.",
        },
    }[posts.problem_type]


def _architecture(config):
    """What the card says of the network."""
    kind = {"mamba": "Mamba", "self_attention": "self-attention", "transformer": "Transformer"}[config.backbone]
    text = f"An HF-Mamba network: text tokens and image patches pass through one stack of {kind} blocks."
    blocks = [f"{config.num_fusion_layers} for both together"]
    if config.fusion == "hierarchical":
        text = (
            f"An HF-Mamba network: text tokens and image patches pass through a stack of {kind} blocks each, then "
            "through one stack over both."
        )
        blocks = [f"{config.num_text_layers} for text", f"{config.num_image_layers} for images", *blocks]
    return {
        "config": config,
        "architecture": text,
        "blocks": ", ".join(blocks),
        "vocab_size": f"{config.vocab_size:,}",
    }


def _card_data(name, posts, reports, base_model=None):
    """The card's metadata; no licence, which is for whoever trained the weights to choose."""
    shown = SHOWN_OF[posts.problem_type]
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type="custom",
            dataset_name=posts.source,
            dataset_split=split,
            metric_type=key,
            metric_name=shown[key],
            metric_value=round(float(value), 4),
        )
        for split, report in reports.items()
        for key, value in report["metrics"].items()
        if key in shown and not key.startswith(_OF_BASELINE)
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["hf_mamba", "mamba", "multimodal", "image-text-classification"],
        model_name=name,
        base_model=base_model,
        eval_results=results or None,
    )


def _cpu():
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def environment():
    """Versions and the kind of machine, in a line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu()
    versions = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return ", ".join([*(f"{name} {version}" for name, version in versions.items()), device])
