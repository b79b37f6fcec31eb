import json
from random import Random
from typing import Any

import pytest

from listener.simulator.control import Control
from listener.simulator.faults import KINDS as FAULTS
from listener.simulator.mailstore import KINDS
from listener.simulator.traffic import Traffic
from tests.simulator.client import Client


class Organization:
    def __init__(self) -> None:
        self.client = Client()
        self.traffic = Traffic(self.client.mailboxes, 0, Random(1))
        self.control = Control(self.client.exchange, self.traffic, Random(1))

    def ask(self, method: str, path: str, value: object = None) -> tuple[int, Any]:
        reply = self.control.handle(method, path, json.dumps(value).encode(), self.client.now)
        assert isinstance(reply.body, bytes)
        return reply.status, json.loads(reply.body)


@pytest.mark.parametrize("kind", KINDS)
def test_post_events_makes_a_change_of_each_kind(kind: str) -> None:
    organization = Organization()
    alice = organization.client.mailboxes[0]
    reader = organization.client.stream(alice, [organization.client.subscribe(alice)])
    status, answer = organization.ask("POST", "/events", {"mailbox": alice.address, "kind": kind, "count": 4})
    assert status == 200
    lines = answer["events"]
    assert [line["seq"] for line in lines] == list(range(1, organization.client.ledger.count + 1))
    assert sum(line["kind"] == kind and "item_id" in line for line in lines) == 4
    assert reader.read() == ["OK", *(line["kind"] for line in lines)]


@pytest.mark.parametrize(
    ("path", "value", "status"),
    [
        ("/events", {"mailbox": "unknown@contoso.example", "kind": "NewMailEvent"}, 404),
        ("/events", {"mailbox": "ceo@contoso.example", "kind": "NewMail"}, 404),
        ("/events", {"mailbox": "ceo@contoso.example", "kind": "NewMailEvent", "count": 0}, 400),
        ("/events", {"kind": "NewMailEvent"}, 400),
        ("/traffic", {"rate": -1}, 400),
        ("/faults", {"kind": "outage", "secnods": 1}, 400),
        ("/faults", {"kind": "mailbox_move", "mailbox": "unknown@contoso.example"}, 400),
        ("/faults", {"kind": "outage", "until": 3}, 400),
        ("/faults", {"profile": "hevy"}, 400),
        ("/faults", {"profile": "heavy", "kind": "outage"}, 400),
        ("/faults", {}, 400),
        ("/faults", [], 400),
        ("/faults", {"kind": "overflow"}, 409),
        ("/nothing", {}, 404),
    ],
)
def test_invalid_requests(path: str, value: object, status: int) -> None:
    organization = Organization()
    actual_status, answer = organization.ask("POST", path, value)
    assert (actual_status, list(answer)) == (status, ["error"])
    assert organization.client.ledger.count == 0


def test_post_traffic_sets_the_rate() -> None:
    organization = Organization()
    assert organization.ask("POST", "/traffic", {"rate": 25}) == (200, {"rate": 25.0})
    assert organization.traffic.rate == 25.0


def test_get_state() -> None:
    organization = Organization()
    client = organization.client
    (alice,), (bob,) = client.on(0), client.on(1)
    read, _ = client.subscribe(alice), client.subscribe(bob)
    client.stream(alice, [read]).read()
    for mailbox in (alice, bob):
        organization.ask("POST", "/events", {"mailbox": mailbox.address, "kind": "NewMailEvent"})
    status, state = organization.ask("GET", "/state")
    assert status == 200
    assert state["mailboxes"] == 20
    assert (state["generated"], state["queued"]) == (6, 6)
    assert (state["subscriptions"], state["mailboxes_subscribed"], state["mailboxes_streaming"]) == (2, 2, 1)
    assert [backend["subscriptions"] for backend in state["backends"]] == [1, 1, 0]
    assert sum(backend["mailboxes"] for backend in state["backends"]) == 20
    assert state["streams"] == [
        {"backend": "ex01.contoso.example", "account": client.settings.user, "ids": 1}
    ]
    assert state["hanging"] == {alice.address: 1}
    assert state["requests"] == {"GetStreamingEvents": {"200": 1}, "Subscribe": {"200": 2}}


def test_post_faults_makes_a_fault_now() -> None:
    organization = Organization()
    alice = organization.client.mailboxes[0].address
    status, answer = organization.ask(
        "POST", "/faults", {"kind": "mailbox_disabled", "mailbox": alice, "seconds": 2}
    )
    assert status == 200
    assert answer["made"] == [
        {
            "seq": 1,
            "time": organization.client.now,
            "mailbox": alice,
            "kind": "fault",
            "fault": "mailbox_disabled",
            "parameters": {"mailbox": alice, "seconds": 2.0},
        }
    ]
    assert organization.ask("POST", "/faults", {"kind": "http", "status": 503}) == (200, {"made": []})
    state = organization.ask("GET", "/state")[1]
    assert (state["generated"], state["faults"]) == (0, 1)


def test_post_faults_schedules_faults() -> None:
    organization = Organization()
    assert organization.ask("POST", "/faults", {"kind": "outage", "at": 5, "seconds": 1}) == (
        200,
        {"made": []},
    )
    assert organization.ask("GET", "/faults")[1]["next"] == organization.client.now + 5
    organization.client.advance_time(5)
    assert organization.ask("GET", "/faults")[1]["made"] == {"outage": 1}


def test_post_faults_starts_and_stops_a_profile() -> None:
    organization = Organization()
    assert organization.ask("POST", "/faults", {"profile": "heavy"}) == (200, {"made": []})
    organization.client.advance_time(30)
    state = organization.ask("GET", "/faults")[1]
    assert sum(state["made"].values()) > 10
    assert state["next"] is not None
    organization.ask("POST", "/faults", {"profile": "none"})
    state = organization.ask("GET", "/faults")[1]
    assert (state["lasting"], state["waiting"], state["next"]) == ([], [], None)


def test_get_faults_lists_the_kinds() -> None:
    state = Organization().ask("GET", "/faults")[1]
    assert state["profiles"] == ["none", "light", "heavy"]
    kinds = {kind["kind"]: kind for kind in state["kinds"]}
    assert list(kinds) == list(FAULTS)
    assert kinds["outage"]["parameters"] == [
        {"name": "seconds", "type": "number", "required": False, "default": 10.0},
        {"name": "how", "type": "refuse | reset | 503", "required": False, "default": "refuse"},
    ]
