"""
Redraws the ledger, results/ledger.md and results/ledger.png: the paper's figures beside ours.

    python -m hf_mamba.classification.ledger
    python -m hf_mamba.classification.ledger --measure_latency --machine_kind "2 cores of an AMD EPYC, one thread"

Its rows are those that classification/record.py wrote into measured.jsonl; ledger_rows.py says what the files hold.
--measure_latency times forward passes at the paper's settings first, with as many threads as OMP_NUM_THREADS says, and
writes them into latency.jsonl.
"""

import argparse
import functools
import json
import statistics
from pathlib import Path

from latency import count_parameters, latency_lines, paper_config
from ledger_rows import (
    LATENCY_FILE,
    MEASURED_FILE,
    PAPER_FILE,
    RESULTS_FOLDER,
    ROWS_FILE,
    read_ledger,
    welch,
)
from record import check_command, head_commit

from hf_mamba.classification.possible_scores import explain_impossible, possible_matrices
from hf_mamba.classification.support.command_line import run_command
from hf_mamba.classification.support.markdown import markdown_table


PAGE_FILE, PLOT_FILE = "ledger.md", "ledger.png"

INTRO = """\
# The ledger

Drawn by `python -m hf_mamba.classification.ledger` from [paper.yaml](paper.yaml), [rows.yaml](rows.yaml),
[measured.jsonl](measured.jsonl) and [latency.jsonl](latency.jsonl); change those, not this page.

- **paper** is what the paper prints. **measured** is ours, read from the output folders of finished runs by
  `python -m hf_mamba.classification.record`; no figure was typed.
- `mean ± sd` is over seeds (sd of the sample, n - 1). The interval *over posts* is the 95 % bootstrap over the test
  posts of each seed, its ends averaged: what other posts would change. The interval *over seeds* is Student's 95 %
  interval of the mean, from three seeds on: what other seeds would change. It may reach beyond 1.
- "majority" always answers the class most common in training. Training times are of shared machines: orders of
  magnitude.

![The measured rows and the paper's figures](ledger.png)
"""

_CITIES = {"Boston": "BO", "Chicago": "CH", "Los Angeles": "LA", "New York": "NY", "San Francisco": "SF"}
_NAMES = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "f1_macro": "macro F1",
          "f1_micro": "micro F1", "rmse": "RMSE", "total": "all"}  # fmt: skip
# What is said once above a table if all its rows share it, and is a column if they don't
_SHARED = ("data", "posts", "seeds", "commit", "machine_kind", "date")


def number(value, sign=False):
    """.9191, 1.0000, +.0012, -.0012; nothing for None."""
    if value is None:
        return ""
    text = f"{value:+.4f}" if sign else f"{value:.4f}"
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text


def mean_sd(score):
    """A score of measured.jsonl as "mean ± sd"."""
    return number(score["mean"]) + ("" if score["sd"] is None else f" ± {number(score['sd'])}")


def interval(low, high, sign=False):
    """ "low to high", nothing if there is none."""
    return "" if low is None else f"{number(low, sign)} to {number(high, sign)}"


def draw_page(ledger) -> str:
    """The page ledger.md. The same ledger gives the same text."""
    parts = [INTRO, incomparable(ledger)]
    tables = list(ledger.words["tables"]) + [table for table, _ in ledger.measured]
    for name in dict.fromkeys(tables):
        words = ledger.words["tables"].get(name, {"title": name})
        parts.append(f"## {words['title']}\n" + (f"\n{words['text'].strip()}\n" if "text" in words else ""))
        parts.append(paper_section(ledger, name) if name in PAPER_SECTIONS else measured_section(ledger, name))
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def incomparable(ledger):
    """What can't be compared, and why: the notes of rows.yaml, with what is computed of the paper's own figures."""
    lines = ["## What can't be compared, and why", ""]
    for note in ledger.words["notes"]:
        parts = [note["text"].strip()]
        for kind, tell in (("possible_scores", _not_possible), ("below_constant", _below), ("not_best", _not_best)):
            if kind in note:
                parts.append(tell(ledger.paper, **note[kind]))
        lines += [f"- **{note['title']}.** {' '.join(parts)}"]
    return "\n".join(lines)


