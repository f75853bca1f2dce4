"""K-fold cross-validation, for posts without a split: each fold once the test posts of a model trained on the others.

The runs follow each other as those of `--seeds` do, each an ordinary run of `output_dir/fold-N/recipe.yaml`, which
says `folds: K` and `fold: N` and repeats from that file alone. Posts with the same text (but for case and white space)
are in the same fold: a repeated tweet in training and test would be known by heart. After the last one the predictions
of all folds are put together, every post once, and scored as one.
"""

from pathlib import Path

import numpy as np
from accelerate.utils import broadcast_object_list

from ..evaluation.bootstrap import LEVEL, RESAMPLES
from ..evaluation.metrics import metrics_for
from ..evaluation.predictions import join_predictions, read_predictions
from .seeds import read_results, run_group, write_summary


FOLDS_RECIPE_FILE = "folds_recipe.yaml"
FOLDS_RESULTS_FILE = "folds_results.json"


def check_folds(training_args, data_args):
    """
    Raises:
        ValueError: --folds or --fold that can't be, or beside flags that they exclude.
    """
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
            raise ValueError(f"--folds deals the training posts alone: leave out --{flag}, or --folds.")
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


def run_folds(run, training_args, data_args, recipe):
    """
    Runs the folds that aren't finished yet, and summarises all.

    Args:
        run: runs a command line, a list of flags
        training_args: read: output_dir, overwrite_output_dir, process_index, seed, predictions_format
        data_args: read: folds
        recipe: the effective recipe of the command

    Returns:
        as `run_seeds`, and under "pooled" the metrics of all folds' predictions together, with intervals
    """
    folder = Path(training_args.output_dir)
    recipes = {fold: _recipe_of_fold(recipe, fold, folder) for fold in range(1, data_args.folds + 1)}
    run_group(run, training_args, recipe, recipes, what="Fold", recipe_file=FOLDS_RECIPE_FILE)
    found = [None]
    if training_args.process_index == 0:  # only it has seen all written
        pooled = _pool(folder, recipes, training_args)
        statistics = read_results(recipes)
        path = folder / FOLDS_RESULTS_FILE
        write_summary(
            path, {"folds": data_args.folds, **statistics, "pooled": pooled}, statistics, f"{len(recipes)} folds"
        )
        print(_in_words(pooled))
        found = [{**statistics, "pooled": pooled}]
    return broadcast_object_list(found)[0]


def _recipe_of_fold(recipe, fold, folder):
    """The recipe of one fold's run."""
    split_seed = recipe.get("split_seed", recipe["seed"])
    return recipe | {"fold": fold, "split_seed": split_seed, "output_dir": str(folder / f"fold-{fold}")}


def _pool(folder, recipes, training_args):
    """Writes the predictions of all folds as one file, and scores them."""
    name = f"predictions.{training_args.predictions_format}"
    paths = [Path(recipe["output_dir"]) / name for recipe in recipes.values()]
    parts = [read_predictions(paths[0])]
    parts += [read_predictions(path, parts[0].label_names) for path in paths[1:]]
    join_predictions(folder / name, paths)
    metrics = metrics_for(parts[0].problem_type, parts[0].label_names)
    predictions = np.concatenate([part.predictions for part in parts])
    truth = np.concatenate([part.truth for part in parts])
    scores = metrics.compute(predictions=predictions, references=truth)
    for metric, ends in metrics.intervals(predictions, truth, seed=training_args.seed).items():
        scores |= {f"{metric}_{end}": value for end, value in zip(("low", "high"), ends)}
    intervals = {"level": LEVEL, "resamples": RESAMPLES, "seed": training_args.seed}
    return scores | {"intervals": {"method": "percentile bootstrap over posts", **intervals}}


def _in_words(pooled):
    """The pooled metrics that have an interval, in a line."""
    told = [
        f"{name} {value:.4f} ({pooled[f'{name}_low']:.4f} to {pooled[f'{name}_high']:.4f})"
        for name, value in pooled.items()
        if f"{name}_low" in pooled
    ]
    return f"All {pooled['num_posts']:,} posts, each predicted once, with 95 % intervals: {', '.join(told)}."
