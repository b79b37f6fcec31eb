"""What is known of mailboxes between two comparisons, and how it is built at first."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, MutableMapping, Sequence
from typing import NamedTuple, Protocol

import msgspec
import structlog

from listener.catchup.differences import Record
from listener.catchup.paging import Progress
from listener.catchup.queries import Queries
from listener.errors import ExchangeError
from listener.event import MailboxEvent
from listener.ews.codes import Failure, Verdict
from listener.ews.sync import ItemChanges

log = structlog.get_logger()


class States(Protocol):
    """Where events go and what is known of mailboxes is kept: by mailbox, then by a key, as bytes."""

    async def load(self, mailbox: str, /) -> Mapping[str, bytes]: ...

    async def save(
        self, mailbox: str, events: Sequence[MailboxEvent], changes: Mapping[str, bytes | None], /
    ) -> None:
        """Returns when the events are on their way to the handlers for good, and then the changes are made too
        (None removes). A crash may undo the changes, but not only the events."""


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a mailbox as a whole: the ids of the top folder and the inbox, and when (Unix seconds) it was
    last compared. `first`: that was the first look, with nothing to compare with.

    Of a mailbox of which only some folders are listened to, `places` are the ids of these by their names, and `top`
    is empty. `scope` are those names, empty for the whole mailbox; None: an older release wrote this."""

    top: str
    inbox: str
    compared: float
    first: bool = False
    places: dict[str, str] = {}
    scope: tuple[str, ...] | None = None


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """When a mailbox was subscribed for the first time: what is older was there before. Unix seconds, whole ones, by
    the server's clock.

    `backfill`: what came since then is to be reported once, with the first look, though it is older.
    """

    start: float
    backfill: float | None = None


class Kept(NamedTuple):
    """What is known of a mailbox as a whole, and of its folders by id: nothing until it was compared once to the end;
    and its mark, which may be there before."""

    known: Known | None
    records: dict[str, Record]
    mark: Mark | None


async def load_known(states: States, mailbox: str) -> Kept:
    """Return what is known of a mailbox."""
    kept = await states.load(mailbox)
    mark = None
    if MARK in kept:
        try:
            mark = _DECODE_MARK(kept[MARK])
        except _UNREADABLE as error:
            await _discard(states, mailbox, (MARK,), error)
    if WHOLE not in kept:
        return Kept(None, {}, mark)
    try:
        records = {key: _DECODE_RECORD(value) for key, value in kept.items() if key not in (WHOLE, MARK)}
        return Kept(_DECODE_KNOWN(kept[WHOLE]), records, mark)
    except _UNREADABLE as error:
        # The next comparison begins as the first one did. The mark stays: what is older was there before.
        await _discard(states, mailbox, kept.keys() - {MARK}, error)
        return Kept(None, {}, mark)


async def _discard(states: States, mailbox: str, keys: Iterable[str], error: BaseException) -> None:
    log.warning("catchup.state_unreadable", mailbox=mailbox, reason=str(error))
    await states.save(mailbox, (), dict.fromkeys(keys))


async def stored_folders(states: States, mailbox: str) -> set[str]:
    """Return the ids of the folders that are stored for a mailbox."""
    known, records, _ = await load_known(states, mailbox)
    return set(records) if known is None else {known.top, known.inbox, *records}


def encoded(
    records: Mapping[str, Record | None], whole: Known | None = None, mark: Mark | None = None
) -> dict[str, bytes | None]:
    """The changes that keep these, as load_known() gives them; None is forgotten."""
    changes = {id_: None if record is None else _ENCODE(record) for id_, record in records.items()}
    if whole is not None:
        changes[WHOLE] = _ENCODE(whole)
    if mark is not None:
        changes[MARK] = _ENCODE(mark)
    return changes


async def build_page(
    queries: Queries,
    states: States,
    mailbox: str,
    skip: Container[str],
    listings: MutableMapping[str, Progress] | None = None,
) -> tuple[str, bool] | None:
    """Fetches one page of the first state that is not complete, and keeps it; what it tells is of no interest.

    `listings` has the progress of the folders that were begun.
    Folders whose ids are in `skip` are passed over. Returns the folder's id and whether its state is complete now;
    None if there is nothing left to do. Raises FolderError.
    """
    records = (await load_known(states, mailbox)).records
    todo = ((id_, record) for id_, record in records.items() if not record.complete and id_ not in skip)
    id_, record = next(todo, (None, None))
    if id_ is None or record is None:
        return None
    listings = {} if listings is None else listings
    progress = listings.get(id_)
    if progress is None or (progress.pages and progress.position != record.sync_state):
        listings[id_] = progress = Progress("SyncFolderItems", record.folder.total_count)
    try:
        try:
            page = await queries.changes(record.folder, record.sync_state, progress=progress)
        except ExchangeError as error:
            if error.failure.verdict is not Verdict.RESYNC or record.sync_state is None:
                raise
            progress.restart()
            page = ItemChanges(sync_state="", includes_last=False)  # begin anew
    except ExchangeError as error:
        if error.failure.code == "UnexpectedReply":
            listings.pop(id_, None)  # the next try begins to count again
        raise FolderError(id_, error.failure) from error
    last = page.includes_last
    if last:
        listings.pop(id_, None)
    record = msgspec.structs.replace(record, sync_state=page.sync_state or None, complete=last, young=last)
    await states.save(mailbox, (), encoded({id_: record}))
    return id_, last


class FolderError(ExchangeError):
    """A request about one folder came to nothing."""

    def __init__(self, folder_id: str, failure: Failure) -> None:
        self.folder_id = folder_id
        super().__init__(failure)


# No folder has such an id.
WHOLE, MARK = "", "?mark"

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE_RECORD = msgspec.msgpack.Decoder(Record).decode
_DECODE_MARK = msgspec.msgpack.Decoder(Mark).decode
_DECODE_KNOWN = msgspec.msgpack.Decoder(Known).decode

# What a decoder raises for a damaged row, or for one of another version.
_UNREADABLE = (ValueError, TypeError, RecursionError, MemoryError)
