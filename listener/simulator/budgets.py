"""Throttling: what one account or mailbox may have at once ("EWS throttling in Exchange", learn.microsoft.com).

A request is charged to the impersonated mailbox, or to the account itself without impersonation.
"""

from collections import Counter
from collections.abc import Callable

from listener.simulator.replies import Failure
from listener.simulator.settings import Limits

_SYNC_BACK_OFF = "500"


class Budgets:
    """Counts what is charged to whom. Each method that takes something raises Failure when there is no more."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._running: Counter[str] = Counter()
        self._syncing: Counter[str] = Counter()
        self._hanging: Counter[str] = Counter()

    def enter(self, charged: str, *, syncs: bool = False) -> Callable[[], None]:
        """One request more under way, which synchronises or does not; call what is returned when it is answered."""
        if self._running[charged] >= self._limits.concurrency:
            raise Failure("ErrorExceededConnectionCount", fault=True, values={"BackOffMilliseconds": "0"})
        if not syncs:
            return _take(charged, self._running)
        if self._syncing[charged] >= self._limits.sync_calls:
            raise Failure("ErrorServerBusy", fault=True, values={"BackOffMilliseconds": _SYNC_BACK_OFF})
        return _take(charged, self._running, self._syncing)

    def hang(self, charged: str) -> Callable[[], None]:
        """One stream more; call what is returned when it has ended."""
        if self._hanging[charged] >= self._limits.hanging_connections:
            raise Failure("ErrorExceededConnectionCount", fault=True, values={"BackOffMilliseconds": "0"})
        return _take(charged, self._hanging)

    @property
    def running(self) -> int:
        """Requests under way, streams apart."""
        return sum(self._running.values())

    @property
    def hanging(self) -> int:
        """Streams under way."""
        return sum(self._hanging.values())

    def charges(self) -> dict[str, int]:
        """Open streams by whom they are charged to."""
        return dict(self._hanging)


def _take(charged: str, *counters: Counter[str]) -> Callable[[], None]:
    for counter in counters:
        counter[charged] += 1

    def give_back() -> None:
        for counter in counters:
            counter[charged] -= 1
            if not counter[charged]:
                del counter[charged]

    return give_back
