"""The flags of run_classification.py, and the recipes (YAML or JSON) that hold them.

A recipe is a flat mapping from flag names to values; a `base:` key names another recipe, relative to this one, that it
inherits from. What stands on the command line wins over the recipe, the recipe over the defaults.
"""

import argparse
import dataclasses
import difflib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from ...configuration_hf_mamba import CHOICES, HFMambaConfig
from ..data.arguments import DataArguments
from ..evaluation.calibration import CALIBRATE_METRICS
from ..evaluation.metrics import LOWER_IS_BETTER
from ..support.files import PACKAGE_FOLDER
from ..support.processes import default_num_workers
from ..support.run_files import PREDICTIONS_FORMATS


RECIPE_SUFFIXES = (".yaml", ".yml", ".json")
RECIPES_FOLDER = PACKAGE_FOLDER / "recipes"

# Config fields that the data and the processor (which makes RGB) decide, so that no flag sets them.
_FROM_DATA = ("vocab_size", "pad_token_id", "num_channels")
# Would delete the run that is to be repeated.
_NOT_IN_RECIPE = ("overwrite_output_dir",)
# Chosen for the machine at hand, so that a recipe names them only where the user did.
_OF_THE_MACHINE = ("dataloader_num_workers",)


def _config_flag(config_field):
    """A field of HFMambaConfig as a flag: None, the default, leaves it to the config or to the loaded checkpoint."""
    kinds = {bool: bool, int: int, float: float, float | int: float, int | str: str, str: str}
    kind = kinds.get(config_field.type, list[str])  # class_weights is the one list, and may be words
    text = f"HFMambaConfig.{config_field.name} (default: {config_field.default!r}, or the loaded checkpoint's)"
    if config_field.name == "class_weights":
        text += ': none, auto (inverse frequency, mean 1), {"label": weight, ...}, or a number for each label'
    if config_field.name in CHOICES:
        text += f", one of {', '.join(CHOICES[config_field.name])}"
    return (config_field.name, kind | None, field(default=None, metadata={"help": text}))


CONFIG_FIELDS = [
    f
    for f in dataclasses.fields(HFMambaConfig)
    if f.name in HFMambaConfig.__annotations__ and f.name not in _FROM_DATA
]

_ModelFlags = dataclasses.make_dataclass("_ModelFlags", map(_config_flag, CONFIG_FIELDS))


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

    def __post_init__(self):
        known = [choice for choice in CHOICES["problem_type"] if choice]
        if self.problem_type not in (None, *known):
            raise ValueError(f"--problem_type {self.problem_type}: give {', '.join(known[:-1])} or {known[-1]}.")
        if self.class_weights is not None:
            self.class_weights = _as_class_weights(self.class_weights)

    def config_overrides(self) -> dict:
        """The config fields that were asked for, but class_weights, whose numbers the labels decide."""
        overrides = {f.name: value for f in CONFIG_FIELDS if (value := getattr(self, f.name)) is not None}
        overrides.pop("class_weights", None)
        rank = overrides.get("time_step_rank")
        if rank is not None and rank.isdigit():
            overrides["time_step_rank"] = int(rank)
        return overrides


def _as_class_weights(words):
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

    output_dir: str | None = field(
        default="outputs/hf-mamba", metadata={"help": "Where the checkpoint and the reports go"}
    )
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
    num_train_epochs: float = field(default=10, metadata={"help": "Passes over the training split"})
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
            "{low: 1.0e-4, high: 1.0e-2, log: true}. Default: see classification/search_space.py"
        },
    )
    pad_to_max_length: bool = field(
        default=False,
        metadata={
            "help": "Pad all texts to --max_seq_length, so that batches have one shape: what --torch_compile and CUDA "
            "graphs want. Answers stay the same"
        },
    )
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the training loss"})
    report_to: str = field(default="none", metadata={"help": "Trackers to report to, tensorboard for one"})
    dataloader_num_workers: int | None = field(
        default=None,
        metadata={"help": "Processes that make batches. Default: what suits the machine, 0 without a GPU"},
    )
    # the collator reads raw columns (text, images), which Trainer would otherwise drop
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave at False: the collator needs all"})

    def __post_init__(self):
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
        if self.hub_token is not None:  # a secret must not lie beside a checkpoint; the Hub's client reads it here
            os.environ["HF_TOKEN"], self.hub_token = self.hub_token, None
        if self.greater_is_better is None and self.metric_for_best_model in LOWER_IS_BETTER:
            self.greater_is_better = False
        do_eval = self.do_eval
        super().__post_init__()
        self.do_eval = do_eval  # an eval strategy switches it on, which is not what was asked


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says the default of a flag that has one."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


