"""
Writes what finished runs measured into results/measured.jsonl, so that no figure of the ledger is typed by hand.

    python results/record.py outputs/mine --table twitter_text --row mamba \\
        --command "python run_classification.py twitter --modalities text" --machine_kind "2 cores of an AMD EPYC"
    python results/record.py outputs/grid_builtin --every_row --table grid_builtin --machine_kind "..."

FOLDER is an output folder of run_classification.py: a run (recipe.yaml, all_results.json, *_report.json) or, of
--seeds, the folder above the seeds' (seeds_recipe.yaml, seeds_results.json). Several are runs of one row: other seeds,
or, with --folds, other data of the same recipe. --every_row takes one folder with a subfolder for each row, named by
its key; runs that have not finished are left out. The command of a row is --command or, there, stands beside FOLDER in
`FOLDER.ROW.command.txt`, its commit likewise in `FOLDER.ROW.commit.txt`. A command of run_classification.py must give
the very recipe that the folder holds: else it is refused.
"""

import argparse
import importlib.util
import json
import shlex
import subprocess
from pathlib import Path

import checkout  # noqa: F401 - first of all: it decides which hf_mamba is imported
from finished_runs import DATA_FLAGS, GROUPS, Unfinished, measure
from ledger_rows import (
    MEASURED_FILE,
    RESULTS_FOLDER,
    ROWS_FILE,
    check_row_is_known,
    read_measured,
    read_rows,
)

from hf_mamba.classification.runs.output_dir import differing_flags
from hf_mamba.classification.runs.recipes import RECIPES_FOLDER, find_recipe, parse_arguments
from hf_mamba.classification.support.command_line import run_command
from hf_mamba.classification.support.files import read_mapping, read_text, write_text
from hf_mamba.classification.support.run_files import RECIPE_FILE


_SCRIPT = "run_classification.py"
_MODULES = "hf_mamba.classification."


def check_command(command, recipe_file=None, folds=False):
    """
    Refuses a command that isn't one of this project's, names no recipe or, of run_classification.py, gives another
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
    may_differ = ("seed", "split_seed", *(DATA_FLAGS if folds else ()))
    harmless = ("seeds", *may_differ) if recipe_file.name == RECIPE_FILE else ()
    *_, defaults = parse_arguments([])
    recorded = read_mapping(recipe_file)
    new = [flag for flag in recipe if flag not in recorded and recipe[flag] == defaults.get(flag)]  # came later
    if differing := differing_flags(recipe_file, recipe, (*harmless, *new)):
        raise ValueError(
            f"The command {command!r} gives another recipe than {recipe_file} ({differing}). Give the command that "
            "was run; if a recipe of the project has changed since, record from a checkout of the run's commit."
        )


def describe(recipe):
    """A row in words, as far as its recipe describes it."""
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
    names = [name for name, *_ in GROUPS if (Path(folders[0]) / name).is_file()]
    recipe_file = Path(folders[0]) / (names[0] if names else RECIPE_FILE)
    measured = measure(folders, folds=folds)
    recipe = read_mapping(recipe_file)
    check_command(command, None if recipe.get("baseline") else recipe_file, folds)
    label = words["tables"].get(table, {}).get("rows", {}).get(row, {}).get("label")
    head = {"table": table, "row": row, "what": what or label or describe(recipe)}
    groups = {"groups": measured.pop("groups")} if "groups" in measured else {}
    tail = {"command": command, "commit": commit, "machine_kind": machine_kind}
    return {**head, **measured, **tail, **groups}


def put(rows, line, replace):
    """
    `rows` with `line` in its place, and what was done: "recorded", "replaced" or "unchanged".

    Raises:
        ValueError: the row is there already and differs, and `replace` is False.
    """
    key = (line["table"], line["row"])
    place = next((i for i, row in enumerate(rows) if (row["table"], row["row"]) == key), None)
    if place is None:
        return [*rows, line], "recorded"
    if rows[place] == line:
        return rows, "unchanged"
    if not replace:
        metric = line["metric"]
        then, now = (one["scores"].get(metric, {}).get("mean") for one in (rows[place], line))
        raise ValueError(
            f"Row {key[1]} of table {key[0]} is there already ({metric} {then} then, {now} now): --replace it."
        )
    return [*rows[:place], line, *rows[place + 1 :]], "replaced"


def _beside(folder, row, what):
    """The text of FOLDER.ROW.WHAT.txt beside a folder, None if there is no such file."""
    path = folder.parent / f"{folder.name}.{row}.{what}.txt"
    return read_text(path).strip() if path.is_file() else None


def head_commit():
    """The commit of this checkout, marked when tracked files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _command_and_commit(args, row):
    """
    What was run for a row, and on which code: given, beside the folder, or, of the commit, this checkout's.

    Raises:
        ValueError: one of the two is unknown; says where to give it.
    """
    known = {}
    for what, given in (("command", args.command), ("commit", args.commit)):
        known[what] = given or (_beside(args.folders[0], row, what) if args.every_row else None)
    known["commit"] = known["commit"] or head_commit()
    for what, value in known.items():
        if not value:
            folder = args.folders[0]
            file = f", or write it beside {folder} in {folder.name}.{row}.{what}.txt" if args.every_row else ""
            raise ValueError(f"Row {row}: the {what} is not known. Give --{what}{file}.")
    return known["command"], known["commit"]


def record(args):
    """Does what the command line asks for; returns what was done, a line each."""
    words = read_rows(args.results / ROWS_FILE)
    path = args.results / MEASURED_FILE
    rows, report = read_measured(path, words), []
    wanted = {args.row: args.folders}
    if args.every_row:
        wanted = {folder.name: [folder] for folder in sorted(args.folders[0].iterdir()) if folder.is_dir()}
    for row, folders in wanted.items():
        check_row_is_known(words, args.table, row, "--row" if args.row else str(folders[0]))
        command, commit = _command_and_commit(args, row)
        try:
            line = make_line(
                folders, table=args.table, row=row, machine_kind=args.machine_kind, command=command, commit=commit,
                words=words, what=args.what, folds=args.folds,
            )  # fmt: skip
        except Unfinished as error:
            if not args.every_row:
                raise
            report.append(f"left out: {error}")
            continue
        rows, done = put(rows, line, args.replace)
        score = line["scores"][line["metric"]]
        sd = "" if score["sd"] is None else f" ± {score['sd']:.4f}"
        report.append(
            f"{done}: {args.table}, {row}: {line['metric']} {score['mean']:.4f}{sd}, {len(line['seeds'])} runs"
        )
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return report


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