def _not_possible(paper, table, row, positives, negatives):
    """Says by `possible_scores` which rows of a table a confusion matrix gives, and what is wrong with ours."""
    rows = {one["method"]: one["figures"] for one in paper if one["table"] == table}
    fit = [
        method for method, figures in rows.items() if any(possible_matrices(positives, negatives, **figures).values())
    ]
    figures = next(one["figures"] for one in paper if one["table"] == table and one.get("row") == row)
    if any(possible_matrices(positives, negatives, **figures).values()):
        return "A confusion matrix gives its row after all."
    without_f1 = {name: figure for name, figure in figures.items() if name != "f1"}
    wrong = "; ".join(explain_impossible(positives, negatives, **without_f1))
    return (
        f"No confusion matrix of {positives:,} positives and {negatives:,} negatives gives its row "
        f"(`possible_scores`, rounded either way or cut off): {wrong}. Of the {len(rows)} rows of the table "
        f"{len(fit)} are possible ({', '.join(fit)}). A mean over several runs need not be."
    )


def _below(paper, table, data, positives, negatives):
    """Names the rows of a table that a constant answer beats."""
    constant = max(positives, negatives) / (positives + negatives)
    rows = [row for row in paper if row["table"] == table and row["data"] == data]
    below = [row for row in rows if float(row["figures"]["accuracy"]) < constant]
    named = ", ".join(f"{row['method']} {number(float(row['figures']['accuracy']))}" for row in below)
    return f"It is right for {number(constant)}; the paper prints {named or 'nothing below that'}."


def _not_best(paper, table, row, metric):
    """Names the rows of a table whose figure is above ours."""
    ours = next(float(one["figures"][metric]) for one in paper if one["table"] == table and one.get("row") == row)
    above = [one for one in paper if one["table"] == table and float(one["figures"][metric]) > ours]
    named = ", ".join(f"{one['method']} with {number(float(one['figures'][metric]))}" for one in above)
    return f"Its {_NAMES[metric]}-cities accuracy is {number(ours)}; above it the table has {named or 'none'}."


def of_paper_row(ledger, table, row):
    """The measured row beside a row of the paper: its own or the one it is `same_as`; None if not run."""
    same = ledger.words["tables"][table]["rows"][row].get("same_as")
    return ledger.measured.get((table, row)) or (ledger.measured.get(tuple(same.split(".", 1))) if same else None)


def paper_section(ledger, table):
    """One table of the paper."""
    rows = [row for row in ledger.paper if f"table{row['table']}" == table]
    ours = {row["row"]: of_paper_row(ledger, table, row["row"]) for row in rows if row.get("ours")}
    parts = [PAPER_SECTIONS[table](ledger, table, rows, ours)]
    run = [row for row in ours.values() if row]
    if run:
        parts.append(how_measured(run))
    if table == "table4":
        parts.append(cost_table(ledger, table))
    return "\n\n".join(parts)


def _comparison(ledger, table, rows, ours):
    """Tables 1 and 2: others' methods, and a row of ours with each metric."""
    metrics = list(rows[0]["figures"])
    cells = [["modality", "method", "source", *(_NAMES.get(metric, metric) for metric in metrics)]]
    for row in rows:
        cells.append([row["modality"], row["method"], "paper", *(number(float(f)) for f in row["figures"].values())])
    for row in rows:
        if not row.get("ours"):
            continue
        measured = ours[row["row"]]
        scores = _scores_by_metric(measured) if measured else {}
        told = [mean_sd(scores[metric]) if metric in scores else "not run" for metric in metrics]
        cells.append([row["modality"], row["method"], "measured", *told])
    needs = {_needs(ledger, table, row) for row, measured in ours.items() if not measured}
    return "\n\n".join([markdown_table(cells), *(f"Not run: it needs {need}." for need in sorted(needs))])


