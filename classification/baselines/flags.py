"""Which flags a baseline honours. The others are left out of a recipe, or refused if they would change the result."""

from dataclasses import dataclass, field, fields
from typing import Any

from ..data.arguments import DataArguments
from ..data.columns import parse_modalities
from ..runs.arguments import CONFIG_FIELDS, ClassificationTrainingArguments, ModelArguments
from .counting import COUNTING
from .networks import NETWORKS


AUTO = "auto:"

# What no baseline does, whatever the recipe says: flag -> what to do
REFUSED = {
    "model_name_or_path": "a pretrained text classifier is --baseline auto:NAME",
    "streaming": "leave it out",
    "push_to_hub": "leave it out",
    "search_trials": "leave it out",
    "modality_dropout": "leave it out",
    "calibrate": "leave it out",
    "do_audit": "audit the posts by run_classification.py",
}
# Flags of HF-Mamba's network: what a baseline has in its place is its own
_OF_HF_MAMBA = {f.name for f in CONFIG_FIELDS} - {"class_weights", "label_smoothing"} | {"scan_implementation"}
_OF_TOKENS = {"max_seq_length", "vocab_size", "tokenizer_name"}
# Flags of training that a baseline that counts honours or refuses by name; all others are about gradient descent
_KNOWN_TO_COUNTING = {
    *(
        "output_dir",
        "overwrite_output_dir",
        "do_train",
        "do_eval",
        "do_predict",
        "seed",
        "seeds",
        "predictions_format",
    ),
    *("report_withheld", "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "disable_tqdm"),
    *("use_cpu", "report_to", "logging_strategy", "eval_strategy", "label_smoothing_factor"),
    *REFUSED,
}


@dataclass
class BaselineArguments:
    """Which baseline."""

    baseline: str | None = field(
        default=None, metadata={"help": f"{', '.join([*COUNTING, *NETWORKS])}, or auto:NAME of a pretrained model"}
    )
    baseline_max_words: int | None = field(
        default=None,
        metadata={"help": "tfidf_logistic and naive_bayes read the first so many words of a text. Default: all"},
    )


def unused_flags(name: str) -> set[str]:
    """The flags that mean nothing to a baseline: those of HF-Mamba's layers and, where it counts, of training."""
    if name not in COUNTING:
        return _OF_HF_MAMBA
    of_training = {f.name for f in fields(ClassificationTrainingArguments)}
    return _OF_HF_MAMBA | _OF_TOKENS | (of_training - _KNOWN_TO_COUNTING)


def check_name(name: str | None) -> str:
    """
    The name of a baseline.

    Raises:
        ValueError: there is no such baseline, or none is named.
    """
    if name in (*COUNTING, *NETWORKS) or (name or "").startswith(AUTO):
        return str(name)
    known = ", ".join([*COUNTING, *NETWORKS])
    raise ValueError(f"--baseline {name or 'is missing'}: give {known}, or auto: and a folder or a name on the Hub.")


def check_line(name: str, given: set[str]) -> None:
    """
    Args:
        name: of the baseline
        given: the flags on the command line

    Raises:
        ValueError: one of them means nothing to this baseline.
    """
    if wrong := sorted(given & unused_flags(name)):
        hint = " Words are limited by --baseline_max_words." if "max_seq_length" in wrong else ""
        raise ValueError(f"--{wrong[0]} means nothing to --baseline {name}: leave it out.{hint}")


def check_baseline(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: ClassificationTrainingArguments,
    baseline_args: BaselineArguments,
) -> None:
    """
    Refuses what would change the task or the training and can't be honoured, in a recipe and on the command line.

    Raises:
        ValueError: names the flag and what to do.
    """
    name, words = check_name(baseline_args.baseline), baseline_args.baseline_max_words
    for flag, fix in REFUSED.items():
        if any(getattr(args, flag, None) for args in (model_args, data_args, training_args)):
            raise ValueError(f"--{flag} doesn't go with --baseline: {fix}.")
    if not training_args.do_train:
        raise ValueError("A baseline is trained on the spot: give --do_train.")
    if name != "majority" and parse_modalities(data_args.modalities) != ("text",):
        raise ValueError(f"--baseline {name} reads text alone: give --modalities text, not {data_args.modalities}.")
    if name in COUNTING and training_args.world_size > 1:
        raise ValueError(f"--baseline {name} runs in one process: start it without torchrun or accelerate.")
    if words is not None and (words < 1 or name not in ("tfidf_logistic", "naive_bayes")):
        raise ValueError(f"--baseline_max_words {words}: give 1 or more, to tfidf_logistic or naive_bayes only.")
    for flag, asked in _not_honoured(name, model_args, data_args, training_args).items():
        if asked:
            raise ValueError(f"--{flag} can't be honoured by --baseline {name}: leave it out.")


def _not_honoured(
    name: str, model_args: ModelArguments, data_args: DataArguments, training_args: ClassificationTrainingArguments
) -> dict[str, Any]:
    """The flags that this baseline can't honour, and whether (or how) they are set."""
    if name in COUNTING:
        by_loss = training_args.load_best_model_at_end and training_args.metric_for_best_model == "loss"
        flags = {
            "label_smoothing": model_args.label_smoothing,
            "label_smoothing_factor": training_args.label_smoothing_factor,
            "metric_for_best_model loss": by_loss,
        }
        return flags | ({"class_weights": _weights(model_args)} if name == "majority" else {})
    if name.startswith(AUTO):
        return {
            "class_weights": _weights(model_args),
            "label_smoothing": model_args.label_smoothing,
            "vocab_size": data_args.vocab_size,
            "tokenizer_name": data_args.tokenizer_name,
        }
    return {}


def _weights(model_args: ModelArguments) -> Any:
    return None if model_args.class_weights == "none" else model_args.class_weights
