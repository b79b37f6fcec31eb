"""The documentation names only what exists, and the wording of the project follows the style guide."""

import io
import re
import runpy
import tokenize
import tomllib
import types
import typing
from collections.abc import Iterator
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
from listener.preflight.remedies import DIAGNOSES, REMEDIES
from tests.test_log import logged

ROOT = Path(__file__).parent.parent
PAGES = [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")), *ROOT.glob("docs/*.md")]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(page: Path) -> set[str]:
    """Return the headings of a page in the form that links use."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_link_targets_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", ["README.md", "docs/OPERATING.md"])
def test_the_first_configuration_of_a_page_is_valid(page: str, tmp_path: Path) -> None:
    (text,) = (block for block in TOML.findall((ROOT / page).read_text()) if "[auth]" in block)
    (tmp_path / "password").write_text("secret")
    (tmp_path / "password").chmod(0o600)
    config = parse(tomllib.loads(dedent(text)), tmp_path, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert config.mailboxes.addresses


TOML = re.compile(r"```toml\n(.*?)```", re.DOTALL)


def test_the_readme_or_a_page_that_it_links_to_links_to_every_page() -> None:
    linked = set(re.findall(r"\]\(docs/(\w+\.md)", (ROOT / "README.md").read_text()))
    within = {t for p in linked for t in re.findall(r"\]\((\w+\.md)", (ROOT / "docs" / p).read_text())}
    assert {page.name for page in ROOT.glob("docs/*.md")} <= linked | within


def models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models of the tables that an option may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(annotation):
        return [model for part in typing.get_args(annotation) for model in models(part)]
    return []


def keys(section: str) -> set[str]:
    """Return the option names of a section; empty if the section does not exist."""
    found: list[type[BaseModel]] = [Config]
    for name in section.removesuffix(".NAME").split("."):
        fields = [model.model_fields[name] for model in found if name in model.model_fields]
        found = [model for field in fields for model in models(field.annotation)]
    return {key for model in found for name in model.model_fields for key in (name, *secret_keys(name))}


SECTIONS = {name for name, field in Config.model_fields.items() if models(field.annotation)} | {
    "mailboxes.overrides"
}


def check_options(text: str) -> None:
    for section, key in re.findall(r"`\[+([a-z_.]+)\]+ ([a-z_]+)", text):
        assert key in keys(section), f"[{section}] {key}"
    for section in re.findall(r"`\[+([a-z_.]+)\]+`", text):
        assert section in SECTIONS, section


@each_page
def test_options_exist(page: Path) -> None:
    check_options(page.read_text())


def test_options_in_remedies_exist() -> None:
    remedies = [*REMEDIES.values(), *(remedy for _, remedy in DIAGNOSES)]
    check_options("\n".join(part for remedy in remedies for part in remedy))


def command(words: list[str]) -> tuple[Any, list[str]] | None:
    """Return the command that these words name and the remaining words, or None if there is no such command."""
    found: Any = typer.main.get_command(app)
    while commands := getattr(found, "commands", None):
        if not words or words[0] not in commands:
            return None
        found, words = commands[words[0]], words[1:]
    return found, words


@each_page
def test_commands_and_their_options_exist(page: Path) -> None:
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
def test_log_events_and_codes_exist(page: Path) -> None:
    """Check names whose first part is that of a log event, and names that begin with Error or AADSTS."""
    subjects = {name.partition(".")[0] for name in logged()}
    for name in re.findall(r"`([a-z]+\.[a-z_]+)`", page.read_text()):
        if name.partition(".")[0] in subjects and not name.endswith((".py", ".db")):
            assert name in logged(), name
    for code in re.findall(r"`(Error[A-Z]\w+|AADSTS\d+)`", page.read_text()):
        assert code in VERDICTS, code


def test_the_architecture_names_every_module() -> None:
    named = set(re.findall(r"\w+", (ROOT / "docs/ARCHITECTURE.md").read_text()))
    modules = {path.stem for path in (ROOT / "listener").rglob("*.py") if not path.stem.startswith("_")}
    commands = {path.stem for path in (ROOT / "listener/cli").glob("*.py")}  # one file a command
    handlers = {path.stem for path in (ROOT / "listener/handlers").glob("*.py")}
    assert modules - named - commands - handlers == set()


def test_the_table_of_codes_is_current() -> None:
    page = ROOT / "docs/TROUBLE.md"
    reference = runpy.run_path(str(ROOT / "packaging/reference.py"))
    assert page.read_text() == reference["page"](page.read_text()), "run: make reference"


# --- wording

# Idioms that non-native speakers misread, personification, and terms that the glossary replaces. A space matches any
# white space.
FORBIDDEN = (
    r"told|tells?|heard|anew|lest|beside|whoever|nobody|somebody|nowhere|befall\w*|ill|ails?",
    r"so many|be it|of ours|in vain|for good|of its own accord|by and by|has come|is over(?! )|is no address",
    r"way of access|ways? in|(?:gets?|got) at|(?:gives?|gave|given) up|(?:be|is|are|was) had",
    r"mend(?:s|ed|ing)?|deeds?|patience|astray|accused|encouraged|bur(?:y|ied|ies)|(?:un)?parked",
    r"census|roster|lanes?|supervisor|keeper|desk|agenda|recollection|twins?|attendant|headline|dice",
    r"heart-beat|time-out",
)
WORDS = re.compile(
    rf"\b(?:{'|'.join(FORBIDDEN).replace(' ', chr(92) + 's+')})\b|(?:^|[.:;]\s)(?-i:Who)\b", re.IGNORECASE
)
ALLOWED: dict[str, str] = {}
"""By source, a regular expression of words in their ordinary sense, with the reason in a comment. Stays empty."""


def cleaned(path: Path) -> str:
    """Return the text of a page or the strings and comments of a module."""
    text = path.read_text()
    if path.suffix == ".py":
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        kinds = (tokenize.COMMENT, tokenize.STRING)
        texts = [token.string.removeprefix("# ") for token in tokens if token.type in kinds]
        return "\n".join(re.sub(r"\{[^{}]*}", "{}", text) if text.startswith("f") else text for text in texts)
    if path.name == "CHANGELOG.md":  # its table of renamed log events has the old names
        return re.sub(r"^ *\|.*\n", "", text, flags=re.MULTILINE)
    return text


def help_texts(command: Any, name: str = "help") -> Iterator[tuple[str, str]]:
    """Yield each command's name and its help text with those of its parameters."""
    parts = (
        command.help,
        command.short_help,
        command.epilog,
        *(getattr(p, "help", "") for p in command.params),
    )
    yield name, "\n".join(filter(None, parts))
    for word, below in getattr(command, "commands", {}).items():
        yield from help_texts(below, f"{name}/{word}")


def read_sources() -> dict[str, str]:
    """Return everything that readers see, by the name of its source."""
    others = [ROOT / "config.example.toml", ROOT / "docs/alerts.yml"]
    files = [*PAGES, *others, *sorted((ROOT / "listener").rglob("*.py"))]
    found = {str(path.relative_to(ROOT)): cleaned(path) for path in files}
    found["log-events"] = "\n".join(re.sub(r"[._]", " ", name) for name in sorted(logged()))
    return found | dict(help_texts(typer.main.get_command(app)))


SOURCES = read_sources()


@pytest.mark.parametrize("source", SOURCES)
def test_the_wording_follows_the_style_guide(source: str) -> None:
    text = re.sub(ALLOWED[source], "", SOURCES[source]) if source in ALLOWED else SOURCES[source]
    found = [" ".join(text[max(0, m.start() - 30) : m.end() + 30].split()) for m in WORDS.finditer(text)]
    assert found == []


def test_exceptions_from_the_style_guide_are_necessary() -> None:
    for source, pattern in ALLOWED.items():
        assert re.search(pattern, SOURCES[source]), source


@pytest.mark.parametrize(
    "text",
    ["It tells\nwhy.", "a time-out", "Who comes late", "not; Who", "gave up", "The end is over.", "Mended"],
)
def test_forbidden_words_are_found(text: str) -> None:
    assert WORDS.search(text)


@pytest.mark.parametrize(
    "text", ["the one who", "for goods", "still", "is over 9", "retold", "besides", "skill"]
)
def test_other_words_are_not_found(text: str) -> None:
    assert not WORDS.search(text)