def _scores_by_metric(measured):
    """The scores of a measured row, groups among them under the paper's short names."""
    found = dict(measured["scores"])
    for group, scores in measured.get("groups", {}).items():
        found[_CITIES.get(group, group)] = scores[measured["metric"]]
    return found | {"total": found[measured["metric"]]}


def _needs(ledger, table, row):
    need = ledger.words["tables"][table]["rows"][row].get("needs")
    return ledger.words["needs"][need] if need else "a run"


def _ablation(ledger, table, rows, ours):
    """Tables 3 to 5: accuracy on both data sets."""
    cells = [["row", "data", "paper", "measured", "95 % over posts", "95 % over seeds", "seeds", "parameters"]]
    for row in rows:
        words, measured = ledger.words["tables"][table]["rows"][row["row"]], ours[row["row"]]
        parameters = _parameters(row["data"], words)
        told = ["not run", "", "", ""]
        if measured:
            score, parameters = measured["scores"]["accuracy"], f"{measured['parameters'] or 0:,}"
            told = [mean_sd(score), _over_posts(score), _over_seeds(score), str(len(measured["seeds"]))]
        figure = number(float(row["figures"]["accuracy"]))
        cells.append([words["label"], row["data"], figure, *told, parameters])
    notes = "Parameters of rows that were not run are counted from the paper's settings with 8,000 WordPiece tokens."
    return "\n\n".join(filter(None, [markdown_table(cells), notes, _not_run(ledger, table, rows, ours)]))


def _parameters(data, words):
    """How many parameters a row of the paper has, at the paper's settings."""
    return f"{_count(data, tuple(words.get('config', {}).items())):,}"


@functools.cache
def _count(data, fields):
    return count_parameters(paper_config(data, dict(fields)))


def _not_run(ledger, table, rows, ours):
    """What the rows that were not run need, said once for rows that need the same."""
    waiting = {}
    for row in rows:
        if ours[row["row"]] is None:
            label = ledger.words["tables"][table]["rows"][row["row"]]["label"]
            waiting.setdefault((row["data"], _needs(ledger, table, row["row"])), []).append(label)
    lines = []
    for (data, need), labels in waiting.items():
        all_rows = len(labels) == sum(row["data"] == data for row in rows)
        lines.append(f"- {data}, {'every row' if all_rows else '; '.join(labels)}: {need}.")
    return "Not run, for want of:\n\n" + "\n".join(lines) if lines else ""


PAPER_SECTIONS = {
    "table1": _comparison, "table2": _comparison, "table3": _ablation, "table4": _ablation, "table5": _ablation,
}  # fmt: skip


def _over_posts(score):
    return interval(score["posts_low"], score["posts_high"])


def _over_seeds(score):
    return interval(score["seeds_low"], score["seeds_high"])


def cost_table(ledger, table):
    """Parameters and latency of the rows of a table of the paper, as far as they were measured."""
    words = ledger.words["tables"][table]["rows"]
    found = {}
    for line in ledger.latency:
        found.setdefault((line["data"], line["row"]), {})[line["batch"]] = line
    if not found:
        return "Latency was not measured: `--measure_latency` does."
    batches = sorted({line["batch"] for line in ledger.latency})
    cells = [["row", "positions (text + patches)", "parameters", *(f"batch {b}, ms" for b in batches)]]
    for (data, row), of_batch in found.items():
        one = next(iter(of_batch.values()))
        size = f"{one['text_tokens']} + {one['patches']} ({data})"
        parameters = _parameters(data, words[row])
        times = [f"{1000 * of_batch[b]['median_seconds']:,.1f}" if b in of_batch else "" for b in batches]
        cells.append([words[row]["label"], size, parameters, *times])
    told = sorted({(line["machine_kind"], line["commit"], line["date"]) for line in ledger.latency})
    how = "; ".join(f"{kind}, commit {commit}, {date}" for kind, commit, date in told)
    return (
        "What a forward pass costs at the paper's settings (measured: one picture and as many words as the paper "
        f"reads, fp32, no gradients, median; the rows take turns): {how}.\n\n{markdown_table(cells)}"
    )


