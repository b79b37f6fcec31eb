"""Looking at one mailbox: who watches is told, who does not costs nothing, and nobody waits for a watcher."""

import json
from typing import Any

import trio
import trio.testing

from listener.ews.events import EventKind
from listener.ews.soap import Impersonation
from listener.ews.subscription import FolderRef, subscribe
from listener.tracing import MOST, Home, Tracing

ANN, BOB = "ann@x.example", "bob@x.example"


def request(*, as_: str | None = None, owner: str | None = None) -> bytes:
    who = None if as_ is None else Impersonation("SmtpAddress", as_)
    inbox = [FolderRef("inbox", mailbox=owner)]
    return subscribe(version="Exchange2016", impersonate=who, events=[EventKind.NEW_MAIL], folders=inbox)


def read(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


async def test_who_watches_is_told_of_that_mailbox_only() -> None:
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


async def test_several_watch_and_the_last_one_turns_out_the_light() -> None:
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


async def test_whoever_reads_too_slowly_loses_lines_and_is_told_so() -> None:
    tracing = Tracing()
    lines = tracing.watch(ANN)
    await anext(lines)
    for number in range(MOST + 7):
        tracing.emit(ANN, "event", number=number)
    found = read(await anext(lines))
    assert [line["number"] for line in found[:-1]] == list(range(MOST))
    assert (found[-1]["kind"], found[-1]["lines"]) == ("lost", 7)
    tracing.emit(ANN, "event", number=-1)
    assert [line["number"] for line in read(await anext(lines))] == [-1]
    await lines.aclose()


async def test_a_watcher_waits_for_news_and_may_be_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    tracing = Tracing()
    with trio.move_on_after(5):
        async for _ in tracing.watch(ANN):
            pass
    assert trio.current_time() >= 5
    await trio.testing.wait_all_tasks_blocked()


async def test_requests_about_the_mailbox_and_the_stream_of_its_group() -> None:
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


async def test_a_request_names_a_mailbox_as_xml_does() -> None:
    for mailbox in ("research&development@x.example", "S-1-5-21-7-8-9", "jörg@x.example"):
        tracing = Tracing()
        lines = tracing.watch(mailbox)
        await anext(lines)
        tracing.trace_request("Subscribe", request(as_=mailbox), "", code="ok", seconds=0.1)
        assert len(read(await anext(lines))) == 1
        await lines.aclose()


async def test_requests_about_the_accounts_own_mailbox_name_nobody() -> None:
    tracing = Tracing()
    tracing.home = {ANN: Home("site/1", ANN, own=True), BOB: Home("site/2", BOB)}.get
    mine, theirs = tracing.watch(ANN), tracing.watch(BOB)
    await anext(mine)
    await anext(theirs)
    for body, anchor, code in (
        (request(), ANN, "mine"),
        (request(), BOB, "a delegate's"),
        (request(), "", "nobody's"),
        (request(as_=BOB), BOB, "impersonated"),
        (request(owner=BOB), ANN, "beside me"),
    ):
        tracing.trace_request("Subscribe", body, anchor, code=code, seconds=0.1)
    assert [line["code"] for line in read(await anext(mine))] == ["mine"]
    assert [line["code"] for line in read(await anext(theirs))] == ["impersonated", "beside me"]
    await mine.aclose()
    await theirs.aclose()


async def test_lines_of_the_log_about_it_or_about_its_group() -> None:
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
