"""What a hyper-parameter search tries: for each flag, a range or a list of choices.

    search_space:
      learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
      num_fusion_layers: {low: 1, high: 3}
      pooling: [mean_max, max]

in a recipe, or the same without the first line in a file of its own (YAML or JSON). Whole numbers at both ends make a
range of whole numbers.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...configuration_hf_mamba import HFMambaConfig
from ..support.files import read_mapping
from ..support.messages import did_you_mean, one_line
from .arguments import CONFIG_FIELDS, ClassificationTrainingArguments


Space = dict[str, Any]  # flag -> {"low": ..., "high": ..., "log": bool} or a list of choices

DEFAULT_SPACE: Space = {
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
    "hidden_dropout": {"low": 0.0, "high": 0.5},
    "classifier_dropout": {"low": 0.0, "high": 0.5},
    "pooling": ["mean_max", "mean", "max"],
}
_HAS_WEIGHTS = ("pooling",)  # of the above, what a loaded checkpoint has decided

# Flags that change how a model is made and trained, and neither the validation posts nor what is measured on them.
SEARCHABLE = (
    *(f.name for f in CONFIG_FIELDS if f.name not in ("label_smoothing", "class_weights")),
    *("max_seq_length", "vocab_size", "max_images"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "num_train_epochs", "modality_dropout"),
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
)
# These change the loss too: trials that differ in them can't be compared by it.
_CHANGE_THE_LOSS = ("label_smoothing", "label_smoothing_factor", "class_weights")


def read_space(given: Space | str | None, *, from_checkpoint: bool, metric: str | None) -> Space:
    """
    The space to search.

    Args:
        given: --search_space: a dict, the name of a YAML or JSON file, or None for the default
        from_checkpoint: do the runs start from --model_name_or_path?
        metric: --metric_for_best_model

    Returns:
        the space, with numbers for what YAML takes for words (1e-4)

    Raises:
        FileNotFoundError, ValueError: names the file, the flag, what was found and what would be right.
    """
    if given is None:
        return {name: what for name, what in DEFAULT_SPACE.items() if not (from_checkpoint and name in _HAS_WEIGHTS)}
    where = "--search_space"
    if isinstance(given, str):
        where = f"--search_space {given}"
        given = _read(given, where)
    if not isinstance(given, dict) or not given:
        raise ValueError(f"{where} holds no flags: write `learning_rate: {{low: 1.0e-4, high: 1.0e-2, log: true}}`.")
    searchable = [*SEARCHABLE, *(_CHANGE_THE_LOSS if (metric or "").removeprefix("eval_") != "loss" else [])]
    for name in given:
        if name not in searchable:
            hint = did_you_mean(name, searchable, otherwise=f" These can: {', '.join(searchable)}.")
            raise ValueError(f"{where}: {name!r} can't be searched.{hint}")
    return {name: _checked(f"{where}, {name}", what) for name, what in given.items()}


def _read(given: str, where: str) -> Any:
    """A JSON object, which is how a recipe's section arrives, or what a file holds."""
    if given.lstrip().startswith("{"):
        try:
            return yaml.safe_load(given)  # YAML contains JSON
        except yaml.YAMLError as error:
            raise ValueError(f"{where} can't be read: {one_line(error)}") from None
    if not Path(given).is_file():
        raise FileNotFoundError(f"{where}: there is no such file, and it isn't a JSON object either.")
    return read_mapping(given, "--search_space")


def _checked(where: str, what: Any) -> dict[str, Any] | list[Any]:
    """A range or choices, with numbers for what YAML takes for words (1e-4)."""
    if isinstance(what, list):
        choices = [_number(choice) for choice in what]
        if len(choices) < 2 or not all(isinstance(choice, (str, int, float)) for choice in choices):
            raise ValueError(f"{where}: give two choices or more, such as [mean_max, max].")
        return choices
    if not isinstance(what, dict) or not {"low", "high"} <= {*what} <= {"low", "high", "log"}:
        raise ValueError(f"{where} is {json.dumps(what)}: give choices in [ ], or {{low: .., high: .., log: true}}.")
    low, high, log = _number(what["low"]), _number(what["high"]), what.get("log", False)
    if not all(type(end) in (int, float) for end in (low, high)) or not low < high:
        raise ValueError(f"{where}: low and high are {low!r} and {high!r}, but must be numbers, low the lower one.")
    if type(log) is not bool or (log and low <= 0):
        raise ValueError(f"{where}: log is {log!r} from {low!r}: give true or false, and with true a low above 0.")
    return {"low": low, "high": high, "log": log}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def suggest(trial: Any, space: Space) -> dict[str, Any]:
    """The values that an optuna trial takes, {flag: value}."""
    values = {}
    for name, what in space.items():
        if isinstance(what, list):
            values[name] = trial.suggest_categorical(name, what)
        elif type(what["low"]) is type(what["high"]) is int:
            values[name] = trial.suggest_int(name, what["low"], what["high"], log=what.get("log", False))
        else:
            values[name] = trial.suggest_float(name, what["low"], what["high"], log=what.get("log", False))
    return values


def values_of(recipe: Mapping[str, Any], space: Space) -> dict[str, Any] | None:
    """The recipe's own values of the flags in `space`, or None if one of them lies outside."""
    # A loaded checkpoint has its own config
    classes: list[Any] = [ClassificationTrainingArguments] + (
        [] if "model_name_or_path" in recipe else [HFMambaConfig]
    )
    defaults = {f.name: f.default for cls in classes for f in dataclasses.fields(cls)}
    values = {name: recipe.get(name, defaults.get(name)) for name in space}
    return values if all(_lies_in(values[name], what) for name, what in space.items()) else None


def _lies_in(value: Any, what: Any) -> bool:
    if isinstance(what, list):
        return value in what
    whole = type(what["low"]) is type(what["high"]) is int
    return type(value) in ((int,) if whole else (int, float)) and what["low"] <= value <= what["high"]
