"""Comparison of deliveries with the ledger."""

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


def verdict_on(
    lines: list[LedgerLine], calls: list[Call], *without: tuple[float, float], name: str = "ann", **more: Any
) -> Verdict:
    """Number the lines in the order of time and return the verdict, with gaps in the mailbox of `name`."""
    lines = sorted(lines, key=lambda line: line.time)
    gaps = {f"{name}@x.example": Gaps(without, **more)}
    return compare([msgspec.structs.replace(line, seq=n) for n, line in enumerate(lines, 1)], calls, gaps)


def test_empty_ledger() -> None:
    assert verdict_on([], []) == Verdict(0, 0, 0, 0, None, None)


def test_each_change_delivered_once() -> None:
    lines = [change(float(n), f"item{n}") for n in range(3)]
    assert verdict_on(lines, [call(line, 0.004) for line in lines]) == Verdict(3, 3, 0, 0, 4.0, 4.0)


def test_undelivered_changes_are_lost() -> None:
    lines = [change(1.0, "a"), change(2.0, "b"), change(3.0, "b")]
    assert verdict_on(lines, [call(lines[1], 0.01)]) == Verdict(3, 1, 0, 2, 10.0, 10.0)


def test_repeated_or_unknown_deliveries_are_duplicates() -> None:
    line = change(1.0)
    unknown = change(1.0, "unknown")
    again = [call(line, 0.01), call(line, 0.02), call(unknown, 0.01)]
    assert verdict_on([line], again) == Verdict(1, 3, 2, 0, 10.0, 10.0)


@pytest.mark.parametrize(
    "other",
    [
        change(1.0, "other"),
        change(1.0, mailbox="bob@x.example"),
        change(1.0, kind="CreatedEvent"),
        msgspec.structs.replace(change(1.0), item_id=None, folder_id="item"),
        msgspec.structs.replace(change(1.0), parent_folder_id="sent"),
    ],
    ids=["id", "mailbox", "kind", "folder for item", "parent"],
)
def test_delivery_matches_only_its_own_change(other: LedgerLine) -> None:
    assert verdict_on([change(1.0)], [call(other, 0.01)]) == Verdict(1, 1, 1, 1, None, None)


def test_nth_delivery_matches_nth_such_change() -> None:
    first, second, third = (change(time) for time in (1.0, 2.0, 3.0))
    verdict = verdict_on(
        [third, first, second], [call(second, 0.020), call(third, 0.030), call(first, 0.010)]
    )
    assert verdict == Verdict(3, 3, 0, 0, 20.0, 30.0)


def test_percentiles() -> None:
    lines = [change(float(n), f"item{n}") for n in range(200)]
    calls = [call(line, (n + 1) / 1000) for n, line in enumerate(lines)]
    random.Random(1).shuffle(calls)
    verdict = verdict_on(lines, calls)
    assert verdict.p50_ms == pytest.approx(101, abs=1)
    assert verdict.p99_ms == pytest.approx(199, abs=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("item", "folder"), [("thing", None), (None, "thing")], ids=["item", "folder"])
def test_ledger_line_and_event_have_the_same_key(kind: str, item: str | None, folder: str | None) -> None:
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


def test_ledger_with_faults() -> None:
    lines = [change(1.0, "a"), change(2.0, "b")]
    fault = b'{"seq":3,"time":2.5,"mailbox":"ann@x.example","kind":"fault"}'
    written = [msgspec.json.encode(lines[0]), fault, msgspec.json.encode(lines[1])]
    assert read_ledger(written) == (lines, 1)


# --- gaps


def recovered(line: LedgerLine, after: float, kind: str = "modified") -> Call:
    return Call(line.key._replace(kind=f"exchange.item.{kind}"), line.time + after, recovered=True)


def deleted(item: str, time: float) -> Call:
    """A recovered event of a deleted item, which has only its id."""
    return recovered(change(time, item), 0.0, "deleted")


def moved(time: float, old: str, new: str) -> LedgerLine:
    return msgspec.structs.replace(change(time, new, kind="MovedEvent"), old_id=old)


def keyed(time: float, key: str, **more: str) -> LedgerLine:
    return msgspec.structs.replace(change(time, **more), change_key=key)


def folder(time: float, kind: str, id_: str = "inbox") -> LedgerLine:
    return msgspec.structs.replace(change(time, kind=kind), item_id=None, folder_id=id_, parent_folder_id="")


