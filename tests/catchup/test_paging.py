"""Listings that a server never completes."""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from listener.access import AccessRule
from listener.catchup.catchup import CatchUp
from listener.catchup.differences import FolderRecord
from listener.catchup.paging import FEW_PAGES, LONGEST_PAUSE, MOST_REPEATS, Progress
from listener.catchup.queries import MailboxRoute, Queries
from listener.catchup.snapshot_builder import build_page
from listener.catchup.snapshots import MailboxRecord, encoded
from listener.event import MailboxEvent
from listener.ews.codes import ExchangeError, Failure
from listener.ews.folders import Folder
from tests.ews.samples import MESSAGES, TYPES

FOLDER = Folder(folder_id="F", total_count=1000)
SOAP = "http://schemas.xmlsoap.org/soap/envelope/"
Pages = Iterator[bytes | Failure]


def reply(operation: str, content: str) -> bytes:
    message = (
        f'<m:{operation}ResponseMessage ResponseClass="Success"><m:ResponseCode>NoError</m:ResponseCode>'
    )
    return (
        f'<s:Envelope xmlns:s="{SOAP}" xmlns:m="{MESSAGES}" xmlns:t="{TYPES}"><s:Body><m:{operation}Response>'
        f"<m:ResponseMessages>{message}{content}</m:{operation}ResponseMessage></m:ResponseMessages>"
        f"</m:{operation}Response></s:Body></s:Envelope>"
    ).encode()


def changes(state: object, *ids: object, last: bool = False) -> bytes:
    content = "".join(f'<t:Create><t:Message><t:ItemId Id="{id_}"/></t:Message></t:Create>' for id_ in ids)
    return reply(
        "SyncFolderItems",
        f"<m:SyncState>{state}</m:SyncState><m:IncludesLastItemInRange>{str(last).lower()}"
        f"</m:IncludesLastItemInRange><m:Changes>{content}</m:Changes>",
    )


def found(operation: str, container: str, things: str, **view: object) -> bytes:
    attributes = " ".join(f'{name}="{value}"' for name, value in view.items())
    return reply(
        operation, f"<m:RootFolder {attributes}><t:{container}>{things}</t:{container}></m:RootFolder>"
    )


def folders(*ids: object, **view: object) -> bytes:
    things = "".join(f'<t:Folder><t:FolderId Id="{id_}"/></t:Folder>' for id_ in ids)
    return found("FindFolder", "Folders", things, **view)


def items(*ids: object, times: Iterator[int] | None = None, **view: object) -> bytes:
    things = "".join(
        f'<t:Message><t:ItemId Id="{id_}"/>'
        + (f"<t:LastModifiedTime>{time_of(next(times))}</t:LastModifiedTime>" if times else "")
        + "</t:Message>"
        for id_ in ids
    )
    return found("FindItem", "Items", things, **view)


def time_of(seconds: int) -> str:
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    return f"2026-01-{1 + hours // 24:02}T{hours % 24:02}:{minute:02}:{second:02}Z"


class OneRoute:
    """Routes with one mailbox at one server."""

    def __init__(self, server: "Server") -> None:
        self.server = server

    def route(self, _mailbox: str) -> MailboxRoute:
        return self.server.route

    route_without_stream = route


class Server:
    """Answers each request with the next of these pages."""

    def __init__(self, pages: Pages) -> None:
        self.pages, self.request_count = pages, 0

    async def call(self, body: bytes, headers: Mapping[str, str], read: Callable[[bytes], Any]) -> Any:
        self.request_count += 1
        await trio.sleep(0.005)
        page = next(self.pages)
        if isinstance(page, Failure):
            raise ExchangeError(page)
        return read(page)

    @property
    def route(self) -> MailboxRoute:
        access = AccessRule().of("a@x.example")
        return MailboxRoute(client=self, headers={}, version="Exchange2013_SP1", access=access)


async def all_items(queries: Queries) -> None:
    await queries.all_items(FOLDER)


async def all_folders(queries: Queries) -> None:
    await queries.all_folders()


async def all_modified(queries: Queries) -> None:
    async for _ in queries.modified_since(FOLDER, datetime(2026, 1, 1, tzinfo=UTC)):
        pass


