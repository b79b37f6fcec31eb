"""Who lives where: finds each mailbox's place, sorts mailboxes into groups and keeps a runner for each group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog
import trio

from listener.affinity import Group, Placement, groups
from listener.backoff import Backoff
from listener.ews.codes import Failure
from listener.group import Joined, Stop
from listener.supervisor import GroupRunner

log = structlog.get_logger()


class Discovery(Protocol):
    """Asks where mailboxes live (listener/exchange/discovery.py does)."""

    async def discover(self, mailboxes: Sequence[str], /) -> dict[str, Placement | Failure]: ...


@dataclass(slots=True, kw_only=True)
class Roster:
    """All groups and their runners.

    `known` are mailboxes whose place the configuration tells, `sought` those that must be discovered, `missing`
    those that were sought in vain so far. `retry` is the patience between two searches for these.
    """

    known: tuple[Placement, ...]
    sought: tuple[str, ...]
    discovery: Discovery
    new_runner: Callable[[Group], GroupRunner]
    group_size: int
    retry: Backoff
    runners: dict[str, GroupRunner] = field(default_factory=dict)
    missing: dict[str, Failure] = field(default_factory=dict)
    _groups: tuple[Group, ...] = ()
    _seeking: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def mailboxes(self) -> int:
        """How many are to be listened to, found or not."""
        return len(self.known) + len(self.sought)

    @property
    def streaming(self) -> int:
        """How many have an open stream that the server has been heard on."""
        return sum(runner.mailboxes_streaming for runner in self.runners.values())

    async def run(self) -> None:
        """Keeps a runner for each group; returns when all have ended after stop()."""
        async with trio.open_nursery() as nursery:
            self._place(self.known, nursery)
            with self._seeking:
                await self._seek(nursery)

    def stop(self, *, unsubscribe: bool) -> None:
        """Tells every group to end."""
        self._seeking.cancel()
        for runner in self.runners.values():
            runner.tell(Stop(unsubscribe))

    async def _seek(self, nursery: trio.Nursery) -> None:
        pending, failures = list(self.sought), 0
        while pending:
            found = await self.discovery.discover(pending)
            places = [place for place in found.values() if isinstance(place, Placement)]
            missing = {mailbox: why for mailbox, why in found.items() if isinstance(why, Failure)}
            self._tell(places, missing)
            self.missing = missing
            self._place(places, nursery)
            pending = list(missing)
            if pending:
                failures += 1
                await trio.sleep(self.retry.longest(failures))

    def _place(self, places: Iterable[Placement], nursery: trio.Nursery) -> None:
        self._groups = groups(places, self.group_size, self._groups)
        for group in self._groups:
            runner = self.runners.get(group.name)
            if runner is None:
                self.runners[group.name] = runner = self.new_runner(group)
                nursery.start_soon(runner.run)
            elif runner.group != group:
                runner.group = group
                runner.tell(Joined(group.mailboxes))

    def _tell(self, places: Sequence[Placement], missing: dict[str, Failure]) -> None:
        codes = Counter(why.code for why in missing.values())
        log.info("discovery.found", mailboxes=len(places), missing=len(missing), codes=dict(codes))
        for mailbox, why in missing.items():
            known = self.missing.get(mailbox)
            if known is None or known.code != why.code:
                log.warning("discovery.failed", mailbox=mailbox, code=why.code, text=why.text)
