"""What the demo says of deliveries, held against what it says it says."""

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.demo.verdict import Call, Gaps, LedgerLine, Verdict, call_of, compare, read_ledger
from listener.event import MailboxEvent

KINDS = {
    "CreatedEvent": "created",
    "ModifiedEvent": "modified",
    "DeletedEvent": "deleted",
    "MovedEvent": "moved",
    "CopiedEvent": "copied",
    "NewMailEvent": "new_mail",
    "FreeBusyChangedEvent": "free_busy_changed",
}


def change(
    time: float, item: str = "item", mailbox: str = "ann@x.example", kind: str = "ModifiedEvent"
) -> LedgerLine:
    return LedgerLine(
        seq=0, time=time, mailbox=mailbox, kind=kind, item_id=item, parent_folder_id="inbox"
    )  # fmt: skip


def call(line: LedgerLine, after: float) -> Call:
    return Call(line.key, line.time + after)


def held(
    lines: list[LedgerLine], calls: list[Call], *without: tuple[float, float], who: str = "ann", **more: Any
) -> Verdict:
    """The verdict, when the lines have been numbered in the order of time; with gaps in a mailbox."""
    lines = sorted(lines, key=lambda line: line.time)
    gaps = {f"{who}@x.example": Gaps(without, **more)}
    return compare([msgspec.structs.replace(line, seq=n) for n, line in enumerate(lines, 1)], calls, gaps)


def test_nothing_happened() -> None:
    assert held([], []) == Verdict(0, 0, 0, 0, None, None)


def test_what_was_delivered_once_each() -> None:
    lines = [change(float(n), f"item{n}") for n in range(3)]
    assert held(lines, [call(line, 0.004) for line in lines]) == Verdict(3, 3, 0, 0, 4.0, 4.0)


def test_what_was_not_delivered_is_lost() -> None:
    lines = [change(1.0, "a"), change(2.0, "b"), change(3.0, "b")]
    assert held(lines, [call(lines[1], 0.01)]) == Verdict(3, 1, 0, 2, 10.0, 10.0)


def test_what_was_delivered_again_or_never_happened_is_a_duplicate() -> None:
    line = change(1.0)
    stranger = change(1.0, "stranger")
    again = [call(line, 0.01), call(line, 0.02), call(stranger, 0.01)]
    assert held([line], again) == Verdict(1, 3, 2, 0, 10.0, 10.0)


@pytest.mark.parametrize(
    "other",
    [
        change(1.0, "other"),
        change(1.0, mailbox="bob@x.example"),
        change(1.0, kind="CreatedEvent"),
        msgspec.structs.replace(change(1.0), item_id=None, folder_id="item"),
        msgspec.structs.replace(change(1.0), parent_folder_id="sent"),
    ],
    ids=["thing", "mailbox", "kind", "folder for item", "parent"],
)
def test_a_delivery_belongs_to_its_own_change_only(other: LedgerLine) -> None:
    assert held([change(1.0)], [call(other, 0.01)]) == Verdict(1, 1, 1, 1, None, None)


def test_the_kth_delivery_belongs_to_the_kth_such_change() -> None:
    first, second, third = (change(time) for time in (1.0, 2.0, 3.0))
    verdict = held([third, first, second], [call(second, 0.020), call(third, 0.030), call(first, 0.010)])
    assert verdict == Verdict(3, 3, 0, 0, 20.0, 30.0)


def test_percentiles() -> None:
    lines = [change(float(n), f"item{n}") for n in range(200)]
    calls = [call(line, (n + 1) / 1000) for n, line in enumerate(lines)]
    random.Random(1).shuffle(calls)
    verdict = held(lines, calls)
    assert verdict.p50_ms == pytest.approx(101, abs=1)
    assert verdict.p99_ms == pytest.approx(199, abs=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("item", "folder"), [("thing", None), (None, "thing")], ids=["item", "folder"])
def test_a_ledger_line_and_its_event_have_one_key(kind: str, item: str | None, folder: str | None) -> None:
    line = msgspec.structs.replace(change(1.0, kind=kind), item_id=item, folder_id=folder)
    event = MailboxEvent(
        type=f"exchange.{'item' if item else 'folder'}.{KINDS[kind]}",
        mailbox="ann@x.example",
        time="2026-01-01T00:00:00Z",
        parent_folder_id="inbox",
        item_id=item,
        folder_id=folder,
    )
    assert call_of(event, 1.0).key == line.key


def test_the_ledger_is_read_with_its_faults() -> None:
    lines = [change(1.0, "a"), change(2.0, "b")]
    fault = b'{"seq":3,"time":2.5,"mailbox":"ann@x.example","kind":"fault"}'
    written = [msgspec.json.encode(lines[0]), fault, msgspec.json.encode(lines[1])]
    assert read_ledger(written) == (lines, 1)