def measured_section(ledger, table):
    """A grid, or any other table of measured rows."""
    words = ledger.words["tables"].get(table, {})
    run = {row: line for (of, row), line in ledger.measured.items() if of == table}
    order = [row for row in words.get("rows", run) if row in run]
    waiting = {row: line for row, line in words.get("rows", {}).items() if row not in run}
    if not run:
        return "Nothing was recorded yet."
    reference = run.get(words.get("reference"))
    metric = run[order[0]]["metric"]
    over = " or ".join(sorted({line["over"] for line in run.values()}))
    extra = [
        name for name in ("f1_macro", "precision", "recall", "f1") if all(name in x["scores"] for x in run.values())
    ]
    groups = list(dict.fromkeys(group for line in run.values() for group in line.get("groups", {})))
    versus = ["minus the reference (95 %)"] if reference else []
    head = ["row", f"{_NAMES.get(metric, metric)}, mean ± sd", "95 % over posts", f"95 % over {over}", *versus]
    cells = [[*head, f"each of the {over}", *(_NAMES[name] for name in extra), *groups, "parameters", "training, s"]]
    for row in order:
        line, score = run[row], run[row]["scores"][metric]
        cells.append([line["what"], mean_sd(score), _over_posts(score), _over_seeds(score)])
        cells[-1] += [against(score, reference["scores"][metric], line is reference)] if reference else []
        cells[-1] += [" ".join(number(value) for value in score["values"])]
        cells[-1] += [mean_sd(line["scores"][name]) for name in extra]
        cells[-1] += [mean_sd(line["groups"][g][metric]) if g in line.get("groups", {}) else "" for g in groups]
        cells[-1] += [f"{line['parameters']:,}" if line["parameters"] is not None else ""]
        cells[-1] += [f"{statistics.fmean(line['train_seconds']):,.0f}" if line["train_seconds"] else ""]
    parts = [markdown_table(cells)]
    if reference:
        parts.append(verdict([run[row] for row in order], reference, metric))
    majority = sorted({number(line["majority"]) for line in run.values() if line["majority"] is not None})
    parts += [f"Majority: {', '.join(majority)}."] if majority else []
    parts += [f"Not run: {'; '.join(line['label'] for line in waiting.values())}."] if waiting else []
    return "\n\n".join([*parts, how_measured([run[row] for row in order])])


def against(score, reference, itself):
    """A row's difference from the reference with its interval."""
    if itself:
        return ""
    difference, low, high = welch(score["values"], reference["values"])
    return number(difference, sign=True) + (f" ({interval(low, high, sign=True)})" if low is not None else "")


def verdict(lines, reference, metric):
    """Which rows the seeds tell apart from the reference, in words."""
    found = {"Below the reference": [], "Above it": [], "Not told apart from it by these seeds": []}
    for line in lines:
        if line is reference:
            continue
        _, low, high = welch(line["scores"][metric]["values"], reference["scores"][metric]["values"])
        below, above, neither = found.values()
        (neither if low is None or low <= 0 <= high else above if low > 0 else below).append(line["what"])
    told = " ".join(f"{which}: {'; '.join(rows) or 'none'}." for which, rows in found.items())
    return (
        f"Differences are of means over seeds, with Welch's 95 % t interval, seeds not paired. {told} Of "
        f"{len(lines) - 1} comparisons at 95 % about {(len(lines) - 1) / 20:.1f} come out by chance alone."
    )


