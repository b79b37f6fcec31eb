"""Who lives where: finds each mailbox's place, sorts mailboxes into groups and keeps a runner for each group.

Groups that are known from before come first and stream at once; nobody asks where their mailboxes live before that.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import inf
from typing import Protocol

import structlog
import trio

from listener.backoff import Backoff
from listener.ews.codes import Failure, Verdict, crash
from listener.groups.actions import Discovered, Doubted, Joined, Left, Stop
from listener.groups.affinity import (
    Group,
    deduplicated,
    duplicates,
    groups,
    separated,
    without,
)
from listener.groups.checkpoint import GroupCheckpoint, Restored
from listener.groups.checkpointer import Checkpointer
from listener.groups.group import Kept
from listener.groups.member import Policy
from listener.groups.ownership import Ownership, server_of
from listener.groups.runner import GroupRunner, SubscriptionSpec
from listener.groups.runners import Runners
from listener.placement import Place, Placement

log = structlog.get_logger()


class NewRunner(Protocol):
    """Makes a runner for a group, one that is known from before or one that has nothing yet."""

    def __call__(
        self, group: Group, manager: GroupManager, before: Restored | None = None, /
    ) -> GroupRunner: ...


class Discovery(Protocol):
    """Asks where mailboxes live (listener/exchange/discovery.py does)."""

    async def discover(
        self, mailboxes: Sequence[str], /, *, fall_back: bool = True
    ) -> dict[str, Placement | Failure]: ...


class GapFiller(Protocol):
    """Finds what the streams of mailboxes did not report (listener/catchup/catchup.py does). No call waits."""

    def subscribed(self, mailbox: str, *, new: bool) -> None: ...
    def gap(self, mailbox: str, since: float | None, reason: str) -> None: ...
    def resume(self, mailboxes: Iterable[str]) -> None: ...
    def drop(self, mailbox: str) -> None: ...
    def unfilled(self) -> Mapping[str, float]: ...
    async def stored_folders(self, mailbox: str) -> Collection[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerSettings:
    """What a reload may change. `retry` and `suspended` pace the search for mailboxes that were not found; `refresh`
    is the interval in seconds in which Autodiscover is asked again about every mailbox. `spec` and `policy` are for
    the groups."""

    spec: SubscriptionSpec
    policy: Policy
    refresh: float

    @property
    def retry(self) -> Backoff:
        return self.policy.backoff

    @property
    def suspended(self) -> Backoff:
        return self.policy.suspended


@dataclass(slots=True, kw_only=True)
class GroupManager:
    """Assigns every mailbox to one group and runs the groups.

    `known` are mailboxes whose placement is configured, `sought` those that Autodiscover must find, `missing` those
    that it did not find so far. `restored` are the groups of the last process. `last_seen` has the moment when the
    stream of each mailbox last worked, on trio's clock; moments before `started_at` are from an earlier process.
    `dropped` counts events without a valid id.
    """

    known: tuple[Placement, ...]
    sought: tuple[str, ...]
    settings: ManagerSettings
    group_size: int
    discovery: Discovery
    new_runner: NewRunner
    runners: Runners
    catch_up: GapFiller
    checkpointer: Checkpointer
    restored: Sequence[Restored] = ()
    last_seen: dict[str, float] = field(default_factory=dict)
    started_at: float = -inf
    missing: dict[str, Failure] = field(default_factory=dict)
    dropped: int = 0
    _groups: tuple[Group, ...] = ()
    _ownership: Ownership = field(default_factory=Ownership)
    _changed: trio.Event = field(default_factory=trio.Event)
    _alive: dict[int, GroupRunner] = field(default_factory=dict)  # also those that are about to end
    _nursery: trio.Nursery | None = None
    _searching: trio.CancelScope = field(default_factory=trio.CancelScope)
    _stopped: trio.Event = field(default_factory=trio.Event)

    def reconfigure(self, settings: ManagerSettings) -> None:
        """Apply new settings to this manager and to all groups. The next request uses them."""
        self.settings = settings
        for runner in self.runners.by_group.values():
            runner.reconfigure(settings.spec, settings.policy)

    @property
    def mailboxes(self) -> int:
        """How many are to be listened to, found or not."""
        return len(self.known) + len(self.sought)

    def addresses(self) -> set[str]:
        """Those of the mailboxes that are to be listened to."""
        return {place.mailbox for place in self.known}.union(self.sought)

    @property
    def streaming(self) -> int:
        """How many have an open stream that the server has been heard on."""
        return sum(runner.mailboxes_streaming for runner in self.runners.by_group.values())

    @property
    def duplicates(self) -> list[str]:
        """Return the mailboxes that more than one group streams: none, apart from a moment while one moves."""
        counts = Counter(m for runner in self.runners.by_group.values() for m in runner.mailboxes_in_stream())
        return sorted(mailbox for mailbox, count in counts.items() if count > 1)

    @property
    def waiting(self) -> int:
        """How many are suspended, and wait for the operator."""
        return sum(
            member.suspended for runner in self.runners.by_group.values() for member in runner.state.members
        )

    async def run(self) -> None:
        """Keeps a runner for each group; returns when all have ended after stop()."""
        self.known = self._in_their_ways(self.known)
        async with trio.open_nursery() as self._nursery:
            self._resume()
            # A restored group has most of them already: to place these again would subscribe them twice.
            self._place(place for place in self.known if place.mailbox not in self.runners.groups)
            with self._searching:
                async with trio.open_nursery() as searches:
                    searches.start_soon(self._fenced, self._search)
                    searches.start_soon(self._fenced, self._refresh)
        self._nursery = None

    def change(self, known: Sequence[Placement], sought: Sequence[str]) -> None:
        """From now on these are the mailboxes. Who stays streams on; who is new is placed, or sought at once; who is
        gone, or is got at in another way, leaves its group. Call it while run() is at work; after stop() it does
        nothing."""
        if self._stopped.is_set():
            return
        before = {place.mailbox for place in self.known} | set(self.sought)
        self.known, self.sought = self._in_their_ways(known), tuple(sought)
        placed = {place.mailbox: place.place for place in self.known}
        wanted = placed.keys() | set(self.sought)
        self.missing = {mailbox: why for mailbox, why in self.missing.items() if mailbox in wanted}
        leaving = [
            m
            for m, home in self.runners.groups.items()
            if m not in wanted or self._is_misplaced(m, home, placed)
        ]
        self._dismiss(leaving)
        self._place(place for place in self.known if place.mailbox not in self.runners.groups)
        if gone := sorted(before - wanted):
            for mailbox in gone:
                self.catch_up.drop(mailbox)
                self.last_seen.pop(mailbox, None)
                self._ownership.forget(mailbox)
        log.info("mailboxes.changed", mailboxes=len(wanted), added=len(wanted - before), removed=len(gone))
        self._changed.set()
        self._changed = trio.Event()

    def stop(self, *, unsubscribe: bool) -> None:
        """Tells every group to end."""
        self._stopped.set()
        self._searching.cancel()
        for runner in self._alive.values():
            runner.post(Stop(unsubscribe))

    # --- what is kept for the next process

    def record(self, name: str, /) -> GroupCheckpoint | None:
        """A group as it is; None if nobody is left in it."""
        runner = self.runners.by_group.get(name)
        return runner.record() if runner is not None and runner.state.members else None

    def last_seen_by_group(self) -> tuple[dict[str, float], dict[str, float]]:
        """When the streams of groups were last heard; and for mailboxes of which something may be missing from before
        that, from when on."""
        groups: dict[str, float] = {}
        for mailbox in self.last_seen.keys() - self.addresses():
            del self.last_seen[mailbox]  # a stream may be read on for a while when its mailbox has left
        missing_since = dict(self.last_seen)  # also of those that are on their way from one group to another
        for name, runner in self.runners.by_group.items():
            for member in runner.state.members:
                missing_since.pop(member.mailbox, None)
            missing_since |= runner.missing_since()
            if (moment := runner.last_seen_at) is not None:
                groups[name] = moment
        for mailbox, moment in self.catch_up.unfilled().items():
            missing_since[mailbox] = min(moment, missing_since.get(mailbox, inf))
        return groups, missing_since

    def changed(self, group: Group, /) -> None:
        """Something about this group is to be kept."""
        self.checkpointer.note(group.name)

    async def keep(self, group: Group, /) -> None:
        """Returns when what is to be kept of this group is."""
        await self.checkpointer.keep(group.name, self)

    # --- what groups ask for

    async def seek(self, group: Group, mailboxes: Sequence[str], /) -> Discovered:
        """Asks where mailboxes of a group live now, and brings those that live elsewhere to their new group."""
        fixed = {place.mailbox for place in self.known}
        # Whoever had a place keeps it while Autodiscover is ill: no falling back to a place without a group.
        sought = [mailbox for mailbox in mailboxes if mailbox not in fixed]
        found = await self._discover(sought, fall_back=False)
        places = [place for place in found.values() if isinstance(place, Placement)]
        moved = [
            place for place in places if place.place != group.place and place.mailbox in self.runners.groups
        ]
        for place in moved:
            log.info("mailbox.moved", mailbox=place.mailbox, group=group.name, to=place.grouping_information)
        gone = tuple(place.mailbox for place in moved)
        self._regroup(groups(moved, self.group_size, without(self._groups, gone)))
        unknown = tuple((mailbox, why) for mailbox, why in found.items() if isinstance(why, Failure))
        return Discovered(gone, unknown)

    def separate(self, group: Group, mailboxes: Sequence[str], /, *, each: bool = False) -> None:
        """Give mailboxes of a group one of their own; `each`: one group for each of them."""
        staying = [mailbox for mailbox in mailboxes if mailbox in self.runners.groups]
        after = self._groups
        for part in [[mailbox] for mailbox in staying] if each else [staying]:
            if part:
                after = separated(after, group, part)
        if staying:
            self._regroup(after)

    def gap(self, mailbox: str, since: float | None, reason: str, /) -> None:
        """A mailbox was without a stream since then, and has one again."""
        self.catch_up.gap(mailbox, since, reason)

    def resumed(self, mailboxes: Sequence[str], /) -> None:
        """These mailboxes have a stream again."""
        self.catch_up.resume(mailboxes)

    def events_dropped(self, count: int, /) -> None:
        """Count events without a valid id."""
        self.dropped += count

    def claim(self, group: Group, subscription: str, mailbox: str, /) -> None:
        """Note that the server has just given this id to the mailbox.

        Some servers count subscriptions from 1 again after a restart: a mailbox that had this id on the same server
        has lost its subscription, even if the server still answers to the id.
        """
        self._claim(group, subscription, mailbox, proven=True)

    def _claim(self, group: Group, subscription: str, mailbox: str, *, proven: bool) -> None:
        loser = self._ownership.claim(server_of(group.ews_url), subscription, mailbox, proven=proven)
        self.catch_up.subscribed(mailbox, new=self.last_seen.get(mailbox, -inf) >= self.started_at)
        if loser is None or loser == mailbox:
            return
        runner = self.runners.of(loser)
        if (
            runner is not None
            and runner.group != group
            and runner.state.subscription_of(loser) == subscription
        ):
            runner.post(Doubted((loser,), taken=True))

    def release(self, group: Group, subscription: str, mailbox: str, /) -> None:
        """Note that the mailbox does not have this subscription any more."""
        self._ownership.release(server_of(group.ews_url), subscription, mailbox)

    def owner(self, group: Group, subscription: str, /) -> str | None:
        """Return the mailbox that has this subscription on the group's server, in whichever group it is."""
        return self._ownership.owner(server_of(group.ews_url), subscription)

    def doubt(self, group: Group, subscriptions: Iterable[str], /) -> None:
        """Note that the group's server may have restarted: these ids may be other mailboxes' by now."""
        self._ownership.doubt(server_of(group.ews_url), subscriptions)

    def confirm(self, group: Group, subscription: str, /) -> None:
        """Note that this id is proven to be its owner's."""
        self._ownership.confirm(server_of(group.ews_url), subscription)

    def is_proven(self, group: Group, subscription: str, /) -> bool:
        """Return whether events of this id count without further proof."""
        return self._ownership.is_proven(server_of(group.ews_url), subscription)

    def learn(self, mailbox: str, folders: Iterable[str | None], /) -> None:
        """Note that the mailbox has these folders."""
        self._ownership.learn(mailbox, folders)

    def judge(self, mailbox: str, folders: Iterable[str | None], /) -> bool | None:
        """Return whether events in these folders are the mailbox's; None if the folders are not known."""
        return self._ownership.judge(mailbox, folders)

    async def folders(self, mailbox: str, /) -> Collection[str]:
        """Return the folder ids that the catch-up has stored for a mailbox."""
        return await self.catch_up.stored_folders(mailbox)

    # --- finding mailboxes, at first and now and then

    async def _fenced(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Run a loop that never returns. After an unknown exception it begins again, later each time."""
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
        """Looks for all who have no place, whenever there are some."""
        failures = 0
        while True:
            changed = self._changed
            if pending := self._homeless():
                found = await self._discover(pending)
                wanted = set(self._homeless())  # some may have left meanwhile
                places = [
                    place
                    for place in found.values()
                    if isinstance(place, Placement) and place.mailbox in wanted
                ]
                missing = {m: why for m, why in found.items() if isinstance(why, Failure) and m in wanted}
                self._log_found(places, missing)
                self.missing = missing
                self._place(places)
            failures = failures + 1 if self.missing else 0
            patience = self._patience(self.missing.values(), failures) if self.missing else inf
            with trio.move_on_after(patience):
                await changed.wait()

    def _homeless(self) -> list[str]:
        return [mailbox for mailbox in self.sought if mailbox not in self.runners.groups]

    async def _discover(
        self, mailboxes: Sequence[str], *, fall_back: bool = True
    ) -> dict[str, Placement | Failure]:
        """Where they live, and how they are got at there."""
        kind_of = self.settings.spec.access.kind_of
        found = await self._ask(mailboxes, fall_back=fall_back)
        return {
            mailbox: place._replace(access=kind_of(mailbox)) if isinstance(place, Placement) else place
            for mailbox, place in found.items()
        }

    async def _ask(self, mailboxes: Sequence[str], *, fall_back: bool) -> dict[str, Placement | Failure]:
        """Ask where mailboxes live. An unknown exception is the failure of as few of them as possible."""
        try:
            return await self.discovery.discover(mailboxes, fall_back=fall_back)
        except Exception as error:
            if len(mailboxes) == 1:
                log.error("discovery.crashed", mailbox=mailboxes[0], exc_info=error)
                return {mailboxes[0]: crash(error)}
        found: dict[str, Placement | Failure] = {}
        half = len(mailboxes) // 2
        for part in (mailboxes[:half], mailboxes[half:]):
            found |= await self._ask(part, fall_back=fall_back)
        return found

    def _in_their_ways(self, known: Iterable[Placement]) -> tuple[Placement, ...]:
        return tuple(
            place._replace(access=self.settings.spec.access.kind_of(place.mailbox)) for place in known
        )

    def _is_misplaced(self, mailbox: str, home: Group, placed: Mapping[str, Place]) -> bool:
        if mailbox in placed:
            return placed[mailbox] != home.place
        return self.settings.spec.access.kind_of(mailbox) != home.access

    def _patience(self, missing: Iterable[Failure], failures: int) -> float:
        """Seconds until the missing are sought again: soon, if the trouble of any of them may pass by itself."""
        passing = [why for why in missing if why.verdict in (Verdict.RETRY, Verdict.WAIT)]
        told = max((why.wait for why in passing if why.wait is not None), default=0.0)
        return max(told, (self.settings.retry if passing else self.settings.suspended).longest(failures))

    async def _refresh(self) -> None:
        """Asks for all places again, a few at a time, evenly over the whole interval: sooner the first time, if there
        are places that are known from before."""
        interval = min(self.settings.refresh, SOON) if self.restored else self.settings.refresh
        while True:
            batches = [self.sought[start : start + BATCH] for start in range(0, len(self.sought), BATCH)]
            for batch in batches or [()]:
                await trio.sleep(interval / max(1, len(batches)))
                placed = [mailbox for mailbox in batch if mailbox in self.runners.groups]
                found = await self._discover(placed, fall_back=False) if placed else {}
                for mailbox, place in found.items():
                    runner = self.runners.of(mailbox)
                    if isinstance(place, Placement) and runner and place.place != runner.group.place:
                        runner.post(Doubted((mailbox,)))
            interval = self.settings.refresh

    def _resume(self) -> None:
        """Brings the groups to life that are known from before."""
        for before in self.restored:
            for mailbox, subscription in before.kept.subscriptions.items():
                self._claim(before.group, subscription, mailbox, proven=False)
        self._regroup(
            tuple(before.group for before in self.restored if before.group.mailboxes),
            {before.group.name: before for before in self.restored},
        )
        for before in self.restored:
            if not before.group.mailboxes:
                # It only unsubscribes. It is not in `runners`: its name may be given to a group elsewhere.
                self._start(before.group, before)

    def _place(self, places: Iterable[Placement]) -> None:
        self._regroup(groups(places, self.group_size, self._groups))

    def _regroup(self, sorted_anew: tuple[Group, ...], before: Mapping[str, Restored] | None = None) -> None:
        """From now on these are the groups: each has a runner, which knows who belongs to it. Not after stop(), when
        they only come to their end."""
        if self._stopped.is_set():
            return
        if twice := duplicates(sorted_anew):
            log.error("mailboxes.duplicate", count=len(twice), mailboxes=twice[:NAMED])
            sorted_anew = deduplicated(sorted_anew, self.runners.groups)
        self._groups = sorted_anew
        self.runners.assign(sorted_anew)
        for group in sorted_anew:
            runner = self.runners.by_group.get(group.name)
            # A runner keeps its server: one that is about to end may have had the same name elsewhere.
            if runner is None or runner.finished or runner.group.place != group.place:
                self.runners.by_group[group.name] = self._start(
                    group, None if before is None else before.get(group.name)
                )
            elif runner.group != group:
                joined = tuple(set(group.mailboxes).difference(runner.group.mailboxes))
                runner.group = group
                if joined:
                    runner.post(Joined(joined))

    def _start(self, group: Group, before: Restored | None) -> GroupRunner:
        runner = self.new_runner(group, self, before)
        assert self._nursery is not None
        self._nursery.start_soon(self._run, runner)
        return runner

    def _dismiss(self, leaving: Iterable[str]) -> None:
        """These leave their groups; a group that nobody is left in ends."""
        of_groups: defaultdict[str, list[str]] = defaultdict(list)
        for mailbox in leaving:
            of_groups[self.runners.groups[mailbox].name].append(mailbox)
        after = {group.name: group for group in without(self._groups, chain(*of_groups.values()))}
        for name, mailboxes in of_groups.items():
            runner = self.runners.by_group.get(name)
            if runner is not None and name in after:
                runner.post(Left(tuple(mailboxes)))
            elif runner is not None:
                # Its name may be given to another group before it has ended.
                del self.runners.by_group[name]
                runner.post(Stop(unsubscribe=True))
                self.checkpointer.note(name)
        self._regroup(tuple(after.values()))

    async def _run(self, runner: GroupRunner) -> None:
        """Run one group to its end.

        An unknown exception suspends this group only: it starts again after a pause with the subscriptions and gaps
        that it had, and with the mailboxes that it is to have by then.
        """
        failures = 0
        while True:
            self._alive[id(runner)] = runner
            try:
                await runner.run()
                break
            except Exception as error:
                failures += 1
                pause = self.settings.suspended.longest(failures)
                log.error("group.crashed", group=runner.group.name, retry=pause, exc_info=error)
            finally:
                del self._alive[id(runner)]
            with trio.move_on_after(pause):
                await self._stopped.wait()
                break
            again = self._again(runner)
            if again is None:
                break
            runner = again
        # At the end of all it stays, for what the next process needs of it.
        if self.runners.by_group.get(runner.group.name) is runner and not self._stopped.is_set():
            del self.runners.by_group[runner.group.name]
            self.checkpointer.note(runner.group.name)

    def _again(self, crashed: GroupRunner) -> GroupRunner | None:
        """Return a runner that goes on where one crashed; None if its mailboxes are in other groups by now."""
        name = crashed.group.name
        group = next((each for each in self._groups if each.name == name), None)
        if (
            group is None
            or self.runners.by_group.get(name) is not crashed
            or group.place != crashed.group.place
        ):
            return None
        server = server_of(group.ews_url)
        subscriptions = {
            mailbox: id_
            for mailbox, id_ in crashed.subscriptions().items()
            if mailbox in group.mailboxes and self._ownership.owner(server, id_) == mailbox
        }
        anchor = crashed.state.anchor if crashed.state.anchor in group.mailboxes else group.mailboxes[0]
        kept = Kept(anchor, subscriptions, crashed.state.abandoned)
        runner = self.new_runner(group, self, Restored(group, kept, crashed.client.cookies))
        runner.take_over(crashed)
        self.runners.by_group[name] = runner
        return runner

    def _log_found(self, places: Sequence[Placement], missing: dict[str, Failure]) -> None:
        codes = Counter(why.code for why in missing.values())
        log.info("discovery.found", mailboxes=len(places), missing=len(missing), codes=dict(codes))
        for mailbox, why in missing.items():
            known = self.missing.get(mailbox)
            if known is None or known.code != why.code:
                log.warning("discovery.failed", mailbox=mailbox, code=why.code, text=why.text)


# So many mailboxes are named in one line of the log.
NAMED = 5

# Mailboxes that are asked for again together.
BATCH = 100

# Seconds in which places that are known from before are asked for again.
SOON = 600.0
