"""Failures that repeat are summed up instead of flooding the log (pure).

Two lines are alike if event, code (or the type of what was raised), group and handler are the same. The first is
told at once. Those that follow within a minute are held back, and at its end one line tells how many there were,
with the fields of the last of them; while they go on, there is one such line a minute.

Only failures are summed up: lines from level warning on, all that have a code, and what tells that a failure is over,
which comes as often as it does (`OVER`). What came last is told last. Lines that tell once and for all how a thing
stands (`ONCE`) are never held back, nor what other libraries say, where only the text tells things apart.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

WINDOW: Final = 60.0
MOST: Final = 1000
FAILURES: Final = frozenset({"warning", "error", "critical", "exception"})
OVER: Final = frozenset({"journal.room", "journal.recovered"})
ONCE: Final = frozenset(
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
    """The last of several lines alike, how many were held back, and in how many seconds."""

    method: str
    line: Mapping[str, Any]
    held_back: int
    seconds: float


@dataclass(slots=True)
class _Held:
    since: float
    method: str
    line: Mapping[str, Any]
    count: int = 0


class RateLimiter:
    """Moments are seconds on any one clock that does not go back.

    It keeps `MOST` kinds of failures in mind; when there are more of them in a minute, the rest is told as it comes.
    `window` are the seconds of that minute, which may be changed; with 0 every line is told.
    """

    def __init__(self, window: float = WINDOW) -> None:
        self.window = window
        self._held: dict[Hashable, _Held] = {}
        self._next = float("inf")

    def admits(self, method: str, line: Mapping[str, Any], now: float) -> bool:
        """Whether the line is to be told now; if not, it is counted."""
        kind = kind_of(method, line)
        if kind is None or not self.window:
            return True
        held = self._held.get(kind)
        if held is None:
            if len(self._held) < MOST:
                self._held[kind] = _Held(now, method, line)
                self._next = min(self._next, now + self.window)
            return True
        held.method, held.line = method, line
        held.count += 1
        self._held[kind] = self._held.pop(kind)
        return False

    def due(self, now: float, *, everything: bool = False) -> list[Summary]:
        """What is to be told of minutes that are over, or of all that has been held back."""
        if now < self._next and not everything:
            return []
        over = [kind for kind, held in self._held.items() if everything or now >= held.since + self.window]
        summaries = []
        for kind in over:
            held = self._held.pop(kind)
            if held.count:
                summaries.append(Summary(held.method, held.line, held.count, now - held.since))
                if not everything:  # it may go on: what comes within the next minute is counted again
                    self._held[kind] = _Held(now, held.method, held.line)
        self._next = min((held.since + self.window for held in self._held.values()), default=float("inf"))
        return summaries


def kind_of(method: str, line: Mapping[str, Any]) -> Hashable | None:
    """What makes lines alike; None for a line that is told in any case."""
    failure = method in FAILURES or "code" in line or line["event"] in OVER
    if line["event"] in ONCE or not failure:
        return None
    raised = line.get("exc_info")
    code = line.get("code") or (type(raised).__name__ if isinstance(raised, BaseException) else None)
    return line["event"], code, line.get("group"), line.get("handler")
