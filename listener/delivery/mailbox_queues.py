"""Per-mailbox queues: events of one mailbox in order, mailboxes independent of each other (pure).

Only the first event of a queue is delivered. While its call is in progress, or while it waits for a retry, the rest
of its queue waits too. Other mailboxes continue.
"""

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush

from listener.journal import Entry


class MailboxQueues:
    """The queues of one handler. Times are seconds on any one clock."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Entry]] = {}
        self._ready: deque[str] = deque()
        self._delayed: list[tuple[float, str]] = []
        self._attempts: dict[str, int] = {}
        self._count = 0

    def __len__(self) -> int:
        """Return the number of unfinished events."""
        return self._count

    @property
    def next_due(self) -> float | None:
        """The time of the next retry, or None if no event waits for one."""
        return self._delayed[0][0] if self._delayed else None

    def put(self, entries: Iterable[Entry]) -> None:
        """Append new events to the queues of their mailboxes."""
        for entry in entries:
            self._count += 1
            queue = self._queues.get(entry.event.mailbox)
            if queue is None:
                self._queues[entry.event.mailbox] = deque([entry])
                self._ready.append(entry.event.mailbox)
            else:
                queue.append(entry)

    def take(self) -> tuple[Entry, int] | None:
        """Return the next event to deliver and its number of failed attempts, or None if no queue is ready."""
        if not self._ready:
            return None
        mailbox = self._ready.popleft()
        return self._queues[mailbox][0], self._attempts.get(mailbox, 0)

    def take_batch(self, most: int) -> list[Entry]:
        """Return the next `most` events to deliver together, queue by queue. Call finish() for each in this order."""
        batch: list[Entry] = []
        while self._ready and len(batch) < most:
            batch += list(self._queues[self._ready.popleft()])[: most - len(batch)]
        return batch

    def finish(self, entry: Entry) -> None:
        """Remove an event, which must be the first of its queue."""
        mailbox = entry.event.mailbox
        queue = self._queues[mailbox]
        assert queue[0].position == entry.position
        queue.popleft()
        self._count -= 1
        self._attempts.pop(mailbox, None)

    def release(self, mailbox: str) -> None:
        """Make the queue ready again, or remove it if it is empty. Call it when all taken events are finished."""
        if self._queues[mailbox]:
            self._ready.append(mailbox)
        else:
            del self._queues[mailbox]

    def delay(self, entry: Entry, until: float, *, counts: bool = True) -> None:
        """Let the queue of a failed event wait. `counts`: the failure counts as one of the event's attempts."""
        mailbox = entry.event.mailbox
        self._attempts[mailbox] = self._attempts.get(mailbox, 0) + counts
        heappush(self._delayed, (until, mailbox))

    def attempts(self, entry: Entry) -> int:
        """Return the failed attempts of an event. Only the first event of a queue can have any."""
        mailbox = entry.event.mailbox
        first = self._queues[mailbox][0].position == entry.position
        return self._attempts.get(mailbox, 0) if first else 0

    def count_attempt(self, entries: Iterable[Entry]) -> None:
        """Count a failed attempt for the first event of each of these mailboxes. reset() makes them ready again."""
        for mailbox in dict.fromkeys(entry.event.mailbox for entry in entries):
            self._attempts[mailbox] = self._attempts.get(mailbox, 0) + 1

    def wake_due(self, now: float) -> int:
        """Make the queues ready whose retry is due. Return their number."""
        woken = 0
        while self._delayed and self._delayed[0][0] <= now:
            self._ready.append(heappop(self._delayed)[1])
            woken += 1
        return woken

    def reset(self) -> None:
        """Make every queue ready that does not wait for a retry. Events that were taken can be taken again."""
        delayed = {mailbox for _until, mailbox in self._delayed}
        self._queues = {mailbox: queue for mailbox, queue in self._queues.items() if queue}
        self._ready = deque(mailbox for mailbox in self._queues if mailbox not in delayed)
