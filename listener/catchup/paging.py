"""Bounds of listings that come page by page. Pure.

A server decides whether another page follows. A faulty one could continue without end, so each listing has a
`Progress`. The rules:

1. A position (SyncState, or time and offset) that came before means that the listing is a cycle: an error at once.
2. A page that is empty, or has the same content as an earlier one, brings nothing. MOST_REPEATS of them are an error.
3. A listing has at most FEW_PAGES pages, and one more for each SMALL_PAGE entries that the server counts, twice over:
   since a SyncState, the server may report each item that exists and each that existed.
4. From UNPACED_PAGES on there is a pause before each page, which grows up to LONGEST_PAUSE.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from listener.ews.codes import ExchangeError, Failure

MOST_REPEATS = 3
FEW_PAGES = 400
SMALL_PAGE = 25
LARGEST_TOTAL = 10_000_000
"""Highest plausible number of entries. A folder of Exchange has a million at most."""
UNPACED_PAGES = 100
PAUSE, LONGEST_PAUSE = 0.005, 0.5
"""Seconds by which the pause grows with each page, and its upper limit."""


class Progress:
    """Progress of one listing by `operation`. `total`: the number of entries, if the server reports it."""

    def __init__(self, operation: str, total: int | None = None) -> None:
        self._operation = operation
        self._most = FEW_PAGES + 2 * min(max(total or 0, 0), LARGEST_TOTAL) // SMALL_PAGE
        self._positions: set[int] = set()
        self._contents: set[int] = set()
        self._repeats = 0
        self.pages = 0
        self.position: Hashable = None
        """Where the next page begins."""

    @property
    def pause(self) -> float:
        """Seconds to wait before the next page."""
        return min(max(0, self.pages - UNPACED_PAGES) * PAUSE, LONGEST_PAUSE)

    def next_page(self, position: Hashable, entries: Iterable[Hashable] = ()) -> None:
        """Note a page after which another one follows at this position. Raises ExchangeError: `UnexpectedReply`."""
        self.pages += 1
        at, content = hash(position), hash(frozenset(entries))
        if at in self._positions:
            self._fail("returned the same position twice")
        if content in self._contents or content == _NOTHING:
            self._repeats += 1
        if self._repeats >= MOST_REPEATS:
            self._fail(f"returned {self._repeats} pages without anything new")
        if self.pages >= self._most:
            self._fail(f"did not come to an end in {self.pages} pages")
        self._positions.add(at)
        self._contents.add(content)
        self.position = position

    def restart(self) -> None:
        """Begin again, because the server does not know the position any more. Raises ExchangeError."""
        self.position = None
        self._repeats += 1
        if self._repeats >= MOST_REPEATS:
            self._fail(f"forgot its position {self._repeats} times")

    def _fail(self, what: str) -> None:
        raise ExchangeError(Failure(code="UnexpectedReply", text=f"{self._operation} {what}"))


_NOTHING = hash(frozenset())
