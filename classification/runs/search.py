"""Hyper-parameter search with optuna: each trial an ordinary run, compared on the validation posts alone.

The trials follow each other, each in `output_dir/trial-N`; what was tried lies in `search.db`, optuna's (SQLite), so
that the same command goes on where it was stopped, in the middle of a trial if need be. The first trial is the recipe
as it stands, if the space contains it; the next ones are sampled by optuna's TPE, the same ones for the same --seed
whether the search was interrupted or not. The test posts are left alone: the recipe of the best trial, which the
search writes, measures on them when it is run.
"""

import csv
import gc
import io
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError

from ..support.files import read_mapping, write_text, write_yaml
from ..support.markdown import markdown_table
from ..support.messages import one_line
from ..support.processes import on_main_process
from ..support.run_files import RECIPE_FILE, RESULTS_FILE
from .arguments import ClassificationTrainingArguments
from .output_dir import open_group
from .search_space import read_space, suggest, values_of
from .seeds import RunRecipe


logger = logging.getLogger(__name__)

SEARCH_RECIPE_FILE = "search_recipe.yaml"
STORAGE_FILE = "search.db"
TRIALS_FILES = ("trials.csv", "trials.md")
BEST_RECIPE_FILE = "best_recipe.yaml"

_OF_SEARCH = ("search_trials", "search_space")


@dataclass
class Trial:
    """
    A run of the search.

    Args:
        number: from 0 on
        values: what it tries, {flag: value}
        recipe: of the run
    """

    number: int
    values: dict[str, Any]
    recipe: dict[str, Any]


def search(
    run_recipe: RunRecipe, training_args: ClassificationTrainingArguments, recipe: dict[str, Any]
) -> dict[str, Any]:
    """
    Runs the trials that are missing, and writes the tables and the recipe of the best one.

    Args:
        run_recipe: runs a recipe
        training_args: read: search_trials, search_space, metric_for_best_model, seed, output_dir, overwrite_output_dir
        recipe: the effective recipe of the command

    Returns:
        {"best_trial": 3, "best_value": 0.9, "best_params": {...}}
    """
    study = Study(training_args, recipe) if PartialState().is_main_process else None  # the other processes follow
    while (trial := on_main_process(lambda: None if study is None else study.next_trial())) is not None:
        logger.info(
            f"Trial {trial.number} ({trial.number + 1} of {training_args.search_trials}): {_in_words(trial.values)}"
        )
        error = _run_trial(run_recipe, trial, can_fail=training_args.world_size == 1)
        if study is not None:
            study.tell(trial.number, error)
        gc.collect()  # the trainer and its model refer to each other
    return on_main_process(lambda: {} if study is None else study.summarise())


def _run_trial(run_recipe: RunRecipe, trial: Trial, can_fail: bool) -> str | None:
    """
    Runs a trial unless it is finished. Returns what was wrong with it, None if nothing was. The first trial's mistake
    is likely in the data or the recipe, and with several processes one might not hear of another's: these are raised.
    """
    if (Path(trial.recipe["output_dir"]) / RESULTS_FILE).is_file():  # interrupted before optuna heard of it
        return None
    try:
        run_recipe(trial.recipe)
    except (ValueError, StrictDataclassError) as error:
        if trial.number == 0 or not can_fail:
            raise
        logger.warning(f"Trial {trial.number} failed, the search goes on: {one_line(error)}")
        return str(error)
    return None


