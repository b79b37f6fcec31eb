"""How the daemon is at one moment, as one frozen value: taken once, and shown as JSON, as metrics or to people.

Taking it reads what the parts tell of themselves and waits for nothing. Durations are seconds, moments Unix time.
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

# Mailboxes in trouble that are listed one by one; the counts are whole.
MOST_LISTED = 1000


class GroupStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One group. `state` has lasted since `since`; `stream_opened` is when its newest connection was first heard.

    `subscribed` mailboxes have a subscription, `streaming` ones an open stream. `failures` are those in a row;
    `pause` is how long it still waits after them.
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
    """One handler. `state` is starting, running, broken or ending; `lag` are the events it has not finished with,
    at most; `last_delivered` is when it last finished one."""

    name: str
    state: str
    lag: int
    delivered: int
    dead_lettered: int
    failures: int
    last_delivered: float | None


class MailboxProblem(msgspec.Struct, frozen=True, kw_only=True):
    """A mailbox that is not listened to, and why. `retry` is in how many seconds it is tried again; None: unknown."""

    mailbox: str
    group: str | None
    state: str
    code: str
    text: str
    failures: int
    retry: float | None


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One server: requests side by side that it is asked now and at most, and the pause that it asked for.

    `answers` counts requests by what came of them: "ok" or a code.
    """

    host: str
    concurrency: int
    most: int
    pause: float
    answers: Mapping[str, int]


class JournalStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The journal: the position of its newest event, its bytes, and what is wrong with it. `waiting` appends wait."""

    end: int
    size: int
    limit: int
    full: bool
    write_error: str | None
    waiting: int


class CatchUpStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Gaps: how many there were, how many are not filled, and what was found."""

    mode: str
    gaps: int
    open: int
    recovered: int
    missed: int
    requests: int


class TokenStatus(msgspec.Struct, frozen=True, kw_only=True):
    """An access token, and how long it is good for."""

    name: str
    remaining: float


class ReloadStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Reloads that were made and that were refused, and the last of them: when, and its problems if it was refused.

    `pending` are the keys whose new values take effect at the next start.
    """

    done: int = 0
    refused: int = 0
    last: float | None = None
    problems: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The whole. `state` is starting, listening or ending; `healthy`: the journal's writer works."""

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
        """Whether configuration, journal and handlers stand, and the end has not begun."""
        return self.state == "listening"


class Clock(Protocol):
    """The loop's seconds as Unix time."""

    def __call__(self, moment: float, /) -> float: ...


def group_statuses(manager: GroupManager, now: float, wall: Clock) -> tuple[GroupStatus, ...]:
    """All groups, by name."""
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
        refused=sum(is_troubled(member) and not member.suspended for member in state.members),
        events=runner.events,
        failures=state.failures or state.flaps,
        pause=0.0 if state.paused_until is None else max(0.0, round(state.paused_until - now, 1)),
        stream_opened=None if opened is None else wall(opened),
    )


def handler_statuses(delivery: Delivery) -> tuple[HandlerStatus, ...]:
    """All handlers, in their order."""
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
    """All servers that were asked anything, by host."""
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
    """The access tokens of all accounts that have one."""
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
    """Mailboxes that are not listened to, MOST_LISTED at most."""

    def each() -> Iterator[MailboxProblem]:
        for runner in runners:
            for member in runner.state.members:
                if is_troubled(member):
                    yield _mailbox_problem(member, runner.group.name, now)
        for mailbox, why in missing.items():
            yield MailboxProblem(
                mailbox=mailbox,
                group=None,
                state="missing",
                code=why.code,
                text=why.text,
                failures=0,
                retry=None,
            )

    return tuple(islice(each(), MOST_LISTED))


def is_troubled(member: Member) -> bool:
    """Whether it cannot be listened to just now, and the server said why."""
    return member.suspended or (member.failure is not None and member.subscription is None)


def _mailbox_problem(member: Member, group: str, now: float) -> MailboxProblem:
    why = member.failure
    return MailboxProblem(
        mailbox=member.mailbox,
        group=group,
        state="suspended" if member.suspended else "refused",
        code="" if why is None else why.code,
        text="" if why is None else why.text,
        failures=member.failures,
        retry=max(0.0, round(member.due - now, 1)),
    )
