"""Recipes (YAML or JSON) and the command line, which say the same: what a run is asked to do.

A recipe is a flat mapping from flag names to values; a `base:` key names another recipe, relative to this one, that it
inherits from. What stands on the command line wins over the recipe, the recipe over the defaults. Both go through one
parser, so that both are checked alike.
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

from transformers import HfArgumentParser

from ..data.arguments import DataArguments
from ..support.files import PACKAGE_FOLDER, read_mapping
from ..support.messages import did_you_mean, nearest
from .arguments import (
    CONFIG_FIELDS,
    ClassificationTrainingArguments,
    ModelArguments,
    expand_variables,
    with_changes,
)


RECIPE_SUFFIXES = (".yaml", ".yml", ".json")
RECIPES_FOLDER = PACKAGE_FOLDER / "recipes"

# The first would delete the run that is to be repeated, the second is a secret.
_NOT_IN_RECIPE = ("overwrite_output_dir", "hub_token")
# Chosen for the machine, so that a recipe names them only where the user did.
_OF_THE_MACHINE = ("dataloader_num_workers",)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Prints the default of a flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class _Parser(HfArgumentParser):
    """Mistakes in flags are reported like all others, not by a page of usage; a bare `--bidirectional` is enough."""

    def __init__(self, more: Sequence[type]) -> None:
        super().__init__(
            cast(Any, (ModelArguments, DataArguments, ClassificationTrainingArguments, *more)),
            prog="run_classification.py",
            usage="%(prog)s [recipe.yaml] [--flag value ...]",
            description="Trains, evaluates and applies HF-Mamba. The recipe is read first, then the flags.",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        switches = {"hub_private_repo", *(f.name for f in CONFIG_FIELDS if f.type is bool)}
        for action in self._actions:
            if action.dest in switches:
                action.nargs, action.const = "?", True

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}. `run_classification.py --help` lists the flags.")


def parse_arguments(argv: Sequence[str], more: Sequence[type] = ()) -> tuple[Any, ...]:
    """
    Reads `[recipe] [--flag value ...]`.

    Args:
        argv: the command line
        more: dataclasses of further flags, of a command that has some

    Returns:
        ModelArguments, DataArguments, ClassificationTrainingArguments, one of each of `more`, and the effective
        recipe, a dict to be saved so that the run repeats from it.

    Raises:
        ValueError, FileNotFoundError: a recipe that is missing or malformed or has a key that isn't a flag; a flag
            with a value that it can't have.
    """
    parser = _Parser(more)
    recipe, line = split_command(argv, more)
    recipe_argv = as_argv(recipe)
    try:
        parser.parse_known_args(recipe_argv)
    except ValueError as error:
        raise ValueError(f"Recipe {argv[0]}: {error}") from None
    return _parse(parser, [*recipe_argv, *line])  # what comes later wins


def parse_recipe(recipe: Mapping[str, Any], more: Sequence[type] = ()) -> tuple[Any, ...]:
    """As `parse_arguments`, of a recipe alone."""
    return _parse(_Parser(more), as_argv(recipe))


def split_command(argv: Sequence[str], more: Sequence[type] = ()) -> tuple[dict[str, Any], list[str]]:
    """The recipe with which a command line begins, empty if it doesn't, and the flags that follow."""
    if not argv or argv[0].startswith("-"):
        return {}, list(argv)
    return read_recipe(find_recipe(argv[0]), more), list(argv[1:])


def flags_of_line(line: Sequence[str]) -> set[str]:
    """The names of the flags on a command line."""
    return {word[2:].partition("=")[0] for word in line if word.startswith("--")}


def _parse(parser: _Parser, argv: list[str]) -> tuple[Any, ...]:
    parsed: Any = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    model_args, data_args, training_args, *others = parsed
    recipe = _effective_recipe(_given_flags(parser, argv), model_args, data_args, training_args, *others)
    training_args = _with_token_in_environment(training_args)
    # a recipe may name its data as $HF_MAMBA_DATA/...; what is saved keeps the name
    model_args, data_args, *others = map(_with_variables, (model_args, data_args, *others))
    return (model_args, data_args, training_args, *others, recipe)


def _given_flags(parser: _Parser, argv: Sequence[str]) -> list[str]:
    """The names of the flags on a command line, in the parser's order."""
    words = {word.split("=")[0] for word in argv}
    return [action.dest for action in parser._actions if words & {*action.option_strings}]


def _with_variables(arguments: Any) -> Any:
    texts = {
        f.name: value for f in dataclasses.fields(arguments) if isinstance(value := getattr(arguments, f.name), str)
    }
    return with_changes(arguments, **{name: expand_variables(name, value) for name, value in texts.items()})


