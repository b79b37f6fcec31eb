"""One mailbox of a group, as a value, and what befalls it. No I/O, no clock, no dice.

Times are seconds on one monotonic clock; `jitter` in [0, 1] is the share of jitter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from listener.backoff import Backoff
from listener.ews.codes import VERDICTS, Failure, Verdict


@dataclass(frozen=True, slots=True)
class Policy:
    """The patience of a group; seconds, and how many failures in a row are too many to go on in company."""

    backoff: Backoff = Backoff()
    suspended: Backoff = Backoff(first=15.0, cap=3600.0)
    flapping: Backoff = Backoff(first=1.0, factor=2.0, cap=15.0)
    stable_after: float = 10.0
    max_failures: int = 3


@dataclass(frozen=True, slots=True)
class Member:
    """One mailbox of the group.

    Without a subscription it is asked for at `due`; `failure` is why it has none. `suspended`: only the operator can
    help. `astray`: its place must be asked for first. `leaving`: it is on its way to a group of its own. `strays`
    counts the answers that it lives elsewhere, since it last had a stream that lasted.
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
    """The member of which a connection said this; None: it said nothing of it."""
    if failure is None:
        return member
    denied = failure.verdict is Verdict.SUSPEND
    if failure.verdict is not Verdict.STOP and member.failures + 1 >= (2 if denied else policy.max_failures):
        return replace(member, subscription=None, leaving=True, failure=failure)
    if failure.verdict in (Verdict.RETRY, Verdict.CREDENTIALS):
        return replace(member, failures=member.failures + 1)  # the subscription lives on
    if failure.verdict is not Verdict.STOP and member.failures == 0:
        # What it is denied may be the company only: whether the mailbox is, a Subscribe tells.
        return replace(lose_subscription(member, failure, now), failures=1)
    return refused(replace(member, subscription=None), failure, policy, now, jitter)


def retry_now(member: Member, now: float) -> Member:
    """What failed for no reason of its own need not wait any longer."""
    failure = member.failure
    own_idea = failure is not None and failure.verdict is Verdict.RETRY and failure.wait is None
    return replace(member, due=min(member.due, now)) if own_idea and not member.suspended else member


def lose_subscription(member: Member, failure: Failure, now: float) -> Member:
    """The subscription is gone and is asked for again at once, perhaps elsewhere."""
    if member.subscription is None:
        return member
    misplaced = failure.verdict is Verdict.REGROUP
    return replace(member, subscription=None, due=now, failure=failure, misplaced=misplaced)


def refused(member: Member, failure: Failure, policy: Policy, now: float, jitter: float) -> Member:
    """The member that could not be subscribed, or not be found."""
    twice = member.failure is not None and member.failure.verdict is failure.verdict
    hopeless = failure.verdict in HOPELESS or (failure.verdict is Verdict.CREDENTIALS and twice)
    suspended = hopeless or member.suspended  # until it works, whatever else comes between
    count = member.failures + 1 if suspended == member.suspended else 1
    misplaced = failure.verdict is Verdict.REGROUP
    misplacements = member.misplacements + misplaced
    backoff, step = policy.suspended if hopeless else policy.backoff, count
    if is_unknown(failure) and count >= policy.max_failures:
        backoff, step = policy.suspended, count - policy.max_failures + 1
    elif misplaced and misplacements >= 2 * policy.max_failures:
        # Each further try costs an Autodiscover and a Subscribe; but a move may end at any time.
        slow = policy.suspended
        backoff, step = (
            Backoff(slow.first, slow.factor, min(slow.cap, MAX_MISPLACED_DELAY)),
            misplacements - 2 * policy.max_failures + 1,
        )
    due = now + backoff.delay(step, jitter, failure.wait)
    return replace(
        member,
        failures=count,
        due=due,
        failure=failure,
        suspended=suspended,
        misplaced=misplaced,
        misplacements=misplacements,
    )


def is_unknown(failure: Failure) -> bool:
    """Return whether the code is in no table: nothing is known of what it means or how long it lasts."""
    return failure.code not in VERDICTS


def needs_own_cookie(member: Member, policy: Policy) -> bool:
    """Return whether this group's back end refuses it again and again, though Autodiscover says that it belongs here.

    The cookie of the anchor binds the group to one back end. In a group of its own the mailbox is sent without it.
    """
    return member.misplaced and member.misplacements >= policy.max_failures


def is_unsubscribed(member: Member) -> bool:
    """Whether it has no subscription and this group is the one to get it."""
    return member.subscription is None and not member.leaving


# A mailbox that gets these is suspended.
HOPELESS = (Verdict.SUSPEND, Verdict.STOP)

# Seconds between two tries, at most, for a mailbox that seems to live elsewhere again and again.
MAX_MISPLACED_DELAY = 300.0
