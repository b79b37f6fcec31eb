"""Loads the events of earlier processes into the delivery history.

Without them, a comparison would report changes again, and would miss the deletion of things that only streams had
reported. The journal has these events. They are noted in their order: first those of earlier processes, then those
that arrived while the former were read, then each as it arrives. So streams need not wait for the journal.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Container, Sequence
from contextlib import aclosing
from typing import NamedTuple

import msgspec
import trio

from listener.event import MailboxEvent


class Loaded(NamedTuple):
    """Number of events that were noted, and of those that were read."""

    noted: int
    read: int


class HistoryLoader:
    """Passes all events to `note` in their order, and holds new ones until the earlier ones are loaded."""

    def __init__(self, note: Callable[[Sequence[MailboxEvent]], None]) -> None:
        self._note = note
        self._waiting: list[Sequence[MailboxEvent]] | None = []

    def note(self, batch: Sequence[MailboxEvent]) -> None:
        """Note events that have been delivered now. Never waits."""
        if self._waiting is None:
            self._note(batch)
        else:
            self._waiting.append(batch)

    def skip(self) -> None:
        """Work without the history: pass on only events from now on."""
        self._waiting = None

    async def load(
        self, earlier: AsyncGenerator[Sequence[MailboxEvent], None], mailboxes: Container[str]
    ) -> Loaded:
        """Note the earlier events of these mailboxes, and then those that have arrived meanwhile."""
        count = read = 0
        async with aclosing(earlier):
            async for batch in earlier:
                wanted = [_as_live(event) for event in batch if event.mailbox in mailboxes]
                self._note(wanted)
                count += len(wanted)
                read += len(batch)
                await trio.lowlevel.checkpoint()
        waiting, self._waiting = self._waiting or [], None
        for batch in waiting:
            self._note(batch)
        return Loaded(count, read)


def _as_live(event: MailboxEvent) -> MailboxEvent:
    """Return the event without its `recovered` mark.

    A recovered event is part of the snapshot of the process that found it. Another process treats it like any other.
    """
    return msgspec.structs.replace(event, recovered=False) if event.recovered else event
