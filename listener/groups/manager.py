"""The group manager: assigns each mailbox to exactly one group, and runs the groups.

Groups of the last process start first and stream at once. Autodiscover is asked afterwards.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from math import inf
from typing import Protocol

import structlog
import trio

from listener.ews.codes import Failure
from listener.groups.actions import Discovered, Doubted, Joined, Left, Stop
from listener.groups.affinity import (
    Group,
    deduplicated,
    duplicates,
    groups,
    split_off,
    without,
)
from listener.groups.checkpoint import GroupCheckpoint, RestoredGroup
from listener.groups.checkpointer import Checkpointer
from listener.groups.group import SavedSubscriptions
from listener.groups.ownership import Ownership, server_of
from listener.groups.placement_search import Discovery, PlacementSearch
from listener.groups.runner import GroupRunner
from listener.groups.runners import Runners
from listener.groups.settings import ManagerSettings
from listener.placement import AffinityKey, Placement

log = structlog.get_logger()


class RunnerFactory(Protocol):
    """Creates the runner of a group, with the subscriptions of `saved` if there are any."""

    def __call__(
        self, group: Group, manager: GroupManager, saved: RestoredGroup | None = None, /
    ) -> GroupRunner: ...


class GapFiller(Protocol):
    """Finds what the streams of mailboxes did not report (listener/catchup/catchup.py). No call waits."""

    def subscribed(self, mailbox: str, *, new: bool) -> None: ...
    def gap(self, mailbox: str, since: float | None, reason: str) -> None: ...
    def resume(self, mailboxes: Iterable[str]) -> None: ...
    def drop(self, mailbox: str) -> None: ...
    def unfilled(self) -> Mapping[str, float]: ...
    async def stored_folders(self, mailbox: str) -> Collection[str]: ...


class GroupManager:
    """All groups and their runners.

    - `known`: mailboxes with a configured placement. `sought`: mailboxes that Autodiscover must find.
    - `restored`: the groups of the last process.
    - `last_seen`: the moment when the stream of each mailbox last worked, on trio's clock. Moments before
      `started_at` are from an earlier process.
    - `dropped`: the number of events without a valid id.
    """

    def __init__(
        self,
        *,
        known: tuple[Placement, ...],
        sought: tuple[str, ...],
        settings: ManagerSettings,
        group_size: int,
        discovery: Discovery,
        new_runner: RunnerFactory,
        runners: Runners,
        catch_up: GapFiller,
        checkpointer: Checkpointer,
        restored: Sequence[RestoredGroup] = (),
        last_seen: dict[str, float] | None = None,
        started_at: float = -inf,
    ) -> None:
        self.known = known
        self.group_size = group_size
        self.new_runner = new_runner
        self.runners = runners
        self.catch_up = catch_up
        self.checkpointer = checkpointer
        self.restored = restored
        self.last_seen = {} if last_seen is None else last_seen
        self.started_at = started_at
        self.dropped = 0
        self._groups: tuple[Group, ...] = ()
        self._ownership = Ownership()
        self._alive: dict[int, GroupRunner] = {}  # also runners that are about to end
        self._nursery: trio.Nursery | None = None
        self._search = PlacementSearch(
            sought,
            settings,
            discovery=discovery,
            runners=runners,
            assigner=self,
            restored=bool(restored),
        )
        self._search_scope = trio.CancelScope()
        self._stopped = trio.Event()

    def reconfigure(self, settings: ManagerSettings) -> None:
        """Apply new settings to this manager and to all groups. The next request uses them."""
        self._search.settings = settings
        for runner in self.runners.by_group.values():
            runner.reconfigure(settings.spec, settings.policy)

    @property
    def settings(self) -> ManagerSettings:
        """The settings that the next request uses."""
        return self._search.settings

    @property
    def sought(self) -> tuple[str, ...]:
        """The mailboxes that Autodiscover must find."""
        return self._search.sought

    @property
    def missing(self) -> dict[str, Failure]:
        """The mailboxes that Autodiscover has not found so far, with the reason."""
        return self._search.missing

    @property
    def mailboxes(self) -> int:
        """The number of all mailboxes, found or not."""
        return len(self.known) + len(self.sought)

    def addresses(self) -> set[str]:
        """Return the addresses of all mailboxes, found or not."""
        return {placement.mailbox for placement in self.known}.union(self.sought)

    @property
    def streaming(self) -> int:
        """The number of mailboxes with an open stream on which the server has sent a signal."""
        return sum(runner.mailboxes_streaming for runner in self.runners.by_group.values())

    @property
    def duplicates(self) -> list[str]:
        """The mailboxes that more than one group streams: none, apart from a moment while a mailbox moves."""
        counts = Counter(m for runner in self.runners.by_group.values() for m in runner.mailboxes_in_stream())
        return sorted(mailbox for mailbox, count in counts.items() if count > 1)

    @property
    def suspended(self) -> int:
        """The number of suspended mailboxes."""
        return sum(
            member.suspended for runner in self.runners.by_group.values() for member in runner.state.members
        )

    async def run(self) -> None:
        """Run all groups; return when they have ended after stop()."""
        self.known = self._with_access(self.known)
        async with trio.open_nursery() as self._nursery:
            self._resume()
            # Restored groups have most of these already. To assign them again would subscribe them twice.
            self.assign(each for each in self.known if each.mailbox not in self.runners.groups)
            with self._search_scope:
                await self._search.run()
        self._nursery = None

    def change(self, known: Sequence[Placement], sought: Sequence[str]) -> None:
        """Replace the set of mailboxes.

        Mailboxes in both sets keep streaming. New ones are assigned or searched at once. Removed ones, and those
        whose access type changed, leave their group. Only valid while run() runs; no effect after stop().
        """
        if self._stopped.is_set():
            return
        before = self.addresses()
        self.known = self._with_access(known)
        configured = {placement.mailbox: placement.affinity_key for placement in self.known}
        wanted = configured.keys() | set(sought)
        self._search.change(tuple(sought), wanted)
        leaving = [
            mailbox
            for mailbox, group in self.runners.groups.items()
            if mailbox not in wanted or self._is_misplaced(mailbox, group, configured)
        ]
        self._remove(leaving)
        self.assign(each for each in self.known if each.mailbox not in self.runners.groups)
        if removed := sorted(before - wanted):
            for mailbox in removed:
                self.catch_up.drop(mailbox)
                self.last_seen.pop(mailbox, None)
                self._ownership.forget(mailbox)
        added = len(wanted - before)
        log.info("mailboxes.changed", mailboxes=len(wanted), added=added, removed=len(removed))
        self._search.wake()

    def stop(self, *, unsubscribe: bool) -> None:
        """Stop all groups."""
        self._stopped.set()
        self._search_scope.cancel()
        for runner in self._alive.values():
            runner.post(Stop(unsubscribe))

    # --- the checkpoint

    def record(self, name: str, /) -> GroupCheckpoint | None:
        """Return the checkpoint of a group; None if it has no mailboxes."""
        runner = self.runners.by_group.get(name)
        return runner.record() if runner is not None and runner.state.members else None

    def last_seen_by_group(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return when the streams of groups last worked, and since when mailboxes may miss events.

        The second part has only mailboxes that may miss events from before that moment of their group.
        """
        groups: dict[str, float] = {}
        for mailbox in self.last_seen.keys() - self.addresses():
            del self.last_seen[mailbox]  # a stream may be read on for a while after its mailbox has left
        missing_since = dict(self.last_seen)  # this includes mailboxes on their way from one group to another
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
        """Note that the checkpoint of this group must be written."""
        self.checkpointer.note(group.name)

    async def save_checkpoint(self, group: Group, /) -> None:
        """Return when the checkpoint of this group is durable."""
        await self.checkpointer.save_checkpoint(group.name, self)

    # --- requests of groups (listener.groups.group_context.Registry)

    async def find(self, group: Group, mailboxes: Sequence[str], /) -> Discovered:
        """Find the placements of mailboxes of a group, and move those that live elsewhere to another group."""
        configured = {placement.mailbox for placement in self.known}
        # While Autodiscover fails, a mailbox keeps its placement, and does not get one without a group.
        sought = [mailbox for mailbox in mailboxes if mailbox not in configured]
        found = await self._search.find(sought, fall_back=False)
        placements = [each for each in found.values() if isinstance(each, Placement)]
        moved = [
            each
            for each in placements
            if each.affinity_key != group.affinity_key and each.mailbox in self.runners.groups
        ]
        for each in moved:
            log.info("mailbox.moved", mailbox=each.mailbox, group=group.name, to=each.grouping_information)
        gone = tuple(each.mailbox for each in moved)
        self._regroup(groups(moved, self.group_size, without(self._groups, gone)))
        unknown = tuple((mailbox, each) for mailbox, each in found.items() if isinstance(each, Failure))
        return Discovered(gone, unknown)

    def split(self, group: Group, mailboxes: Sequence[str], /, *, each: bool = False) -> None:
        """Move mailboxes of a group to a group of their own; `each`: to one group for each mailbox."""
        present = [mailbox for mailbox in mailboxes if mailbox in self.runners.groups]
        after = self._groups
        for part in [[mailbox] for mailbox in present] if each else [present]:
            if part:
                after = split_off(after, group, part)
        if present:
            self._regroup(after)

    def gap(self, mailbox: str, since: float | None, reason: str, /) -> None:
        """Request catch-up: the mailbox had no stream since that moment, and has one again."""
        self.catch_up.gap(mailbox, since, reason)

    def resumed(self, mailboxes: Sequence[str], /) -> None:
        """Report that these mailboxes have a stream again."""
        self.catch_up.resume(mailboxes)

    def events_dropped(self, count: int, /) -> None:
        """Count events without a valid id."""
        self.dropped += count

    def claim(self, group: Group, subscription: str, mailbox: str, /) -> None:
        """Note that the server has just given this id to the mailbox.

        Some servers count subscriptions from 1 again after a restart. A mailbox that had this id on the same server
        has then lost its subscription, even if the server still accepts the id.
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
        """Return the mailbox with this subscription on the group's server, in any group."""
        return self._ownership.owner(server_of(group.ews_url), subscription)

    def doubt(self, group: Group, subscriptions: Iterable[str], /) -> None:
        """Note that the group's server may have restarted: these ids may belong to other mailboxes by now."""
        self._ownership.doubt(server_of(group.ews_url), subscriptions)

    def confirm(self, group: Group, subscription: str, /) -> None:
        """Note that this id is proven to be its owner's."""
        self._ownership.confirm(server_of(group.ews_url), subscription)

    def is_proven(self, group: Group, subscription: str, /) -> bool:
        """Return whether events of this id count without further proof."""
        return self._ownership.is_proven(server_of(group.ews_url), subscription)

    def add_folders(self, mailbox: str, folders: Iterable[str | None], /) -> None:
        """Note that the mailbox has these folders."""
        self._ownership.add_folders(mailbox, folders)

    def owns_folders(self, mailbox: str, folders: Iterable[str | None], /) -> bool | None:
        """Return whether these folders are the mailbox's; None if they are not known."""
        return self._ownership.owns_folders(mailbox, folders)

    async def folders(self, mailbox: str, /) -> Collection[str]:
        """Return the folder ids that catch-up has stored for a mailbox."""
        return await self.catch_up.stored_folders(mailbox)

    # --- groups

    def _with_access(self, known: Iterable[Placement]) -> tuple[Placement, ...]:
        kind_of = self.settings.spec.access.kind_of
        return tuple(placement._replace(access=kind_of(placement.mailbox)) for placement in known)

    def _is_misplaced(self, mailbox: str, group: Group, configured: Mapping[str, AffinityKey]) -> bool:
        if mailbox in configured:
            return configured[mailbox] != group.affinity_key
        return self.settings.spec.access.kind_of(mailbox) != group.access

    def _resume(self) -> None:
        """Start the groups of the last process."""
        for each in self.restored:
            for mailbox, subscription in each.saved.subscriptions.items():
                self._claim(each.group, subscription, mailbox, proven=False)
        self._regroup(
            tuple(each.group for each in self.restored if each.group.mailboxes),
            {each.group.name: each for each in self.restored},
        )
        for each in self.restored:
            if not each.group.mailboxes:
                # It only unsubscribes. It is not in `runners`: another group may get its name.
                self._start(each.group, each)

    def assign(self, placements: Iterable[Placement], /) -> None:
        """Add mailboxes to groups."""
        self._regroup(groups(placements, self.group_size, self._groups))

    def _regroup(
        self, regrouped: tuple[Group, ...], restored: Mapping[str, RestoredGroup] | None = None
    ) -> None:
        """Replace the groups: start runners for new ones, and post Joined to those with new mailboxes.

        No effect after stop(), when the groups only come to their end.
        """
        if self._stopped.is_set():
            return
        if twice := duplicates(regrouped):
            log.error("mailboxes.duplicate", count=len(twice), mailboxes=twice[:MAX_NAMED])
            regrouped = deduplicated(regrouped, self.runners.groups)
        self._groups = regrouped
        self.runners.assign(regrouped)
        for group in regrouped:
            runner = self.runners.by_group.get(group.name)
            # A runner keeps its server: a runner that is about to end may have the same name on another server.
            if runner is None or runner.finished or runner.group.affinity_key != group.affinity_key:
                self.runners.by_group[group.name] = self._start(
                    group, None if restored is None else restored.get(group.name)
                )
            elif runner.group != group:
                joined = tuple(set(group.mailboxes).difference(runner.group.mailboxes))
                runner.group = group
                if joined:
                    runner.post(Joined(joined))

    def _start(self, group: Group, saved: RestoredGroup | None) -> GroupRunner:
        runner = self.new_runner(group, self, saved)
        assert self._nursery is not None
        self._nursery.start_soon(self._run, runner)
        return runner

    def _remove(self, leaving: Iterable[str]) -> None:
        """Remove mailboxes from their groups. A group without mailboxes ends."""
        of_groups: defaultdict[str, list[str]] = defaultdict(list)
        for mailbox in leaving:
            of_groups[self.runners.groups[mailbox].name].append(mailbox)
        after = {group.name: group for group in without(self._groups, chain(*of_groups.values()))}
        for name, mailboxes in of_groups.items():
            runner = self.runners.by_group.get(name)
            if runner is not None and name in after:
                runner.post(Left(tuple(mailboxes)))
            elif runner is not None:
                # Another group may get its name before it has ended.
                del self.runners.by_group[name]
                runner.post(Stop(unsubscribe=True))
                self.checkpointer.note(name)
        self._regroup(tuple(after.values()))

    async def _run(self, runner: GroupRunner) -> None:
        """Run one group to its end.

        An unknown exception suspends this group only: it starts again after a pause, with the subscriptions and gaps
        that it had, and with the mailboxes that are assigned to it by then.
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
            successor = self._restart(runner)
            if successor is None:
                break
            runner = successor
        # After stop() the runner stays in the index, because the last checkpoint is made from it.
        if self.runners.by_group.get(runner.group.name) is runner and not self._stopped.is_set():
            del self.runners.by_group[runner.group.name]
            self.checkpointer.note(runner.group.name)

    def _restart(self, crashed: GroupRunner) -> GroupRunner | None:
        """Return a runner that continues a crashed one; None if its mailboxes are in other groups by now."""
        name = crashed.group.name
        group = next((each for each in self._groups if each.name == name), None)
        if (
            group is None
            or self.runners.by_group.get(name) is not crashed
            or group.affinity_key != crashed.group.affinity_key
        ):
            return None
        server = server_of(group.ews_url)
        subscriptions = {
            mailbox: id_
            for mailbox, id_ in crashed.subscriptions().items()
            if mailbox in group.mailboxes and self._ownership.owner(server, id_) == mailbox
        }
        anchor = crashed.state.anchor if crashed.state.anchor in group.mailboxes else group.mailboxes[0]
        saved = SavedSubscriptions(anchor, subscriptions, crashed.state.abandoned)
        runner = self.new_runner(group, self, RestoredGroup(group, saved, crashed.client.cookies))
        runner.take_over(crashed)
        self.runners.by_group[name] = runner
        return runner


# The number of mailboxes that one log line names.
MAX_NAMED = 5
