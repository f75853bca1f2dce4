"""One recipe run with several seeds: each run in its own folder, then mean and standard deviation.

The runs follow each other in this process (or, under torchrun, in these processes). Each is an ordinary run of
`output_dir/seed-N/recipe.yaml` and repeats from that file alone. The posts set aside are the same for all of
them, so that the deviation is that of training: initial weights, the order of posts, dropout.
"""

import gc
import json
import logging
import statistics
from pathlib import Path

from accelerate.utils import broadcast_object_list

from ..support.markdown import markdown_table
from ..support.run_files import RECIPE_FILE, RESULTS_FILE
from .arguments import as_argv
from .output_dir import differing_flags, open_group


logger = logging.getLogger(__name__)

SEEDS_RECIPE_FILE = "seeds_recipe.yaml"
SEEDS_RESULTS_FILE = "seeds_results.json"

_SPLITS = ("validation", "test")
# What Trainer reports beside the metrics: of the machine, or the same for every seed.
_NO_METRICS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "epoch", "num_posts")


def check_seeds(training_args):
    """
    Raises:
        ValueError: --seeds that can't be, or beside flags of a single run.
    """
    seeds = training_args.seeds
    if seeds is None:
        return
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"--seeds {' '.join(map(str, seeds))}: give different numbers of 0 or more.")
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


def run_seeds(run, training_args, recipe):
    """
    Runs what isn't finished yet, and summarises all.

    Args:
        run: runs a command line, a list of flags
        training_args: read: seeds, output_dir, overwrite_output_dir, process_index
        recipe: the effective recipe of the command

    Returns:
        {"validation": {"accuracy": {"mean": 0.9, "sd": 0.01, "min": ..., "max": ..., "values": [...]}, ...}, ...}
    """
    folder = Path(training_args.output_dir)
    recipes = {seed: recipe_of_seed(recipe, seed, folder) for seed in training_args.seeds}
    run_group(run, training_args, recipe, recipes, what="Seed", recipe_file=SEEDS_RECIPE_FILE, harmless=("seeds",))
    found = [None]
    if training_args.process_index == 0:  # only it has seen all written
        found = [read_results(recipes)]
        write_summary(
            folder / SEEDS_RESULTS_FILE, {"seeds": list(recipes), **found[0]}, found[0], f"{len(recipes)} seeds"
        )
    return broadcast_object_list(found)[0]


def run_group(run, training_args, recipe, recipes, *, what, recipe_file, harmless=()):
    """
    Runs what isn't finished yet of several runs of one command.

    Args:
        run: runs a command line, a list of flags
        training_args: read: output_dir, overwrite_output_dir, process_index
        recipe: the effective recipe of the command
        recipes: number -> the recipe of that run, with its own output_dir
        what: the name of such a run, "Seed"
        recipe_file, harmless: as for `open_group`
    """
    unfinished = [None]
    if training_args.process_index == 0:
        open_group(training_args, recipe, recipe_file, harmless)
        unfinished = [_unfinished(recipes, training_args.overwrite_output_dir)]
    unfinished = broadcast_object_list(unfinished)[0]
    for place, (number, recipe_now) in enumerate(recipes.items(), start=1):
        name = f"{what} {number} ({place} of {len(recipes)})"
        if number not in unfinished:
            logger.info(f"{name} is finished, in {recipe_now['output_dir']}.")
            continue
        logger.info(f"{name}:")
        overwrite = training_args.overwrite_output_dir and (Path(recipe_now["output_dir"]) / RECIPE_FILE).is_file()
        run([*as_argv(recipe_now), *(["--overwrite_output_dir"] if overwrite else [])])
        gc.collect()  # the trainer and its model refer to each other


def recipe_of_seed(recipe, seed, folder):
    """The recipe of one seed's run."""
    one = {flag: value for flag, value in recipe.items() if flag != "seeds"}
    return one | {
        "seed": seed,
        "split_seed": recipe.get("split_seed", recipe["seed"]),
        "output_dir": str(folder / f"seed-{seed}"),
    }


def _unfinished(recipes, overwrite):
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


def read_results(recipes):
    """The statistics of finished runs, see `over_seeds`."""
    return over_seeds(
        [json.loads((Path(recipe["output_dir"]) / RESULTS_FILE).read_text("utf-8")) for recipe in recipes.values()]
    )


def write_summary(path, written, statistics_of_split, what):
    """Writes `written` as JSON, and prints the statistics of `what`, "5 seeds", with where they are."""
    path.write_text(json.dumps(written, indent=4) + "\n", "utf-8")
    print(f"\n{seeds_table(statistics_of_split)}\n\n{what}; sd is the sample's (n - 1).")
    print(f"Everything is in {path.parent}, these numbers in {path.name}.")


def over_seeds(results):
    """
    Args:
        results: of each seed, what all_results.json holds, {"test_accuracy": 0.9, ...}

    Returns:
        as `run_seeds`; of metrics that every seed has. `sd` is None for a single seed
    """
    found = {}
    for split in _SPLITS:
        names = [name.removeprefix(f"{split}_") for name in results[0] if name.startswith(f"{split}_")]
        for name in names:
            values = [result.get(f"{split}_{name}") for result in results]
            if name.endswith(_NO_METRICS) or not all(type(value) in (int, float) for value in values):
                continue
            found.setdefault(split, {})[name] = {
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                "min": min(values),
                "max": max(values),
                "values": values,
            }
    return found


def seeds_table(statistics_of_split):
    """A Markdown table of what `over_seeds` returns; the ends of each seed's own interval are left to the files."""
    rows = [["split", "metric", "mean ± sd", "min", "max"]]
    for split, metrics in statistics_of_split.items():
        for name, found in metrics.items():
            if not name.endswith(("_low", "_high")):
                sd = "" if found["sd"] is None else f" ± {found['sd']:.4f}"
                rows.append([split, name, f"{found['mean']:.4f}{sd}", f"{found['min']:.4f}", f"{found['max']:.4f}"])
    return markdown_table(rows)
