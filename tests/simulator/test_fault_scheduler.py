"""Faults that are made by plans."""

from collections import Counter

import pytest

from listener.simulator.fault_plans import PROFILES, Entry
from listener.simulator.faults import FaultError, parse
from listener.simulator.ledger import Line
from listener.simulator.settings import Settings
from tests.simulator.client import NOON, Client, stream_body, subscribe_body

OUTAGE = parse({"kind": "outage", "seconds": 5})


def lived(plan: tuple[Entry, ...], seconds: int = 60, seed: int = 1) -> tuple[Client, list[Line]]:
    """A minute with a client that subscribes and streams whatever happens."""
    client = Client(Settings(rate=0, mailboxes=30, seed=seed, faults=plan))
    for second in range(seconds):
        for mailbox in client.mailboxes[second % 10 :: 10]:
            reply = client.post(subscribe_body(), impersonate=mailbox.address)
            reply.finish()
        for mailbox in client.mailboxes[second % 10 :: 10]:
            ids = [each.id for each in client.exchange.subscriptions.for_mailbox(mailbox.address)]
            if ids:
                client.post(stream_body(ids), impersonate=mailbox.address)
        client.pass_(1)
    return client, list(client.exchange.fault_scheduler.recent)


def test_the_plan_of_the_settings_starts_with_the_server() -> None:
    client = Client(Settings(rate=0, faults=(Entry(OUTAGE, at=(10, 30)),)))
    client.pass_(9)
    assert client.ledger.faults == 0
    assert client.exchange.fault_scheduler.deadline == NOON + 10
    client.pass_(1)
    assert client.exchange.conditions.outage
    assert client.exchange.fault_scheduler.deadline == NOON + 15
    client.pass_(5)
    assert client.exchange.conditions.outage is None
    assert client.exchange.fault_scheduler.deadline == NOON + 30
    client.pass_(15)
    assert client.exchange.fault_scheduler.made == {"outage": 2}
    client.pass_(5)
    assert client.exchange.fault_scheduler.deadline == float("inf")


def test_a_plan_that_names_what_is_not_there() -> None:
    plan = (Entry(OUTAGE, at=(1,)), Entry(parse({"kind": "failover", "backend": "EX77"}), at=(1,)))
    with pytest.raises(FaultError):
        Client(Settings(faults=plan))


def test_the_same_seed_makes_the_same_faults() -> None:
    _, first = lived(PROFILES["heavy"])
    _, second = lived(PROFILES["heavy"])
    assert first == second
    _, other = lived(PROFILES["heavy"], seed=2)
    assert [line.fault for line in other] != [line.fault for line in first]


def test_a_heavy_minute() -> None:
    client, lines = lived(PROFILES["heavy"])
    made = Counter(line.fault for line in lines)
    assert made.total() > 80
    assert len(made) > 22
    assert client.ledger.faults == made.total()
    assert client.ledger.count == 0
    assert [line.seq for line in lines] == list(range(1, len(lines) + 1))
    assert {line.kind for line in lines} == {"fault"}


def test_a_light_minute() -> None:
    _, lines = lived(PROFILES["light"])
    assert 8 <= len(lines) <= 20


def test_stopping_ends_everything() -> None:
    client, _ = lived(PROFILES["heavy"], seconds=31)
    client.break_("outage", seconds=100)
    client.break_("failover", backend=client.exchange.directory.alive[0].partition(".")[0])
    client.break_("impersonation_withdrawn", mailbox="*", seconds=100)
    client.break_("http", status=503)
    client.exchange.fault_scheduler.stop()
    faults = client.ledger.faults
    conditions = client.exchange.conditions
    assert conditions == type(conditions)()
    assert client.exchange.directory.alive == client.exchange.directory.backends
    client.pass_(600)
    assert client.ledger.faults == faults
    assert client.exchange.fault_scheduler.state()["waiting"] == []
    assert client.exchange.fault_scheduler.deadline == float("inf")


def test_the_same_again_lasts_until_the_later_end() -> None:
    client = Client()
    client.break_("outage", seconds=10, how="503")
    client.break_("outage", seconds=2, how="reset")
    client.pass_(9)
    assert client.exchange.conditions.outage
    client.pass_(1)
    assert client.exchange.conditions.outage is None


def test_what_is_told() -> None:
    client = Client()
    alice = client.mailboxes[0].address
    client.break_("mailbox_disabled", mailbox=alice, seconds=4)
    client.break_("http", status=503, within=9)
    client.exchange.fault_scheduler.start_plan([Entry(OUTAGE, at=(7,))], client.now)
    state = client.exchange.fault_scheduler.state()
    assert state["made"] == {"mailbox_disabled": 1}
    assert [line.mailbox for line in state["recent"]] == [alice]
    assert [each["until"] for each in state["lasting"]] == [NOON + 4]
    assert state["waiting"] == [{"kind": "http", "status": 503, "within": 9.0}]
    assert state["next"] == NOON + 7


def test_whoever_waits_for_the_deadline_is_woken() -> None:
    client = Client()
    woken: list[str] = []
    client.exchange.fault_scheduler.wake = lambda: woken.append("x")
    client.break_("outage")
    client.exchange.fault_scheduler.start_plan([Entry(OUTAGE, at=(7,))], client.now)
    client.exchange.fault_scheduler.stop()
    assert len(woken) == 3
