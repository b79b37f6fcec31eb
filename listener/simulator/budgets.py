"""Throttling: what one account or mailbox may have at once ("EWS throttling in Exchange", learn.microsoft.com).

A request is charged to the impersonated mailbox, or to the account itself without impersonation.
"""

from collections import Counter
from collections.abc import Callable

from listener.simulator.replies import Failure
from listener.simulator.settings import Limits


class Budgets:
    """Counts what is charged to whom. Each method that takes something raises Failure when there is no more."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._running: Counter[str] = Counter()
        self._hanging: Counter[str] = Counter()

    def enter(self, charged: str) -> Callable[[], None]:
        """One request more under way; call what is returned when it is answered."""
        if self._running[charged] >= self._limits.concurrency:
            raise Failure("ErrorExceededConnectionCount", fault=True, values={"BackOffMilliseconds": "0"})
        return _take(self._running, charged)

    def hang(self, charged: str) -> Callable[[], None]:
        """One stream more; call what is returned when it has ended."""
        if self._hanging[charged] >= self._limits.hanging_connections:
            raise Failure("ErrorExceededConnectionCount", fault=True, values={"BackOffMilliseconds": "0"})
        return _take(self._hanging, charged)

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


def _take(counter: Counter[str], charged: str) -> Callable[[], None]:
    counter[charged] += 1

    def give_back() -> None:
        counter[charged] -= 1
        if not counter[charged]:
            del counter[charged]

    return give_back
