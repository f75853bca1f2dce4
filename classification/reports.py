"""What a run leaves for people: predictions, a summary on the screen, and the checkpoint's model card."""

import csv
import json
import platform
from pathlib import Path

import numpy as np
import torch
import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.trainer_callback import ProgressCallback

from .output_dir import RESULTS_FILE


CARD_TEMPLATE = Path(__file__).parent.parent / "model_card.md"

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


class ReadableProgress(ProgressCallback):
    """Trainer's progress bars, with a line a pass for people in place of the logged dicts."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None:
            return
        names = {"loss": "training loss", "eval_loss": "validation loss", "eval_accuracy": "validation accuracy"}
        parts = [f"{name} {logs[key]:.4f}" for key, name in names.items() if key in logs]
        if parts:
            total = f"{state.num_train_epochs:g}" if state.num_train_epochs else "?"
            self.training_bar.write(f"pass {logs['epoch']:.4g} of {total}: {', '.join(parts)}")


def write_predictions(path, ids, logits, label_names, labels=None):
    """
    Writes one line per post, in input order: id, predicted label, the probability of each label, the truth if known.

    Args:
        path: the csv file to write
        ids: the posts' ids, length b
        logits: shape (b, num_labels)
        label_names: the labels' names, in the order of the logits
        labels: the true label ids, length b, or None
    """
    probabilities = torch.tensor(np.asarray(logits), dtype=torch.float64).softmax(dim=-1)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        truth = [] if labels is None else ["label"]
        writer.writerow(["id", "prediction", *(f"probability_{name}" for name in label_names), *truth])
        for row, (post_id, probability) in enumerate(zip(ids, probabilities.tolist())):
            truth = [] if labels is None else [label_names[labels[row]]]
            predicted = label_names[int(np.argmax(probability))]
            writer.writerow([post_id, predicted, *(f"{p:.6f}" for p in probability), *truth])


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


def metrics_table(metrics_of_split):
    """
    A Markdown table of a run's metrics.

    Args:
        metrics_of_split: {"validation": {"accuracy": 0.9, ...}, ...}, without Trainer's prefixes
    """
    shown = [key for key in SHOWN if any(key in metrics for metrics in metrics_of_split.values())]
    rows = [["split", "posts", *(SHOWN[key] for key in shown)]]
    for split, metrics in metrics_of_split.items():
        cells = [f"{metrics[key]:.4f}" if key in metrics else "" for key in shown]
        rows.append([split, f"{metrics['num_posts']:,}" if "num_posts" in metrics else "", *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def results_note(metrics_of_split, label_names):
    """What the columns of `metrics_table` mean."""
    shown = {key for metrics in metrics_of_split.values() for key in metrics}
    notes = []
    if "majority_accuracy" in shown:
        notes.append("'majority class' is the accuracy of always answering the label most common in training.")
    if "f1" in shown:
        notes.append(f"Precision, recall and F1 are those of the label '{label_names[1]}'.")
    return " ".join(notes)


def summary(metrics_of_split, *, num_parameters, posts, train_metrics, output_dir):
    """The run in a few lines, for the end of the log."""
    lines = ["", f"HF-Mamba with {num_parameters:,} parameters; posts: {posts.counts()}"]
    if train_metrics:
        minutes, seconds = divmod(round(train_metrics["train_runtime"]), 60)
        rate = train_metrics["train_samples_per_second"]
        lines.append(f"Training took {minutes}:{seconds:02d} minutes, {rate:,.0f} posts per second.")
    if metrics_of_split:
        lines += ["", metrics_table(metrics_of_split), ""]
        lines.append(results_note(metrics_of_split, posts.label_names))
    lines.append(f"Everything is in {output_dir}")
    return "\n".join(lines)


def write_model_card(folder, *, model, processor, posts, metrics_of_split, recipe, seed):
    """
    Fills model_card.md and writes it as the checkpoint's README.md.

    Args:
        folder: the checkpoint folder
        model, processor: what was trained and what prepares its input
        posts: the data it was trained on
        metrics_of_split: as in `metrics_table`
        recipe: the effective recipe
        seed: of this run
    """
    name = Path(folder).resolve().name
    start = recipe.get("model_name_or_path")
    card = ModelCard.from_template(
        _card_data(name, posts, metrics_of_split, base_model=None if start and Path(start).exists() else start),
        template_path=str(CARD_TEMPLATE),
        name=name,
        repo_id=recipe.get("hub_model_id") or name,
        source=posts.source[0].upper() + posts.source[1:],
        modalities=recipe.get("modalities", "text,image").replace(",", " and "),
        counts=posts.counts(),
        label_names=", ".join(f"`{label}`" for label in posts.label_names),
        num_parameters=f"{model.num_parameters():,}",
        start=f"trained further from `{_without_folders(start)}`" if start else "trained from scratch",
        scratch="" if start else ": nothing was pretrained",
        **_architecture(model.config),
        max_length=processor.tokenizer.model_max_length,
        results_table=metrics_table(metrics_of_split) if metrics_of_split else "Not evaluated.",
        results_note=results_note(metrics_of_split, posts.label_names),
        recipe=yaml.safe_dump(shareable_recipe(recipe), sort_keys=False, allow_unicode=True).strip(),
        seed=seed,
        environment=environment(),
    )
    (Path(folder) / "README.md").write_text(f"{str(card).strip()}\n", "utf-8")


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


def _card_data(name, posts, metrics_of_split, base_model=None):
    """The card's metadata; no licence, which is for whoever trained the weights to choose."""
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type="custom",
            dataset_name=posts.source,
            dataset_split=split,
            metric_type=key,
            metric_name=SHOWN[key],
            metric_value=round(float(value), 4),
        )
        for split, metrics in metrics_of_split.items()
        for key, value in metrics.items()
        if key in SHOWN and key != "majority_accuracy"
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
