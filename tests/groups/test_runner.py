"""A group runner on a virtual clock, with a scripted server."""

import itertools
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing

from listener.access import AccessRule, AccessRules
from listener.backoff import Backoff
from listener.event import MailboxEvent
from listener.ews.codes import ExchangeError, Failure
from listener.ews.events import EventKind, mailbox_event
from listener.exchange.throttle import Throttle
from listener.groups.actions import Discovered, Joined, Left, Stop
from listener.groups.affinity import Group
from listener.groups.group import GroupState, SavedSubscriptions
from listener.groups.member import Policy
from listener.groups.ownership import Ownership
from listener.groups.runner import GroupRunner
from listener.groups.subscription_spec import SubscriptionSpec

M = "http://schemas.microsoft.com/exchange/services/2006/messages"
T = "http://schemas.microsoft.com/exchange/services/2006/types"
POLICY = Policy(backoff=Backoff(1, 2, 60), suspended=Backoff(60, 2, 3600), stable_after=30)
SPEC = SubscriptionSpec(
    version="Exchange2013_SP1",
    access=AccessRules(AccessRule(impersonate_by="SmtpAddress")),
    events=tuple(EventKind),
)


def envelope(content: str) -> bytes:
    return (
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
        f'<m:R xmlns:m="{M}" xmlns:t="{T}"><m:ResponseMessages>{content}</m:ResponseMessages></m:R>'
        "</s:Body></s:Envelope>"
    ).encode()


def message(content: str, code: str = "NoError") -> str:
    kind = "Success" if code == "NoError" else "Error"
    return f'<m:RM ResponseClass="{kind}"><m:ResponseCode>{code}</m:ResponseCode>{content}</m:RM>'


OK = envelope(message("<m:ConnectionStatus>OK</m:ConnectionStatus>"))
CLOSED = envelope(message("<m:ConnectionStatus>Closed</m:ConnectionStatus>"))


def created(subscription: str, item: str) -> bytes:
    return envelope(
        message(
            f"<m:Notifications><m:Notification><t:SubscriptionId>{subscription}</t:SubscriptionId>"
            f"<t:MoreEvents>false</t:MoreEvents><t:CreatedEvent><t:TimeStamp>2026-01-01T00:00:00Z</t:TimeStamp>"
            f'<t:ItemId Id="{item}"/><t:ParentFolderId Id="inbox"/></t:CreatedEvent>'
            "</m:Notification></m:Notifications>"
        )
    )


def gone(*ids: str, code: str = "ErrorSubscriptionNotFound") -> bytes:
    listed = "".join(f"<m:SubscriptionId>{i}</m:SubscriptionId>" for i in ids)
    return envelope(message(f"<m:ErrorSubscriptionIds>{listed}</m:ErrorSubscriptionIds>", code))


class Body:
    """The body of a stream: the chunks that `script` yields. If the script sleeps, the server is silent."""

    def __init__(self, script: AsyncIterator[bytes]) -> None:
        self.script = script
        self.closed = False

    async def receive(self) -> bytes:
        return await anext(self.script, b"")

    async def aclose(self) -> None:
        self.closed = True


Script = Callable[["Server", tuple[str, ...]], AsyncIterator[bytes]]


async def quiet(_server: "Server", _ids: tuple[str, ...]) -> AsyncIterator[bytes]:
    while True:
        yield OK
        await trio.sleep(45)


