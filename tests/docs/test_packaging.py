"""pyproject.toml says what is true: packages, what they import, the version, the console command."""

import ast
import importlib
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import hf_mamba


ROOT = Path(hf_mamba.__file__).parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
REQUIRED = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRA = [Requirement(line) for lines in PROJECT["optional-dependencies"].values() for line in lines]
PACKAGE = [*ROOT.glob("*.py"), *ROOT.glob("classification/**/*.py")]
TOOLS = [path for folder in ("tests", "results", "benchmarks", "examples") for path in ROOT.glob(f"{folder}/**/*.py")]
BROUGHT_BY_TORCH = {"triton"}  # where torch is built for CUDA; guarded elsewhere
PARTS_OF = {"causal_conv1d_cuda": "causal-conv1d", "selective_scan_cuda": "mamba-ssm"}  # CUDA extensions
OWN = {"hf_mamba", *(path.stem for path in TOOLS)}


def names(requirements):
    return {canonicalize_name(requirement.name) for requirement in requirements}


def third_party(nodes):
    """The distributions that import statements name."""
    distributions = packages_distributions()
    for node in nodes:
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        for module in {module.split(".")[0] for module in modules} - sys.stdlib_module_names - OWN:
            yield canonicalize_name(PARTS_OF.get(module) or distributions.get(module, [module])[0])


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_the_package_imports_is_declared(path):
    """Whatever a module can't be imported without, among the dependencies; all else at least in an extra."""
    tree = ast.parse(path.read_text("utf-8"))
    assert {*third_party(tree.body)} <= names(REQUIRED)
    assert {*third_party(ast.walk(tree))} <= names(REQUIRED) | names(EXTRA) | BROUGHT_BY_TORCH


def test_what_tests_and_tools_import_is_declared():
    used = {name for path in TOOLS for name in third_party(ast.walk(ast.parse(path.read_text("utf-8"))))}
    assert used <= names(REQUIRED) | names(EXTRA) | BROUGHT_BY_TORCH


def test_no_dependency_is_declared_that_nothing_needs():
    used = {name for path in PACKAGE for name in third_party(ast.walk(ast.parse(path.read_text("utf-8"))))}
    assert names(REQUIRED) - used <= {"jinja2"}  # what huggingface_hub renders model cards with


def test_every_package_is_listed():
    folders = {path.parent for path in PACKAGE if path.name == "__init__.py"}
    assert len(folders) > 5
    assert {*SETUPTOOLS["packages"]} == {".".join(("hf_mamba", *f.relative_to(ROOT).parts)) for f in folders}


def test_the_constraints_pin_what_is_declared_within_its_bounds():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = {canonicalize_name(name): version for name, version in (x.split("==") for x in lines if "==" in x)}
    for requirement in REQUIRED:
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_version_is_written_once_and_repeated_by_the_citation():
    assert "version" not in PROJECT and SETUPTOOLS["dynamic"]["version"] == {"attr": "hf_mamba.__version__"}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == hf_mamba.__version__
    assert PROJECT["authors"] == [{"name": author["name"]} for author in citation["authors"]]
    assert citation["license"] == PROJECT["license"]


def test_the_console_command_exists():
    module, function = PROJECT["scripts"]["hf-mamba"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_one_function_says_how_to_install_an_extra_and_it_is_asked_for_extras_that_exist():
    for path in PACKAGE:
        text = path.read_text("utf-8")
        is_the_function = path.relative_to(ROOT).as_posix() == "classification/support/extras.py"
        assert is_the_function or not re.search(r"pip install .*\[[\w{}]+\]", text), path
        asked = re.findall(r"install_command\([\"'](\w+)", text) + re.findall(r"require\(\"\w+\", \"(\w+)\"", text)
        assert {*asked} <= PROJECT["optional-dependencies"].keys(), path


@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md")], ids=str)
def test_pages_name_extras_that_exist(path):
    named = re.findall(r"(?:hf-mamba|\.)\[([\w,]+)\]\"", path.read_text("utf-8"))
    assert {extra for names_of in named for extra in names_of.split(",")} <= PROJECT["optional-dependencies"].keys()


def test_it_says_that_it_is_typed():
    assert (ROOT / "py.typed").is_file() and "py.typed" in SETUPTOOLS["package-data"]["hf_mamba"]
    assert "Typing :: Typed" in PROJECT["classifiers"]
