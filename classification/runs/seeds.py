"""One recipe run with several seeds: each run in its own folder, then mean and standard deviation.

The runs follow each other in this process (or, under torchrun, in these processes). Each is an ordinary run of
`output_dir/seed-N/recipe.yaml` and repeats from that file alone. The posts set aside are the same for all of
them, so that the deviation is that of training: initial weights, the order of posts, dropout.
"""

import gc
import logging
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..support.files import read_mapping, write_json
from ..support.markdown import markdown_table
from ..support.processes import on_main_process
from ..support.run_files import RECIPE_FILE, RESULTS_FILE
from .arguments import ClassificationTrainingArguments
from .output_dir import differing_flags, open_group


RunRecipe = Callable[[dict[str, Any]], Any]  # runs a recipe as a command of its own would
Statistics = dict[str, dict[str, dict[str, Any]]]  # split -> metric -> {"mean": ..., "sd": ..., ...}

logger = logging.getLogger(__name__)

SEEDS_RECIPE_FILE = "seeds_recipe.yaml"
SEEDS_RESULTS_FILE = "seeds_results.json"

_SPLITS = ("validation", "test")
# What Trainer reports beside the metrics: of the machine, or the same for every seed.
_NO_METRICS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "epoch", "num_posts")


def run_seeds(
    run_recipe: RunRecipe, training_args: ClassificationTrainingArguments, recipe: dict[str, Any]
) -> Statistics:
    """
    Runs what isn't finished yet, and summarises all.

    Args:
        run_recipe: runs a recipe
        training_args: read: seeds, output_dir, overwrite_output_dir
        recipe: the effective recipe of the command

    Returns:
        {"validation": {"accuracy": {"mean": 0.9, "sd": 0.01, "min": ..., "max": ..., "values": [...]}, ...}, ...}
    """
    folder = Path(training_args.output_dir)
    recipes = {seed: recipe_of_seed(recipe, seed, folder) for seed in training_args.seeds or ()}
    run_group(
        run_recipe, training_args, recipe, recipes, what="Seed", recipe_file=SEEDS_RECIPE_FILE, harmless=("seeds",)
    )

    def summarise() -> Statistics:
        results = read_results(recipes)
        written = {"seeds": list(recipes), **results}
        write_summary(folder / SEEDS_RESULTS_FILE, written, results, f"{len(recipes)} seeds")
        return results

    return on_main_process(summarise)  # only it has seen all written


def run_group(
    run_recipe: RunRecipe,
    training_args: ClassificationTrainingArguments,
    recipe: Mapping[str, Any],
    recipes: Mapping[int, dict[str, Any]],
    *,
    what: str,
    recipe_file: str,
    harmless: Collection[str] = (),
) -> None:
    """
    Runs what isn't finished yet of several runs of one command.

    Args:
        run_recipe: runs a recipe
        training_args: read: output_dir, overwrite_output_dir
        recipe: the effective recipe of the command
        recipes: number -> the recipe of that run, with its own output_dir
        what: the name of such a run, "Seed"
        recipe_file, harmless: as for `open_group`
    """
    overwrite = training_args.overwrite_output_dir

    def open_folder() -> list[int]:
        open_group(training_args, recipe, recipe_file, harmless)
        return _unfinished(recipes, overwrite)

    unfinished = on_main_process(open_folder)
    for place, (number, recipe_now) in enumerate(recipes.items(), start=1):
        name = f"{what} {number} ({place} of {len(recipes)})"
        if number not in unfinished:
            logger.info(f"{name} is finished, in {recipe_now['output_dir']}.")
            continue
        logger.info(f"{name}:")
        earlier = overwrite and (Path(recipe_now["output_dir"]) / RECIPE_FILE).is_file()
        run_recipe(recipe_now | ({"overwrite_output_dir": True} if earlier else {}))
        gc.collect()  # the trainer and its model refer to each other


def recipe_of_seed(recipe: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """The recipe of one seed's run."""
    one = {flag: value for flag, value in recipe.items() if flag != "seeds"}
    return one | {
        "seed": seed,
        "split_seed": recipe.get("split_seed", recipe["seed"]),
        "output_dir": str(folder / f"seed-{seed}"),
    }


def _unfinished(recipes: Mapping[int, Mapping[str, Any]], overwrite: bool) -> list[int]:
    """The seeds that are still to be run. A finished run of another recipe is an error."""
    unfinished = []
    for seed, recipe in recipes.items():
        folder = Path(recipe["output_dir"])
        if overwrite or not (folder / RESULTS_FILE).is_file():
            unfinished.append(seed)
        elif differing := differing_flags(folder / RECIPE_FILE, recipe):
            raise ValueError(
                f"{folder} holds a finished run of another recipe ({differing}): give another --output_dir, or "
                "--overwrite_output_dir to start over."
            )
    return unfinished


def read_results(recipes: Mapping[int, Mapping[str, Any]]) -> Statistics:
    """The statistics of finished runs, see `over_seeds`."""
    return over_seeds([read_mapping(Path(recipe["output_dir"]) / RESULTS_FILE) for recipe in recipes.values()])


def write_summary(path: Path, written: Mapping[str, Any], statistics_of_split: Statistics, what: str) -> None:
    """Writes `written` as JSON, and prints the statistics of `what`, "5 seeds", with where they are."""
    write_json(path, written, indent=4)
    print(f"\n{seeds_table(statistics_of_split)}\n\n{what}; sd is the sample's (n - 1).")
    print(f"Everything is in {path.parent}, these numbers in {path.name}.")


def over_seeds(results: Sequence[Mapping[str, Any]]) -> Statistics:
    """
    Args:
        results: of each seed, what all_results.json holds, {"test_accuracy": 0.9, ...}

    Returns:
        as `run_seeds`; of metrics that every seed has. `sd` is None for a single seed
    """
    statistics_of_split: Statistics = {}
    for split in _SPLITS:
        names = [name.removeprefix(f"{split}_") for name in results[0] if name.startswith(f"{split}_")]
        for name in names:
            values: list[Any] = [result.get(f"{split}_{name}") for result in results]
            if name.endswith(_NO_METRICS) or not all(type(value) in (int, float) for value in values):
                continue
            statistics_of_split.setdefault(split, {})[name] = {
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                "min": min(values),
                "max": max(values),
                "values": values,
            }
    return statistics_of_split


def seeds_table(statistics_of_split: Statistics) -> str:
    """A Markdown table of what `over_seeds` returns; the ends of each seed's own interval are left to the files."""
    rows = [["split", "metric", "mean ± sd", "min", "max"]]
    for split, metrics in statistics_of_split.items():
        for name, of in metrics.items():
            if not name.endswith(("_low", "_high")):
                sd = "" if of["sd"] is None else f" ± {of['sd']:.4f}"
                rows.append([split, name, f"{of['mean']:.4f}{sd}", f"{of['min']:.4f}", f"{of['max']:.4f}"])
    return markdown_table(rows)
