"""Trainer's callbacks: when training ends, which epoch was the best, progress for people, TensorBoard's folder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import ProgressCallback
from transformers.utils import logging

from ..data.modalities import ModalityDropout
from ..support.run_files import TENSORBOARD_FOLDER


if TYPE_CHECKING:
    from ..runs.arguments import ClassificationTrainingArguments

logger = logging.get_logger(__name__)


def training_callbacks(training_args: "ClassificationTrainingArguments") -> list[TrainerCallback]:
    """Callbacks for Trainer: EarlyStopping where it was asked for, and BestEpoch."""
    patience, threshold = training_args.early_stopping_patience, training_args.early_stopping_threshold
    return [*([] if patience is None else [EarlyStopping(patience, threshold)]), BestEpoch()]


class EarlyStopping(EarlyStoppingCallback):
    """transformers' callback, which leaves evaluations outside training, under another prefix, alone."""

    def on_evaluate(  # type: ignore[override]  # as transformers' own
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        if f"eval_{_metric(args)}" in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        patience = self.early_stopping_patience
        if self.early_stopping_patience_counter >= patience and state.global_step != state.max_steps:
            evaluations = "one evaluation" if patience == 1 else f"{patience} evaluations"
            logger.info(f"Stopped early, at epoch {state.epoch:.4g}: no better {_metric(args)} in {evaluations}.")


class BestEpoch(TrainerCallback):
    """Reports at the end of training which epoch was the best."""

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if best := best_epoch(args, state):
            value = f"{best['best_metric']} {best['best_value']:.4f}"
            logger.info(f"The best was epoch {best['best_epoch']:.4g} ({value}), whose weights are kept.")


def best_epoch(args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
    """
    The epoch whose weights a run ends with.

    Args:
        args: TrainingArguments
        state: TrainerState after training

    Returns:
        {"best_epoch": 2.0, "best_metric": "accuracy", "best_value": 0.9, "best_is": "max"}; empty if it is the last
    """
    if not args.load_best_model_at_end or state.best_metric is None:
        return {}
    epochs = [entry["epoch"] for entry in state.log_history if entry["step"] == state.best_global_step]
    return {
        "best_epoch": epochs[0],
        "best_metric": _metric(args),
        "best_value": state.best_metric,
        "best_is": "max" if args.greater_is_better else "min",
    }


def _metric(args: TrainingArguments) -> str:
    """--metric_for_best_model without Trainer's prefix, which may be given or not."""
    return (args.metric_for_best_model or "").removeprefix("eval_")


def had_stopped(checkpoint: str | Path) -> bool:
    """Had training stopped early at this checkpoint? Then a run that resumes from it trains no further."""
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text("utf-8"))
    stored = state.get("stateful_callbacks", {}).get(EarlyStopping.__name__)
    return (
        stored is not None
        and stored["attributes"]["early_stopping_patience_counter"] >= stored["args"]["early_stopping_patience"]
    )


class EpochCounter(TrainerCallback):
    """Keeps a ModalityDropout's epoch up to date: Accelerate's own `set_epoch` would start at 0 after resuming."""

    def __init__(self, posts: ModalityDropout) -> None:
        self.posts = posts

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.posts.epoch.fill_(int((state.epoch or 0) + 1e-6))


class ReadableProgress(ProgressCallback):
    """Trainer's progress bars, with a line for people per epoch in place of the logged dicts."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or self.training_bar is None or logs is None:
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
            self.training_bar.write(f"epoch {logs['epoch']:.4g} of {total}: {', '.join(parts)}")


def set_tensorboard_folder(trainer: Trainer) -> None:
    """
    Has TensorBoard's files written to `output_dir/runs`, a resumed run's too. transformers' own choice is a new folder
    for each start, named after the time and the machine. TENSORBOARD_LOGGING_DIR in the environment wins.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(Path(trainer.args.output_dir or "") / TENSORBOARD_FOLDER)
