"""The steps of a run, in the order in which run_classification.py takes them; the baselines take the same ones."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_callback import ProgressCallback
from transformers.utils.logging import disable_progress_bar

from ..audit.audit import audit_posts, load_for_audit
from ..audit.report import write_audit
from ..data.arguments import DataArguments
from ..data.collator import PostCollator
from ..data.labels import REGRESSION, SINGLE, label_id
from ..data.modalities import ModalityDropout
from ..data.posts import Posts
from ..evaluation.calibration import Calibration
from ..evaluation.metrics import PostMetrics, baseline_of_posts, compute_metrics_for_trainer, metrics_for
from ..evaluation.predictions import write_predictions
from ..evaluation.split_report import BASELINE_KEYS, evaluate_split, name_baseline, write_report
from ..support.processes import warn_of_one_process
from ..training.callbacks import (
    EpochCounter,
    ReadableProgress,
    best_epoch,
    had_stopped,
    set_tensorboard_folder,
    training_callbacks,
)
from ..training.targets import TargetScale
from ..training.trainer import PostTrainer
from .arguments import ClassificationTrainingArguments, ModelArguments, with_changes
from .calibration import calibrate
from .checkpoints import baseline_of_checkpoint, new_tokenizer
from .folds import run_folds
from .loading import split_seed
from .output_dir import start_run
from .search import search
from .seeds import RunRecipe, run_seeds


logger = logging.getLogger(__name__)


@dataclass
class Outcome:
    """
    What a run has measured.

    Args:
        train_metrics: of training; empty if nothing was trained
        reports: split -> its report, see evaluation/split_report.py; only splits whose labels are known
    """

    train_metrics: dict[str, Any]
    reports: dict[str, dict[str, Any]]

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """{"validation": {"accuracy": 0.9, ...}, "test": {...}}"""
        return {split: report["metrics"] for split, report in self.reports.items()}


def run_several(
    run_recipe: RunRecipe,
    data_args: DataArguments,
    training_args: ClassificationTrainingArguments,
    recipe: dict[str, Any],
) -> dict[str, Any] | None:
    """
    What --folds, --seeds and --search_trials ask for: several runs, each of a recipe of its own.

    Args:
        run_recipe: runs one of them
        data_args, training_args: the flags
        recipe: the effective recipe of the command

    Returns:
        as `run_folds`, `run_seeds` or `search` do; None if the flags ask for a single run
    """
    if data_args.folds is not None and data_args.fold is None:
        return run_folds(run_recipe, training_args, data_args, recipe)
    if training_args.seeds is not None:
        return run_seeds(run_recipe, training_args, recipe)
    if training_args.search_trials is not None:
        return search(run_recipe, training_args, recipe)
    return None


def set_up_logging(training_args: ClassificationTrainingArguments) -> None:
    """The main process reports what it does, the others only warn; progress bars are Trainer's and the data's."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hf_mamba").setLevel(logging.INFO if training_args.process_index == 0 else logging.WARNING)
    warn_of_one_process(training_args.world_size)
    disable_progress_bar()  # transformers' own for each saved file


def audit(
    model_args: ModelArguments, data_args: DataArguments, training_args: ClassificationTrainingArguments
) -> None:
    """The main process audits the posts, as they are before a model or the flags for bad images change them."""
    with training_args.main_process_first(desc="audit"):
        if training_args.process_index != 0:
            return
        seed = split_seed(data_args, training_args)
        posts = load_for_audit(data_args, seed=seed, problem_type=model_args.problem_type)
        tokenizer = new_tokenizer(data_args, posts) if "train" in posts.splits else None
        audited = audit_posts(posts, tokenizer, progress=not training_args.disable_tqdm)
        print(write_audit(training_args.output_dir, audited))


def build_metrics(posts: Posts, model_args: ModelArguments, data_args: DataArguments) -> PostMetrics:
    """The metrics of the problem type, beside the baseline of the training posts or of the checkpoint's training."""
    baseline = baseline_of_posts(posts)
    if baseline is None and model_args.model_name_or_path is not None:
        baseline = baseline_of_checkpoint(model_args.model_name_or_path, posts.problem_type, posts.label_names)
    positive_label = None
    if data_args.positive_label is not None:
        if posts.problem_type != SINGLE:
            raise ValueError(
                f"--positive_label is for one label per post, but the problem type is {posts.problem_type}."
            )
        positive_label = label_id(data_args.positive_label, posts.label_names, "--positive_label")
    return metrics_for(posts.problem_type, posts.label_names, baseline=baseline, positive_label=positive_label)


