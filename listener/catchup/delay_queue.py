"""Who is to be worked on next, and when."""

from heapq import heappop, heappush
from math import inf

import trio


class DelayQueue:
    """Mailboxes and when each is to be worked on."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._count = 0
        self._news = trio.Event()
        self._turn = trio.Lock()

    def put(self, mailbox: str, when: float) -> None:
        """It is due then, or earlier if it was to be."""
        if self._due.get(mailbox, inf) <= when:
            return
        self._due[mailbox] = when
        self._count += 1
        heappush(self._heap, (when, self._count, mailbox))
        self._news.set()
        self._news = trio.Event()

    def hasten(self, mailbox: str, when: float) -> None:
        """It is due then, if it is here at all."""
        if mailbox in self._due:
            self.put(mailbox, when)

    def drop(self, mailbox: str) -> None:
        self._due.pop(mailbox, None)

    async def take(self) -> str:
        """The next that is due, when it is."""
        async with self._turn:  # of all who wait, one is woken by news and by the clock
            while True:
                while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
                    heappop(self._heap)
                when = self._heap[0][0] if self._heap else inf
                if when <= trio.current_time():
                    mailbox = heappop(self._heap)[2]
                    del self._due[mailbox]
                    return mailbox
                news = self._news
                with trio.CancelScope(deadline=when):
                    await news.wait()
