"""Differences between snapshots and mailboxes, and the events that report them."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.catchup.differences import (
    Context,
    Differences,
    FolderRecord,
    as_change,
    compare,
    folder_events,
    item_events,
    max_created,
    split_old,
    subtree,
)
from listener.catchup.history import DeliveryHistory, MailboxHistory
from listener.event import MailboxEvent
from listener.ews.folders import Folder
from listener.ews.sync import Change, ChangeKind
from listener.ews.values import moment

ALL = frozenset(("copied", "created", "deleted", "modified", "moved", "new_mail", "free_busy_changed"))
ANNA = "anna@example.org"
T1, T2, T3 = "2026-03-01T12:00:00Z", "2026-03-01T12:10:00Z", "2026-03-01T12:20:00Z"
INBOX = Folder(
    folder_id="inbox",
    change_key="i1",
    parent_folder_id="top",
    display_name="Inbox",
    folder_class="IPF.Note",
    commit_time_max=T1,
    deleted_count_total=3,
    total_count=10,
    unread_count=2,
)


def folder(base: Folder = INBOX, **changes: Any) -> Folder:
    fields = {name: getattr(base, name) for name in base.__struct_fields__}
    return Folder(**fields | changes)


def event(type_: str, item: str = "x", key: str | None = "k1", **more: Any) -> MailboxEvent:
    fields: dict[str, Any] = {"parent_folder_id": "inbox"} | more
    what: dict[str, Any] = {"folder_id": item} if type_.startswith("folder") else {"item_id": item}
    return MailboxEvent(type=f"exchange.{type_}", mailbox=ANNA, time=T2, change_key=key, **what, **fields)


def history(*events: MailboxEvent) -> MailboxHistory:
    delivered = DeliveryHistory()
    delivered.note(events)
    return delivered.of(ANNA)


def change(kind: ChangeKind, key: str | None = "k1", made: str | None = T2, item: str = "x") -> Change:
    return Change(kind=kind, item_id=item, change_key=key, date_time_created=made)


def context(**more: Any) -> Context:
    given: dict[str, Any] = {"folder": INBOX, "is_inbox": True, "cutoff": moment(T1)}
    return Context(**{"mailbox": ANNA, "kinds": ALL, "time": T3} | given | more)


def words(events: list[MailboxEvent]) -> list[str]:
    return [each.type.removeprefix("exchange.") for each in events]


CREATE, UPDATE, DELETE, READ = ChangeKind.CREATE, ChangeKind.UPDATE, ChangeKind.DELETE, ChangeKind.READ_FLAG


@pytest.mark.parametrize(
    ("reported", "found", "expected"),
    [
        # Nothing was reported.
        ((), change(CREATE), ["item.created", "item.new_mail"]),
        ((), change(UPDATE), ["item.modified"]),
        ((), change(READ), ["item.modified"]),
        ((), change(DELETE), ["item.deleted"]),
        # All was reported.
        ((event("item.created"), event("item.new_mail")), change(CREATE), []),
        ((event("item.moved", old_item_id="y"),), change(CREATE), []),
        ((event("item.moved", item="y", old_item_id="x"),), change(DELETE), []),
        ((event("item.copied", old_item_id="y"),), change(CREATE), []),
        ((event("item.modified"),), change(UPDATE), []),
        ((event("item.modified"),), change(READ), []),
        ((event("item.deleted"),), change(DELETE), []),
        # An earlier state was reported.
        (
            (event("item.created", key="k0"), event("item.new_mail", key="k0")),
            change(CREATE),
            ["item.modified"],
        ),
        ((event("item.modified", key="k0"),), change(UPDATE), ["item.modified"]),
        # A later change was reported, the creation was not.
        ((event("item.modified"),), change(CREATE), ["item.created", "item.new_mail"]),
        # Of the two events of a creation, only one was reported.
        ((event("item.created"),), change(CREATE), ["item.new_mail"]),
        # A read flag may change without the change key.
        ((event("item.created"), event("item.new_mail")), change(READ), ["item.modified"]),
        # An item that is older than the folder's snapshot was moved here.
        ((), change(CREATE, made="2025-01-01T00:00:00Z"), ["item.created"]),
        # A server that leaves out change keys.
        (
            (event("item.created", key=None), event("item.new_mail", key=None)),
            change(CREATE),
            ["item.modified"],
        ),
        # Another item was reported as deleted.
        ((event("item.deleted", item="y"),), change(DELETE), ["item.deleted"]),
    ],
)
def test_after_a_gap(reported: tuple[MailboxEvent, ...], found: Change, expected: list[str]) -> None:
    events = item_events(found, context(), history(*reported))
    assert words(events) == expected
    for each in events:
        assert each.recovered
        assert (each.item_id, each.parent_folder_id, each.time) == ("x", "inbox", T3)
        assert each.change_key == found.change_key


@pytest.mark.parametrize(
    ("kinds", "reported", "found", "expected"),
    [
        (ALL, (), change(CREATE), ["item.created", "item.new_mail"]),
        (ALL, (event("item.created"),), change(CREATE), []),
        (ALL, (event("item.created", key=None),), change(CREATE), []),
        (ALL, (event("item.modified", key=None),), change(UPDATE), []),
        # If moves are not subscribed, the stream does not report them.
        (ALL - {"moved"}, (), change(CREATE, made="2025-01-01T00:00:00Z"), []),
        (ALL - {"moved"}, (), change(DELETE), []),
        (frozenset(("new_mail",)), (), change(CREATE), ["item.new_mail"]),
        (frozenset(("new_mail",)), (event("item.new_mail"),), change(CREATE, key="k2"), []),
        (frozenset(("new_mail",)), (), change(UPDATE), []),
    ],
)
def test_in_a_sweep(
    kinds: frozenset[str], reported: tuple[MailboxEvent, ...], found: Change, expected: list[str]
) -> None:
    assert (
        words(item_events(found, context(stream_reliable=True, kinds=kinds), history(*reported))) == expected
    )


def test_calendar_changes_include_free_busy_events() -> None:
    calendar = folder(folder_id="calendar", folder_class="IPF.Appointment")
    about_folder = context(folder=calendar, is_inbox=False)
    assert words(item_events(change(UPDATE), about_folder, MailboxHistory())) == [
        "item.modified",
        "item.free_busy_changed",
    ]
    assert item_events(change(UPDATE), about_folder, history(event("item.modified"))) == []


def test_recovered_events_have_the_ids_of_streamed_events() -> None:
    (found, mail) = item_events(change(CREATE), context(), MailboxHistory())
    assert found.id == event("item.created").id
    assert mail.id == event("item.new_mail").id
    (gone,) = item_events(change(DELETE, key=None), context(), MailboxHistory())
    assert gone.id == event("item.deleted").id


# --- folders


def test_unchanged_folder_is_not_touched() -> None:
    same = {"inbox": FolderRecord(folder=INBOX, settled=True)}
    assert compare(same, {"inbox": INBOX}) == ((), (), (), frozenset(), ())


@pytest.mark.parametrize(
    "changes",
    [
        {"commit_time_max": T2},
        {"deleted_count_total": 4},
        {"total_count": 11},
        {"unread_count": 3},
        {"change_key": "i2"},
        # If a server sends no marks, the folder is compared each time.
        {"commit_time_max": None},
        {"deleted_count_total": None},
    ],
)
def test_changed_marks_touch_the_folder(changes: dict[str, Any]) -> None:
    known = {"inbox": FolderRecord(folder=INBOX, settled=True)}
    assert compare(known, {"inbox": folder(**changes)}).touched == {"inbox"}


def test_recently_changed_folder_is_compared_once_more() -> None:
    assert compare({"inbox": FolderRecord(folder=INBOX)}, {"inbox": INBOX}).touched == {"inbox"}


def test_created_deleted_and_moved_folders() -> None:
    moved, goes, renamed = (folder(folder_id=id_, change_key=f"{id_}1") for id_ in ("m", "g", "r"))
    comes = folder(folder_id="c", change_key="c1", parent_folder_id="m")
    known = {each.folder_id: FolderRecord(folder=each) for each in (moved, goes, renamed)}
    now = [
        folder(moved, parent_folder_id="bin", change_key="m2"),
        folder(renamed, display_name="other", change_key="r2"),
        comes,
    ]
    differences = compare(known, {each.folder_id: each for each in now})
    about_folder = context(folder=None)
    events = folder_events(differences, about_folder, MailboxHistory())
    assert [(each.type, each.folder_id) for each in events] == [
        ("exchange.folder.created", "c"),
        ("exchange.folder.moved", "m"),
        ("exchange.folder.modified", "r"),
        ("exchange.folder.deleted", "g"),
    ]
    assert (events[1].old_parent_folder_id, events[1].parent_folder_id) == ("top", "bin")
    reported = history(
        event("folder.created", item="c", key="c1", parent_folder_id="m"),
        event("folder.moved", item="m", key="m2", parent_folder_id="bin"),
        event("folder.modified", item="r", key="r2"),
        event("folder.deleted", item="g", key="g2"),
    )
    assert folder_events(differences, about_folder, reported) == []
    # It was moved twice, and the last move was not reported.
    reported = history(event("folder.moved", item="m", key="m1", parent_folder_id="elsewhere"))
    assert "folder.moved" in words(folder_events(differences, about_folder, reported))


def test_changed_contents_of_folders() -> None:
    now = folder(total_count=11, unread_count=3)
    differences = compare({"inbox": FolderRecord(folder=INBOX)}, {"inbox": now})
    # This server never changes the folder's change key. The unread count shows the change.
    assert words(folder_events(differences, context(), MailboxHistory())) == ["folder.modified"]
    earlier, latest = (event("folder.modified", item="inbox", key="i1", unread_count=n) for n in (2, 3))
    assert words(folder_events(differences, context(), history(earlier))) == ["folder.modified"]
    assert folder_events(differences, context(), history(earlier, latest)) == []
    # In a sweep any event about the folder suffices, since they do not differ.
    assert folder_events(differences, context(stream_reliable=True), history(earlier)) == []
    assert words(folder_events(differences, context(stream_reliable=True), MailboxHistory())) == [
        "folder.modified"
    ]


def test_copied_folder_tree_is_one_event() -> None:
    upper, lower = folder(folder_id="u"), folder(folder_id="l", parent_folder_id="u")
    came = compare({}, {each.folder_id: each for each in (upper, lower)})
    copied = history(event("folder.copied", item="u", key="i1"))
    assert folder_events(came, context(stream_reliable=True), copied) == []
    assert [each.folder_id for each in folder_events(came, context(), copied)] == ["l"]
    # Two folders that were created one after the other are both reported.
    made = history(event("folder.created", item="u", key="i1"))
    assert [each.folder_id for each in folder_events(came, context(stream_reliable=True), made)] == ["l"]


def test_deleted_folder_tree_is_one_event_per_folder() -> None:
    upper, lower = folder(folder_id="u"), folder(folder_id="l", parent_folder_id="u")
    tree = {each.folder_id: each for each in (upper, lower)}
    gone = compare({id_: FolderRecord(folder=each) for id_, each in tree.items()}, {})
    reported = history(event("folder.deleted", item="u"))
    for stream_reliable in (True, False):
        events = folder_events(gone, context(stream_reliable=stream_reliable), reported)
        assert [each.folder_id for each in events] == ["l"]


def test_uncertain_folder_is_reported_unless_its_state_was() -> None:
    differences = Differences((), (), (), frozenset(), uncertain=(INBOX,))
    assert words(folder_events(differences, context(), MailboxHistory())) == ["folder.modified"]
    assert (
        folder_events(differences, context(), history(event("folder.modified", item="inbox", key="i1"))) == []
    )
    earlier = history(event("folder.modified", item="inbox", key="i0"))
    assert words(folder_events(differences, context(), earlier)) == ["folder.modified"]


def test_subtree() -> None:
    tree = {"root": "root", "top": "root", "inbox": "top", "sub": "inbox", "other": "root", "lost": "missing"}
    folders = {id_: folder(folder_id=id_, parent_folder_id=parent) for id_, parent in tree.items()}
    assert [each.folder_id for each in subtree("top", folders)] == ["top", "inbox", "sub"]
    # A faulty server may send a cycle of parents.
    cycle = {a: folder(folder_id=a, parent_folder_id=b) for a, b in (("a", "b"), ("b", "a"))}
    assert subtree("top", cycle) == []


def test_max_created() -> None:
    assert max_created(INBOX, folder(total_count=12, deleted_count_total=4)) == 3
    assert max_created(INBOX, folder(total_count=5, deleted_count_total=8)) == 0
    assert max_created(INBOX, folder(total_count=None)) is None
    assert max_created(folder(deleted_count_total=None), INBOX) is None


def test_items_that_were_found_by_their_times() -> None:
    assert as_change(change(UPDATE, made=T2), moment(T1)).kind is CREATE
    assert as_change(change(CREATE, made=T1), moment(T2)).kind is UPDATE
    assert as_change(change(UPDATE, made=None), moment(T2)).kind is CREATE
    new = Change(kind=CREATE, item_id="n", last_modified_time=T2)
    old = Change(kind=CREATE, item_id="o", last_modified_time=T1)
    gone = change(DELETE)
    assert split_old([new, old, gone], moment(T2)) == ([old], [new, gone])
    assert split_old([new, old, gone], None) == ([], [new, old, gone])


def test_moments() -> None:
    assert moment("2026-03-01T12:00:00.5Z") == datetime(2026, 3, 1, 12, 0, 0, 500_000, UTC)
    for nonsense in (None, "", "yesterday", "2026-03-01T12:00:00"):
        assert moment(nonsense) is None


# --- history


def test_events_before_a_comparison_are_dropped_when_it_succeeds() -> None:
    delivered = DeliveryHistory()
    delivered.note([event("item.modified", key="before")])
    delivered.begin_comparison(ANNA)
    delivered.note([event("item.modified", key="meanwhile")])
    known = delivered.of(ANNA)
    assert known.has("x", "before")
    # The comparison failed and is retried.
    delivered.begin_comparison(ANNA)
    assert known.has("x", "before")
    delivered.complete_comparison(ANNA)
    assert not known.has("x", "before")
    assert not known.has("x", "meanwhile")
    assert known.known_ids("inbox") == {"x"}


def test_known_ids() -> None:
    known = history(
        event("item.created", item="a"),
        event("item.modified", item="b"),
        event("item.moved", item="c", old_item_id="b", old_parent_folder_id="inbox", parent_folder_id="bin"),
        event("item.deleted", item="c", parent_folder_id="bin"),
        event("folder.created", item="f"),
        event("folder.modified", item="g"),
        event("item.created", item="d", recovered=True),
    )
    assert known.known_ids("inbox") == {"a"}
    assert known.known_ids("bin") == set()
    assert known.known_ids() == {"f"}
    known.mark_compared({"a", "z"}, "inbox")
    assert known.known_ids("inbox") == set()


def test_reported_items() -> None:
    delivered = DeliveryHistory(present=3)
    delivered.note(
        [
            event("item.created", item="a"),
            event("item.new_mail", item="a"),
            event("item.modified", item="b", recovered=True),
            event(
                "item.moved", item="c", old_item_id="b", old_parent_folder_id="inbox", parent_folder_id="bin"
            ),
            event("folder.created", item="f"),
        ]
    )
    here = delivered.reported_items
    assert (here.of(ANNA, "inbox"), here.of(ANNA, "bin"), len(here)) == ({"a"}, {"c"}, 2)
    # A comparison does not drop them. A deletion does.
    delivered.begin_comparison(ANNA)
    delivered.complete_comparison(ANNA)
    delivered.note([event("item.deleted", item="c", parent_folder_id="bin")])
    assert (here.of(ANNA, "inbox"), here.of(ANNA, "bin")) == ({"a"}, set())
    # The latest are kept. A repeated report counts as new.
    delivered.note(event("item.created", item=id_) for id_ in "de")
    delivered.note(event("item.modified", item=id_) for id_ in "ag")
    assert (here.of(ANNA, "inbox"), len(here)) == ({"a", "e", "g"}, 3)
    delivered.drop(ANNA)
    assert (here.of(ANNA, "inbox"), len(here)) == (set(), 0)


def test_history_is_bounded_for_each_mailbox() -> None:
    delivered = DeliveryHistory(each=100)
    delivered.note(event("item.modified", item=f"{number}") for number in range(60))
    assert delivered.of(ANNA).incomplete
    assert len(delivered) == len(delivered.of(ANNA)) <= 100
    # A successful comparison makes the history complete, unless it overflowed again meanwhile.
    delivered.begin_comparison(ANNA)
    delivered.note(event("item.modified", item=f"{number}") for number in range(60))
    delivered.complete_comparison(ANNA)
    assert delivered.of(ANNA).incomplete
    delivered.begin_comparison(ANNA)
    delivered.complete_comparison(ANNA)
    assert not delivered.of(ANNA).incomplete


def test_history_is_bounded_for_all_mailboxes() -> None:
    delivered = DeliveryHistory(total=100)
    delivered.note(event("item.modified", item=f"{number}") for number in range(20))
    ben = [
        MailboxEvent(type="exchange.item.modified", mailbox="ben@example.org", time=T1, item_id=f"{number}")
        for number in range(25)
    ]
    delivered.note(ben)
    assert len(delivered) <= 100
    assert [delivered.of(mailbox).incomplete for mailbox in (ANNA, "ben@example.org")] == [True, False]
    delivered.drop("ben@example.org")
    assert len(delivered) == len(delivered.of(ANNA))


TYPES = st.sampled_from(
    [f"item.{word}" for word in sorted(ALL)]
    + ["folder.created", "folder.modified", "folder.deleted", "folder.moved"]
)
STEPS = st.one_of(
    st.builds(event, TYPES, item=st.sampled_from("abc"), key=st.sampled_from(["k1", "k2", None])),
    st.sampled_from(["begin", "done", "look"]),
)


@given(st.lists(STEPS, max_size=60), st.integers(5, 40))
def test_fact_count_is_right(steps: list[Any], each: int) -> None:
    delivered = DeliveryHistory(each=each, total=60)
    for step in steps:
        match step:
            case "begin":
                delivered.begin_comparison(ANNA)
            case "done":
                delivered.complete_comparison(ANNA)
            case "look":
                delivered.mark_compared(ANNA, "abc", "inbox")
            case _:
                delivered.note([step])
        assert len(delivered) == len(delivered.of(ANNA)) <= each
