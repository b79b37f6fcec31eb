"""What differs and what was told, as transcripts of made-up mailboxes."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.catchup.differences import (
    Context,
    Differences,
    Record,
    as_found,
    below,
    compare,
    folder_events,
    item_events,
    most_created,
    parted,
)
from listener.catchup.history import DeliveryHistory, Notes
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


def notes(*events: MailboxEvent) -> Notes:
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
    ("told", "found", "wanted"),
    [
        # Nothing was told.
        ((), change(CREATE), ["item.created", "item.new_mail"]),
        ((), change(UPDATE), ["item.modified"]),
        ((), change(READ), ["item.modified"]),
        ((), change(DELETE), ["item.deleted"]),
        # All was told.
        ((event("item.created"), event("item.new_mail")), change(CREATE), []),
        ((event("item.moved", old_item_id="y"),), change(CREATE), []),
        ((event("item.moved", item="y", old_item_id="x"),), change(DELETE), []),
        ((event("item.copied", old_item_id="y"),), change(CREATE), []),
        ((event("item.modified"),), change(UPDATE), []),
        ((event("item.modified"),), change(READ), []),
        ((event("item.deleted"),), change(DELETE), []),
        # An earlier state was told.
        (
            (event("item.created", key="k0"), event("item.new_mail", key="k0")),
            change(CREATE),
            ["item.modified"],
        ),
        ((event("item.modified", key="k0"),), change(UPDATE), ["item.modified"]),
        # A later deed was told, the creation was not.
        ((event("item.modified"),), change(CREATE), ["item.created", "item.new_mail"]),
        # Of the creation only a half was told.
        ((event("item.created"),), change(CREATE), ["item.new_mail"]),
        # A read flag may change without the change key.
        ((event("item.created"), event("item.new_mail")), change(READ), ["item.modified"]),
        # What is older than the knowledge of the folder was moved here.
        ((), change(CREATE, made="2025-01-01T00:00:00Z"), ["item.created"]),
        # A server that leaves out change keys.
        (
            (event("item.created", key=None), event("item.new_mail", key=None)),
            change(CREATE),
            ["item.modified"],
        ),
        # Of another item.
        ((event("item.deleted", item="y"),), change(DELETE), ["item.deleted"]),
    ],
)
def test_after_a_gap(told: tuple[MailboxEvent, ...], found: Change, wanted: list[str]) -> None:
    events = item_events(found, context(), notes(*told))
    assert words(events) == wanted
    for each in events:
        assert each.recovered
        assert (each.item_id, each.parent_folder_id, each.time) == ("x", "inbox", T3)
        assert each.change_key == found.change_key


@pytest.mark.parametrize(
    ("kinds", "told", "found", "wanted"),
    [
        (ALL, (), change(CREATE), ["item.created", "item.new_mail"]),
        (ALL, (event("item.created"),), change(CREATE), []),
        (ALL, (event("item.created", key=None),), change(CREATE), []),
        (ALL, (event("item.modified", key=None),), change(UPDATE), []),
        # Without moves in the subscription, the stream says nothing of them.
        (ALL - {"moved"}, (), change(CREATE, made="2025-01-01T00:00:00Z"), []),
        (ALL - {"moved"}, (), change(DELETE), []),
        (frozenset(("new_mail",)), (), change(CREATE), ["item.new_mail"]),
        (frozenset(("new_mail",)), (event("item.new_mail"),), change(CREATE, key="k2"), []),
        (frozenset(("new_mail",)), (), change(UPDATE), []),
    ],
)
def test_in_a_sweep(
    kinds: frozenset[str], told: tuple[MailboxEvent, ...], found: Change, wanted: list[str]
) -> None:
    assert words(item_events(found, context(trusting=True, kinds=kinds), notes(*told))) == wanted


def test_a_calendar_has_free_and_busy_times() -> None:
    calendar = folder(folder_id="calendar", folder_class="IPF.Appointment")
    about = context(folder=calendar, is_inbox=False)
    assert words(item_events(change(UPDATE), about, Notes())) == ["item.modified", "item.free_busy_changed"]
    assert item_events(change(UPDATE), about, notes(event("item.modified"))) == []


def test_the_ids_are_those_of_the_streamed_events() -> None:
    (found, mail) = item_events(change(CREATE), context(), Notes())
    assert found.id == event("item.created").id
    assert mail.id == event("item.new_mail").id
    (gone,) = item_events(change(DELETE, key=None), context(), Notes())
    assert gone.id == event("item.deleted").id


# --- folders


def test_a_folder_that_has_not_changed_is_not_touched() -> None:
    same = {"inbox": Record(folder=INBOX, settled=True)}
    assert compare(same, {"inbox": INBOX}) == ((), (), (), frozenset(), ())


@pytest.mark.parametrize(
    "changes",
    [
        {"commit_time_max": T2},
        {"deleted_count_total": 4},
        {"total_count": 11},
        {"unread_count": 3},
        {"change_key": "i2"},
        # A server that does not tell is asked each time.
        {"commit_time_max": None},
        {"deleted_count_total": None},
    ],
)
def test_marks_that_moved(changes: dict[str, Any]) -> None:
    known = {"inbox": Record(folder=INBOX, settled=True)}
    assert compare(known, {"inbox": folder(**changes)}).touched == {"inbox"}


def test_what_changed_lately_is_looked_at_once_more() -> None:
    assert compare({"inbox": Record(folder=INBOX)}, {"inbox": INBOX}).touched == {"inbox"}


def test_folders_come_and_go_and_move() -> None:
    moved, goes, renamed = (folder(folder_id=id_, change_key=f"{id_}1") for id_ in ("m", "g", "r"))
    comes = folder(folder_id="c", change_key="c1", parent_folder_id="m")
    known = {each.folder_id: Record(folder=each) for each in (moved, goes, renamed)}
    now = [
        folder(moved, parent_folder_id="bin", change_key="m2"),
        folder(renamed, display_name="other", change_key="r2"),
        comes,
    ]
    differences = compare(known, {each.folder_id: each for each in now})
    about = context(folder=None)
    events = folder_events(differences, about, Notes())
    assert [(each.type, each.folder_id) for each in events] == [
        ("exchange.folder.created", "c"),
        ("exchange.folder.moved", "m"),
        ("exchange.folder.modified", "r"),
        ("exchange.folder.deleted", "g"),
    ]
    assert (events[1].old_parent_folder_id, events[1].parent_folder_id) == ("top", "bin")
    told = notes(
        event("folder.created", item="c", key="c1", parent_folder_id="m"),
        event("folder.moved", item="m", key="m2", parent_folder_id="bin"),
        event("folder.modified", item="r", key="r2"),
        event("folder.deleted", item="g", key="g2"),
    )
    assert folder_events(differences, about, told) == []
    # It was moved twice, and the last move was not told.
    told = notes(event("folder.moved", item="m", key="m1", parent_folder_id="elsewhere"))
    assert "folder.moved" in words(folder_events(differences, about, told))


def test_the_contents_of_folders() -> None:
    now = folder(total_count=11, unread_count=3)
    differences = compare({"inbox": Record(folder=INBOX)}, {"inbox": now})
    # This server gives the folder the same change key all the time: then the count tells.
    assert words(folder_events(differences, context(), Notes())) == ["folder.modified"]
    earlier, latest = (event("folder.modified", item="inbox", key="i1", unread_count=n) for n in (2, 3))
    assert words(folder_events(differences, context(), notes(earlier))) == ["folder.modified"]
    assert folder_events(differences, context(), notes(earlier, latest)) == []
    # In a sweep any of its events will do, since they cannot be told apart.
    assert folder_events(differences, context(trusting=True), notes(earlier)) == []
    assert words(folder_events(differences, context(trusting=True), Notes())) == ["folder.modified"]


def test_of_a_folder_that_was_copied_with_all_in_it_one_event_tells() -> None:
    upper, lower = folder(folder_id="u"), folder(folder_id="l", parent_folder_id="u")
    came = compare({}, {each.folder_id: each for each in (upper, lower)})
    copied = notes(event("folder.copied", item="u", key="i1"))
    assert folder_events(came, context(trusting=True), copied) == []
    assert [each.folder_id for each in folder_events(came, context(), copied)] == ["l"]
    # Of two folders that were made one after the other, each is told of.
    made = notes(event("folder.created", item="u", key="i1"))
    assert [each.folder_id for each in folder_events(came, context(trusting=True), made)] == ["l"]


def test_of_a_tree_that_went_each_folder_is_told_of() -> None:
    upper, lower = folder(folder_id="u"), folder(folder_id="l", parent_folder_id="u")
    tree = {each.folder_id: each for each in (upper, lower)}
    gone = compare({id_: Record(folder=each) for id_, each in tree.items()}, {})
    told = notes(event("folder.deleted", item="u"))
    for trusting in (True, False):
        events = folder_events(gone, context(trusting=trusting), told)
        assert [each.folder_id for each in events] == ["l"]


def test_of_a_folder_that_may_have_changed_its_present_state_is_told() -> None:
    doubt = Differences((), (), (), frozenset(), doubtful=(INBOX,))
    assert words(folder_events(doubt, context(), Notes())) == ["folder.modified"]
    assert folder_events(doubt, context(), notes(event("folder.modified", item="inbox", key="i1"))) == []
    earlier = notes(event("folder.modified", item="inbox", key="i0"))
    assert words(folder_events(doubt, context(), earlier)) == ["folder.modified"]


def test_below() -> None:
    tree = {"root": "root", "top": "root", "inbox": "top", "sub": "inbox", "other": "root", "lost": "nowhere"}
    folders = {id_: folder(folder_id=id_, parent_folder_id=parent) for id_, parent in tree.items()}
    assert [each.folder_id for each in below("top", folders)] == ["top", "inbox", "sub"]
    # Nobody should send us circles, but who knows.
    circle = {a: folder(folder_id=a, parent_folder_id=b) for a, b in (("a", "b"), ("b", "a"))}
    assert below("top", circle) == []


def test_how_many_can_have_come() -> None:
    assert most_created(INBOX, folder(total_count=12, deleted_count_total=4)) == 3
    assert most_created(INBOX, folder(total_count=5, deleted_count_total=8)) == 0
    assert most_created(INBOX, folder(total_count=None)) is None
    assert most_created(folder(deleted_count_total=None), INBOX) is None


def test_items_that_were_found_by_their_times() -> None:
    assert as_found(change(UPDATE, made=T2), moment(T1)).kind is CREATE
    assert as_found(change(CREATE, made=T1), moment(T2)).kind is UPDATE
    assert as_found(change(UPDATE, made=None), moment(T2)).kind is CREATE
    new = Change(kind=CREATE, item_id="n", last_modified_time=T2)
    old = Change(kind=CREATE, item_id="o", last_modified_time=T1)
    gone = change(DELETE)
    assert parted([new, old, gone], moment(T2)) == ([old], [new, gone])
    assert parted([new, old, gone], None) == ([], [new, old, gone])


def test_moments() -> None:
    assert moment("2026-03-01T12:00:00.5Z") == datetime(2026, 3, 1, 12, 0, 0, 500_000, UTC)
    for nonsense in (None, "", "yesterday", "2026-03-01T12:00:00"):
        assert moment(nonsense) is None


# --- what was told


def test_what_came_before_a_comparison_began_is_forgotten_when_it_is_done() -> None:
    delivered = DeliveryHistory()
    delivered.note([event("item.modified", key="before")])
    delivered.begin(ANNA)
    delivered.note([event("item.modified", key="meanwhile")])
    known = delivered.of(ANNA)
    assert known.has("x", "before")
    # It came to nothing, and is tried again.
    delivered.begin(ANNA)
    assert known.has("x", "before")
    delivered.done(ANNA)
    assert not known.has("x", "before")
    assert not known.has("x", "meanwhile")
    assert known.seen("inbox") == {"x"}


def test_things_that_were_seen() -> None:
    known = notes(
        event("item.created", item="a"),
        event("item.modified", item="b"),
        event("item.moved", item="c", old_item_id="b", old_parent_folder_id="inbox", parent_folder_id="bin"),
        event("item.deleted", item="c", parent_folder_id="bin"),
        event("folder.created", item="f"),
        event("folder.modified", item="g"),
        event("item.created", item="d", recovered=True),
    )
    assert known.seen("inbox") == {"a"}
    assert known.seen("bin") == set()
    assert known.seen() == {"f"}
    known.look({"a", "z"}, "inbox")
    assert known.seen("inbox") == set()


def test_the_items_that_are_there_as_far_as_handlers_know() -> None:
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
    here = delivered.present
    assert (here.of(ANNA, "inbox"), here.of(ANNA, "bin"), len(here)) == ({"a"}, {"c"}, 2)
    # Comparing does not make them forgotten; going does.
    delivered.begin(ANNA)
    delivered.done(ANNA)
    delivered.note([event("item.deleted", item="c", parent_folder_id="bin")])
    assert (here.of(ANNA, "inbox"), here.of(ANNA, "bin")) == ({"a"}, set())
    # The latest are kept: those that were told of again are among them.
    delivered.note(event("item.created", item=id_) for id_ in "de")
    delivered.note(event("item.modified", item=id_) for id_ in "ag")
    assert (here.of(ANNA, "inbox"), len(here)) == ({"a", "e", "g"}, 3)
    delivered.drop(ANNA)
    assert (here.of(ANNA, "inbox"), len(here)) == (set(), 0)


def test_memory_is_bounded_for_each_mailbox() -> None:
    delivered = DeliveryHistory(each=100)
    delivered.note(event("item.modified", item=f"{number}") for number in range(60))
    assert delivered.of(ANNA).forgetful
    assert len(delivered) == len(delivered.of(ANNA)) <= 100
    # Comparing makes up for it, unless it was too much again meanwhile.
    delivered.begin(ANNA)
    delivered.note(event("item.modified", item=f"{number}") for number in range(60))
    delivered.done(ANNA)
    assert delivered.of(ANNA).forgetful
    delivered.begin(ANNA)
    delivered.done(ANNA)
    assert not delivered.of(ANNA).forgetful


def test_memory_is_bounded_for_all_mailboxes() -> None:
    delivered = DeliveryHistory(total=100)
    delivered.note(event("item.modified", item=f"{number}") for number in range(20))
    ben = [
        MailboxEvent(type="exchange.item.modified", mailbox="ben@example.org", time=T1, item_id=f"{number}")
        for number in range(25)
    ]
    delivered.note(ben)
    assert len(delivered) <= 100
    assert [delivered.of(who).forgetful for who in (ANNA, "ben@example.org")] == [True, False]
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
def test_the_count_is_right(steps: list[Any], each: int) -> None:
    delivered = DeliveryHistory(each=each, total=60)
    for step in steps:
        match step:
            case "begin":
                delivered.begin(ANNA)
            case "done":
                delivered.done(ANNA)
            case "look":
                delivered.look(ANNA, "abc", "inbox")
            case _:
                delivered.note([step])
        assert len(delivered) == len(delivered.of(ANNA)) <= each
