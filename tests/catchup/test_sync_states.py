"""Storage of snapshots in the journal, and how long it keeps them."""

from pathlib import Path

import structlog.testing
import trio
import trio.testing

from listener.catchup.sync_states import DAY, KEEP_REMOVED, JournalStates
from listener.journal.sqlite import open_journal
from tests.journal.tools import Clock


async def test_stored_state_is_separate_for_each_mailbox(tmp_path: Path) -> None:
    async with open_journal(tmp_path) as journal:
        states = JournalStates(journal)
        await states.save("ann@example.com", (), {"inbox": b"1", "sent": b"2"})
        await states.save("ann@example.com.au", (), {"inbox": b"3"})
        await states.save("ann@example.com", (), {"sent": None})
        assert await states.load("ann@example.com") == {"inbox": b"1"}
        assert await states.load("ann@example.com.au") == {"inbox": b"3"}
        assert await states.load("bob@example.com") == {}


async def test_removed_mailbox_is_forgotten_after_a_month(
    autojump_clock: trio.testing.MockClock,
) -> None:
    clock = Clock()
    configured = {"ann@example.com", "bob@example.com"}
    async with open_journal(None, now=clock) as journal, trio.open_nursery() as nursery:
        states = JournalStates(journal)
        for mailbox in configured:
            await states.save(mailbox, (), {"inbox": b"1"})
        nursery.start_soon(states.forget_removed, lambda: configured, clock)
        with structlog.testing.capture_logs() as log:
            clock.time += KEEP_REMOVED - DAY
            configured.remove("bob@example.com")
            await trio.sleep(DAY + 3601)
            assert await states.load("bob@example.com") == {"inbox": b"1"}
            clock.time += 2 * DAY
            await trio.sleep(DAY + 1)
            assert await states.load("bob@example.com") == {}
            assert await states.load("ann@example.com") == {"inbox": b"1"}
        (line,) = (line for line in log if line["event"] == "catchup.forgotten")
        assert line["mailboxes"] == ["bob@example.com"]
        nursery.cancel_scope.cancel()
