"""A transformers that this code was not tested with is named first, once, with the fix."""

import ast
import logging
import re
import tomllib
from pathlib import Path

import pytest

from hf_mamba import run_classification
from hf_mamba.transformers_version import NEXT_MAJOR, OLDEST, check_transformers_version


ROOT = Path(run_classification.__file__).parent


@pytest.mark.parametrize("version", ["4.57.6", "5.0.0", "5.9.0"])
def test_an_older_one_is_refused(version):
    with pytest.raises(
        ImportError, match=rf"needs transformers {OLDEST} or newer, but {version} .*pip install '.*<6'"
    ):
        check_transformers_version(version)


def test_a_newer_major_is_warned_about_once(monkeypatch):
    warnings = []
    monkeypatch.setattr(logging.getLogger("transformers"), "warning", lambda message, *_: warnings.append(message))
    for version in ("6.1.0", OLDEST, "5.99.0", "6.1.0", "6.0.0.dev0"):
        check_transformers_version(version)
    assert len(warnings) == 2 and "6.1.0 is installed" in warnings[0] and "pip install" in warnings[0]


def test_the_package_requires_the_same():
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    assert f"transformers>={OLDEST},<{NEXT_MAJOR}" in requirements
    readme = (ROOT / "README.md").read_text("utf-8")
    assert re.findall(r"transformers (\d+\.\d+\.\d+) or newer", readme) == [OLDEST]


@pytest.mark.parametrize("module", ["configuration", "modeling", "processing"])
def test_modules_that_auto_map_names_ask_before_anything_else(module):
    tree = ast.parse((ROOT / f"{module}_hf_mamba.py").read_text("utf-8"))
    first = next(node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom)))
    assert first.level == 1 and first.module == "transformers_version"
