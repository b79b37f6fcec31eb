"""The examples in docs/HANDLERS.md run unchanged."""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from listener import BatchHandler, MailboxEvent
from listener.config import parse
from listener.handlers.exec_stream import open_exec_stream
from listener.plugins import load_handlers

PAGE = (Path(__file__).parent.parent.parent / "docs/HANDLERS.md").read_text()
EVENT = MailboxEvent(type="exchange.item.created", mailbox="a@b.c", time="2026-01-01T00:00:00Z", item_id="x")
REST = {"auth": {"user": "u", "password": "p"}, "mailboxes": {"addresses": ["a@b.c"]}}


def block(language: str, beginning: str) -> str:
    (found,) = (
        text
        for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
        if text.startswith(beginning)
    )
    return str(found)


@pytest.fixture
def _acme_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_audit.py").write_text(block("python", "from collections.abc"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_audit", raising=False)


@pytest.mark.usefixtures("_acme_audit")
async def test_example_handler_works(tmp_path: Path) -> None:
    document = tomllib.loads(block("toml", "[handlers.audit]\nuse"))
    (handler,) = load_handlers(parse(REST | document, tmp_path).handlers)
    assert handler.accepts.matches(EVENT)
    async with handler.open() as handle:
        assert not isinstance(handle, BatchHandler)
        await handle(EVENT)
        assert (tmp_path / "audit.jsonl").read_text() == EVENT.to_json() + "\n"


@pytest.mark.usefixtures("_acme_audit")
async def test_example_test_passes(tmp_path: Path) -> None:
    names: dict[str, Any] = {"MailboxEvent": MailboxEvent}
    exec("from acme_audit import open_audit\n" + block("python", "async def test_audit"), names)
    await names["test_audit"](tmp_path)


def test_example_filter_is_valid() -> None:
    document = tomllib.loads(block("toml", "[handlers.audit.filter]"))
    document["handlers"]["audit"]["use"] = "log"
    assert parse(REST | document, Path("/")).handlers["audit"].filter.types == (
        "new_mail",
        "exchange.folder.*",
    )


async def test_example_program_of_exec_stream_works(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(block("python", "import json, sys"))
    text = f"exec {sys.executable} {tmp_path}/program.py 2> {tmp_path}/errors"
    async with open_exec_stream(command=["sh", "-c", text], acknowledge=True) as handle:
        await handle(EVENT)
    assert (tmp_path / "errors").read_text() == "exchange.item.created a@b.c\n"
