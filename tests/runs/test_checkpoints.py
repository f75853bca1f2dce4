"""--model_name_or_path: checkpoints that fit, and those that don't."""

import json
import shutil

import pytest
from running import SMALL, refused

from hf_mamba.classification.runs.checkpoints import load_checkpoint
from hf_mamba.classification.runs.recipes import parse_arguments


def damage_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda f: damage_config(f, num_text_layers=2), ["weights don't fit", "text_stack.layers.1"]),
        (lambda f: damage_config(f, hidden_size=32), ["can't be loaded"]),
        (lambda f: damage_config(f, image_size=64), ["processor makes images of 32", "expects 64"]),
        (lambda f: damage_config(f, model_type="bert"), ["'bert' checkpoint"]),
        (lambda f: damage_config(f, pooling="average"), ["pooling"]),
        (lambda f: (f / "model.safetensors").write_bytes(b"cut"), ["can't be loaded"]),
        (lambda f: (f / "tokenizer.json").unlink(), ["can't be loaded"]),
    ],
)
def test_a_damaged_checkpoint_is_named(damage, parts, finished, folder, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy, ignore=shutil.ignore_patterns("checkpoint-*"))
    damage(copy)
    argv = ["--model_name_or_path", copy, "--dataset_name", folder, "--do_predict", "--output_dir", tmp_path / "out"]
    message = refused(monkeypatch, [*argv, "--use_cpu"])
    for part in parts:
        assert part in message


def test_dropout_may_differ_from_the_checkpoint(finished, folder, tmp_path):
    argv = ["--model_name_or_path", finished[0], "--hidden_dropout", 0.3, "--scan_implementation", "reference"]
    flags = [flag for flag in SMALL if flag.split("=")[0] not in ("--max_seq_length", "--vocab_size")]
    model_args, data_args, _, _ = parse_arguments([*map(str, argv), *flags])
    _, model = load_checkpoint(model_args.model_name_or_path, model_args, data_args)
    assert model.config.hidden_dropout == 0.3
    assert model.model.text_stack.layers[0].mixer.ssm.scan_implementation == "reference"


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--hidden_size", 32], ["--hidden_size 32 doesn't fit the checkpoint", "hidden_size=16"]),
        (["--label_column_name", "text"], ["unknown to the checkpoint", "'sarcastic', 'sincere'"]),
        (["--max_seq_length", 5], ["--max_seq_length 5 doesn't fit the checkpoint", "max_seq_length=16"]),
        (["--tokenizer_name", "bert"], ["--tokenizer_name bert doesn't fit", "its own vocabulary"]),
    ],
)
def test_a_checkpoint_that_does_not_fit(flags, parts, finished, folder, tmp_path, monkeypatch):
    argv = ["--model_name_or_path", finished[0], "--dataset_name", folder, "--do_predict", "--output_dir", tmp_path]
    message = refused(monkeypatch, [*argv, *flags])
    for part in parts:
        assert part in message
