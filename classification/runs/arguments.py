"""The flags of the model and of training; those of the data are in data/arguments.py.

Each dataclass checks the ranges of its own flags; flag_rules.py checks flags against each other.
"""

import copy
import dataclasses
import json
import os
import re
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments

from ...configuration_hf_mamba import CHOICES, HFMambaConfig
from ..evaluation.calibration import CALIBRATE_METRICS
from ..evaluation.metrics import LOWER_IS_BETTER
from ..support.processes import default_num_workers
from ..support.run_files import PREDICTIONS_FORMATS


Arguments = TypeVar("Arguments")

# Config fields that the data and the processor (which makes RGB) decide, so that no flag sets them.
_FROM_DATA = ("vocab_size", "pad_token_id", "num_channels")


def with_changes(arguments: Arguments, **changes: Any) -> Arguments:
    """
    A copy of a dataclass of flags with some of them changed.

    `dataclasses.replace` would run `__post_init__` again, which derives values from what was asked for on the command
    line, not from what an earlier `__post_init__` made of it.
    """
    changed = copy.copy(arguments)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def expand_variables(flag: str, value: str) -> str:
    """
    The value of a flag with $NAME replaced by the environment's value.

    Raises:
        ValueError: such a variable is not set.
    """
    value = os.path.expandvars(value)
    if unset := re.search(r"\$(\w+|\{\w+\})", value):
        raise ValueError(f"--{flag} {value}: the environment variable {unset[1].strip('{}')} is not set. Set it.")
    return value


def _config_flag(config_field: dataclasses.Field) -> tuple[str, Any, Any]:
    """A field of HFMambaConfig as a flag: None, the default, leaves it to the config or to the loaded checkpoint."""
    kinds: dict[Any, Any] = {bool: bool, int: int, float: float, float | int: float, int | str: str, str: str}
    kind = kinds.get(config_field.type, list[str])  # class_weights is the one list, and may be words
    text = f"HFMambaConfig.{config_field.name} (default: {config_field.default!r}, or the loaded checkpoint's)"
    if config_field.name == "class_weights":
        text += ': none, auto (inverse frequency, mean 1), {"label": weight, ...}, or a number for each label'
    if config_field.name in CHOICES:
        text += f", one of {', '.join(choice for choice in CHOICES[config_field.name] if choice)}"
    return (config_field.name, kind | None, field(default=None, metadata={"help": text}))


CONFIG_FIELDS = [
    f
    for f in dataclasses.fields(HFMambaConfig)
    if f.name in HFMambaConfig.__annotations__ and f.name not in _FROM_DATA
]

_ModelFlags: Any = dataclasses.make_dataclass("_ModelFlags", map(_config_flag, CONFIG_FIELDS))


