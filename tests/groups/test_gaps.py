"""Gaps of a group: when they begin, why, and that each is told once."""

import pytest

from listener.ews.codes import Failure
from listener.groups.gaps import LOSSY, Gap, Gaps

RESET = Failure(code="ConnectionReset")
EXPIRED = Failure(code="ErrorSubscriptionNotFound")


def test_who_never_had_a_stream_has_a_gap_since_the_start() -> None:
    gaps = Gaps()
    gaps.subscribed("ann", 50.0)
    assert gaps.close(["ann", "bob"]) == [Gap("ann", None, "start")]
    assert gaps.close(["ann", "bob"]) == []


def test_a_new_subscription_begins_where_the_old_stream_was_last_heard() -> None:
    gaps = Gaps()
    gaps.seen(["ann", "bob"], 10.0)
    gaps.seen(["bob"], 20.0)
    gaps.subscribed("ann", 50.0)
    gaps.subscribed("bob", 50.0)
    assert gaps.close(["bob"]) == [Gap("bob", 20.0, "lost")]
    assert gaps.close(["ann", "bob"]) == [Gap("ann", 10.0, "lost")]


def test_a_stream_that_was_replaced_long_ago_was_last_heard_then() -> None:
    gaps = Gaps()
    gaps.seen(["ann"], 10.0)
    before = gaps.known(["ann", "bob"])
    assert before == {"ann": 10.0}
    gaps.seen(["ann"], 40.0)  # on the next stream
    assert gaps.ended(["ann"], [], cut=True, since=before)
    assert gaps.close(["ann"]) == [Gap("ann", 10.0, "replaced")]
    # So too if there is a gap already, which began later.
    gaps.seen(["ann"], 50.0)
    assert gaps.ended(["ann"], [RESET], cut=False)
    assert gaps.ended(["ann"], [], cut=True, since={"ann": 45.0})
    assert gaps.close(["ann"]) == [Gap("ann", 45.0, "ConnectionReset")]


def test_another_group_finds_where_a_gap_began_that_was_not_told() -> None:
    well: dict[str, float] = {}
    one, other = Gaps(well), Gaps(well)
    one.seen(["ann"], 10.0)
    one.subscribed("ann", 50.0)
    # The new stream said something, but it was over before the gap could be told.
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


def test_a_stream_that_ended_in_good_order_leaves_no_gap() -> None:
    gaps = Gaps()
    gaps.seen(["ann"], 10.0)
    assert not gaps.ended(["ann"], [], cut=False)
    assert not gaps.ended(["ann"], [EXPIRED], cut=False)
    assert gaps.close(["ann"]) == []


def test_a_stream_that_we_cut_may_have_had_something_on_its_way() -> None:
    gaps = Gaps()
    gaps.seen(["ann"], 10.0)
    assert gaps.ended(["ann"], [], cut=True)
    assert gaps.close(["ann"]) == [Gap("ann", 10.0, "replaced")]


@pytest.mark.parametrize("code", sorted(LOSSY))
def test_what_was_on_its_way_is_lost_with_a_connection_that_breaks(code: str) -> None:
    gaps = Gaps()
    gaps.seen(["ann"], 10.0)
    assert gaps.ended(["ann"], [EXPIRED, Failure(code=code)], cut=False)
    assert gaps.close(["ann"]) == [Gap("ann", 10.0, code)]


def test_what_an_earlier_process_heard_is_where_the_gap_of_the_start_begins() -> None:
    well = {"ann": -500.0}
    gaps = Gaps(well, started_at=0.0)
    gaps.subscribed("ann", 50.0)
    assert gaps.close(["ann"]) == [Gap("ann", -500.0, "start")]
    gaps.seen(["ann"], 10.0)
    gaps.subscribed("ann", 50.0)
    assert gaps.close(["ann"]) == [Gap("ann", 10.0, "lost")]
    assert well == {"ann": 10.0}


def test_who_comes_from_another_group_has_its_gap_since_it_was_heard_there() -> None:
    well: dict[str, float] = {}
    Gaps(well, started_at=0.0).seen(["ann"], 30.0)
    there = Gaps(well, started_at=0.0)
    there.subscribed("ann", 50.0)
    assert there.close(["ann"]) == [Gap("ann", 30.0, "lost")]


def test_from_when_on_something_may_be_missing() -> None:
    gaps = Gaps({"ann": 10.0, "bob": 20.0})
    assert gaps.missing_since("ann", streams=True) is None
    assert gaps.missing_since("bob", streams=False) == 20.0
    assert gaps.missing_since("cat", streams=False) is None
    gaps.ended(["ann"], [RESET], cut=False)
    gaps.seen(["ann"], 30.0)
    assert gaps.missing_since("ann", streams=True) == 10.0
    gaps.close(["ann"])
    assert gaps.missing_since("ann", streams=True) is None


def test_what_came_before_the_first_stream_was_heard_is_missed_from_the_subscription_on() -> None:
    gaps = Gaps()
    gaps.subscribed("ann", 5.0)
    assert gaps.missing_since("ann", streams=True) == 5.0
    gaps.subscribed("ann", 8.0)
    assert gaps.close(["ann"]) == [Gap("ann", 5.0, "lost")]
    # Or the stream breaks with what was on its way.
    gaps.subscribed("bob", 5.0)
    assert gaps.ended(["bob"], [RESET], cut=False)
    assert gaps.close(["bob"]) == [Gap("bob", 5.0, "ConnectionReset")]


def test_a_subscription_that_outlived_a_process_in_which_it_was_never_heard() -> None:
    well: dict[str, float] = {}
    Gaps(well, started_at=0.0).subscribed("ann", 5.0)
    later = Gaps({"ann": -5.0}, started_at=0.0)
    later.subscribed("ann", 0.0)
    assert well == {"ann": 5.0}
    assert later.close(["ann"]) == [Gap("ann", -5.0, "start")]


def test_who_left_and_comes_back_has_missed_nothing_meanwhile() -> None:
    well: dict[str, float] = {}
    gaps = Gaps(well)
    gaps.seen(["ann"], 10.0)
    gaps.subscribed("ann", 20.0)
    well.clear()  # it is listened to no longer
    gaps.subscribed("ann", 90.0)
    assert gaps.close(["ann"]) == [Gap("ann", None, "start")]
