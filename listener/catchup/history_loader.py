"""What handlers were told before this process began, for whoever compares mailboxes with it.

Without it a comparison would tell again what had been told, and could not see that a thing is gone which nobody but
the streams had told of. The journal has it. It is noted in its order: first what is older than this process, then
what has come meanwhile, which waits, then what comes. So streams need not wait for it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Container, Sequence
from contextlib import aclosing
from typing import NamedTuple

import msgspec
import trio

from listener.event import MailboxEvent


class Recalled(NamedTuple):
    """How many events were noted that had been told before, of how many that were read."""

    noted: int
    read: int


class HistoryLoader:
    """Stands before `note`, which is to be called with all events in their order."""

    def __init__(self, note: Callable[[Sequence[MailboxEvent]], None]) -> None:
        self._note = note
        self._waiting: list[Sequence[MailboxEvent]] | None = []

    def note(self, batch: Sequence[MailboxEvent]) -> None:
        """These have been told now. Never waits."""
        if self._waiting is None:
            self._note(batch)
        else:
            self._waiting.append(batch)

    def skip(self) -> None:
        """Do without the history: pass on what comes from now on, and nothing else."""
        self._waiting = None

    async def recall(
        self, before: AsyncGenerator[Sequence[MailboxEvent], None], mailboxes: Container[str]
    ) -> Recalled:
        """Notes what was told before, of these mailboxes, and then what has come meanwhile."""
        count = read = 0
        async with aclosing(before):
            async for batch in before:
                wanted = [_as_told(event) for event in batch if event.mailbox in mailboxes]
                self._note(wanted)
                count += len(wanted)
                read += len(batch)
                await trio.lowlevel.checkpoint()
        waiting, self._waiting = self._waiting or [], None
        for batch in waiting:
            self._note(batch)
        return Recalled(count, read)


def _as_told(event: MailboxEvent) -> MailboxEvent:
    """What was found by looking is, for another process, something that was told like any other."""
    return msgspec.structs.replace(event, recovered=False) if event.recovered else event
