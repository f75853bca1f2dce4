"""How a command meets its output folder: resumes, refuses, overwrites only what is its own."""

from pathlib import Path

import pytest
import yaml
from running import assert_same_weights, command, interrupt_at, refused

from hf_mamba import run_classification


def test_an_interrupted_run_resumes_to_bit_identical_weights(folder, tmp_path, monkeypatch, caplog):
    flags = ["--save_strategy", "steps", "--eval_strategy", "steps", "--save_steps", 4, "--eval_steps", 4]
    run_classification.main(command(folder, tmp_path / "whole", *flags))
    interrupt_at(monkeypatch, 7, command(folder, tmp_path / "stopped", *flags))
    assert not (tmp_path / "stopped" / "all_results.json").exists()
    with caplog.at_level("INFO", logger="hf_mamba"):
        run_classification.main(command(folder, tmp_path / "stopped", *flags))
    assert "resuming from" in caplog.text and "checkpoint-4" in caplog.text
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_a_run_stopped_before_its_first_checkpoint_starts_again(folder, tmp_path, monkeypatch, caplog):
    interrupt_at(monkeypatch, 2, command(folder, tmp_path / "out"))
    run_classification.main(command(folder, tmp_path / "out"))
    assert "before its first checkpoint" in caplog.text


def test_a_finished_run_is_not_overwritten_unless_asked(finished, folder, monkeypatch):
    output_dir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in output_dir.rglob("*")}
    message = refused(monkeypatch, command(folder, output_dir))
    assert "finished run" in message and "--overwrite_output_dir" in message
    assert {path: path.stat().st_mtime_ns for path in output_dir.rglob("*")} == before


def test_overwriting_deletes_the_run_and_leaves_the_rest(folder, tmp_path):
    out = tmp_path / "out"
    run_classification.main(command(folder, out))
    for name in ("notes.txt", "my_predictions.csv", "checkpoints.md"):
        (out / name).write_text("mine")
    run_classification.main(command(folder, out, "--overwrite_output_dir", "--num_train_epochs", 1))
    for name in ("notes.txt", "my_predictions.csv", "checkpoints.md"):
        assert (out / name).read_text() == "mine"
    assert yaml.safe_load((out / "recipe.yaml").read_text())["num_train_epochs"] == 1
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-6"]


@pytest.mark.parametrize("flags", [["--label_column_name", "lable"], ["--image_size", "30"], ["--model_name_or_path"]])
def test_overwriting_deletes_nothing_when_the_request_is_wrong(flags, finished, folder, monkeypatch):
    output_dir, _ = finished
    flags = [*flags, output_dir] if flags == ["--model_name_or_path"] else flags
    before = {path: path.stat().st_mtime_ns for path in output_dir.rglob("*")}
    refused(monkeypatch, command(folder, output_dir, "--overwrite_output_dir", *flags))
    assert {path: path.stat().st_mtime_ns for path in output_dir.rglob("*")} == before


def test_a_mistake_leaves_the_output_folder_free(folder, tmp_path, monkeypatch):
    refused(monkeypatch, command(folder, tmp_path / "out", "--label_column_name", "lable"))
    run_classification.main(command(folder, tmp_path / "out", "--num_train_epochs", 1))


def test_an_unfinished_run_of_another_recipe_is_not_resumed(folder, tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 7, command(folder, tmp_path / "out"))
    message = refused(monkeypatch, command(folder, tmp_path / "out", "--learning_rate", 0.5))
    assert "learning_rate=0.001 then, 0.5 now" in message


def test_a_checkpoint_cut_off_while_it_was_written_is_passed_over(folder, tmp_path, monkeypatch, caplog):
    interrupt_at(monkeypatch, 9, command(folder, tmp_path / "out", "--num_train_epochs", 3, "--save_steps", 4,
                                         "--save_strategy", "steps", "--eval_strategy", "no"))  # fmt: skip
    (tmp_path / "out" / "checkpoint-8" / "trainer_state.json").write_text('{"epoch": 1.3')
    run_classification.main([str(tmp_path / "out" / "recipe.yaml")])
    assert "checkpoint-8 was not written to its end" in caplog.text and "resuming from" in caplog.text


def test_a_strangers_folder_is_left_alone(folder, tmp_path, monkeypatch):
    (tmp_path / "thesis.txt").write_text("years of work")
    for flags in ([], ["--overwrite_output_dir"]):
        assert "not a run of this script" in refused(monkeypatch, command(folder, tmp_path, *flags))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.skipif(Path(run_classification.__file__).parent.name == "hf_mamba", reason="then it hides nothing")
def test_a_folder_that_would_hide_an_editable_package_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "`import hf_mamba` would find that folder" in refused(monkeypatch, command(folder, "hf_mamba"))
    run_classification.main(command(folder, "models/hf_mamba", "--num_train_epochs", 1))


def test_evaluation_overwrites_no_result_and_no_unfinished_run(finished, folder, tmp_path, monkeypatch):
    output_dir, _ = finished
    argv = ["--model_name_or_path", output_dir, "--dataset_name", folder, "--use_cpu", "--output_dir"]
    assert "already holds" in refused(monkeypatch, [*argv, output_dir, "--do_predict"])
    interrupt_at(monkeypatch, 7, command(folder, tmp_path / "out"))
    assert "unfinished training run" in refused(monkeypatch, [*argv, tmp_path / "out", "--do_predict"])
