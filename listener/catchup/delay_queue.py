"""A queue of mailboxes, each with the time at which it is due."""

from heapq import heappop, heappush
from math import inf

import trio


class DelayQueue:
    """Mailboxes and when each is due, in seconds on trio's clock. A mailbox is in it once."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._count = 0
        self._changed = trio.Event()
        self._taking = trio.Lock()

    def put(self, mailbox: str, when: float) -> None:
        """Add a mailbox, or make it due earlier. An earlier time that it has already stays."""
        if self._due.get(mailbox, inf) <= when:
            return
        self._due[mailbox] = when
        self._count += 1
        heappush(self._heap, (when, self._count, mailbox))
        self._changed.set()
        self._changed = trio.Event()

    def hasten(self, mailbox: str, when: float) -> None:
        """Make a mailbox due earlier, if it is in the queue."""
        if mailbox in self._due:
            self.put(mailbox, when)

    def drop(self, mailbox: str) -> None:
        self._due.pop(mailbox, None)

    async def take(self) -> str:
        """Wait until a mailbox is due, remove it and return it."""
        async with self._taking:  # so that a change or the clock wakes only one of the waiting tasks
            while True:
                while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
                    heappop(self._heap)
                when = self._heap[0][0] if self._heap else inf
                if when <= trio.current_time():
                    mailbox = heappop(self._heap)[2]
                    del self._due[mailbox]
                    return mailbox
                changed = self._changed
                with trio.CancelScope(deadline=when):
                    await changed.wait()
