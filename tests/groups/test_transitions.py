"""Log lines and lifecycle events of transitions."""

from dataclasses import replace
from datetime import UTC, datetime

import structlog
import structlog.testing

from listener.backoff import Backoff
from listener.ews.codes import Failure
from listener.groups.actions import Outcome, StreamEnded, Subscribed
from listener.groups.group import GroupState, advance
from listener.groups.member import Policy
from listener.groups.transitions import lifecycle_events, log_transition, pairs

POLICY = Policy(backoff=Backoff(1, 2, 60), suspended=Backoff(60, 2, 3600))
DENIED = Failure(code="ErrorImpersonateUserDenied", text="not in the scope")
NOW = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)


def transition(before: GroupState, outcome: Outcome, now: float = 1.0) -> tuple[list[str], GroupState]:
    """Return the names of the log lines of a transition, and the state after it."""
    after = advance(before, outcome, now)
    with structlog.testing.capture_logs() as lines:
        log_transition(structlog.get_logger(), before, after, outcome, now)
    return [line["event"] for line in lines], after


def test_a_suspension_is_logged_once_and_reported_to_handlers() -> None:
    start = GroupState.start(("ann", "bob"), POLICY)
    names, suspended = transition(start, Subscribed((("ann", "1"),), (("bob", DENIED),)))
    assert names == ["group.subscribed", "mailbox.suspended"]
    (event,) = lifecycle_events(start, suspended, NOW)
    assert (event.type, event.mailbox, event.time, event.reason) == (
        "exchange.listener.suspended", "bob", "2026-01-02T03:04:05Z", "ErrorImpersonateUserDenied: not in the scope",
    )  # fmt: skip
    assert lifecycle_events(suspended, suspended, NOW) == []
    well = advance(suspended, Subscribed((("bob", "2"),)), 61)
    assert [(event.type, event.reason) for event in lifecycle_events(suspended, well, NOW)] == [
        ("exchange.listener.resumed", None)
    ]


def test_the_end_of_a_stream_and_the_pause_are_logged() -> None:
    _, state = transition(GroupState.start(("ann",), POLICY), Subscribed((("ann", "1"),)))
    assert transition(state, StreamEnded(1800), 1801)[0] == ["stream.closed"]
    for code, name in (("StreamSilent", "silent"), ("ConnectionReset", "broken"), ("Http503", "refused")):
        failed = StreamEnded(100, (Failure(code=code),), alive=True)
        assert transition(state, failed, 101)[0] == [f"stream.{name}", "group.backoff"]


def test_pairs_of_members_before_and_after() -> None:
    state = GroupState.start(("ann", "bob"), POLICY)
    fewer = replace(state, members=state.members[1:])
    assert [(old.mailbox, new.mailbox) for old, new in pairs(state, fewer)] == [("bob", "bob")]
    assert [old is new for old, new in pairs(fewer, state)] == [False, True]
