"""What servers, plugins and files say does not move the cursor of a terminal, on any way out."""

import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from listener.admin.snapshot import Snapshot
from listener.admin.view import picture
from listener.cli import app
from listener.cli.check_report import show
from listener.cli.exits import reported
from listener.cli.watch import _shown
from listener.errors import ConfigError, Problem
from listener.event import MailboxEvent
from listener.ews.codes import Failure
from listener.journal.sqlite import open_journal
from listener.log.reading import Reading
from listener.preflight.check import MailboxCheck, Report
from tests.admin.statuses import snapshot
from tests.cli.test_offline import CONFIG, ask

EVIL = "\x1b[2J\x9b31m\u202e[red]\r\x07\x7f\nnew line"
OBEYED = set("\x1b\x9b\u202e\r\x07\x7f")


def harmless(text: str) -> None:
    assert text
    assert not set(text) & OBEYED
    assert "\nnew line" not in text


async def test_dead_letters(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    event = MailboxEvent(type="exchange.item.created", mailbox=EVIL, time=EVIL, item_id=EVIL)
    async with open_journal(tmp_path / "there") as journal:
        reader = await journal.reader(f"audit{EVIL}")
        await journal.append([event])
        await reader.dead_letter(await reader.read(1), reason=EVIL, traceback=EVIL.replace("\n", ""))
        for command in (["list"], ["show", "1"], ["list", "--json"], ["show", "1", "--json"]):
            status, told = ask(config, "dead-letters", *command)
            assert status == 0
            harmless(told)
        status, told = ask(config, "replay", "--handler", EVIL, "--since", "1h")
        harmless(told)


def evil(value: Any) -> Any:
    """The value with EVIL in all of its texts."""
    if isinstance(value, str):
        return value + EVIL
    if isinstance(value, list):
        return [evil(item) for item in value]
    if isinstance(value, dict):
        return {key + EVIL if key.startswith("Error") else key: evil(item) for key, item in value.items()}
    return value


def test_status() -> None:
    it = msgspec.convert(evil(msgspec.to_builtins(snapshot())), Snapshot)
    console = Console(file=io.StringIO(), width=2000)
    console.print(picture(it))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    harmless(text)
    assert "[red]" in text, "and is no markup"


def test_watch_and_tail() -> None:
    harmless(_shown({"time": "2026-01-01T00:00:00Z", "kind": EVIL, "text": EVIL, EVIL: EVIL}).plain)
    for line in (EVIL, msgspec.json.encode({"event": f"a.b{EVIL}", "text": EVIL, EVIL: EVIL}).decode()):
        shown = Reading().show(line)
        assert shown is not None
        harmless(shown.plain)


def test_what_check_found(capsys: pytest.CaptureFixture[str]) -> None:
    failure = Failure(code=f"Error{EVIL}", text=EVIL + "x" * 1_000_000)
    check = MailboxCheck(mailbox=f"a{EVIL}@b.c", access="own", group=None, failure=failure, tried=True)
    show(Report(mailboxes=[check]))
    told = capsys.readouterr().out
    harmless(told)
    assert len(told) < 100_000


def test_errors_of_a_configuration(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.replace('use = "log"', 'use = "lo\\u001b[2Jg\\u202e"') + '"a\\u001b[31m" = 1\n')
    for command in (["check"], ["check", "--json"]):
        result = CliRunner().invoke(app, [*command, "-c", str(config)])
        assert result.exit_code == 2, command
        harmless(result.output)


def test_errors_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), reported():
        raise ConfigError([Problem("handlers.x", f"could not be opened: {EVIL.replace(chr(10), '')}")])
    harmless(capsys.readouterr().err)
