"""Who is to be listened to: the configuration, a file, members of distribution groups; asked again on a schedule.

A group or a file that cannot be read keeps those that it had, and a group of which only a part is told loses nobody.
If what is told anew would drop more than `max_drop` of all mailboxes, nothing is changed, and the log warns: a group
that was emptied by mistake must not silence everybody. What groups told last is kept in the journal, so that neither
a start without Exchange nor one after a mistake forgets them.
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
from listener.errors import ExchangeError
from listener.ews.codes import Failure
from listener.ews.directory import GROUPS, MAILBOXES, Expansion
from listener.journal import Drop, Journal, Put

log = structlog.get_logger()

Expand = Callable[[str], Awaitable[Expansion]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where mailboxes come from. `listed` are those of the configuration, `in_file` those that its file has now;
    `parse` reads the bytes of that file, and raises ValueError. Those that are in `never` are left out of both."""

    listed: tuple[str, ...] = ()
    file: Path | None = None
    in_file: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    never: frozenset[str] = frozenset()
    parse: Callable[[bytes], tuple[str, ...]] = MailboxReader("PrimarySmtpAddress").addresses


@dataclass(slots=True, kw_only=True)
class MailboxSource:
    """All mailboxes, as far as is known. `changed` is called when they are others; `refresh` is in seconds."""

    sources: Sources
    expand: Expand
    changed: Callable[[], None]
    refresh: float = 3600.0
    max_drop: float = 0.2
    _in_file: tuple[str, ...] = field(init=False)
    _members: dict[str, tuple[str, ...]] = field(init=False, default_factory=dict)
    _journal: Journal | None = None
    _woken: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self._in_file = self.sources.in_file

    @property
    def mailboxes(self) -> tuple[str, ...]:
        """Everybody, each once."""
        return self._everybody(self._in_file, self._members)

    def change(self, sources: Sources, *, refresh: float, max_drop: float) -> None:
        """Other sources from now on, by the operator's will: groups that stay keep their members, and all are asked
        at once. Calls `changed`."""
        self.sources, self.refresh, self.max_drop = sources, refresh, max_drop
        self._in_file = sources.in_file
        self._members = {group: self._members.get(group, ()) for group in sources.groups}
        self.changed()
        self._woken.set()
        self._woken = trio.Event()

    async def recall(self, journal: Journal) -> None:
        """What groups told before this process began counts until they tell anew."""
        self._journal = journal
        kept = await journal.load(NAMESPACE)
        self._members = {group: _members_in(group, kept.get(group)) for group in self.sources.groups}
        if strangers := kept.keys() - set(self.sources.groups):
            await journal.append((), [Drop(NAMESPACE, group) for group in sorted(strangers)])

    async def run(self) -> None:
        """Asks again and again, until it is cancelled."""
        failures = 0
        while True:
            woken = self._woken
            pause = inf
            if self.sources.groups or self.sources.file:
                try:
                    whole = await self.take()
                except Exception as error:  # it must not end the daemon: the mailboxes of before stay
                    log.error("mailboxes.refresh_crashed", exc_info=error)
                    whole = False
                failures = 0 if whole else failures + 1
                pause = min(self.refresh, AGAIN.longest(failures)) if failures else self.refresh
            with trio.move_on_after(pause):
                await woken.wait()

    async def take(self) -> bool:
        """Asks all sources, and takes up what they tell; whether all of them told."""
        sources, whole = self.sources, True
        told: dict[str, tuple[str, ...]] = {}
        for group in sources.groups:
            try:
                members = await members_of(group, self.expand)
            except ExchangeError as error:
                whole = False
                _tell_failure(group, group, error.failure)
                continue
            except Exception as error:  # a fence: the answer about one group must not end the others' refresh
                whole = False
                log.error("mailboxes.refresh_crashed", source=group, exc_info=error)
                continue
            told[group] = members.mailboxes
            if members.failures:
                whole = False
                told[group] = tuple(sorted({*members.mailboxes, *self._members.get(group, ())}))
            for within, failure in members.failures.items():
                _tell_failure(group, within, failure)
        in_file = self._in_file
        if sources.file is not None:
            try:
                in_file = sources.parse(await trio.Path(sources.file).read_bytes())
            except (OSError, ValueError) as error:
                whole = False
                log.warning("mailboxes.refresh_failed", source=str(sources.file), text=str(error))
        if sources is self.sources:  # else it was changed meanwhile, and is asked again
            for mailbox in sources.never.intersection(in_file):
                log.warning("mailboxes.must_deny", source=str(sources.file), mailbox=mailbox)
            await self._take_up(told, in_file)
        return whole

    async def _take_up(self, told: dict[str, tuple[str, ...]], in_file: tuple[str, ...]) -> None:
        members = self._members | told
        before, after = set(self.mailboxes), set(self._everybody(in_file, members))
        dropped = before - after
        if len(dropped) > self.max_drop * len(before):
            figures = {"mailboxes": len(before), "dropped": len(dropped), "max_drop": self.max_drop}
            log.error("mailboxes.refresh_rejected", **figures)
            return
        news = [Put(NAMESPACE, group, _ENCODE(those)) for group, those in told.items()]
        if self._journal is not None and members != self._members:
            sources = self.sources
            await self._journal.append((), news)
            if sources is not self.sources:
                return  # it was changed meanwhile, and is asked again
        self._members, self._in_file = members, in_file
        if before != after:
            log.info(
                "mailboxes.refreshed", mailboxes=len(after), added=len(after - before), removed=len(dropped)
            )
            self.changed()

    def _everybody(self, in_file: Sequence[str], members: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        told = dict.fromkeys(chain(in_file, *members.values()))
        kept = (mailbox for mailbox in told if mailbox not in self.sources.never)
        return tuple(dict.fromkeys((*self.sources.listed, *kept)))


class Members(NamedTuple):
    """The addresses of mailboxes in a group and in the groups within it, sorted; and by group why not all of its
    members could be told."""

    mailboxes: tuple[str, ...]
    failures: Mapping[str, Failure]


async def members_of(group: str, expand: Expand) -> Members:
    """Everybody in a group. Raises ExchangeError if nothing can be told of the group itself."""
    seen, todo, found = {group}, [group], set[str]()
    failures: dict[str, Failure] = {}
    expanded = 0
    while todo:
        source = todo.pop()
        expanded += 1
        if expanded > MOST_GROUPS or len(found) > MOST_MEMBERS:
            failures[group] = ENDLESS
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
                if member.address not in seen:  # groups may hold each other
                    seen.add(member.address)
                    todo.append(member.address)
            elif member.type in MAILBOXES and member.address:
                found.add(member.address)
            else:
                log.debug(
                    "mailboxes.skipped", group=group, member=member.address or member.name, type=member.type
                )
    return Members(tuple(sorted(found)), failures)


def _members_in(group: str, kept: bytes | None) -> tuple[str, ...]:
    try:
        return () if kept is None else _DECODE(kept)
    except (
        ValueError,
        TypeError,
        RecursionError,
        MemoryError,
    ) as error:  # a damaged row: the group is asked anyway
        log.warning("mailboxes.state_unreadable", group=group, reason=str(error))
        return ()


def _tell_failure(group: str, source: str, failure: Failure) -> None:
    within = {} if source == group else {"within": group}
    log.warning("mailboxes.refresh_failed", source=source, **within, code=failure.code, text=failure.text)


NAMESPACE = "census"

# The server left members out (IncludesLastItemInRange).
INCOMPLETE = Failure(code="UnexpectedReply", text="only a part of its members was told")

# A server can name another group within each group, without end.
MOST_GROUPS, MOST_MEMBERS = 1000, 100_000
ENDLESS = Failure(
    code="UnexpectedReply", text=f"over {MOST_GROUPS} groups within it, or over {MOST_MEMBERS} members"
)

# The patience where a source could not be read.
AGAIN = Backoff(first=30.0, factor=2.0, cap=3600.0)

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(tuple[str, ...]).decode