def test_recovered_event_reports_its_state_and_earlier_ones_only() -> None:
    lines = [keyed(1.0, "k1"), keyed(2.0, "k2"), keyed(4.0, "k4")]
    for line, lost in zip(lines, (2, 1, 0), strict=True):
        # The time of the delivery does not matter: later changes are not reported.
        verdict = verdict_on(lines, [recovered(line, 9.0)])
        assert (verdict.lost, verdict.duplicates, verdict.p50_ms) == (lost, 0, None)
    unknown = recovered(keyed(1.0, "k3"), 9.0)
    assert verdict_on(lines, [unknown]) == Verdict(3, 1, 1, 3, None, None)


def test_recovered_event_reports_all_changes_with_the_same_state() -> None:
    lines = [keyed(1.0, "k1", kind="CreatedEvent"), keyed(1.0, "k1", kind="NewMailEvent")]
    assert verdict_on(lines, [recovered(lines[0], 1.0, "created")]).lost == 0
    # The first event of each kind is not a duplicate, but its repetition is.
    calls = [recovered(line, 1.0, kind) for line, kind in zip(lines, ("created", "new_mail"), strict=True)]
    assert verdict_on(lines, calls).duplicates == 0
    assert verdict_on(lines, [*calls, *calls]).duplicates == 2


def test_streamed_later_state_covers_earlier_ones() -> None:
    created, modified = change(1.0, kind="CreatedEvent"), change(2.0)
    assert verdict_on([created, modified], [call(modified, 0.01)]).lost == 0
    assert verdict_on([created, modified], [call(created, 0.01)]).lost == 1


def test_recovered_event_without_a_new_state_is_a_duplicate() -> None:
    line = change(1.0)
    verdict = verdict_on(
        [line], [call(line, 0.01), recovered(line, 5.0), recovered(change(1.0, "unknown"), 5.0)]
    )
    assert (verdict.lost, verdict.duplicates) == (0, 2)


def test_moved_item_is_the_same_item_under_its_new_id() -> None:
    lines = [change(1.0, "a"), moved(2.0, "a", "b"), moved(3.0, "b", "c")]
    assert verdict_on(lines, [recovered(lines[2], 1.0, "created")]).lost == 0
    assert verdict_on(lines, [call(lines[1], 0.01)]).lost == 1
    # The deletion of the first id does not report the move from the second one.
    assert verdict_on(lines, [deleted("a", 4.0)]).lost == 1
    assert verdict_on(lines, [deleted("b", 4.0)]).lost == 0


def test_recovered_deletion_must_be_true() -> None:
    lines = [change(1.0, kind="CreatedEvent"), change(2.0), change(3.0, kind="DeletedEvent")]
    assert verdict_on(lines, [deleted("item", 4.0)]).lost == 0
    assert verdict_on(lines, [deleted("item", 2.5)]).lost == 3
    assert verdict_on(lines[:2], [deleted("item", 4.0)]).lost == 2


def test_item_is_deleted_with_its_folder() -> None:
    lines = [change(1.0, kind="CreatedEvent"), change(2.0), folder(3.0, "DeletedEvent")]
    calls = [call(lines[0], 0.01), call(lines[2], 0.01)]
    assert verdict_on(lines, calls).lost == 1
    assert verdict_on(lines, [*calls, deleted("item", 4.0)]).lost == 0
    assert verdict_on(lines, [*calls, deleted("item", 2.5)]).lost == 1


def test_item_created_and_deleted_within_one_gap_is_unseen() -> None:
    lines = [change(1.0, kind="CreatedEvent"), change(2.0), change(3.0, kind="DeletedEvent")]
    assert verdict_on(lines, [], (0.9, 3.1))[3:] == (0, None, None, 3)
    assert verdict_on(lines, []).lost == 3
    assert verdict_on(lines, [], (0.9, 2.9)).lost == 3
    assert verdict_on(lines, [], (30.0, 40.0)).lost == 3
    assert verdict_on(lines, [], (0.9, 3.1), name="bob").lost == 3
    # A gap without a resync continues.
    assert verdict_on(lines, [], (0.9, 1.1), (2.9, 3.1)).unseen == 3
    assert verdict_on(lines, [], (0.9, 1.1), (2.9, 3.1), resyncs=[(0.95, 1.5), (2.5, 3.05)]).unseen == 3
    assert verdict_on(lines, [], (0.9, 1.1), (2.9, 3.1), resyncs=[(1.4, 1.5)]).lost == 3
    assert verdict_on(lines, [], (0.9, 1.1)).lost == 3
    # An item with a delivery, or one that existed before the gap, is not unseen.
    assert verdict_on(lines, [call(lines[0], 0.01)], (0.9, 3.1)).lost == 2
    assert verdict_on(lines[1:], [], (0.9, 3.1)).lost == 2
    assert verdict_on(lines[:2], [], (0.9, 3.1)).lost == 2


