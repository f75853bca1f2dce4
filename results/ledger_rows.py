"""
What the ledger is made of: the paper's figures, our measured rows, and the words for both.

| file of results/ | holds | written by |
|---|---|---|
| `paper.yaml` | every row of the paper's Tables 1 to 5 | hand, from the paper |
| `rows.yaml` | titles, words and order of rows, what rows that weren't run need, what can't be compared | hand |
| `measured.jsonl` | our rows, one JSON object per line | `record.py` only |
| `latency.jsonl` | forward passes that were timed, one JSON object per line | `ledger.py --measure_latency` only |

Every reader refuses what it doesn't know, naming file and line.
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from scipy import stats

from hf_mamba.classification.support.messages import did_you_mean


LEVEL = 0.95
MEASURED_FILE, LATENCY_FILE, PAPER_FILE, ROWS_FILE = "measured.jsonl", "latency.jsonl", "paper.yaml", "rows.yaml"
RESULTS_FOLDER = Path(__file__).resolve().parent

# The keys of a line of measured.jsonl. `scores` maps each metric to SCORE_KEYS, `groups` each group to such scores.
MEASURED_KEYS = {
    "table": str, "row": str, "what": str, "data": str, "posts": dict, "split": str, "metric": str, "over": str,
    "seeds": list, "scores": dict, "majority": (float, int, type(None)), "parameters": (int, type(None)),
    "command": str, "commit": str, "machine_kind": str, "date": str, "train_seconds": (list, type(None)),
}  # fmt: skip
SCORE_KEYS = ("values", "mean", "sd", "posts_low", "posts_high", "seeds_low", "seeds_high")
LATENCY_KEYS = {
    "row": str, "data": str, "text_tokens": int, "patches": int, "batch": int, "median_seconds": float,
    "repeats": int, "threads": int, "machine_kind": str, "commit": str, "date": str,
}  # fmt: skip

_PAPER_KEYS = {"table", "data", "modality", "method", "figures", "ours", "row"}
_TABLE_KEYS = {"title", "short", "text", "rows", "reference", "posts_per_class"}
_ROW_KEYS = {"label", "data", "method", "needs", "same_as", "config"}
_NOTE_KEYS = {"title", "text", "possible_scores", "below_constant", "not_best"}
_LINE = "__line__"


class _LinedLoader(yaml.SafeLoader):
    """YAML whose mappings know their line, under `__line__`."""

    def construct_lined(self, node):
        keys = [self.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} twice", node.start_mark)
        return self.construct_mapping(node, deep=True) | {_LINE: node.start_mark.line + 1}


_LinedLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _LinedLoader.construct_lined)


def read_yaml(path):
    """A YAML file whose mappings know their line, under `__line__`; ValueError if it isn't one or isn't there."""
    if not Path(path).is_file():
        raise ValueError(f"There is no {path}: run this in a checkout, or give its results/ by --results.")
    try:
        return yaml.load(Path(path).read_text("utf-8"), _LinedLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)}).") from None


def check_keys(path, mapping, known, what, required=()):
    """Refuses unknown and missing keys of a mapping of `read_yaml`."""
    line = mapping.get(_LINE)
    for key in mapping.keys() - {_LINE}:
        if key not in known:
            raise ValueError(f"{path}, line {line}: {what} has no key {key!r}.{_meant(key, known)}")
    for key in required:
        if key not in mapping:
            raise ValueError(f"{path}, line {line}: {what} lacks {key!r}.")


def _meant(name, known):
    """What a misspelt name may have meant, or what there is."""
    return did_you_mean(name, known, otherwise=f" It knows {', '.join(sorted(map(str, known)))}.")


def without_lines(mapping):
    """A mapping of `read_yaml` without its line."""
    return {key: value for key, value in mapping.items() if key != _LINE}


def read_paper(path):
    """
    The rows of paper.yaml.

    Returns:
        list of {"table": 1, "data": ..., "modality": ..., "method": ..., "figures": {"accuracy": "0.9191"}} in the
        paper's order, with the "line" of the file; those of HF-Mamba and its variants also have "ours": True and
        "row", the key in rows.yaml
    """
    rows = read_yaml(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path}: must be a list of rows.")
    for row in rows:
        check_keys(path, row, _PAPER_KEYS, "a row of the paper", ("table", "data", "modality", "method", "figures"))
        if bool(row.get("ours")) != ("row" in row):
            raise ValueError(f"{path}, line {row[_LINE]}: `ours: true` and `row` belong together.")
        for metric, figure in without_lines(row["figures"]).items():
            if not isinstance(figure, str):
                raise ValueError(
                    f"{path}, line {row[_LINE]}: {metric} is a number: put it into quotes, to stay as printed."
                )
    return [without_lines(row) | {"figures": without_lines(row["figures"]), "line": row[_LINE]} for row in rows]


def read_rows(path):
    """
    The words of rows.yaml.

    Returns:
        {"notes": [note, ...], "needs": {name: words}, "tables": {table: {"title": ..., "text": ..., "rows": {...}}}};
        a row has its "line" of the file; a table without "rows" takes rows of any key
    """
    words = read_yaml(path)
    check_keys(path, words, {"notes", "needs", "tables"}, "the file", ("notes", "needs", "tables"))
    for note in words["notes"]:
        check_keys(path, note, _NOTE_KEYS, "a note", ("title", "text"))
    for name, table in without_lines(words["tables"]).items():
        check_keys(path, table, _TABLE_KEYS, f"table {name}", ("title",))
        for key, row in without_lines(table.get("rows", {})).items():
            check_keys(path, row, _ROW_KEYS, f"row {key} of table {name}", ("label",))
            if "needs" in row and row["needs"] not in words["needs"]:
                raise ValueError(
                    f"{path}, line {row[_LINE]}: needs: {row['needs']} is not listed above."
                    f"{_meant(row['needs'], without_lines(words['needs']))}"
                )
    tables = {name: _plain_table(table) for name, table in without_lines(words["tables"]).items()}
    notes = [{k: without_lines(v) if isinstance(v, dict) else v for k, v in note.items()} for note in words["notes"]]
    return {"notes": notes, "needs": without_lines(words["needs"]), "tables": tables}


def _plain_table(table):
    rows = without_lines(table["rows"]) if "rows" in table else None
    if rows is not None:
        rows = {key: without_lines(row) | {"line": row[_LINE]} for key, row in rows.items()}
        for row in rows.values():
            row |= {"config": without_lines(row["config"])} if "config" in row else {}
    return without_lines(table) | ({} if rows is None else {"rows": rows})


def check_row_is_known(words, table, row, where):
    """Refuses a row that rows.yaml's list of its table, if it has one, doesn't name."""
    known = words["tables"].get(table, {}).get("rows")
    if known is not None and row not in known:
        raise ValueError(f"{where}: table {table} has no row {row!r}.{_meant(row, known)} {ROWS_FILE} lists them.")


def read_lines(path, keys, what):
    """The JSON objects of a file of lines, none if there is no file; ValueError names the line."""
    path = Path(path)
    rows = []
    for number, line in enumerate(path.read_text("utf-8").split("\n") if path.is_file() else [], start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{where}: not valid JSON ({error}). {what} writes this file; restore the line."
            ) from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a JSON {type(row).__name__}, not an object.")
        for key in row.keys() - keys.keys() - {"groups"}:
            raise ValueError(f"{where}: there is no key {key!r}.{_meant(key, keys)}")
        for key, kind in keys.items():
            if key not in row:
                raise ValueError(f"{where}: {key!r} is missing.")
            if not isinstance(row[key], kind):
                raise ValueError(f"{where}: {key!r} can't be {row[key]!r}.")
        rows.append(row)
    return rows


def read_measured(path, words=None):
    """
    The rows of measured.jsonl.

    Args:
        path: the file, which may not exist yet
        words: of `read_rows`, to refuse rows that it doesn't know

    Raises:
        ValueError: names file and line of what is malformed, unknown or there twice.
    """
    rows = read_lines(path, MEASURED_KEYS, "results/record.py")
    seen = set()
    for number, row in enumerate(rows, start=1):
        where = f"{path}, line {number} ({row['table']}, {row['row']})"
        if (key := (row["table"], row["row"])) in seen:
            raise ValueError(f"{where}: that row is there twice. Delete one.")
        seen.add(key)
        if row["metric"] not in row["scores"]:
            raise ValueError(f"{where}: no scores of its metric {row['metric']!r}.")
        for scores in (row["scores"], *row.get("groups", {}).values()):
            for metric, score in scores.items():
                if not isinstance(score, dict) or set(score) != set(SCORE_KEYS):
                    raise ValueError(f"{where}: {metric} must have {', '.join(SCORE_KEYS)}.")
                if len(score["values"]) != len(row["seeds"]):
                    raise ValueError(
                        f"{where}: {metric} has {len(score['values'])} values for {len(row['seeds'])} seeds."
                    )
        if words is not None:
            check_row_is_known(words, *key, f"{path}, line {number}")
    return rows


def summarise(values, ends=None):
    """
    One metric over seeds.

    Args:
        values: one per seed
        ends: of each seed, (low, high) of its bootstrap over the test posts; None if it has no interval

    Returns:
        {"values", "mean", "sd", "posts_low", "posts_high", "seeds_low", "seeds_high"}: sd is the sample's (n - 1),
        None for one seed; posts_* average `ends`; seeds_* are Student's interval of the mean, from 3 seeds on
    """
    seeds = t_interval(values) if len(values) > 2 else (None, None)
    posts = [statistics.fmean(end) for end in zip(*ends)] if ends else (None, None)
    sd = statistics.stdev(values) if len(values) > 1 else None
    return dict(zip(SCORE_KEYS, (values, statistics.fmean(values), sd, *posts, *seeds)))


def t_interval(values):
    """Student's 95 % interval of the mean of independent values, (low, high)."""
    mean, half = statistics.fmean(values), stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values)
    return float(mean - half), float(mean + half)


