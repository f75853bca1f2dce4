"""
Writes what finished runs measured into results/measured.jsonl, so that no figure of the ledger is typed by hand.

    python results/record.py outputs/mine --table twitter_text --row mamba \\
        --command "python run_classification.py twitter --modalities text" --machine_kind "2 cores of an AMD EPYC"
    python results/record.py outputs/grid_builtin --every_row --table grid_builtin --machine_kind "..."

FOLDER is an output folder of run_classification.py: a run (recipe.yaml, all_results.json, *_report.json) or, of
--seeds, the folder above the seeds' (seeds_recipe.yaml, seeds_results.json). Several are runs of one row: other seeds,
or, with --folds, other data of the same recipe. --every_row takes one folder with a subfolder for each row, named by
its key; what is not finished is left out. The command of a row is --command or, there, stands beside FOLDER in
`FOLDER.ROW.command.txt`, its commit likewise in `FOLDER.ROW.commit.txt`. A command of run_classification.py must give
the very recipe that the folder holds: else it is refused.
"""

import argparse
import datetime
import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path

import checkout  # noqa: F401 - first of all: it decides which hf_mamba is imported
import yaml
from ledger_rows import (
    MEASURED_FILE,
    RESULTS_FOLDER,
    ROWS_FILE,
    check_row_is_known,
    read_measured,
    read_rows,
    summarise,
)

from hf_mamba.classification.evaluation.metrics import DEFAULT_METRIC, METRIC_NAMES
from hf_mamba.classification.runs.arguments import RECIPES_FOLDER, find_recipe, parse_arguments
from hf_mamba.classification.runs.folds import FOLDS_RECIPE_FILE, FOLDS_RESULTS_FILE
from hf_mamba.classification.runs.output_dir import differing_flags
from hf_mamba.classification.runs.seeds import SEEDS_RECIPE_FILE, SEEDS_RESULTS_FILE
from hf_mamba.classification.support.command_line import run_command
from hf_mamba.classification.support.run_files import RECIPE_FILE, REPORT_FILES, RESULTS_FILE


MAJORITY = {"accuracy": "majority_accuracy", "f1_micro": "majority_f1_micro", "rmse": "mean_rmse"}
_DATA_FLAGS = ("dataset_name", "train_file", "validation_file", "test_file", "image_dir")
_SCRIPT = "run_classification.py"
_MODULES = "hf_mamba.classification."


# Of a folder of several runs: its recipe, its results, and the folders of the runs
_GROUPS = (
    (SEEDS_RECIPE_FILE, SEEDS_RESULTS_FILE, lambda recipe: [f"seed-{seed}" for seed in recipe["seeds"]]),
    (FOLDS_RECIPE_FILE, FOLDS_RESULTS_FILE, lambda recipe: [f"fold-{n}" for n in range(1, recipe["folds"] + 1)]),
)


class Unfinished(ValueError):
    """A folder whose runs have not ended."""


def runs_of(folder):
    """
    The folders of the runs in an output folder, one, or one for each seed or fold.

    Raises:
        Unfinished: not all of them have ended.
        ValueError: it is no output folder.
    """
    folder = Path(folder)
    for recipe_file, results_file, runs_in in _GROUPS:
        if not (folder / recipe_file).is_file():
            continue
        runs = [folder / name for name in runs_in(_read(folder / recipe_file))]
        missing = [path for run in runs for path in (run / RESULTS_FILE,) if not path.is_file()]
        if missing or not (folder / results_file).is_file():
            what = missing[0] if missing else folder / results_file
            raise Unfinished(f"{folder} is not finished: there is no {what}. Repeat its command, which goes on.")
        return runs
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(f"{folder} is no output folder of a run: it has no {RECIPE_FILE} and no {SEEDS_RECIPE_FILE}.")
    if not (folder / RESULTS_FILE).is_file():
        raise Unfinished(f"{folder} is not finished: it has no {RESULTS_FILE}. Repeat its command, which goes on.")
    return [folder]


def _read(path):
    """A JSON or YAML file that is an object."""
    try:
        text = path.read_text("utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} can't be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no mapping, so no run wrote it.")
    return found


