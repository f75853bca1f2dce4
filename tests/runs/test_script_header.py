"""The PEP 723 header of run_classification.py, by which `uv run run_classification.py` finds what it needs."""

import tomllib
from pathlib import Path

from hf_mamba import run_classification


ROOT = Path(run_classification.__file__).parent


def test_the_script_needs_what_the_package_needs():
    _, header, _ = (ROOT / "run_classification.py").read_text("utf-8").split("# ///", 2)
    lines = [line.removeprefix("#").strip() for line in header.splitlines()[1:]]
    script = tomllib.loads("\n".join(lines))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert script == {name: project[name] for name in ("requires-python", "dependencies")}
