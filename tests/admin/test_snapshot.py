"""Content of snapshots, and the time to take one of 10,000 mailboxes, during which events wait."""

import time
from dataclasses import dataclass, field, replace
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing

from listener.admin.metrics import render
from listener.admin.snapshot import MAX_LISTED, TokenStatus, group_statuses, mailbox_problems, token_statuses
from listener.config.secrets import Secret
from listener.ews.codes import Failure
from listener.exchange.auth import Account, Accounts
from listener.exchange.auth.basic import Basic
from listener.exchange.auth.oauth import OAuth, Token, Tokens
from listener.exchange.auth.scheme import Credentials
from listener.groups.affinity import Group
from listener.groups.group import GroupState
from listener.groups.manager import GroupManager
from listener.groups.runners import Runners
from tests.admin.statuses import snapshot

GROUPS = 50
DENIED = Failure(code="ErrorAccessDenied", text="no")


@dataclass
class Runner:
    """The attributes of a GroupRunner that a snapshot reads."""

    group: Group
    state: GroupState
    since: float = 10.0
    opened: float | None = 20.0
    events: int = 5
    streaming: bool = True

    @property
    def mailboxes_streaming(self) -> int:
        return len(self.state.live)


@dataclass
class Fleet:
    """The attributes of a GroupManager that a snapshot reads."""

    runners: Runners = field(default_factory=Runners)
    missing: dict[str, Failure] = field(default_factory=dict)


def fleet(*, groups: int = GROUPS, suspended: int = 1) -> Fleet:
    manager = Fleet()
    for number in range(groups):
        names = tuple(f"user{member:03}.{number:02}@contoso.example" for member in range(200))
        group = Group(f"site/{number}", "https://mail.contoso.example/EWS/Exchange.asmx", "site", names)
        state = GroupState.start(names)
        members = tuple(
            replace(member, suspended=True, failure=DENIED, due=400.0, failures=2)
            if at < suspended
            else replace(member, subscription=f"id-{number}-{at}")
            for at, member in enumerate(state.members)
        )
        manager.runners.by_group[group.name] = Runner(group, replace(state, members=members))  # type: ignore[assignment]
    return manager


def take(manager: Fleet) -> Any:
    runners = cast(Any, manager.runners.by_group.values())
    groups = group_statuses(cast(GroupManager, manager), 100.0, lambda time: time + 1000)
    return snapshot(groups=groups, mailbox_problems=mailbox_problems(runners, manager.missing, 100.0))


async def test_groups_and_mailbox_problems() -> None:
    manager = fleet(groups=2, suspended=3)
    manager.missing["missing@contoso.example"] = Failure(code="InvalidUser")
    it = take(manager)
    group = it.groups[0]
    assert (group.mailboxes, group.subscribed, group.streaming, group.suspended, group.refused) == (
        200,
        197,
        197,
        3,
        0,
    )
    assert (group.since, group.stream_opened) == (1010.0, 1020.0)
    assert [(t.state, t.code, t.retry) for t in it.mailbox_problems] == [
        *[("suspended", "ErrorAccessDenied", 300.0)] * 6, ("missing", "InvalidUser", None),
    ]  # fmt: skip


async def test_number_of_listed_mailbox_problems_is_limited() -> None:
    assert len(take(fleet(groups=10, suspended=200)).mailbox_problems) == MAX_LISTED


@pytest.mark.parametrize("suspended", [1, 200])
async def test_snapshot_of_ten_thousand_mailboxes_is_fast(suspended: int) -> None:
    manager = fleet(suspended=suspended)

    def best(work: Any) -> float:
        durations = []
        for _ in range(5):
            started_at = time.perf_counter()
            work()
            durations.append(time.perf_counter() - started_at)
        return min(durations)

    it = take(manager)
    figures = {
        "snapshot": best(lambda: take(manager)),
        "json": best(lambda: msgspec.json.encode(it)),
        "metrics": best(lambda: render(it)),
    }
    print({name: f"{seconds * 1000:.1f} ms" for name, seconds in figures.items()})
    assert sum(figures.values()) < 0.1
    # A thread renders the metrics. Only these two block the event loop.
    assert figures["snapshot"] + figures["json"] < 0.05


async def test_remaining_lifetime_of_tokens(autojump_clock: trio.testing.MockClock) -> None:
    async def fetch(_claims: str | None) -> Token:
        return Token("hush", 3600)

    with_token, without = OAuth(tokens := Tokens(fetch, "app"), "app"), Basic(Credentials("u", Secret("p")))
    accounts = Accounts({"a": Account(with_token), "b": Account(without)}.__getitem__)
    assert token_statuses(accounts) == ()
    accounts.of("a")
    accounts.of("b")
    assert token_statuses(accounts) == ()
    await tokens.get()
    await trio.sleep(600)
    assert token_statuses(accounts) == (TokenStatus(name="app", remaining=3000.0),)
    await trio.sleep(6000)
    assert token_statuses(accounts) == (TokenStatus(name="app", remaining=0.0),)


def test_one_series_per_mailbox() -> None:
    text, _ = render(snapshot(), [(f"user{n}@contoso.example", True) for n in range(10_000)])
    assert text.count(b"mailbox_streaming{") == 10_000
