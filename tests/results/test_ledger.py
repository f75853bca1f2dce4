"""The ledger: the committed page is what the command generates, figures land where they belong, mistakes are named."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from latency import latency_lines, measure_latency, paper_config
from ledger import check, generate_page, main, number
from ledger_plots import in_columns, panels_of
from ledger_rows import read_ledger, read_paper, read_rows, summarise, t_interval, welch
from scipy import stats

from hf_mamba import HFMambaConfig, run_classification
from hf_mamba.classification.support import extras


RESULTS = Path(run_classification.__file__).parent / "results"
FILES = ("paper.yaml", "rows.yaml", "measured.jsonl", "latency.jsonl")


@pytest.fixture
def copy(tmp_path):
    """The committed ledger, to be changed."""
    for name in FILES:
        shutil.copy(RESULTS / name, tmp_path / name)
    return tmp_path


def a_row(table, row, values, **more):
    """A line of measured.jsonl."""
    score = summarise(values, [(value - 0.01, value + 0.01) for value in values])
    line = {
        "table": table, "row": row, "what": f"a row {row}", "data": "some posts", "posts": {"train": 9, "test": 9},
        "split": "test", "metric": "accuracy", "over": "seeds", "seeds": list(range(len(values))),
        "scores": {"accuracy": score}, "majority": 0.4, "parameters": 1234,
        "command": "python run_classification.py quickstart", "commit": "abc", "machine_kind": "a laptop",
        "date": "2026-01-01", "train_seconds": [1.0] * len(values),
    }  # fmt: skip
    return line | more


def add(folder, *lines):
    with open(folder / "measured.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def cells(page, *starts):
    """The rows of tables in a page whose first cells are these, as lists of cells."""
    rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in page.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[: len(starts)] == list(starts)]


def test_the_committed_page_is_what_the_command_writes():
    assert generate_page(read_ledger(RESULTS)) == (RESULTS / "ledger.md").read_text("utf-8")


@pytest.mark.parametrize("script, expected", [("ledger.py", "Wrote"), ("record.py", "There is no folder nothing")])
def test_a_script_runs_from_anywhere_on_its_own_checkout(copy, tmp_path, script, expected):
    """Whatever other version of the package is installed."""
    (other := tmp_path / "installed" / "hf_mamba").mkdir(parents=True)
    (other / "__init__.py").write_text("raise ImportError('another version')")
    flags = ["--no_plot"] if script == "ledger.py" else ["nothing", "--table=t", "--row=r", "--machine_kind=m"]
    process = subprocess.run(
        [sys.executable, RESULTS / script, "--results", copy, *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(other.parent)},
        capture_output=True,
        text=True,
    )
    assert expected in process.stdout + process.stderr
    if script == "ledger.py":
        assert (copy / "ledger.md").read_text("utf-8") == (RESULTS / "ledger.md").read_text("utf-8")


def test_every_recorded_command_runs_something_of_the_project():
    check(read_ledger(RESULTS), RESULTS)


def test_the_paper_has_all_its_rows_as_printed():
    rows = read_paper(RESULTS / "paper.yaml")
    counts = {table: sum(row["table"] == table for row in rows) for table in range(1, 6)}
    assert counts == {1: 14, 2: 9, 3: 6, 4: 14, 5: 6}
    assert all(re.fullmatch(r"0\.\d{4}", figure) for row in rows for figure in row["figures"].values())
    assert all("HF-Mamba" in row["method"] for row in rows if row.get("ours") and row["table"] < 4)
    same = {row["figures"]["accuracy"] for row in rows if row.get("row", "").startswith("twitter")
            and row["row"].endswith(("twitter", "both", "mamba", "hierarchical"))}  # fmt: skip
    assert same == {"0.9191"}


def test_intervals_are_scipys():
    generator = np.random.default_rng(0)
    one, other = generator.normal(0.8, 0.1, 5), generator.normal(0.8, 0.01, 3)
    assert t_interval(list(one)) == pytest.approx(stats.ttest_1samp(one, 0).confidence_interval(0.95))
    difference, low, high = welch(list(one), list(other))
    variances = one.var(ddof=1) / 5, other.var(ddof=1) / 3
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 4 + variances[1] ** 2 / 2)  # Welch and Satterthwaite
    half = stats.t.ppf(0.975, freedom) * sum(variances) ** 0.5
    assert (difference, high - low) == pytest.approx((one.mean() - other.mean(), 2 * half))
    assert difference == pytest.approx((low + high) / 2)
    assert welch([0.5], [0.4, 0.6])[1:] == (None, None) and welch([1, 1], [1, 1]) == (0, 0, 0)


def test_a_grid_names_the_rows_that_differ_by_more_than_the_seeds(tmp_path, copy):
    (copy / "measured.jsonl").unlink()
    values = {"reference": [0.8, 0.82, 0.81], "text": [0.5, 0.51, 0.5], "simple": [0.8, 0.81, 0.83]}
    values["bidirectional"] = [0.9, 0.91, 0.92]
    add(copy, *(a_row("grid_builtin", row, of) for row, of in values.items()))
    page = generate_page(read_ledger(copy))
    assert "Below the reference: a row text. Above it: a row bidirectional. Not told" in page
    assert "by these seeds: a row simple. Of 3 comparisons" in page
    [row] = cells(page, "a row bidirectional", ".9100 ± .0100")
    assert row[4].startswith("+.1000 (") and row[5] == ".9000 .9100 .9200"
    assert "Majority: .4000." in page


def test_a_measured_row_stands_beside_the_papers_in_every_table_that_prints_it(copy):
    scores = {
        name: summarise([value])
        for name, value in zip(("accuracy", "precision", "recall", "f1"), (0.7, 0.6, 0.5, 0.55))
    }
    add(copy, a_row("table1", "twitter", [0.7], scores=scores))
    page = generate_page(read_ledger(copy))
    assert ["text and image", "HF-Mamba", "measured", ".7000", ".6000", ".5000", ".5500"] in cells(page)
    assert cells(page, "Mamba", "Twitter Sarcasm", ".9191", ".7000")
    assert cells(page, "text and image", "Twitter Sarcasm", ".9191", ".7000")
    assert cells(page, "HF-Mamba", "Twitter Sarcasm", ".9191", ".7000")
    assert cells(page, "HF-Mamba", "Yelp Sentiment", ".6384", "not run")


def test_groups_fill_the_cities_of_table_2(copy):
    groups = {city: {"accuracy": summarise([value])} for city, value in (("BO", 0.61), ("New York", 0.62))}
    add(copy, a_row("table2", "yelp", [0.6], groups=groups), a_row("open", "any", [0.5], groups=groups))
    page = generate_page(read_ledger(copy))
    assert [
        "text and image",
        "HF-Mamba",
        "measured",
        ".6100",
        "not run",
        "not run",
        ".6200",
        "not run",
        ".6000",
    ] in cells(page)
    assert "## open" in page and cells(page, "a row any")[0][-4:] == [".6100", ".6200", "1,234", "1"]


def test_what_is_written_of_the_paper_follows_from_its_figures(copy):
    page = generate_page(read_ledger(copy))
    assert "No confusion matrix of 959 positives and 1,450 negatives gives its row" in page
    assert "imply accuracy 0.9228" in page and "right for .6019" in page and "DMF-RHGT-HPA with .6390" in page
    text = (copy / "paper.yaml").read_text()
    text = text.replace('"0.9191", precision: "0.9210", recall: "0.8816", f1: "0.9009"',
                        '"0.5000", precision: "0.4000", recall: "0.5120", f1: "0.4491"')  # fmt: skip
    (copy / "paper.yaml").write_text(text.replace("0.5682", "0.6682"))
    page = generate_page(read_ledger(copy))
    assert "imply accuracy 0.9228" not in page and "heads = 4) .5682" not in page


def refused(folder):
    with pytest.raises(ValueError) as error:
        main(["--results", str(folder), "--no_plot"])
    return str(error.value)


def test_a_malformed_line_is_named(copy):
    count = len((copy / "measured.jsonl").read_text().splitlines())
    for broken, expected in (
        ("{", "not valid JSON"),
        ("[]", "not an object"),
        (json.dumps(a_row("grid_builtin", "referense", [0.5])), "Did you mean 'reference'"),
        (json.dumps(a_row("open", "x", [0.5], comit="abc")), "no key 'comit'. Did you mean 'commit'"),
        (json.dumps(a_row("open", "x", [0.5], seeds=[0, 1])), "1 values for 2 seeds"),
        (json.dumps(a_row("open", "x", [0.5], metric="f1")), "no scores of its metric"),
        (json.dumps(a_row("open", "x", [0.5], date=None)), "'date' can't be None"),
        (json.dumps(a_row("grid_builtin", "reference", [0.5])), "twice"),
    ):
        shutil.copy(RESULTS / "measured.jsonl", copy / "measured.jsonl")
        with open(copy / "measured.jsonl", "a") as file:
            file.write(broken)
        message = refused(copy)
        assert f"measured.jsonl, line {count + 1}" in message and expected in message, message


def test_a_recorded_command_that_names_no_recipe_is_named(copy):
    add(copy, a_row("open", "x", [0.5], command="python run_classification.py grid_bultin"))
    assert "(open, x): There is no recipe 'grid_bultin'. Did you mean 'grid_builtin'" in refused(copy)


@pytest.mark.parametrize(
    "file, old, new, expected",
    [
        ("rows.yaml", "short: Built-in", "shrt: Built-in", "has no key 'shrt'. Did you mean 'short'"),
        ("rows.yaml", "needs: twitter_texts", "needs: twitter_text", "Did you mean 'twitter_texts'"),
        ("rows.yaml", "same_as: table2.yelp,", "same_as: table2.yel,", "'table2.yel'"),
        ("rows.yaml", "      twitter_text: {", "      twitter_txt: {", "rows.yaml lacks row 'twitter_text'"),
        ("rows.yaml", "tables:", "tables: ]", "not valid YAML"),
        ("paper.yaml", "method: HAN", "methods: HAN", "Did you mean 'method'"),
        ("paper.yaml", 'accuracy: "0.8003"', "accuracy: 0.8003", "put it into quotes"),
        ("paper.yaml", "ours: true, row: twitter,", "ours: true,", "belong together"),
        ("latency.jsonl", '"yelp_mamba"', '"yelp_mambo"', "Did you mean 'yelp_mamba'"),
    ],
)
def test_a_mistake_in_the_words_is_named_by_file_and_line(copy, file, old, new, expected):
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new, 1))
    line = text[: text.index(old)].count("\n") + 1
    message = refused(copy)
    assert file in message and expected in message, message
    # a key that is gone is named by the line that asks for it, a row of flow style by the line it begins on
    assert re.search(rf"line ({line}|{line + 1}|{line - 1})\b", message) or "lacks row" in message, message


def test_outside_a_checkout_the_fix_is_named(tmp_path):
    assert "rows.yaml: run this in a checkout" in refused(tmp_path)


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "rows.yaml").write_text("notes: []\nneeds: {}\nneeds: {}\ntables: {}\n")
    with pytest.raises(ValueError, match="'needs' twice"):
        read_rows(tmp_path / "rows.yaml")


def test_the_page_of_plots_has_every_row_and_nothing_overlaps(copy, tmp_path):
    add(copy, a_row("open", "a", [0.5, 0.6, 0.7], what="a very long description of a row that has no room"))
    add(copy, a_row("table1", "twitter", [0.7, 0.72, 0.71]))
    panels = panels_of(ledger := read_ledger(copy))
    assert {dot.label for panel in panels for dot in panel.dots} >= {
        line["what"] for line in ledger.measured.values() if line["table"] == "open"
    }
    columns = in_columns(panels)
    assert sum(map(len, columns)) == len(panels)
    twitter = next(panel for panel in panels if "prints: Twitter" in panel.title)
    assert twitter.dots[0].values == [0.7, 0.72, 0.71] and twitter.dots[0].paper == 0.9191
    assert twitter.majority == pytest.approx(1450 / 2409)
    main(["--results", str(copy)])
    assert (copy / "ledger.png").read_bytes()[:4] == b"\x89PNG"
    assert_nothing_overlaps(panels)


def assert_nothing_overlaps(panels):
    from ledger_plots import page_of
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = page_of(panels)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    width, height = figure.canvas.get_width_height()
    boxes = []
    for axes in figure.axes:
        texts = [*axes.texts, axes.xaxis.label, *axes.get_yticklabels()]
        boxes += [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]
    for text, box in boxes:
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text
    for place, (text, box) in enumerate(boxes):
        for other_text, other in boxes[place + 1 :]:
            apart = box.x1 <= other.x0 or other.x1 <= box.x0 or box.y1 <= other.y0 + 1 or other.y1 <= box.y0 + 1
            assert apart, (text, other_text)


def test_without_matplotlib_the_page_is_still_written(copy, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=r"\[plots\]"):
        main(["--results", str(copy)])
    assert (copy / "ledger.md").is_file()


def test_latency_is_of_the_papers_settings():
    assert paper_config("Yelp Sentiment", {}).num_labels == 5 and paper_config("Twitter Sarcasm", {}).image_size == 224
    small = {"num_text_layers": 1, "num_image_layers": 1, "num_fusion_layers": 1, "hidden_size": 16}
    lines = latency_lines({"a": ("Twitter Sarcasm", small)}, machine_kind="x", commit="abc", repeats={1: 2, 2: 1})
    assert [(line["batch"], line["repeats"], line["patches"], line["text_tokens"]) for line in lines] == [
        (1, 2, 196, 15),
        (2, 1, 196, 15),
    ]
    config = HFMambaConfig(**small, image_size=32)
    times = measure_latency({"one": config, "two": config}, text_tokens=4, batch=1, repeats=3)
    assert set(times) == {"one", "two"} and all(seconds > 0 for seconds in times.values())


def test_numbers_read_as_in_the_papers_of_the_field():
    assert [number(value) for value in (0.9191, 1.0, 1.25, 0.0, None)] == [".9191", "1.0000", "1.2500", ".0000", ""]
    assert [number(value, sign=True) for value in (0.0012, -0.5)] == ["+.0012", "-.5000"]
