"""When training ends, which of its passes was the best, and what is said about both."""

import json
from pathlib import Path

from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.utils import logging


logger = logging.get_logger(__name__)


def check_early_stopping(training_args):
    """
    Refuses flags that training could not stop early by.

    Args:
        training_args: ClassificationTrainingArguments

    Raises:
        ValueError: names the flag that is missing or can't be.
    """
    patience, threshold = training_args.early_stopping_patience, training_args.early_stopping_threshold
    if threshold < 0:
        raise ValueError(f"--early_stopping_threshold {threshold}: give 0 or more, the least that counts as better.")
    if patience is None:
        if threshold:
            raise ValueError("--early_stopping_threshold needs --early_stopping_patience: give that too.")
        return
    if patience < 1:
        raise ValueError(f"--early_stopping_patience {patience}: give 1 or more evaluations, or leave it out.")
    if not training_args.do_train:
        return
    flag = f"--early_stopping_patience {patience}"
    if training_args.eval_strategy == "no":
        raise ValueError(f"{flag} needs evaluations while training: give --eval_strategy epoch or steps.")
    if not training_args.load_best_model_at_end:
        raise ValueError(
            f"{flag} needs --load_best_model_at_end: else the run would end with a model that isn't best."
        )


def training_callbacks(training_args):
    """Callbacks for Trainer: EarlyStopping where it was asked for, and BestPass."""
    patience, threshold = training_args.early_stopping_patience, training_args.early_stopping_threshold
    return [*([] if patience is None else [EarlyStopping(patience, threshold)]), BestPass()]


class EarlyStopping(EarlyStoppingCallback):
    """transformers' callback; an evaluation outside training, under another prefix, is none of its business."""

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if f"eval_{_metric(args)}" in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        patience = self.early_stopping_patience
        if self.early_stopping_patience_counter >= patience and state.global_step != state.max_steps:
            evaluations = "one evaluation" if patience == 1 else f"{patience} evaluations"
            logger.info(f"Stopped early, at pass {state.epoch:.4g}: no better {_metric(args)} in {evaluations}.")


class BestPass(TrainerCallback):
    """Says at the end of training which pass was the best."""

    def on_train_end(self, args, state, control, **kwargs):
        if best := best_pass(args, state):
            value = f"{best['best_metric']} {best['best_value']:.4f}"
            logger.info(f"The best was pass {best['best_epoch']:.4g} ({value}), whose weights are kept.")


def best_pass(args, state):
    """
    The pass whose weights a run ends with.

    Args:
        args: TrainingArguments
        state: TrainerState after training

    Returns:
        {"best_epoch": 2.0, "best_metric": "accuracy", "best_value": 0.9, "best_is": "max"}; empty if the last pass
        counts
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


def _metric(args):
    """--metric_for_best_model without Trainer's prefix, which may be given or not."""
    return args.metric_for_best_model.removeprefix("eval_")


def had_stopped(checkpoint):
    """Was it after this checkpoint that training stopped early? Then a run that resumes from it trains no further."""
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text("utf-8"))
    stored = state.get("stateful_callbacks", {}).get(EarlyStopping.__name__)
    return (
        stored is not None
        and stored["attributes"]["early_stopping_patience_counter"] >= stored["args"]["early_stopping_patience"]
    )
