"""The loop watchdog logs what blocks the event loop."""

import re
import time
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
import structlog.testing
import trio

from listener import Handler, MailboxEvent
from listener.admin.loop_watchdog import watch_loop
from listener.delivery.delivery import Delivery, Worker
from tests.delivery.test_delivery import LIMITS, Plugin, event
from tests.fakes import FakeJournal

Lines = list[MutableMapping[str, Any]]


async def run(plugin: Plugin, act: Any = None) -> Lines:
    with structlog.testing.capture_logs() as lines, watch_loop(every=0.02, limit=0.1):
        delivery = Delivery((Worker(plugin, LIMITS),))
        async with trio.open_nursery() as nursery:
            await nursery.start(delivery.run, FakeJournal())
            await delivery.publish([event(1)])
            await delivery.drain(5)
            nursery.cancel_scope.cancel()
        if act is not None:
            await trio.sleep(0.05)
            act()
            await trio.sleep(0.05)
    return [line for line in lines if line["event"] in ("handler.blocked_loop", "listener.loop_blocked")]


async def test_blocking_handler_is_logged_with_its_stack() -> None:
    async def block(_: MailboxEvent) -> None:
        await trio.sleep(0.05)
        time.sleep(0.5)

    lines = await run(Plugin(block, name="napper"))
    assert lines
    assert {line["handler"] for line in lines} == {"napper"}
    assert re.search(r"test_loop_watchdog\.py.*in block\n\s+time\.sleep", lines[0]["stack"])
    assert 0.1 <= lines[0]["seconds"] < 2
    assert len(lines) <= 3, "the interval between reports doubles"


async def test_task_started_by_a_handler_is_attributed_to_it() -> None:
    class Spawning(Plugin):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[Handler]:
            async def handle(_: MailboxEvent) -> None:
                pass

            async def block() -> None:
                await trio.sleep(0.05)
                time.sleep(0.5)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(block)
                yield handle

    lines = await run(Spawning(name="spawner"))
    assert {line["handler"] for line in lines} == {"spawner"}


async def test_block_outside_of_handlers_is_logged_without_a_handler() -> None:
    lines = await run(Plugin(), act=lambda: time.sleep(0.5))
    assert {line["event"] for line in lines} == {"listener.loop_blocked"}


async def test_running_loop_is_not_logged() -> None:
    async def work(_: MailboxEvent) -> None:
        await trio.sleep(0.3)

    assert not await run(Plugin(work))
