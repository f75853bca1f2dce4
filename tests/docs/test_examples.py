"""The files of examples/ run as their headers say, on a few small posts, one after the other."""

import csv
import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import weights, without_numba

import hf_mamba


EXAMPLES = Path(hf_mamba.__file__).parent / "examples"
SCORE = str(EXAMPLES / "score_folder.py")
FEW_STEPS = {"train_on_csv": ["--image_size", "32", "--epochs", "1"], "continue_from_checkpoint": ["--epochs", "1"]}


def command_of(name):
    """The command in a file's header, without `python examples/NAME.py`."""
    (line,) = [line for line in (EXAMPLES / f"{name}.py").read_text("utf-8").splitlines() if "    python " in line]
    python, file, *arguments = shlex.split(line)
    assert (python, file) == ("python", f"examples/{name}.py")
    return arguments


def run(name, project):
    """Runs an example as its header says, in this process. What its `main` returns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        example = runpy.run_path(str(EXAMPLES / f"{name}.py"))
        return example["main"]([*command_of(name), *FEW_STEPS[name]])


@pytest.fixture(scope="module")
def project(folder, tmp_path_factory):
    """posts.csv, more_posts.csv, photos and an inbox; outputs/mine is what the first example leaves."""
    project = tmp_path_factory.mktemp("project")
    for split, name in [("train", "posts.csv"), ("test", "more_posts.csv")]:
        posts = [json.loads(line) for line in (folder / split / "metadata.jsonl").read_text("utf-8").splitlines()]
        with (project / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "image", "label"])
            writer.writerows([post["text"], f"{split}/{post['file_name']}", post["label"]] for post in posts)
        shutil.copytree(folder / split, project / "photos" / split)
    inbox = project / "inbox"
    inbox.mkdir()
    for number in range(1, 40):  # more than a batch
        (inbox / f"{number}.txt").write_text("So happy after this garden show!", "utf-8")
    (inbox / "7.txt").unlink()
    for name in ("1.png", "7.png"):
        shutil.copyfile(folder / "test" / "00000.png", inbox / name)
    return project


@pytest.fixture(scope="module")
def trained(project):
    """What the first example leaves, under the name that the others use."""
    assert 0 <= run("train_on_csv", project)["eval_accuracy"] <= 1
    shutil.copytree(project / "outputs" / "from_csv", project / "outputs" / "mine")
    return project


def test_training_further_keeps_the_labels_and_changes_the_weights(trained):
    losses = run("continue_from_checkpoint", trained)
    assert losses["loss before"] != losses["loss after"]
    first, second = trained / "outputs" / "mine", trained / "outputs" / "mine_updated"
    labels = [json.loads((folder / "config.json").read_text("utf-8"))["id2label"] for folder in (first, second)]
    assert labels[0] == labels[1] == {"0": "sarcastic", "1": "sincere"}
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_folder_is_scored_where_the_package_is_not_installed(trained):
    code = f"import runpy, sys; sys.modules['hf_mamba'] = None; runpy.run_path({SCORE!r}, run_name='__main__')"
    process = subprocess.run(
        [sys.executable, "-c", code, *command_of("score_folder")],
        cwd=trained,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(without_numba(trained))},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == "39 posts\n"
    with (trained / "scores.csv").open(encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {str(number) for number in range(1, 40)}
    scores = {name: float(row["probability_sarcastic"]) for name, row in rows.items()}
    for name, row in rows.items():
        assert float(row["probability_sincere"]) == pytest.approx(1 - scores[name], abs=2e-6)
        assert row["prediction"] == ("sarcastic" if scores[name] > 0.5 else "sincere")
    # text and image, image alone, and text alone, each its own; the same post the same in both batches
    assert len({scores["1"], scores["7"], scores["2"]}) == 3
    assert scores["2"] == pytest.approx(scores["39"], abs=2e-6)


def test_every_file_is_an_example_with_a_command():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"train_on_csv", "continue_from_checkpoint", "score_folder"}
    for name in names:
        assert command_of(name)
