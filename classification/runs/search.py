"""Hyper-parameter search with optuna: each trial an ordinary run, compared on the validation posts alone.

The trials follow each other, each in `output_dir/trial-N`; what was tried lies in `search.db`, optuna's (SQLite), so
that the same command goes on where it was stopped, in the middle of a trial if need be. The first trial is the recipe
as it stands, if the space contains it; the next ones are drawn by optuna's TPE, which for one --seed draws the same
whether the search was interrupted or not. The test posts are left alone: the recipe of the best trial, which the
search writes, measures on them when it is run.
"""

import csv
import gc
import json
import logging
import shutil
from pathlib import Path

import yaml
from accelerate.utils import broadcast_object_list
from huggingface_hub.errors import StrictDataclassError

from ..support.extras import require
from ..support.markdown import markdown_table
from ..support.run_files import RECIPE_FILE, RESULTS_FILE
from .arguments import as_argv
from .output_dir import open_group
from .search_space import read_space, suggest, values_of


logger = logging.getLogger(__name__)

SEARCH_RECIPE_FILE = "search_recipe.yaml"
STORAGE_FILE = "search.db"
TRIALS_FILES = ("trials.csv", "trials.md")
BEST_RECIPE_FILE = "best_recipe.yaml"

_OF_SEARCH = ("search_trials", "search_space")


def check_search(training_args, model_args):
    """
    Puts the space in place of --search_space.

    Raises:
        ValueError: a search that can't be, beside flags of a single run, or without optuna.
    """
    trials = training_args.search_trials
    if trials is None:
        if training_args.search_space is not None and training_args.do_train:
            raise ValueError("--search_space needs --search_trials, the number of runs: give that too.")
        return
    if trials < 1:
        raise ValueError(f"--search_trials {trials}: give 1 or more runs, or leave it out.")
    require("optuna", "search", "--search_trials")
    if not training_args.do_train:
        raise ValueError("--search_trials trains a model in each trial: give --do_train.")
    if not training_args.load_best_model_at_end:
        raise ValueError(
            "--search_trials compares trials by their best pass on the validation posts: it needs "
            "--load_best_model_at_end and an --eval_strategy."
        )
    if training_args.push_to_hub:
        raise ValueError("--push_to_hub shares one model: leave it out, and run best_recipe.yaml with it afterwards.")
    training_args.search_space = read_space(
        training_args.search_space,
        from_checkpoint=model_args.model_name_or_path is not None,
        metric=training_args.metric_for_best_model,
    )


def search(run, training_args, recipe):
    """
    Runs the trials that are missing, and writes the tables and the recipe of the best one.

    Args:
        run: runs a command line, a list of flags
        training_args: read: search_trials, search_space, seed, output_dir, overwrite_output_dir, process_index
        recipe: the effective recipe of the command

    Returns:
        {"best_trial": 3, "best_value": 0.9, "best_params": {...}}
    """
    is_main_process = training_args.process_index == 0
    study = None
    if is_main_process:
        study = Study(training_args, recipe)
    while True:
        # The main process decides, the others run what it says
        trial = broadcast_object_list([study.next_trial() if is_main_process else None])[0]
        if trial is None:
            break
        number, values, recipe_now = trial
        logger.info(f"Trial {number} ({number + 1} of {training_args.search_trials}): {_in_words(values)}")
        failed = _run_trial(run, recipe_now, number, can_fail=training_args.world_size == 1)
        if is_main_process:
            study.tell(number, failed)
        gc.collect()  # the trainer and its model refer to each other
    return broadcast_object_list([study.summarise() if is_main_process else None])[0]


def _run_trial(run, recipe, number, can_fail):
    """
    Runs a trial unless it is finished. Returns what was wrong with it, None if nothing was. The first trial's mistake
    is likely in the data or the recipe, and with several processes one might not hear of another's: these are raised.
    """
    if (Path(recipe["output_dir"]) / RESULTS_FILE).is_file():  # stopped before optuna was told
        return None
    try:
        run(as_argv(recipe))
    except (ValueError, StrictDataclassError) as error:
        if number == 0 or not can_fail:
            raise
        logger.warning(f"Trial {number} failed, the search goes on: {' '.join(str(error).split())}")
        return str(error)
    return None


