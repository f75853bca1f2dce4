"""README.md does what it says: its snippets run as printed after the quickstart, its commands name what exists."""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from running import SMALL, without_numba

from hf_mamba import run_classification
from hf_mamba.classification.data.sets.builtin import write_builtin_posts
from hf_mamba.classification.prepare import DATA_SETS
from hf_mamba.classification.runs.recipes import all_flags, find_recipe, parse_arguments


ROOT = Path(run_classification.__file__).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# One per line of a block, and those in a row of a table or in running text
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
COMMANDS += re.findall(r"`((?:python|torchrun|hf-mamba) [^`]+)`", README)
VERBS = ("train", "predict", "evaluate", "audit", "compare", "share", "prepare")


@pytest.fixture(scope="module")
def after_the_quickstart(tmp_path_factory):
    """The folder after README's first command, with a smaller model and fewer posts."""
    project = tmp_path_factory.mktemp("checkout")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        for split in ("train", "validation", "test"):
            patch.setitem(write_builtin_posts.__kwdefaults__, split, 16)
        run_classification.main(["quickstart", *SMALL])
    return project


def test_the_snippets_run_one_after_the_other_as_printed(after_the_quickstart):
    """Without this package, which README says they don't need."""
    process = subprocess.run(
        [sys.executable, "-c", "\n".join(['import sys; sys.modules["hf_mamba"] = None', *SNIPPETS])],
        cwd=after_the_quickstart,
        env={**os.environ, "PYTHONPATH": str(without_numba(after_the_quickstart))},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    first, *named = process.stdout.splitlines()
    assert first.startswith("tensor([[0.")
    assert len(named) == 3 and all(line.startswith("{'sarcastic': 0.") for line in named)


def test_prediction_takes_four_lines():
    body = SNIPPETS[0].split("\n\n")[1]
    assert len(body.strip().splitlines()) == 4
    assert max(len(line) for snippet in SNIPPETS for line in snippet.splitlines()) <= 119


@pytest.mark.parametrize("command", [command for command in COMMANDS if "-m venv" not in command])
def test_every_command_can_be_given(command, tmp_path, monkeypatch):
    """Its flags, recipe, module or verb exist, and its values are of the right kind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_MAMBA_DATA", "data")
    Path("my_recipe.yaml").write_text("do_train: true\ndo_predict: true\ntrain_file: posts.csv\noutput_dir: outputs\n")
    program, *arguments = shlex.split(command)
    if program == "torchrun":
        assert arguments[:2] == ["--nproc_per_node", "2"]
        program, arguments = "python", arguments[2:]
    if program == "hf-mamba":
        assert arguments[0] in VERBS
    elif program == ".":
        assert arguments == [".venv/bin/activate"]
    elif arguments[0] == "run_classification.py":
        if arguments[1:] != ["--help"]:
            parse_arguments(arguments[1:])
    else:
        assert (program, arguments[0]) == ("python", "-m") and find_spec(arguments[1])
        name = arguments[1].rpartition(".")[2]
        known = {*all_flags(), "baseline"} if name == "baselines" else set()
        assert {word.removeprefix("--") for word in arguments if word.startswith("--")} <= known
        assert name != "prepare" or arguments[2] in DATA_SETS


def test_every_flag_and_recipe_exists():
    flags = {flag for flag in re.findall(r"--([a-z_]+)", README) if "_" in flag or flag in all_flags()}
    assert flags - {"nproc_per_node"} <= set(all_flags())
    assert find_recipe("quickstart").is_file()
    for recipe in re.findall(r"recipes/\w+\.yaml", README):
        assert (ROOT / recipe).is_file()


def test_first_commands_set_everything_up():
    for mark, ending in [("quickstart", "run_classification.py quickstart"), ("test", "-m pytest")]:
        command = re.search(rf"<!-- {mark} command -->\n```bash\n(.*?)\n```", README, re.DOTALL)[1]
        assert len(command.splitlines()) == 1 and "-c constraints.txt" in command and command.endswith(ending)