def how_measured(lines):
    """How rows were measured: once what all share, a table of the rest with each command."""
    told = [{key: _told(line, key) for key in _SHARED} for line in lines]
    shared = {key: told[0][key] for key in _SHARED if len({one[key] for one in told}) == 1}
    rest = [key for key in _SHARED if key not in shared]
    names = {"machine_kind": "machine", "posts": "posts (training / validation / test)"}
    text = "; ".join(f"{names.get(key, key)}: {value}" for key, value in shared.items())
    cells = [["row", *(names.get(key, key) for key in rest), "command"]]
    for line, one in zip(lines, told):
        cells.append([line["what"], *(one[key] for key in rest), f"`{line['command']}`"])
    return f"How they were measured. {text[:1].upper()}{text[1:]}.\n\n{markdown_table(cells)}"


def _told(line, key):
    value = line[key]
    if key == "posts":
        return " / ".join(f"{n:,}" if isinstance(n, int) else n for n in value.values())
    return " ".join(map(str, value)) if isinstance(value, list) else value


def check(ledger, folder):
    """
    Raises:
        ValueError: names the line of a measured row whose command runs nothing of this project or names no recipe, of
            a `same_as` that names no row, or of a row that only one of paper.yaml and rows.yaml has.
    """
    for number_of_line, ((table, row), line) in enumerate(ledger.measured.items(), start=1):
        try:
            check_command(line["command"])
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{folder / MEASURED_FILE}, line {number_of_line} ({table}, {row}): {error}") from None
    printed = {(f"table{row['table']}", row["row"]): row["line"] for row in ledger.paper if row.get("ours")}
    tables = ledger.words["tables"]
    for (table, key), line in printed.items():
        if key not in tables.get(table, {}).get("rows", {}):
            raise ValueError(f"{folder / PAPER_FILE}, line {line}: {ROWS_FILE} lacks row {key!r} of {table}.")
    for table, words in tables.items():
        for key, row in words.get("rows", {}).items():
            where = f"{folder / ROWS_FILE}, line {row['line']}"
            if table in PAPER_SECTIONS and (table, key) not in printed:
                raise ValueError(f"{where}: {PAPER_FILE} has no row {key!r} of {table}.")
            same = row.get("same_as", f"{table}.{key}").split(".", 1)
            if len(same) < 2 or same[0] not in tables or same[1] not in tables[same[0]].get("rows", same[1:]):
                raise ValueError(f"{where}: same_as {row['same_as']!r} of {key} must be TABLE.ROW of this file.")


def write_latency(folder, machine_kind, commit):
    """Times Table 4's rows and writes latency.jsonl."""
    ledger = read_ledger(folder)
    data = {row["row"]: row["data"] for row in ledger.paper if row["table"] == 4}
    configs = {key: (data[key], row["config"]) for key, row in ledger.words["tables"]["table4"]["rows"].items()}
    lines = latency_lines(configs, machine_kind=machine_kind, commit=commit)
    (folder / LATENCY_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def main(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_mamba.classification.ledger", description=__doc__.strip().split("\n")[0]
    )
    parser.add_argument("--results", type=Path, default=RESULTS_FOLDER, help="the ledger's folder (default: results/)")
    parser.add_argument("--no_plot", action="store_true", help="write ledger.md only, which needs no matplotlib")
    parser.add_argument("--measure_latency", action="store_true", help="first time forward passes, some minutes")
    parser.add_argument("--machine_kind", help="for --measure_latency: cores, processor, GPU, threads")
    args = parser.parse_args(argv)
    if args.measure_latency:
        if not args.machine_kind:
            parser.error("--measure_latency needs --machine_kind")
        write_latency(args.results, args.machine_kind, head_commit() or "unknown")
    ledger = read_ledger(args.results)
    check(ledger, args.results)
    (args.results / PAGE_FILE).write_text(draw_page(ledger), "utf-8")
    print(f"Wrote {args.results / PAGE_FILE}: {len(ledger.measured)} measured rows.")
    if not args.no_plot:
        from ledger_plots import draw_plots

        draw_plots(ledger, args.results / PLOT_FILE)
        print(f"Wrote {args.results / PLOT_FILE}.")


if __name__ == "__main__":
    run_command(main)
