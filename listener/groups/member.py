"""The state of one mailbox of a group, as a value, and its transitions. Pure: no I/O, no clock, no random numbers.

Times are seconds on one monotonic clock. `jitter` in [0, 1] is the random share of a delay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from listener.backoff import Backoff
from listener.ews.codes import VERDICTS, Failure, Verdict


@dataclass(frozen=True, slots=True)
class Policy:
    """The retry policy of a group.

    - `stable_after`: seconds after which a connection counts as stable.
    - `max_failures`: consecutive failures of a mailbox among others, after which the group changes its approach.
    """

    backoff: Backoff = Backoff()
    suspended: Backoff = Backoff(first=15.0, cap=3600.0)
    flapping: Backoff = Backoff(first=1.0, factor=2.0, cap=15.0)
    stable_after: float = 10.0
    max_failures: int = 3


@dataclass(frozen=True, slots=True)
class Member:
    """One mailbox of the group.

    - `subscription`: its SubscriptionId. Without one, it is subscribed at `due`, and `failure` is the reason.
    - `suspended`: only an operator can fix the failure.
    - `misplaced`: its placement must be found before the next Subscribe.
    - `leaving`: it moves to a group of its own.
    - `misplacements`: answers that it lives elsewhere, since its last stable stream.
    """

    mailbox: str
    subscription: str | None = None
    failures: int = 0
    due: float = 0.0
    failure: Failure | None = None
    suspended: bool = False
    misplaced: bool = False
    leaving: bool = False
    misplacements: int = 0


def failed(member: Member, failure: Failure | None, policy: Policy, now: float, jitter: float) -> Member:
    """Return the member after a connection reported this failure of it; None: it reported none."""
    if failure is None:
        return member
    denied = failure.verdict is Verdict.SUSPEND
    if failure.verdict is not Verdict.STOP and member.failures + 1 >= (2 if denied else policy.max_failures):
        return replace(member, subscription=None, leaving=True, failure=failure)
    if failure.verdict in (Verdict.RETRY, Verdict.CREDENTIALS):
        return replace(member, failures=member.failures + 1)  # the subscription remains valid
    if failure.verdict is not Verdict.STOP and member.failures == 0:
        # The server may refuse the mailbox only in this connection. A Subscribe shows whether it refuses it at all.
        return replace(lose_subscription(member, failure, now), failures=1)
    return refused(replace(member, subscription=None), failure, policy, now, jitter)


def retry_now(member: Member, now: float) -> Member:
    """Return the member, due now if it waits for a temporary failure without a delay that the server asked for."""
    failure = member.failure
    own_delay = failure is not None and failure.verdict is Verdict.RETRY and failure.wait is None
    return replace(member, due=min(member.due, now)) if own_delay and not member.suspended else member


def lose_subscription(member: Member, failure: Failure, now: float) -> Member:
    """Return the member without its subscription, due now, and misplaced if the failure says so."""
    if member.subscription is None:
        return member
    misplaced = failure.verdict is Verdict.REGROUP
    return replace(member, subscription=None, due=now, failure=failure, misplaced=misplaced)


def refused(member: Member, failure: Failure, policy: Policy, now: float, jitter: float) -> Member:
    """Return the member after it could not be subscribed or found."""
    repeated = member.failure is not None and member.failure.verdict is failure.verdict
    permanent = failure.verdict in PERMANENT or (failure.verdict is Verdict.CREDENTIALS and repeated)
    suspended = permanent or member.suspended  # until a Subscribe succeeds, after any other failures too
    count = member.failures + 1 if suspended == member.suspended else 1
    misplaced = failure.verdict is Verdict.REGROUP
    misplacements = member.misplacements + misplaced
    backoff, step = policy.suspended if permanent else policy.backoff, count
    if is_unknown(failure) and count >= policy.max_failures:
        backoff, step = policy.suspended, count - policy.max_failures + 1
    elif misplaced and misplacements >= 2 * policy.max_failures:
        # Each further attempt costs an Autodiscover and a Subscribe request. But a move may be completed at any time.
        slow = policy.suspended
        backoff = Backoff(slow.first, slow.factor, min(slow.cap, MAX_MISPLACED_DELAY))
        step = misplacements - 2 * policy.max_failures + 1
    return replace(
        member,
        failures=count,
        due=now + backoff.delay(step, jitter, failure.wait),
        failure=failure,
        suspended=suspended,
        misplaced=misplaced,
        misplacements=misplacements,
    )


def is_unknown(failure: Failure) -> bool:
    """Return whether the code is in no table, so that neither its meaning nor its duration is known."""
    return failure.code not in VERDICTS


def needs_own_cookie(member: Member, policy: Policy) -> bool:
    """Return whether the group's back end refuses the mailbox repeatedly, although Autodiscover assigns it there.

    The affinity cookie of the anchor binds the group to one back end. A group of its own sends other cookies.
    """
    return member.misplaced and member.misplacements >= policy.max_failures


def is_unsubscribed(member: Member) -> bool:
    """Return whether this group has to subscribe the mailbox."""
    return member.subscription is None and not member.leaving


# Verdicts that suspend a mailbox.
PERMANENT = (Verdict.SUSPEND, Verdict.STOP)

# The maximum of seconds between two attempts for a mailbox that seems to live elsewhere repeatedly.
MAX_MISPLACED_DELAY = 300.0
