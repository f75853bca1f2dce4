"""The rules between flags: which need which, and which exclude each other. Checked before anything is read.

One function per topic; `check_flags` calls them all. The values that a flag may have by itself are checked by the
dataclass that declares it (arguments.py, data/arguments.py), what the data must have by the step that needs it.
"""

from transformers.trainer_utils import HubStrategy

from ..data.arguments import DataArguments
from ..evaluation.metrics import METRIC_NAMES
from ..support.extras import require
from .arguments import ClassificationTrainingArguments, ModelArguments
from .search_space import read_space


def check_flags(
    model_args: ModelArguments, data_args: DataArguments, training_args: ClassificationTrainingArguments
) -> None:
    """
    Refuses what can't work.

    Raises:
        ValueError: names the flags, and what to do.
    """
    check_steps(model_args, training_args)
    check_push(training_args)
    check_best_model(training_args)
    check_early_stopping(training_args)
    check_trackers(training_args)
    check_seeds(training_args)
    check_search(model_args, training_args)
    check_folds(data_args, training_args)
    check_streaming(data_args, training_args)


def has_steps(training_args: ClassificationTrainingArguments) -> bool:
    """Is there anything to do besides an audit?"""
    return training_args.do_train or training_args.do_eval or training_args.do_predict


def check_steps(model_args: ModelArguments, training_args: ClassificationTrainingArguments) -> None:
    """--do_train, --do_eval, --do_predict, --do_audit."""
    if not (has_steps(training_args) or training_args.do_audit):
        raise ValueError(
            "Nothing to do: give --do_train, --do_eval, --do_predict or --do_audit, or a recipe that does."
        )
    if training_args.do_audit and (training_args.seeds is not None or training_args.search_trials is not None):
        raise ValueError("--do_audit looks at the posts, which --seeds and --search_trials share: audit them first.")
    if has_steps(training_args) and not training_args.do_train and model_args.model_name_or_path is None:
        raise ValueError(
            "--do_eval and --do_predict without --do_train need a trained checkpoint: give --model_name_or_path."
        )


def check_push(training_args: ClassificationTrainingArguments) -> None:
    """--push_to_hub, for one run. What several runs say to it stands with them."""
    if not training_args.push_to_hub:
        return
    if not training_args.do_train:
        raise ValueError(
            "--push_to_hub goes with --do_train. A finished run is shared by `python -m hf_mamba.classification.share "
            "FOLDER NAME`."
        )
    if training_args.hub_strategy in ("checkpoint", "all_checkpoints"):
        strategy = HubStrategy(training_args.hub_strategy).value
        raise ValueError(
            f"--hub_strategy {strategy} would upload during training what is not checked: leave it out, --push_to_hub "
            "uploads the finished run."
        )


def check_best_model(training_args: ClassificationTrainingArguments) -> None:
    """--metric_for_best_model: one of some problem type; `suited_to` knows which type it is."""
    best = training_args.metric_for_best_model
    known = ["auto", "loss", *dict.fromkeys(name for names in METRIC_NAMES.values() for name in names)]
    if training_args.load_best_model_at_end and best not in known:
        raise ValueError(f"--metric_for_best_model is {best!r}, but must be one of {', '.join(known)}.")


def check_early_stopping(training_args: ClassificationTrainingArguments) -> None:
    """--early_stopping_patience and --early_stopping_threshold."""
    patience = training_args.early_stopping_patience
    if patience is None:
        if training_args.early_stopping_threshold:
            raise ValueError("--early_stopping_threshold needs --early_stopping_patience: give that too.")
        return
    if not training_args.do_train:
        return
    flag = f"--early_stopping_patience {patience}"
    if training_args.eval_strategy == "no":
        raise ValueError(f"{flag} needs evaluations while training: give --eval_strategy epoch or steps.")
    if not training_args.load_best_model_at_end:
        raise ValueError(
            f"{flag} needs --load_best_model_at_end: else the run would end with a model that isn't the best."
        )


