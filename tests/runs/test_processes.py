"""Several processes give what one gives; and what is said when they turn out to be one."""

import csv
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from running import command, weights

from hf_mamba import run_classification
from hf_mamba.classification.data import DataArguments, load_posts
from hf_mamba.classification.support.processes import warn_of_one_process


SCRIPT = Path(run_classification.__file__).parent / "run_classification.py"
# Each process draws its own dropout, so that only without it two can train as one does
EXACT = ["--hidden_dropout", 0, "--classifier_dropout", 0, "--eval_strategy", "steps", "--save_strategy", "steps"]
EXACT += ["--eval_steps", 10, "--save_steps", 10, "--max_steps", 20]


def run_in_two(argv):
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", SCRIPT, *argv]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.run([*map(str, run)], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process


def results(output_dir):
    found = json.loads((output_dir / "all_results.json").read_text())
    return {name: value for name, value in found.items() if "runtime" not in name and "per_second" not in name}


def predictions(output_dir):
    with (output_dir / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_predictions(first, second, **tolerance):
    """The same posts in the same order with the same answers, and probabilities that are close."""
    for row, other in zip(predictions(first), predictions(second), strict=True):
        close = {name: pytest.approx(float(row[name]), **tolerance) for name in row if name.startswith("probability_")}
        assert {name: float(cell) if name in close else cell for name, cell in other.items()} == {**row, **close}


@pytest.mark.slow
@pytest.mark.parametrize("odd", [False, True], ids=["divisible", "odd"])
def test_two_processes_train_evaluate_and_predict_like_one(odd, folder, tmp_path):
    """
    One process with 16 posts a step, two with 8 each: the same posts in every step. 48 posts fill three steps; of 45
    the last ones are dropped, since two processes would fill up the step with posts from the beginning of the pass. 13
    posts to evaluate and predict, 4 at a time: at the end one process has a whole batch and the other a single post.
    """
    counts = ["--max_train_samples", 45, "--dataloader_drop_last", "--per_device_eval_batch_size", 4]
    counts += ["--max_eval_samples", 13, "--max_predict_samples", 13]
    flags = [*EXACT, *(counts if odd else [])]
    one, two = tmp_path / "one", tmp_path / "two"
    run_classification.main(command(folder, one, *flags, "--per_device_train_batch_size", 16))
    # Without a GPU the processes must meet also where nobody says --use_cpu
    unasked = [] if torch.accelerator.is_available() else ["--use_cpu", "false"]
    run_in_two(command(folder, two, *flags, "--per_device_train_batch_size", 8, *unasked))
    assert results(one).keys() == results(two).keys()
    for name, value in results(one).items():
        assert results(two)[name] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-4)), name
    assert results(one)["test_num_posts"] == (13 if odd else 16)
    for name, weight in weights(one).items():
        assert torch.allclose(weight, weights(two)[name], atol=1e-5), name
    assert_same_predictions(one, two, abs=1e-4)
    assert len(predictions(two)) == (13 if odd else 16)
    argv = ["--model_name_or_path", one, "--dataset_name", folder, "--do_predict", *(counts if odd else [])]
    run_in_two([*argv, "--use_cpu", "--output_dir", tmp_path / "again"])
    assert_same_predictions(one, tmp_path / "again", abs=1.5e-6)  # of the same weights but for the last digit


@pytest.mark.slow
def test_seeds_and_a_search_run_in_two_processes(folder, tmp_path):
    argv = command(folder, tmp_path / "seeds", "--seeds", 0, 1, "--num_train_epochs", 1)
    assert "| test       | accuracy " in run_in_two(argv).stdout
    run_in_two(command(folder, tmp_path / "search", "--search_trials", 2, "--num_train_epochs", 1))
    assert len((tmp_path / "search" / "trials.csv").read_text().splitlines()) == 3


@pytest.mark.slow
def test_folds_run_in_two_processes(folder, tmp_path):
    argv = command(folder, tmp_path / "folds", "--folds", 2, "--num_train_epochs", 1)
    assert "All 48 posts, each predicted once" in run_in_two(argv).stdout
    assert len((tmp_path / "folds" / "predictions.csv").read_text().splitlines()) == 49


