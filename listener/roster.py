"""Who lives where: finds each mailbox's place, sorts mailboxes into groups and keeps a runner for each group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog
import trio

from listener.affinity import Group, Placement, groups, separated, without
from listener.backoff import Backoff
from listener.ews.codes import Failure, Verdict
from listener.group import Discovered, Doubted, Joined, Stop
from listener.reconcile import Way
from listener.supervisor import GroupRunner, Registry

log = structlog.get_logger()


class Discovery(Protocol):
    """Asks where mailboxes live (listener/exchange/discovery.py does)."""

    async def discover(
        self, mailboxes: Sequence[str], /, *, fall_back: bool = True
    ) -> dict[str, Placement | Failure]: ...


@dataclass(slots=True, kw_only=True)
class Roster:
    """All groups and their runners.

    `known` are mailboxes whose place the configuration tells, `sought` those that must be discovered, `missing`
    those that were sought in vain so far. `retry` and `parked` are the patience between two searches for these;
    `refresh` are the seconds in which every place that was found is asked for again. `gaps` is told of times
    without a stream (mailbox, since when, why), `resumed` of mailboxes that have one again.
    """

    known: tuple[Placement, ...]
    sought: tuple[str, ...]
    discovery: Discovery
    new_runner: Callable[[Group, Registry], GroupRunner]
    group_size: int
    retry: Backoff
    parked: Backoff
    refresh: float
    gaps: Callable[[str, float | None, str], None]
    resumed: Callable[[Sequence[str]], None]
    runners: dict[str, GroupRunner] = field(default_factory=dict)
    missing: dict[str, Failure] = field(default_factory=dict)
    _groups: tuple[Group, ...] = ()
    _homes: dict[str, Group] = field(default_factory=dict)
    _owners: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    _claimed: dict[str, tuple[tuple[str, str], str]] = field(default_factory=dict)
    _nursery: trio.Nursery | None = None
    _searching: trio.CancelScope = field(default_factory=trio.CancelScope)
    _stopped: trio.Event = field(default_factory=trio.Event)

    @property
    def mailboxes(self) -> int:
        """How many are to be listened to, found or not."""
        return len(self.known) + len(self.sought)

    @property
    def streaming(self) -> int:
        """How many have an open stream that the server has been heard on."""
        return sum(runner.mailboxes_streaming for runner in self.runners.values())

    @property
    def waiting(self) -> int:
        """How many are parked, and wait for the operator."""
        return sum(member.parked for runner in self.runners.values() for member in runner.state.members)

    async def run(self) -> None:
        """Keeps a runner for each group; returns when all have ended after stop()."""
        async with trio.open_nursery() as self._nursery:
            self._place(self.known)
            with self._searching:
                async with trio.open_nursery() as searches:
                    searches.start_soon(self._search)
                    searches.start_soon(self._refresh)
        self._nursery = None

    def stop(self, *, unsubscribe: bool) -> None:
        """Tells every group to end."""
        self._stopped.set()
        self._searching.cancel()
        for runner in self.runners.values():
            runner.tell(Stop(unsubscribe))

    # --- what groups ask for

    async def seek(self, group: Group, mailboxes: Sequence[str], /) -> Discovered:
        """Asks where mailboxes of a group live now, and brings those that live elsewhere to their new group."""
        fixed = {place.mailbox for place in self.known}
        # Whoever had a place keeps it while Autodiscover is ill: no falling back to a place without a group.
        sought = [mailbox for mailbox in mailboxes if mailbox not in fixed]
        found = await self.discovery.discover(sought, fall_back=False)
        places = [place for place in found.values() if isinstance(place, Placement)]
        moved = [place for place in places if place[:2] != group.place]
        for place in moved:
            log.info("mailbox.moved", mailbox=place.mailbox, group=group.name, to=place.grouping_information)
        gone = tuple(place.mailbox for place in moved)
        self._regroup(groups(moved, self.group_size, without(self._groups, gone)))
        unknown = tuple((mailbox, why) for mailbox, why in found.items() if isinstance(why, Failure))
        return Discovered(gone, unknown)

    def separate(self, group: Group, mailboxes: Sequence[str], /) -> None:
        """Gives mailboxes of a group one of their own."""
        self._regroup(separated(self._groups, group, mailboxes))

    def gap(self, mailbox: str, since: float | None, reason: str, /) -> None:
        """A mailbox was without a stream since then, and has one again."""
        self.gaps(mailbox, since, reason)

    def claim(self, group: Group, subscription: str, mailbox: str, /) -> None:
        """Takes note of who a new subscription belongs to.

        Some servers count subscriptions from 1 again when they start anew: whoever had this id at the same place
        has lost its subscription, even if the server still answers to the id.
        """
        owners = self._owners.setdefault(group.place, {})
        loser = owners.get(subscription)
        former = self._claimed.get(mailbox)
        if former is not None and self._owners[former[0]].get(former[1]) == mailbox:
            del self._owners[former[0]][former[1]]
        owners[subscription] = mailbox
        self._claimed[mailbox] = group.place, subscription
        if loser is None or loser == mailbox:
            return
        runner = self._runner_of(loser)
        if runner is None or runner.group == group:
            return
        if runner.state.subscription_of(loser) == subscription:
            runner.tell(Doubted((loser,), taken=True))

    def release(self, group: Group, subscription: str, mailbox: str, /) -> None:
        """This subscription is this mailbox's no longer."""
        owners = self._owners.get(group.place, {})
        if owners.get(subscription) == mailbox:
            del owners[subscription]

    def owner(self, group: Group, subscription: str, /) -> str | None:
        """Whose subscription this is, if it was made by one of the groups at this place."""
        return self._owners.get(group.place, {}).get(subscription)

    # --- for catching up

    def way(self, mailbox: str) -> Way | None:
        """How to ask about a mailbox; None while it has no stream."""
        runner = self._runner_of(mailbox)
        return None if runner is None else runner.way(mailbox)

    def renew(self, mailbox: str) -> None:
        """The subscription of this mailbox keeps things back: it needs a new one."""
        runner = self._runner_of(mailbox)
        if runner is not None:
            log.warning("mailbox.silent", mailbox=mailbox, group=runner.group.name)
            runner.tell(Doubted((mailbox,)))

    def _runner_of(self, mailbox: str) -> GroupRunner | None:
        group = self._homes.get(mailbox)
        return None if group is None else self.runners.get(group.name)

    # --- finding mailboxes, at first and now and then

    async def _search(self) -> None:
        pending, failures = list(self.sought), 0
        while pending:
            found = await self.discovery.discover(pending)
            places = [place for place in found.values() if isinstance(place, Placement)]
            missing = {mailbox: why for mailbox, why in found.items() if isinstance(why, Failure)}
            self._tell(places, missing)
            self.missing = missing
            self._place(places)
            pending = list(missing)
            if pending:
                failures += 1
                await trio.sleep(self._patience(missing.values(), failures))

    def _patience(self, missing: Iterable[Failure], failures: int) -> float:
        """Seconds until the missing are sought again: soon, if the trouble of any of them may pass by itself."""
        passing = [why for why in missing if why.verdict in (Verdict.RETRY, Verdict.WAIT)]
        told = max((why.wait for why in passing if why.wait is not None), default=0.0)
        return max(told, (self.retry if passing else self.parked).longest(failures))

    async def _refresh(self) -> None:
        """Asks for all places again, a few at a time, evenly over the whole interval."""
        batches = [self.sought[start : start + BATCH] for start in range(0, len(self.sought), BATCH)]
        while batches:
            for batch in batches:
                await trio.sleep(self.refresh / len(batches))
                placed = [mailbox for mailbox in batch if mailbox in self._homes]
                found = await self.discovery.discover(placed, fall_back=False)
                for mailbox, place in found.items():
                    runner = self._runner_of(mailbox)
                    if isinstance(place, Placement) and runner and place[:2] != runner.group.place:
                        runner.tell(Doubted((mailbox,)))

    def _place(self, places: Iterable[Placement]) -> None:
        self._regroup(groups(places, self.group_size, self._groups))

    def _regroup(self, sorted_anew: tuple[Group, ...]) -> None:
        """From now on these are the groups: each has a runner, which knows who belongs to it."""
        self._groups = sorted_anew
        self._homes = {mailbox: group for group in sorted_anew for mailbox in group.mailboxes}
        for group in sorted_anew:
            runner = self.runners.get(group.name)
            if runner is None or runner.finished:
                self.runners[group.name] = runner = self.new_runner(group, self)
                assert self._nursery is not None
                self._nursery.start_soon(self._run, runner)
            elif runner.group != group:
                joined = tuple(set(group.mailboxes).difference(runner.group.mailboxes))
                runner.group = group
                if joined:
                    runner.tell(Joined(joined))

    async def _run(self, runner: GroupRunner) -> None:
        """Runs one group to its end. A mistake of ours in one group must not stop the others: it starts anew."""
        failures = 0
        while True:
            try:
                await runner.run()
                break
            except Exception as error:
                failures += 1
                log.error("group.crashed", group=runner.group.name, exc_info=error)
            with trio.move_on_after(self.parked.longest(failures)):
                await self._stopped.wait()
                break
            self.runners[runner.group.name] = runner = self.new_runner(runner.group, self)
        if self.runners.get(runner.group.name) is runner:
            del self.runners[runner.group.name]

    def _tell(self, places: Sequence[Placement], missing: dict[str, Failure]) -> None:
        codes = Counter(why.code for why in missing.values())
        log.info("discovery.found", mailboxes=len(places), missing=len(missing), codes=dict(codes))
        for mailbox, why in missing.items():
            known = self.missing.get(mailbox)
            if known is None or known.code != why.code:
                log.warning("discovery.failed", mailbox=mailbox, code=why.code, text=why.text)


# Mailboxes that are asked for again together.
BATCH = 100
