"""Recording finished runs: a line says what the folders hold, and nothing else is recorded."""

import functools
import json
import statistics

import numpy as np
import pytest
import record as record_module
import yaml
from ledger_rows import read_measured
from record import main
from scipy import stats

from hf_mamba import HFMambaConfig, HFMambaForSequenceClassification
from hf_mamba.classification.runs.recipes import parse_arguments


ROWS = """\
notes: []
needs: {time: time}
tables:
  grid:
    title: A grid
    reference: reference
    rows:
      reference: {label: the reference}
      flat: {label: no hierarchy}
"""
CONFIG = {"hidden_size": 16, "image_size": 32, "num_text_layers": 1, "num_image_layers": 1, "num_fusion_layers": 1}
FLAT = "--fusion flatten"


@pytest.fixture
def results(tmp_path):
    """An empty ledger."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "rows.yaml").write_text(ROWS)
    return tmp_path / "results"


def write_run(folder, recipe, value, **more):
    """An output folder as a run leaves it, but for the checkpoint's weights and code."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    scores = {"accuracy": value, "accuracy_low": value - 0.1, "accuracy_high": value + 0.05, "majority_accuracy": 0.5}
    report = {"split": "test", "problem_type": "single_label_classification", "metrics": scores} | more
    report = {"posts": {"train": 4000, "validation": 400, "test": 800}} | report
    (folder / "test_report.json").write_text(json.dumps(report))
    results = {"test_accuracy": value, "test_num_posts": 800, "train_runtime": 10 * value}
    (folder / "all_results.json").write_text(json.dumps(results))
    HFMambaConfig(**CONFIG).save_pretrained(folder)


@functools.cache
def effective_recipe(*flags):
    """Of `quickstart --seeds ...`."""
    return parse_arguments(["quickstart", "--seeds", *flags])[-1]