@pytest.mark.slow
def test_two_processes_calibrate_like_one(finished, folder, tmp_path):
    flags = ["--dataset_name", folder, "--do_eval", "--do_predict", "--calibrate", "--per_device_eval_batch_size", 5]
    argv = [*map(str, ["--model_name_or_path", finished[0], "--use_cpu", *flags, "--output_dir"])]
    run_classification.main([*argv, str(tmp_path / "one")])
    run_in_two([*argv, tmp_path / "two"])
    one, two = (json.loads((tmp_path / name / "calibration.json").read_text()) for name in ("one", "two"))
    assert one["temperature"] != 1 and two["temperature"] == pytest.approx(one["temperature"], rel=1e-4)
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    for name in ("validation_num_posts", "validation_nll", "validation_ece", "test_nll", "test_nll_uncalibrated"):
        assert two[name] == pytest.approx(one[name], abs=1e-4), name


def test_dropping_the_last_step_drops_no_post_of_evaluation_or_prediction(finished, folder, tmp_path):
    flags = ["--dataloader_drop_last", "--per_device_eval_batch_size", "5", "--model_name_or_path", str(finished[0])]
    argv = [*flags, "--dataset_name", str(folder), "--do_eval", "--do_predict", "--use_cpu"]
    metrics = run_classification.main([*argv, "--output_dir", str(tmp_path / "out")])
    assert metrics["validation"]["num_posts"] == metrics["test"]["num_posts"] == 16
    lines = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    posts = load_posts(DataArguments(dataset_name=str(folder)), seed=0)
    assert [line.split(",")[0] for line in lines[1:]] == posts.column("test", "id")


def test_the_loss_does_not_depend_on_batches(finished, folder, tmp_path):
    argv = ["--model_name_or_path", str(finished[0]), "--dataset_name", str(folder), "--do_eval", "--use_cpu"]
    weighted = ["--class_weights", "1", "5"]  # each batch would weigh its posts by the labels it happens to have
    losses = [
        run_classification.main(
            [*argv, *weighted, "--per_device_eval_batch_size", size, "--output_dir", str(tmp_path / size)]
        )["validation"]["loss"]
        for size in ("3", "16")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_accelerate_that_starts_one_process_in_place_of_two_is_noticed(caplog):
    of_launch = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for environment in ({}, {"ACCELERATE_USE_CPU": "True"}, {**of_launch, "WORLD_SIZE": "1"}):
        warn_of_one_process(1, environment)
    warn_of_one_process(2, of_launch)
    assert not caplog.text
    warn_of_one_process(1, of_launch)
    assert "torchrun --nproc_per_node" in caplog.text


@pytest.mark.slow
def test_accelerate_still_launches_so(tmp_path):
    """What the warning goes by: the environment that accelerate makes for two processes without mpirun."""
    (tmp_path / "show.py").write_text("import os, json; print(json.dumps(dict(os.environ)))")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    shown = subprocess.run([*launch, str(tmp_path / "show.py")], capture_output=True, text=True).stdout
    environment = json.loads(shown.splitlines()[-1])
    assert len(shown.splitlines()) == 1  # one process
    assert environment["ACCELERATE_USE_CPU"].lower() == "true"
    assert "MASTER_PORT" in environment and "WORLD_SIZE" not in environment


@pytest.mark.parametrize("error", [None, ValueError("a mistake")], ids=["done", "failed"])
def test_the_command_leaves_the_group_of_processes_that_it_joined(error, tmp_path, monkeypatch):
    """Threads of a group that is never left can abort the process at its end, after all was done."""

    def joins():
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        if error is not None:
            raise error

    monkeypatch.setattr(run_classification, "main", joins)
    with pytest.raises(SystemExit, match="a mistake") if error else nullcontext():
        run_classification.run()
    assert not torch.distributed.is_initialized()
