"""Files for contributors and releases: workflows and policies agree with pyproject.toml and the Makefile."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.test_docs import anchors

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = [path.read_text() for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))]


def pythons() -> list[str]:
    """The minor versions of Python that the classifiers name."""
    return [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if ":: 3." in name]


def test_ci_tests_every_version_of_python_that_the_classifiers_name() -> None:
    (matrix,) = (found for text in WORKFLOWS for found in re.findall(r"python: \[(.*)\]", text))
    assert re.findall(r'"([^"]+)"', matrix) == pythons()
    assert PROJECT["requires-python"] == f">={pythons()[0]}"


def test_actions_are_pinned_by_major_version() -> None:
    used = [name for text in WORKFLOWS for name in re.findall(r"uses: (\S+)", text)]
    assert used
    for name in used:
        assert re.fullmatch(r"\./\.github/workflows/\w+\.yml|[\w-]+/[\w-]+@(v\d+|release/v\d+)", name), name


def test_only_publishing_jobs_may_write() -> None:
    for text in WORKFLOWS:
        assert "\npermissions:\n  contents: read\n" in text
    assert sum(text.count(": write") for text in WORKFLOWS) == 2  # the token for PyPI, the GitHub release


def test_workflows_use_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {name for text in WORKFLOWS for name in re.findall(r"run: make ([\w-]+)", text)}
    assert {"lint", "test", "deb"} <= used <= targets


@pytest.mark.parametrize("page", ["SECURITY.md", "CODE_OF_CONDUCT.md", "RELEASING.md"])
def test_links_lead_to_existing_files_and_headings(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            assert (ROOT / path).exists(), target
            assert not anchor or anchor in anchors(ROOT / path), target
