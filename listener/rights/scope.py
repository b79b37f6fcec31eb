"""Proves that the account cannot reach what it must not: it tries to, and must be refused.

What is neither a refusal nor a success proves nothing, and is said to. A scope that was proved once may be widened by
anybody with the right to: so it is tried again, and sooner where it was not proved.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import structlog
import trio

from listener.access import AccessRule
from listener.backoff import Backoff
from listener.ews.codes import Failure
from listener.exchange.client import Access
from listener.groups.affinity import Placement
from listener.rights.probe import open_probe

log = structlog.get_logger()


class Finding(StrEnum):
    """What came of an attempt to reach a mailbox that must refuse."""

    REFUSED = "refused"
    REACHED = "reached"
    NOT_PROVED = "not_proved"


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt on one mailbox, and what was said."""

    mailbox: str
    finding: Finding
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The mailboxes that must refuse to be impersonated. `places` tells where they live; durations are seconds."""

    mailboxes: tuple[str, ...]
    access: Access
    version: str
    places: Callable[[Sequence[str]], Awaitable[Mapping[str, Placement | Failure]]]
    interval: float = 86400.0

    async def prove(self) -> tuple[Attempt, ...]:
        """Tries all, side by side, and tells the log."""
        places = await self.places(self.mailboxes)
        found: dict[str, Attempt] = {}

        async def one(mailbox: str) -> None:
            found[mailbox] = attempt = await self._attempt(mailbox, places[mailbox])
            _tell(attempt)

        async with trio.open_nursery() as nursery:
            for mailbox in self.mailboxes:
                nursery.start_soon(one, mailbox)
        attempts = tuple(found[mailbox] for mailbox in self.mailboxes)
        if all(attempt.finding is Finding.REFUSED for attempt in attempts):
            log.info("scope.proved", mailboxes=len(attempts))
        return attempts

    async def _attempt(self, mailbox: str, place: Placement | Failure) -> Attempt:
        if isinstance(place, Failure):
            return Attempt(mailbox, Finding.NOT_PROVED, place)
        async with open_probe(place.ews_url, self.access, self.version) as probe:
            failure = await probe.ask(mailbox, RULE.of(mailbox), tries=1)
        if failure is None:
            return Attempt(mailbox, Finding.REACHED)
        return Attempt(mailbox, Finding.REFUSED if failure.code in REFUSALS else Finding.NOT_PROVED, failure)

    async def watch(self, attempts: Sequence[Attempt] | None = None) -> None:
        """Tries again and again, until it is cancelled; at first now, unless these attempts were made just now."""
        if not self.mailboxes:
            return
        attempts = await self.prove() if attempts is None else attempts
        unproved = 0
        while True:
            open_questions = any(attempt.finding is Finding.NOT_PROVED for attempt in attempts)
            unproved = unproved + 1 if open_questions else 0
            pause = min(AGAIN.longest(unproved), self.interval) if unproved else self.interval
            await trio.sleep(pause)
            attempts = await self.prove()


def _tell(attempt: Attempt) -> None:
    why = {} if attempt.failure is None else {"code": attempt.failure.code, "text": attempt.failure.text}
    match attempt.finding:
        case Finding.REACHED:
            log.error("scope.open", mailbox=attempt.mailbox)
        case Finding.NOT_PROVED:
            log.warning("scope.not_proved", mailbox=attempt.mailbox, **why)


RULE = AccessRule(kind="impersonation")

# The patience between two attempts where nothing was proved.
AGAIN = Backoff(first=60.0, factor=2.0, cap=3600.0)

# With these the server says that the account may not act for the mailbox. ErrorImpersonationFailed says only that
# something went wrong.
REFUSALS = frozenset(("ErrorImpersonateUserDenied", "ErrorImpersonationDenied", "ErrorAccessDenied"))