class Study:
    """
    optuna's study in the output folder, as the main process sees it.

    Args:
        training_args: as for `search`
        recipe: the effective recipe of the command
    """

    def __init__(self, training_args: ClassificationTrainingArguments, recipe: Mapping[str, Any]) -> None:
        import optuna

        self.optuna, self.args, self.recipe = optuna, training_args, recipe
        self.folder = Path(training_args.output_dir)
        self.space = read_space(
            training_args.search_space,
            from_checkpoint="model_name_or_path" in recipe,
            metric=training_args.metric_for_best_model,
        )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        saved = {**recipe, "search_space": self.space}
        open_group(training_args, saved, SEARCH_RECIPE_FILE, harmless=("search_trials",))
        if training_args.overwrite_output_dir:
            self._delete()
        # Always maximised: of a loss the negative is reported, for only the first trial knows what the metric is
        self.study = optuna.create_study(
            storage=f"sqlite:///{self.folder / STORAGE_FILE}",
            study_name="search",
            direction="maximize",
            load_if_exists=True,
        )

    def _delete(self) -> None:
        """Deletes what an earlier search left."""
        for path in self.folder.glob("trial-*"):
            if (path / RECIPE_FILE).is_file():
                shutil.rmtree(path)
        for name in (STORAGE_FILE, BEST_RECIPE_FILE, *TRIALS_FILES):
            (self.folder / name).unlink(missing_ok=True)

    def next_trial(self) -> Trial | None:
        """A trial that was interrupted, else a new one; None if there are enough."""
        trials = self.study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state == self.optuna.trial.TrialState.RUNNING]
        if running:
            values = running[0].user_attrs.get("values") or running[0].params
            return self._as_run(running[0].number, values)
        if len(trials) >= (self.args.search_trials or 0):
            return None
        if not trials and (values := values_of(self.recipe, self.space)) is not None:
            self.study.enqueue_trial(values)
        # seeded anew for each trial: what is sampled doesn't depend on where the search was interrupted
        self.study.sampler = self.optuna.samplers.TPESampler(seed=self.args.seed + len(trials))
        trial = self.study.ask()
        values = suggest(trial, self.space)
        trial.set_user_attr("values", values)
        return self._as_run(trial.number, values)

    def _as_run(self, number: int, values: dict[str, Any]) -> Trial:
        recipe = {flag: value for flag, value in self.recipe.items() if flag not in _OF_SEARCH}
        recipe |= values
        recipe |= {"do_eval": True, "do_predict": False, "output_dir": str(self.folder / f"trial-{number}")}
        return Trial(number, values, recipe)

    def tell(self, number: int, error: str | None) -> None:
        """
        Reports to optuna how a trial ended, and deletes the checkpoints that a finished run has no use for.

        Args:
            number: of the trial
            error: what was wrong with it, None if nothing was

        Raises:
            ValueError: it has measured nothing on validation posts.
        """
        folder = self.folder / f"trial-{number}"
        results = read_mapping(folder / RESULTS_FILE) if error is None else {}
        value = results.get("train_best_value")
        if error is not None:
            self.study.tell(number, state=self.optuna.trial.TrialState.FAIL)
        elif value is None:
            raise ValueError("--search_trials compares trials on validation posts: give some.")
        else:
            self.study.set_user_attr("metric", results["train_best_metric"])
            self.study.set_user_attr("sign", sign := 1 if results["train_best_is"] == "max" else -1)
            self.study.tell(number, sign * value)
        for path in folder.glob("checkpoint-*"):
            shutil.rmtree(path)
        self._write()

    def _write(self) -> None:
        """Writes the tables of all trials, best first, and the recipe of the best."""
        state = self.optuna.trial.TrialState
        finished = self.study.get_trials(deepcopy=False, states=(state.COMPLETE, state.FAIL))
        finished.sort(key=lambda trial: (trial.value is None, -(trial.value or 0), trial.number))
        metric, sign = self.study.user_attrs.get("metric", "value"), self.study.user_attrs.get("sign", 1)
        rows: list[list[Any]] = [["trial", metric, *self.space]]
        for trial in finished:
            value = "failed" if trial.value is None else sign * trial.value
            rows.append([trial.number, value, *(trial.user_attrs["values"][name] for name in self.space)])
        table = io.StringIO(newline="")
        csv.writer(table).writerows(rows)
        write_text(self.folder / TRIALS_FILES[0], table.getvalue())
        cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
        write_text(self.folder / TRIALS_FILES[1], markdown_table(cells) + "\n")
        if finished and finished[0].value is not None:
            best = {flag: value for flag, value in self.recipe.items() if flag not in _OF_SEARCH}
            best |= finished[0].user_attrs["values"] | {"output_dir": str(self.folder / "best")}
            write_yaml(self.folder / BEST_RECIPE_FILE, best)

    def summarise(self) -> dict[str, Any]:
        """Prints the table and what to do with it. Returns what `search` does."""
        self._write()
        if "metric" not in self.study.user_attrs:
            raise ValueError(f"No trial was finished: see {self.folder / TRIALS_FILES[1]}.")
        best, attrs = self.study.best_trial, self.study.user_attrs
        value, values = attrs["sign"] * best.value, best.user_attrs["values"]
        print(f"\n{(self.folder / TRIALS_FILES[1]).read_text('utf-8')}")
        print(
            f"Trial {best.number} was best: validation {attrs['metric']} {value:.4f} with {_in_words(values)}. Chosen "
            "as the best of several, that number flatters. To train and test it: run_classification.py "
            f"{self.folder / BEST_RECIPE_FILE}"
        )
        return {"best_trial": best.number, "best_value": value, "best_params": values}


def _in_words(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