def measure(folders, *, folds=False):
    """
    What the runs in `folders` measured: the part of a line of measured.jsonl that they tell by themselves.

    Raises:
        ValueError: a folder is no run or not finished; the runs are not of one recipe; a seed is there twice.
    """
    runs = [run for folder in folders for run in runs_of(folder)]
    recipes = [_read(run / RECIPE_FILE) for run in runs]
    folds = folds or "fold" in recipes[0]
    may_differ = ("seed", "split_seed", *((*_DATA_FLAGS, "fold") if folds else ()))
    for run in runs[1:]:
        if differing := differing_flags(run / RECIPE_FILE, recipes[0], may_differ):
            hint = "" if folds else " For other data of one recipe give --folds."
            raise ValueError(f"{run} is not of the recipe of {runs[0]} ({differing}): record one row at a time.{hint}")
    seeds = [recipe.get("seed", 0) for recipe in recipes]
    if len(set(seeds)) < len(seeds) and not folds:
        raise ValueError(f"Seed {max(seeds, key=seeds.count)} is there twice: runs of one row need different seeds.")
    split = "test" if (runs[0] / REPORT_FILES["test"]).is_file() else "validation"
    missing = [run / REPORT_FILES[split] for run in runs if not (run / REPORT_FILES[split]).is_file()]
    if missing:
        raise ValueError(f"There is no {missing[0]}: the run must have evaluated labelled posts, by --do_predict.")
    reports = [_read(run / REPORT_FILES[split]) for run in runs]
    results = [_read(run / RESULTS_FILE) for run in runs]
    problem_type = reports[0]["problem_type"]
    metric = DEFAULT_METRIC[problem_type]
    flat = [report["metrics"] for report in reports]
    seconds = [result.get("train_runtime") for result in results]
    found = {
        "data": data_in_words(recipes[0], folds),
        "posts": posts_of(runs, results),
        "split": split,
        "metric": metric,
        "over": "folds" if folds else "seeds",
        "seeds": seeds,
        "scores": _scores(flat, METRIC_NAMES[problem_type]),
        "majority": flat[0].get(MAJORITY[metric]),
        "parameters": parameters_of(runs[0], results[0]),
        "date": _ended(runs[-1]),
        "train_seconds": seconds if all(value is not None for value in seconds) else None,
    }
    if folds and found["majority"] is not None:
        found["majority"] = sum(one[MAJORITY[metric]] for one in flat) / len(flat)
    if groups := reports[0].get("per_group"):
        of_group = {name: [report["per_group"].get(name) for report in reports] for name in groups}
        found["groups"] = {name: _scores(of, (metric,)) for name, of in of_group.items() if all(of)}
    return found


def _scores(flat, names):
    """Every metric that all runs have, summarised; numbers as read."""
    found = {}
    for name in names:
        if not all(isinstance(metrics.get(name), int | float) for metrics in flat):
            continue
        ends = [(metrics.get(f"{name}_low"), metrics.get(f"{name}_high")) for metrics in flat]
        complete = all(end is not None for pair in ends for end in pair)
        summary = summarise([metrics[name] for metrics in flat], ends if complete else None)
        found[name] = {key: _short(value) for key, value in summary.items()}
    return found


def _short(value):
    """Six decimals are more than any test set tells."""
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


def posts_of(runs, results):
    """{"train": 4000, ...}: as all_results.json tells them, else the model card; ranges as text where runs differ."""
    of_runs = []
    for run, result in zip(runs, results):
        card = run / "README.md"
        text = " ".join(card.read_text("utf-8").split()) if card.is_file() else ""
        counts = re.search(r": ((?:[\d,]+ (?:train|validation|test)(?:, )?)+) posts\.", text)
        told = re.findall(r"([\d,]*\d) (train|validation|test)", counts[1]) if counts else []
        posts = {split: int(count.replace(",", "")) for count, split in told}
        for split in ("train", "validation", "test"):
            if (count := result.get(f"{split}_num_posts")) is not None:
                posts[split] = int(count)
        of_runs.append({split: posts[split] for split in ("train", "validation", "test") if split in posts})
    found = {}
    for split in of_runs[0]:
        counts = [posts.get(split, 0) for posts in of_runs]
        found[split] = counts[0] if len(set(counts)) == 1 else f"{min(counts):,} to {max(counts):,}"
    return found