def build_trainer(
    posts: Posts, processor: Any, model: Any, metrics: PostMetrics, training_args: ClassificationTrainingArguments
) -> PostTrainer:
    """
    The Trainer over the posts.

    Args:
        posts: the posts; their training split is used with --do_train
        processor: what `PostCollator` calls
        model: any model of transformers that classifies
        metrics: as `build_metrics` returns them
        training_args: as `suited_to` returns them
    """
    train_posts = posts.splits.get("train") if training_args.do_train else None
    if train_posts is not None and training_args.modality_dropout:
        train_posts = ModalityDropout(train_posts, training_args.modality_dropout, training_args.seed)
    trainer = PostTrainer(
        model=model,
        args=training_args,
        train_dataset=train_posts,
        eval_dataset=posts.splits.get("validation"),
        data_collator=PostCollator(
            processor, posts.image_cache, as_bytes=True, pad_to_max_length=training_args.pad_to_max_length
        ),
        processing_class=processor,
        compute_metrics=compute_metrics_for_trainer(metrics),
    )
    if posts.problem_type == REGRESSION and train_posts is not None:
        trainer.target_scale = TargetScale.of(posts.column("train", "label"))
    if isinstance(train_posts, ModalityDropout):
        trainer.add_callback(EpochCounter(train_posts))
    for callback in training_callbacks(training_args):
        trainer.add_callback(callback)
    set_tensorboard_folder(trainer)
    if not training_args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ReadableProgress)
    return trainer


def train(trainer: PostTrainer, posts: Posts, checkpoint: str | None) -> dict[str, Any]:
    """
    Trains, and saves the model, its processor and its code.

    Args:
        trainer: as `build_trainer` returns it
        posts: what it trains on
        checkpoint: the folder of the checkpoint to resume from, if there is one

    Returns:
        the metrics of training, which are also written to train_results.json
    """
    describe_scan = getattr(trainer.model, "describe_scan", None)  # a baseline's network has none
    if describe_scan is not None:
        logger.info(describe_scan())
    if checkpoint is not None and had_stopped(checkpoint):
        trainer.args = with_changes(trainer.args, num_train_epochs=0, max_steps=-1)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(_internal_call=True)  # else it would push already, before there is a card
    trainer.save_state()
    metrics = {
        **result.metrics,
        **{f"train_{name}": value for name, value in best_epoch(trainer.args, trainer.state).items()},
        **named_baseline(posts),
    }
    trainer.save_metrics("train", metrics, combined=False)
    return metrics


def named_baseline(posts: Posts) -> dict[str, Any]:
    """The baseline of the training posts under the name that results give it."""
    return {
        BASELINE_KEYS[posts.problem_type]: name_baseline(
            baseline_of_posts(posts), posts.problem_type, posts.label_names
        )
    }


def evaluate(trainer: Any, posts: Posts, split: str, metrics: PostMetrics) -> dict[str, Any] | None:
    """
    The report of a split, None if its labels are unknown. The main process writes it to the output folder, with the
    metrics and, of the test split, the predictions.
    """
    args = trainer.args
    with_withheld = args.report_withheld == "all" or args.report_withheld == split
    report, logits = evaluate_split(trainer, posts, split, metrics, with_withheld=with_withheld)
    if not trainer.is_world_process_zero():
        return report
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if split == "test":
        write_predictions(
            folder / f"predictions.{args.predictions_format}",
            posts.column(split, "id"),
            logits,
            posts.label_names,
            labels=None if report is None else posts.column(split, "label"),
            problem_type=posts.problem_type,
            calibration=metrics.calibration,
        )
    if report is not None:
        trainer.save_metrics(split, {f"{split}_{k}": v for k, v in report["metrics"].items()}, combined=False)
        write_report(folder, report)
    return report


def train_and_evaluate(
    trainer: Any,
    posts: Posts,
    metrics: PostMetrics,
    recipe: Mapping[str, Any],
    *,
    checkpoint: str | None = None,
    saved_calibration: Calibration | None = None,
    train: Callable[[Any, Posts, str | None], dict[str, Any]] = train,
) -> Outcome:
    """
    The steps that the flags ask for: --do_train, --calibrate, --do_eval, --do_predict.

    Args:
        trainer: as `build_trainer` returns it, or what behaves like it
        posts: the posts
        metrics: what is measured; gets the calibration
        recipe: the effective recipe, which is saved when training starts
        checkpoint: the folder of the checkpoint to resume from, if there is one
        saved_calibration: as `check_calibration` returns it
        train: does what the function `train` does
    """
    args = trainer.args
    if args.do_train and checkpoint is None and trainer.is_world_process_zero():
        start_run(args, recipe)
    train_metrics = train(trainer, posts, checkpoint) if args.do_train else {}
    metrics.calibration = calibrate(trainer, posts, saved_calibration)
    splits = [split for split, asked in (("validation", args.do_eval), ("test", args.do_predict)) if asked]
    reports = {split: evaluate(trainer, posts, split, metrics) for split in splits}
    return Outcome(train_metrics, {split: report for split, report in reports.items() if report})
