"""Test of the access to one mailbox, with as few requests as possible.

The test is a GetFolder request for the inbox, or for the configured folders. A delegate may have the right to read
but not to subscribe (ErrorSubscriptionDelegateAccessNotSupported). For a delegate, the test therefore also creates a
subscription and ends it.

To prove that a mailbox is inaccessible, GetFolder is not enough: *Default* grants everyone AvailabilityOnly on the
calendar, so GetFolder succeeds although no item can be read. `reach()` therefore requests an item.
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
    """Result of an attempt to read items: the `operation` on the `folder`, and its failure.

    `reached` is True if it succeeded. Without a failure and without `reached`, the result is unknown: the folder
    showed no item, because it is empty or because its items are hidden from the account.
    """

    operation: str
    folder: str
    failure: Failure | None = None
    reached: bool = False


class Probe:
    """Client of one server that tests the access to many mailboxes. Use open_probe()."""

    def __init__(self, client: ExchangeClient, version: str) -> None:
        self._client = client
        self._version = version

    async def check(self, mailbox: str, access: MailboxAccess, *, attempts: int = 3) -> Failure | None:
        """Return why the account cannot access the mailbox; None if it can.

        A transient failure is retried up to `attempts` times in total. While the server is busy, the test waits as
        the throttle of the account requires, up to MAX_BUSY_ATTEMPTS times.
        """
        return await _with_retries(lambda: self._access(mailbox, access), attempts)

    async def reach(self, mailbox: str, access: MailboxAccess) -> Reach:
        """Try to read an item in each folder of `access`, or in the inbox. Return the first folder that was reached,
        else the first unknown result, else the last failure."""
        unknown = failed = None
        for folder in access.folders or (access.folder("inbox"),):
            reach = await self._reach(mailbox, access, folder)
            if reach.reached:
                return reach
            if reach.failure is None:
                unknown = unknown or reach
            failed = reach
        result = unknown or failed
        assert result is not None  # there is at least one folder
        return result

    async def _reach(self, mailbox: str, access: MailboxAccess, folder: FolderRef) -> Reach:
        name = folder.name or ""
        visible = False

        async def find() -> None:
            nonlocal visible
            visible = await self._has_visible_items(mailbox, access, folder)

        failure = await _with_retries(find, 1)
        # Impersonation has all rights of the owner, so success proves access even if the folder is empty.
        if failure is not None or visible or access.impersonate is not None:
            return Reach("FindItem", name, failure, reached=failure is None)
        if await _with_retries(lambda: self._subscribe(mailbox, access, (folder,)), 1) is None:
            return Reach("Subscribe", name, reached=True)
        return Reach("FindItem", name)

    async def _has_visible_items(self, mailbox: str, access: MailboxAccess, folder: FolderRef) -> bool:
        body = find_item(folder, page_size=1, version=self._version, impersonate=access.impersonate)
        page = await self._client.call(body, self._headers(mailbox), read_find_item)
        return bool(page.found or page.total)

    async def _access(self, mailbox: str, access: MailboxAccess) -> None:
        folders = access.folders or (access.folder("inbox"),)
        body = get_folder(folders, id_only=True, version=self._version, impersonate=access.impersonate)
        headers = self._headers(mailbox)
        results = await self._client.call(body, headers, lambda content: read_get_folder(content, folders))
        for result in results.values():
            if isinstance(result, Failure):
                raise ExchangeError(result)
        if access.kind == "delegate":
            await self._subscribe(mailbox, access, folders)

    async def _subscribe(self, mailbox: str, access: MailboxAccess, folders: tuple[FolderRef, ...]) -> None:
        """Subscribe to the folders and unsubscribe."""
        version, impersonate = self._version, access.impersonate
        headers = self._headers(mailbox)
        body = subscribe(
            events=[EventKind.NEW_MAIL], folders=folders, version=version, impersonate=impersonate
        )
        subscription = await self._client.call(body, headers, read_subscribe)
        with suppress(ExchangeError):  # the server ends unused subscriptions itself
            body = unsubscribe(subscription, version=version, impersonate=impersonate)
            await self._client.call(body, headers, read_unsubscribe)

    def _headers(self, mailbox: str) -> dict[str, str]:
        # Exchange must route each request by its anchor mailbox, not by the affinity cookies of another mailbox.
        self._client.forget_cookies()
        return {"X-AnchorMailbox": mailbox}


async def _with_retries(attempt: Callable[[], Awaitable[None]], attempts: int) -> Failure | None:
    """Retry transient failures up to `attempts` times in total. Return the last failure; None after success."""
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
        elif failure.verdict in TRANSIENT:
            failed += 1
        if failure.verdict not in TRANSIENT or failed >= attempts or busy >= MAX_BUSY_ATTEMPTS:
            return failure
        if failure.verdict is not Verdict.WAIT:
            await trio.sleep(PAUSE * failed)


@asynccontextmanager
async def open_probe(url: str, access: Access, version: str) -> AsyncIterator[Probe]:
    """Open a probe for the server at this URL."""
    async with ExchangeClient(url, access) as client:
        yield Probe(client, version)


TRANSIENT = frozenset((Verdict.RETRY, Verdict.WAIT))
MAX_BUSY_ATTEMPTS = 30

# Seconds; multiplied by the number of failed attempts.
PAUSE = 1.0
