"""Gaps of a group: their start, their reason, and that each is reported once."""

import pytest

from listener.ews.codes import Failure
from listener.groups.gaps import LOSSY, Gap, Gaps

RESET = Failure(code="ConnectionReset")
EXPIRED = Failure(code="ErrorSubscriptionNotFound")


def test_a_mailbox_without_any_stream_has_a_gap_since_the_start() -> None:
    gaps = Gaps()
    gaps.subscribed("ann", 50.0)
    assert gaps.close(["ann", "bob"]) == [Gap("ann", None, "start")]
    assert gaps.close(["ann", "bob"]) == []


def test_the_gap_of_a_new_subscription_starts_when_the_old_stream_last_worked() -> None:
    gaps = Gaps()
    gaps.seen(["ann", "bob"], 10.0)
    gaps.seen(["bob"], 20.0)
    gaps.subscribed("ann", 50.0)
    gaps.subscribed("bob", 50.0)
    assert gaps.close(["bob"]) == [Gap("bob", 20.0, "lost")]
    assert gaps.close(["ann", "bob"]) == [Gap("ann", 10.0, "lost")]


def test_the_gap_of_a_replaced_stream_starts_when_that_stream_last_worked() -> None:
    gaps = Gaps()
    gaps.seen(["ann"], 10.0)
    before = gaps.known(["ann", "bob"])
    assert before == {"ann": 10.0}
    gaps.seen(["ann"], 40.0)  # on the next stream
    assert gaps.ended(["ann"], [], cut=True, since=before)
    assert gaps.close(["ann"]) == [Gap("ann", 10.0, "replaced")]
    # The same applies if there is already a gap with a later start.
    gaps.seen(["ann"], 50.0)
    assert gaps.ended(["ann"], [RESET], cut=False)
    assert gaps.ended(["ann"], [], cut=True, since={"ann": 45.0})
    assert gaps.close(["ann"]) == [Gap("ann", 45.0, "ConnectionReset")]


def test_another_group_finds_the_start_of_an_open_gap() -> None:
    well: dict[str, float] = {}
    one, other = Gaps(well), Gaps(well)
    one.seen(["ann"], 10.0)
    one.subscribed("ann", 50.0)
    # The new stream had a signal, but ended before the gap was reported.
    one.seen(["ann"], 20.0)
    other.subscribed("ann", 50.0)
    assert other.close(["ann"]) == [Gap("ann", 10.0, "lost")]
    other.seen(["ann"], 30.0)
    other.subscribed("ann", 50.0)
    assert other.close(["ann"]) == [Gap("ann", 30.0, "lost")]


def test_the_earliest_moment_and_the_first_reason_count() -> None:
    gaps = Gaps()
    gaps.seen(["ann"], 10.0)
    assert gaps.ended(["ann"], [RESET], cut=False)
    gaps.seen(["ann"], 20.0)
    gaps.subscribed("ann", 50.0)
    assert gaps.close(["ann"]) == [Gap("ann", 10.0, "ConnectionReset")]


def test_an_orderly_end_of_a_stream_leaves_no_gap() -> None:
    gaps = Gaps()
    gaps.seen(["ann"], 10.0)
    assert not gaps.ended(["ann"], [], cut=False)
    assert not gaps.ended(["ann"], [EXPIRED], cut=False)
    assert gaps.close(["ann"]) == []


def test_a_cut_stream_leaves_a_gap() -> None:
    gaps = Gaps()
    gaps.seen(["ann"], 10.0)
    assert gaps.ended(["ann"], [], cut=True)
    assert gaps.close(["ann"]) == [Gap("ann", 10.0, "replaced")]


@pytest.mark.parametrize("code", sorted(LOSSY))
def test_a_broken_connection_leaves_a_gap(code: str) -> None:
    gaps = Gaps()
    gaps.seen(["ann"], 10.0)
    assert gaps.ended(["ann"], [EXPIRED, Failure(code=code)], cut=False)
    assert gaps.close(["ann"]) == [Gap("ann", 10.0, code)]


def test_the_gap_after_a_restart_starts_when_the_last_process_saw_the_stream() -> None:
    well = {"ann": -500.0}
    gaps = Gaps(well, started_at=0.0)
    gaps.subscribed("ann", 50.0)
    assert gaps.close(["ann"]) == [Gap("ann", -500.0, "start")]
    gaps.seen(["ann"], 10.0)
    gaps.subscribed("ann", 50.0)
    assert gaps.close(["ann"]) == [Gap("ann", 10.0, "lost")]
    assert well == {"ann": 10.0}


def test_the_gap_of_a_moved_mailbox_starts_when_its_old_stream_last_worked() -> None:
    well: dict[str, float] = {}
    Gaps(well, started_at=0.0).seen(["ann"], 30.0)
    there = Gaps(well, started_at=0.0)
    there.subscribed("ann", 50.0)
    assert there.close(["ann"]) == [Gap("ann", 30.0, "lost")]


def test_missing_since() -> None:
    gaps = Gaps({"ann": 10.0, "bob": 20.0})
    assert gaps.missing_since("ann", streams=True) is None
    assert gaps.missing_since("bob", streams=False) == 20.0
    assert gaps.missing_since("cat", streams=False) is None
    gaps.ended(["ann"], [RESET], cut=False)
    gaps.seen(["ann"], 30.0)
    assert gaps.missing_since("ann", streams=True) == 10.0
    gaps.close(["ann"])
    assert gaps.missing_since("ann", streams=True) is None


def test_a_gap_before_the_first_signal_starts_at_the_subscription() -> None:
    gaps = Gaps()
    gaps.subscribed("ann", 5.0)
    assert gaps.missing_since("ann", streams=True) == 5.0
    gaps.subscribed("ann", 8.0)
    assert gaps.close(["ann"]) == [Gap("ann", 5.0, "lost")]
    # The stream may also break with events in flight.
    gaps.subscribed("bob", 5.0)
    assert gaps.ended(["bob"], [RESET], cut=False)
    assert gaps.close(["bob"]) == [Gap("bob", 5.0, "ConnectionReset")]


def test_a_restored_subscription_without_any_signal() -> None:
    well: dict[str, float] = {}
    Gaps(well, started_at=0.0).subscribed("ann", 5.0)
    later = Gaps({"ann": -5.0}, started_at=0.0)
    later.subscribed("ann", 0.0)
    assert well == {"ann": 5.0}
    assert later.close(["ann"]) == [Gap("ann", -5.0, "start")]


def test_a_mailbox_that_was_removed_and_added_again_has_no_gap() -> None:
    well: dict[str, float] = {}
    gaps = Gaps(well)
    gaps.seen(["ann"], 10.0)
    gaps.subscribed("ann", 20.0)
    well.clear()  # the mailbox is removed
    gaps.subscribed("ann", 90.0)
    assert gaps.close(["ann"]) == [Gap("ann", None, "start")]
