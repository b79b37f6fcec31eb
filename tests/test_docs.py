"""What the pages name is there: files and headings that they link to, options, commands and log events."""

import re
import tomllib
import types
import typing
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel

from listener.cli import app
from listener.config import Config, parse
from listener.config.secrets import secret_keys
from listener.ews.codes import VERDICTS
from tests.test_log import logged

ROOT = Path(__file__).parent.parent
PAGES = [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")), *ROOT.glob("docs/*.md")]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", ["README.md", "docs/OPERATING.md"])
def test_a_first_configuration_is_a_good_one(page: str, tmp_path: Path) -> None:
    (text,) = (block for block in TOML.findall((ROOT / page).read_text()) if "[auth]" in block)
    (tmp_path / "password").write_text("secret")
    (tmp_path / "password").chmod(0o600)
    config = parse(tomllib.loads(dedent(text)), tmp_path, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert config.mailboxes.addresses


TOML = re.compile(r"```toml\n(.*?)```", re.DOTALL)


def test_the_readme_and_what_it_links_to_lead_to_every_page() -> None:
    linked = set(re.findall(r"\]\(docs/(\w+\.md)", (ROOT / "README.md").read_text()))
    within = {t for p in linked for t in re.findall(r"\]\((\w+\.md)", (ROOT / "docs" / p).read_text())}
    assert {page.name for page in ROOT.glob("docs/*.md")} <= linked | within


def models(annotation: Any) -> list[type[BaseModel]]:
    """The tables that an option may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(annotation):
        return [model for part in typing.get_args(annotation) for model in models(part)]
    return []


def keys(section: str) -> set[str]:
    """The options of a section, as a configuration may have them. Empty: there is no such section."""
    found: list[type[BaseModel]] = [Config]
    for name in section.removesuffix(".NAME").split("."):
        fields = [model.model_fields[name] for model in found if name in model.model_fields]
        found = [model for field in fields for model in models(field.annotation)]
    return {key for model in found for name in model.model_fields for key in (name, *secret_keys(name))}


SECTIONS = {name for name, field in Config.model_fields.items() if models(field.annotation)} | {
    "mailboxes.overrides"
}


@each_page
def test_options_are_there(page: Path) -> None:
    text = page.read_text()
    for section, key in re.findall(r"`\[+([a-z_.]+)\]+ ([a-z_]+)", text):
        assert key in keys(section), f"[{section}] {key}"
    for section in re.findall(r"`\[+([a-z_.]+)\]+`", text):
        assert section in SECTIONS, section


def command(words: list[str]) -> tuple[Any, list[str]] | None:
    """The command that these words name, and the words that follow; None if they name none."""
    found: Any = typer.main.get_command(app)
    while commands := getattr(found, "commands", None):
        if not words or words[0] not in commands:
            return None
        found, words = commands[words[0]], words[1:]
    return found, words


@each_page
def test_commands_and_their_options_are_there(page: Path) -> None:
    for line in re.findall(r"(?<![\w@./-])ews-listener ([a-z][^`|\n#;]*)", page.read_text()):
        words = re.sub(r"\(.*?\)", " ", line).split()
        if not re.search(r"(^| )--?[a-z]", line) and command(words) is None:
            continue  # prose: "ews-listener is …"
        found = command(words)
        assert found, line
        known = {"--help"} | {option for parameter in found[0].params for option in parameter.opts}
        for word in found[1]:
            option = word.strip("[].,:…\"'").partition("=")[0]
            assert not option.startswith("--") or option in known, line


@each_page
def test_log_events_and_codes_are_there(page: Path) -> None:
    """As far as a name looks like one: `journal.…` for a subject of the log, `Error…` for a code."""
    subjects = {name.partition(".")[0] for name in logged()}
    for name in re.findall(r"`([a-z]+\.[a-z_]+)`", page.read_text()):
        if name.partition(".")[0] in subjects and not name.endswith((".py", ".db")):
            assert name in logged(), name
    for code in re.findall(r"`(Error[A-Z]\w+|AADSTS\d+)`", page.read_text()):
        assert code in VERDICTS, code


def test_the_architecture_names_every_module() -> None:
    told = set(re.findall(r"\w+", (ROOT / "docs/ARCHITECTURE.md").read_text()))
    modules = {path.stem for path in (ROOT / "listener").rglob("*.py") if not path.stem.startswith("_")}
    commands = {path.stem for path in (ROOT / "listener/cli").glob("*.py")}  # one file a command
    handlers = {path.stem for path in (ROOT / "listener/handlers").glob("*.py")}
    assert modules - told - commands - handlers == set()
