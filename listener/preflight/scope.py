"""Verification that the account cannot access must_deny mailboxes: every attempt must be denied.

The attempts read items with each kind of access that the configuration uses, at each server where the mailbox may be.
One success is a violation. A successful GetFolder is not a proof of access: the *Default* permission of every
Exchange calendar is AvailabilityOnly, so everyone can open the folder, but cannot read its items.

A result that is neither a denial nor a success is reported as not proved. The verification is repeated, because
an administrator may widen the scope later. It is repeated sooner if a mailbox was not proved.
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
    """Result of the verification of one must_deny mailbox."""

    REFUSED = "refused"
    REACHED = "reached"
    NOT_PROVED = "not_proved"


@dataclass(frozen=True, slots=True)
class Attempt:
    """The decisive attempt on one mailbox: its operation and folder, and the failure that the server reported."""

    mailbox: str
    finding: Finding
    failure: Failure | None = None
    access: AccessKind | None = None
    server: str | None = None
    operation: str | None = None
    folder: str | None = None

    @property
    def proof(self) -> str:
        """Return a text with the operation, the folder, the kind of access and the server."""
        if self.operation is None:
            return "nothing was tried"
        access = "as a delegate" if self.access == "delegate" else "by impersonation"
        return f'{self.operation} on the folder "{self.folder}" of the mailbox, {access}, at {self.server}'


@dataclass(slots=True, kw_only=True)
class Scope:
    """The must_deny mailboxes.

    `places` returns the EWS URLs where each mailbox may be, `ways` the access rules to try at a URL; both may be
    changed at any time. `interval` is in seconds.
    """

    mailboxes: tuple[str, ...]
    access: Access
    version: str
    places: Callable[[Sequence[str]], Awaitable[Mapping[str, Sequence[str] | Failure]]]
    ways: Callable[[str], Sequence[AccessRule]]
    interval: float = 86400.0

    async def prove(self) -> tuple[Attempt, ...]:
        """Verify all mailboxes concurrently and log the results."""
        places = await self.places(self.mailboxes)
        results: dict[str, Attempt] = {}

        async def verify(mailbox: str) -> None:
            results[mailbox] = attempt = await self._attempt(mailbox, places[mailbox])
            _log(attempt)

        async with trio.open_nursery() as nursery:
            for mailbox in self.mailboxes:
                nursery.start_soon(verify, mailbox)
        attempts = tuple(results[mailbox] for mailbox in self.mailboxes)
        if all(attempt.finding is Finding.REFUSED for attempt in attempts):
            log.info("scope.verified", mailboxes=len(attempts))
        return attempts

    async def _attempt(self, mailbox: str, urls: Sequence[str] | Failure) -> Attempt:
        if isinstance(urls, Failure):
            return Attempt(mailbox, Finding.NOT_PROVED, urls)
        refused = unproved = None
        for url in urls:
            async with open_probe(url, self.access, self.version) as probe:
                for rule in self.ways(url):
                    reach = await probe.reach(mailbox, rule.of(mailbox))
                    attempt = _evaluate(mailbox, rule.kind, server_of(url), reach)
                    match attempt.finding:
                        case Finding.REACHED:
                            return attempt
                        case Finding.NOT_PROVED:
                            unproved = unproved or attempt
                        case Finding.REFUSED:
                            refused = attempt
        return unproved or refused or Attempt(mailbox, Finding.NOT_PROVED)

    async def watch(self, attempts: Sequence[Attempt] | None = None) -> None:
        """Repeat the verification until cancelled. The first one is now, unless `attempts` has its results."""
        if not self.mailboxes:
            return
        attempts = await self.prove() if attempts is None else attempts
        unproved = 0
        while True:
            any_unproved = any(attempt.finding is Finding.NOT_PROVED for attempt in attempts)
            unproved = unproved + 1 if any_unproved else 0
            pause = min(RETRY.longest(unproved), self.interval) if unproved else self.interval
            await trio.sleep(pause)
            attempts = await self.prove()


def _evaluate(mailbox: str, kind: AccessKind, server: str, reach: Reach) -> Attempt:
    failure = reach.failure
    if reach.reached:
        finding = Finding.REACHED
    elif failure is None:
        finding, failure = Finding.NOT_PROVED, NO_VISIBLE_ITEM
    else:
        finding = Finding.REFUSED if failure.code in REFUSALS[kind] else Finding.NOT_PROVED
    return Attempt(mailbox, finding, failure, kind, server, reach.operation, reach.folder)


def _log(attempt: Attempt) -> None:
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


# The folder could be opened but showed no item.
NO_VISIBLE_ITEM = Failure(
    code="NoItem",
    text="the account can open the folder but not subscribe to it; the folder is empty or its items are hidden",
)

# The backoff between two verifications while a mailbox is not proved.
RETRY = Backoff(first=60.0, factor=2.0, cap=3600.0)

# Codes that prove a denial. A delegate gets ErrorAccessDenied, or an error that the folder or item does not exist.
# Impersonation has its own codes. There, ErrorAccessDenied is no proof: it may mean that EWS is disabled for the
# mailbox, which would become accessible when EWS is enabled. ErrorImpersonationFailed reports only an internal error.
REFUSALS: Mapping[AccessKind, frozenset[str]] = {
    "impersonation": frozenset(("ErrorImpersonateUserDenied", "ErrorImpersonationDenied")),
    "delegate": frozenset(("ErrorAccessDenied", "ErrorFolderNotFound", "ErrorItemNotFound")),
    "own": frozenset(),
}
