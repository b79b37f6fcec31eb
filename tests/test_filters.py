from typing import Any

import pytest

from listener import MailboxEvent
from listener.filters import EVENT_TYPES, EventFilter, check_type


def event(
    type_: str = "exchange.item.created", mailbox: str = "alice@example.com", **folders: Any
) -> MailboxEvent:
    return MailboxEvent(type=type_, mailbox=mailbox, time="2026-01-01T00:00:00Z", item_id="i", **folders)


def passed(*types: str) -> set[str]:
    chosen = EventFilter(types=types)
    return {name.removeprefix("exchange.") for name in EVENT_TYPES if chosen.matches(event(name))}


def test_default_filter_matches_every_change_but_no_listener_event() -> None:
    everything = EventFilter()
    assert [name for name in EVENT_TYPES if not everything.matches(event(name))] == [
        "exchange.listener.gap",
        "exchange.listener.recovered",
        "exchange.listener.reset",
        "exchange.listener.suspended",
        "exchange.listener.resumed",
    ]


def test_types_match_by_name_glob_and_short_name() -> None:
    assert passed("exchange.item.moved") == {"item.moved"}
    assert passed("created") == {"item.created", "folder.created"}
    assert passed("exchange.listener.*") == {
        "listener.gap",
        "listener.recovered",
        "listener.reset",
        "listener.suspended",
        "listener.resumed",
    }
    assert passed("gap") == {"listener.gap"}
    assert passed("*_changed") == {"item.free_busy_changed", "folder.free_busy_changed"}
    assert len(passed("*")) == len(EVENT_TYPES)


@pytest.mark.parametrize("mailbox", ["alice@example.com", "Alice@Example.com"])
@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("ALICE@example.com", True),
        ("*@example.com", True),
        ("a*", True),
        ("*", True),
        ("bob@example.com", False),
    ],
)
def test_mailboxes_match_case_insensitively(mailbox: str, pattern: str, matches: bool) -> None:
    chosen = EventFilter(mailboxes=[pattern])
    assert [chosen.matches(event(mailbox=mailbox)) for _ in range(2)] == [matches, matches]


@pytest.mark.parametrize("field", ["folder_id", "parent_folder_id", "old_parent_folder_id"])
def test_folders_match_any_folder_of_the_event(field: str) -> None:
    chosen = EventFilter(folders=["AAA=", "BBB="])
    assert chosen.matches(event(**{field: "AAA="}))
    assert not chosen.matches(event(**{field: "aaa="}))
    assert not chosen.matches(event())


def test_all_lists_must_match() -> None:
    chosen = EventFilter(mailboxes=["a@b.c"], types=["created"], folders=["F"])
    assert chosen.matches(event(mailbox="a@b.c", parent_folder_id="F"))
    assert not chosen.matches(event(mailbox="x@b.c", parent_folder_id="F"))
    assert not chosen.matches(event("exchange.item.moved", mailbox="a@b.c", parent_folder_id="F"))


def test_pattern_that_matches_no_type_is_an_error() -> None:
    assert check_type("created") is None
    assert check_type("exchange.*.gap") is None
    assert check_type("creatd") == 'no event type matches "creatd", did you mean "created"?'
    assert (
        check_type("exchange.items.created")
        == 'no event type matches "exchange.items.created", did you mean "exchange.item.created"?'
    )
