"""The pages for contributors name what exists, the index has every page, and tools have the pinned versions."""

import re
from pathlib import Path

import pytest
import yaml

import hf_mamba


ROOT = Path(hf_mamba.__file__).parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md")])
CONTRIBUTING = (ROOT / "docs" / "CONTRIBUTING.md").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_within_the_repository_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), target


def anchors(page):
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_has_every_page():
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


def test_the_files_that_contributors_are_sent_to_exist():
    named = re.findall(r"`((?:classification|tests|docs|results|recipes)/[\w/.]+|\w+\.py|\.ci/\w+)`", CONTRIBUTING)
    assert len(named) >= 15
    for name in named:
        assert name == "recipes/NAME.yaml" or (ROOT / name).exists(), name


def test_the_linter_of_pre_commit_is_the_pinned_one():
    pinned = re.search(r"^ruff==\S+$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)[0]
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"}  # nothing is fetched from elsewhere
    assert [hook["additional_dependencies"] for hook in hooks if hook["language"] == "python"] == [[pinned], [pinned]]


def test_ci_runs_what_contributors_can_run():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    assert {"run": ".ci/run"} in workflow["jobs"]["tests"]["steps"]


def test_the_changelog_has_the_version_that_is_installed():
    assert f"\n## [{hf_mamba.__version__}]\n" in (ROOT / "CHANGELOG.md").read_text("utf-8")
