"""The layout of the code: imports never point up, files and functions stay short (docs/architecture.md)."""

import ast
import re
from pathlib import Path

import pytest

import hf_mamba


ROOT = Path(hf_mamba.__file__).parent
MODEL, COMMANDS, SCRIPT = -1, 6, 7  # the model, the modules straight in classification/, run_classification.py
FLOORS = {
    "support": 0, "data": 1, "evaluation": 2, "audit": 2, "training": 3, "runs": 4, "reporting": 5, "deploy": 5
}  # fmt: skip
ENTRIES = (("run_classification",), ("classification", "console"))
NEIGHBOURS = {("evaluation", "audit"), ("audit", "evaluation")}  # on one floor, and independent of each other
KERNELS = ("selective_scan_", "block_layers_numba", "vectors_numba")
MAX_FILE, MAX_FUNCTION = 450, 60

FILES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if not any(part.startswith(".") or part in ("build", "outputs") for part in path.relative_to(ROOT).parts)
)
PACKAGE = [path for path in FILES if path.parent == ROOT or path.is_relative_to(ROOT / "classification")]

# What is still to be done. An entry that is no longer true fails: take it out.
STILL_TO_DO: set[str] = set()


def module_of(path):
    """("classification", "data", "posts") of classification/data/posts.py; a package is its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def room(module):
    """The folder of the workshop, or the module itself where there is none."""
    return module[1] if module[:1] == ("classification",) and len(module) > 1 else module[0] if module else ""


def floor(module):
    if module[:1] == ("classification",) and module not in ENTRIES:
        return FLOORS.get(room(module), COMMANDS if len(module) > 1 else min(FLOORS.values()))
    return SCRIPT if module in ENTRIES else MODEL


def is_for_types(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def walk(node):
    """Every node, those within functions too, but for what is imported for types alone."""
    for child in ast.iter_child_nodes(node):
        if is_for_types(child):
            continue
        yield child
        yield from walk(child)


def imports(path):
    """The modules of this package that a file imports."""
    module = module_of(path)
    folder = module if path.name == "__init__.py" else module[:-1]
    for node in walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            absolute = [tuple(alias.name.split(".")) for alias in node.names]
            yield from (name[1:] for name in absolute if name[0] == "hf_mamba")
        elif isinstance(node, ast.ImportFrom):
            named = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                base = folder[: len(folder) - node.level + 1] + named
            elif named[:1] == ("hf_mamba",):
                base = named[1:]
            else:
                continue
            for alias in node.names:  # a module of the folder, or a name in the module
                inner = ROOT.joinpath(*base, alias.name)
                yield (*base, alias.name) if inner.is_dir() or inner.with_suffix(".py").is_file() else base


def points_up():
    for path in PACKAGE:
        module = module_of(path)
        for target in imports(path):
            if floor(target) > floor(module) or (room(module), room(target)) in NEIGHBOURS:
                yield f"{path.relative_to(ROOT).as_posix()} imports {'.'.join(target)}"


def too_long():
    for path in FILES:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text("utf-8")
        if len(text.splitlines()) > MAX_FILE:
            yield f"{name} is long"
        if path.name.startswith(KERNELS):
            continue
        for node in ast.walk(ast.parse(text)):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and node.end_lineno - node.lineno + 1 > MAX_FUNCTION:
                yield f"{name}: {node.name} is long"


@pytest.mark.parametrize("rule", [points_up, too_long])
def test_the_layout_is_kept(rule):
    broken = {*rule()}
    assert broken - STILL_TO_DO == set()


def test_nothing_is_still_to_do_that_is_done():
    assert STILL_TO_DO - {*points_up(), *too_long()} == set()


def test_every_folder_of_the_workshop_has_a_floor():
    folders = {path.name for path in (ROOT / "classification").iterdir() if (path / "__init__.py").is_file()}
    assert folders - {"baselines"} <= FLOORS.keys()


def test_the_page_shows_these_floors():
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8").split("## Floors\n")[1].split("\n## ")[0]
    shown = {}
    for line in page.splitlines():
        if match := re.match(r"\| (\d) \| (.*) \|$", line):
            shown |= {name: int(match[1]) for name in re.findall(r"(\w+)(?:/|\.py)", match[2])}
    here = {room(module_of(path)): floor(module_of(path)) for path in PACKAGE if floor(module_of(path)) != MODEL}
    here.pop("classification")  # the folder's own __init__.py
    assert shown == here | {"console": SCRIPT}