@dataclass
class Server:
    """A fake client and its server. `log` has (operation, mailbox or ids, anchor header) of each request."""

    script: Script = quiet
    refuse: dict[str, list[Failure]] = field(default_factory=dict)
    log: list[tuple[str, Any, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    streams: list[Body] = field(default_factory=list)
    throttle: Throttle = field(default_factory=lambda: Throttle(10))
    forgot: int = 0
    clones: list[int] = field(
        default_factory=list
    )  # for each clone, how often the cookies had been discarded before
    made: Counter[str] = field(default_factory=Counter)
    concurrent: int = 0
    most: int = 0

    async def __aenter__(self) -> "Server":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def clone(self) -> "Server":
        self.clones.append(self.forgot)
        return self

    def forget_cookies(self) -> None:
        self.forgot += 1

    def note(self, operation: str, what: object, headers: Mapping[str, str]) -> None:
        assert headers["X-PreferServerAffinity"] == "true"
        self.log.append((operation, what, headers["X-AnchorMailbox"]))
        self.times.append(trio.current_time())

    async def call(self, body: bytes, headers: Mapping[str, str], read: Callable[[bytes], Any]) -> Any:
        (user,) = re.findall(rb"<t:SmtpAddress>(.*?)</t:SmtpAddress>", body)
        mailbox = user.decode()
        operation = "Subscribe" if b"<m:Subscribe" in body else "Unsubscribe"
        self.note(operation, mailbox, headers)
        self.concurrent += 1
        self.most = max(self.most, self.concurrent)
        await trio.sleep(0.1)
        self.concurrent -= 1
        if operation == "Unsubscribe":
            return read(envelope(message("")))
        if self.refuse.get(mailbox):
            raise ExchangeError(self.refuse[mailbox].pop(0))
        self.made[mailbox] += 1
        id_ = f"{mailbox}#{self.made[mailbox]}"
        return read(envelope(message(f"<m:SubscriptionId>{id_}</m:SubscriptionId>")))

    async def open_stream(self, body: bytes, headers: Mapping[str, str]) -> Body:
        ids = tuple(i.decode() for i in re.findall(rb"<t:SubscriptionId>(.*?)</t:SubscriptionId>", body))
        self.note("Stream", ids, headers)
        self.streams.append(Body(self.script(self, ids)))
        return self.streams[-1]

    @property
    def operations(self) -> list[tuple[str, Any]]:
        return [entry[:2] for entry in self.log]


def _works() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


@dataclass
class Registry:
    """A fake group manager. Only mailboxes in `moved` have another placement."""

    moved: set[str] = field(default_factory=set)
    disk: trio.Event = field(default_factory=_works)
    sought: list[str] = field(default_factory=list)
    split_off: list[str] = field(default_factory=list)
    owners: dict[str, str] = field(default_factory=dict)
    gaps: list[tuple[str, float | None, str]] = field(default_factory=list)
    unproven: set[str] = field(default_factory=set)
    known: Ownership = field(default_factory=Ownership)
    stored: dict[str, list[str]] = field(default_factory=dict)
    find_error: Exception | None = None
    changes: int = 0
    dropped: int = 0

    def gap(self, mailbox: str, since: float | None, reason: str, /) -> None:
        self.gaps.append((mailbox, since, reason))

    def resumed(self, mailboxes: Sequence[str], /) -> None: ...

    def events_dropped(self, count: int, /) -> None:
        self.dropped += count

    def claim(self, _group: Group, subscription: str, mailbox: str, /) -> None:
        self.owners[subscription] = mailbox

    def release(self, _group: Group, subscription: str, mailbox: str, /) -> None:
        if self.owners.get(subscription) == mailbox:
            del self.owners[subscription]

    def owner(self, _group: Group, subscription: str, /) -> str | None:
        return self.owners.get(subscription)

    def doubt(self, _group: Group, subscriptions: Iterable[str], /) -> None:
        self.unproven.update(subscriptions)

    def confirm(self, _group: Group, subscription: str, /) -> None:
        self.unproven.discard(subscription)

    def is_proven(self, _group: Group, subscription: str, /) -> bool:
        return subscription not in self.unproven

    def add_folders(self, mailbox: str, folders: Iterable[str | None], /) -> None:
        self.known.add_folders(mailbox, folders)

    def owns_folders(self, mailbox: str, folders: Iterable[str | None], /) -> bool | None:
        return self.known.owns_folders(mailbox, folders)

    async def folders(self, mailbox: str, /) -> Collection[str]:
        return self.stored.get(mailbox, ["inbox"])

    async def find(self, _group: Group, mailboxes: Sequence[str], /) -> Discovered:
        if self.find_error is not None:
            raise self.find_error
        self.sought += mailboxes
        await trio.sleep(1)
        return Discovered(gone=tuple(m for m in mailboxes if m in self.moved))

    def split(self, _group: Group, mailboxes: Sequence[str], /, *, each: bool = False) -> None:
        self.split_off += mailboxes

    def changed(self, _group: Group, /) -> None:
        self.changes += 1

    async def save_checkpoint(self, _group: Group, /) -> None:
        await self.disk.wait()


@dataclass
class Ingest:
    """A fake Ingest."""

    take: Callable[[Sequence[MailboxEvent]], Awaitable[None]]

    async def publish(self, batch: Sequence[MailboxEvent], /) -> None:
        await self.take(batch)


@dataclass
class Run:
    runner: GroupRunner
    server: Server
    events: list[MailboxEvent]

    @property
    def items(self) -> list[tuple[str, str | None]]:
        return [(event.mailbox, event.item_id) for event in self.events]


@asynccontextmanager
async def running(
    server: Server,
    *mailboxes: str,
    spec: SubscriptionSpec = SPEC,
    publish: Callable[[Sequence[MailboxEvent]], Awaitable[None]] | None = None,
    registry: "Registry | None" = None,
    saved: SavedSubscriptions | None = None,
) -> AsyncIterator[Run]:
    events: list[MailboxEvent] = []

    async def note(batch: Sequence[MailboxEvent]) -> None:
        events.extend(batch)

    class Loaded(random.Random):
        def random(self) -> float:
            return 1.0

    group = Group("DAG1/1", "https://mail.example/EWS", "DAG1", mailboxes)
    runner = GroupRunner(
        group,
        server,  # type: ignore[arg-type]
        spec,
        Ingest(publish or note),
        registry or Registry(),
        GroupState.start(mailboxes, POLICY, saved),
        rng=Loaded(),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run)
        yield Run(runner, server, events)
        nursery.cancel_scope.cancel()


async def test_the_anchor_first_then_the_others_in_parallel_then_one_stream(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server()
    names = [f"user{n:02}" for n in range(12)]
    async with running(server, *names, spec=replace(SPEC, subscribe_concurrency=4)) as run:
        await trio.sleep(10)
        assert server.operations[0] == ("Subscribe", "user00")
        assert server.times[1] - server.times[0] == pytest.approx(0.1)
        assert sorted(what for operation, what in server.operations[1:12]) == names[1:]
        assert server.most == 4
        assert [operation for operation, _ in server.operations[12:]] == ["Stream"]
        assert {anchor for _, _, anchor in server.log} == {"user00"}
        assert len(server.operations[-1][1]) == run.runner.mailboxes_streaming == 12
        assert server.forgot == 1


async def test_no_stream_is_opened_before_the_membership_is_durable(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server, registry = Server(), Registry(disk=trio.Event())
    async with running(server, "ann", "bob", registry=registry) as run:
        await trio.sleep(60)
        assert [operation for operation, _ in server.operations] == ["Subscribe", "Subscribe"]
        assert run.runner.missing_since() == {"ann": pytest.approx(0.1), "bob": pytest.approx(0.2)}
        registry.disk.set()
        await trio.sleep(1)
        assert server.operations[-1][0] == "Stream"


async def test_a_failing_disk_does_not_delay_the_end_of_a_group(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server, registry = Server(), Registry(disk=trio.Event())
    async with running(server, "ann", registry=registry) as run:
        await trio.sleep(60)
        run.runner.post(Stop())
        await trio.sleep(1)
        assert run.runner.finished


async def test_events_are_published_under_their_mailbox_and_those_of_unknown_ids_are_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def script(_server: Server, ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        yield OK + created(ids[1], "A") + created("stranger", "X") + created(ids[0], "B")
        await trio.sleep_forever()

    async with running(Server(script), "ann", "bob") as run:
        with structlog.testing.capture_logs() as lines:
            await trio.sleep(10)
        assert run.items == [("bob", "A"), ("ann", "B")]
        assert [
            line["subscription_id"] for line in lines if line["event"] == "stream.unknown_subscription"
        ] == ["stranger"]


async def test_an_event_without_an_id_is_counted_and_its_mailbox_compared(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def script(_server: Server, ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        yield OK + created(ids[0], "A") + created(ids[0], "") + created(ids[0], " ") + created(ids[1], "B")
        await trio.sleep_forever()

    registry = Registry()
    async with running(Server(script), "ann", "bob", registry=registry) as run:
        with structlog.testing.capture_logs() as lines:
            await trio.sleep(10)
        assert run.items == [("ann", "A"), ("bob", "B")]
        assert registry.dropped == 2
        gaps = [mailbox for mailbox, _, reason in registry.gaps if reason == "EventWithoutId"]
        assert gaps == ["ann", "ann"]
        dropped = [
            (line["events"], line["mailbox"]) for line in lines if line["event"] == "stream.events_dropped"
        ]
        assert dropped == [(1, "ann"), (1, "ann")]


async def test_events_without_a_subscription_id_cause_a_gap_of_all_mailboxes_of_the_stream(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def script(_server: Server, ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        yield OK + created("", "A") + created(ids[0], "B")
        await trio.sleep_forever()

    registry = Registry()
    async with running(Server(script), "ann", "bob", registry=registry) as run:
        await trio.sleep(10)
        assert run.items == [("ann", "B")]
        assert registry.dropped == 1
        assert [mailbox for mailbox, _, reason in registry.gaps if reason == "EventWithoutId"] == [
            "ann",
            "bob",
        ]


async def test_an_event_without_a_time_gets_its_arrival_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def script(_server: Server, ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        yield OK + created(ids[0], "A").replace(b"2026-01-01T00:00:00Z", b"2026-02-30T00:00:00Z")
        await trio.sleep_forever()

    before = datetime.now(UTC)
    async with running(Server(script), "ann") as run:
        await trio.sleep(10)
        [event] = run.events
        assert before <= datetime.fromisoformat(event.time) <= datetime.now(UTC)
        assert event.time.endswith("Z")


async def test_events_of_a_reused_id_do_not_reach_its_former_owner(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A restarted server counts ids from 1 again: ann's old id may be bob's in another group by now."""
    taken = trio.Event()

    async def script(_server: Server, ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        yield OK
        await taken.wait()
        yield created(ids[0], "A")
        await trio.sleep_forever()

    registry = Registry()
    async with running(Server(script), "ann", registry=registry) as run:
        await trio.sleep(10)
        registry.owners["ann#1"] = "bob"
        taken.set()
        await trio.sleep(1)
        assert run.items == [("bob", "A")]


async def test_closed_reopens_the_stream_for_a_whole_day_without_subscribing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def window(_server: Server, _ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        for _ in range(40):
            yield OK
            await trio.sleep(45)
        yield CLOSED

    server = Server(window)
    async with running(server, "ann", "bob"):
        await trio.sleep(24 * 3600)
    assert [operation for operation, _ in server.operations].count("Subscribe") == 2
    assert [operation for operation, _ in server.operations].count("Stream") == 48
    assert server.times[3] - server.times[2] == pytest.approx(1800)


async def test_signals_after_closed_are_read_until_the_body_ends_or_a_few_seconds_pass(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def script(server: Server, ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        yield OK
        await trio.sleep(60)
        yield CLOSED
        yield created(ids[0], f"late{len(server.streams)}")
        yield CLOSED
        await trio.sleep_forever()

    server = Server(script)
    async with running(server, "ann") as run:
        await trio.sleep(68)
        assert run.items == [("ann", "late1")]
        assert len(server.streams) == 2
        assert server.streams[0].closed


async def test_silence_of_twice_the_heartbeat_ends_the_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def script(_server: Server, _ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        yield OK
        await trio.sleep_forever()

    server = Server(script)
    with structlog.testing.capture_logs() as lines:
        async with running(server, "ann"):
            await trio.sleep(0.1 + 90 + 0.5)
            assert len(server.streams) == 1
            assert server.streams[0].closed
            await trio.sleep(1)
            assert len(server.streams) == 2
    assert [line["event"] for line in lines if line["event"].startswith("stream.")] == ["stream.silent"]


async def test_a_slow_handler_does_not_look_like_a_silent_server(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def slow(_batch: Sequence[MailboxEvent]) -> None:
        await trio.sleep(1000)

    async def script(_server: Server, ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        while True:
            yield created(ids[0], "A")
            await trio.sleep(45)

    server = Server(script)
    async with running(server, "ann", publish=slow):
        await trio.sleep(10_000)
        assert len(server.streams) == 1


async def test_single_bytes_without_a_valid_signal_count_as_silence(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def script(_server: Server, _ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        yield OK
        while True:
            await trio.sleep(1)
            yield b" "

    server = Server(script)
    async with running(server, "ann"):
        await trio.sleep(89)
        assert [body.closed for body in server.streams] == [False]
        await trio.sleep(3)
        assert [body.closed for body in server.streams] == [True, False]


async def test_a_moved_mailbox_leaves_and_the_others_keep_streaming(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def script(server: Server, ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        yield OK
        if len(server.streams) == 1:
            await trio.sleep(60)
            yield gone(ids[0], code="ErrorMailboxMoveInProgress")
        while True:
            await trio.sleep(45)
            yield OK

    server, registry = Server(script), Registry(moved={"ann"})
    async with running(server, "ann", "bob", registry=registry) as run:
        await trio.sleep(100)
        assert registry.sought == ["ann"]
        assert [m.mailbox for m in run.runner.state.members] == ["bob"]
        assert run.runner.state.anchor == "bob"
        assert sorted(server.operations[3:]) == [("Stream", ("bob#1",)), ("Unsubscribe", "ann")]


async def test_a_mailbox_that_fails_repeatedly_among_others_is_split_off(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def script(_server: Server, ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        yield OK
        if bad := [i for i in ids if i.startswith("bob")]:
            yield gone(*bad)
        while True:
            await trio.sleep(45)
            yield OK

    server, registry = Server(script), Registry()
    async with running(server, "ann", "bob", "cat", registry=registry) as run:
        await trio.sleep(60)
        assert registry.split_off == ["bob"]
        assert run.runner.mailboxes_streaming == 2


async def test_a_server_with_one_user_per_connection_gets_groups_of_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Selfish(Server):
        async def open_stream(self, body: bytes, headers: Mapping[str, str]) -> Body:
            if body.count(b"<t:SubscriptionId>") > 1:
                self.note("Refused", (), headers)
                raise ExchangeError(Failure(code="ErrorSubscriptionAccessDenied"))
            return await super().open_stream(body, headers)

    names = [f"user{n}" for n in range(8)]
    registry = Registry()
    async with running(Selfish(), *names, registry=registry) as run:
        await trio.sleep(120)
        assert [m.mailbox for m in run.runner.state.members] == ["user0"]
        assert run.runner.mailboxes_streaming == 1
        assert sorted(registry.split_off) == names[1:]


async def test_too_many_connections_of_the_account_start_impersonation_of_the_anchor(
    autojump_clock: trio.testing.MockClock,
) -> None:
    asked: list[bool] = []

    class Strict(Server):
        async def open_stream(self, body: bytes, headers: Mapping[str, str]) -> Body:
            asked.append(b"ExchangeImpersonation" in body)
            if not asked[-1]:
                raise ExchangeError(Failure(code="ErrorExceededConnectionCount", wait=0.0))
            return await super().open_stream(body, headers)

    async with running(Strict(), "ann", spec=replace(SPEC, impersonate_anchor_on_stream=False)) as run:
        await trio.sleep(10)
        assert run.runner.mailboxes_streaming == 1
    assert asked == [False, True]


async def test_a_lost_subscription_is_renewed_while_the_others_keep_streaming(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def script(server: Server, ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        yield OK
        if len(server.streams) == 1:
            await trio.sleep(60)
            yield gone(ids[1])
        while True:
            await trio.sleep(45)
            yield OK

    server = Server(script)
    async with running(server, "ann", "bob", "cat"):
        await trio.sleep(70)
    assert server.operations[3:] == [
        ("Stream", ("ann#1", "bob#1", "cat#1")),
        ("Stream", ("ann#1", "cat#1")),
        ("Subscribe", "bob"),
        ("Stream", ("ann#1", "bob#2", "cat#1")),
    ] or server.operations[3:] == [
        ("Stream", ("ann#1", "bob#1", "cat#1")),
        ("Subscribe", "bob"),
        ("Stream", ("ann#1", "cat#1")),
        ("Stream", ("ann#1", "bob#2", "cat#1")),
    ]


async def test_a_replaced_stream_is_read_to_its_end(autojump_clock: trio.testing.MockClock) -> None:
    """The server sends queued events on the old connection before the new one takes over."""

    async def script(server: Server, ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        number = len(server.streams)
        yield OK
        if number == 1:
            while len(server.streams) < 2:
                await trio.sleep(1)
            yield created(ids[0], "in flight")
            yield envelope(message("", "ErrorNewEventStreamConnectionOpened"))
        while True:
            yield OK
            await trio.sleep(45)

    server = Server(script)
    async with running(server, "ann") as run:
        await trio.sleep(60)
        run.runner.post(Joined(("ann", "bob")))
        await trio.sleep(20)
        assert server.operations == [
            ("Subscribe", "ann"),
            ("Stream", ("ann#1",)),
            ("Subscribe", "bob"),
            ("Stream", ("ann#1", "bob#1")),
        ]
        assert run.items == [("ann", "in flight")]
        assert [body.closed for body in server.streams] == [True, False]
        assert run.runner.mailboxes_streaming == 2


async def test_a_replaced_stream_that_does_not_end_is_closed_after_a_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server()
    async with running(server, "ann") as run:
        await trio.sleep(60)
        run.runner.post(Joined(("bob",)))
        await trio.sleep(29)
        assert [body.closed for body in server.streams] == [False, False]
        await trio.sleep(2)
        assert [body.closed for body in server.streams] == [True, False]


async def test_a_busy_server_gets_no_requests_during_the_requested_pause(
    autojump_clock: trio.testing.MockClock,
) -> None:
    busy = Failure(code="ErrorServerBusy", wait=120.0)
    names = [f"user{n:02}" for n in range(50)]
    server = Server(refuse={"user03": [busy]})
    async with running(server, *names):
        await trio.sleep(100)
        assert len(server.operations) <= 10
        await trio.sleep(100)
        assert server.operations[-1][0] == "Stream"
        assert len(server.operations[-1][1]) == 50
    resumed = next(
        later - earlier
        for earlier, later in zip(server.times, server.times[1:], strict=False)
        if later - earlier > 5
    )
    assert resumed == pytest.approx(121, abs=0.2)


async def test_the_retry_delay_grows_to_its_cap(autojump_clock: trio.testing.MockClock) -> None:
    server = Server(refuse={"ann": [Failure(code="Http503")] * 100})
    async with running(server, "ann"):
        await trio.sleep(3600)
    gaps = [
        round(later - earlier - 0.1, 3)
        for earlier, later in zip(server.times, server.times[1:], strict=False)
    ]
    assert gaps[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert set(gaps[6:]) == {60}


async def test_a_paused_group_retries_when_the_server_answers_another_group(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server(refuse={"ann": [Failure(code="Http503")] * 20})
    async with running(server, "ann") as run:
        await trio.sleep(200)
        assert run.runner.state.paused_until is not None
        assert run.runner.state.paused_until > trio.current_time() + 10
        server.refuse.clear()
        server.throttle.server_answered()
        await trio.sleep(4)
        assert run.runner.mailboxes_streaming == 1


async def test_a_requested_pause_is_kept_when_the_server_answers_another_group(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server(refuse={"ann": [Failure(code="ErrorServerBusy", wait=100.0)]})
    async with running(server, "ann"):
        await trio.sleep(10)
        server.throttle.server_answered()
        await trio.sleep(80)
        assert len(server.operations) == 1


async def test_stop_unsubscribes_all_mailboxes_and_ends_the_runner(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server()
    async with running(server, "ann", "bob", "cat") as run:
        await trio.sleep(10)
        run.runner.post(Stop(unsubscribe=True))
        await trio.sleep(5)
    assert sorted(server.operations[4:]) == [
        ("Unsubscribe", "ann"),
        ("Unsubscribe", "bob"),
        ("Unsubscribe", "cat"),
    ]
    assert all(body.closed for body in server.streams)


async def one_event(_server: "Server", ids: tuple[str, ...]) -> AsyncIterator[bytes]:
    yield OK
    await trio.sleep(10)
    yield created(ids[0], "A")
    await trio.sleep_forever()


@asynccontextmanager
async def stopped(
    server: Server, publish: Callable[[Sequence[MailboxEvent]], Awaitable[None]], after: float
) -> AsyncIterator[GroupRunner]:
    """Stop a group after some seconds. The body starts when the group has ended."""
    state = GroupState.start(("ann",), POLICY)
    group = Group("DAG1/1", "https://mail.example/EWS", "DAG1", ("ann",))
    runner = GroupRunner(group, server, SPEC, Ingest(publish), Registry(), state)  # type: ignore[arg-type]
    with trio.move_on_after(after + 60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runner.run)
            await trio.sleep(after)
            runner.post(Stop())
    yield runner


async def test_events_that_were_read_are_published_before_a_group_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    published: list[str | None] = []

    async def slow(batch: Sequence[MailboxEvent]) -> None:
        await trio.sleep(2)
        published.extend(event.item_id for event in batch)

    server = Server(one_event)
    async with stopped(server, slow, after=11):
        assert published == ["A"]
        assert trio.current_time() == pytest.approx(12.1)
        assert server.streams[0].closed


async def test_events_of_a_replaced_stream_are_published_before_its_group_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    published: list[str | None] = []

    async def slow(batch: Sequence[MailboxEvent]) -> None:
        await trio.sleep(2)
        published.extend(event.item_id for event in batch)

    async def script(server: Server, ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        number = len(server.streams)
        yield OK
        await trio.sleep(20 if number == 1 else 40)
        yield created(ids[0], "in flight")
        await trio.sleep_forever()

    async with running(Server(script), "ann", publish=slow) as run:
        await trio.sleep(10)
        run.runner.post(Joined(("bob",)))
        await trio.sleep(11)
        run.runner.post(Stop())
        started_at = trio.current_time()
        with trio.move_on_after(10):
            while not run.runner.finished or not published:
                await trio.sleep(0.1)
        assert trio.current_time() - started_at < 2
        assert published == ["in flight"]


async def test_a_blocked_journal_delays_the_end_of_a_group_by_seconds_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def full(_batch: Sequence[MailboxEvent]) -> None:
        await trio.sleep_forever()

    async with stopped(Server(one_event), full, after=20) as runner:
        assert trio.current_time() == pytest.approx(23)
        # The lost event came after last_seen, so that the next process looks for it.
        assert runner.last_seen_at == pytest.approx(0.1)


async def test_a_group_that_waits_for_the_journal_receives_the_stop(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def full(_batch: Sequence[MailboxEvent]) -> None:
        await trio.sleep_forever()

    server = Server(refuse={"ann": [Failure(code="ErrorImpersonateUserDenied")]})
    async with stopped(server, full, after=20):
        assert trio.current_time() == pytest.approx(23)


async def test_a_stream_that_does_not_open_does_not_delay_the_end_of_its_group(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Hanging(Server):
        async def open_stream(self, _body: bytes, _headers: Mapping[str, str]) -> Body:
            await trio.sleep_forever()

    async def publish(_batch: Sequence[MailboxEvent]) -> None: ...

    async with stopped(Hanging(), publish, after=20):
        assert trio.current_time() == 20


async def test_abandoned_subscriptions_are_unsubscribed_one_by_one_with_the_old_cookies(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def script(server: Server, _ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        yield OK
        if len(server.streams) == 1:
            await trio.sleep(60)
            yield envelope(message("", code="ErrorMailboxMoveInProgress"))
        while True:
            await trio.sleep(45)
            yield OK

    server = Server(script)
    async with running(server, "ann", "bob", "cat") as run:
        await trio.sleep(60)
        server.most = 0
        await trio.sleep(0.35)
        assert server.most == 1
        await trio.sleep(30)
        assert run.runner.mailboxes_streaming == 3
        assert run.runner.state.abandoned == ()
    gone = [mailbox for what, mailbox in server.operations if what == "Unsubscribe"]
    assert sorted(gone) == ["ann", "bob", "cat"]
    assert server.clones == [1]  # created before the cookies were discarded a second time


async def test_an_id_that_another_mailbox_has_by_now_is_not_unsubscribed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server, registry = Server(), Registry()
    async with running(server, "ann", "bob", registry=registry) as run:
        await trio.sleep(10)
        run.runner.post(Left(("ann", "bob")))
        await trio.sleep(0.05)  # the first unsubscribe is running; the restarted server reuses both ids
        registry.owners |= {"ann#1": "cat", "bob#1": "dan"}
        await trio.sleep(10)
        assert [what for what, _ in server.operations].count("Unsubscribe") == 1


async def test_a_blocked_unsubscribe_delays_the_end_by_seconds_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Hanging(Server):
        async def call(self, body: bytes, headers: Mapping[str, str], read: Callable[[bytes], Any]) -> Any:
            if b"<m:Unsubscribe" in body:
                await trio.sleep_forever()
            return await super().call(body, headers, read)

    server = Hanging()
    group = Group("DAG1/1", "https://mail.example/EWS", "DAG1", ("ann",))

    async def publish(_batch: Sequence[MailboxEvent]) -> None: ...

    state = GroupState.start(("ann",), POLICY)
    runner = GroupRunner(group, server, SPEC, Ingest(publish), Registry(), state)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run)
        await trio.sleep(10)
        runner.post(Stop(unsubscribe=True))
        started_at = trio.current_time()
    assert trio.current_time() - started_at == pytest.approx(5)


async def test_a_denied_mailbox_is_suspended_and_logged_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    denied = Failure(code="ErrorImpersonateUserDenied", text="not in the scope")
    server = Server(refuse={"bob": [denied] * 3})
    with structlog.testing.capture_logs() as lines:
        async with running(server, "ann", "bob") as run:
            await trio.sleep(3600)
            assert run.runner.mailboxes_streaming == 2
    assert [(event.type, event.mailbox, event.reason) for event in run.events] == [
        ("exchange.listener.suspended", "bob", "ErrorImpersonateUserDenied: not in the scope"),
        ("exchange.listener.resumed", "bob", None),
    ]
    logged = [line for line in lines if line["event"] in ("mailbox.suspended", "mailbox.resumed")]
    assert [(line["event"], line["mailbox"], line.get("code")) for line in logged] == [
        ("mailbox.suspended", "bob", "ErrorImpersonateUserDenied"),
        ("mailbox.resumed", "bob", None),
    ]
    asked = [
        time
        for time, (op, mailbox, _) in zip(server.times, server.log, strict=True)
        if (op, mailbox) == ("Subscribe", "bob")
    ]
    gaps = [round(later - earlier) for earlier, later in itertools.pairwise(asked)]
    assert gaps == [60, 120, 240]


# --- unproven ids


def restored_registry(**stored: list[str]) -> Registry:
    """Return a registry with ann's id from an earlier process, and with these folders of mailboxes."""
    return Registry(owners={"1": "ann"}, stored=dict(stored))


async def first_event_then_more(_server: Server, ids: tuple[str, ...]) -> AsyncIterator[bytes]:
    yield OK + created(ids[0], "A") + created(ids[0], "B")
    await trio.sleep(60)
    yield created(ids[0], "C")
    await trio.sleep_forever()


async def test_events_of_a_restored_id_are_held_until_a_folder_of_the_mailbox_proves_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    registry = restored_registry(ann=["inbox", "sent"])
    server = Server(first_event_then_more)
    async with running(
        server, "ann", registry=registry, saved=SavedSubscriptions("ann", {"ann": "1"})
    ) as run:
        await trio.sleep(10)
        assert run.items == [("ann", "A"), ("ann", "B")]
        await trio.sleep(60)
        assert run.items[2:] == [("ann", "C")]
        assert [operation for operation, _ in server.operations] == ["Stream"], "nothing was asked"


async def test_events_of_a_restored_id_of_another_mailbox_are_dropped_and_the_mailbox_is_subscribed_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The server restarted and reused the id: 14 events were published under the wrong mailbox."""
    registry = restored_registry(ann=["inbox-a"])
    registry.known.add_folders("bob", ["inbox"])
    server = Server(first_event_then_more)
    with structlog.testing.capture_logs() as lines:
        async with running(
            server, "ann", registry=registry, saved=SavedSubscriptions("ann", {"ann": "1"})
        ) as run:
            await trio.sleep(50)
            assert ("ann", "A") in run.items, "of the new subscription, which is proven"
            assert server.made["ann"] == 1
            assert ("Unsubscribe", "ann") not in server.operations, "the id is another mailbox's"
            assert run.items == [("ann", "A"), ("ann", "B")]
            assert {reason for _, _, reason in registry.gaps} >= {"start", "unproven"}
    (line,) = [line for line in lines if line["event"] == "subscription.not_proven"]
    assert (line["mailbox"], line["subscription_id"], line["dropped"]) == ("ann", "1", 1)


async def test_held_events_are_limited(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("listener.groups.proof.MAX_HELD", 5)

    class Slow(Registry):
        async def folders(self, mailbox: str, /) -> Collection[str]:
            await trio.sleep(1000)
            return ["inbox"]

    async def flood(_server: Server, ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        yield OK
        for number in range(20):
            yield created(ids[0], str(number))
            await trio.sleep(0.01)
        await trio.sleep_forever()

    registry = Slow(owners={"1": "ann"})
    with structlog.testing.capture_logs() as lines:
        async with running(
            Server(flood), "ann", registry=registry, saved=SavedSubscriptions("ann", {"ann": "1"})
        ) as run:
            await trio.sleep(20)
            assert len(run.items) == 20, "those of the new subscription"
    (line,) = [line for line in lines if line["event"] == "subscription.not_proven"]
    assert line["dropped"] == 6


async def test_held_events_are_missing_until_they_are_proven(autojump_clock: trio.testing.MockClock) -> None:
    """After a crash, the next process looks for them."""

    class Slow(Registry):
        async def folders(self, mailbox: str, /) -> Collection[str]:
            await trio.sleep(20)
            return ["inbox"]

    registry = Slow(owners={"1": "ann"})
    async with running(
        Server(first_event_then_more), "ann", registry=registry, saved=SavedSubscriptions("ann", {"ann": "1"})
    ) as run:
        await trio.sleep(10)
        assert run.items == []
        assert run.runner.missing_since().keys() == {"ann"}
        await trio.sleep(20)
        assert run.items == [("ann", "A"), ("ann", "B")]
        assert run.runner.missing_since() == {}


BROKEN = Failure(code="ConnectionReset", text="connection reset")


@pytest.mark.parametrize("how", ["reset", "end", "pause", "closed"])
async def test_an_id_is_proven_again_after_the_server_may_have_restarted(
    autojump_clock: trio.testing.MockClock, how: str
) -> None:
    streams = itertools.count()

    async def script(_server: Server, _ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        yield OK
        await trio.sleep(60)
        if next(streams):
            await trio.sleep_forever()
        if how == "reset":
            raise ExchangeError(BROKEN)
        if how in ("closed", "pause"):
            yield CLOSED

    server, registry = Server(script), Registry()
    async with running(server, "ann", registry=registry) as run:
        await trio.sleep(30)
        assert registry.unproven == set()
        if how == "pause":
            run.runner._context.state = replace(run.runner.state, paused_until=trio.current_time() + 100)
        await trio.sleep(120)
        assert registry.unproven == (set() if how == "closed" else {"ann#1"})


async def test_consecutive_early_ends_of_streams_are_logged_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Two connections that read the same subscription close each other's stream repeatedly."""

    async def script(server: Server, _ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        yield OK
        await trio.sleep(20 if len(server.streams) != 10 else 1800)
        yield CLOSED

    with structlog.testing.capture_logs() as lines:
        async with running(Server(script), "ann"):
            await trio.sleep(3000)
    early = [line for line in lines if line["event"] == "stream.closed_early"]
    assert [line["count"] for line in early] == [3, 3], "once each time that it begins"
    assert "another connection" in early[0]["cause"]


# --- unknown exceptions


async def test_an_unknown_exception_of_one_mailbox_suspends_that_mailbox_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An address with an umlaut cannot be part of a header, and its group crashed repeatedly."""

    class Fragile(Server):
        async def call(self, body: bytes, headers: Mapping[str, str], read: Callable[[bytes], Any]) -> Any:
            if b"<m:Subscribe" in body and b">bob<" in body:
                self.log.append(("Subscribe", "bob", ""))
                raise UnicodeEncodeError("ascii", "jürgen", 1, 2, "ordinal not in range(128)")
            return await super().call(body, headers, read)

    server = Fragile()
    with structlog.testing.capture_logs() as lines:
        async with running(server, "ann", "bob", "cat") as run:
            await trio.sleep(3600)
            assert run.runner.mailboxes_streaming == 2
            (bob,) = [member for member in run.runner.state.members if member.mailbox == "bob"]
            assert bob.suspended
            assert bob.failure == Failure(code="InternalError", text="UnicodeEncodeError")
    assert 3 <= server.operations.count(("Subscribe", "bob")) <= 10
    crashed = [line for line in lines if line["event"] == "mailbox.crashed"]
    assert {line["mailbox"] for line in crashed} == {"bob"}
    assert all(isinstance(line["exc_info"], UnicodeEncodeError) for line in crashed)
    assert len([line for line in lines if line["event"] == "mailbox.suspended"]) == 1


async def test_an_unknown_exception_of_the_first_mailbox_does_not_delay_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Fragile(Server):
        async def call(self, body: bytes, headers: Mapping[str, str], read: Callable[[bytes], Any]) -> Any:
            if b">ann<" in body:
                raise ValueError("bad port")
            return await super().call(body, headers, read)

    async with running(Fragile(), "ann", "bob", "cat") as run:
        await trio.sleep(30)
        assert run.runner.mailboxes_streaming == 2


async def test_an_unknown_exception_on_a_stream_pauses_the_group_and_leaves_a_gap(
    autojump_clock: trio.testing.MockClock,
) -> None:
    mistakes = [LookupError("a mistake"), LookupError("a mistake")]

    async def publish(batch: Sequence[MailboxEvent]) -> None:
        if mistakes:
            raise mistakes.pop()
        came.extend(batch)

    async def script(_server: Server, ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        yield OK + created(ids[0], "A")
        await trio.sleep_forever()

    came: list[MailboxEvent] = []
    server, registry = Server(script), Registry()
    with structlog.testing.capture_logs() as lines:
        async with running(server, "ann", "bob", publish=publish, registry=registry) as run:
            await trio.sleep(60)
            assert run.runner.mailboxes_streaming == 2
    assert [event.item_id for event in came] == ["A"]
    assert [operation for operation, _ in server.operations] == ["Subscribe"] * 2 + ["Stream"] * 3
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["stream.crashed"] * 2
    assert {reason for _, _, reason in registry.gaps} >= {"GroupError"}


async def test_events_that_cannot_be_converted_suspend_only_their_mailbox(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fragile(mailbox: str, event: Any, arrived: str) -> MailboxEvent:
        if mailbox == "bob":
            raise KeyError("kind")
        return mailbox_event(mailbox, event, arrived)

    async def script(_server: Server, ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        yield OK + b"".join(created(id_, id_) for id_ in ids)
        await trio.sleep_forever()

    monkeypatch.setattr("listener.groups.publisher.mailbox_event", fragile)
    async with running(Server(script), "ann", "bob", "cat") as run:
        await trio.sleep(30)
        assert {mailbox for mailbox, item in run.items if item} == {"ann", "cat"}
        assert [member.suspended for member in run.runner.state.members] == [False, True, False]


async def test_an_unknown_exception_of_a_discover_delays_its_mailboxes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    moved = Failure(code="ErrorMailboxMoveInProgress")
    server, registry = Server(refuse={"bob": [moved]}), Registry(find_error=LookupError("a mistake"))
    with structlog.testing.capture_logs() as lines:
        async with running(server, "ann", "bob", registry=registry) as run:
            await trio.sleep(50)
            assert run.runner.mailboxes_streaming == 1
            registry.find_error = None
            await trio.sleep(100)
            assert run.runner.mailboxes_streaming == 2
    failed = [line for line in lines if line["event"] == "group.action_failed"]
    assert [line["action"] for line in failed] == ["Discover"]


# --- delegates without rights, and unknown codes


@dataclass
class Lenient(Server):
    """A server that subscribes a delegate to any folder. Only the folders of `readable` mailboxes can be read."""

    readable: set[str] = field(default_factory=set)
    code: str = "ErrorAccessDenied"

    async def call(self, body: bytes, headers: Mapping[str, str], read: Callable[[bytes], Any]) -> Any:
        named = re.search(rb"<t:EmailAddress>(.*?)</t:EmailAddress>", body)
        mailbox = "" if named is None else named[1].decode()
        await trio.sleep(0.1)
        if b"<m:GetFolder" in body:
            self.note("GetFolder", mailbox, headers)
            if mailbox not in self.readable:
                return read(envelope(message("", self.code)))
            return read(
                envelope(message(f'<m:Folders><t:Folder><t:FolderId Id="{mailbox}"/></t:Folder></m:Folders>'))
            )
        if b"<m:Unsubscribe" in body:
            self.note("Unsubscribe", mailbox, headers)
            return read(envelope(message("")))
        self.note("Subscribe", mailbox, headers)
        self.made[mailbox] += 1
        id_ = f"{mailbox}#{self.made[mailbox]}"
        return read(envelope(message(f"<m:SubscriptionId>{id_}</m:SubscriptionId>")))


DELEGATE = replace(SPEC, access=AccessRules(AccessRule("delegate", folders=("inbox",))))


@pytest.mark.parametrize("code", ["ErrorAccessDenied", "ErrorFolderNotFound", "ErrorItemNotFound"])
async def test_a_delegate_without_a_readable_folder_is_suspended_although_the_server_subscribes_it(
    autojump_clock: trio.testing.MockClock, code: str
) -> None:
    server = Lenient(readable={"ann"}, code=code)
    with structlog.testing.capture_logs() as lines:
        async with running(server, "ann", "bob", spec=DELEGATE) as run:
            await trio.sleep(3600)
            assert run.runner.mailboxes_streaming == 1
            assert [member.suspended for member in run.runner.state.members] == [False, True]
            assert 3 <= server.made["bob"] <= 10
            assert server.operations.count(("Unsubscribe", "")) == server.made["bob"]
            server.readable.add("bob")
            await trio.sleep(3600)
            assert run.runner.mailboxes_streaming == 2
    logged = [line["event"] for line in lines if line["event"] in ("mailbox.suspended", "mailbox.resumed")]
    assert logged == ["mailbox.suspended", "mailbox.resumed"], "logged once, after any number of attempts"


async def test_revoked_rights_suspend_a_streaming_mailbox(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Lenient(readable={"ann", "bob"})
    async with running(server, "ann", "bob", spec=DELEGATE) as run:
        await trio.sleep(30)
        run.runner.check_access("bob")
        await trio.sleep(30)
        assert run.runner.mailboxes_streaming == 2, "it can be read after all"
        server.readable.remove("bob")
        run.runner.check_access("bob")
        run.runner.check_access("bob")
        await trio.sleep(30)
        assert run.runner.mailboxes_streaming == 1
        server.readable.add("bob")
        await trio.sleep(3600)
        assert run.runner.mailboxes_streaming == 2


async def test_an_unknown_code_of_one_mailbox_is_logged_once_and_retried_slowly(
    autojump_clock: trio.testing.MockClock,
) -> None:
    strange = Failure(code="ErrorSomethingStrange", text="?")
    server = Server(refuse={"bob": [strange] * 1000})
    with structlog.testing.capture_logs() as lines:
        async with running(server, "ann", "bob") as run:
            await trio.sleep(6 * 3600)
            assert run.runner.mailboxes_streaming == 1
    assert server.operations.count(("Subscribe", "bob")) <= 20
    (line,) = [line for line in lines if line["event"] == "mailbox.unknown_code"]
    assert (line["mailbox"], line["code"], line["failures"]) == ("bob", "ErrorSomethingStrange", 3)
