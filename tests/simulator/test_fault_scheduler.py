"""Faults that plans make."""

from collections import Counter

import pytest

from listener.simulator.fault_plans import PROFILES, Entry
from listener.simulator.faults import FaultError, parse
from listener.simulator.ledger import Line
from listener.simulator.settings import Settings
from tests.simulator.client import NOON, Client, stream_body, subscribe_body

OUTAGE = parse({"kind": "outage", "seconds": 5})


def run_plan(plan: tuple[Entry, ...], seconds: int = 60, seed: int = 1) -> tuple[Client, list[Line]]:
    """Run a plan with a client that keeps subscribing and opening streams, whatever fails."""
    client = Client(Settings(rate=0, mailboxes=30, seed=seed, faults=plan))
    for second in range(seconds):
        for mailbox in client.mailboxes[second % 10 :: 10]:
            reply = client.post(subscribe_body(), impersonate=mailbox.address)
            reply.finish()
        for mailbox in client.mailboxes[second % 10 :: 10]:
            ids = [each.id for each in client.exchange.subscriptions.for_mailbox(mailbox.address)]
            if ids:
                client.post(stream_body(ids), impersonate=mailbox.address)
        client.advance_time(1)
    return client, list(client.exchange.fault_scheduler.recent)


def test_plan_in_settings_starts_with_the_server() -> None:
    client = Client(Settings(rate=0, faults=(Entry(OUTAGE, at=(10, 30)),)))
    client.advance_time(9)
    assert client.ledger.faults == 0
    assert client.exchange.fault_scheduler.deadline == NOON + 10
    client.advance_time(1)
    assert client.exchange.conditions.outage
    assert client.exchange.fault_scheduler.deadline == NOON + 15
    client.advance_time(5)
    assert client.exchange.conditions.outage is None
    assert client.exchange.fault_scheduler.deadline == NOON + 30
    client.advance_time(15)
    assert client.exchange.fault_scheduler.made == {"outage": 2}
    client.advance_time(5)
    assert client.exchange.fault_scheduler.deadline == float("inf")


def test_unsorted_times() -> None:
    client = Client(Settings(rate=0, faults=(Entry(OUTAGE, at=(30, 10)),)))
    assert client.exchange.fault_scheduler.deadline == NOON + 10
    client.advance_time(10)
    assert client.exchange.conditions.outage


def test_plan_with_unknown_back_end() -> None:
    plan = (Entry(OUTAGE, at=(1,)), Entry(parse({"kind": "failover", "backend": "EX77"}), at=(1,)))
    with pytest.raises(FaultError):
        Client(Settings(faults=plan))


def test_same_seed_makes_the_same_faults() -> None:
    _, first = run_plan(PROFILES["heavy"])
    _, second = run_plan(PROFILES["heavy"])
    assert first == second
    _, other = run_plan(PROFILES["heavy"], seed=2)
    assert [line.fault for line in other] != [line.fault for line in first]


def test_one_minute_of_profile_heavy() -> None:
    client, lines = run_plan(PROFILES["heavy"])
    made = Counter(line.fault for line in lines)
    assert made.total() > 80
    assert len(made) > 22
    assert client.ledger.faults == made.total()
    assert client.ledger.count == 0
    assert [line.seq for line in lines] == list(range(1, len(lines) + 1))
    assert {line.kind for line in lines} == {"fault"}


def test_one_minute_of_profile_light() -> None:
    _, lines = run_plan(PROFILES["light"])
    assert 8 <= len(lines) <= 20


def test_stop_ends_all_faults() -> None:
    client, _ = run_plan(PROFILES["heavy"], seconds=31)
    client.make_fault("outage", seconds=100)
    client.make_fault("failover", backend=client.exchange.directory.alive[0].partition(".")[0])
    client.make_fault("impersonation_withdrawn", mailbox="*", seconds=100)
    client.make_fault("http", status=503)
    client.exchange.fault_scheduler.stop()
    faults = client.ledger.faults
    conditions = client.exchange.conditions
    assert conditions == type(conditions)()
    assert client.exchange.directory.alive == client.exchange.directory.backends
    client.advance_time(600)
    assert client.ledger.faults == faults
    assert client.exchange.fault_scheduler.state()["waiting"] == []
    assert client.exchange.fault_scheduler.deadline == float("inf")


def test_repeated_fault_is_extended() -> None:
    client = Client()
    client.make_fault("outage", seconds=10, how="503")
    client.make_fault("outage", seconds=2, how="reset")
    client.advance_time(9)
    assert client.exchange.conditions.outage
    client.advance_time(1)
    assert client.exchange.conditions.outage is None


def test_state() -> None:
    client = Client()
    alice = client.mailboxes[0].address
    client.make_fault("mailbox_disabled", mailbox=alice, seconds=4)
    client.make_fault("http", status=503, within=9)
    client.exchange.fault_scheduler.start_plan([Entry(OUTAGE, at=(7,))], client.now)
    state = client.exchange.fault_scheduler.state()
    assert state["made"] == {"mailbox_disabled": 1}
    assert [line.mailbox for line in state["recent"]] == [alice]
    assert [each["until"] for each in state["lasting"]] == [NOON + 4]
    assert state["waiting"] == [{"kind": "http", "status": 503, "within": 9.0}]
    assert state["next"] == NOON + 7


def test_wake_is_called_when_the_deadline_changes() -> None:
    client = Client()
    woken: list[str] = []
    client.exchange.fault_scheduler.wake = lambda: woken.append("x")
    client.make_fault("outage")
    client.exchange.fault_scheduler.start_plan([Entry(OUTAGE, at=(7,))], client.now)
    client.exchange.fault_scheduler.stop()
    assert len(woken) == 3
