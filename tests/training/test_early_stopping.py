"""Early stopping: when training ends, what is kept and said, and that a resumed run ends where a whole one does."""

import json

import pytest
from running import SMALL, assert_same_weights, command, interrupt_at, refused
from transformers import TrainerCallback

from hf_mamba import run_classification


# Nothing is learned, so that no evaluation is better than the first
STILL = ["--learning_rate", 0, "--num_train_epochs", 10, "--early_stopping_patience", 2]
# Something is, at first: validation loss at this rate is best after some epochs
LEARNING = ["--learning_rate", 0.02, "--num_train_epochs", 12, "--early_stopping_patience", 2]
LEARNING += ["--metric_for_best_model", "loss", "--greater_is_better", "false"]


def results(output_dir):
    return json.loads((output_dir / "all_results.json").read_text())


def test_training_stops_and_says_when_and_which_epoch_was_best(folder, tmp_path, caplog):
    with caplog.at_level("INFO", logger="hf_mamba"):
        run_classification.main(command(folder, tmp_path / "out", *STILL))
    assert "Stopped early, at epoch 3: no better accuracy in 2 evaluations." in caplog.text
    assert "The best was epoch 1 (accuracy 0.5000), whose weights are kept." in caplog.text
    assert "early stopping is disabled" not in caplog.text  # transformers, of the evaluation after training
    found = results(tmp_path / "out")
    assert (found["train_epoch"], found["train_best_epoch"], found["train_best_metric"]) == (3, 1, "accuracy")


def test_the_best_epoch_is_that_of_its_evaluations(folder, tmp_path):
    metrics = run_classification.main(command(folder, tmp_path / "out", *LEARNING))
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    losses = {entry["epoch"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    best = min(losses, key=losses.get)
    found = results(tmp_path / "out")
    assert 1 < best == found["train_best_epoch"] == max(losses) - 2 < 10
    assert metrics["validation"]["loss"] == pytest.approx(losses[best], abs=1e-6)


def test_a_large_threshold_stops_sooner(folder, tmp_path):
    threshold = ["--early_stopping_threshold", 10]
    run_classification.main(command(folder, tmp_path / "out", *LEARNING, *threshold))
    assert results(tmp_path / "out")["train_epoch"] == 3


class StopAfterTheLastSave(TrainerCallback):
    """Interrupts the run when training has stopped early and its last checkpoint is written."""

    def on_save(self, args, state, control, **kwargs):
        if control.should_training_stop:
            raise KeyboardInterrupt


def test_an_interrupted_run_stops_where_a_whole_one_does(folder, tmp_path, monkeypatch, caplog):
    """Interrupted in the epoch that will be the last, and once more when all is trained and nothing written yet."""
    run_classification.main(command(folder, tmp_path / "whole", *LEARNING))
    whole = results(tmp_path / "whole")
    last = int(whole["train_epoch"])
    argv = command(folder, tmp_path / "stopped", *LEARNING)
    interrupt_at(monkeypatch, 6 * last - 2, argv)
    interrupt_at(monkeypatch, StopAfterTheLastSave(), argv)
    assert (tmp_path / "stopped" / f"checkpoint-{6 * last}").is_dir()
    with caplog.at_level("INFO", logger="hf_mamba"):
        run_classification.main(argv)
    assert f"Stopped early, at epoch {last}" in caplog.text
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
    for name in ("train_epoch", "train_best_epoch", "train_best_value", "test_accuracy", "validation_loss"):
        assert results(tmp_path / "stopped")[name] == whole[name]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--early_stopping_patience", 0], ["--early_stopping_patience 0", "1 or more"]),
        (["--early_stopping_threshold", 0.1], ["--early_stopping_patience"]),
        (["--early_stopping_patience", 2, "--early_stopping_threshold", -1], ["--early_stopping_threshold -1"]),
        (["--early_stopping_patience", 2, "--eval_strategy", "no"], ["--eval_strategy epoch"]),
        (["--early_stopping_patience", 2, "--load_best_model_at_end", "false"], ["--load_best_model_at_end"]),
        (["--early_stopping_patience", 2, "--save_strategy", "steps"], ["strategy"]),  # transformers' own words
    ],
)
def test_early_stopping_that_can_not_work_is_refused(flags, parts, folder, tmp_path, monkeypatch):
    message = refused(monkeypatch, command(folder, tmp_path / "out", *flags))
    for part in parts:
        assert part in message


def test_early_stopping_needs_validation_posts(folder, tmp_path, monkeypatch):
    posts = ["--train_file", folder / "train" / "metadata.jsonl", "--validation_split", 0]
    argv = ["--do_train", *SMALL, *posts, "--early_stopping_patience", 2, "--output_dir", tmp_path / "out"]
    assert "--early_stopping_patience needs validation posts" in refused(monkeypatch, argv)
