"""
transformers' own test mixins, imported from its source distribution, which the wheel leaves out.

`.ci/run` unpacks the distribution into `.conformance/` (git ignores it); by hand, in the root of the checkout:

    pip download --no-deps --no-binary transformers --dest .conformance transformers==<the installed version>
    tar -xzf .conformance/transformers-*.tar.gz -C .conformance

Its tests import each other as a package (`from .generation...`) and parts that are not distributed. So they become the
package `transformers_tests`, with stand_ins.py in place of what is missing; no other name is left behind by importing.
"""

import importlib
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import stand_ins
import transformers


ROOT = Path(__file__).parents[2] / ".conformance" / f"transformers-{transformers.__version__}" / "tests"
PACKAGE = "transformers_tests"
# set where the tests must not be skipped for want of the sources: in CI
REQUIRED = "HF_MAMBA_REQUIRE_CONFORMANCE"


def _module(name, **content):
    module = ModuleType(name)
    module.__dict__.update(content)
    return name, module


def _package(name, path=()):
    return _module(name, __path__=[*map(str, path)])


# in our package, where they may stay
INSIDE = dict(
    [
        _package(PACKAGE, [ROOT]),
        _package(f"{PACKAGE}.exporters"),
        _module(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=stand_ins.ExportTesterMixin),
        _package(f"{PACKAGE}.generation"),
        _module(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=stand_ins.GenerationTesterMixin),
        _package(f"{PACKAGE}.utils"),
        _module(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs=stand_ins.CONFIG_COMMON_KWARGS),
    ]
)
# under names of others, which are theirs again after the import
OUTSIDE = dict(
    [
        _module("parameterized", parameterized=stand_ins.parameterized),
        _module("fetch_hub_objects_for_ci", url_to_local_path=stand_ins.url_to_local_path),
    ]
)


@contextmanager
def _lent(modules):
    before = {name: sys.modules.pop(name) for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(before)


def import_mixins(name):
    """
    The module `tests/<name>.py` of transformers.

    Skips the calling module where the source distribution of the installed version isn't there, and fails it instead
    if the environment variable HF_MAMBA_REQUIRE_CONFORMANCE is set.
    """
    if not (ROOT / f"{name}.py").is_file():
        reason = f"no {ROOT.relative_to(ROOT.parents[2])}/{name}.py: tests/conformance/mixins.py says how to get it"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{reason} ({REQUIRED} is set)", pytrace=False)
        pytest.skip(reason, allow_module_level=True)
    for inside, module in INSIDE.items():
        sys.modules.setdefault(inside, module)
    with (
        _lent(OUTSIDE),
        patch.object(sys, "path", [*sys.path]),  # the mixins append to it
        # it would execute tests/__init__.py, which is not distributed, to get at the module it names
        patch.object(transformers.utils, "direct_transformers_import", lambda *_: transformers),
    ):
        return importlib.import_module(f"{PACKAGE}.{name}")
