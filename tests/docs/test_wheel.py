"""The wheel: built from a copy of the checkout, installed in an environment of its own, used away from both."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from running import SMALL, command

from hf_mamba import run_classification


pytestmark = pytest.mark.skipif(find_spec("pip") is None, reason="this environment has no pip to build a wheel with")
ROOT = Path(run_classification.__file__).parent
NOT_SOURCES = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
OUTPUTS = {"outputs", "runs"}  # beside the sources; classification/runs is a room of them


def pip(*arguments):
    argv = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    process = subprocess.run(argv, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT,
        folder / "checkout",
        ignore=lambda path, names: NOT_SOURCES(path, names) | (OUTPUTS if Path(path) == ROOT else set()),
    )
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, folder / "checkout")
    return next(folder.glob("hf_mamba-*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of a new environment: the wheel, and this one's packages except an editable hf_mamba."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    query = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip())
    # a path in a .pth file is searched last, and the .pth files in it, an editable install's among them, are not read
    packages = Path(find_spec("torch").origin).parents[1]
    (site / "packages.pth").write_text(str(packages), encoding="utf-8")
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    return python


def run(program, *argv, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [program, *map(str, argv)], cwd=cwd, env={**environment, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_every_module_recipe_and_the_card_are_in_it(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("hf_mamba/")}
    sources = [
        *ROOT.glob("*.py"),
        *ROOT.glob("classification/**/*.py"),
        *ROOT.glob("recipes/**/*.yaml"),
        ROOT / "model_card.md",
        ROOT / "py.typed",
    ]
    assert not any("results" in path.name or "ledger" in path.name for path in sources)
    assert names == {f"hf_mamba/{path.relative_to(ROOT).as_posix()}" for path in sources}


PUBLIC_NAMES = """
import hf_mamba
from hf_mamba.classification import data
for module in (hf_mamba, data):
    for name in module.__all__:
        getattr(module, name)
print(hf_mamba.__file__)
"""


def test_every_public_name_comes_from_it(python, tmp_path):
    where = run(python, "-c", PUBLIC_NAMES, cwd=tmp_path).splitlines()[-1]
    assert Path(where).is_relative_to(python.parent.parent)


@pytest.fixture(scope="module")
def hf_mamba(python):
    """The console command of that environment."""
    return python.parent / "hf-mamba"


def test_the_console_command_explains_itself_on_a_screen(python, hf_mamba, tmp_path):
    lines = run(hf_mamba, "--help", cwd=tmp_path).splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    version = run(hf_mamba, "--version", cwd=tmp_path).split()[-1]
    metadata = run(python, "-c", "from importlib.metadata import version; print(version('hf-mamba'))", cwd=tmp_path)
    assert version == metadata.strip()


def test_the_console_command_trains_a_recipe_of_the_package(hf_mamba, folder, tmp_path):
    """As the quickstart does, but tiny; it trains, evaluates and predicts, as the recipe says."""
    run(hf_mamba, "train", "quickstart", *SMALL, "--dataset_name", folder, "--output_dir", "run", cwd=tmp_path)
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"README.md", "predictions.csv", "validation_report.json", "test_report.json"} <= written


@pytest.mark.slow
def test_the_quickstart_runs_from_it(hf_mamba, tmp_path):
    run(hf_mamba, "train", "quickstart", cwd=tmp_path)
    report = json.loads((tmp_path / "outputs" / "quickstart" / "test_report.json").read_text("utf-8"))
    assert report["metrics"]["accuracy"] > 0.9


def test_an_output_folder_of_the_packages_name_does_no_harm(python, folder, tmp_path):
    """A recipe of the package's own trains into ./hf_mamba; beside that folder the package is still found."""
    flags = command(folder, "hf_mamba", "--num_train_epochs", 1)
    run(python, "-m", "hf_mamba.run_classification", "quickstart", *flags, cwd=tmp_path)
    assert "## Limitations" in (tmp_path / "hf_mamba" / "README.md").read_text("utf-8")
    again = ["--do_predict", "--model_name_or_path", "hf_mamba", "--dataset_name", folder, "--output_dir", "again"]
    run(python, "-m", "hf_mamba.run_classification", *again, "--use_cpu", cwd=tmp_path)
    predictions = [(tmp_path / name / "predictions.csv").read_text("utf-8") for name in ("hf_mamba", "again")]
    assert predictions[0] == predictions[1]
