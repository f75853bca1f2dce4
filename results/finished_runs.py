"""What finished runs measured, read from their output folders: all that a line of measured.jsonl says of the runs."""

import datetime
import re
from dataclasses import dataclass
from pathlib import Path

from ledger_rows import summarise

from hf_mamba.classification.data.sources import SPLIT_NAMES
from hf_mamba.classification.evaluation.metrics import DEFAULT_METRIC, METRIC_NAMES
from hf_mamba.classification.runs.folds import FOLDS_RECIPE_FILE, FOLDS_RESULTS_FILE
from hf_mamba.classification.runs.output_dir import differing_flags
from hf_mamba.classification.runs.seeds import SEEDS_RECIPE_FILE, SEEDS_RESULTS_FILE
from hf_mamba.classification.support.files import read_mapping
from hf_mamba.classification.support.run_files import RECIPE_FILE, REPORT_FILES, RESULTS_FILE


MAJORITY = {"accuracy": "majority_accuracy", "f1_micro": "majority_f1_micro", "rmse": "mean_rmse"}
DATA_FLAGS = ("dataset_name", "train_file", "validation_file", "test_file", "image_dir")
# Of a folder of several runs: its recipe, its results, and the folders of the runs
GROUPS = (
    (SEEDS_RECIPE_FILE, SEEDS_RESULTS_FILE, lambda recipe: [f"seed-{seed}" for seed in recipe["seeds"]]),
    (FOLDS_RECIPE_FILE, FOLDS_RESULTS_FILE, lambda recipe: [f"fold-{n}" for n in range(1, recipe["folds"] + 1)]),
)


class Unfinished(ValueError):
    """A folder whose runs have not ended."""


@dataclass
class Run:
    """
    A finished run.

    Args:
        folder: its output folder
        recipe: recipe.yaml
        results: all_results.json
        report: of the test posts, else of the validation posts
    """

    folder: Path
    recipe: dict
    results: dict
    report: dict

    @property
    def metrics(self):
        """The report's, {name: number}."""
        return self.report["metrics"]


def run_folders(folder):
    """
    The folders of the runs in an output folder, one, or one for each seed or fold.

    Raises:
        Unfinished: not all of them have ended.
        ValueError: it isn't an output folder.
    """
    folder = Path(folder)
    for recipe_file, results_file, names_of in GROUPS:
        if not (folder / recipe_file).is_file():
            continue
        runs = [folder / name for name in names_of(read_mapping(folder / recipe_file))]
        expected = [*(run / RESULTS_FILE for run in runs), folder / results_file]
        missing = [file for file in expected if not file.is_file()]
        if missing:
            raise Unfinished(f"{folder} is not finished: there is no {missing[0]}. Repeat its command, which goes on.")
        return runs
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(
            f"{folder} is not an output folder of a run: it has no {RECIPE_FILE} and no {SEEDS_RECIPE_FILE}."
        )
    if not (folder / RESULTS_FILE).is_file():
        raise Unfinished(f"{folder} is not finished: it has no {RESULTS_FILE}. Repeat its command, which goes on.")
    return [folder]


def read_runs(folders, *, folds=False):
    """
    The runs in `folders`, which are of one row.

    Raises:
        ValueError: a folder isn't a run or isn't finished; the runs are not of one recipe; a seed occurs twice.
    """
    folders = [run for folder in folders for run in run_folders(folder)]
    recipes = [read_mapping(folder / RECIPE_FILE) for folder in folders]
    folds = folds or "fold" in recipes[0]
    check_are_of_one_row(folders, recipes, folds)
    split = "test" if (folders[0] / REPORT_FILES["test"]).is_file() else "validation"
    reports = [folder / REPORT_FILES[split] for folder in folders]
    for report in reports:
        if not report.is_file():
            raise ValueError(f"There is no {report}: the run must have evaluated labelled posts, by --do_predict.")
    return [
        Run(folder, recipe, read_mapping(folder / RESULTS_FILE), read_mapping(report))
        for folder, recipe, report in zip(folders, recipes, reports)
    ]


def check_are_of_one_row(folders, recipes, folds):
    """Refuses runs of different recipes, and runs with the same seed that are not folds."""
    may_differ = ("seed", "split_seed", *((*DATA_FLAGS, "fold") if folds else ()))
    for folder in folders[1:]:
        if differing := differing_flags(folder / RECIPE_FILE, recipes[0], may_differ):
            hint = "" if folds else " For other data of one recipe give --folds."
            raise ValueError(
                f"{folder} is not of the recipe of {folders[0]} ({differing}): record one row at a time.{hint}"
            )
    seeds = [_seed(recipe) for recipe in recipes]
    if len(set(seeds)) < len(seeds) and not folds:
        raise ValueError(f"Seed {max(seeds, key=seeds.count)} occurs twice: runs of one row need different seeds.")


def _seed(recipe):
    return recipe.get("seed", 0)


