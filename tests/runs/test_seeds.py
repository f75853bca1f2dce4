"""--seeds: each run is one that could stand alone, the command goes on when repeated, mean and deviation are right."""

import json
import statistics

import pytest
import yaml
from running import SMALL, assert_same_weights, command, interrupt_at, refused, weights

from hf_mamba import run_classification
from hf_mamba.classification.runs.seeds import over_seeds, seeds_table


ONE_PASS = ["--num_train_epochs", 1]


@pytest.fixture(scope="module")
def without_validation(folder, tmp_path_factory):
    """Flags of posts from which validation posts are set aside."""
    posts = ["--train_file", folder / "train" / "metadata.jsonl", "--test_file", folder / "test" / "metadata.jsonl"]
    flags = ["--do_train", "--do_eval", "--do_predict", *SMALL, *ONE_PASS, *posts, "--validation_split", 0.25]
    return [str(flag) for flag in flags]


@pytest.fixture(scope="module")
def two_seeds(without_validation, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("seeds") / "out"
    flags = ["--seed", "5", "--seeds", "1", "2", "--output_dir", str(output_dir)]
    return output_dir, run_classification.main([*without_validation, *flags])


def test_statistics_are_of_the_runs_own_results(two_seeds, capsys):
    output_dir, found = two_seeds
    results = [json.loads((output_dir / f"seed-{seed}" / "all_results.json").read_text()) for seed in (1, 2)]
    for name in ("validation_loss", "test_accuracy"):
        split, metric = name.split("_")
        values = [result[name] for result in results]
        assert found[split][metric]["values"] == values
        assert found[split][metric]["mean"] == pytest.approx(sum(values) / 2)
        assert found[split][metric]["sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert json.loads((output_dir / "seeds_results.json").read_text()) == {"seeds": [1, 2], **found}


def test_a_seed_alone_gives_the_same_weights_on_the_same_validation_posts(two_seeds, without_validation, tmp_path):
    output_dir, _ = two_seeds
    recipes = [yaml.safe_load((output_dir / f"seed-{seed}" / "recipe.yaml").read_text()) for seed in (1, 2)]
    assert [(recipe["seed"], recipe["split_seed"]) for recipe in recipes] == [(1, 5), (2, 5)]
    alone = ["--seed", "2", "--split_seed", "5", "--output_dir", str(tmp_path / "alone")]
    run_classification.main([*without_validation, *alone])
    assert_same_weights(output_dir / "seed-2", tmp_path / "alone")
    first, second = (weights(output_dir / f"seed-{seed}") for seed in (1, 2))
    assert any((first[name] != second[name]).any() for name in first)


def test_repeating_the_command_goes_on_where_it_stopped(folder, tmp_path, monkeypatch, caplog):
    argv = command(folder, tmp_path / "out", "--seeds", 0, 1)
    interrupt_at(monkeypatch, 9, [*argv, "--seeds", "0"])  # in the second pass of seed 0
    with caplog.at_level("INFO", logger="hf_mamba"):
        run_classification.main([*argv, "--seeds", "0"])
    assert "resuming from" in caplog.text
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "seed-0").rglob("*")}
    with caplog.at_level("INFO", logger="hf_mamba"):
        run_classification.main(argv)  # one seed more
    assert "Seed 0 (1 of 2) is finished" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "seed-0").rglob("*")} == before
    assert json.loads((tmp_path / "out" / "seeds_results.json").read_text())["seeds"] == [0, 1]
    message = refused(monkeypatch, [*argv, "--learning_rate", 0.5])
    assert "learning_rate=0.001 then, 0.5 now" in message
    run_classification.main([*argv, *map(str, ONE_PASS), "--overwrite_output_dir"])
    assert json.loads((tmp_path / "out" / "seed-0" / "trainer_state.json").read_text())["epoch"] == 1


def test_means_and_deviations():
    found = over_seeds([{"test_accuracy": value, "test_runtime": value, "train_loss": 1} for value in (0.5, 0.7, 0.9)])
    assert found.keys() == {"test"} and found["test"].keys() == {"accuracy"}
    of_accuracy = found["test"]["accuracy"]
    assert of_accuracy["sd"] == pytest.approx(statistics.stdev([0.5, 0.7, 0.9])) == pytest.approx(0.2)
    assert "| test  | accuracy | 0.7000 ± 0.2000 | 0.5000 | 0.9000 |" in seeds_table(found)
    assert over_seeds([{"test_accuracy": 0.5}])["test"]["accuracy"]["sd"] is None


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--seeds", 1, 1], ["--seeds 1 1", "different"]),
        (["--seeds", 1, "--search_trials", 2], ["--seeds and --search_trials"]),
        (["--seeds", 1, "--push_to_hub"], ["--push_to_hub"]),
        (["--seeds", 1, "--do_train", "false"], ["--do_train"]),
        (["--seeds", 1, "--do_eval", "false", "--do_predict", "false"], ["--do_eval"]),
        (["--seeds", "one"], ["--seeds", "'one'"]),
    ],
)
def test_seeds_that_can_not_be_are_refused(flags, parts, finished, folder, tmp_path, monkeypatch):
    start = ["--model_name_or_path", finished[0]] if "--do_train" in flags else []
    message = refused(monkeypatch, command(folder, tmp_path / "out", *start, *flags))
    for part in parts:
        assert part in message


def test_the_folder_of_a_single_run_is_left_alone(finished, folder, monkeypatch):
    assert "holds no seeds_recipe.yaml" in refused(monkeypatch, command(folder, finished[0], "--seeds", 0))


def test_a_single_run_leaves_the_folder_of_seeds_alone(two_seeds, folder, monkeypatch):
    assert "not a run of this script" in refused(monkeypatch, command(folder, two_seeds[0]))
