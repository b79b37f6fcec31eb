import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener import MailboxEvent
from listener.filters import EVENT_TYPES

FIELDS: dict[str, Any] = {
    "type": "exchange.item.moved",
    "mailbox": "alice@example.com",
    "time": "2026-03-01T12:00:00.1234567Z",
    "item_id": "AAA=",
    "change_key": "CQAAAA==",
    "parent_folder_id": "FFF=",
    "old_item_id": "BBB=",
    "old_parent_folder_id": "GGG=",
}
EVENT = MailboxEvent(**FIELDS)


def test_cloudevents_form() -> None:
    """The required attributes of CloudEvents 1.0 and its JSON format."""
    assert json.loads(EVENT.to_json()) == {
        "specversion": "1.0",
        "id": EVENT.id,
        "type": "exchange.item.moved",
        "source": "mailto:alice@example.com",
        "subject": "AAA=",
        "time": "2026-03-01T12:00:00.1234567Z",
        "datacontenttype": "application/json",
        "data": {
            "mailbox": "alice@example.com",
            "item_id": "AAA=",
            "change_key": "CQAAAA==",
            "parent_folder_id": "FFF=",
            "old_item_id": "BBB=",
            "old_parent_folder_id": "GGG=",
        },
    }


def test_json_is_one_line() -> None:
    assert "\n" not in MailboxEvent(**FIELDS | {"mailbox": "a\nb@example.com"}).to_json()


def test_repeated_folder_moves_have_different_ids() -> None:
    fields = FIELDS | {"type": "exchange.folder.moved", "item_id": None, "folder_id": "AAA="}
    moved = MailboxEvent(**fields)
    again = [{"change_key": "CQAAAB=="}, {"parent_folder_id": "HHH="}]
    assert len({moved.id, *(MailboxEvent(**fields | change).id for change in again)}) == 3
    # The same move found by catch-up is the same event.
    found = {"time": "2026-03-01T12:30:00Z", "recovered": True, "old_folder_id": "AAA="}
    assert MailboxEvent(**fields | found).id == moved.id


FOLDER = FIELDS | {
    "type": "exchange.folder.moved",
    "item_id": None,
    "folder_id": "AAA=",
    "old_folder_id": "AAA=",
}
SAME_ITEM = FIELDS | {"type": "exchange.item.moved", "old_item_id": "AAA="}


@pytest.mark.parametrize("key", [None, ""])
@pytest.mark.parametrize("fields", [FOLDER, SAME_ITEM])
def test_id_of_a_move_without_change_key_depends_on_its_time(fields: dict[str, Any], key: str | None) -> None:
    """Of three moves, there, back and there again, the third differs from the first only by its time."""
    there, back, again = (
        MailboxEvent(**fields | {"change_key": key, "parent_folder_id": to, "time": time})
        for to, time in (
            ("T", "2026-03-01T12:00:00Z"),
            ("B", "2026-03-01T12:00:01Z"),
            ("T", "2026-03-01T12:00:02Z"),
        )
    )
    assert len({there.id, back.id, again.id}) == 3
    assert (
        MailboxEvent(**fields | {"change_key": key, "parent_folder_id": "T", "time": there.time}).id
        == there.id
    )


@pytest.mark.parametrize("fields", [FOLDER, SAME_ITEM])
def test_id_of_a_move_with_change_key_ignores_its_time(fields: dict[str, Any]) -> None:
    moved = MailboxEvent(**fields)
    assert MailboxEvent(**fields | {"time": "2027-01-01T00:00:00Z", "recovered": True}).id == moved.id
    assert MailboxEvent(**fields | {"change_key": "other"}).id != moved.id


def test_id_of_a_folder_move_with_change_key_is_stable() -> None:
    what = (
        "exchange.folder.moved",
        FIELDS["mailbox"],
        "AAA=",
        FIELDS["parent_folder_id"],
        FIELDS["change_key"],
    )
    assert MailboxEvent(**FOLDER).id == blake2b(msgspec.json.encode(what), digest_size=16).hexdigest()


