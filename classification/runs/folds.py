"""K-fold cross-validation, for posts without a split: each fold once the test posts of a model trained on the others.

The runs follow each other as those of `--seeds` do, each an ordinary run of `output_dir/fold-N/recipe.yaml`, which
says `folds: K` and `fold: N` and repeats from that file alone. Posts with the same text (but for case and white space)
are in the same fold: a repeated tweet in training and test would be known by heart. After the last one the predictions
of all folds are put together, every post once, and scored as one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.arguments import DataArguments
from ..evaluation.bootstrap import LEVEL, RESAMPLES
from ..evaluation.metrics import metrics_for
from ..evaluation.predictions import join_predictions, read_predictions
from ..support.processes import on_main_process
from .arguments import ClassificationTrainingArguments
from .seeds import RunRecipe, read_results, run_group, write_summary


FOLDS_RECIPE_FILE = "folds_recipe.yaml"
FOLDS_RESULTS_FILE = "folds_results.json"


def run_folds(
    run_recipe: RunRecipe,
    training_args: ClassificationTrainingArguments,
    data_args: DataArguments,
    recipe: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """
    Runs the folds that aren't finished yet, and summarises all.

    Args:
        run_recipe: runs a recipe
        training_args: read: output_dir, overwrite_output_dir, seed, predictions_format
        data_args: read: folds
        recipe: the effective recipe of the command

    Returns:
        as `run_seeds`, and under "pooled" the metrics of all folds' predictions together, with intervals
    """
    folder, number = Path(training_args.output_dir), data_args.folds or 0
    recipes = {fold: _recipe_of_fold(recipe, fold, folder) for fold in range(1, number + 1)}
    run_group(run_recipe, training_args, recipe, recipes, what="Fold", recipe_file=FOLDS_RECIPE_FILE)

    def summarise() -> dict[str, dict[str, Any]]:
        pooled = _pool(folder, recipes, training_args)
        statistics = read_results(recipes)
        written = {"folds": number, **statistics, "pooled": pooled}
        write_summary(folder / FOLDS_RESULTS_FILE, written, statistics, f"{number} folds")
        print(_in_words(pooled))
        return {**statistics, "pooled": pooled}

    return on_main_process(summarise)  # only it has seen all written


def _recipe_of_fold(recipe: Mapping[str, Any], fold: int, folder: Path) -> dict[str, Any]:
    """The recipe of one fold's run."""
    split_seed = recipe.get("split_seed", recipe["seed"])
    return {**recipe, "fold": fold, "split_seed": split_seed, "output_dir": str(folder / f"fold-{fold}")}


def _pool(
    folder: Path, recipes: Mapping[int, Mapping[str, Any]], training_args: ClassificationTrainingArguments
) -> dict[str, Any]:
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


def _in_words(pooled: Mapping[str, Any]) -> str:
    """The pooled metrics that have an interval, in a line."""
    intervals = [
        f"{name} {value:.4f} ({pooled[f'{name}_low']:.4f} to {pooled[f'{name}_high']:.4f})"
        for name, value in pooled.items()
        if f"{name}_low" in pooled
    ]
    return f"All {pooled['num_posts']:,} posts, each predicted once, with 95 % intervals: {', '.join(intervals)}."
