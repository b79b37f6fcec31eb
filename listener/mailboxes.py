"""The mailbox source: the list of mailboxes from the configuration, a file and distribution groups.

The file and the groups are read again on a schedule. A source that cannot be read keeps its previous mailboxes, and
a group with an incomplete answer loses none. If a refresh would drop more than the share `max_drop` of all mailboxes,
it is rejected and logged, because a group that was emptied by mistake must not stop the daemon's work. The members of
groups are stored in the journal, so that a start without Exchange, or after such a mistake, still knows them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import inf
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog
import trio

from listener.backoff import Backoff
from listener.config.mailbox_file import MailboxReader
from listener.ews.codes import ExchangeError, Failure
from listener.ews.directory import GROUPS, MAILBOXES, Expansion
from listener.journal import Drop, Journal, Put

log = structlog.get_logger()

Expand = Callable[[str], Awaitable[Expansion]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The configured sources.

    `listed` are the mailboxes in the configuration, `in_file` those in the file now. `parse` parses the content of
    the file; it raises ValueError. `never` are must_deny mailboxes, which are removed from the file and the groups.
    """

    listed: tuple[str, ...] = ()
    file: Path | None = None
    in_file: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    never: frozenset[str] = frozenset()
    parse: Callable[[bytes], tuple[str, ...]] = MailboxReader("PrimarySmtpAddress").addresses