def _with_token_in_environment(training_args: ClassificationTrainingArguments) -> ClassificationTrainingArguments:
    """A secret must not be saved beside a checkpoint: --hub_token moves to HF_TOKEN, which the Hub's client reads."""
    if training_args.hub_token is None:
        return training_args
    os.environ["HF_TOKEN"] = training_args.hub_token
    return with_changes(training_args, hub_token=None)


def as_argv(recipe: Mapping[str, Any]) -> list[str]:
    """A recipe as command-line flags."""
    argv = []
    for name, value in recipe.items():
        if isinstance(value, list):
            argv += [f"--{name}", *map(str, value)] if value else []
        elif value is not None:
            argv.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return argv


def _effective_recipe(
    given: Sequence[str],
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: ClassificationTrainingArguments,
    *more: Any,
) -> dict[str, Any]:
    """
    What repeats the run: every flag of ours with the value it has, defaults too (they may change between versions),
    and of transformers' own flags those `given` by the recipe or the command line.
    """
    ours = [f.name for f in dataclasses.fields(training_args) if f.name in type(training_args).__annotations__]
    ours = [name for name in ours if name not in _OF_THE_MACHINE]
    recipe = {
        f.name: getattr(args, f.name) for args in (data_args, model_args, *more) for f in dataclasses.fields(args)
    }
    for name in [*ours, "seed", *given]:
        if name not in recipe and name not in _NOT_IN_RECIPE:
            value = getattr(training_args, name)
            recipe[name] = getattr(value, "value", value)  # enums by their value
    return {name: value for name, value in recipe.items() if value is not None}


def find_recipe(name: str) -> Path:
    """
    A recipe by its path, or by its name among the project's own: `quickstart`, `paper/twitter`.

    Raises:
        FileNotFoundError: there is no such recipe; names the nearest, and all.
    """
    path = Path(name)
    candidates = [path]
    if not path.is_absolute() and ".." not in path.parts:
        candidates += [RECIPES_FOLDER / f"{name}{suffix}" for suffix in ("", *RECIPE_SUFFIXES)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = own_recipes()
    by_last_part = {own.rpartition("/")[2]: own for own in known}
    meant = nearest(path.stem, by_last_part)
    hint = "" if meant is None else f" Did you mean {by_last_part[str(meant)]!r}?"
    raise FileNotFoundError(
        f"There is no recipe {name!r}.{hint} The project's own are {', '.join(known)}; a recipe of yours is given by "
        "its path. Flags start with --."
    )


def own_recipes() -> list[str]:
    """The names of the project's own recipes, those of the paper's tables last."""
    recipes = [path.relative_to(RECIPES_FOLDER) for path in RECIPES_FOLDER.rglob("*.yaml")]
    return [path.with_suffix("").as_posix() for path in sorted(recipes, key=lambda path: (len(path.parts), path))]


def read_recipe(path: str | Path, more: Sequence[type] = (), _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """
    The recipe at `path` as a flat dict, with what it inherits through `base:`.

    Args:
        path: the file
        more: dataclasses of further flags that it may set

    Raises:
        FileNotFoundError, ValueError: it or a base is missing or malformed, or has a key that isn't a flag.
    """
    path = Path(path)
    if path.resolve() in _seen:
        raise ValueError(f"Recipe {path} inherits from itself through `base:`; break the circle.")
    recipe = read_mapping(path, "Recipe", fix="Write it as `flag: value`, one a line.")
    base = recipe.pop("base", None)
    known = all_flags(more)
    for key in recipe:
        if key not in known:
            hint = did_you_mean(key, known, otherwise=" `run_classification.py --help` lists the flags.")
            raise ValueError(f"Recipe {path}: {key!r} isn't a flag.{hint}")
    if base is None:
        return recipe
    base_path = path.parent / str(base)
    if not base_path.is_file():
        raise FileNotFoundError(f"Recipe {path} has `base: {base}`, but there is no file {base_path}.")
    return {**read_recipe(base_path, more, (*_seen, path.resolve())), **recipe}


def all_flags(more: Sequence[type] = ()) -> list[str]:
    """The name of every flag, those of the dataclasses `more` too."""
    classes = (ModelArguments, DataArguments, ClassificationTrainingArguments, *more)
    return [f.name for cls in classes for f in dataclasses.fields(cls)]


def shareable_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """
    The recipe without its output folder and without the folders above what it names: these may tell who ran it, and
    exist on no other machine.
    """
    shared = {flag: value for flag, value in recipe.items() if flag != "output_dir"}
    return {flag: without_folders(value) if isinstance(value, str) else value for flag, value in shared.items()}


def without_folders(value: str) -> str:
    """An absolute path as its last part, anything else as it is."""
    return Path(value).name if Path(value).is_absolute() else value
