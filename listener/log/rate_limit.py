"""Rate limiting of repeated failures in the log (pure).

Lines repeat each other if event, code (or the type of the exception), group and handler are the same. The first is
logged at once. Those that follow within the window are suppressed. At the end of the window, one summary line with
the fields of the last line has their number. While the failure continues, there is one summary per window.

Only failures are limited: lines from level warning on, all lines with a code, and reports that a failure has ended
(`RECOVERIES`), which are as frequent as the failure. Summaries are in the order of the last lines, so that the
latest state is logged last. Lines that report a lasting state (`UNLIMITED`) and lines of other libraries, which
differ only in their text, are never suppressed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

WINDOW: Final = 60.0
MAX_KEYS: Final = 1000
FAILURES: Final = frozenset({"warning", "error", "critical", "exception"})
RECOVERIES: Final = frozenset({"journal.room", "journal.recovered"})
UNLIMITED: Final = frozenset(
    {
        "auth.refused",
        "mailboxes.refresh_failed",
        "catchup.folder_skipped",
        "discovery.failed",
        "journal.events_unreadable",
        "listener.reload_rejected",
        "mailbox.suspended",
        "subscription.stalled",
        "python.log",
        "python.warning",
        "scope.not_verified",
        "scope.violation",
    }
)


class Summary(NamedTuple):
    """The last of several repeated lines, the number of suppressed lines, and the seconds in which they came."""

    method: str
    line: Mapping[str, Any]
    suppressed: int
    seconds: float


@dataclass(slots=True)
class _Repeats:
    since: float
    method: str
    line: Mapping[str, Any]
    suppressed: int = 0


class RateLimiter:
    """Decides which lines are logged. Times are seconds of any monotonic clock.

    It tracks at most `MAX_KEYS` different failures per window; further ones are not limited. `window` is in seconds
    and may be changed; 0 disables the limit.
    """

    def __init__(self, window: float = WINDOW) -> None:
        self.window = window
        self._repeats: dict[Hashable, _Repeats] = {}
        self._next = float("inf")

    def allows(self, method: str, line: Mapping[str, Any], now: float) -> bool:
        """Return whether to log the line now. If not, it is counted as suppressed."""
        key = repeat_key(method, line)
        if key is None or not self.window:
            return True
        repeats = self._repeats.get(key)
        if repeats is None:
            if len(self._repeats) < MAX_KEYS:
                self._repeats[key] = _Repeats(now, method, line)
                self._next = min(self._next, now + self.window)
            return True
        repeats.method, repeats.line = method, line
        repeats.suppressed += 1
        self._repeats[key] = self._repeats.pop(
            key
        )  # to the end: summaries are in the order of the last lines
        return False

    def summaries(self, now: float, *, everything: bool = False) -> list[Summary]:
        """Return summaries of the windows that have ended; with `everything`, of all suppressed lines."""
        if now < self._next and not everything:
            return []
        ended = [
            key for key, repeats in self._repeats.items() if everything or now >= repeats.since + self.window
        ]
        found = []
        for key in ended:
            repeats = self._repeats.pop(key)
            if repeats.suppressed:
                summary = Summary(repeats.method, repeats.line, repeats.suppressed, now - repeats.since)
                found.append(summary)
                if not everything:  # the failure may continue: lines in the next window are suppressed too
                    self._repeats[key] = _Repeats(now, repeats.method, repeats.line)
        self._next = min(
            (repeats.since + self.window for repeats in self._repeats.values()), default=float("inf")
        )
        return found


def repeat_key(method: str, line: Mapping[str, Any]) -> Hashable | None:
    """Return the key that repeated lines have in common; None for a line that is not limited."""
    failure = method in FAILURES or "code" in line or line["event"] in RECOVERIES
    if line["event"] in UNLIMITED or not failure:
        return None
    raised = line.get("exc_info")
    code = line.get("code") or (type(raised).__name__ if isinstance(raised, BaseException) else None)
    return line["event"], code, line.get("group"), line.get("handler")