@dataclass(slots=True, kw_only=True)
class MailboxSource:
    """The current list of mailboxes. `changed` is called after each change. `refresh` is the interval in seconds."""

    sources: Sources
    expand: Expand
    changed: Callable[[], None]
    refresh: float = 3600.0
    max_drop: float = 0.2
    _in_file: tuple[str, ...] = field(init=False)
    _members: dict[str, tuple[str, ...]] = field(init=False, default_factory=dict)
    _journal: Journal | None = None
    _refresh_requested: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self._in_file = self.sources.in_file

    @property
    def mailboxes(self) -> tuple[str, ...]:
        """All mailboxes without duplicates."""
        return self._combine(self._in_file, self._members)

    def change(self, sources: Sources, *, refresh: float, max_drop: float) -> None:
        """Replace the sources after a reload and refresh at once.

        Groups that remain keep their members. `max_drop` does not apply, because the operator made the change. Calls
        `changed`.
        """
        self.sources, self.refresh, self.max_drop = sources, refresh, max_drop
        self._in_file = sources.in_file
        self._members = {group: self._members.get(group, ()) for group in sources.groups}
        self.changed()
        self._refresh_requested.set()
        self._refresh_requested = trio.Event()

    async def recall(self, journal: Journal) -> None:
        """Load the stored members of groups. They are used until the first refresh."""
        self._journal = journal
        stored = await journal.load(NAMESPACE)
        self._members = {group: _decode_members(group, stored.get(group)) for group in self.sources.groups}
        if removed := stored.keys() - set(self.sources.groups):
            await journal.append((), [Drop(NAMESPACE, group) for group in sorted(removed)])

    async def run(self) -> None:
        """Refresh at the interval, and sooner after a failure, until cancelled."""
        failures = 0
        while True:
            requested = self._refresh_requested
            pause = inf
            if self.sources.groups or self.sources.file:
                try:
                    complete = await self.refresh_now()
                except Exception as error:  # must not stop the daemon: the previous mailboxes remain
                    log.error("mailboxes.refresh_crashed", exc_info=error)
                    complete = False
                failures = 0 if complete else failures + 1
                pause = min(self.refresh, RETRY.longest(failures)) if failures else self.refresh
            with trio.move_on_after(pause):
                await requested.wait()

    async def refresh_now(self) -> bool:
        """Read all sources and apply the result. Return whether all of them could be read completely."""
        sources, complete = self.sources, True
        found: dict[str, tuple[str, ...]] = {}
        for group in sources.groups:
            try:
                members = await members_of(group, self.expand)
            except ExchangeError as error:
                complete = False
                _log_failure(group, group, error.failure)
                continue
            except Exception as error:  # an unexpected answer about one group must not affect the others
                complete = False
                log.error("mailboxes.refresh_crashed", source=group, exc_info=error)
                continue
            found[group] = members.mailboxes
            if members.failures:
                complete = False
                found[group] = tuple(sorted({*members.mailboxes, *self._members.get(group, ())}))
            for within, failure in members.failures.items():
                _log_failure(group, within, failure)
        in_file = self._in_file
        if sources.file is not None:
            try:
                in_file = sources.parse(await trio.Path(sources.file).read_bytes())
            except (OSError, ValueError) as error:
                complete = False
                log.warning("mailboxes.refresh_failed", source=str(sources.file), text=str(error))
        if sources is self.sources:  # otherwise a reload replaced them, and another refresh follows
            for mailbox in sources.never.intersection(in_file):
                log.warning("mailboxes.must_deny", source=str(sources.file), mailbox=mailbox)
            await self._apply(found, in_file)
        return complete

    async def _apply(self, found: dict[str, tuple[str, ...]], in_file: tuple[str, ...]) -> None:
        members = self._members | found
        before, after = set(self.mailboxes), set(self._combine(in_file, members))
        dropped = before - after
        if len(dropped) > self.max_drop * len(before):
            figures = {"mailboxes": len(before), "dropped": len(dropped), "max_drop": self.max_drop}
            log.error("mailboxes.refresh_rejected", **figures)
            return
        changes = [Put(NAMESPACE, group, _ENCODE(addresses)) for group, addresses in found.items()]
        if self._journal is not None and members != self._members:
            sources = self.sources
            await self._journal.append((), changes)
            if sources is not self.sources:
                return  # a reload replaced the sources, and another refresh follows
        self._members, self._in_file = members, in_file
        if before != after:
            log.info(
                "mailboxes.refreshed", mailboxes=len(after), added=len(after - before), removed=len(dropped)
            )
            self.changed()

    def _combine(self, in_file: Sequence[str], members: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        found = chain(in_file, *members.values())
        allowed = (mailbox for mailbox in found if mailbox not in self.sources.never)
        return tuple(dict.fromkeys((*self.sources.listed, *allowed)))


class Members(NamedTuple):
    """The sorted addresses of the mailboxes in a group and its nested groups, and the failures by group."""

    mailboxes: tuple[str, ...]
    failures: Mapping[str, Failure]


async def members_of(group: str, expand: Expand) -> Members:
    """Return all members of a group. Raises ExchangeError if the group itself cannot be expanded."""
    seen, todo, found = {group}, [group], set[str]()
    failures: dict[str, Failure] = {}
    expanded = 0
    while todo:
        source = todo.pop()
        expanded += 1
        if expanded > MAX_GROUPS or len(found) > MAX_MEMBERS:
            failures[group] = TOO_LARGE
            break
        try:
            expansion = await expand(source)
        except ExchangeError as error:
            if source == group:
                raise
            failures[source] = error.failure
            continue
        if not expansion.complete:
            failures[source] = INCOMPLETE
        for member in expansion.members:
            if member.type in GROUPS and member.address:
                if member.address not in seen:  # groups may contain each other
                    seen.add(member.address)
                    todo.append(member.address)
            elif member.type in MAILBOXES and member.address:
                found.add(member.address)
            else:
                log.debug(
                    "mailboxes.skipped", group=group, member=member.address or member.name, type=member.type
                )
    return Members(tuple(sorted(found)), failures)


def _decode_members(group: str, stored: bytes | None) -> tuple[str, ...]:
    try:
        return () if stored is None else _DECODE(stored)
    # A damaged row is ignored: the next refresh reads the group again.
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        log.warning("mailboxes.state_unreadable", group=group, reason=str(error))
        return ()


def _log_failure(group: str, source: str, failure: Failure) -> None:
    within = {} if source == group else {"within": group}
    log.warning("mailboxes.refresh_failed", source=source, **within, code=failure.code, text=failure.text)


# Namespace in the journal. Existing journals have this name.
NAMESPACE = "mailboxes"

# The server omitted members (IncludesLastItemInRange).
INCOMPLETE = Failure(code="UnexpectedReply", text="the server returned only some of the members")

# Limits, because a server could return another nested group for each group, without end.
MAX_GROUPS, MAX_MEMBERS = 1000, 100_000
TOO_LARGE = Failure(
    code="UnexpectedReply",
    text=f"the group has over {MAX_GROUPS} nested groups or over {MAX_MEMBERS} members",
)

# The backoff while a source cannot be read.
RETRY = Backoff(first=30.0, factor=2.0, cap=3600.0)

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(tuple[str, ...]).decode
