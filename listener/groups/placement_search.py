"""Finds the placements of mailboxes with Autodiscover, and checks them again at an interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from math import inf
from typing import Protocol

import structlog
import trio

from listener.ews.codes import Failure, Verdict, crash
from listener.groups.actions import Doubted
from listener.groups.runners import Runners
from listener.groups.settings import ManagerSettings
from listener.placement import Placement

log = structlog.get_logger()


class Discovery(Protocol):
    """Returns the placement of each mailbox, or why there is none (listener/exchange/discovery.py)."""

    async def discover(
        self, mailboxes: Sequence[str], /, *, fall_back: bool = True
    ) -> dict[str, Placement | Failure]: ...


class Assigner(Protocol):
    """Adds mailboxes to groups (listener/groups/manager.py)."""

    def assign(self, placements: Iterable[Placement], /) -> None: ...


class PlacementSearch:
    """The search for the placements of `sought`. `missing` are the mailboxes without one so far.

    With `restored` groups, the first check of known placements runs within SOON.
    """

    def __init__(
        self,
        sought: tuple[str, ...],
        settings: ManagerSettings,
        *,
        discovery: Discovery,
        runners: Runners,
        assigner: Assigner,
        restored: bool,
    ) -> None:
        self.sought = sought
        self.settings = settings
        self.missing: dict[str, Failure] = {}
        self._discovery = discovery
        self._runners = runners
        self._assigner = assigner
        self._restored = restored
        self._changed = trio.Event()

    async def run(self) -> None:
        """Search until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_isolated, self._search)
            nursery.start_soon(self._run_isolated, self._refresh)

    def change(self, sought: tuple[str, ...], wanted: Collection[str]) -> None:
        """Replace the mailboxes to find. `wanted` are all mailboxes, also those with a configured placement."""
        self.sought = sought
        self.missing = {mailbox: failure for mailbox, failure in self.missing.items() if mailbox in wanted}

    def wake(self) -> None:
        """Search for new mailboxes at once."""
        self._changed.set()
        self._changed = trio.Event()

    async def find(
        self, mailboxes: Sequence[str], *, fall_back: bool = True
    ) -> dict[str, Placement | Failure]:
        """Return the placement and the access type of each mailbox, or why it was not found.

        `fall_back`: use the configured EWS URL where Autodiscover does not answer.
        """
        kind_of = self.settings.spec.access.kind_of
        found = await self._discover(mailboxes, fall_back=fall_back)
        return {
            mailbox: each._replace(access=kind_of(mailbox)) if isinstance(each, Placement) else each
            for mailbox, each in found.items()
        }

    async def _discover(self, mailboxes: Sequence[str], *, fall_back: bool) -> dict[str, Placement | Failure]:
        """Ask Autodiscover. An unknown exception becomes the failure of as few mailboxes as possible."""
        try:
            return await self._discovery.discover(mailboxes, fall_back=fall_back)
        except Exception as error:
            if len(mailboxes) == 1:
                log.error("discovery.crashed", mailbox=mailboxes[0], exc_info=error)
                return {mailboxes[0]: crash(error)}
        found: dict[str, Placement | Failure] = {}
        half = len(mailboxes) // 2
        for part in (mailboxes[:half], mailboxes[half:]):
            found |= await self._discover(part, fall_back=fall_back)
        return found

    async def _run_isolated(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Run an endless loop. After an unknown exception it starts again, with a growing delay."""
        failures = 0
        while True:
            try:
                await loop()
            except Exception as error:
                failures += 1
                pause = self.settings.suspended.longest(failures)
                log.error("manager.crashed", retry=pause, exc_info=error)
                await trio.sleep(pause)

    async def _search(self) -> None:
        """Search for all mailboxes without a group, whenever there are some."""
        failures = 0
        while True:
            changed = self._changed
            if pending := self._unplaced():
                found = await self.find(pending)
                wanted = set(self._unplaced())  # some may have left meanwhile
                placements = [
                    each for each in found.values() if isinstance(each, Placement) and each.mailbox in wanted
                ]
                missing = {m: each for m, each in found.items() if isinstance(each, Failure) and m in wanted}
                self._log_found(placements, missing)
                self.missing = missing
                self._assigner.assign(placements)
            failures = failures + 1 if self.missing else 0
            delay = self._search_delay(self.missing.values(), failures) if self.missing else inf
            with trio.move_on_after(delay):
                await changed.wait()

    def _unplaced(self) -> list[str]:
        return [mailbox for mailbox in self.sought if mailbox not in self._runners.groups]

    def _search_delay(self, missing: Iterable[Failure], failures: int) -> float:
        """Return the seconds until the next search: few if any of the failures is temporary."""
        temporary = [failure for failure in missing if failure.verdict in (Verdict.RETRY, Verdict.WAIT)]
        requested = max((failure.wait for failure in temporary if failure.wait is not None), default=0.0)
        backoff = self.settings.retry if temporary else self.settings.suspended
        return max(requested, backoff.longest(failures))

    async def _refresh(self) -> None:
        """Check all placements again, in batches that are spread over the interval."""
        interval = min(self.settings.refresh, SOON) if self._restored else self.settings.refresh
        while True:
            batches = [self.sought[start : start + BATCH] for start in range(0, len(self.sought), BATCH)]
            for batch in batches or [()]:
                await trio.sleep(interval / max(1, len(batches)))
                placed = [mailbox for mailbox in batch if mailbox in self._runners.groups]
                found = await self.find(placed, fall_back=False) if placed else {}
                for mailbox, each in found.items():
                    runner = self._runners.of(mailbox)
                    if (
                        isinstance(each, Placement)
                        and runner
                        and each.affinity_key != runner.group.affinity_key
                    ):
                        runner.post(Doubted((mailbox,)))
            interval = self.settings.refresh

    def _log_found(self, placements: Sequence[Placement], missing: dict[str, Failure]) -> None:
        codes = Counter(failure.code for failure in missing.values())
        log.info("discovery.found", mailboxes=len(placements), missing=len(missing), codes=dict(codes))
        for mailbox, failure in missing.items():
            known = self.missing.get(mailbox)
            if known is None or known.code != failure.code:
                log.warning("discovery.failed", mailbox=mailbox, code=failure.code, text=failure.text)


# Mailboxes of one batch of a refresh.
BATCH = 100

# Seconds after a restart within which all restored placements are checked.
SOON = 600.0
