"""What can go wrong with a request to Exchange, and what to do about it: as data."""

from enum import StrEnum

import msgspec


class Verdict(StrEnum):
    """What is to be done about a failure."""

    RETRY = "retry"  # the same again, after a back-off
    WAIT = "wait"  # the server said how long; send nothing meanwhile
    RESUBSCRIBE = "resubscribe"  # the subscription is gone: a new one, and catch up
    REGROUP = "regroup"  # the mailbox is elsewhere: discover, group and subscribe anew
    PARK = "park"  # this mailbox cannot be listened to: look again slowly, tell the operator once
    CREDENTIALS = "credentials"  # noqa: S105  (a fresh token once, then tell)
    STOP = "stop"  # a fault in us or in the configuration: say so loudly, do not hammer


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request came to nothing.

    `code` is Exchange's response code (`ErrorServerBusy`), or `Http503`, or one of our own names for trouble on
    the way (`ConnectTimeout`, `ConnectionReset`, `NotSoap`, …). `wait` is in seconds: how long the server told us
    to wait. `subscription_ids` are those the server named; empty means all of the request.
    """

    code: str
    text: str = ""
    status: int | None = None
    wait: float | None = None
    subscription_ids: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        return VERDICTS.get(self.code, Verdict.RETRY)

    def __str__(self) -> str:
        return f"{self.code}: {self.text}" if self.text else self.code


VERDICTS: dict[str, Verdict] = {}
