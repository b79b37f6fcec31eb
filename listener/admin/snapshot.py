"""Snapshot of the daemon's status, rendered as JSON, metrics or a terminal view.

Taking a snapshot only reads state and never waits. Durations are in seconds, times are Unix time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Protocol

import msgspec

from listener.catchup.catchup import CatchUp
from listener.delivery.delivery import Delivery
from listener.ews.codes import Failure
from listener.exchange.auth import Accounts
from listener.exchange.auth.oauth import OAuth
from listener.exchange.throttle import Throttles
from listener.groups.manager import GroupManager
from listener.groups.member import Member
from listener.groups.runner import GroupRunner
from listener.journal import Figures

# Maximum number of listed mailboxes with problems. The counts include all of them.
MAX_LISTED = 1000


class GroupStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Status of one group.

    `since` is the start of the current `state`; `stream_opened` is the time of the first data on the newest stream.
    `subscribed` mailboxes have a subscription, `streaming` mailboxes an open stream. `failures` are consecutive;
    `pause` is the remaining backoff.
    """

    name: str
    url: str
    anchor: str
    state: str
    since: float
    mailboxes: int
    subscribed: int
    streaming: int
    suspended: int
    refused: int
    events: int
    failures: int
    pause: float
    stream_opened: float | None


class HandlerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Status of one handler.

    `state` is starting, running, broken or ending. `lag` is an upper bound of the events that it has not finished.
    `last_delivered` is the time when it last finished an event.
    """

    name: str
    state: str
    lag: int
    delivered: int
    dead_lettered: int
    failures: int
    last_delivered: float | None


class MailboxProblem(msgspec.Struct, frozen=True, kw_only=True):
    """A mailbox without a subscription, and the reason. `retry` is the time to the next attempt; None if unknown."""

    mailbox: str
    group: str | None
    state: str
    code: str
    text: str
    failures: int
    retry: float | None


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Status of one server: the current and the maximum limit of concurrent requests, and the requested pause.

    `answers` counts requests by result: "ok" or a code.
    """

    host: str
    concurrency: int
    most: int
    pause: float
    answers: Mapping[str, int]


class JournalStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Status of the journal. `end` is the offset of the newest event, `size` and `limit` are bytes, `waiting` is the
    number of waiting appends."""

    end: int
    size: int
    limit: int
    full: bool
    write_error: str | None
    waiting: int


class CatchUpStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Status of catch-up: the number of gaps, of mailboxes with an open gap, and of recovered and missed changes."""

    mode: str
    gaps: int
    open: int
    recovered: int
    missed: int
    requests: int


class TokenStatus(msgspec.Struct, frozen=True, kw_only=True):
    """An access token and its remaining lifetime."""

    name: str
    remaining: float


class ReloadStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of accepted and of rejected reloads; time and problems of the last one.

    `pending` has the keys whose new values take effect at the next start.
    """

    done: int = 0
    refused: int = 0
    last: float | None = None
    problems: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Status of the daemon. `state` is starting, listening or ending; `healthy`: the journal writer is not stuck."""

    version: str
    pid: int
    time: float
    started: float
    state: str
    healthy: bool
    mailboxes: int
    streaming: int
    suspended: int
    missing: int
    refused: int
    events: int
    dropped: int = 0
    groups: tuple[GroupStatus, ...]
    handlers: tuple[HandlerStatus, ...]
    servers: tuple[ServerStatus, ...]
    journal: JournalStatus | None
    catch_up: CatchUpStatus | None
    tokens: tuple[TokenStatus, ...]
    reloads: ReloadStatus
    mailbox_problems: tuple[MailboxProblem, ...]

    @property
    def ready(self) -> bool:
        """Return whether journal and handlers are open and the daemon is not stopping."""
        return self.state == "listening"


class Clock(Protocol):
    """Conversion of the event loop's time to Unix time."""

    def __call__(self, time: float, /) -> float: ...


def group_statuses(manager: GroupManager, now: float, wall: Clock) -> tuple[GroupStatus, ...]:
    """Return the status of all groups, sorted by name."""
    return tuple(_group(runner, now, wall) for _, runner in sorted(manager.runners.by_group.items()))