def measure(folders, *, folds=False):
    """
    What the runs in `folders` measured: those keys of a line of measured.jsonl that the folders alone decide.

    Raises:
        ValueError: as `read_runs`; or a report has no counts of posts.
    """
    runs = read_runs(folders, folds=folds)
    first = runs[0]
    folds = folds or "fold" in first.recipe
    problem_type = first.report["problem_type"]
    metric = DEFAULT_METRIC[problem_type]
    seconds = [run.results.get("train_runtime") for run in runs]
    line = {
        "data": data_in_words(first.recipe, folds),
        "posts": posts_of(runs),
        "split": first.report["split"],
        "metric": metric,
        "over": "folds" if folds else "seeds",
        "seeds": [_seed(run.recipe) for run in runs],
        "scores": _scores([run.metrics for run in runs], METRIC_NAMES[problem_type]),
        "majority": _majority(runs, MAJORITY[metric], folds),
        "parameters": parameters_of(first),
        "date": _ended(runs[-1].folder),
        "train_seconds": None if None in seconds else seconds,
    }
    groups = _groups(runs, metric)
    return line | ({"groups": groups} if groups else {})


def _majority(runs, name, folds):
    """The majority class's score; of folds, whose posts differ, the mean."""
    scores = [run.metrics.get(name) for run in (runs if folds else runs[:1])]
    return None if None in scores else sum(scores) / len(scores)


def _groups(runs, metric):
    """{group: scores} of those groups of posts that all runs report."""
    of_runs = [run.report.get("per_group") or {} for run in runs]
    shared = [name for name in of_runs[0] if all(groups.get(name) for groups in of_runs)]
    return {name: _scores([groups[name] for groups in of_runs], (metric,)) for name in shared}


def _scores(flat, names):
    """Every metric that all runs have, summarised; numbers as read."""
    scores = {}
    for name in names:
        if not all(isinstance(metrics.get(name), int | float) for metrics in flat):
            continue
        ends = [(metrics.get(f"{name}_low"), metrics.get(f"{name}_high")) for metrics in flat]
        complete = all(end is not None for pair in ends for end in pair)
        summary = summarise([metrics[name] for metrics in flat], ends if complete else None)
        scores[name] = {key: _short(value) for key, value in summary.items()}
    return scores


def _short(value):
    """Rounded to six decimals, more than any test set can resolve."""
    if isinstance(value, list):
        return [_short(one) for one in value]
    return None if value is None else round(float(value), 6)


def data_in_words(recipe, folds=False):
    """The data of a recipe, without the folders of the machine."""
    name = recipe.get("dataset_name")
    if name is not None:
        return (
            "built-in posts" + name.removeprefix("builtin").replace(":", ", ") if name.startswith("builtin") else name
        )
    files = {flag: recipe[flag] for flag in ("train_file", "validation_file", "test_file") if recipe.get(flag)}
    short = {flag: _short_path(path) for flag, path in files.items()}
    words = [f"{flag.removesuffix('_file')}: {path}" for flag, path in short.items()]
    of_folds = f"{recipe['folds']} folds of " if "folds" in recipe else "folds of "
    return (of_folds if folds else "") + "; ".join(words)


def _short_path(path):
    path = re.sub(r"^\$\{?HF_MAMBA_DATA\}?/", "", str(path))
    return "/".join(Path(path).parts[-2:]) if Path(path).is_absolute() else path


def posts_of(runs):
    """
    {"train": 4000, ...}: how many posts of each split the runs used; a range as text where runs differ.

    Raises:
        ValueError: a report of an earlier version, which does not count them.
    """
    of_runs = []
    for run in runs:
        if "posts" not in run.report:
            file = run.folder / REPORT_FILES[run.report["split"]]
            raise ValueError(
                f"{file} doesn't count the run's posts, since an earlier version wrote it: repeat the run, or record "
                "it from a checkout of its commit."
            )
        evaluated = {split: run.results.get(f"{split}_num_posts") for split in SPLIT_NAMES}
        posts = run.report["posts"] | {split: int(count) for split, count in evaluated.items() if count is not None}
        of_runs.append({split: posts[split] for split in SPLIT_NAMES if split in posts})
    ranges = {}
    for split in of_runs[0]:
        counts = [posts.get(split, 0) for posts in of_runs]
        ranges[split] = counts[0] if len(set(counts)) == 1 else f"{min(counts):,} to {max(counts):,}"
    return ranges


def parameters_of(run):
    """How many parameters the model learns: built from the run's config without memory; None without a network."""
    if isinstance(run.results.get("num_parameters"), int):
        return run.results["num_parameters"]
    if not (run.folder / "config.json").is_file():
        return None
    from latency import count_parameters  # pulls in the model, which reading files doesn't need

    return count_parameters(read_mapping(run.folder / "config.json"))


def _ended(run):
    return datetime.datetime.fromtimestamp((run / RESULTS_FILE).stat().st_mtime, datetime.UTC).date().isoformat()
