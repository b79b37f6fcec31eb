"""Proves that the account cannot reach what it must not: it tries to, and must be refused.

It tries to read items in every way of access that the configuration uses, at every server where the mailbox may
be. All must refuse: one that lets it in is a failure. A GetFolder that succeeds is no proof. Everybody can open a
calendar whose *Default* right is AvailabilityOnly, as it is in every mailbox of Exchange, and cannot read its items.

What is neither a refusal nor a success proves nothing, and is said to. A scope that was proved once may be widened by
anybody with the right to: so it is tried again, and sooner where it was not proved.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import structlog
import trio

from listener.access import AccessKind, AccessRule
from listener.backoff import Backoff
from listener.ews.codes import Failure
from listener.ews.urls import server_of
from listener.exchange.client import Access
from listener.preflight.probe import Reach, open_probe

log = structlog.get_logger()


class Finding(StrEnum):
    """What came of an attempt to reach a mailbox that must refuse."""

    REFUSED = "refused"
    REACHED = "reached"
    NOT_PROVED = "not_proved"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of all attempts on one mailbox: the one that decided, by its operation and folder, and what was said
    to it."""

    mailbox: str
    finding: Finding
    failure: Failure | None = None
    access: AccessKind | None = None
    server: str | None = None
    operation: str | None = None
    folder: str | None = None

    @property
    def proof(self) -> str:
        """Which operation was tried, on which folder, in which way and where."""
        if self.operation is None:
            return "nothing was tried"
        how = "as a delegate" if self.access == "delegate" else "by impersonation"
        return f'{self.operation} on the folder "{self.folder}" of the mailbox, {how}, at {self.server}'


@dataclass(slots=True, kw_only=True)
class Scope:
    """The mailboxes that must refuse. `places` tells at which URLs they may be, `ways` how to try to get in there.

    Durations are seconds. `places` and `ways` may be changed at any time.
    """

    mailboxes: tuple[str, ...]
    access: Access
    version: str
    places: Callable[[Sequence[str]], Awaitable[Mapping[str, Sequence[str] | Failure]]]
    ways: Callable[[str], Sequence[AccessRule]]
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
            log.info("scope.verified", mailboxes=len(attempts))
        return attempts

    async def _attempt(self, mailbox: str, urls: Sequence[str] | Failure) -> Attempt:
        if isinstance(urls, Failure):
            return Attempt(mailbox, Finding.NOT_PROVED, urls)
        refused = unproved = None
        for url in urls:
            async with open_probe(url, self.access, self.version) as probe:
                for way in self.ways(url):
                    reach = await probe.reach(mailbox, way.of(mailbox))
                    attempt = _judged(mailbox, way.kind, server_of(url), reach)
                    match attempt.finding:
                        case Finding.REACHED:
                            return attempt
                        case Finding.NOT_PROVED:
                            unproved = unproved or attempt
                        case Finding.REFUSED:
                            refused = attempt
        return unproved or refused or Attempt(mailbox, Finding.NOT_PROVED)

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


def _judged(mailbox: str, kind: AccessKind, server: str, reach: Reach) -> Attempt:
    failure = reach.failure
    if reach.reached:
        finding = Finding.REACHED
    elif failure is None:
        finding, failure = Finding.NOT_PROVED, NO_ITEM
    else:
        finding = Finding.REFUSED if failure.code in REFUSALS[kind] else Finding.NOT_PROVED
    return Attempt(mailbox, finding, failure, kind, server, reach.operation, reach.folder)


def _tell(attempt: Attempt) -> None:
    fields: dict[str, object] = {"mailbox": attempt.mailbox}
    if attempt.access is not None:
        fields |= {"access": attempt.access, "server": attempt.server}
        fields |= {"operation": attempt.operation, "folder": attempt.folder}
    if attempt.failure is not None:
        fields |= {"code": attempt.failure.code, "text": attempt.failure.text}
    match attempt.finding:
        case Finding.REACHED:
            log.error("scope.violation", **fields)
        case Finding.NOT_PROVED:
            log.warning("scope.not_verified", **fields)


# The folder could be opened, and there was nothing to be seen in it.
NO_ITEM = Failure(
    code="NoItem",
    text="the account may open the folder, which is empty or hides its items; it may not subscribe",
)

# The patience between two attempts where nothing was proved.
AGAIN = Backoff(first=60.0, factor=2.0, cap=3600.0)

# With these the server says that the account may not get in. To a delegate it says that there is no such folder, or
# ErrorAccessDenied. For whom it may not impersonate it has words of its own: there ErrorAccessDenied may mean that
# EWS is switched off for the mailbox, and hides what could be reached with it. ErrorImpersonationFailed says only
# that something went wrong.
REFUSALS: Mapping[AccessKind, frozenset[str]] = {
    "impersonation": frozenset(("ErrorImpersonateUserDenied", "ErrorImpersonationDenied")),
    "delegate": frozenset(("ErrorAccessDenied", "ErrorFolderNotFound", "ErrorItemNotFound")),
    "own": frozenset(),
}