@dataclass
class ModelArguments(_ModelFlags):
    """Which model: a checkpoint, or a new one with every field of HFMambaConfig as a flag."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Checkpoint folder or Hub name to start from or to evaluate. Default: a new model"},
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "single_label_classification, multi_label_classification or regression. Default: as the labels "
            "are: lists are multi-label, numbers that aren't all whole regression, all else single-label"
        },
    )
    scan_implementation: str = field(
        default="auto", metadata={"help": "Which implementation of the recurrence runs, see selective_scan.py"}
    )

    def __post_init__(self) -> None:
        known = [choice for choice in CHOICES["problem_type"] if choice]
        if self.problem_type not in (None, *known):
            raise ValueError(f"--problem_type {self.problem_type}: give {', '.join(known[:-1])} or {known[-1]}.")
        weights: Any = vars(self)["class_weights"]
        if weights is not None:
            self.class_weights = _as_class_weights(weights)

    def config_overrides(self) -> dict[str, Any]:
        """The config fields that were asked for, but class_weights, whose numbers the labels decide."""
        overrides = {f.name: value for f in CONFIG_FIELDS if (value := getattr(self, f.name)) is not None}
        overrides.pop("class_weights", None)
        rank = overrides.get("time_step_rank")
        if rank is not None and rank.isdigit():
            overrides["time_step_rank"] = int(rank)
        return overrides


def _as_class_weights(words: list[str]) -> str | dict[str, float] | list[float]:
    """The words after --class_weights as "none", "auto", {label: weight} or a list of numbers."""
    if words in (["none"], ["auto"]):
        return words[0]
    try:
        if len(words) == 1 and words[0].lstrip().startswith("{"):
            return {str(name): float(weight) for name, weight in json.loads(words[0]).items()}
        return [float(word) for word in words]
    except (ValueError, TypeError):
        raise ValueError(
            f"--class_weights {' '.join(words)}: give none, auto, a JSON object such as '{{\"rare\": 3}}', or a "
            "number for each label."
        ) from None


@dataclass
class ClassificationTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with defaults that suit a small model trained from scratch."""

    output_dir: str = field(default="outputs/hf-mamba", metadata={"help": "Where the checkpoint and the reports go"})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start over in an output folder that holds an earlier run, deleting that run"}
    )
    do_audit: bool = field(
        default=False,
        metadata={
            "help": "Before anything else, try on the posts what must not be able to tell their labels (white space, "
            "length, ids, files, copies, ...), and write audit.json, audit.md and audit.png. See docs/audit.md"
        },
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule"})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up steps; below 1, a share of all steps"})
    weight_decay: float = field(default=0.05, metadata={"help": "AdamW's, never on A_log, D, norms and biases"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm"})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Posts per training step and device"})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Posts per evaluation step and device"})
    num_train_epochs: float = field(default=10, metadata={"help": "Epochs: how often to go over the training split"})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate on validation while training"})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint to resume from"})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept, the best one among them"})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint's weights"})
    metric_for_best_model: str | None = field(
        default="auto",
        metadata={"help": "What best means; auto: accuracy, for several labels f1_micro, for regression rmse"},
    )
    modality_dropout: float = field(
        default=0.0,
        metadata={"help": "In training, the share of posts with text and image that lose one of the two, by chance"},
    )
    predictions_format: str = field(
        default="csv", metadata={"help": f"What --do_predict writes: {', '.join(PREDICTIONS_FORMATS)}"}
    )
    report_withheld: str = field(
        default="test",
        metadata={
            "help": "Where to measure also with the text, and with the images, withheld from the posts that have "
            "both: none, test, or all (validation too). Such a split is predicted three times"
        },
    )
    calibrate: bool = field(
        default=False,
        metadata={
            "help": "Fit a temperature, and thresholds of two or of several labels, on the validation posts, and "
            "report and predict with them; only predicting, those in the checkpoint's calibration.json"
        },
    )
    calibrate_metric: str = field(
        default="accuracy", metadata={"help": f"What the thresholds are best for: {' or '.join(CALIBRATE_METRICS)}"}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop when --metric_for_best_model was no better for so many evaluations in a row"},
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "By more than this a metric must change to count as better for early stopping"}
    )
    seeds: list[int] | None = field(
        default=None,
        metadata={
            "help": "Run once for each of these seeds, into seed-N of the output folder, and report mean and standard "
            "deviation. Posts set aside for validation or test are the same for all, see --split_seed"
        },
    )
    search_trials: int | None = field(
        default=None,
        metadata={"help": "Search for better hyper-parameters by so many runs on the validation posts, with optuna"},
    )
    search_space: dict | str | None = field(
        default=None,
        metadata={
            "help": "What to search: a YAML or JSON file, or such a section of the recipe: flag: [choices], or flag: "
            "{low: 1.0e-4, high: 1.0e-2, log: true}. Default: see classification/runs/search_space.py"
        },
    )
    pad_to_max_length: bool = field(
        default=False,
        metadata={
            "help": "Pad all texts to --max_seq_length, so that batches have one shape: what --torch_compile and CUDA "
            "graphs want. Predictions stay the same"
        },
    )
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the training loss"})
    report_to: str = field(default="none", metadata={"help": "Trackers to report to, tensorboard for one"})
    dataloader_num_workers: int | None = field(  # type: ignore[assignment] # None only until __post_init__
        default=None,
        metadata={"help": "Processes that make batches. Default: what suits the machine, 0 without a GPU"},
    )
    # the collator reads raw columns (text, images), which Trainer would otherwise drop
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave at False: the collator needs all"})

    def __post_init__(self) -> None:
        self._check_own_values()
        self.output_dir = expand_variables("output_dir", self.output_dir)
        if not self.do_train:
            self.save_strategy = "no"
        if not self.do_train or self.eval_strategy == "no":
            self.eval_strategy, self.load_best_model_at_end = "no", False
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()  # else it only warns
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = default_num_workers()
        if self.ddp_find_unused_parameters is None:  # a batch, or all data, may lack a modality and so its stack
            self.ddp_find_unused_parameters = True
        # Only then does accelerate let processes without a GPU meet; else each would run for itself in one folder
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available():
            self.use_cpu = True
        if self.early_stopping_patience is not None:  # a run that resumes counts on
            self.restore_callback_states_from_checkpoint = True
        if self.greater_is_better is None and self.metric_for_best_model in LOWER_IS_BETTER:
            self.greater_is_better = False
        do_eval = self.do_eval
        super().__post_init__()
        self.do_eval = do_eval  # an eval strategy switches it on, which is not what was asked
        self.label_names = ["labels"]
        # Each process reads a stream and takes its rows: batches of different lengths can't be joined to be handed out
        accelerator_config: Any = self.accelerator_config  # read from a dict by TrainingArguments
        accelerator_config.dispatch_batches = False

    def _check_own_values(self) -> None:
        """
        Raises:
            ValueError: a value that its flag can't have, whatever the other flags are.
        """
        choices = {
            "predictions_format": PREDICTIONS_FORMATS,
            "report_withheld": ("none", "test", "all"),
            "calibrate_metric": CALIBRATE_METRICS,
        }
        for flag, known in choices.items():
            if (value := getattr(self, flag)) not in known:
                raise ValueError(f"--{flag} {value}: give {', '.join(known[:-1])} or {known[-1]}.")
        if not 0 <= self.modality_dropout <= 1:
            raise ValueError(f"--modality_dropout {self.modality_dropout}: give a share of the posts, 0 to 1.")
        patience, threshold = self.early_stopping_patience, self.early_stopping_threshold
        if threshold < 0:
            raise ValueError(
                f"--early_stopping_threshold {threshold}: give 0 or more, the least that counts as better."
            )
        if patience is not None and patience < 1:
            raise ValueError(f"--early_stopping_patience {patience}: give 1 or more evaluations, or leave it out.")
        if self.seeds is not None and (len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0):
            raise ValueError(f"--seeds {' '.join(map(str, self.seeds))}: give different numbers of 0 or more.")
        if self.search_trials is not None and self.search_trials < 1:
            raise ValueError(f"--search_trials {self.search_trials}: give 1 or more runs, or leave it out.")
        if self.remove_unused_columns:
            raise ValueError("--remove_unused_columns must stay False: text and images are read when a batch is made.")
