"""Events of earlier processes are noted first, in their order, and no stream waits for that."""

from collections.abc import AsyncGenerator, Sequence

import trio
import trio.testing

from listener.catchup.history_loader import HistoryLoader
from listener.event import MailboxEvent


def event(item: str, mailbox: str = "ann", *, recovered: bool = False) -> MailboxEvent:
    return MailboxEvent(
        type="exchange.item.created",
        mailbox=mailbox,
        time="2026-01-01T00:00:00Z",
        item_id=item,
        recovered=recovered,
    )


async def test_order_is_preserved_while_new_events_arrive(autojump_clock: trio.testing.MockClock) -> None:
    async def journal() -> AsyncGenerator[Sequence[MailboxEvent], None]:
        for number in range(3):
            await trio.sleep(1)
            yield [event(f"old {number}"), event("of a removed mailbox", "eve")]

    noted: list[str | None] = []
    loader = HistoryLoader(lambda batch: noted.extend(e.item_id for e in batch))
    async with trio.open_nursery() as nursery:
        loader.note([event("new 0")])
        nursery.start_soon(loader.load, journal(), {"ann"})
        await trio.sleep(1.5)
        loader.note([event("new 1"), event("new 2")])
    loader.note([event("new 3")])
    assert noted == ["old 0", "old 1", "old 2", "new 0", "new 1", "new 2", "new 3"]


async def test_recovered_events_of_earlier_processes_are_noted_like_live_ones() -> None:
    async def journal() -> AsyncGenerator[Sequence[MailboxEvent], None]:
        yield [event("A", recovered=True), event("B", "eve")]

    noted: list[MailboxEvent] = []
    loader = HistoryLoader(noted.extend)
    assert await loader.load(journal(), {"ann"}) == (1, 2)
    loader.note([event("C", recovered=True)])
    assert [(e.item_id, e.recovered) for e in noted] == [("A", False), ("C", True)]
