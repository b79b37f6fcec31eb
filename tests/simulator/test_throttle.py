import pytest

from listener.simulator.frontend import Throttle
from listener.simulator.responses import Failure
from listener.simulator.settings import Limits


def test_each_owner_has_its_own_budget() -> None:
    throttle = Throttle(Limits(concurrency=2, hanging_connections=1))
    leave = throttle.start_request("alice")
    throttle.start_request("alice")
    throttle.start_request("bob")
    with pytest.raises(Failure) as refused:
        throttle.start_request("alice")
    assert refused.value.code == "ErrorExceededConnectionCount"
    assert refused.value.fault
    leave()
    throttle.start_request("alice")


def test_streams_are_counted_separately_from_requests() -> None:
    throttle = Throttle(Limits(concurrency=1, hanging_connections=1))
    throttle.start_request("alice")
    end = throttle.start_stream("alice")
    assert throttle.streams_by_account() == {"alice": 1}
    with pytest.raises(Failure, match="ErrorExceededConnectionCount"):
        throttle.start_stream("alice")
    end()
    assert throttle.streams_by_account() == {}
    throttle.start_stream("alice")


def test_sync_requests_have_an_additional_limit() -> None:
    throttle = Throttle(Limits(concurrency=3, sync_calls=1))
    leave = throttle.start_request("alice", is_sync=True)
    with pytest.raises(Failure) as refused:
        throttle.start_request("alice", is_sync=True)
    assert (refused.value.code, refused.value.fault) == ("ErrorServerBusy", True)
    assert throttle.running == 1, "what is refused is not charged"
    throttle.start_request("bob", is_sync=True)
    throttle.start_request("alice")
    throttle.start_request("alice")
    with pytest.raises(Failure, match="ErrorExceededConnectionCount"):
        throttle.start_request("alice", is_sync=True)
    leave()
    throttle.start_request("alice", is_sync=True)
