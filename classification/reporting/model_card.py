"""The model card that a run writes beside its checkpoint."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ...configuration_hf_mamba import HFMambaConfig
from ...modeling_hf_mamba import HFMambaForSequenceClassification
from ...processing_hf_mamba import HFMambaProcessor
from ..audit.report import audit_for_card
from ..data.labels import MULTI, REGRESSION, SINGLE
from ..data.posts import Posts
from ..evaluation.calibration import Calibration
from ..runs.recipes import shareable_recipe, without_folders
from ..support.files import PACKAGE_FOLDER, write_text
from ..support.markdown import markdown_table
from ..support.messages import in_a_cell
from .tables import MAX_LINES, OF_BASELINE, SHOWN_OF, results_note, results_tables, training_time


CARD_TEMPLATE = PACKAGE_FOLDER / "model_card.md"


def write_model_card(
    folder: str | Path,
    *,
    model: HFMambaForSequenceClassification,
    processor: HFMambaProcessor,
    posts: Posts,
    reports: Mapping[str, dict[str, Any]],
    recipe: Mapping[str, Any],
    seed: int,
    positive_label: int | None = None,
    calibration: Calibration | None = None,
    train_metrics: Mapping[str, Any] | None = None,
) -> None:
    """
    Fills model_card.md and writes it as the checkpoint's README.md.

    Args:
        folder: the checkpoint folder
        model, processor: what was trained and what prepares its input
        posts: the posts it was trained on
        reports: as in `metrics_table`
        recipe: the effective recipe
        seed: of this run
        positive_label: the id of the label that precision, recall and F1 are about
        calibration: the model's Calibration, if it has one
        train_metrics: Trainer's metrics of training, for how long it took
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
        labels=_labels_table(posts),
        num_parameters=f"{model.num_parameters():,}",
        start=f"trained further from `{without_folders(start)}`" if start else "trained from scratch",
        scratch="" if start else ": nothing was pretrained",
        **_architecture(cast(HFMambaConfig, model.config)),
        max_length=processor.tokenizer.model_max_length,
        results_table=results_tables(reports, posts.problem_type),
        calibration=_calibration_text(calibration),
        results_note=results_note(reports, posts, positive_label),
        recipe=yaml.safe_dump(shareable_recipe(recipe), sort_keys=False, allow_unicode=True).strip(),
        seed=seed,
        training_time="".join(f"{line} " for line in training_time(train_metrics)),
        environment=environment(),
    )
    write_text(Path(folder) / "README.md", f"{str(card).strip()}\n")


def _calibration_text(calibration: Calibration | None) -> str:
    """What a model card says about probabilities."""
    if calibration is None:
        return "Probabilities are not calibrated."
    call = "sigmoid()" if calibration.problem_type == MULTI else "softmax(-1)"
    text = (
        f"The probabilities of `logits` are not calibrated, those of\n  `(logits / {calibration.temperature:.4g})."
        f"{call}` are, on validation posts (Guo et al. 2017)."
    )
    if calibration.thresholds:
        text += " The numbers above are for\n  predictions by the thresholds in `calibration.json`."
    return text


def _task(posts: Posts) -> dict[str, str]:
    """What the card says about what goes in and comes out."""
    labels = ", ".join(f"`{label}`" for label in posts.label_names)
    order = "in the order of\n`model.config.id2label`"
    return {
        SINGLE: {
            "task": f"Classifies posts made of text, images or both as one of: {labels}.",
            "meaning": f"`logits.softmax(-1)` are probabilities, {order}.",
        },
        MULTI: {
            "task": f"Predicts which of these labels a post made of text, images or both has, none to all: {labels}.",
            "meaning": f"`logits.sigmoid()` are the probabilities of each label by itself, {order}. A label is\n"
            "predicted if its probability is above a half.",
        },
        REGRESSION: {
            "task": f"Predicts a number, {labels}, for posts made of text, images or both.",
            "meaning": "`logits[:, 0]` is the number, in the units of\nthe training data.",
        },
    }[posts.problem_type]


def _labels_table(posts: Posts) -> str:
    """A Markdown table of the labels, with how many training posts have each where these can be counted."""
    if posts.problem_type == REGRESSION:
        return f"Its output is one number, `{posts.label_names[0]}`."
    rows = [["id", "label"], *([str(i), in_a_cell(name)] for i, name in enumerate(posts.label_names))]
    if "train" in posts.stored:
        labels = np.asarray(posts.column("train", "label"))
        counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(posts.label_names))
        for row, cell in zip(rows, ["training posts", *(f"{count:,}" for count in counts)]):
            row.append(cell)
    more = len(rows) - 1 - MAX_LINES
    note = f"\n\nand {more} more, see `model.config.id2label`." if more > 0 else ""
    return markdown_table(rows[: MAX_LINES + 1]) + note


def _architecture(config: HFMambaConfig) -> dict[str, Any]:
    """What the card says about the network."""
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


def _card_data(
    name: str, posts: Posts, reports: Mapping[str, dict[str, Any]], base_model: str | None = None
) -> ModelCardData:
    """The card's metadata; without a licence, which is for whoever trained the weights to choose."""
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
        if key in shown and not key.startswith(OF_BASELINE)
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["hf_mamba", "mamba", "multimodal", "image-text-classification"],
        model_name=name,
        base_model=base_model,
        eval_results=results or None,
    )


def _cpu() -> str:
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def environment() -> str:
    """Versions and the kind of machine, in a line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu()
    versions = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return ", ".join([*(f"{name} {version}" for name, version in versions.items()), device])