# --- gaps


def recovered(line: LedgerLine, after: float, kind: str = "modified") -> Call:
    return Call(line.key._replace(kind=f"exchange.item.{kind}"), line.time + after, recovered=True)


def gone(item: str, time: float) -> Call:
    """What is found of an item that is there no longer: only its id."""
    return recovered(change(time, item), 0.0, "deleted")


def moved(time: float, old: str, new: str) -> LedgerLine:
    return msgspec.structs.replace(change(time, new, kind="MovedEvent"), old_id=old)


def keyed(time: float, key: str, **more: str) -> LedgerLine:
    return msgspec.structs.replace(change(time, **more), change_key=key)


def folder(time: float, kind: str, id_: str = "inbox") -> LedgerLine:
    return msgspec.structs.replace(change(time, kind=kind), item_id=None, folder_id=id_, parent_folder_id="")


def test_a_recovered_event_tells_its_state_and_all_before_it_but_none_after() -> None:
    lines = [keyed(1.0, "k1"), keyed(2.0, "k2"), keyed(4.0, "k4")]
    for line, lost in zip(lines, (2, 1, 0), strict=True):
        # Whenever it comes: what has happened since it was found, it does not tell.
        verdict = held(lines, [recovered(line, 9.0)])
        assert (verdict.lost, verdict.duplicates, verdict.p50_ms) == (lost, 0, None)
    unknown = recovered(keyed(1.0, "k3"), 9.0)
    assert held(lines, [unknown]) == Verdict(3, 1, 1, 3, None, None)


def test_one_recovered_event_tells_all_changes_that_led_to_one_state() -> None:
    lines = [keyed(1.0, "k1", kind="CreatedEvent"), keyed(1.0, "k1", kind="NewMailEvent")]
    assert held(lines, [recovered(lines[0], 1.0, "created")]).lost == 0
    # Each event of its own is no duplicate, but the same again is one.
    calls = [recovered(line, 1.0, kind) for line, kind in zip(lines, ("created", "new_mail"), strict=True)]
    assert held(lines, calls).duplicates == 0
    assert held(lines, [*calls, *calls]).duplicates == 2


def test_a_later_state_that_a_stream_told_covers_the_earlier_ones() -> None:
    created, modified = change(1.0, kind="CreatedEvent"), change(2.0)
    assert held([created, modified], [call(modified, 0.01)]).lost == 0
    assert held([created, modified], [call(created, 0.01)]).lost == 1


def test_a_recovered_event_that_tells_nothing_new_is_a_duplicate() -> None:
    line = change(1.0)
    verdict = held([line], [call(line, 0.01), recovered(line, 5.0), recovered(change(1.0, "unknown"), 5.0)])
    assert (verdict.lost, verdict.duplicates) == (0, 2)


def test_a_moved_item_is_the_same_item_under_its_new_id() -> None:
    lines = [change(1.0, "a"), moved(2.0, "a", "b"), moved(3.0, "b", "c")]
    assert held(lines, [recovered(lines[2], 1.0, "created")]).lost == 0
    assert held(lines, [call(lines[1], 0.01)]).lost == 1
    # That it has left one place does not tell where it went from the next.
    assert held(lines, [gone("a", 4.0)]).lost == 1
    assert held(lines, [gone("b", 4.0)]).lost == 0


def test_that_an_item_is_gone_must_be_true() -> None:
    lines = [change(1.0, kind="CreatedEvent"), change(2.0), change(3.0, kind="DeletedEvent")]
    assert held(lines, [gone("item", 4.0)]).lost == 0
    assert held(lines, [gone("item", 2.5)]).lost == 3
    assert held(lines[:2], [gone("item", 4.0)]).lost == 2


def test_an_item_goes_with_its_folder() -> None:
    lines = [change(1.0, kind="CreatedEvent"), change(2.0), folder(3.0, "DeletedEvent")]
    calls = [call(lines[0], 0.01), call(lines[2], 0.01)]
    assert held(lines, calls).lost == 1
    assert held(lines, [*calls, gone("item", 4.0)]).lost == 0
    assert held(lines, [*calls, gone("item", 2.5)]).lost == 1


