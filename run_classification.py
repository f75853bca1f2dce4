#!/usr/bin/env python
# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch>=2.11",
#     "transformers>=5.10.1,<6",
#     "datasets>=5.0",
#     "accelerate>=1.10",
#     "evaluate>=0.4.6",
#     "filelock>=3.12",
#     "huggingface_hub>=1.31",
#     "jinja2>=3.1",
#     "llvmlite>=0.44",
#     "numba>=0.61",
#     "numpy>=1.26",
#     "packaging>=23.2",
#     "pillow>=11",
#     "pyarrow>=21",
#     "pyyaml>=6",
#     "safetensors>=0.4.3",
#     "scikit-learn>=1.5",
#     "scipy>=1.13",
#     "tokenizers>=0.22",
#     "tqdm>=4.67",
# ]
# ///
"""
Trains, evaluates and applies HF-Mamba on posts made of text and images.

    python run_classification.py quickstart
    python run_classification.py recipes/quickstart.yaml --seed 1 --output_dir outputs/seed1
    python run_classification.py --do_train --do_eval --train_file posts.csv --image_dir photos --output_dir mine
    python run_classification.py --do_audit --train_file train.csv --test_file test.csv --output_dir outputs/audit
    python run_classification.py --do_predict --model_name_or_path mine --test_file new.csv --output_dir new
    torchrun --nproc_per_node 2 run_classification.py quickstart
    accelerate launch run_classification.py quickstart

The recipe (YAML or JSON) comes first, then the flags, which win. `--help` lists them all. Mistakes are reported in
one line; HF_MAMBA_TRACEBACK=1 in the environment shows where they came from. This file only says in which order the
steps are taken: the parts are in classification/, the model in modeling_hf_mamba.py.
"""

import importlib.util
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


if __package__ in (None, ""):  # run as a script: this very folder is the package, installed or not
    _spec = importlib.util.spec_from_file_location("hf_mamba", Path(__file__).parent / "__init__.py")
    sys.modules["hf_mamba"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["hf_mamba"])
    __package__ = "hf_mamba"

from .classification.data.arguments import DataArguments
from .classification.data.posts import Posts
from .classification.evaluation.metrics import PostMetrics
from .classification.reporting.model_card import write_model_card
from .classification.reporting.tables import summarise_run
from .classification.runs.arguments import ClassificationTrainingArguments, ModelArguments
from .classification.runs.calibration import check_calibration
from .classification.runs.checkpoints import with_found_checkpoint
from .classification.runs.flag_rules import check_flags, has_steps
from .classification.runs.loading import load_everything, suited_to, with_builtin_posts
from .classification.runs.output_dir import check_output_dir, write_results
from .classification.runs.recipes import parse_arguments, parse_recipe
from .classification.runs.steps import (
    Outcome,
    audit,
    build_metrics,
    build_trainer,
    run_several,
    set_up_logging,
    train_and_evaluate,
)
from .classification.share import share_run
from .classification.support.command_line import run_command
from .classification.support.processes import on_main_process
from .classification.training.trainer import PostTrainer
from .modeling_hf_mamba import HFMambaForSequenceClassification
from .processing_hf_mamba import HFMambaProcessor


logger = logging.getLogger("hf_mamba.run_classification")  # also when run as a script


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line. Returns the metrics, see `perform`."""
    return perform(*parse_arguments(sys.argv[1:] if argv is None else argv))


def run_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A run of a recipe, {flag: value}, as from its recipe.yaml. Returns the metrics, see `perform`."""
    return perform(*parse_recipe(recipe))


def perform(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: ClassificationTrainingArguments,
    recipe: dict[str, Any],
) -> dict[str, Any]:
    """
    Takes the steps that the flags ask for.

    Args:
        model_args, data_args, training_args: the flags
        recipe: the effective recipe, from which the run repeats

    Returns:
        {"validation": {"accuracy": 0.9, ...}, "test": {...}}, or of several runs what `run_several` returns
    """
    check_flags(model_args, data_args, training_args)
    set_up_logging(training_args)
    if (of_several := run_several(run_recipe, data_args, training_args, recipe)) is not None:
        return of_several
    checkpoint = on_main_process(lambda: check_output_dir(training_args, model_args.model_name_or_path, recipe))
    data_args = with_builtin_posts(data_args, training_args)
    if training_args.do_audit:
        audit(model_args, data_args, training_args)
    if not has_steps(training_args):
        return {}
    model_args = with_found_checkpoint(model_args)
    posts, processor, model = load_everything(model_args, data_args, training_args)
    training_args = suited_to(posts, training_args)
    calibration = check_calibration(posts, training_args, model_args.model_name_or_path)
    metrics = build_metrics(posts, model_args, data_args)
    trainer = build_trainer(posts, processor, model, metrics, training_args)
    outcome = train_and_evaluate(trainer, posts, metrics, recipe, checkpoint=checkpoint, saved_calibration=calibration)
    if trainer.is_world_process_zero():
        report(trainer, model, posts, metrics, outcome, recipe)
    return outcome.metrics


def report(
    trainer: PostTrainer,
    model: HFMambaForSequenceClassification,
    posts: Posts,
    metrics: PostMetrics,
    outcome: Outcome,
    recipe: Mapping[str, Any],
) -> None:
    """Writes the model card and the results, prints the summary, and uploads all if that was asked."""
    args, processor = trainer.args, trainer.processing_class
    positive_label = getattr(metrics, "positive_label", None)
    if args.do_train:
        write_model_card(
            args.output_dir,
            model=model,
            processor=processor,
            posts=posts,
            reports=outcome.reports,
            recipe=recipe,
            seed=args.seed,
            positive_label=positive_label,
            calibration=metrics.calibration,
            train_metrics=outcome.train_metrics,
        )
    write_results(args.output_dir, {"train": outcome.train_metrics, **outcome.metrics})
    print(
        summarise_run(
            outcome.reports,
            num_parameters=model.num_parameters(),
            posts=posts,
            train_metrics=outcome.train_metrics,
            output_dir=args.output_dir,
            positive_label=positive_label,
        )
    )
    if args.push_to_hub:
        push(trainer, model, processor)


def push(trainer: PostTrainer, model: HFMambaForSequenceClassification, processor: HFMambaProcessor) -> None:
    """Uploads the finished run if it works without the package: weights, processor, code, card, results, recipe."""
    args = trainer.args
    info = share_run(args.output_dir, model, processor, trainer.hub_model_id, revision=args.hub_revision)
    logger.info(f"Checked in a fresh process and uploaded: {info.commit_url}")


def run() -> None:
    """The script: what a user can fix is reported in one line with exit code 1, never as a traceback."""
    run_command(main, interrupted="Interrupted. The same command resumes from the last checkpoint.")


if __name__ == "__main__":
    run()
