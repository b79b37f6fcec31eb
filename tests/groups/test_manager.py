"""The group manager on a virtual clock, with fakes for Autodiscover and the group runners."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing

from listener.access import AccessKind
from listener.backoff import Backoff
from listener.ews.codes import Failure
from listener.groups.actions import Discovered, Doubted, Joined, Left, Outcome, Stop
from listener.groups.affinity import Group
from listener.groups.checkpoint import RestoredGroup
from listener.groups.group import GroupState, SavedSubscriptions
from listener.groups.manager import GroupManager
from listener.groups.member import Policy
from listener.groups.runners import Runners
from listener.groups.settings import ManagerSettings
from listener.placement import Placement

EWS = "https://mail.example/EWS"
UNKNOWN = Failure(code="InvalidUser", text="no such user")


def at(site: str, *mailboxes: str) -> tuple[Placement, ...]:
    return tuple(Placement(EWS, site, mailbox) for mailbox in mailboxes)


@dataclass
class Runner:
    """A fake GroupRunner, which ends `stop_delay` seconds after a Stop."""

    group: Group
    stop_delay: float
    before: RestoredGroup | None = None
    posted: list[Outcome] = field(default_factory=list)
    ended: bool = False
    finished: bool = False
    mailboxes_streaming: int = 0
    state: Any = field(default_factory=lambda: SimpleNamespace(anchor="", abandoned=()))
    client: Any = field(default_factory=lambda: SimpleNamespace(cookies=()))
    ids: dict[str, str] = field(default_factory=dict)
    taken_over_from: Any = None
    _stop: trio.Event = field(default_factory=trio.Event)

    def post(self, outcome: Outcome) -> None:
        self.posted.append(outcome)
        if isinstance(outcome, Stop):
            self._stop.set()

    def subscriptions(self) -> dict[str, str]:
        return self.ids

    def take_over(self, crashed: "Runner") -> None:
        self.taken_over_from = crashed

    async def run(self) -> None:
        await self._stop.wait()
        await trio.sleep(self.stop_delay)
        self.ended = True


@dataclass
class Directory:
    """A fake Autodiscover with changeable `placements`. A reply takes `delay` seconds."""

    placements: dict[str, Placement | Failure] = field(default_factory=dict)
    delay: float = 0.1
    asked: list[tuple[float, list[str]]] = field(default_factory=list)
    fell_back: list[bool] = field(default_factory=list)

    def move_in(self, *placements: Placement) -> None:
        self.placements |= {placement.mailbox: placement for placement in placements}

    async def discover(
        self, mailboxes: Sequence[str], /, *, fall_back: bool = True
    ) -> dict[str, Placement | Failure]:
        self.fell_back.append(fall_back)
        self.asked.append((round(trio.current_time()), list(mailboxes)))
        await trio.sleep(self.delay)
        return {mailbox: self.placements.get(mailbox, UNKNOWN) for mailbox in mailboxes}


@dataclass
class Run:
    manager: GroupManager
    runners: list[Runner]
    ended: Callable[[], bool]
    gone: list[str]

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        return {runner.group.name: runner.group.mailboxes for runner in self.runners}


@dataclass
class CatchUp:
    """A fake catch-up. `gone` has the dropped mailboxes in order."""

    gone: list[str]

    def subscribed(self, mailbox: str, *, new: bool) -> None: ...
    def gap(self, mailbox: str, since: float | None, reason: str) -> None: ...
    def resume(self, mailboxes: Iterable[str]) -> None: ...

    def drop(self, mailbox: str) -> None:
        self.gone.append(mailbox)

    def unfilled(self) -> dict[str, float]:
        return {}

    async def stored_folders(self, mailbox: str) -> set[str]:
        return set()


class FakeCheckpointer:
    """A fake checkpointer that writes nothing."""

    def note(self, name: str) -> None: ...


def settings(kind_of: Callable[[str], AccessKind], refresh: float) -> ManagerSettings:
    policy = Policy(
        backoff=Backoff(first=1, factor=2, cap=120), suspended=Backoff(first=60, factor=2, cap=3600)
    )
    spec = SimpleNamespace(access=SimpleNamespace(kind_of=kind_of))
    return ManagerSettings(spec=spec, policy=policy, refresh=refresh)  # type: ignore[arg-type]


@asynccontextmanager
async def running(
    directory: Directory,
    *sought: str,
    known: tuple[Placement, ...] = (),
    group_size: int = 200,
    stop_delay: float = 0.0,
    refresh: float = 1e6,
    kind_of: Callable[[str], AccessKind] = lambda _mailbox: "impersonation",
    restored: Sequence[RestoredGroup] = (),
) -> AsyncIterator[Run]:
    runners: list[Runner] = []
    gone: list[str] = []
    ended = False

    def new_runner(group: Group, _manager: GroupManager, before: RestoredGroup | None = None) -> Any:
        runners.append(Runner(group, stop_delay, before))
        return runners[-1]

    manager = GroupManager(
        known=known,
        sought=sought,
        settings=settings(kind_of, refresh),
        group_size=group_size,
        discovery=directory,
        new_runner=new_runner,
        runners=Runners(),
        catch_up=CatchUp(gone),
        checkpointer=FakeCheckpointer(),  # type: ignore[arg-type]
        restored=restored,
    )

    async def run() -> None:
        nonlocal ended
        await manager.run()
        ended = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield Run(manager, runners, lambda: ended, gone)
        nursery.cancel_scope.cancel()


def logged(lines: Sequence[Any], name: str) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key not in ("event", "log_level")}
        for line in lines
        if line["event"] == name
    ]


async def test_each_placement_gets_its_own_groups(autojump_clock: trio.testing.MockClock) -> None:
    directory = Directory()
    directory.move_in(*at("DAG1", "ann", "bob", "cat"), *at("DAG2", "dan"))
    async with running(directory, "dan", "cat", "bob", "ann", group_size=2) as run:
        await trio.sleep(1)
        assert run.groups == {"DAG1/1": ("ann", "bob"), "DAG1/2": ("cat",), "DAG2/1": ("dan",)}
        assert list(run.manager.runners.by_group) == list(run.groups)
        assert run.manager.mailboxes == 4
        run.runners[0].mailboxes_streaming, run.runners[2].mailboxes_streaming = 2, 1
        assert run.manager.streaming == 3
        await trio.sleep(100_000)
    assert len(directory.asked) == 1


async def test_configured_placements_run_before_discovery(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory(delay=1000)
    async with running(directory, "cat", known=at("site", "ann", "bob")) as run:
        await trio.sleep(1)
        assert run.groups == {"site/1": ("ann", "bob")}
        assert run.manager.mailboxes == 3


async def test_without_mailboxes_to_find_there_is_no_discovery(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory()
    async with running(directory, known=at("site", "ann")) as run:
        await trio.sleep(100_000)
        assert run.groups == {"site/1": ("ann",)}
        assert not run.ended()
    assert directory.asked == []


async def test_a_mailbox_found_later_joins_a_group_with_room(autojump_clock: trio.testing.MockClock) -> None:
    directory = Directory()
    directory.move_in(*at("DAG1", "bob", "cat", "dan"))
    async with running(directory, "ann", "bob", "cat", "dan", group_size=2) as run:
        await trio.sleep(30)
        assert run.groups == {"DAG1/1": ("bob", "cat"), "DAG1/2": ("dan",)}
        assert run.manager.missing == {"ann": UNKNOWN}
        directory.move_in(*at("DAG1", "ann"))
        await trio.sleep(60)
        assert run.groups == {"DAG1/1": ("bob", "cat"), "DAG1/2": ("ann", "dan")}
        assert [runner.posted for runner in run.runners] == [[], [Joined(("ann",))]]
        assert run.manager.missing == {}
    assert [mailboxes for _, mailboxes in directory.asked] == [["ann", "bob", "cat", "dan"], ["ann"]]


async def test_a_mailbox_found_later_gets_a_new_group_if_the_others_are_full(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory()
    directory.move_in(*at("DAG1", "bob", "cat"))
    async with running(directory, "ann", "bob", "cat", "dan", group_size=2) as run:
        await trio.sleep(30)
        directory.move_in(*at("DAG1", "ann"), *at("DAG2", "dan"))
        await trio.sleep(60)
        assert run.groups == {"DAG1/1": ("bob", "cat"), "DAG1/2": ("ann",), "DAG2/1": ("dan",)}
        assert run.runners[0].posted == []


async def test_missing_mailboxes_are_searched_with_growing_delay(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory(delay=0)
    async with running(directory, "ann"):
        await trio.sleep(20_000)
    assert [time for time, _ in directory.asked] == [
        0, 60, 180, 420, 900, 1860, 3780, 7380, 10980, 14580, 18180,
    ]  # fmt: skip


async def test_a_missing_mailbox_is_logged_once_until_the_reason_changes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory()
    directory.move_in(*at("DAG1", "ann"))
    with structlog.testing.capture_logs() as lines:
        async with running(directory, "ann", "bob", "cat"):
            await trio.sleep(1000)
            directory.placements["bob"] = Failure(code="RedirectUrl")
            await trio.sleep(10_000)
    assert logged(lines, "discovery.failed") == [
        {"mailbox": "bob", "code": "InvalidUser", "text": "no such user"},
        {"mailbox": "cat", "code": "InvalidUser", "text": "no such user"},
        {"mailbox": "bob", "code": "RedirectUrl", "text": ""},
    ]
    assert logged(lines, "discovery.found")[0] == {"mailboxes": 1, "missing": 2, "codes": {"InvalidUser": 2}}


async def test_stop_stops_all_groups_and_waits_for_them(autojump_clock: trio.testing.MockClock) -> None:
    directory = Directory()
    directory.move_in(*at("DAG1", "ann"), *at("DAG2", "bob"))
    async with running(directory, "ann", "bob", stop_delay=5) as run:
        await trio.sleep(10)
        run.manager.stop(unsubscribe=False)
        await trio.sleep(4)
        assert not run.ended()
        await trio.sleep(2)
        assert run.ended()
        assert [runner.posted for runner in run.runners] == [[Stop(unsubscribe=False)]] * 2
        assert all(runner.ended for runner in run.runners)


async def test_stop_during_discovery(autojump_clock: trio.testing.MockClock) -> None:
    directory = Directory(delay=1000)
    async with running(directory, "cat", known=at("site", "ann"), stop_delay=1) as run:
        await trio.sleep(10)
        run.manager.stop(unsubscribe=True)
        await trio.sleep(2)
        assert run.ended()
        assert [(runner.posted, runner.ended) for runner in run.runners] == [([Stop(unsubscribe=True)], True)]


async def test_a_move_found_after_the_end_starts_no_group(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory(delay=10)
    directory.move_in(*at("DAG1", "ann", "bob"))
    async with running(directory, "ann", "bob", stop_delay=30) as run:
        await trio.sleep(11)
        directory.move_in(*at("DAG2", "bob"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.manager.find, run.runners[0].group, ("bob",))
            await trio.sleep(1)
            run.manager.stop(unsubscribe=False)
            run.runners[0].finished = True
        await trio.sleep(60)
        assert run.ended()
        assert len(run.runners) == 1


async def test_stop_between_two_searches(autojump_clock: trio.testing.MockClock) -> None:
    async with running(Directory(), "ann") as run:
        await trio.sleep(10)
        run.manager.stop(unsubscribe=True)
        await trio.sleep(1)
        assert run.ended()
        assert run.runners == []


async def test_a_moved_mailbox_joins_its_new_group_and_the_others_stay(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory()
    directory.move_in(*at("DAG1", "ann", "bob"), *at("DAG2", "dan"))
    async with running(directory, "ann", "bob", "dan") as run:
        await trio.sleep(1)
        directory.move_in(*at("DAG2", "ann"))
        first = run.runners[0]
        assert await run.manager.find(first.group, ("ann", "bob")) == Discovered(gone=("ann",))
        assert run.groups == {"DAG1/1": ("bob",), "DAG2/1": ("ann", "dan")}
        assert [runner.posted for runner in run.runners] == [[], [Joined(("ann",))]]


async def test_a_mailbox_that_is_not_found_stays_in_its_group(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory()
    directory.move_in(*at("DAG1", "ann", "bob"))
    async with running(directory, "ann", "bob", known=at("DAG9", "eve")) as run:
        await trio.sleep(1)
        directory.placements.pop("bob")
        (group,) = (runner.group for runner in run.runners if runner.group.name == "DAG1/1")
        assert await run.manager.find(group, ("bob",)) == Discovered(unknown=(("bob", UNKNOWN),))
        assert await run.manager.find(run.runners[0].group, ("eve",)) == Discovered()
        assert run.groups == {"DAG9/1": ("eve",), "DAG1/1": ("ann", "bob")}


async def test_a_mailbox_that_was_split_off_has_a_closed_group(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory()
    directory.move_in(*at("DAG1", "ann", "bob"))
    async with running(directory, "ann", "bob", "cat") as run:
        await trio.sleep(1)
        run.manager.split(run.runners[0].group, ("bob",))
        assert run.groups == {"DAG1/1": ("ann",), "DAG1/2": ("bob",)}
        directory.move_in(*at("DAG1", "cat"))
        await trio.sleep(100)
        assert run.groups == {"DAG1/1": ("ann", "cat"), "DAG1/2": ("bob",)}


async def test_placements_are_refreshed_at_the_interval_and_a_move_is_posted_to_the_group(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory()
    names = [f"user{n:03}" for n in range(250)]
    directory.move_in(*at("DAG1", *names))
    async with running(directory, *names, refresh=3600) as run:
        await trio.sleep(3000)
        directory.move_in(*at("DAG2", "user001"))
        await trio.sleep(3000)
    assert [time for time, _ in directory.asked] == [0, 1200, 2400, 3600, 4800]
    assert [len(asked) for _, asked in directory.asked] == [250, 100, 100, 50, 100]
    assert run.runners[0].posted == [Doubted(("user001",))]
    assert directory.fell_back == [True, False, False, False, False]


async def test_temporary_failures_of_autodiscover_are_retried_soon(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory(delay=0)
    directory.placements["ann"] = Failure(code="ConnectTimeout")
    async with running(directory, "ann"):
        await trio.sleep(100)
    assert [time for time, _ in directory.asked] == [0, 1, 3, 7, 15, 31, 63]


async def test_a_busy_autodiscover_is_retried_after_the_requested_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory(delay=0)
    directory.placements["ann"] = Failure(code="Http503", wait=300.0)
    async with running(directory, "ann"):
        await trio.sleep(700)
    assert [time for time, _ in directory.asked] == [0, 300, 600]


async def test_a_crash_of_one_group_does_not_stop_the_others(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Directory()
    directory.move_in(*at("DAG1", "ann"), *at("DAG2", "bob"))
    crashed: list[str] = []
    run_well = Runner.run

    async def run_badly_once(self: Runner) -> None:
        if self.group.name == "DAG1/1" and not crashed:
            await trio.sleep(5)
            crashed.append(self.group.name)
            raise LookupError("a mistake")
        await run_well(self)

    monkeypatch.setattr(Runner, "run", run_badly_once)
    with structlog.testing.capture_logs() as lines:
        async with running(directory, "ann", "bob") as run:
            await trio.sleep(10)
            assert [runner.ended for runner in run.runners] == [False, False]
            await trio.sleep(100)
            assert [runner.group.name for runner in run.runners] == ["DAG1/1", "DAG2/1", "DAG1/1"]
            assert run.manager.runners.by_group["DAG1/1"] is run.runners[2]
    assert [line["group"] for line in logged(lines, "group.crashed")] == ["DAG1/1"]


async def test_a_claimed_id_is_taken_from_its_former_owner(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory()
    directory.move_in(*at("DAG1", "ann", "bob"), Placement("https://other.example/EWS", "DAG2", "cat"))
    async with running(directory, "ann", "bob", "cat", group_size=1) as run:
        await trio.sleep(1)
        ann, bob, cat = run.runners
        for runner, mailbox in ((ann, "ann"), (cat, "cat")):
            run.manager.claim(runner.group, "1", mailbox)
            runner.state = SimpleNamespace(subscription_of={mailbox: "1"}.get)
        run.manager.claim(bob.group, "1", "bob")
        assert [runner.posted for runner in run.runners] == [[Doubted(("ann",), taken=True)], [], []]
        assert [run.manager.owner(runner.group, "1") for runner in run.runners] == ["bob", "bob", "cat"]
        run.manager.release(ann.group, "1", "ann")  # the id is not ann's any more
        run.manager.release(cat.group, "1", "cat")
        assert [run.manager.owner(runner.group, "1") for runner in run.runners] == ["bob", "bob", None]


async def test_stop_while_a_crashed_group_waits_for_its_restart(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Directory()
    directory.move_in(*at("DAG1", "ann"))

    async def run_badly(_self: Runner) -> None:
        raise LookupError("a mistake")

    monkeypatch.setattr(Runner, "run", run_badly)
    async with running(directory, "ann") as run:
        await trio.sleep(5)
        run.manager.stop(unsubscribe=True)
        await trio.sleep(1)
        assert run.ended()


async def test_mailboxes_join_and_leave_while_the_others_keep_streaming(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory()
    directory.move_in(*at("DAG1", "ann", "bob", "cat"), *at("DAG2", "dan", "eve"))
    async with running(directory, "ann", "bob", "dan", known=at("DAG9", "zoe")) as run:
        await trio.sleep(1)
        run.manager.change(at("DAG9", "yan"), ("bob", "cat", "dan", "eve"))
        await trio.sleep(1)
        assert run.manager.mailboxes == 5
        assert {name: runner.group.mailboxes for name, runner in run.manager.runners.by_group.items()} == {
            "DAG1/1": ("bob", "cat"),
            "DAG2/1": ("dan", "eve"),
            "DAG9/1": ("yan",),
        }
        zoe, first, second, yan = run.runners
        assert first.posted == [Left(("ann",)), Joined(("cat",))]
        assert second.posted == [Joined(("eve",))]
        assert (zoe.posted, yan.posted) == (
            [Stop(unsubscribe=True)],
            [],
        )  # two groups in spite of the same name
        assert run.gone == ["ann", "zoe"]
        assert directory.asked[1:] == [(1, ["cat", "eve"])]


async def test_an_empty_group_ends_and_its_name_can_be_reused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory()
    directory.move_in(*at("DAG1", "ann", "bob"))
    async with running(directory, "ann", stop_delay=5) as run:
        await trio.sleep(1)
        run.manager.change((), ())
        await trio.sleep(1)
        assert run.manager.runners.by_group == {}
        run.manager.change((), ("bob",))
        await trio.sleep(100)
        assert [runner.ended for runner in run.runners] == [True, False]
        assert run.manager.runners.by_group == {"DAG1/1": run.runners[1]}
        run.manager.stop(unsubscribe=True)
        await trio.sleep(6)
        assert run.ended()


async def test_a_mailbox_removed_during_discovery_is_not_added_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory(delay=10)
    directory.move_in(*at("DAG1", "ann", "bob"))
    async with running(directory, "ann", "bob") as run:
        await trio.sleep(5)
        run.manager.change((), ("ann",))
        await trio.sleep(30)
        assert run.groups == {"DAG1/1": ("ann",)}
        directory.move_in(*at("DAG2", "ann"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.manager.find, run.runners[0].group, ("ann",))
            await trio.sleep(5)
            run.manager.change((), ("bob",))
        run.manager.split(run.runners[0].group, ("ann",))
        await trio.sleep(30)
        assert {name: r.group.mailboxes for name, r in run.manager.runners.by_group.items()} == {
            "DAG1/1": ("bob",)
        }


async def test_a_change_starts_the_search_for_missing_mailboxes_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory()
    async with running(directory, "ann") as run:
        await trio.sleep(50)
        directory.move_in(*at("DAG1", "ann", "bob"))
        run.manager.change((), ("ann", "bob"))
        await trio.sleep(1)
        assert run.groups == {"DAG1/1": ("ann", "bob")}
        assert run.manager.missing == {}


async def test_another_access_type_needs_another_group(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory()
    directory.move_in(*at("DAG1", "ann", "bob"))
    kinds: dict[str, AccessKind] = {"bob": "delegate"}

    def kind_of(mailbox: str) -> AccessKind:
        return kinds.get(mailbox, "impersonation")

    async with running(directory, "ann", "bob", known=at("DAG9", "zoe"), kind_of=kind_of) as run:
        await trio.sleep(1)
        assert run.groups == {"DAG9/1": ("zoe",), "DAG1/1": ("bob",), "DAG1/2": ("ann",)}
        assert [runner.group.access for runner in run.runners] == [
            "impersonation",
            "delegate",
            "impersonation",
        ]
        kinds["zoe"] = kinds["ann"] = "delegate"
        run.manager.change(at("DAG9", "zoe"), ("ann", "bob"))
        await trio.sleep(1)
        assert {
            name: (r.group.access, r.group.mailboxes) for name, r in run.manager.runners.by_group.items()
        } == {
            "DAG9/1": ("delegate", ("zoe",)),
            "DAG1/1": ("delegate", ("ann", "bob")),
        }
        assert run.gone == []


def before(
    name: str, *mailboxes: str, abandoned: tuple[tuple[str, str], ...] = (), **ids: str
) -> RestoredGroup:
    """Return a restored group at DAG1."""
    return RestoredGroup(Group(name, EWS, "DAG1", mailboxes), SavedSubscriptions("ann", ids, abandoned), ())


async def test_restored_groups_run_before_discovery(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory()
    directory.move_in(*at("DAG1", "ann", "bob", "cat"))
    known = before("DAG1/3", "ann", "bob", ann="1", bob="2")
    async with running(directory, "ann", "bob", restored=[known]) as run:
        await trio.sleep(0.01)
        assert run.groups == {"DAG1/3": ("ann", "bob")}
        assert run.runners[0].before is known
        assert [run.manager.owner(run.runners[0].group, id_) for id_ in "123"] == ["ann", "bob", None]
        await trio.sleep(300)
        assert directory.asked == []


async def test_a_new_mailbox_is_searched_and_joins_a_restored_group(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory()
    directory.move_in(*at("DAG1", "ann", "bob"))
    async with running(directory, "ann", "bob", restored=[before("DAG1/1", "ann", ann="1")]) as run:
        await trio.sleep(10)
        assert [asked for _, asked in directory.asked] == [["bob"]]
        assert [runner.posted for runner in run.runners] == [[Joined(("bob",))]]


async def test_restored_placements_are_checked_soon_and_then_at_the_interval(
    autojump_clock: trio.testing.MockClock,
) -> None:
    directory = Directory()
    directory.move_in(*at("DAG2", "ann"))  # ann moved while the daemon was stopped
    known = before("DAG1/1", "ann", ann="1")
    async with running(directory, "ann", restored=[known], refresh=86400) as run:
        await trio.sleep(100_000)
        assert [moment for moment, _ in directory.asked] == [600, 600 + 86400]
        assert run.runners[0].posted[0] == Doubted(("ann",))


async def test_a_group_that_only_unsubscribes_runs_without_mailboxes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    leftovers = before("DAG1/1", abandoned=(("eve", "9"),))
    async with running(Directory(), known=at("DAG1", "ann"), restored=[leftovers]) as run:
        await trio.sleep(1)
        assert run.runners[0].before is leftovers
        # Its name is free for a group of other mailboxes, which gets its own runner.
        assert [runner.group.mailboxes for runner in run.runners] == [(), ("ann",)]
        assert [runner.posted for runner in run.runners] == [[], []]
        assert run.manager.runners.by_group == {"DAG1/1": run.runners[1]}
        run.manager.stop(unsubscribe=False)
        assert [runner.posted for runner in run.runners] == [[Stop(False)], [Stop(False)]]


async def test_a_restored_id_that_another_mailbox_gets_is_taken_from_its_owner(
    autojump_clock: trio.testing.MockClock,
) -> None:
    known = [before("DAG1/1", "ann", ann="1"), before("DAG1/2", "bob", bob="2")]
    async with running(Directory(), "ann", "bob", restored=known) as run:
        await trio.sleep(0.01)
        ann, bob = run.runners
        ann.state = SimpleNamespace(subscription_of={"ann": "1"}.get)
        run.manager.claim(bob.group, "1", "bob")  # the server has restarted
        assert ann.posted == [Doubted(("ann",), taken=True)]
        assert run.manager.owner(ann.group, "1") == "bob"


async def test_last_seen_of_a_removed_mailbox_is_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running(Directory(), known=at("site", "ann")) as run:
        run.manager.last_seen["ann"] = 5.0
        run.runners.clear()
        run.manager.change((), ())
        run.manager.last_seen["ann"] = 9.0  # its stream has ended
        await trio.sleep(1)
        assert run.manager.last_seen_by_group() == ({}, {})
        assert run.manager.last_seen == {}


async def test_a_mailbox_on_the_way_to_another_group_has_its_own_moment(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running(Directory(), known=at("site", "ann", "bob", "cat")) as run:
        await trio.sleep(1)
        run.manager.last_seen |= {"ann": 5.0, "bob": 6.0, "cat": 7.0}
        runner: Any = run.runners[0]
        runner.state = GroupState.start(("ann", "cat"))  # bob has left it, and has no other group yet
        runner.last_seen_at, runner.missing_since = 9.0, lambda: {"cat": 7.0}
        assert run.manager.last_seen_by_group() == ({"site/1": 9.0}, {"bob": 6.0, "cat": 7.0})


async def test_a_change_after_the_end_has_no_effect(autojump_clock: trio.testing.MockClock) -> None:
    async with running(Directory(), known=at("site", "ann"), stop_delay=1) as run:
        await trio.sleep(1)
        run.manager.stop(unsubscribe=True)
        run.manager.change(at("other", "zoe"), ())
        await trio.sleep(2)
        assert run.ended()
        run.manager.change(at("other", "yan"), ())
        assert len(run.runners) == 1


async def test_a_restored_mailbox_is_not_assigned_again(autojump_clock: trio.testing.MockClock) -> None:
    """With several groups, the free places of one were filled with mailboxes of another."""
    known = at("DAG1", *(f"user{n}" for n in range(6)))
    saved = [
        before("DAG1/1", "user0", "user1"),
        before("DAG1/2", "user2", "user3"),
        before("DAG1/3", "user4"),
    ]
    async with running(Directory(), known=known, group_size=3, restored=saved) as run:
        await trio.sleep(1)
        placed = sorted(mailbox for group in run.manager._groups for mailbox in group.mailboxes)
        assert placed == [placement.mailbox for placement in known]
        assert run.runners[0].posted == [Joined(("user5",))]
        assert [runner.posted for runner in run.runners[1:]] == [[], []]


async def test_a_mailbox_in_two_groups_is_logged_and_removed_from_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with structlog.testing.capture_logs() as lines:
        async with running(Directory(), known=at("site", "ann")) as run:
            await trio.sleep(1)
            (home,) = run.manager._groups
            run.manager._regroup((home, Group("site/2", EWS, "site", ("ann", "bob"))))
            assert run.groups == {"site/1": ("ann",), "site/2": ("bob",)}
    assert logged(lines, "mailboxes.duplicate") == [{"count": 1, "mailboxes": ["ann"]}]


async def test_a_group_on_another_server_gets_its_own_runner_despite_the_same_name(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """If only the hostname changes, GroupingInformation stays, but a runner keeps its EWS URL."""
    directory = Directory()
    directory.move_in(*at("DAG1", "ann"))
    async with running(directory, "ann") as run:
        await trio.sleep(1)
        directory.move_in(Placement("https://new.example/EWS", "DAG1", "ann"))
        gone = await run.manager.find(run.runners[0].group, ["ann"])
        assert gone == Discovered(("ann",))
        assert [runner.group.ews_url for runner in run.runners] == [EWS, "https://new.example/EWS"]
        assert run.runners[0].posted == []


async def test_a_crashed_group_restarts_with_its_subscriptions_and_its_present_mailboxes(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = trio.Event()
    run_well = Runner.run

    async def run_badly_once(self: Runner) -> None:
        if self.taken_over_from is None and self.group.name == "site/1":
            await crash.wait()
            raise LookupError("a mistake")
        await run_well(self)

    monkeypatch.setattr(Runner, "run", run_badly_once)
    async with running(Directory(), known=at("site", "ann", "bob", "cat")) as run:
        await trio.sleep(1)
        (runner,) = run.runners
        runner.state = GroupState.start(("ann", "bob", "cat"))
        for number, mailbox in enumerate(("ann", "bob", "cat"), 1):
            run.manager.claim(runner.group, str(number), mailbox)
        runner.ids = {"ann": "1", "bob": "2", "cat": "3"}
        run.manager.change(at("site", "ann", "cat", "dan"), ())  # bob leaves and dan joins
        run.manager.claim(runner.group, "3", "dan")  # the server gave cat's id to dan
        crash.set()
        await trio.sleep(100)
        again = run.runners[-1]
        assert again.taken_over_from is runner
        assert again.group.mailboxes == ("ann", "cat", "dan")
        assert again.before is not None
        assert again.before.saved.subscriptions == {"ann": "1"}
        assert run.manager.runners.by_group == {"site/1": again}


async def test_a_mailbox_that_crashes_discovery_does_not_delay_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Fragile(Directory):
        async def discover(
            self, mailboxes: Sequence[str], /, *, fall_back: bool = True
        ) -> dict[str, Placement | Failure]:
            if "bob" in mailboxes:
                raise UnicodeError("an umlaut in a header")
            return await super().discover(mailboxes, fall_back=fall_back)

    directory = Fragile()
    directory.move_in(*at("DAG1", "ann", "cat", "dan"))
    with structlog.testing.capture_logs() as lines:
        async with running(directory, "ann", "bob", "cat", "dan") as run:
            await trio.sleep(5)
            assert run.groups == {"DAG1/1": ("ann", "cat", "dan")}
            assert run.manager.missing == {"bob": Failure(code="InternalError", text="UnicodeError")}
            await trio.sleep(3600)
    assert {line["mailbox"] for line in logged(lines, "discovery.crashed")} == {"bob"}
    assert len(logged(lines, "discovery.crashed")) < 10


async def test_a_crashed_search_restarts(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Directory()
    directory.move_in(*at("DAG1", "ann"))
    assign, failures = GroupManager.assign, [LookupError("a mistake")]

    def badly_once(self: GroupManager, placements: Any) -> None:
        placements = list(placements)
        if placements and failures:
            raise failures.pop()
        assign(self, placements)

    monkeypatch.setattr(GroupManager, "assign", badly_once)
    with structlog.testing.capture_logs() as lines:
        async with running(directory, "ann") as run:
            await trio.sleep(100)
            assert run.groups == {"DAG1/1": ("ann",)}
    assert len(logged(lines, "manager.crashed")) == 1


async def test_split_with_each_gives_every_mailbox_its_own_group(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running(Directory(), known=at("site", "ann", "bob", "cat")) as run:
        await trio.sleep(1)
        run.manager.split(run.runners[0].group, ["bob", "cat"], each=True)
        assert run.groups == {"site/1": ("ann",), "site/2": ("bob",), "site/3": ("cat",)}
        assert [group.closed for group in run.manager._groups] == [False, True, True]
