"""One bad mailbox among 199 good ones, servers that want everybody apart, and mailboxes that move."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import trio
import trio.testing

from listener.simulator.settings import Network, Rules, Settings, Wire
from tests.virtual.world import World, world

SECONDS = 30.0


async def delays(there: World, good: list[str], seconds: float = SECONDS) -> list[float]:
    """Makes an event of a good mailbox ten times a second, and tells how late each came."""
    made: dict[str, float] = {}
    started_at, number = trio.current_time(), 0
    while trio.current_time() - started_at < seconds:
        for line in there.make(good[number % len(good)], "CreatedEvent"):
            made.setdefault(line.item_id or line.folder_id or "", trio.current_time())
        number += 1
        await trio.sleep(0.1)
    await trio.sleep(2)
    lost = made.keys() - there.notes.came.keys()
    assert not lost, f"{len(lost)} of {len(made)}"
    return [there.notes.came[item] - moment for item, moment in made.items()]


async def repeat(order: Callable[[], object], every: float = 5.0) -> None:
    for _ in range(round(SECONDS / every)):
        order()
        await trio.sleep(every)


FAILING = ["ErrorSubscriptionNotFound", "ErrorInternalServerTransientError", "ErrorReadEventsFailed"]


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("code", FAILING)
async def test_repeatedly_failing_subscription_delays_no_other_mailbox(
    autojump_clock: trio.testing.MockClock, code: str, ends: bool
) -> None:
    settings = Settings(mailboxes=200, backends=1, network=Network(latency=0.05))
    async with world(settings) as there:
        await there.until_streaming()
        bad, good = there.mailboxes[77], [m for m in there.mailboxes if m != there.mailboxes[77]]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                repeat,
                lambda: there.order("stream_code", code=code, mailbox=bad, ends=ends, within=4.0),
            )
            late = await delays(there, good)
        assert max(late) <= 1
        print(f"{code}: {max(late):.3f} s at most, {len(there.daemon.runners.by_group)} groups")
        await there.until_streaming()


@pytest.mark.parametrize(
    "code", ["ErrorNonExistentMailbox", "ErrorInternalServerError", "ErrorReadEventsFailed"]
)
async def test_mailbox_that_cannot_be_subscribed_delays_no_other(
    autojump_clock: trio.testing.MockClock, code: str
) -> None:
    settings = Settings(mailboxes=200, backends=1, network=Network(latency=0.05))
    async with world(settings) as there:
        bad, good = there.mailboxes[77], [m for m in there.mailboxes if m != there.mailboxes[77]]
        there.order("mailbox_disabled", mailbox=bad, seconds=SECONDS, code=code)
        await there.until_streaming(199)
        late = await delays(there, good)
        assert max(late) <= 1
        print(f"{code}: {max(late):.3f} s at most")
        await there.until_streaming(within=600)
        told = [(event.type, event.mailbox) for event in there.notes.lifecycle]
        if code == "ErrorNonExistentMailbox":
            assert told == [("exchange.listener.suspended", bad), ("exchange.listener.resumed", bad)]
        else:
            assert told == []
        made = there.touch(bad)
        await trio.sleep(1)
        assert made <= there.notes.came.keys()


@pytest.mark.parametrize("which", [0, 77])
async def test_revoked_impersonation_delays_no_other_mailbox(
    autojump_clock: trio.testing.MockClock, which: int
) -> None:
    """That of the anchor, in whose name the stream is asked for, and that of somebody else."""
    settings = Settings(mailboxes=200, backends=1, network=Network(latency=0.05))
    async with world(settings) as there:
        await there.until_streaming()
        await trio.sleep(15)  # what ends sooner is not opened again at once
        bad, good = there.mailboxes[which], [m for m in there.mailboxes if m != there.mailboxes[which]]
        there.order("impersonation_withdrawn", mailbox=bad, seconds=SECONDS)
        there.order("stream_code", code="ErrorSubscriptionNotFound", mailbox=bad)
        async with trio.open_nursery() as nursery:
            await trio.sleep(15)
            nursery.start_soon(repeat, lambda: there.order("closed", within=4.0), 15.0)
            late = await delays(there, good)
        assert max(late) <= 1
        print(f"{max(late):.3f} s at most")
        assert there.notes.lifecycle[0].mailbox == bad
        await there.until_streaming(within=600)


async def test_retry_delay_of_a_failing_mailbox_grows(autojump_clock: trio.testing.MockClock) -> None:
    """In half a day: from every quarter of a minute to every hour."""
    async with world(Settings(mailboxes=10, backends=1, heartbeat=300.0)) as there:
        bad = there.mailboxes[7]
        there.order("mailbox_disabled", mailbox=bad, seconds=43200)
        started_at = trio.current_time()
        await there.until_streaming(9)
        await trio.sleep(43200)
        attempts = [
            moment for moment, _, what in there.wire.asked if what == "Subscribe" and moment > started_at + 1
        ]
        pauses = [b - a for a, b in pairwise(attempts)]
        assert len(attempts) < 70
        assert min(pauses[-5:]) >= 1800
        assert max(pauses) <= 3601
        assert [event.type for event in there.notes.lifecycle] == ["exchange.listener.suspended"], "told once"


GAPS = {"exchange.listener.gap", "exchange.listener.recovered"}


@pytest.mark.parametrize("mailboxes", [3, 24])
async def test_server_that_allows_one_user_per_connection_gets_groups_of_one(
    autojump_clock: trio.testing.MockClock, mailboxes: int
) -> None:
    settings = Settings(mailboxes=mailboxes, backends=2, rules=Rules(one_user_per_stream=True))
    async with world(settings) as there:
        took = await there.until_streaming(within=300)
        sizes = [len(runner.group.mailboxes) for runner in there.daemon.runners.by_group.values()]
        assert sizes == [1] * mailboxes
        # What was subscribed before the server's wish was known is lost with its subscription: gaps, and no more.
        assert {event.type for event in there.notes.lifecycle} <= GAPS, "nobody was taken for bad"
        await trio.sleep(3600)
        assert there.streaming == mailboxes
        made = there.touch()
        await trio.sleep(1)
        assert made <= there.notes.came.keys()
        print(f"{mailboxes} groups of one after {took:.1f} s")


# --- moves


@pytest.mark.parametrize("wire", [Wire(), Wire(ends_after_bad_id=False)])
@pytest.mark.parametrize("which", ["anchor", "other"])
async def test_mailbox_that_moves_to_another_server(
    autojump_clock: trio.testing.MockClock, which: str, wire: Wire
) -> None:
    async with world(Settings(mailboxes=60, backends=3, wire=wire)) as there:
        await there.until_streaming()
        await trio.sleep(60)
        homes = there.exchange.directory.homes
        source, target, third = there.exchange.directory.backends
        members = sorted(mailbox for mailbox in there.mailboxes if homes[mailbox] == source)
        mover = members[0] if which == "anchor" else members[5]
        untouched = [stream for stream in there.exchange.streams if stream.backend == third]
        before = {runner.group.name for runner in there.daemon.runners.by_group.values()}
        there.order("mailbox_move", mailbox=mover, backend=target.partition(".")[0])
        stayed = [mailbox for mailbox in there.mailboxes if mailbox != mover]
        late = await delays(there, stayed, 30)
        assert max(late) <= 1
        assert there.streaming == 60
        assert [stream for stream in there.exchange.streams if stream.backend == third] == untouched
        runners = there.daemon.runners.by_group
        assert set(runners) == before, "it has joined the group that there was"
        (home,) = (runner for runner in runners.values() if mover in runner.group.mailboxes)
        assert home.group.grouping_information.startswith(target.partition(".")[0].upper())
        (left,) = (runner for runner in runners.values() if members[1] in runner.group.mailboxes)
        assert mover not in {member.mailbox for member in left.state.members}
        assert left.state.anchor == (members[1] if which == "anchor" else members[0])
        (sub,) = there.exchange.subscriptions.of(mover)
        assert sub.backend == target
        assert there.subscribes(since=60.0) == 1, "only who moved is subscribed again"
        await trio.sleep(1800)  # the next window is opened in the name of an anchor that is there
        assert there.streaming == 60


async def test_back_end_that_fails(autojump_clock: trio.testing.MockClock) -> None:
    """Its mailboxes live on others now, which nobody tells: they stream at once, and are sorted in time."""
    async with world(Settings(mailboxes=60, backends=3), affinity={"refresh": 3600}) as there:
        await there.until_streaming()
        await trio.sleep(60)
        there.order("failover", backend="ex01", seconds=86400.0)
        took = await there.until_streaming(within=30)
        assert {stream.backend[:4] for stream in there.exchange.streams} == {"ex02", "ex03"}
        await trio.sleep(2 * 3600)
        assert there.streaming == 60
        homes = there.exchange.directory.homes
        assert all(each.backend == homes[each.mailbox] for each in there.exchange.subscriptions)
        print(f"a fail-over of a third is over after {took:.2f} s")


async def test_unannounced_move_is_found_by_the_refresh(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world(Settings(mailboxes=30, backends=3), affinity={"refresh": 3600}) as there:
        await there.until_streaming()
        mover = there.mailboxes[4]
        homes = there.exchange.directory.homes
        homes[mover] = next(each for each in there.exchange.directory.backends if each != homes[mover])
        await trio.sleep(3700)
        backends = {each.backend for each in there.exchange.subscriptions.of(mover) if each.stream}
        assert backends == {homes[mover]}
        assert there.streaming == 30