def test_change_in_transit_when_the_stream_broke_is_unseen_unless_overtaken() -> None:
    lines = [change(1.0, kind="CreatedEvent"), change(3.0, kind="DeletedEvent")]
    before, after = change(0.5, "other"), change(1.5, "other")
    assert verdict_on([before, *lines], [call(before, 0.1)], (2.0, 4.0)).unseen == 2
    assert verdict_on([*lines, after], [call(after, 0.1)], (2.0, 4.0)).lost == 2
    # A delivery on the next stream does not count.
    assert verdict_on([*lines, after], [call(after, 3.0)], (2.0, 4.0)).unseen == 2
    elsewhere = change(1.5, "other", "bob@x.example")
    assert verdict_on([*lines, elsewhere], [call(elsewhere, 0.1)], (2.0, 4.0)).unseen == 2


def test_id_that_existed_only_within_a_gap_is_unseen() -> None:
    created, purged = change(1.0, "a", kind="CreatedEvent"), change(4.0, "b", kind="DeletedEvent")
    lines = [created, moved(2.0, "a", "b"), change(3.0, "b"), purged]
    verdict = verdict_on(lines, [call(created, 0.01), deleted("a", 5.0)], (1.5, 4.5))
    assert (verdict.lost, verdict.unseen) == (0, 2)


def test_item_deleted_with_its_folder_within_one_gap_is_unseen() -> None:
    lines = [change(1.0, kind="CreatedEvent"), folder(2.0, "DeletedEvent")]
    verdict = verdict_on(lines, [call(lines[1], 0.01)], (0.9, 2.1))
    assert (verdict.lost, verdict.unseen) == (0, 1)
    # A folder that keeps its id when it is moved existed before.
    lines = [msgspec.structs.replace(folder(1.0, "MovedEvent"), old_id="inbox"), folder(2.0, "DeletedEvent")]
    assert verdict_on(lines, [], (0.9, 2.1)).lost == 2


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
def test_missing_deliveries_are_lost_and_extra_ones_are_duplicates(
    lines: list[LedgerLine], data: st.DataObject
) -> None:
    copies = data.draw(st.lists(st.integers(0, 3), min_size=len(lines), max_size=len(lines)))
    # Each item changes once, so that each delivery matches exactly one change.
    lines = [msgspec.structs.replace(line, item_id=f"{line.item_id}{n}") for n, line in enumerate(lines)]
    calls = [call(line, 0.01) for line, count in zip(lines, copies, strict=True) for _ in range(count)]
    verdict = verdict_on(lines, data.draw(st.permutations(calls)))
    assert verdict.generated == len(lines)
    assert verdict.delivered == sum(copies)
    assert verdict.lost == copies.count(0)
    assert verdict.duplicates == sum(max(0, count - 1) for count in copies)


@given(changes, changes)
def test_totals_are_consistent(lines: list[LedgerLine], others: list[LedgerLine]) -> None:
    verdict = verdict_on(lines, [call(line, 0.01) for line in others])
    assert verdict.generated - verdict.lost >= verdict.delivered - verdict.duplicates
    assert 0 <= verdict.lost <= verdict.generated
    assert 0 <= verdict.duplicates <= verdict.delivered
    assert (verdict.p50_ms is None) == (verdict.delivered == verdict.duplicates)


@given(changes, st.floats(0, 5))
def test_uniform_delay_is_the_latency(lines: list[LedgerLine], delay: float) -> None:
    verdict = verdict_on(lines, [call(line, delay) for line in reversed(lines)])
    assert (verdict.lost, verdict.duplicates) == (0, 0)
    if lines:
        assert verdict.p50_ms == verdict.p99_ms == pytest.approx(1000 * delay, abs=0.1)
