"""What is asked about one mailbox, to compare it: its folders, what changed in one of them, what is still there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Protocol, TypeVar

from listener.access import MailboxAccess
from listener.errors import ExchangeError
from listener.ews.codes import Failure
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
class Way:
    """How to ask about one mailbox: through its group's client, with the group's headers, as it is got at.

    `server_offset` are the seconds from trio's clock to the server's (Unix seconds); None: the server has not sent
    its time."""

    client: Caller
    headers: Mapping[str, str]
    version: str
    access: MailboxAccess
    server_offset: float | None = None


@dataclass(slots=True)
class Inquiry:
    """Asks about one mailbox, and counts the requests. All methods raise ExchangeError."""

    way: Way
    requests: int = 0

    async def folders(self, refs: tuple[FolderRef, ...]) -> dict[FolderRef, Folder]:
        """Those of these folders that are there."""
        told = await self._ask(get_folder, lambda content: read_get_folder(content, refs), refs)
        for failure in told.values():
            # Those that are gone are left out; that one cannot be told does not mean that it is gone.
            if isinstance(failure, Failure) and failure.code not in GONE:
                raise ExchangeError(failure)
        return {ref: folder for ref, folder in told.items() if isinstance(folder, Folder)}

    async def all_folders(self) -> dict[str, Folder]:
        """All folders of the mailbox, by their ids."""
        for _ in range(SURVEYS):
            found: dict[str, Folder] = {}
            offset: int | None = 0
            while offset is not None:
                start = offset
                read = partial(read_find_folder, offset=start)
                page = await self._ask(find_folder, read, self.way.access.folder("root"), offset=start)
                found |= {folder.folder_id: folder for folder in page.found}
                offset = page.next_offset
            # A folder that went between two pages moves another one past the offset.
            if start == 0 or page.total is None or len(found) == page.total:
                return found
        raise ExchangeError(Failure(code="UnexpectedReply", text="the folders changed while they were told"))

    async def changes(
        self, folder: Folder, state: str | None, properties: tuple[ItemProperty, ...] = ()
    ) -> ItemChanges:
        """A page of a folder's changes since a state."""
        page = await self._ask(
            sync_folder_items,
            read_sync_folder_items,
            FolderRef(folder_id=folder.folder_id),
            sync_state=state,
            properties=properties,
        )
        if not page.includes_last and not page.changes and page.sync_state == state:
            raise ExchangeError(Failure(code="UnexpectedReply", text="a SyncFolderItems that does not go on"))
        return page

    async def all_items(self, folder: Folder) -> set[str]:
        """The ids of all items in a folder."""
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
        """The items of a folder that were modified since then, page by page; some may come twice."""
        ref = FolderRef(folder_id=folder.folder_id)
        following: tuple[datetime | None, int] | None = (cutoff, 0)
        while following is not None:
            since, start = following
            read = partial(read_find_item, offset=start)
            page = await self._ask(find_item, read, ref, since=since, offset=start, properties=properties)
            yield page.found
            following = next_page(page, since)

    async def gone(self, ids: Collection[str]) -> list[str]:
        """Those of these items that are not there any more."""
        missing, rest = [], sorted(ids)
        while rest:
            batch, rest = rest[:BATCH], rest[BATCH:]
            told = await self._ask(get_item, partial(read_get_item, item_ids=batch), batch)
            for id_, found in told.items():
                if isinstance(found, Item):
                    continue
                if found.code not in GONE:
                    raise ExchangeError(found)
                missing.append(id_)
        return missing

    async def _ask(
        self, request: Callable[..., bytes], read: Callable[[bytes], T], *what: object, **how: Any
    ) -> T:
        self.requests += 1
        way = self.way
        body = request(*what, **how, version=way.version, impersonate=way.access.impersonate)
        return await way.client.call(body, way.headers, read)


GONE = frozenset(("ErrorFolderNotFound", "ErrorItemNotFound", "ErrorSyncFolderNotFound"))

# Items a GetItem. More are not recommended ("Best practices for EWS batch requests", learn.microsoft.com).
BATCH = 10

# How often folders are asked for if they change between two pages.
SURVEYS = 3
