"""--report_to tensorboard: where its files lie, what is in them, and what is said without the package."""

from running import command, interrupt_at, refused
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_mamba import run_classification
from hf_mamba.classification.support import extras


def test_losses_and_metrics_lie_in_runs_also_of_a_resumed_run(folder, tmp_path, monkeypatch):
    argv = command(folder, tmp_path / "out", "--report_to", "tensorboard")
    interrupt_at(monkeypatch, 9, argv)
    run_classification.main(argv)
    runs = tmp_path / "out" / "runs"
    assert all(path.is_file() for path in runs.iterdir())  # no folders named after machines
    events = EventAccumulator(str(runs)).Reload()
    assert {"train/loss", "eval/loss", "eval/accuracy"} <= {*events.Tags()["scalars"]}
    assert {6, 12} <= {event.step for event in events.Scalars("eval/accuracy")}
    (runs / "notes.txt").write_text("mine")
    run_classification.main([*argv, "--overwrite_output_dir", "--num_train_epochs", "1", "--report_to", "none"])
    assert [path.name for path in runs.iterdir()] == ["notes.txt"]


def test_without_tensorboard_the_extra_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    message = refused(monkeypatch, command(folder, tmp_path / "out", "--report_to", "tensorboard"))
    assert "--report_to tensorboard needs tensorboard" in message and '"hf-mamba[tensorboard]"' in message