def parameters_of(run, results):
    """How many numbers the model learns: built from the run's config without memory; None without a network."""
    if isinstance(results.get("num_parameters"), int):
        return results["num_parameters"]
    if not (run / "config.json").is_file():
        return None
    from latency import count_parameters  # pulls in the model, which reading files needs not

    config = _read(run / "config.json")
    return count_parameters(config)


def _ended(run):
    return datetime.datetime.fromtimestamp((run / RESULTS_FILE).stat().st_mtime, datetime.UTC).date().isoformat()


def check_command(command, recipe_file=None, folds=False):
    """
    Refuses a command that is none of this project's, names no recipe or, of run_classification.py, gives another
    recipe than the one in `recipe_file`.
    """
    words = shlex.split(command)
    scripts = [place for place, word in enumerate(words) if Path(word).name == _SCRIPT]
    if not scripts:
        modules = [word for word in words if word.startswith(_MODULES)]
        if not modules or importlib.util.find_spec(modules[0]) is None:
            raise ValueError(
                f"The command {command!r} runs neither {_SCRIPT} nor a `python -m {_MODULES}<name>` of this package."
            )
        return
    argv = words[scripts[0] + 1 :]
    if argv and not argv[0].startswith("-"):
        checkout = RECIPES_FOLDER.parent / argv[0]  # from where commands of the project are run
        argv[0] = str(checkout if checkout.is_file() else find_recipe(argv[0]))
    if recipe_file is None:
        return
    *_, recipe = parse_arguments(argv)
    may_differ = ("seed", "split_seed", *(_DATA_FLAGS if folds else ()))
    harmless = ("seeds", *may_differ) if recipe_file.name == RECIPE_FILE else ()
    *_, defaults = parse_arguments([])
    recorded = _read(recipe_file)
    new = [flag for flag in recipe if flag not in recorded and recipe[flag] == defaults.get(flag)]  # came later
    if differing := differing_flags(recipe_file, recipe, (*harmless, *new)):
        raise ValueError(
            f"The command {command!r} gives another recipe than {recipe_file} ({differing}). Give the command that "
            "was run; if a recipe of the project has changed since, record from a checkout of the run's commit."
        )


def describe(recipe):
    """A row in words, as far as its recipe tells."""
    if recipe.get("baseline"):
        return f"{recipe['baseline']} (baseline)"
    parts = [
        recipe.get("backbone", "mamba").replace("_", "-"),
        recipe.get("modalities", "text,image").replace(",", " and "),
    ]
    shown = ("fusion", "segment_embeddings", "pooling", "bidirectional", "num_attention_heads", "max_seq_length")
    return ", ".join([*parts, *(f"{flag} {recipe[flag]}" for flag in shown if flag in recipe)])


def make_line(folders, *, table, row, machine_kind, command, commit, words, what=None, folds=False):
    """A line of measured.jsonl for finished runs, its keys in the order of the file."""
    names = [name for name, *_ in _GROUPS if (Path(folders[0]) / name).is_file()]
    recipe_file = Path(folders[0]) / (names[0] if names else RECIPE_FILE)
    found = measure(folders, folds=folds)
    recipe = _read(recipe_file)
    check_command(command, None if recipe.get("baseline") else recipe_file, folds)
    label = words["tables"].get(table, {}).get("rows", {}).get(row, {}).get("label")
    head = {"table": table, "row": row, "what": what or label or describe(recipe)}
    groups = {"groups": found.pop("groups")} if "groups" in found else {}
    tail = {"command": command, "commit": commit, "machine_kind": machine_kind}
    return {**head, **found, **tail, **groups}


