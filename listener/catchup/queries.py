"""Requests about one mailbox, to compare it: its folders, the changes in one of them, the items that still exist."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Protocol, TypeVar

import trio

from listener.access import MailboxAccess
from listener.catchup.paging import Progress
from listener.ews.codes import ExchangeError, Failure
from listener.ews.folders import Folder, find_folder, get_folder, read_find_folder, read_get_folder
from listener.ews.items import (
    Item,
    ItemProperty,
    find_item,
    get_item,
    next_page,
    read_find_item,
    read_get_item,
)
from listener.ews.subscription import FolderRef
from listener.ews.sync import ItemChanges, read_sync_folder_items, sync_folder_items

T = TypeVar("T")


class Caller(Protocol):
    """Posts a SOAP request (listener.exchange.client.ExchangeClient does)."""

    async def call(self, body: bytes, headers: Mapping[str, str], read: Callable[[bytes], T]) -> T: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxRoute:
    """How to send requests about one mailbox: with its group's client and headers, and its own access.

    `server_offset`: seconds from trio's clock to the server's (Unix seconds); None: the server has not sent its time.
    """

    client: Caller
    headers: Mapping[str, str]
    version: str
    access: MailboxAccess
    server_offset: float | None = None


@dataclass(slots=True)
class Queries:
    """Sends requests about one mailbox and counts them. All methods raise ExchangeError.

    A listing that makes no progress raises it too (paging.py).
    """

    route: MailboxRoute
    requests: int = 0
    _listings: dict[str, Progress] = field(default_factory=dict)  # by folder

    async def folders(self, refs: tuple[FolderRef, ...]) -> dict[FolderRef, Folder]:
        """Return those of these folders that exist."""
        found = await self._send(get_folder, lambda content: read_get_folder(content, refs), refs)
        for failure in found.values():
            # Deleted folders are left out. Another failure does not mean that the folder is deleted.
            if isinstance(failure, Failure) and failure.code not in GONE:
                raise ExchangeError(failure)
        return {ref: folder for ref, folder in found.items() if isinstance(folder, Folder)}

    async def all_folders(self) -> dict[str, Folder]:
        """Return all folders of the mailbox by id."""
        for _ in range(SURVEYS):
            found: dict[str, Folder] = {}
            offset: int | None = 0
            progress: Progress | None = None
            while offset is not None:
                start = offset
                read = partial(read_find_folder, offset=start)
                page = await self._send(find_folder, read, self.route.access.folder("root"), offset=start)
                found |= {folder.folder_id: folder for folder in page.found}
                offset = page.next_offset
                if offset is not None:
                    progress = progress or Progress("FindFolder", page.total)
                    await _advance(progress, offset, [folder.folder_id for folder in page.found])
            # If a folder is deleted between two pages, the next page begins one folder too late.
            if start == 0 or page.total is None or len(found) == page.total:
                return found
        raise ExchangeError(
            Failure(
                code="UnexpectedReply",
                text=f"FindFolder: the folders changed between the pages, {SURVEYS} times in a row",
            )
        )

    async def changes(
        self,
        folder: Folder,
        state: str | None,
        properties: tuple[ItemProperty, ...] = (),
        *,
        progress: Progress | None = None,
    ) -> ItemChanges:
        """Return a page of a folder's changes since a SyncState.

        `progress` belongs to a listing that another object has begun. Without it, a listing begins with each state
        that is not the one of the last page.
        """
        id_ = folder.folder_id
        if progress is None:
            progress = self._listings.get(id_)
            if progress is None or progress.position != state:
                progress = Progress("SyncFolderItems", folder.total_count)
            self._listings[id_] = progress
        page = await self._send(
            sync_folder_items,
            read_sync_folder_items,
            FolderRef(folder_id=folder.folder_id),
            sync_state=state,
            properties=properties,
        )
        if page.includes_last:
            self._listings.pop(id_, None)
        elif page.sync_state == state:
            raise ExchangeError(
                Failure(code="UnexpectedReply", text="SyncFolderItems returned the same SyncState twice")
            )
        else:
            changed = [(change.kind, change.item_id, change.change_key) for change in page.changes]
            await _advance(progress, page.sync_state, changed)
        return page

    async def all_items(self, folder: Folder) -> set[str]:
        """Return the ids of all items in a folder."""
        found, state = set[str](), None
        while True:
            page = await self.changes(folder, state)
            found.update(change.item_id for change in page.changes)
            if page.includes_last:
                return found
            state = page.sync_state

    async def modified_since(
        self,
        folder: Folder,
        cutoff: datetime,
        properties: tuple[ItemProperty, ...] = (ItemProperty.DATE_TIME_CREATED,),
    ) -> AsyncIterator[tuple[Item, ...]]:
        """Yield the items of a folder that were modified since then, page by page; some may come twice."""
        ref = FolderRef(folder_id=folder.folder_id)
        following: tuple[datetime | None, int] | None = (cutoff, 0)
        progress = Progress("FindItem", folder.total_count)
        while following is not None:
            since, start = following
            read = partial(read_find_item, offset=start)
            page = await self._send(find_item, read, ref, since=since, offset=start, properties=properties)
            following = next_page(page, since)
            if following is not None:
                await _advance(progress, following, [(item.item_id, item.change_key) for item in page.found])
            yield page.found

    async def gone(self, ids: Collection[str]) -> list[str]:
        """Return those of these items that do not exist any more."""
        missing, rest = [], sorted(ids)
        while rest:
            batch, rest = rest[:BATCH], rest[BATCH:]
            found = await self._send(get_item, partial(read_get_item, item_ids=batch), batch)
            for id_, item in found.items():
                if isinstance(item, Item):
                    continue
                if item.code not in GONE:
                    raise ExchangeError(item)
                missing.append(id_)
        return missing

    async def _send(
        self, request: Callable[..., bytes], read: Callable[[bytes], T], *args: object, **options: Any
    ) -> T:
        self.requests += 1
        route = self.route
        body = request(*args, **options, version=route.version, impersonate=route.access.impersonate)
        return await route.client.call(body, route.headers, read)


async def _advance(progress: Progress, position: Hashable, entries: Iterable[Hashable]) -> None:
    progress.next_page(position, entries)
    if progress.pause:
        await trio.sleep(progress.pause)


GONE = frozenset(("ErrorFolderNotFound", "ErrorItemNotFound", "ErrorSyncFolderNotFound"))

# Items of one GetItem request. More are not recommended ("Best practices for EWS batch requests",
# learn.microsoft.com).
BATCH = 10

# Attempts to list the folders, if they change between two pages.
SURVEYS = 3