def welch(values, reference):
    """
    How far the mean of `values` lies above that of `reference`: (difference, low, high), with Welch's 95 % interval,
    which lets the two scatter differently. (None, None) for the ends with fewer than two values a side.
    """
    difference = statistics.fmean(values) - statistics.fmean(reference)
    if min(len(values), len(reference)) < 2:
        return difference, None, None
    if np.ptp(values) == np.ptp(reference) == 0:
        return difference, difference, difference
    interval = stats.ttest_ind(values, reference, equal_var=False).confidence_interval(LEVEL)
    return difference, float(interval.low), float(interval.high)


@dataclass
class Ledger:
    """
    All of results/.

    Args:
        paper: of `read_paper`
        words: of `read_rows`
        measured: {(table, row): line of measured.jsonl}
        latency: lines of latency.jsonl
    """

    paper: list[dict]
    words: dict
    measured: dict[tuple[str, str], dict]
    latency: list[dict]


def read_ledger(folder) -> Ledger:
    """
    Raises:
        OSError, ValueError: a file is missing, malformed or names what the others don't know.
    """
    folder = Path(folder)
    words = read_rows(folder / ROWS_FILE)
    measured = read_measured(folder / MEASURED_FILE, words)
    latency = read_lines(folder / LATENCY_FILE, LATENCY_KEYS, "ledger.py --measure_latency")
    known = words["tables"]["table4"]["rows"]
    for number, line in enumerate(latency, start=1):
        if line["row"] not in known:
            where = f"{folder / LATENCY_FILE}, line {number}"
            raise ValueError(f"{where}: table4 has no row {line['row']!r}.{_meant(line['row'], known)}")
    return Ledger(
        read_paper(folder / PAPER_FILE), words, {(row["table"], row["row"]): row for row in measured}, latency
    )