def test_what_came_and_went_inside_one_gap_is_unseen() -> None:
    lines = [change(1.0, kind="CreatedEvent"), change(2.0), change(3.0, kind="DeletedEvent")]
    assert held(lines, [], (0.9, 3.1))[3:] == (0, None, None, 3)
    assert held(lines, []).lost == 3
    assert held(lines, [], (0.9, 2.9)).lost == 3
    assert held(lines, [], (30.0, 40.0)).lost == 3
    assert held(lines, [], (0.9, 3.1), who="bob").lost == 3
    # A gap that was not filled goes on.
    assert held(lines, [], (0.9, 1.1), (2.9, 3.1)).unseen == 3
    assert held(lines, [], (0.9, 1.1), (2.9, 3.1), looks=[(0.95, 1.5), (2.5, 3.05)]).unseen == 3
    assert held(lines, [], (0.9, 1.1), (2.9, 3.1), looks=[(1.4, 1.5)]).lost == 3
    assert held(lines, [], (0.9, 1.1)).lost == 3
    # What somebody was told of, and what was there before the gap, is not unseen.
    assert held(lines, [call(lines[0], 0.01)], (0.9, 3.1)).lost == 2
    assert held(lines[1:], [], (0.9, 3.1)).lost == 2
    assert held(lines[:2], [], (0.9, 3.1)).lost == 2


def test_what_was_on_its_way_when_the_stream_broke_is_unseen_unless_it_was_overtaken() -> None:
    lines = [change(1.0, kind="CreatedEvent"), change(3.0, kind="DeletedEvent")]
    before, after = change(0.5, "other"), change(1.5, "other")
    assert held([before, *lines], [call(before, 0.1)], (2.0, 4.0)).unseen == 2
    assert held([*lines, after], [call(after, 0.1)], (2.0, 4.0)).lost == 2
    # The next stream is another one.
    assert held([*lines, after], [call(after, 3.0)], (2.0, 4.0)).unseen == 2
    elsewhere = change(1.5, "other", "bob@x.example")
    assert held([*lines, elsewhere], [call(elsewhere, 0.1)], (2.0, 4.0)).unseen == 2


def test_a_place_where_an_item_stayed_only_inside_a_gap_is_unseen() -> None:
    created, purged = change(1.0, "a", kind="CreatedEvent"), change(4.0, "b", kind="DeletedEvent")
    lines = [created, moved(2.0, "a", "b"), change(3.0, "b"), purged]
    verdict = held(lines, [call(created, 0.01), gone("a", 5.0)], (1.5, 4.5))
    assert (verdict.lost, verdict.unseen) == (0, 2)


def test_what_came_and_went_with_its_folder_inside_one_gap_is_unseen() -> None:
    lines = [change(1.0, kind="CreatedEvent"), folder(2.0, "DeletedEvent")]
    verdict = held(lines, [call(lines[1], 0.01)], (0.9, 2.1))
    assert (verdict.lost, verdict.unseen) == (0, 1)
    # A folder that keeps its id when it is moved was there before.
    lines = [msgspec.structs.replace(folder(1.0, "MovedEvent"), old_id="inbox"), folder(2.0, "DeletedEvent")]
    assert held(lines, [], (0.9, 2.1)).lost == 2


# --- properties

changes = st.lists(
    st.builds(
        change,
        time=st.floats(0, 1000),
        item=st.sampled_from("abc"),
        mailbox=st.sampled_from(["ann@x.example", "bob@x.example"]),
        kind=st.sampled_from(["CreatedEvent", "ModifiedEvent"]),
    ),
    max_size=30,
)


@given(changes, st.data())
def test_whatever_is_missing_is_lost_and_whatever_is_too_much_a_duplicate(
    lines: list[LedgerLine], data: st.DataObject
) -> None:
    copies = data.draw(st.lists(st.integers(0, 3), min_size=len(lines), max_size=len(lines)))
    # One thing changes once here, so that each delivery has one change that it can belong to.
    lines = [msgspec.structs.replace(line, item_id=f"{line.item_id}{n}") for n, line in enumerate(lines)]
    calls = [call(line, 0.01) for line, count in zip(lines, copies, strict=True) for _ in range(count)]
    verdict = held(lines, data.draw(st.permutations(calls)))
    assert verdict.generated == len(lines)
    assert verdict.delivered == sum(copies)
    assert verdict.lost == copies.count(0)
    assert verdict.duplicates == sum(max(0, count - 1) for count in copies)


@given(changes, changes)
def test_the_books_balance(lines: list[LedgerLine], others: list[LedgerLine]) -> None:
    verdict = held(lines, [call(line, 0.01) for line in others])
    assert verdict.generated - verdict.lost >= verdict.delivered - verdict.duplicates
    assert 0 <= verdict.lost <= verdict.generated
    assert 0 <= verdict.duplicates <= verdict.delivered
    assert (verdict.p50_ms is None) == (verdict.delivered == verdict.duplicates)


@given(changes, st.floats(0, 5))
def test_a_delivery_that_is_late_by_as_much_for_all_is_late_by_that(
    lines: list[LedgerLine], delay: float
) -> None:
    verdict = held(lines, [call(line, delay) for line in reversed(lines)])
    assert (verdict.lost, verdict.duplicates) == (0, 0)
    if lines:
        assert verdict.p50_ms == verdict.p99_ms == pytest.approx(1000 * delay, abs=0.1)
