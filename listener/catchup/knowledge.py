"""What is known of mailboxes between two comparisons, and how it is built at first."""

from __future__ import annotations

from collections.abc import Container, Mapping, MutableMapping, Sequence
from typing import Protocol

import msgspec

from listener.catchup.differences import Record
from listener.catchup.inquiry import Inquiry
from listener.catchup.paging import Progress
from listener.errors import ExchangeError
from listener.event import MailboxEvent
from listener.ews.codes import Failure, Verdict
from listener.ews.sync import ItemChanges


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
    last compared. `first`: that was the first look, with nothing to compare with."""

    top: str
    inbox: str
    compared: float
    first: bool = False


async def load_known(states: States, mailbox: str) -> tuple[Known | None, dict[str, Record]]:
    """What is known of a mailbox, and of its folders by id: nothing until it was compared once to the end."""
    kept = await states.load(mailbox)
    if WHOLE not in kept:
        return None, {}
    records = {key: _DECODE_RECORD(value) for key, value in kept.items() if key != WHOLE}
    return _DECODE_KNOWN(kept[WHOLE]), records


def encoded(records: Mapping[str, Record | None], whole: Known | None = None) -> dict[str, bytes | None]:
    """The changes that keep these, as load_known() gives them; None is forgotten."""
    changes = {id_: None if record is None else _ENCODE(record) for id_, record in records.items()}
    return changes if whole is None else changes | {WHOLE: _ENCODE(whole)}


async def build_page(
    inquiry: Inquiry,
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
    _, records = await load_known(states, mailbox)
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
            page = await inquiry.changes(record.folder, record.sync_state, progress=progress)
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


WHOLE = ""

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE_RECORD = msgspec.msgpack.Decoder(Record).decode
_DECODE_KNOWN = msgspec.msgpack.Decoder(Known).decode
