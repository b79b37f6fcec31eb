"""External text (servers, plugins, files) never reaches a terminal with control characters, in any command."""

import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from listener.admin.snapshot import Snapshot
from listener.admin.view import render_status
from listener.cli import app
from listener.cli.check_report import print_report
from listener.cli.exits import exit_on_errors
from listener.cli.watch import _render
from listener.errors import ConfigError, Problem
from listener.event import MailboxEvent
from listener.ews.codes import Failure
from listener.journal.sqlite import open_journal
from listener.log.reader import LogReader
from listener.preflight.check import MailboxCheck, Report
from tests.admin.statuses import snapshot
from tests.cli.test_offline import CONFIG, ask

EVIL = "\x1b[2J\x9b31m\u202e[red]\r\x07\x7f\nnew line"
CONTROL_CHARACTERS = set("\x1b\x9b\u202e\r\x07\x7f")


def assert_harmless(text: str) -> None:
    assert text
    assert not set(text) & CONTROL_CHARACTERS
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
            status, output = ask(config, "dead-letters", *command)
            assert status == 0
            assert_harmless(output)
        status, output = ask(config, "replay", "--handler", EVIL, "--since", "1h")
        assert_harmless(output)


def evil(value: Any) -> Any:
    """Return the value with EVIL in all of its strings."""
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
    console.print(render_status(it))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert_harmless(text)
    assert "[red]" in text, "markup is not interpreted"


def test_watch_and_tail() -> None:
    assert_harmless(_render({"time": "2026-01-01T00:00:00Z", "kind": EVIL, "text": EVIL, EVIL: EVIL}).plain)
    for line in (EVIL, msgspec.json.encode({"event": f"a.b{EVIL}", "text": EVIL, EVIL: EVIL}).decode()):
        rendered = LogReader().render(line)
        assert rendered is not None
        assert_harmless(rendered.plain)


def test_check_report(capsys: pytest.CaptureFixture[str]) -> None:
    failure = Failure(code=f"Error{EVIL}", text=EVIL + "x" * 1_000_000)
    check = MailboxCheck(mailbox=f"a{EVIL}@b.c", access="own", group=None, failure=failure, tried=True)
    print_report(Report(mailboxes=[check]))
    output = capsys.readouterr().out
    assert_harmless(output)
    assert len(output) < 100_000


def test_configuration_errors(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.replace('use = "log"', 'use = "lo\\u001b[2Jg\\u202e"') + '"a\\u001b[31m" = 1\n')
    for command in (["check"], ["check", "--json"]):
        result = CliRunner().invoke(app, [*command, "-c", str(config)])
        assert result.exit_code == 2, command
        assert_harmless(result.output)


def test_errors_at_exit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), exit_on_errors():
        raise ConfigError([Problem("handlers.x", f"could not be opened: {EVIL.replace(chr(10), '')}")])
    assert_harmless(capsys.readouterr().err)
