"""Tracing of single mailboxes: watchers get the lines of their mailbox and never delay the daemon."""

import json
from typing import Any

import trio
import trio.testing

from listener.ews.events import EventKind
from listener.ews.soap import Impersonation
from listener.ews.subscription import FolderRef, subscribe
from listener.tracing import MAX_LINES, Home, Tracing

ANN, BOB = "ann@x.example", "bob@x.example"


def request(*, as_: str | None = None, owner: str | None = None) -> bytes:
    impersonation = None if as_ is None else Impersonation("SmtpAddress", as_)
    inbox = [FolderRef("inbox", mailbox=owner)]
    return subscribe(
        version="Exchange2016", impersonate=impersonation, events=[EventKind.NEW_MAIL], folders=inbox
    )


def read(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


async def test_watcher_gets_lines_of_its_mailbox_only() -> None:
    tracing = Tracing()
    lines = tracing.watch(ANN)
    assert not tracing.on
    (first,) = read(await anext(lines))
    assert tracing.on
    assert (first["kind"], first["mailbox"]) == ("watching", ANN)
    tracing.emit(BOB, "event", type="exchange.item.created")
    tracing.emit(ANN, "event", type="exchange.item.moved")
    (line,) = read(await anext(lines))
    assert list(line) == ["time", "kind", "type"]
    assert line["type"] == "exchange.item.moved"
    await lines.aclose()
    assert not tracing.on


async def test_tracing_is_on_until_the_last_watcher_ends() -> None:
    tracing, seen = Tracing(), list[bool]()
    tracing.changed = seen.append
    one, other = tracing.watch(ANN), tracing.watch(ANN)
    await anext(one)
    await anext(other)
    tracing.emit(ANN, "event")
    assert read(await anext(one)) == read(await anext(other))
    await one.aclose()
    assert tracing.on
    await other.aclose()
    assert seen == [True, False]


async def test_slow_watcher_loses_lines_and_gets_their_number() -> None:
    tracing = Tracing()
    lines = tracing.watch(ANN)
    await anext(lines)
    for number in range(MAX_LINES + 7):
        tracing.emit(ANN, "event", number=number)
    found = read(await anext(lines))
    assert [line["number"] for line in found[:-1]] == list(range(MAX_LINES))
    assert (found[-1]["kind"], found[-1]["lines"]) == ("lost", 7)
    tracing.emit(ANN, "event", number=-1)
    assert [line["number"] for line in read(await anext(lines))] == [-1]
    await lines.aclose()


async def test_watcher_waits_and_can_be_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    tracing = Tracing()
    with trio.move_on_after(5):
        async for _ in tracing.watch(ANN):
            pass
    assert trio.current_time() >= 5
    await trio.testing.wait_all_tasks_blocked()


async def test_requests_with_the_address_and_stream_of_the_group() -> None:
    tracing = Tracing()
    tracing.home = {ANN: Home("site/1", BOB)}.get
    lines = tracing.watch(ANN)
    await anext(lines)
    for operation, body, anchor in (
        ("Subscribe", b"<t:PrimarySmtpAddress>Ann@x.example<", BOB),
        ("Subscribe", b"<t:PrimarySmtpAddress>bob@x.example<", BOB),
        ("Subscribe", b"<t:PrimarySmtpAddress>joann@x.example<", BOB),
        ("Subscribe", b"<t:PrimarySmtpAddress>ann@x.example.org<", BOB),
        ("GetStreamingEvents", b"<t:SubscriptionId>x<", BOB),
        ("GetStreamingEvents", b"<t:SubscriptionId>y<", "eve@x.example"),
    ):
        tracing.trace_request(operation, body, anchor, code="ok", seconds=0.1)
    assert [line["operation"] for line in read(await anext(lines))] == ["Subscribe", "GetStreamingEvents"]
    await lines.aclose()


async def test_address_is_found_in_its_xml_form() -> None:
    for mailbox in ("research&development@x.example", "S-1-5-21-7-8-9", "jörg@x.example"):
        tracing = Tracing()
        lines = tracing.watch(mailbox)
        await anext(lines)
        tracing.trace_request("Subscribe", request(as_=mailbox), "", code="ok", seconds=0.1)
        assert len(read(await anext(lines))) == 1
        await lines.aclose()


async def test_requests_without_an_address_are_about_the_own_mailbox() -> None:
    tracing = Tracing()
    tracing.home = {ANN: Home("site/1", ANN, own=True), BOB: Home("site/2", BOB)}.get
    own, other = tracing.watch(ANN), tracing.watch(BOB)
    await anext(own)
    await anext(other)
    for body, anchor, code in (
        (request(), ANN, "own"),
        (request(), BOB, "own, other anchor"),
        (request(), "", "no anchor"),
        (request(as_=BOB), BOB, "impersonated"),
        (request(owner=BOB), ANN, "delegate"),
    ):
        tracing.trace_request("Subscribe", body, anchor, code=code, seconds=0.1)
    assert [line["code"] for line in read(await anext(own))] == ["own"]
    assert [line["code"] for line in read(await anext(other))] == ["impersonated", "delegate"]
    await own.aclose()
    await other.aclose()


async def test_log_lines_about_the_mailbox_or_its_group() -> None:
    tracing = Tracing()
    tracing.home = {ANN: Home("site/1", BOB)}.get
    lines = tracing.watch(ANN)
    await anext(lines)
    for number, line in enumerate(
        [
            {"event": "mailbox.suspended", "mailbox": ANN, "group": "site/1"},
            {"event": "mailbox.suspended", "mailbox": BOB, "group": "site/1"},
            {"event": "stream.silent", "group": "site/1"},
            {"event": "stream.silent", "group": "site/2"},
            {"event": "listener.started"},
        ]
    ):
        tracing.trace_log("warning", line | {"number": number})
    assert [line["number"] for line in read(await anext(lines))] == [0, 2]
    await lines.aclose()
