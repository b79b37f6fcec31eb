"""Mailboxes whose streams cannot be opened, or bring nothing, while other requests are answered."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from listener.ews.codes import Failure
from tests.virtual.history import phantoms, things, too_old
from tests.virtual.office import Office, office, ready
from tests.virtual.test_first_listening import fill
from tests.virtual.wire import clock

SENDER = "ben@example.org"


@asynccontextmanager
async def never_streaming(**settings: Any) -> AsyncIterator[Office]:
    """An office with old mail, whose mailbox is subscribed and has no stream."""
    async with office(**settings) as one:
        await fill(one)
        one.streaming = False
        one.answers_without_stream = True
        one.catch_up.subscribed(one.mailbox.address, new=True)
        one.clear()
        await trio.sleep(1)
        yield one


async def mail(one: Office) -> str:
    await one.keep(one.mailbox.deliver("mail", SENDER, clock()))
    return one.mailbox.latest(one.mailbox.distinguished("inbox"), 1)[0].id


@pytest.mark.parametrize("small", [True, False])
async def test_a_mailbox_that_never_had_a_stream(
    small: bool, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("listener.catchup.resync.MAX_CHANGES", 512 if small else 2)
    async with never_streaming(interval=300) as one:
        old = things(one)
        since = trio.current_time()
        made = []
        for _ in range(5):
            made.append(await mail(one))
            await trio.sleep(400)
            created = [id_ for type_, id_ in one.told if type_ == "item.created"]
            assert created == made
        assert len(one.logged("catchup.without_stream")) == 1
        assert "buffers" in one.logged("catchup.without_stream")[0]["text"]
        assert one.asked["FindFolder"] <= 8
        last = await mail(one)
        # The stream comes at last.
        one.streaming = True
        one.gap(since - 1, "start")
        await one.settle()
        made.append(last)
        assert [id_ for type_, id_ in one.told if type_ == "item.created"] == made
        assert len(one.told) == len(set(one.told)) + 5  # the inbox changed six times
        assert (too_old(one, old), phantoms(one), one.lost()) == ([], [], [])
        await trio.sleep(700)
        one.clear()
        one.streaming = False
        await mail(one)
        await trio.sleep(700)
        assert len(one.logged("catchup.without_stream")) == 2


async def test_a_stream_that_was_there_once(autojump_clock: trio.testing.MockClock) -> None:
    async with ready(interval=300, idle_interval=10_000) as one:
        one.answers_without_stream = True
        await trio.sleep(5000)
        one.clear()
        since = trio.current_time()
        one.streaming = False
        first = await mail(one)
        await trio.sleep(280)
        assert one.asked["FindFolder"] == 0  # it may be back at any moment
        await trio.sleep(120)
        assert ("item.created", first) in one.told
        second = await mail(one)
        one.streaming = True
        one.gap(since)
        await one.settle()
        assert [id_ for type_, id_ in one.told if type_ == "item.created"] == [first, second]
        assert one.lost() == []


async def test_a_server_that_does_not_answer_is_not_asked_more_often(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready(interval=300, idle_interval=2000) as one:
        one.answers_without_stream = True
        one.streaming = False
        one.fail["FindFolder"] = [Failure(code="ConnectFailed")] * 1000
        one.clear()
        await trio.sleep(10_000)
        assert one.asked["FindFolder"] <= 10
        assert not one.logged("catchup.without_stream")
        assert {line["log_level"] for line in one.logged("catchup.failed")} == {"debug"}
