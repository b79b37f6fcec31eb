"""Tries whether the account gets into a mailbox, with the cheapest request that tells.

That is a GetFolder for the inbox, or for the folders that are configured. A delegate may be allowed to read and yet
not to subscribe (ErrorSubscriptionDelegateAccessNotSupported), so for a delegate a subscription is made, and ended.

To prove that the account does not reach a mailbox, GetFolder is not enough: *Default* gives everybody a right
(AvailabilityOnly) on the calendar. GetFolder succeeds there, but no item can be read. So `reach()` asks for an item.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import trio

from listener.access import MailboxAccess
from listener.errors import ExchangeError
from listener.ews.codes import Failure, Verdict
from listener.ews.events import EventKind
from listener.ews.folders import get_folder, read_get_folder
from listener.ews.items import find_item, read_find_item
from listener.ews.subscription import FolderRef, read_subscribe, read_unsubscribe, subscribe, unsubscribe
from listener.exchange.client import Access, ExchangeClient


@dataclass(frozen=True, slots=True)
class Reach:
    """What came of an attempt to read items: the `operation` that was tried on the `folder`, and its failure.

    `reached` says that it succeeded. Without a failure and without `reached` nothing is known: the folder showed no
    item, because it is empty or because items are hidden from the account.
    """

    operation: str
    folder: str
    failure: Failure | None = None
    reached: bool = False


class Probe:
    """The way to one server, for questions about many mailboxes. Use open_probe()."""

    def __init__(self, client: ExchangeClient, version: str) -> None:
        self._client = client
        self._version = version

    async def ask(self, mailbox: str, way: MailboxAccess, *, attempts: int = 3) -> Failure | None:
        """Why the account does not get in; None if it does.

        Trouble that may pass is tried so often. A server that is busy is waited for, as the budget of the account
        says, BUSY_TRIES times.
        """
        return await _patiently(lambda: self._get_in(mailbox, way), attempts)

    async def reach(self, mailbox: str, way: MailboxAccess) -> Reach:
        """Try to read an item in each folder of `way`, else in the inbox. Return the first that can be reached, else
        the first of which nothing is known, else the last refusal."""
        unknown = refused = None
        for folder in way.folders or (way.folder("inbox"),):
            reach = await self._reach(mailbox, way, folder)
            if reach.reached:
                return reach
            if reach.failure is None:
                unknown = unknown or reach
            refused = reach
        found = unknown or refused
        assert found is not None  # there is at least one folder
        return found

    async def _reach(self, mailbox: str, way: MailboxAccess, folder: FolderRef) -> Reach:
        name = folder.name or ""
        seen = False

        async def look() -> None:
            nonlocal seen
            seen = await self._sees_items(mailbox, way, folder)

        failure = await _patiently(look, 1)
        # Who impersonates has all rights of the owner, in an empty folder too.
        if failure is not None or seen or way.impersonate is not None:
            return Reach("FindItem", name, failure, reached=failure is None)
        if await _patiently(lambda: self._subscribe(mailbox, way, (folder,)), 1) is None:
            return Reach("Subscribe", name, reached=True)
        return Reach("FindItem", name)

    async def _sees_items(self, mailbox: str, way: MailboxAccess, folder: FolderRef) -> bool:
        body = find_item(folder, page_size=1, version=self._version, impersonate=way.impersonate)
        page = await self._client.call(body, self._headers(mailbox), read_find_item)
        return bool(page.found or page.total)

    async def _get_in(self, mailbox: str, way: MailboxAccess) -> None:
        folders = way.folders or (way.folder("inbox"),)
        body = get_folder(folders, id_only=True, version=self._version, impersonate=way.impersonate)
        headers = self._headers(mailbox)
        told = await self._client.call(body, headers, lambda content: read_get_folder(content, folders))
        for failure in told.values():
            if isinstance(failure, Failure):
                raise ExchangeError(failure)
        if way.kind == "delegate":
            await self._subscribe(mailbox, way, folders)

    async def _subscribe(self, mailbox: str, way: MailboxAccess, folders: tuple[FolderRef, ...]) -> None:
        """Subscribe to the folders, and unsubscribe."""
        version, impersonate = self._version, way.impersonate
        headers = self._headers(mailbox)
        body = subscribe(
            events=[EventKind.NEW_MAIL], folders=folders, version=version, impersonate=impersonate
        )
        made = await self._client.call(body, headers, read_subscribe)
        with suppress(ExchangeError):  # it dies by itself
            body = unsubscribe(made, version=version, impersonate=impersonate)
            await self._client.call(body, headers, read_unsubscribe)

    def _headers(self, mailbox: str) -> dict[str, str]:
        # Each mailbox is to be routed by its anchor, and by nothing that was learned with another one.
        self._client.forget_cookies()
        return {"X-AnchorMailbox": mailbox}


async def _patiently(attempt: Callable[[], Awaitable[None]], attempts: int) -> Failure | None:
    """Why the attempt failed, after so many tries where the failure may pass; None if it succeeded."""
    failed = busy = 0
    while True:
        try:
            await attempt()
        except ExchangeError as error:
            failure = error.failure
        else:
            return None
        if failure.verdict is Verdict.WAIT:
            busy += 1
        elif failure.verdict in PASSING:
            failed += 1
        if failure.verdict not in PASSING or failed >= attempts or busy >= MAX_BUSY_ATTEMPTS:
            return failure
        if failure.verdict is not Verdict.WAIT:
            await trio.sleep(PAUSE * failed)


@asynccontextmanager
async def open_probe(url: str, access: Access, version: str) -> AsyncIterator[Probe]:
    """A probe of the server at this URL."""
    async with ExchangeClient(url, access) as client:
        yield Probe(client, version)


PASSING = frozenset((Verdict.RETRY, Verdict.WAIT))
MAX_BUSY_ATTEMPTS = 30

# Seconds; it grows with each try.
PAUSE = 1.0