def put(rows, line, replace):
    """
    `rows` with `line` in its place. Returns what was done: "recorded", "replaced" or "unchanged".

    Raises:
        ValueError: the row is there already and differs, and `replace` is False.
    """
    keys = [(row["table"], row["row"]) for row in rows]
    key = (line["table"], line["row"])
    if key not in keys:
        rows.append(line)
        return "recorded"
    place = keys.index(key)
    if rows[place] == line:
        return "unchanged"
    if not replace:
        metric = line["metric"]
        told = [f"{one['scores'].get(metric, {}).get('mean')}" for one in (rows[place], line)]
        raise ValueError(
            f"Row {key[1]} of table {key[0]} is there already ({metric} {told[0]} then, {told[1]} now): --replace it."
        )
    rows[place] = line
    return "replaced"


def _beside(folder, row, what, given):
    path = folder.parent / f"{folder.name}.{row}.{what}.txt"
    if given is not None:
        return given
    return path.read_text("utf-8").strip() if path.is_file() else None


def head_commit():
    """The commit of this checkout, marked when tracked files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def record(args):
    """Does what the command line says; returns what was done, a line each."""
    words = read_rows(args.results / ROWS_FILE)
    path = args.results / MEASURED_FILE
    rows, told = read_measured(path, words), []
    wanted = {args.row: args.folders}
    if args.every_row:
        wanted = {folder.name: [folder] for folder in sorted(args.folders[0].iterdir()) if folder.is_dir()}
    for row, folders in wanted.items():
        check_row_is_known(words, args.table, row, "--row" if args.row else str(folders[0]))
        command, commit = args.command, args.commit
        if args.every_row:
            command, commit = (
                _beside(args.folders[0], row, what, given)
                for what, given in (("command", command), ("commit", commit))
            )
        commit = commit or head_commit()
        if not command or not commit:
            flag = "commit" if command else "command"
            place = (
                f", or write it beside {args.folders[0]} in {args.folders[0].name}.{row}.{flag}.txt" * args.every_row
            )
            raise ValueError(f"Row {row}: no {flag} is known. Give --{flag}{place}.")
        try:
            line = make_line(
                folders, table=args.table, row=row, machine_kind=args.machine_kind, command=command, commit=commit,
                words=words, what=args.what, folds=args.folds,
            )  # fmt: skip
        except Unfinished as error:
            if not args.every_row:
                raise
            told.append(f"left out: {error}")
            continue
        score = line["scores"][line["metric"]]
        sd = "" if score["sd"] is None else f" ± {score['sd']:.4f}"
        done = put(rows, line, args.replace)
        told.append(
            f"{done}: {args.table}, {row}: {line['metric']} {score['mean']:.4f}{sd}, {len(line['seeds'])} runs"
        )
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, "utf-8")
    return told


def main(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(prog="python results/record.py", description=__doc__.strip().split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="output folders of finished runs")
    parser.add_argument("--table", required=True, help="the table of the ledger: table1 to table5, or another name")
    parser.add_argument("--row", help="the key of the row in that table")
    parser.add_argument("--every_row", action="store_true", help="FOLDER holds a subfolder for each row of the table")
    parser.add_argument("--machine_kind", required=True, help="cores, processor, GPU, threads: no names of machines")
    parser.add_argument("--command", help="what was run; default with --every_row: FOLDER.ROW.command.txt")
    parser.add_argument("--commit", help="of the code; default: FOLDER.ROW.commit.txt, else this checkout's")
    parser.add_argument("--what", help="the row in words; default: as rows.yaml or the recipe says")
    parser.add_argument("--folds", action="store_true", help="the folders are of one recipe with other data")
    parser.add_argument("--replace", action="store_true", help="replace rows that are recorded already")
    parser.add_argument("--results", type=Path, default=RESULTS_FOLDER, help="the ledger's folder (default: results/)")
    args = parser.parse_args(argv)
    if bool(args.row) == args.every_row:
        parser.error("give either --row KEY or --every_row")
    if args.every_row and len(args.folders) > 1:
        parser.error("--every_row takes one FOLDER")
    for folder in args.folders:
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder}.")
    print("\n".join(record(args)))


if __name__ == "__main__":
    run_command(main)
