"""What the tests of run_classification.py share: tiny runs, and how they are stopped and refused."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_mamba import run_classification


TINY = {
    "image_size": 32,
    "patch_size": 16,
    "hidden_size": 16,
    "state_size": 4,
    "num_text_layers": 1,
    "num_image_layers": 1,
    "num_fusion_layers": 1,
    "max_seq_length": 16,
    "vocab_size": 500,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "disable_tqdm": True,
    "use_cpu": True,
}
SMALL = [f"--{name}={value}" for name, value in TINY.items()]
ALL_STEPS = ["--do_train", "--do_eval", "--do_predict"]


def command(folder, output_dir, *flags, steps=ALL_STEPS):
    return [*steps, *SMALL, "--dataset_name", str(folder), "--output_dir", str(output_dir), *map(str, flags)]


def without_numba(folder):
    """A folder for PYTHONPATH that hides Numba: where caches are empty, its kernels take seconds to compile."""
    (stub := Path(folder) / "without_numba").mkdir(exist_ok=True)
    (stub / "numba.py").write_text("raise ImportError('hidden by a test')\n")
    return stub


def refused(monkeypatch, argv):
    """The one line that the command line says of a mistake; as a string it makes the exit code 1."""
    monkeypatch.setattr(sys, "argv", ["run_classification.py", *map(str, argv)])
    with pytest.raises(SystemExit) as stop:
        run_classification.run()
    assert stop.value.code.startswith("error: ")
    return stop.value.code


def weights(output_dir):
    return load_file(Path(output_dir) / "model.safetensors")


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


class StopAt(TrainerCallback):
    """Interrupts training the way a pulled plug would, after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupt_at(monkeypatch, step, argv):
    """Runs a command until it is interrupted after a step, or by a callback of the test's own."""
    callback = StopAt(step) if isinstance(step, int) else step
    build_trainer = run_classification.build_trainer

    def build(*args):
        trainer = build_trainer(*args)
        trainer.add_callback(callback)
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(run_classification, "build_trainer", build)
        with pytest.raises(KeyboardInterrupt):
            run_classification.main(argv)
