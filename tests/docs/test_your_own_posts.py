"""docs/your_own_posts.md does what it says: its commands run in their order, on a few small posts."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import HfApi
from running import SMALL, without_numba

from hf_mamba import run_classification
from hf_mamba.classification import share
from hf_mamba.classification.runs.recipes import all_flags
from hf_mamba.classification.runs.search_space import read_space


PAGE = (Path(run_classification.__file__).parent / "docs" / "your_own_posts.md").read_text("utf-8")
COMMANDS = [shlex.split(line) for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
HEADER = re.search(r"<!-- posts.csv -->\n```csv\n(.*?)\n", PAGE)[1].split(",")
# Enough to be run, and little enough to be run often
LITTLE = [*SMALL, "--num_train_epochs", "1"]


def write_csv(path, rows, names):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def project(folder, tmp_path_factory):
    """posts.csv, test.csv, new.csv without labels, and photos, as the page has them."""
    project = tmp_path_factory.mktemp("project")
    (project / "photos").mkdir()
    for split, name in [("train", "posts.csv"), ("test", "test.csv"), ("validation", "new.csv")]:
        rows = []
        for line in (folder / split / "metadata.jsonl").read_text("utf-8").splitlines():
            post = json.loads(line)
            image = f"{split}-{Path(post['file_name']).name}"
            shutil.copyfile(folder / split / post["file_name"], project / "photos" / image)
            rows.append({"id": f"{split}{len(rows)}", "text": post["text"], "image": image, "label": post["label"]})
        write_csv(project / name, rows, [name for name in HEADER if split != "validation" or name != "label"])
    shutil.copyfile(project / "photos" / image, project / "photos" / "beach.jpg")
    return project


class Hub:
    """The Hub's client, as far as sharing uses it."""

    uploads = []

    def create_repo(self, repo_id, **kwargs):
        return SimpleNamespace(repo_id=repo_id)

    def preupload_lfs_files(self, *args, **kwargs):
        pass

    def upload_folder(self, repo_id, folder_path, **kwargs):
        Hub.uploads.append((repo_id, {path.name for path in Path(folder_path).iterdir()}))
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}")


def run(command):
    """One command of the page; what it would take long for is made little."""
    if command[:2] == ["python", "run_classification.py"]:
        given = {flag.removeprefix("--").split("=")[0] for flag in command[2:] if flag.startswith("--")}
        little = [] if "model_name_or_path" in given else LITTLE
        trials = ["--search_trials", "2"] if "search_trials" in given else []
        return run_classification.main([*command[2:], *(little or ["--use_cpu"]), *trials])
    assert command[:3] == ["python", "-m", "hf_mamba.classification.share"]
    return share.main(command[3:])


@pytest.fixture(scope="module")
def done(project):
    """The project after all commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("PYTHONPATH", str(without_numba(project)))
        for method in ("create_repo", "preupload_lfs_files", "upload_folder"):  # wherever the client is imported
            patch.setattr(HfApi, method, getattr(Hub, method))
        for command in COMMANDS:
            run(command)
    return project


def test_every_command_leaves_what_the_page_says(done):
    outputs = done / "outputs"
    assert len(COMMANDS) == 7
    for name in ("mine", "search/best", "seeds/seed-0", "seeds/seed-1", "seeds/seed-2"):
        assert (outputs / name / "model.safetensors").is_file(), name
    assert (outputs / "search" / "trials.md").is_file() and (outputs / "search" / "trials.csv").is_file()
    assert json.loads((outputs / "seeds" / "seeds_results.json").read_text())["seeds"] == [0, 1, 2]
    for name, source in [("mine", "test.csv"), ("new", "new.csv")]:
        with (outputs / name / "predictions.csv").open() as file, (done / source).open() as posts:
            assert [row["id"] for row in csv.DictReader(file)] == [row["id"] for row in csv.DictReader(posts)]
    ((repo_id, uploaded),) = Hub.uploads
    assert repo_id == "me/my-model" and {"model.safetensors", "README.md"} <= uploaded
    assert "predictions.csv" not in uploaded


def test_the_snippet_runs_without_the_package(done):
    snippet = re.search(r"```python\n(.*?)```", PAGE, re.S)[1].replace("me/my-model", "outputs/mine")
    process = subprocess.run(
        [sys.executable, "-c", 'import sys; sys.modules["hf_mamba"] = None\n' + snippet],
        cwd=done,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(without_numba(done))},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert "'sarcastic': 0." in process.stdout


def test_the_search_space_can_be_read():
    space = yaml.safe_load(re.search(r"<!-- search space -->\n```yaml\n(.*?)```", PAGE, re.S)[1])["search_space"]
    assert read_space(space, from_checkpoint=False, metric="accuracy").keys() == space.keys()


def test_every_flag_exists():
    assert {*re.findall(r"--([a-z]+_[a-z_]+)", PAGE)} - {"nproc_per_node"} <= {*all_flags()}