@pytest.mark.parametrize("what", ["item", "folder"])
def test_repeated_free_busy_changes_have_different_ids(what: str) -> None:
    fields = {"type": f"exchange.{what}.free_busy_changed", "mailbox": "a@b.c", f"{what}_id": "A"}
    times = ("2026-03-01T12:00:00Z", "2026-03-01T12:00:01Z")
    assert len({MailboxEvent(**fields, time=time).id for time in times}) == 2  # type: ignore[arg-type]


def test_id_of_a_repeatable_change_depends_on_all_fields() -> None:
    fields = FIELDS | {"type": "exchange.item.modified"}
    event = MailboxEvent(**fields)
    assert MailboxEvent(**fields).id == event.id
    assert len(event.id) == 32
    changed: list[dict[str, Any]] = [{name: f"{value}x"} for name, value in fields.items()]
    changed += [{"folder_id": "AAA=", "item_id": None}, {"unread_count": 0}]
    ids = {MailboxEvent(**fields | change).id for change in changed}
    assert len(ids) == len(changed)
    assert event.id not in ids


@pytest.mark.parametrize("kind", ["created", "deleted", "moved", "copied", "new_mail"])
def test_id_of_a_unique_change_is_the_same_for_stream_and_catch_up(kind: str) -> None:
    fields = FIELDS | {"type": f"exchange.item.{kind}"}
    event = MailboxEvent(**fields)
    assert MailboxEvent(**fields | {"time": "2027-01-01T00:00:00Z", "change_key": None}).id == event.id
    for other in ({"type": "exchange.item.modified"}, {"mailbox": "bob@example.com"}, {"item_id": "BBB="}):
        assert MailboxEvent(**fields | other).id != event.id


def test_ids_are_stable_across_releases() -> None:
    """Receivers store ids to recognize repeats, across restarts and upgrades of the listener."""
    assert EVENT.id == "c7377a5c92176299599f3e9cb9945db1"
    modified = MailboxEvent(**FIELDS | {"type": "exchange.item.modified"})
    assert modified.id == "9b090c9d483708e545b733027e7e3bee"


def test_subject_is_the_item_or_folder_id() -> None:
    assert EVENT.subject == "AAA="
    folder = MailboxEvent(
        type="exchange.folder.modified", mailbox="a@b.c", time="t", folder_id="F", unread_count=0
    )
    assert folder.subject == "F"
    assert folder.to_cloudevent()["data"] == {"mailbox": "a@b.c", "folder_id": "F", "unread_count": 0}
    nothing = MailboxEvent(type="exchange.listener.gap", mailbox="a@b.c", time="t")
    assert "subject" not in nothing.to_cloudevent()


@pytest.mark.parametrize(
    ("mailbox", "source"),
    [("o'neil+x@example.com", "mailto:o'neil+x@example.com"), ("a?b#c%@example.com", "mailto:a?b%23c%25@example.com"),
     ("jürgen@example.com", "mailto:j%C3%BCrgen@example.com")],
)  # fmt: skip
def test_source_is_a_uri(mailbox: str, source: str) -> None:
    assert MailboxEvent(**FIELDS | {"mailbox": mailbox}).source == source


def test_event_is_immutable() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        EVENT.type = "x"  # type: ignore[misc]


@given(st.builds(MailboxEvent))
def test_json_has_every_field(event: MailboxEvent) -> None:
    document = json.loads(event.to_json())
    fields = msgspec.structs.asdict(event)
    fields = {name: value for name, value in fields.items() if value is not None and value is not False}
    assert {"type": document["type"], "time": document["time"]} | document["data"] == fields


def test_documentation_lists_every_type() -> None:
    text = (Path(__file__).parent.parent / "docs/EVENTS.md").read_text()
    assert not [name for name in EVENT_TYPES if f"`{name}`" not in text]
    (example,) = (line for line in text.splitlines() if line.startswith('{"specversion"'))
    document = json.loads(example)
    event = MailboxEvent(type=document["type"], time=document["time"], **document["data"])
    assert event.to_json() == example
