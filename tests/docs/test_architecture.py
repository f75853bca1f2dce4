"""docs/architecture.md is true: its files exist, its lists are complete, its line counts are those of the files."""

import importlib
import re
from fnmatch import fnmatch
from pathlib import Path

import hf_mamba
from hf_mamba.classification.support import run_files


ROOT = Path(hf_mamba.__file__).parent
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")


def section(title):
    """The lines from a heading to the next one."""
    return re.split(r"\n#+ ", PAGE.split(f"# {title}\n")[1])[0].strip().splitlines()


def rows(title):
    """The cells of the rows of a section's table."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in section(title) if line.startswith("|")][2:]


def names_in(text):
    return re.findall(r"`([^`\s]+)`", text)


def test_where_things_are_is_where_they_are():
    table = rows("Where do I ...")
    assert len(table) >= 10
    for question, answer in table:
        files = names_in(answer)
        assert files, question
        for name in files:
            assert (ROOT / name).is_file(), f"{question} {name}"


def test_the_tree_has_every_room():
    tree = [line for line in section("The tree") if line != "```" and line != "```text"]
    folder, shown = ROOT, set()
    for line in tree:
        name = line.split()[0]
        folder = ROOT if not line.startswith(" ") else ROOT / "classification"
        assert (folder / name).exists(), name
        shown.add((folder / name).relative_to(ROOT).as_posix())
    packages = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("classification/**/__init__.py")}
    others = ("recipes", "results", "benchmarks", "examples", "docs", "tests")
    assert packages | {*others} <= shown


def test_every_output_file_is_listed(finished):
    table = rows("Output files")
    patterns = {name.rstrip("/").replace("-N", "-*") for files, *_ in table for name in names_in(files)}
    written = {path.name for path in finished[0].iterdir()}
    written |= {value for value in constants(run_files) if "." in value}
    for module in ("seeds", "folds", "search"):
        named = constants(importlib.import_module(f"hf_mamba.classification.runs.{module}"))
        written |= {value for value in named if value.endswith((".json", ".yaml", ".csv", ".md", ".db"))}
    missing = {name for name in written if not any(fnmatch(name, pattern) for pattern in patterns)}
    assert missing == set()


def constants(module):
    """The strings that a module's constants hold."""
    for name, value in vars(module).items():
        if name.isupper():
            values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
            yield from (text for text in values if isinstance(text, str))


def test_the_report_of_a_split_has_the_keys_that_its_module_documents():
    from hf_mamba.classification.evaluation import split_report

    cells = [line.split("|")[1] for line in split_report.__doc__.splitlines() if line.startswith("| `")]
    documented = {name for cell in cells for name in names_in(cell)}
    assert {name for keys, _ in rows("Report of a split") for name in names_in(keys)} == documented


def travelling_table(folder):
    """The table that the page must hold: the modules of a checkpoint, largest first, with their lines."""
    lines = {path.name: len(path.read_text("utf-8").splitlines()) for path in folder.glob("*.py")}
    ordered = sorted(lines.items(), key=lambda item: (-item[1], item[0]))
    table = ["| module | lines |", "|---|---|", *(f"| `{name}` | {count} |" for name, count in ordered)]
    return [*table, f"| {len(lines)} modules | {sum(lines.values()):,} |"]


def test_the_modules_that_travel_are_listed_with_their_lines(finished):
    expected = travelling_table(finished[0])
    shown = [line for line in section("What travels with a checkpoint") if line.startswith("|")]
    assert shown == expected, "docs/architecture.md should hold this table:\n" + "\n".join(expected)