@pytest.mark.parametrize(
    ("pages", "walk", "most"),
    [
        ((changes("S") for _ in count()), all_items, 2),
        ((changes("S", n) for n in count()), all_items, 2),
        ((changes(f"S{n % 3}", n) for n in count()), all_items, 4),
        ((changes(f"S{n}") for n in count()), all_items, MOST_REPEATS),
        ((changes(f"S{n}", *range(512)) for n in count()), all_items, 1 + MOST_REPEATS),
        ((changes(f"S{n}", n % 7) for n in count()), all_items, 7 + MOST_REPEATS),
        ((changes(f"S{n}", n) for n in count()), all_items, FEW_PAGES + 100),
        ((folders(*range(9), IndexedPagingOffset=9) for _ in count()), all_folders, 5),
        ((folders(*range(9), IndexedPagingOffset=9 * n + 9) for n in count()), all_folders, 1 + MOST_REPEATS),
        (
            (folders(*range(9), IncludesLastItemInRange="false") for _ in count()),
            all_folders,
            1 + MOST_REPEATS,
        ),
        ((folders(n, IncludesLastItemInRange="false") for n in count()), all_folders, FEW_PAGES),
        ((items(*range(9), IndexedPagingOffset=9) for _ in count()), all_modified, 5),
        (
            (items(*range(9), IncludesLastItemInRange="false") for _ in count()),
            all_modified,
            1 + MOST_REPEATS,
        ),
        ((items(n, IncludesLastItemInRange="false") for n in count()), all_modified, FEW_PAGES + 100),
        (
            (items(n, times=count(n), IncludesLastItemInRange="false") for n in count()),
            all_modified,
            FEW_PAGES + 100,
        ),
    ],
)
async def test_endless_listing_is_an_error(
    autojump_clock: trio.testing.MockClock, pages: Pages, walk: Callable[[Queries], Any], most: int
) -> None:
    server = Server(pages)
    with pytest.raises(ExchangeError) as caught:
        await walk(Queries(server.route))
    assert caught.value.failure.code == "UnexpectedReply"
    assert server.request_count <= most
    if most > FEW_PAGES:
        assert server.request_count / trio.current_time() < 10  # requests a second


async def test_long_listing_completes(autojump_clock: trio.testing.MockClock) -> None:
    """The largest plausible folder, in pages as Exchange sends them."""
    count_ = 150_000
    starts = range(0, count_, 512)
    pages = (changes(f"S{n}", *range(n, n + 512), last=n == starts[-1]) for n in starts)
    server = Server(pages)
    folder = Folder(folder_id="F", total_count=count_)
    assert len(await Queries(server.route).all_items(folder)) >= count_
    assert trio.current_time() < 600


async def test_occasional_page_without_changes_is_allowed(autojump_clock: trio.testing.MockClock) -> None:
    pages = [changes("1", "a"), changes("2"), changes("3", "b"), changes("4"), changes("5", "c", last=True)]
    assert await Queries(Server(iter(pages)).route).all_items(FOLDER) == {"a", "b", "c"}


@given(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=60))
def test_any_sequence_of_pages_ends(pages: list[list[int]]) -> None:
    progress = Progress("X", 10)
    with pytest.raises(ExchangeError):
        for n in count():
            progress.next_page(n, pages[n % len(pages)])
            assert progress.pages < FEW_PAGES + 10
            assert 0 <= progress.pause <= LONGEST_PAUSE


class States:
    """The stored state of one mailbox, with a folder that has no SyncState yet."""

    def __init__(self) -> None:
        known = MailboxRecord(top_id="T", inbox_id="F", compared_at=0.0)
        self.kept: dict[str, bytes] = {
            key: value for key, value in encoded({"F": FolderRecord(folder=FOLDER)}, known).items() if value
        }

    async def load(self, mailbox: str, /) -> Mapping[str, bytes]:
        return dict(self.kept)

    async def save(
        self, mailbox: str, events: "list[MailboxEvent]", changes: Mapping[str, bytes | None], /
    ) -> None:
        self.kept |= {key: value for key, value in changes.items() if value is not None}


INVALID = Failure(code="ErrorInvalidSyncStateData")


@pytest.mark.parametrize(
    "pages",
    [
        lambda: (changes("S") for _ in count()),
        lambda: (changes(f"S{n}") for n in count()),
        lambda: (changes(f"S{n}", *range(512)) for n in count()),
        lambda: (changes(f"S{n % 3}", n) for n in count()),
        lambda: (changes(f"S{n}", n) if n % 2 == 0 else INVALID for n in count()),
    ],
)
async def test_endless_first_sync_state_is_retried_with_growing_delays(
    autojump_clock: trio.testing.MockClock, pages: Callable[[], Pages]
) -> None:
    server = Server(pages())
    catch_up = CatchUp(routes=OneRoute(server), states=States(), kinds=frozenset({"created"}))  # type: ignore[arg-type]
    catch_up._mailbox_state("a@x.example")
    catch_up._builds.put("a@x.example", 0.0)
    with trio.move_on_after(3600):
        await catch_up.run()
    assert 3 < server.request_count < 150  # in an hour


async def test_first_sync_state_is_built_page_by_page() -> None:
    states, listings = States(), dict[str, Progress]()
    server = Server(iter([changes("1", "a"), changes("2", "b"), changes("3", "c", last=True)]))
    built = [await build_page(Queries(server.route), states, "a", (), listings) for _ in range(4)]  # type: ignore[arg-type]
    assert built == [("F", False), ("F", False), ("F", True), None]
    assert not listings
