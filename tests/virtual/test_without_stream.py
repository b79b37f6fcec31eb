"""Mailboxes whose streams cannot be opened, or deliver nothing, while other requests are answered."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from listener.ews.codes import Failure
from tests.virtual.harness import CatchUpHarness, open_harness, ready_harness
from tests.virtual.random_history import existing_ids, reported_after_deletion, reported_as_new
from tests.virtual.test_first_subscription import fill_mailbox
from tests.virtual.wire import clock

SENDER = "ben@example.org"


@asynccontextmanager
async def harness_without_stream(**settings: Any) -> AsyncIterator[CatchUpHarness]:
    """Run a harness with old mail, whose mailbox is subscribed and has no stream."""
    async with open_harness(**settings) as harness:
        await fill_mailbox(harness)
        harness.streaming = False
        harness.answers_without_stream = True
        harness.catch_up.subscribed(harness.mailbox.address, new=True)
        harness.clear()
        await trio.sleep(1)
        yield harness


async def mail(harness: CatchUpHarness) -> str:
    await harness.hold_back(harness.mailbox.deliver("mail", SENDER, clock()))
    return harness.mailbox.latest(harness.mailbox.distinguished("inbox"), 1)[0].id


@pytest.mark.parametrize("small", [True, False])
async def test_mailbox_that_never_had_a_stream(
    small: bool, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("listener.catchup.resync.MAX_CHANGES", 512 if small else 2)
    async with harness_without_stream(interval=300) as harness:
        old = existing_ids(harness)
        since = trio.current_time()
        made = []
        for _ in range(5):
            made.append(await mail(harness))
            await trio.sleep(400)
            created = [id_ for type_, id_ in harness.recovered_changes if type_ == "item.created"]
            assert created == made
        assert len(harness.logged("catchup.without_stream")) == 1
        assert "buffers" in harness.logged("catchup.without_stream")[0]["text"]
        assert harness.requests["FindFolder"] <= 8
        last = await mail(harness)
        # The stream opens at last.
        harness.streaming = True
        harness.gap(since - 1, "start")
        await harness.settle()
        made.append(last)
        assert [id_ for type_, id_ in harness.recovered_changes if type_ == "item.created"] == made
        assert (
            len(harness.recovered_changes) == len(set(harness.recovered_changes)) + 5
        )  # the inbox changed six times
        assert (reported_as_new(harness, old), reported_after_deletion(harness), harness.lost()) == (
            [],
            [],
            [],
        )
        await trio.sleep(700)
        harness.clear()
        harness.streaming = False
        await mail(harness)
        await trio.sleep(700)
        assert len(harness.logged("catchup.without_stream")) == 2


async def test_mailbox_that_lost_its_stream(autojump_clock: trio.testing.MockClock) -> None:
    async with ready_harness(interval=300, idle_interval=10_000) as harness:
        harness.answers_without_stream = True
        await trio.sleep(5000)
        harness.clear()
        since = trio.current_time()
        harness.streaming = False
        first = await mail(harness)
        await trio.sleep(280)
        assert harness.requests["FindFolder"] == 0  # the stream may return at any moment
        await trio.sleep(120)
        assert ("item.created", first) in harness.recovered_changes
        second = await mail(harness)
        harness.streaming = True
        harness.gap(since)
        await harness.settle()
        assert [id_ for type_, id_ in harness.recovered_changes if type_ == "item.created"] == [first, second]
        assert harness.lost() == []


async def test_unreachable_server_gets_no_more_requests(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready_harness(interval=300, idle_interval=2000) as harness:
        harness.answers_without_stream = True
        harness.streaming = False
        harness.failures["FindFolder"] = [Failure(code="ConnectFailed")] * 1000
        harness.clear()
        await trio.sleep(10_000)
        assert harness.requests["FindFolder"] <= 10
        assert not harness.logged("catchup.without_stream")
        assert {line["log_level"] for line in harness.logged("catchup.failed")} == {"debug"}