class Study:
    """optuna's study in the output folder, as the main process sees it."""

    def __init__(self, training_args, recipe):
        import optuna

        self.optuna, self.args, self.recipe = optuna, training_args, recipe
        self.folder = Path(training_args.output_dir)
        self.space = training_args.search_space
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        saved = {**recipe, "search_space": self.space}
        open_group(training_args, saved, SEARCH_RECIPE_FILE, harmless=("search_trials",))
        if training_args.overwrite_output_dir:
            self._delete()
        # Always maximised: a loss is told as its negative, for only the first trial knows what the metric is
        self.study = optuna.create_study(
            storage=f"sqlite:///{self.folder / STORAGE_FILE}",
            study_name="search",
            direction="maximize",
            load_if_exists=True,
        )

    def _delete(self):
        """What an earlier search left."""
        for path in self.folder.glob("trial-*"):
            if (path / RECIPE_FILE).is_file():
                shutil.rmtree(path)
        for name in (STORAGE_FILE, BEST_RECIPE_FILE, *TRIALS_FILES):
            (self.folder / name).unlink(missing_ok=True)

    def next_trial(self):
        """(number, values, recipe) of a trial that was interrupted, else of a new one; None if there are enough."""
        trials = self.study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state == self.optuna.trial.TrialState.RUNNING]
        if running:
            values = running[0].user_attrs.get("values") or running[0].params
            return self._as_run(running[0].number, values)
        if len(trials) >= self.args.search_trials:
            return None
        if not trials and (values := values_of(self.recipe, self.space)) is not None:
            self.study.enqueue_trial(values)
        # seeded anew for each trial: what is drawn doesn't depend on where the search was interrupted
        self.study.sampler = self.optuna.samplers.TPESampler(seed=self.args.seed + len(trials))
        trial = self.study.ask()
        values = suggest(trial, self.space)
        trial.set_user_attr("values", values)
        return self._as_run(trial.number, values)

    def _as_run(self, number, values):
        recipe = {flag: value for flag, value in self.recipe.items() if flag not in _OF_SEARCH}
        recipe |= values
        recipe |= {"do_eval": True, "do_predict": False, "output_dir": str(self.folder / f"trial-{number}")}
        return number, values, recipe

    def tell(self, number, failed):
        """Tells optuna how a trial ended, and deletes the checkpoints that a finished run has no use for."""
        folder = self.folder / f"trial-{number}"
        results = {} if failed else json.loads((folder / RESULTS_FILE).read_text("utf-8"))
        value = results.get("train_best_value")
        if failed:
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

    def _write(self):
        """The tables of all trials, best first, and the recipe of the best."""
        state = self.optuna.trial.TrialState
        finished = self.study.get_trials(deepcopy=False, states=(state.COMPLETE, state.FAIL))
        finished.sort(key=lambda trial: (trial.value is None, -(trial.value or 0), trial.number))
        metric, sign = self.study.user_attrs.get("metric", "value"), self.study.user_attrs.get("sign", 1)
        rows = [["trial", metric, *self.space]]
        for trial in finished:
            value = "failed" if trial.value is None else sign * trial.value
            rows.append([trial.number, value, *(trial.user_attrs["values"][name] for name in self.space)])
        with (self.folder / TRIALS_FILES[0]).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        text = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
        (self.folder / TRIALS_FILES[1]).write_text(markdown_table(text) + "\n", "utf-8")
        if finished and finished[0].value is not None:
            best = {flag: value for flag, value in self.recipe.items() if flag not in _OF_SEARCH}
            best |= finished[0].user_attrs["values"] | {"output_dir": str(self.folder / "best")}
            content = yaml.safe_dump(best, sort_keys=False, allow_unicode=True)
            (self.folder / BEST_RECIPE_FILE).write_text(content, "utf-8")

    def summarise(self):
        """Prints the table and what to do with it. Returns what `search` does."""
        self._write()
        if "metric" not in self.study.user_attrs:
            raise ValueError(f"No trial came to its end: see {self.folder / TRIALS_FILES[1]}.")
        best, attrs = self.study.best_trial, self.study.user_attrs
        value, values = attrs["sign"] * best.value, best.user_attrs["values"]
        print(f"\n{(self.folder / TRIALS_FILES[1]).read_text('utf-8')}")
        print(
            f"Trial {best.number} was best: validation {attrs['metric']} {value:.4f} with {_in_words(values)}. Chosen "
            "as the best of several, that number flatters. To train and test it: run_classification.py "
            f"{self.folder / BEST_RECIPE_FILE}"
        )
        return {"best_trial": best.number, "best_value": value, "best_params": values}


def _in_words(values):
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
