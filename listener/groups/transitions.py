"""Log lines and lifecycle events for state changes of a group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

import structlog

from listener.event import MailboxEvent
from listener.ews.codes import Failure
from listener.groups.actions import Discovered, Outcome, StreamEnded, Subscribed
from listener.groups.group import GroupState
from listener.groups.member import Member, Policy, is_unknown

Log = structlog.typing.FilteringBoundLogger


def pairs(before: GroupState, after: GroupState) -> Iterator[tuple[Member, Member]]:
    """Yield each member before and after the change. A member that has joined is paired with a new one."""
    known = {member.mailbox: member for member in before.members}
    for member in after.members:
        yield known.get(member.mailbox, Member(member.mailbox)), member


def lifecycle_events(before: GroupState, after: GroupState, now: datetime) -> list[MailboxEvent]:
    """Return an event for each mailbox that was suspended or resumed, for handlers that request such events."""
    return [
        MailboxEvent(
            type=f"exchange.listener.{'suspended' if new.suspended else 'resumed'}",
            mailbox=new.mailbox,
            time=f"{now:%Y-%m-%dT%H:%M:%SZ}",
            reason=str(new.failure) if new.suspended else None,
        )
        for old, new in pairs(before, after)
        if old.suspended != new.suspended
    ]


def log_transition(log: Log, before: GroupState, after: GroupState, outcome: Outcome, now: float) -> None:
    """Log an outcome at `now` and the changes that it caused."""
    _log_outcome(log, outcome)
    for old, new in pairs(before, after):
        _log_member(log, old, new, after.policy)
    if after.split is not None and after.split != before.split:
        log.warning("group.split", mailboxes=len(after.split.mailboxes))
    if after.discover is not None and after.discover != before.discover:
        log.info("group.discovering", mailboxes=len(after.discover.mailboxes))
    if after.anchor != before.anchor:
        log.info("group.anchor_changed", old=before.anchor, anchor=after.anchor)
    if after.paused_until is not None and after.paused_until != before.paused_until:
        seconds = round(after.paused_until - now, 3)
        log.warning("group.backoff", seconds=seconds, failures=after.failures or after.flaps)
    if after.subscribe is not None and after.subscribe != before.subscribe:
        log.info("group.subscribing", mailboxes=len(after.subscribe.mailboxes))


def _log_outcome(log: Log, outcome: Outcome) -> None:
    match outcome:
        case StreamEnded(duration, failures, _):
            _log_stream_end(log, round(duration, 3), failures)
        case Discovered(gone):
            log.info("group.discovered", gone=len(gone), unknown=len(outcome.unknown))
        case Subscribed(ids, refused):
            codes = Counter(failure.code for _, failure in refused)
            level = log.warning if refused else log.info
            level("group.subscribed", subscribed=len(ids), refused=len(refused), codes=dict(codes))


def _log_stream_end(log: Log, seconds: float, failures: Sequence[Failure]) -> None:
    if not failures:
        log.debug("stream.closed", duration=seconds)
    for failure in failures:
        name = STREAM_ENDS.get(failure.code, "stream.refused")
        lost = len(failure.subscription_ids)
        log.warning(name, duration=seconds, subscriptions=lost, **_why(failure))


def _log_member(log: Log, old: Member, new: Member, policy: Policy) -> None:
    if new.suspended and not old.suspended:
        log.warning("mailbox.suspended", mailbox=new.mailbox, **_why(new.failure))
    elif old.suspended and not new.suspended:
        log.info("mailbox.resumed", mailbox=new.mailbox)
    elif (
        new.failure is not None and has_unknown_failure(new, policy) and not has_unknown_failure(old, policy)
    ):
        log.warning("mailbox.unknown_code", mailbox=new.mailbox, failures=new.failures, **_why(new.failure))
    elif new.failure is not None and new.failure is not old.failure:
        log.info("mailbox.refused", mailbox=new.mailbox, failures=new.failures, **_why(new.failure))


def has_unknown_failure(member: Member, policy: Policy) -> bool:
    """Return whether the mailbox failed repeatedly with a code that is in no table."""
    return (
        member.failure is not None and is_unknown(member.failure) and member.failures >= policy.max_failures
    )


def _why(failure: Failure | None) -> dict[str, str]:
    return {} if failure is None else {"code": failure.code, "text": failure.text}


STREAM_ENDS = {
    "StreamSilent": "stream.silent",
    "StreamIncomplete": "stream.incomplete",
    "ConnectionReset": "stream.broken",
}