def _group(runner: GroupRunner, now: float, wall: Clock) -> GroupStatus:
    state = runner.state
    opened = runner.opened
    return GroupStatus(
        name=runner.group.name,
        url=runner.group.ews_url,
        anchor=state.anchor,
        state=state.phase,
        since=wall(runner.since),
        mailboxes=len(state.members),
        subscribed=sum(member.subscription is not None for member in state.members),
        streaming=runner.mailboxes_streaming,
        suspended=sum(member.suspended for member in state.members),
        refused=sum(has_failed(member) and not member.suspended for member in state.members),
        events=runner.events,
        failures=state.failures or state.flaps,
        pause=0.0 if state.paused_until is None else max(0.0, round(state.paused_until - now, 1)),
        stream_opened=None if opened is None else wall(opened),
    )


def handler_statuses(delivery: Delivery) -> tuple[HandlerStatus, ...]:
    """Return the status of all handlers, in their order."""
    return tuple(
        HandlerStatus(
            name=worker.name,
            state=worker.state,
            lag=worker.lag,
            delivered=worker.delivered,
            dead_lettered=worker.dead_lettered,
            failures=worker.failures,
            last_delivered=worker.last_delivered,
        )
        for worker in delivery.workers
    )


def server_statuses(throttles: Throttles) -> tuple[ServerStatus, ...]:
    """Return the status of all servers that received a request, sorted by host."""
    return tuple(
        ServerStatus(
            host=host,
            concurrency=throttle.limit,
            most=throttle.maximum,
            pause=round(throttle.pause, 1),
            answers=dict(throttle.answers),
        )
        for host, throttle in sorted(throttles.by_host.items())
    )


def token_statuses(accounts: Accounts) -> tuple[TokenStatus, ...]:
    """Return the access tokens of all accounts that have one."""
    schemes = [account.scheme for account in accounts.in_use]
    return tuple(
        TokenStatus(name=scheme.account, remaining=round(scheme.remaining, 1))
        for scheme in schemes
        if isinstance(scheme, OAuth) and scheme.remaining is not None
    )


def journal_status(figures: Figures) -> JournalStatus:
    return JournalStatus(
        end=figures.end,
        size=figures.size,
        limit=figures.limit,
        full=figures.full,
        write_error=figures.write_error,
        waiting=figures.waiting,
    )


def catch_up_status(catch_up: CatchUp) -> CatchUpStatus:
    return CatchUpStatus(
        mode=catch_up.mode,
        gaps=catch_up.gaps,
        open=catch_up.open_gaps,
        recovered=catch_up.recovered,
        missed=catch_up.missed,
        requests=catch_up.requests,
    )


def mailbox_problems(
    runners: Iterable[GroupRunner], missing: Mapping[str, Failure], now: float
) -> tuple[MailboxProblem, ...]:
    """Return up to MAX_LISTED mailboxes without a subscription, and the reasons."""

    def problems() -> Iterator[MailboxProblem]:
        for runner in runners:
            for member in runner.state.members:
                if has_failed(member):
                    yield _mailbox_problem(member, runner.group.name, now)
        for mailbox, failure in missing.items():
            yield MailboxProblem(
                mailbox=mailbox,
                group=None,
                state="missing",
                code=failure.code,
                text=failure.text,
                failures=0,
                retry=None,
            )

    return tuple(islice(problems(), MAX_LISTED))


def has_failed(member: Member) -> bool:
    """Return whether the mailbox is suspended, or has no subscription after a failure that the server explained."""
    return member.suspended or (member.failure is not None and member.subscription is None)


def _mailbox_problem(member: Member, group: str, now: float) -> MailboxProblem:
    failure = member.failure
    return MailboxProblem(
        mailbox=member.mailbox,
        group=group,
        state="suspended" if member.suspended else "refused",
        code="" if failure is None else failure.code,
        text="" if failure is None else failure.text,
        failures=member.failures,
        retry=max(0.0, round(member.due - now, 1)),
    )
