"""docs/OPERATING.md: what its troubles say can be said, and its backup is one."""

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
TROUBLES = re.split(r"^### ", PAGE.partition("<!-- troubles")[2], flags=re.MULTILINE)[1:]
EVENT = MailboxEvent(type="exchange.item.created", mailbox="a@b.c", time="2026-01-01T00:00:00Z", item_id="x")


@cache
def words() -> str:
    """Every text in the program, f-strings in one piece, and the names of values that go into its log."""
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


def is_said(span: str) -> bool:
    """Whether the listener says this: a log event, a code, or words, in which … stands for what differs."""
    if re.fullmatch(r"[a-z]+\.[a-z_]+", span):
        return span in logged()
    if re.fullmatch(r"[A-Z][A-Za-z0-9]+", span):
        return span in VERDICTS
    return all(piece.strip(" :)") in words() for piece in re.split(r"…|\(", span) if piece.strip(" :)"))


def test_there_are_twenty_each_with_what_is_said_its_cause_and_its_remedy() -> None:
    assert [int(write_error.partition(".")[0]) for write_error in TROUBLES] == list(range(1, 21))
    for write_error in TROUBLES:
        assert re.findall(r"^- \*\*(\w+):\*\*", write_error, re.MULTILINE) == ["Message", "Cause", "Fix"], (
            write_error
        )


@pytest.mark.parametrize("write_error", TROUBLES, ids=lambda write_error: write_error.partition("\n")[0])
def test_what_is_said_can_be_said(write_error: str) -> None:
    said = write_error.partition("- **Message:**")[2].partition("- **Cause:**")[0]
    spans = re.findall(r"`([^`]+)`", said)
    assert spans
    assert [span for span in spans if not is_said(" ".join(span.split()))] == []


@pytest.mark.parametrize(
    "made_up", ["journal.overflowing", "ErrorNoSuchCode", "is held by nobody … (ask somebody)"]
)
def test_what_is_never_said_is_found_out(made_up: str) -> None:
    assert not is_said(made_up)


async def test_its_backup_is_a_journal(tmp_path: Path) -> None:
    there, copy = tmp_path / "there", tmp_path / "copy"
    copy.mkdir()
    (command,) = re.findall(r"^sqlite3 \S+ \"(VACUUM INTO) '", PAGE, re.MULTILINE)
    async with open_journal(there) as journal:
        reader = await journal.reader("audit")
        await journal.append([EVENT] * 3)
        reader.acknowledge([entry.position for entry in await reader.read(1)])
        await journal.flush()
        with closing(sqlite3.connect(there / "journal.db")) as beside:
            beside.execute(f"{command} '{copy / 'journal.db'}'")
        await journal.append([EVENT])
    async with open_journal(copy) as journal:
        assert len(await (await journal.reader("audit")).read(10)) == 2
