"""--search_trials: what is tried, how it goes on after an interruption, and the recipe that comes out."""

import csv
import json

import pytest
import yaml
from running import SMALL, command, interrupt_at, refused

from hf_mamba import run_classification
from hf_mamba.classification.runs.search_space import DEFAULT_SPACE, read_space, values_of
from hf_mamba.classification.support import extras


SPACE = {"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}, "num_fusion_layers": {"low": 1, "high": 2}}
SPACE["pooling"] = ["mean_max", "max"]
BY_LOSS = ["--metric_for_best_model", "loss", "--greater_is_better", "false"]


def search_command(folder, output_dir, *flags):
    space = ["--search_space", json.dumps(SPACE)]
    return command(folder, output_dir, "--num_train_epochs", 1, "--search_trials", 3, *space, *BY_LOSS, *flags)


def trials(output_dir):
    with (output_dir / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def searched(folder, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("search") / "out"
    return output_dir, run_classification.main(search_command(folder, output_dir))


def test_trials_are_listed_best_first_and_compared_on_validation_posts(searched):
    output_dir, found = searched
    rows = trials(output_dir)
    losses = [float(row["loss"]) for row in rows]
    assert losses == sorted(losses) and len(rows) == 3
    for row in rows:
        results = json.loads((output_dir / f"trial-{row['trial']}" / "all_results.json").read_text())
        assert float(row["loss"]) == pytest.approx(results["validation_loss"], abs=1e-6)
        assert not any(name.startswith("test_") for name in results)
        assert not (output_dir / f"trial-{row['trial']}" / "predictions.csv").exists()
    first = next(row for row in rows if row["trial"] == "0")  # the recipe as it stands
    assert (float(first["learning_rate"]), first["num_fusion_layers"], first["pooling"]) == (1e-3, "1", "mean_max")
    assert found["best_trial"] == int(rows[0]["trial"]) and found["best_value"] == losses[0]
    table = (output_dir / "trials.md").read_text().splitlines()
    assert len(table) == 5 and table[0].split()[1:4:2] == ["trial", "loss"]


def test_the_best_recipe_runs_as_it_is_and_repeats_its_trial(searched, tmp_path):
    output_dir, found = searched
    recipe = yaml.safe_load((output_dir / "best_recipe.yaml").read_text())
    assert recipe.items() >= found["best_params"].items()
    metrics = run_classification.main([str(output_dir / "best_recipe.yaml")])
    assert metrics["validation"]["loss"] == pytest.approx(found["best_value"], abs=1e-6)
    assert metrics["test"]["num_posts"] == 16
    assert (output_dir / "best" / "model.safetensors").is_file()


def test_an_interrupted_search_tries_what_a_whole_one_does(searched, folder, tmp_path, monkeypatch, caplog):
    """Stopped before a trial's first checkpoint, and with a smaller number of trials; then repeated."""
    argv = search_command(folder, tmp_path / "out")
    interrupt_at(monkeypatch, 3, argv)
    run_classification.main([*argv, "--search_trials", "2"])
    interrupt_at(monkeypatch, 3, argv)
    run_classification.main(argv)
    assert trials(tmp_path / "out") == trials(searched[0])


def test_a_trial_resumes_from_its_checkpoint(folder, tmp_path, monkeypatch, caplog):
    argv = command(folder, tmp_path / "out", "--search_trials", 1, *BY_LOSS)
    interrupt_at(monkeypatch, 9, argv)
    with caplog.at_level("INFO", logger="hf_mamba"):
        found = run_classification.main(argv)
    assert "resuming from" in caplog.text and found["best_trial"] == 0
    assert not list((tmp_path / "out" / "trial-0").glob("checkpoint-*"))


def test_a_search_of_another_recipe_is_not_continued(searched, folder, monkeypatch):
    message = refused(monkeypatch, search_command(folder, searched[0], "--weight_decay", 0.5))
    assert "weight_decay=0.05 then, 0.5 now" in message
    message = refused(
        monkeypatch, search_command(folder, searched[0], "--search_space", '{"pooling": ["max", "mean"]}')
    )
    assert "search_space=" in message


def test_a_later_trial_may_fail_and_the_first_may_not(folder, tmp_path, monkeypatch, caplog):
    space = ["--search_space", json.dumps({"hidden_size": [16, 15]})]  # odd sizes can't be
    argv = command(folder, tmp_path / "out", "--num_train_epochs", 1, "--search_trials", 4, *space)
    run_classification.main(argv)
    failed = [row["hidden_size"] for row in trials(tmp_path / "out") if row["accuracy"] == "failed"]
    assert failed and {*failed} == {"15"} and "hidden_size is 15, but must be even" in caplog.text
    message = refused(monkeypatch, [*argv, "--output_dir", tmp_path / "no", "--label_column_name", "lable"])
    assert "'lable'" in message


def test_a_search_without_optuna_names_the_extra(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    message = refused(monkeypatch, command(folder, tmp_path / "out", "--search_trials", 2))
    assert "--search_trials needs optuna" in message and '"hf-mamba[search]"' in message


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--search_trials", 0], ["--search_trials 0"]),
        (["--search_space", '{"pooling": ["max", "mean"]}'], ["--search_trials"]),
        (["--search_trials", 2, "--load_best_model_at_end", "false"], ["--load_best_model_at_end"]),
        (["--search_trials", 2, "--push_to_hub"], ["--push_to_hub"]),
        (["--search_trials", 2, "--search_space", "no.yaml"], ["no.yaml"]),
    ],
)
def test_searches_that_can_not_be_are_refused(flags, parts, folder, tmp_path, monkeypatch):
    message = refused(monkeypatch, command(folder, tmp_path / "out", *flags))
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("space", "parts"),
    [
        ("learning_rat: [1, 2]", ["'learning_rat'", "Did you mean 'learning_rate'?"]),
        ("test_file: [a, b]", ["'test_file'"]),
        ("label_smoothing: [0, 0.1]", ["'label_smoothing'"]),  # trials are compared by the loss
        ("pooling: [max]", ["pooling", "two choices"]),
        ("pooling: max", ["pooling", "choices in [ ]"]),
        ("learning_rate: {low: 1, high: 0.1}", ["learning_rate", "low and high are 1 and 0.1"]),
        ("learning_rate: {low: 0, high: 0.1, log: true}", ["learning_rate", "above 0"]),
        ("learning_rate: {low: 0, hgih: 0.1}", ["learning_rate", "hgih"]),
        ("a: [", ["can't be read"]),
        ("", ["holds no flags"]),
    ],
)
def test_bad_spaces_are_named(space, parts, tmp_path):
    (tmp_path / "space.yaml").write_text(space)
    with pytest.raises(ValueError) as error:
        read_space(str(tmp_path / "space.yaml"), from_checkpoint=False, metric="loss")
    for part in ["space.yaml", *parts]:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_space_stands_in_a_recipe_a_file_or_nowhere(folder, tmp_path):
    text = "learning_rate: {low: 1e-4, high: 1e-2, log: true}\nnum_fusion_layers: {low: 1, high: 3}\n"  # 1e-4: a word
    expected = {
        "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "num_fusion_layers": {"low": 1, "high": 3, "log": False},
    }
    (tmp_path / "space.yaml").write_text(text)
    assert read_space(str(tmp_path / "space.yaml"), from_checkpoint=False, metric="accuracy") == expected
    section = "search_space:\n" + "".join(f"  {line}\n" for line in text.splitlines())
    (tmp_path / "recipe.yaml").write_text("search_trials: 3\n" + section)
    _, _, training, _ = run_classification.parse_arguments([str(tmp_path / "recipe.yaml"), "--use_cpu", *SMALL])
    assert training.search_trials == 3
    assert read_space(training.search_space, from_checkpoint=False, metric="accuracy") == expected
    assert read_space(None, from_checkpoint=False, metric="accuracy") == DEFAULT_SPACE
    assert "pooling" not in read_space(None, from_checkpoint=True, metric="accuracy")
    assert values_of({}, DEFAULT_SPACE)["hidden_dropout"] == 0.1
    assert values_of({"learning_rate": 5.0}, DEFAULT_SPACE) is None  # outside
    assert values_of({"model_name_or_path": "x"}, DEFAULT_SPACE) is None  # the checkpoint's dropout isn't known
