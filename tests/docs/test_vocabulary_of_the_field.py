"""Code, messages and pages use the field's words; docs/CONTRIBUTING.md has the table."""

import re
from pathlib import Path

import pytest

import hf_mamba


ROOT = Path(hf_mamba.__file__).parent
# What is recorded stays as it was, and so do the tests' own words.
LEFT_ALONE = ("tests/", "results/", "docs/CONTRIBUTING.md", "CHANGELOG.md")
FILES = [
    path
    for path in sorted(ROOT.rglob("*"))
    if path.suffix in (".py", ".md", ".yaml", ".toml")
    and not any(part.startswith(".") or part in ("build", "outputs") for part in path.relative_to(ROOT).parts)
    and not path.relative_to(ROOT).as_posix().startswith(LEFT_ALONE)
]

BANNED = {
    "picture": r"(?i)(?<![a-z])pictures?(?![a-z])",
    "is no": r"(?i)(?<!there )\b(?:is|was) no (?!longer|better|more|other|less|faster|worse|change)",
    "told": r"(?<![a-z])told(?! apart)(?![a-z])",
    "passed over": r"(?i)passed over",
    "dealt": r"(?i)(?<![a-z])dealt(?![a-z])",
    "settle": r"(?i)(?<![a-z])settle",
    "stranger": r"(?i)(?<![a-z])strangers?(?![a-z])",
    "pass": r"(?i)\b(?:best|last|every|each|\d+) pass(?:es)?\b|PassCounter|BestPass",
}

# Flags, keys of written files and usual names of columns keep their spelling.
ALLOWED = {
    "picture": {
        "classification/audit/report.py",  # keys of audit.json
        "classification/data/columns.py",  # usual names of columns
        "classification/data/sets/conversion.py",  # --pictures
        "docs/paper_data.md",
    },
}


def uses(word):
    pattern = re.compile(BANNED[word])
    return {path.relative_to(ROOT).as_posix() for path in FILES if pattern.search(path.read_text("utf-8"))}


@pytest.mark.parametrize("word", BANNED)
def test_the_fields_words_are_used(word):
    lines = [
        f"{name}:{number}: {line.strip()}"
        for name in sorted(uses(word) - {*ALLOWED.get(word, ())})
        for number, line in enumerate((ROOT / name).read_text("utf-8").splitlines(), start=1)
        if re.search(BANNED[word], line)
    ]
    assert lines == [], f"{word!r} is a word that docs/CONTRIBUTING.md has another one for"