def check_trackers(training_args: ClassificationTrainingArguments) -> None:
    """--report_to."""
    if "tensorboard" in training_args.report_to:
        require("tensorboard", "tensorboard", "--report_to tensorboard")


def check_seeds(training_args: ClassificationTrainingArguments) -> None:
    """--seeds."""
    if training_args.seeds is None:
        return
    if not training_args.do_train:
        raise ValueError("--seeds trains a model for each seed: give --do_train.")
    if not (training_args.do_eval or training_args.do_predict):
        raise ValueError("--seeds compares numbers: give --do_eval, --do_predict or both.")
    if training_args.push_to_hub:
        raise ValueError(
            "--push_to_hub shares one model: leave it out, and share one of the seeds' folders afterwards."
        )
    if training_args.search_trials is not None:
        raise ValueError("--seeds and --search_trials exclude each other: search first, then give its recipe --seeds.")


def check_search(model_args: ModelArguments, training_args: ClassificationTrainingArguments) -> None:
    """--search_trials and --search_space."""
    if training_args.search_trials is None:
        if training_args.search_space is not None and training_args.do_train:
            raise ValueError("--search_space needs --search_trials, the number of runs: give that too.")
        return
    require("optuna", "search", "--search_trials")
    if not training_args.do_train:
        raise ValueError("--search_trials trains a model in each trial: give --do_train.")
    if not training_args.load_best_model_at_end:
        raise ValueError(
            "--search_trials compares trials by their best epoch on the validation posts: it needs "
            "--load_best_model_at_end and an --eval_strategy."
        )
    if training_args.push_to_hub:
        raise ValueError("--push_to_hub shares one model: leave it out, and run best_recipe.yaml with it afterwards.")
    read_space(
        training_args.search_space,
        from_checkpoint=model_args.model_name_or_path is not None,
        metric=training_args.metric_for_best_model,
    )


def check_folds(data_args: DataArguments, training_args: ClassificationTrainingArguments) -> None:
    """--folds and --fold."""
    folds, fold = data_args.folds, data_args.fold
    if folds is None:
        if fold is not None:
            raise ValueError(f"--fold {fold} is one of several: give --folds, how many there are, too.")
        return
    if folds < 2:
        raise ValueError(f"--folds {folds}: give 2 or more, or leave it out.")
    if fold is not None and not 1 <= fold <= folds:
        raise ValueError(f"--fold {fold}: give 1 to {folds} (--folds), or leave it out to run all of them.")
    for flag in ("validation_file", "test_file"):
        if getattr(data_args, flag) is not None:
            raise ValueError(f"--folds splits the training posts alone: leave out --{flag}, or --folds.")
    if data_args.test_split > 0:
        raise ValueError("--folds tests on every training post once: leave out --test_split, or --folds.")
    if data_args.streaming:
        raise ValueError("--folds needs all posts at once: leave out --streaming.")
    if fold is not None:
        return
    for flag in ("seeds", "search_trials"):
        if getattr(training_args, flag) is not None:
            raise ValueError(f"--folds and --{flag} exclude each other: leave one of them out.")
    if not (training_args.do_train and training_args.do_predict):
        raise ValueError("--folds trains and predicts in each fold: give --do_train and --do_predict.")
    if training_args.push_to_hub:
        raise ValueError("--push_to_hub shares one model: leave it out with --folds.")


def check_streaming(data_args: DataArguments, training_args: ClassificationTrainingArguments) -> None:
    """--streaming, against the flags of training."""
    if not data_args.streaming:
        return
    if training_args.do_train and training_args.max_steps < 1:
        raise ValueError("--streaming: the end of a stream isn't known, so give --max_steps, how long to train.")
    if training_args.modality_dropout:
        raise ValueError("--modality_dropout needs posts that can be counted: leave it out with --streaming.")
