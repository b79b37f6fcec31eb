from random import Random
from uuid import UUID

import pytest

from listener.simulator.mailstore import KINDS, Event, Mailbox
from listener.simulator.traffic import ITEMS_KEPT, Traffic, make


def office(count: int = 10) -> list[Mailbox]:
    return [Mailbox(f"user{n}@contoso.example", f"User {n}", UUID(int=n), 0.0) for n in range(count)]


def run(traffic: Traffic, seconds: int, step: float = 0.05) -> list[Event]:
    events = []
    for tick in range(int(seconds / step) + 1):
        events += traffic.due(tick * step)
    return events


def test_rate_counts_events() -> None:
    events = run(Traffic(office(), 200.0, Random(1)), 60)
    assert 11_950 <= len(events) <= 12_050


def test_one_day_has_all_kinds_of_events() -> None:
    mailboxes = office()
    events = run(Traffic(mailboxes, 200.0, Random(1)), 120)
    about = {(event.kind, "item" if event.item_id else "folder") for event in events}
    assert {kind for kind, _ in about} == set(KINDS)
    for kind in ("CreatedEvent", "ModifiedEvent", "MovedEvent", "DeletedEvent"):
        assert {(kind, "item"), (kind, "folder")} <= about
    assert {event.mailbox for event in events} == {mailbox.address for mailbox in mailboxes}
    arrived = sum(event.kind == "NewMailEvent" for event in events)
    assert arrived > len(events) / 10


def test_mailbox_size_is_limited() -> None:
    mailboxes = office(2)
    run(Traffic(mailboxes, 500.0, Random(1)), 60)
    assert max(mailbox.item_count() for mailbox in mailboxes) <= ITEMS_KEPT + 2


def test_same_seed_makes_the_same_day() -> None:
    days = [run(Traffic(office(), 100.0, Random(7)), 20) for _ in range(2)]
    assert days[0] == days[1]
    assert run(Traffic(office(), 100.0, Random(8)), 20) != days[0]


def test_new_rate_drops_due_events() -> None:
    traffic = Traffic(office(), 0.0, Random(1))
    woken = []
    traffic.wake = lambda: woken.append(True)
    assert traffic.due(0.0) == []
    assert traffic.due(1000.0) == []
    traffic.set_rate(10.0)
    assert woken == [True]
    assert traffic.due(2000.0) == []
    assert 10 <= len(traffic.due(2001.0)) <= 20
    traffic.set_rate(0.0)
    assert traffic.due(3000.0) == []


@pytest.mark.parametrize("kind", KINDS)
def test_make_produces_one_item_event_of_the_kind(kind: str) -> None:
    (mailbox,) = office(1)
    for _ in range(3):
        events = make(mailbox, kind, Random(1), 1.0)
        assert [e.kind for e in events if e.item_id and e.kind == kind] == [kind]