class _Parser(HfArgumentParser):
    """Mistakes in flags are told like all others, not by a page of usage; a bare `--bidirectional` is enough."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, formatter_class=_HelpFormatter, allow_abbrev=False, **kwargs)
        switches = {"hub_private_repo", *(f.name for f in CONFIG_FIELDS if f.type is bool)}
        for action in self._actions:
            if action.dest in switches:
                action.nargs, action.const = "?", True

    def error(self, message):
        raise ValueError(f"{message}. `run_classification.py --help` lists the flags.")


def parse_arguments(argv, more=()):
    """
    Reads `[recipe] [--flag value ...]`.

    Args:
        argv: the command line
        more: dataclasses of further flags, of a command that has some

    Returns:
        ModelArguments, DataArguments, ClassificationTrainingArguments, what `more` adds, and the effective recipe, a
        dict to be saved so that the run repeats from it.

    Raises:
        ValueError, FileNotFoundError: a recipe that is missing, malformed or has a key that is no flag; a flag with a
            value that it can't have.
    """
    parser = _Parser(
        (ModelArguments, DataArguments, ClassificationTrainingArguments, *more),
        prog="run_classification.py",
        usage="%(prog)s [recipe.yaml] [--flag value ...]",
        description="Trains, evaluates and applies HF-Mamba. The recipe is read first, then the flags.",
    )
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        path = find_recipe(argv[0])
        recipe_argv = as_argv(read_recipe(path, more=more))
        try:
            parser.parse_known_args(recipe_argv)
        except ValueError as error:
            raise ValueError(f"Recipe {path}: {error}") from None
        argv = [*recipe_argv, *argv[1:]]  # what comes later wins
    arguments = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    recipe = effective_recipe(parser, argv, *arguments)
    for arg in (
        *arguments[:2],
        *arguments[3:],
    ):  # a recipe may name its data as $HF_MAMBA_DATA/...; what is saved keeps the name
        for f in dataclasses.fields(arg):
            if isinstance(value := getattr(arg, f.name), str):
                setattr(arg, f.name, expand_variables(f.name, value))
    return (*arguments, recipe)


def as_argv(recipe):
    """A recipe as command-line flags, so that both are checked alike."""
    argv = []
    for name, value in recipe.items():
        if isinstance(value, list):
            argv += [f"--{name}", *map(str, value)] if value else []
        elif value is not None:
            argv.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return argv


def expand_variables(flag, value):
    """$NAME in a flag's value as the environment has it."""
    value = os.path.expandvars(value)
    if unset := re.search(r"\$(\w+|\{\w+\})", value):
        raise ValueError(f"--{flag} {value}: the environment variable {unset[1].strip('{}')} is not set. Set it.")
    return value


def effective_recipe(parser, argv, model_args, data_args, training_args, *more):
    """
    What repeats the run: every flag of ours with the value it has, defaults too (they may change between versions),
    and of transformers' own flags those that the recipe or the command line set.
    """
    ours = [f.name for f in dataclasses.fields(training_args) if f.name in type(training_args).__annotations__]
    given = [action.dest for action in parser._actions if set(action.option_strings) & {a.split("=")[0] for a in argv}]
    ours = [name for name in ours if name not in _OF_THE_MACHINE]
    recipe = {
        f.name: getattr(args, f.name) for args in (data_args, model_args, *more) for f in dataclasses.fields(args)
    }
    for name in [*ours, "seed", *given]:
        if name not in recipe and name not in _NOT_IN_RECIPE:
            value = getattr(training_args, name)
            recipe[name] = getattr(value, "value", value)  # enums by their value
    return {name: value for name, value in recipe.items() if value is not None}


def find_recipe(name):
    """A recipe by its path, or by its name among the project's own: `quickstart`, `paper/twitter`."""
    path = Path(name)
    candidates = [path]
    if not path.is_absolute() and ".." not in path.parts:
        candidates += [RECIPES_FOLDER / f"{name}{suffix}" for suffix in ("", *RECIPE_SUFFIXES)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = own_recipes()
    by_last_part = {own.rpartition("/")[2]: own for own in known}
    close = difflib.get_close_matches(path.stem, by_last_part, n=1)
    hint = f" Did you mean {by_last_part[close[0]]!r}?" if close else ""
    raise FileNotFoundError(
        f"There is no recipe {name!r}.{hint} The project's own are {', '.join(known)}; a recipe of yours is given by "
        "its path. Flags start with --."
    )


def own_recipes():
    """The names of the project's own recipes, those of the paper's tables last."""
    recipes = [path.relative_to(RECIPES_FOLDER) for path in RECIPES_FOLDER.rglob("*.yaml")]
    return [path.with_suffix("").as_posix() for path in sorted(recipes, key=lambda path: (len(path.parts), path))]


def read_recipe(path, _seen=(), more=()):
    """The recipe at `path` as a flat dict, with what it inherits through `base:`."""
    path = Path(path)
    if path.resolve() in _seen:
        raise ValueError(f"Recipe {path} inherits from itself through `base:`; break the circle.")
    try:
        text = path.read_text(encoding="utf-8")
        recipe = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"Recipe {path} can't be read: {error}") from None
    recipe = {} if recipe is None else recipe
    if not isinstance(recipe, dict):
        raise ValueError(f"Recipe {path} holds a {type(recipe).__name__}, but must map flag names to values.")
    base = recipe.pop("base", None)
    known = all_flags(more)
    for key in recipe:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else " `run_classification.py --help` lists the flags."
            raise ValueError(f"Recipe {path}: {key!r} is no flag.{hint}")
    if base is None:
        return recipe
    base_path = path.parent / str(base)
    if not base_path.is_file():
        raise FileNotFoundError(f"Recipe {path} has `base: {base}`, but there is no file {base_path}.")
    return {**read_recipe(base_path, (*_seen, path.resolve()), more), **recipe}


def all_flags(more=()):
    """The name of every flag, those of the dataclasses `more` too."""
    classes = (ModelArguments, DataArguments, ClassificationTrainingArguments, *more)
    return [f.name for cls in classes for f in dataclasses.fields(cls)]
