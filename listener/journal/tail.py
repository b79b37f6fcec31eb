"""The newest events in memory, for handlers that keep up (pure)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from listener.event import MailboxEvent
from listener.journal import Entry


class Tail:
    """The last `capacity` events or a few more, without gaps, so that a reader can rely on it being complete."""

    def __init__(self, capacity: int, end: int) -> None:
        self.capacity = capacity
        self.end = end
        self._lasts: list[int] = []
        self._parts: list[Sequence[MailboxEvent]] = []
        self._count = 0

    def extend(self, first: int, events: Sequence[MailboxEvent], end: int) -> None:
        """Add committed events, which start at position `first`. The journal now ends at `end`.

        Events of other processes, before or after these, are on the disk only: the tail restarts after them.
        """
        if first != self.end + 1:
            self._clear()
        if events:
            last = first + len(events) - 1
            self._lasts.append(last)
            self._parts.append(events)
            self._count += len(events)
            if last != end:
                self._clear()
        elif end != self.end:
            self._clear()
        self.end = end
        if self._count > self.capacity + self.capacity // 4:
            self._trim()

    def after(self, position: int, limit: int) -> list[Entry] | None:
        """Return about `limit` entries after a position, or None if they are no longer in memory."""
        found: list[Entry] = []
        if position >= self.end:
            return found
        if not self._parts or position < self._lasts[0] - len(self._parts[0]):
            return None
        for index in range(bisect_right(self._lasts, position), len(self._parts)):
            part = self._parts[index]
            first = self._lasts[index] - len(part) + 1
            skip = max(0, position + 1 - first)
            taken = part[skip : skip + limit - len(found)]
            found += map(Entry, range(first + skip, first + skip + len(taken)), taken)
            if len(found) >= limit:
                break
        return found

    def _clear(self) -> None:
        self._lasts.clear()
        self._parts.clear()
        self._count = 0

    def _trim(self) -> None:
        dropped = 0
        while dropped < len(self._parts) and self._count - len(self._parts[dropped]) >= self.capacity:
            self._count -= len(self._parts[dropped])
            dropped += 1
        del self._lasts[:dropped]
        del self._parts[:dropped]
