import pytest

from listener.simulator.frontend import Budgets
from listener.simulator.responses import Failure
from listener.simulator.settings import Limits


def test_each_has_a_budget_of_its_own() -> None:
    budgets = Budgets(Limits(concurrency=2, hanging_connections=1))
    leave = budgets.enter("alice")
    budgets.enter("alice")
    budgets.enter("bob")
    with pytest.raises(Failure) as refused:
        budgets.enter("alice")
    assert refused.value.code == "ErrorExceededConnectionCount"
    assert refused.value.fault
    leave()
    budgets.enter("alice")


def test_streams_are_counted_apart_from_requests() -> None:
    budgets = Budgets(Limits(concurrency=1, hanging_connections=1))
    budgets.enter("alice")
    end = budgets.hang("alice")
    assert budgets.charges() == {"alice": 1}
    with pytest.raises(Failure, match="ErrorExceededConnectionCount"):
        budgets.hang("alice")
    end()
    assert budgets.charges() == {}
    budgets.hang("alice")


def test_synchronising_is_counted_among_the_requests_and_apart() -> None:
    budgets = Budgets(Limits(concurrency=3, sync_calls=1))
    leave = budgets.enter("alice", syncs=True)
    with pytest.raises(Failure) as refused:
        budgets.enter("alice", syncs=True)
    assert (refused.value.code, refused.value.fault) == ("ErrorServerBusy", True)
    assert budgets.running == 1, "what is refused is not charged"
    budgets.enter("bob", syncs=True)
    budgets.enter("alice")
    budgets.enter("alice")
    with pytest.raises(Failure, match="ErrorExceededConnectionCount"):
        budgets.enter("alice", syncs=True)
    leave()
    budgets.enter("alice", syncs=True)
