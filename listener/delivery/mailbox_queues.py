"""Whose turn it is: events in the order of their mailbox, mailboxes independent of each other. Pure.

Each mailbox has a line of events. Of a line only the first is worked on; while it is, or while it waits to be tried
again, the others behind it wait too, and the other mailboxes have their turns.
"""

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush

from listener.journal import Entry


class MailboxQueues:
    """The lines of one handler. Moments are seconds on any one clock."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Entry]] = {}
        self._ready: deque[str] = deque()
        self._later: list[tuple[float, str]] = []
        self._attempts: dict[str, int] = {}
        self._count = 0

    def __len__(self) -> int:
        """Events that are not done with."""
        return self._count

    @property
    def next_due(self) -> float | None:
        """When the next of those that wait is to be tried again."""
        return self._later[0][0] if self._later else None

    def put(self, entries: Iterable[Entry]) -> None:
        """New events, at the ends of their lines."""
        for entry in entries:
            self._count += 1
            line = self._lines.get(entry.event.mailbox)
            if line is None:
                self._lines[entry.event.mailbox] = deque([entry])
                self._ready.append(entry.event.mailbox)
            else:
                line.append(entry)

    def take(self) -> tuple[Entry, int] | None:
        """The next event to be worked on, and how often it has been tried before; None if there is none now."""
        if not self._ready:
            return None
        mailbox = self._ready.popleft()
        return self._lines[mailbox][0], self._attempts.get(mailbox, 0)

    def take_batch(self, most: int) -> list[Entry]:
        """The next events to be worked on together, a line at a time. Each of them needs a done(), in this order."""
        batch: list[Entry] = []
        while self._ready and len(batch) < most:
            batch += list(self._lines[self._ready.popleft()])[: most - len(batch)]
        return batch

    def done(self, entry: Entry) -> None:
        """This event, the first of its line, is done with."""
        mailbox = entry.event.mailbox
        line = self._lines[mailbox]
        assert line[0].position == entry.position
        line.popleft()
        self._count -= 1
        self._attempts.pop(mailbox, None)

    def next_in(self, mailbox: str) -> None:
        """What was taken of this line has been dealt with: the next in it has its turn, if there is one."""
        if self._lines[mailbox]:
            self._ready.append(mailbox)
        else:
            del self._lines[mailbox]

    def wait(self, entry: Entry, until: float, *, tried: bool = True) -> None:
        """This event was tried in vain, if it was `tried` at all, and its line waits until then."""
        mailbox = entry.event.mailbox
        self._attempts[mailbox] = self._attempts.get(mailbox, 0) + tried
        heappush(self._later, (until, mailbox))

    def tried(self, entry: Entry) -> int:
        """How often this event, the first of its line, was tried in vain."""
        mailbox = entry.event.mailbox
        first = self._lines[mailbox][0].position == entry.position
        return self._attempts.get(mailbox, 0) if first else 0

    def count(self, entries: Iterable[Entry]) -> None:
        """These, the first of their lines, were tried in vain, and are ready again with start_over()."""
        for mailbox in dict.fromkeys(entry.event.mailbox for entry in entries):
            self._attempts[mailbox] = self._attempts.get(mailbox, 0) + 1

    def wake(self, now: float) -> int:
        """Those whose waiting is over have their turn. Returns how many they are."""
        woken = 0
        while self._later and self._later[0][0] <= now:
            self._ready.append(heappop(self._later)[1])
            woken += 1
        return woken

    def start_over(self) -> None:
        """What was taken is nobody's any more: everything that does not wait is ready again."""
        waiting = {mailbox for _until, mailbox in self._later}
        self._lines = {mailbox: line for mailbox, line in self._lines.items() if line}
        self._ready = deque(mailbox for mailbox in self._lines if mailbox not in waiting)
