"""Bounds of listings that come page by page. Pure.

A server decides whether another page follows. One that never comes to the last page would be asked for ever, so each
listing has a `Progress`. The rules:

1. A position (SyncState, or time and offset) that came before means that the listing goes round: an error at once.
2. A page that is empty, or holds just what an earlier page held, brings nothing. MOST_BARREN of them are an error.
3. A listing has at most FEW_PAGES pages, and one more for each SMALL_PAGE entries that the server counts, twice over:
   since a SyncState each item that is there may be reported, and each that was.
4. From PATIENT_PAGES on there is a pause before each page, which grows up to LONGEST_PAUSE.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from listener.errors import ExchangeError
from listener.ews.codes import Failure

MOST_BARREN = 3
FEW_PAGES = 400
SMALL_PAGE = 25
LARGEST_TOTAL = 10_000_000
"""Entries that a server is believed to have. A folder of Exchange has a million at most."""
PATIENT_PAGES = 100
PAUSE, LONGEST_PAUSE = 0.005, 0.5
"""Seconds by which the pause grows with each page, and its most."""


class Progress:
    """One listing by `operation`; `total` is how many entries the server says there are, if it does."""

    def __init__(self, operation: str, total: int | None = None) -> None:
        self._operation = operation
        self._most = FEW_PAGES + 2 * min(max(total or 0, 0), LARGEST_TOTAL) // SMALL_PAGE
        self._positions: set[int] = set()
        self._contents: set[int] = set()
        self._barren = 0
        self.pages = 0
        self.position: Hashable = None
        """Where the next page begins."""

    @property
    def pause(self) -> float:
        """Seconds to wait before the next page."""
        return min(max(0, self.pages - PATIENT_PAGES) * PAUSE, LONGEST_PAUSE)

    def turn(self, position: Hashable, entries: Iterable[Hashable] = ()) -> None:
        """A page has come, and another one follows at this position. Raises ExchangeError: `UnexpectedReply`."""
        self.pages += 1
        at, content = hash(position), hash(frozenset(entries))
        if at in self._positions:
            self._fail("returned the same position twice")
        if content in self._contents or content == _NOTHING:
            self._barren += 1
        if self._barren >= MOST_BARREN:
            self._fail(f"returned {self._barren} pages without anything new")
        if self.pages >= self._most:
            self._fail(f"did not come to an end in {self.pages} pages")
        self._positions.add(at)
        self._contents.add(content)
        self.position = position

    def restart(self) -> None:
        """The server does not know the position any more: the listing begins again."""
        self.position = None
        self._barren += 1
        if self._barren >= MOST_BARREN:
            self._fail(f"forgot its position {self._barren} times")

    def _fail(self, what: str) -> None:
        raise ExchangeError(Failure(code="UnexpectedReply", text=f"{self._operation} {what}"))


_NOTHING = hash(frozenset())
