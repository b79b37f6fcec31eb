"""docs/OPERATING.md quotes only messages that exist, and its backup command works."""

import ast
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest

from listener.event import MailboxEvent
from listener.ews.codes import VERDICTS
from listener.journal.sqlite import open_journal
from tests.test_log import logged

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/OPERATING.md").read_text()
ENTRIES = re.split(r"^### ", PAGE.partition("<!-- troubles")[2], flags=re.MULTILINE)[1:]
EVENT = MailboxEvent(type="exchange.item.created", mailbox="a@b.c", time="2026-01-01T00:00:00Z", item_id="x")


@cache
def words() -> str:
    """Return all strings in the source, f-strings in one piece, and the names of keyword arguments (log fields)."""
    return "\n".join(
        text for path in (ROOT / "listener").rglob("*.py") for text in texts(ast.parse(path.read_text()))
    )


def texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)):
                yield text
            case ast.JoinedStr(values=parts):
                yield "…".join(str(part.value) for part in parts if isinstance(part, ast.Constant))
            case ast.keyword(arg=str(name)):
                yield name


def exists(span: str) -> bool:
    """Return whether the program can print this: a log event, a code, or a text with … in place of variable parts."""
    if re.fullmatch(r"[a-z]+\.[a-z_]+", span):
        return span in logged()
    if re.fullmatch(r"[A-Z][A-Za-z0-9]+", span):
        return span in VERDICTS
    return all(piece.strip(" :)") in words() for piece in re.split(r"…|\(", span) if piece.strip(" :)"))


def test_there_are_twenty_entries_with_message_cause_and_remedy() -> None:
    assert [int(entry.partition(".")[0]) for entry in ENTRIES] == list(range(1, 21))
    for entry in ENTRIES:
        assert re.findall(r"^- \*\*(\w+):\*\*", entry, re.MULTILINE) == ["Message", "Cause", "Fix"], entry


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.partition("\n")[0])
def test_quoted_messages_exist(entry: str) -> None:
    quoted = entry.partition("- **Message:**")[2].partition("- **Cause:**")[0]
    spans = re.findall(r"`([^`]+)`", quoted)
    assert spans
    assert [span for span in spans if not exists(" ".join(span.split()))] == []


@pytest.mark.parametrize(
    "text", ["journal.overflowing", "ErrorNoSuchCode", "was never printed … (by any code)"]
)
def test_made_up_messages_do_not_exist(text: str) -> None:
    assert not exists(text)


async def test_backup_is_a_journal(tmp_path: Path) -> None:
    there, copy = tmp_path / "there", tmp_path / "copy"
    copy.mkdir()
    (command,) = re.findall(r"^sqlite3 \S+ \"(VACUUM INTO) '", PAGE, re.MULTILINE)
    async with open_journal(there) as journal:
        reader = await journal.reader("audit")
        await journal.append([EVENT] * 3)
        reader.acknowledge([entry.position for entry in await reader.read(1)])
        await journal.flush()
        with closing(sqlite3.connect(there / "journal.db")) as connection:
            connection.execute(f"{command} '{copy / 'journal.db'}'")
        await journal.append([EVENT])
    async with open_journal(copy) as journal:
        assert len(await (await journal.reader("audit")).read(10)) == 2
