"""How the suite behaves without transformers' source distribution, and what importing from it leaves behind."""

import sys

import mixins
import pytest


def test_without_the_sources_the_suite_skips_and_in_ci_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(mixins, "ROOT", tmp_path / ".conformance" / "transformers" / "tests")
    outcomes = (pytest.skip.Exception, pytest.fail.Exception)  # one alone would skip this test if the other came
    for required, outcome in zip(["", "1"], outcomes):
        monkeypatch.setenv(mixins.REQUIRED, required)
        with pytest.raises(outcomes, match="test_modeling_common.py: tests/conformance/mixins.py says how") as stop:
            mixins.import_mixins("test_modeling_common")
        assert stop.type is outcome


def test_importing_touches_no_name_outside_the_package(monkeypatch):
    """Not even one that somebody has a real module for."""
    theirs = object()
    monkeypatch.setitem(sys.modules, "parameterized", theirs)
    monkeypatch.delitem(sys.modules, "fetch_hub_objects_for_ci", raising=False)
    path = [*sys.path]
    for name in [name for name in sys.modules if name.startswith(f"{mixins.PACKAGE}.test_")]:
        monkeypatch.delitem(sys.modules, name)
    mixins.import_mixins("test_image_processing_common")
    assert sys.modules["parameterized"] is theirs and "fetch_hub_objects_for_ci" not in sys.modules
    assert sys.path == path
