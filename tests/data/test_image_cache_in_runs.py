"""The cache of images in whole runs: nothing that comes out depends on it, and runs share it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from running import assert_same_weights, command, refused

from hf_mamba import run_classification
from hf_mamba.classification.data import image_cache
from hf_mamba.classification.support import processes as machine
from hf_mamba.processing_hf_mamba import HFMambaProcessor


ROOT = Path(__file__).parents[2]


def predictions(output_dir):
    return (Path(output_dir) / "predictions.csv").read_text()


def test_runs_with_and_without_cache_are_the_same_and_the_second_decodes_nothing(
    folder, finished, tmp_path, monkeypatch
):
    run_classification.main(command(folder, tmp_path / "off", "--image_cache", "off"))
    decoded, decode = [], image_cache.decode
    monkeypatch.setattr(image_cache, "decode", lambda *args: decoded.append(args) or decode(*args))
    run_classification.main(command(folder, tmp_path / "on", "--image_cache", tmp_path / "cache"))
    assert len(decoded) == 48 + 16 + 16
    run_classification.main(command(folder, tmp_path / "again", "--image_cache", tmp_path / "cache"))
    assert len(decoded) == 48 + 16 + 16
    for name in ("on", "again"):
        assert_same_weights(tmp_path / "off", tmp_path / name)
        assert predictions(tmp_path / "off") == predictions(tmp_path / name)


def prediction(folder, output_dir, checkpoint, *flags):
    test_file = folder / "test" / "metadata.jsonl"
    argv = ["--do_predict", "--use_cpu", "--model_name_or_path", checkpoint, "--test_file", test_file]
    return [*map(str, [*argv, "--output_dir", output_dir, *flags])]


def test_images_at_another_size_than_the_checkpoints_are_not_mixed_up(folder, finished, tmp_path):
    output_dir, _ = finished
    cache = ("--image_cache", tmp_path / "cache")
    train = ["--do_train"]
    run_classification.main(command(folder, tmp_path / "other", "--image_size", 48, *cache, steps=train))
    run_classification.main(prediction(folder, tmp_path / "predicted", output_dir, *cache))
    assert predictions(tmp_path / "predicted") == predictions(output_dir)


def test_reduce_jpeg_belongs_to_the_checkpoint(folder, finished, tmp_path, monkeypatch):
    output_dir, _ = finished
    run_classification.main(command(folder, tmp_path / "run", "--reduce_jpeg", "true", steps=["--do_train"]))
    assert HFMambaProcessor.from_pretrained(tmp_path / "run").image_processor.reduce_jpeg is True
    assert HFMambaProcessor.from_pretrained(output_dir).image_processor.reduce_jpeg is False
    argv = prediction(folder, tmp_path / "predicted", output_dir, "--reduce_jpeg", "true")
    assert "--reduce_jpeg True doesn't fit the checkpoint" in refused(monkeypatch, argv)


def test_the_recipe_names_workers_only_where_the_user_did(folder, finished, tmp_path):
    output_dir, _ = finished
    assert "dataloader_num_workers" not in yaml.safe_load((output_dir / "recipe.yaml").read_text())
    run_classification.main(command(folder, tmp_path / "run", "--dataloader_num_workers", 1, steps=["--do_train"]))
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["dataloader_num_workers"] == 1
    assert_same_weights(output_dir, tmp_path / "run")


@pytest.mark.parametrize(
    "cuda, cores, processes, workers",
    [(False, 16, 1, 0), (True, 2, 1, 1), (True, 16, 1, 4), (True, 16, 8, 1), (True, 1, 1, 0)],
)
def test_workers_suit_the_machine(monkeypatch, cuda, cores, processes, workers):
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert machine.default_num_workers() == workers


@pytest.mark.slow
def test_processes_of_torchrun_share_the_cache(folder, tmp_path):
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", ROOT / "run_classification.py"]
    argv = [*run, *command(folder, tmp_path / "run", "--image_cache", tmp_path / "cache")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, argv)), env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("80 images at 32x32: 240 KiB in ") == 1
    assert len(list((tmp_path / "cache").glob("*/*.pixels"))) == 1