def write_seeds(folder, flags="", values=(0.8, 0.9, 0.85), **more):
    """The folder of `quickstart --seeds 0 1 2` with further flags."""
    seeds = [str(seed) for seed in range(len(values))]
    recipe = effective_recipe(*seeds, *flags.split()) | {"output_dir": str(folder)}
    one = {flag: value for flag, value in recipe.items() if flag != "seeds"}
    for seed, value in zip(seeds, values):
        write_run(folder / f"seed-{seed}", one | {"seed": int(seed), "split_seed": 42}, value, **more)
    (folder / "seeds_recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "seeds_results.json").write_text("{}")
    return f"python run_classification.py quickstart --seeds {' '.join(seeds)} {flags}".strip()


def record(results, *folders, row="reference", command=None, flags=()):
    argv = [*map(str, folders), "--table", "grid", "--machine_kind", "a laptop", "--results", str(results)]
    argv += ["--row", row] if row else ["--every_row"]
    argv += ["--command", command] if command else []
    main([*argv, *flags])
    return read_measured(results / "measured.jsonl")


def refused(*args, **kwargs):
    with pytest.raises((ValueError, OSError)) as error:
        record(*args, **kwargs)
    return str(error.value)


def test_a_line_says_what_the_folders_hold(results, tmp_path):
    values = [0.8, 0.9, 0.85]
    command = write_seeds(tmp_path / "runs", values=values)
    [line] = record(results, tmp_path / "runs", command=command, flags=["--commit", "abc"])
    score = line["scores"]["accuracy"]
    assert (score["values"], score["mean"]) == (values, pytest.approx(0.85))
    assert score["sd"] == pytest.approx(statistics.stdev(values), abs=1e-6)
    assert (score["posts_low"], score["posts_high"]) == pytest.approx((0.75, 0.9))
    expected = stats.t.interval(0.95, 2, loc=0.85, scale=np.std(values, ddof=1) / 3**0.5)
    assert (score["seeds_low"], score["seeds_high"]) == pytest.approx(expected, abs=1e-5)
    assert (line["what"], line["seeds"], line["majority"]) == ("the reference", [0, 1, 2], 0.5)
    assert line["posts"] == {"train": 4000, "validation": 400, "test": 800}
    assert line["parameters"] == HFMambaForSequenceClassification(HFMambaConfig(**CONFIG)).num_parameters()
    assert (line["command"], line["commit"], line["machine_kind"]) == (command, "abc", "a laptop")
    assert line["train_seconds"] == pytest.approx([8, 9, 8.5]) and line["data"] == "built-in posts"
    assert str(tmp_path) not in (results / "measured.jsonl").read_text()


def test_the_folds_of_one_command_are_one_row(results, tmp_path):
    folder, values = tmp_path / "folds", (0.8, 0.9)
    command = "python run_classification.py quickstart --folds 2"
    recipe = parse_arguments(command.split()[2:])[-1] | {"output_dir": str(folder)}
    for fold, value in enumerate(values, start=1):
        write_run(folder / f"fold-{fold}", recipe | {"fold": fold}, value)
    (folder / "folds_recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert "is not finished" in refused(results, folder, command=command)
    (folder / "folds_results.json").write_text("{}")
    [line] = record(results, folder, command=command)
    assert (line["over"], tuple(line["scores"]["accuracy"]["values"])) == ("folds", values)


def test_a_flag_that_came_later_is_not_another_recipe_at_its_default(results, tmp_path):
    command = write_seeds(tmp_path / "runs")
    recipe_file = tmp_path / "runs" / "seeds_recipe.yaml"
    recipe = yaml.safe_load(recipe_file.read_text())
    assert recipe.pop("calibrate_metric") == "accuracy"
    recipe_file.write_text(yaml.safe_dump(recipe))
    assert record(results, tmp_path / "runs", command=command)
    other = f"{command} --calibrate_metric f1_macro"
    assert "calibrate_metric" in refused(results, tmp_path / "runs", command=other, flags=["--replace"])


def test_one_run_has_no_deviation_and_two_no_interval(results, tmp_path):
    for row, values in (("reference", [0.8]), ("flat", [0.8, 0.9])):
        command = write_seeds(tmp_path / row, values=values)
        line = record(results, tmp_path / row, row=row, command=command)[-1]
        score = line["scores"]["accuracy"]
        assert (score["sd"] is None) == (len(values) == 1) and score["seeds_low"] is score["seeds_high"] is None


def test_counts_of_posts_are_those_of_the_reports_and_a_range_where_runs_differ(results, tmp_path):
    command = write_seeds(tmp_path / "runs", posts={"train": 90, "test": 800})
    report = tmp_path / "runs" / "seed-1" / "test_report.json"
    report.write_text(report.read_text().replace('"train": 90', '"train": 1080'))
    [line] = record(results, tmp_path / "runs", command=command)
    assert line["posts"] == {"train": "90 to 1,080", "test": 800}
    report.write_text(report.read_text().replace('"posts"', '"other"'))
    message = refused(results, tmp_path / "runs", command=command, flags=["--replace"])
    assert str(report) in message and "earlier version" in message and "repeat the run" in message


def test_groups_and_a_single_run(results, tmp_path):
    command = write_seeds(tmp_path / "runs", per_group={"BO": {"accuracy": 0.7}})
    one = tmp_path / "runs" / "seed-1"
    [line] = record(results, one, command=command.replace("--seeds 0 1 2", "--seed 1"))
    assert line["seeds"] == [1] and line["groups"]["BO"]["accuracy"]["values"] == [0.7]


def test_a_row_is_only_replaced_when_asked(results, tmp_path):
    commands = {row: write_seeds(tmp_path / row, flags) for row, flags in (("reference", ""), ("flat", FLAT))}
    for row, command in commands.items():
        record(results, tmp_path / row, row=row, command=command)
    before = (results / "measured.jsonl").read_text()
    record(results, tmp_path / "flat", row="flat", command=commands["flat"])
    assert (results / "measured.jsonl").read_text() == before
    write_seeds(tmp_path / "reference", values=[0.7, 0.7, 0.7])
    message = refused(results, tmp_path / "reference", command=commands["reference"])
    assert "0.85 then, 0.7 now" in message and "--replace" in message
    assert (results / "measured.jsonl").read_text() == before
    record(results, tmp_path / "reference", command=commands["reference"], flags=["--replace"])
    after = (results / "measured.jsonl").read_text().splitlines()
    assert after[1] == before.splitlines()[1] and after[0] != before.splitlines()[0]


def test_a_command_must_give_the_recipe_of_the_folder(results, tmp_path):
    command = write_seeds(tmp_path / "runs", FLAT)
    message = refused(results, tmp_path / "runs", command=command.replace("flatten", "hierarchical"))
    assert "fusion='flatten' then, 'hierarchical' now" in message
    assert "quickstart" in refused(results, tmp_path / "runs", command=command.replace("quickstart", "quickstar"))
    assert "runs neither" in refused(results, tmp_path / "runs", command="python -m hf_mamba.classification.nothing")
    assert "the command is not known" in refused(results, tmp_path / "runs")
    assert not (results / "measured.jsonl").exists()


def test_a_baseline_records_likewise(results, tmp_path):
    write_run(tmp_path / "words", {"baseline": "naive_bayes", "seed": 0, "train_file": "/home/me/data/a.csv"}, 0.8)
    (tmp_path / "words" / "config.json").unlink()
    command = "python -m hf_mamba.classification.compare words"
    argv = ["--table", "other", "--row", "words", "--machine_kind", "x", "--results", str(results)]
    main([str(tmp_path / "words"), *argv, "--command", command])
    [line] = read_measured(results / "measured.jsonl")
    assert line["what"] == "naive_bayes (baseline)" and line["parameters"] is None
    assert line["data"] == "train: data/a.csv"


def test_every_row_takes_the_commands_beside_and_leaves_out_what_is_not_finished(results, tmp_path, capsys):
    grid = tmp_path / "outputs"
    command = write_seeds(grid / "flat", FLAT)
    write_seeds(grid / "reference")
    (grid / "reference" / "seed-2" / "all_results.json").unlink()
    for row, text in (("flat", command), ("reference", "python run_classification.py quickstart --seeds 0 1 2")):
        (tmp_path / f"outputs.{row}.command.txt").write_text(text + "\n")
        (tmp_path / f"outputs.{row}.commit.txt").write_text("abc\n")
    [line] = record(results, grid, row=None)
    assert (line["row"], line["command"], line["commit"]) == ("flat", command, "abc")
    assert "left out" in capsys.readouterr().out
    assert "seed-2" in refused(results, grid / "reference", command="python run_classification.py quickstart")
    (grid / "flatt").mkdir()
    assert "Did you mean 'flat'" in refused(results, grid, row=None)


def test_runs_of_one_row_are_of_one_recipe_and_different_seeds(results, tmp_path):
    recipe = {"train_file": "a.csv", "hidden_size": 8, "baseline": "x"}
    command = "python -m hf_mamba.classification.compare a"
    for name, change in (("a", {}), ("again", {}), ("wide", {"hidden_size": 9}), ("data", {"train_file": "b.csv"})):
        write_run(tmp_path / name, recipe | {"seed": 0} | change, 0.5)
    first = tmp_path / "a"
    assert "Seed 0 occurs twice" in refused(results, first, tmp_path / "again", command=command)
    assert "hidden_size=9" in refused(results, first, tmp_path / "wide", command=command)
    assert "--folds" in refused(results, first, tmp_path / "data", command=command)
    [line] = record(results, first, tmp_path / "data", command=command, flags=["--folds"])
    assert line["over"] == "folds" and line["scores"]["accuracy"]["values"] == [0.5, 0.5]


def test_a_folder_that_is_not_a_run_is_refused(results, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "not an output folder" in refused(results, tmp_path / "empty", command="x")
    assert "There is no folder" in refused(results, tmp_path / "nothing", command="x")
    assert record_module.head_commit() is None or " " not in record_module.head_commit()
