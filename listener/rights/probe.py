"""Tries whether the account gets into a mailbox, with the cheapest request that tells.

That is a GetFolder for the inbox, or for the folders that are configured. A delegate may be allowed to read and yet
not to subscribe (ErrorSubscriptionDelegateAccessNotSupported), so for a delegate a subscription is made, and ended.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from listener.access import MailboxAccess
from listener.errors import ExchangeError
from listener.ews.codes import Failure, Verdict
from listener.ews.events import EventKind
from listener.ews.folders import get_folder, read_get_folder
from listener.ews.subscription import read_subscribe, read_unsubscribe, subscribe, unsubscribe
from listener.exchange.client import Access, ExchangeClient


class Probe:
    """The way to one server, for questions about many mailboxes. Use open_probe()."""

    def __init__(self, client: ExchangeClient, version: str) -> None:
        self._client = client
        self._version = version

    async def ask(
        self, mailbox: str, way: MailboxAccess, *, tries: int = 3, subscribing: bool = True
    ) -> Failure | None:
        """Why the account does not get in; None if it does. Without `subscribing`, a delegate need only look.

        Trouble that may pass is tried so often. A server that is busy is waited for, as the budget of the account
        says, BUSY_TRIES times.
        """
        failed = busy = 0
        while True:
            try:
                await self._get_in(mailbox, way, subscribing=subscribing)
            except ExchangeError as error:
                failure = error.failure
            else:
                return None
            if failure.verdict is Verdict.WAIT:
                busy += 1
            elif failure.verdict in PASSING:
                failed += 1
            if failure.verdict not in PASSING or failed >= tries or busy >= BUSY_TRIES:
                return failure
            if failure.verdict is not Verdict.WAIT:
                await trio.sleep(PAUSE * failed)

    async def _get_in(self, mailbox: str, way: MailboxAccess, *, subscribing: bool) -> None:
        folders = way.folders or (way.folder("inbox"),)
        who = {"version": self._version, "impersonate": way.impersonate}
        # Each mailbox is to be routed by its anchor, and by nothing that was learned with another one.
        self._client.forget_cookies()
        headers = {"X-AnchorMailbox": mailbox}
        body = get_folder(folders, id_only=True, **who)  # type: ignore[arg-type]
        told = await self._client.call(body, headers, lambda content: read_get_folder(content, folders))
        for failure in told.values():
            if isinstance(failure, Failure):
                raise ExchangeError(failure)
        if subscribing and way.kind == "delegate":
            body = subscribe(events=[EventKind.NEW_MAIL], folders=folders, **who)  # type: ignore[arg-type]
            made = await self._client.call(body, headers, read_subscribe)
            body = unsubscribe(made, **who)  # type: ignore[arg-type]
            with suppress(ExchangeError):  # it dies by itself
                await self._client.call(body, headers, read_unsubscribe)


@asynccontextmanager
async def open_probe(url: str, access: Access, version: str) -> AsyncIterator[Probe]:
    """A probe of the server at this URL."""
    async with ExchangeClient(url, access) as client:
        yield Probe(client, version)


PASSING = frozenset((Verdict.RETRY, Verdict.WAIT))
BUSY_TRIES = 30

# Seconds; it grows with each try.
PAUSE = 1.0
