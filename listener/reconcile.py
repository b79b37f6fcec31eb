"""Compares one mailbox with what is known of it, and tells what no stream told.

One FindFolder tells which folders changed. Of those, SyncFolderItems tells the changes since the saved SyncState;
where there is none yet, FindItem tells what was modified since, and what that cannot see is said in `unseen`. What is
found waits for some seconds, because a stream may be a moment late; what is still untold then is kept together with
the new states. So a crash repeats events, and drops none.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
import trio

from listener.access import MailboxAccess
from listener.differences import (
    FOLDERS,
    Context,
    Delivered,
    Differences,
    Notes,
    Record,
    as_found,
    below,
    compare,
    folder_events,
    item_events,
    moment,
    most_created,
    parted,
)
from listener.errors import ExchangeError
from listener.event import MailboxEvent
from listener.ews.codes import Failure, Verdict
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
from listener.ews.sync import Change, ChangeKind, ItemChanges, read_sync_folder_items, sync_folder_items

T = TypeVar("T")


class Caller(Protocol):
    """Posts a SOAP request (listener.exchange.client.ExchangeClient does)."""

    async def call(self, body: bytes, headers: Mapping[str, str], read: Callable[[bytes], T]) -> T: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How to ask about one mailbox: through its group's client, with the group's headers, as it is got at."""

    client: Caller
    headers: Mapping[str, str]
    version: str
    access: MailboxAccess

    async def ask(
        self, request: Callable[..., bytes], read: Callable[[bytes], T], *what: object, **how: Any
    ) -> T:
        """Builds a request, posts it, and reads the answer. Raises ExchangeError."""
        body = request(*what, **how, version=self.version, impersonate=self.access.impersonate)
        return await self.client.call(body, self.headers, read)


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
    last compared."""

    top: str
    inbox: str
    compared: float


async def load_known(states: States, mailbox: str) -> tuple[Known | None, dict[str, Record]]:
    """What is known of a mailbox, and of its folders by id: nothing until it was compared once to the end."""
    kept = await states.load(mailbox)
    if WHOLE not in kept:
        return None, {}
    records = {key: _DECODE_RECORD(value) for key, value in kept.items() if key != WHOLE}
    return _DECODE_KNOWN(kept[WHOLE]), records


@dataclass(slots=True, kw_only=True)
class Comparison:
    """One comparison of one mailbox. `cutoff` is for folders of which nothing is known, or nothing old enough: when
    the gap began (None: nothing was ever known, so nothing can be missing).

    `trusting`: a sweep, with a stream open all the time. `distrusted` are folders whose states are younger than the
    gap. `stubborn`: folders that cannot be read are passed over. Afterwards `found` counts the events that were told,
    and `missed` the changes that a trusted stream should have told; `unseen` are the names of folders in which what
    was deleted could not be seen, `unread` those that could not be read at all.
    """

    mailbox: str
    way: Way
    kinds: frozenset[str]
    states: States
    delivered: Delivered
    now: Callable[[], datetime]
    grace: float
    cutoff: datetime | None = None
    trusting: bool = False
    distrusted: Callable[[str], bool] = lambda _folder: False
    stubborn: bool = False
    found: int = 0
    missed: int = 0
    folders: int = 0
    requests: int = 0
    unseen: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    _inbox: str = ""
    _notes: Notes = field(default_factory=Notes)
    _seen: set[str] = field(default_factory=set)
    _looked: dict[str, set[str]] = field(default_factory=dict)
    _known: Mapping[str, Record] = field(default_factory=dict)
    _pending: list[tuple[Change, Context]] = field(default_factory=list)
    _records: dict[str, Record | None] = field(default_factory=dict)

    async def run(self, known: Known | None, records: Mapping[str, Record]) -> None:
        """Compares with this knowledge, and replaces it. Raises ExchangeError; what was told by then is kept."""
        self.delivered.begin(self.mailbox)
        self._notes = self.delivered.of(self.mailbox)
        made = self._notes.seen()
        known, now = await self._survey(known)
        self._inbox = known.inbox
        differences = None
        if not records and self.cutoff is None:
            self._records = {
                id_: Record(folder=folder, settled=self._is_settled(None, folder))
                for id_, folder in now.items()
            }
        else:
            differences = await self._compare(records, now, made)
        self._looked[FOLDERS] = {*made, *now}
        await self._flush(differences, msgspec.structs.replace(known, compared=self.now().timestamp()))
        self.delivered.done(self.mailbox)

    async def _compare(
        self, records: Mapping[str, Record], now: Mapping[str, Folder], made: set[str]
    ) -> Differences:
        # Without records all folders are new to us, not to the mailbox.
        known = records or {id_: Record(folder=folder) for id_, folder in now.items()}
        differences = compare(known, now)
        vanished = made.difference(now, known)
        differences = differences._replace(
            deleted=(*differences.deleted, *(Folder(folder_id=id_) for id_ in sorted(vanished)))
        )
        self._known = known
        if self._folder_events(differences, FIRST, trusting=True):
            await trio.sleep(self.grace)
            await self._tell(self._folder_events(differences, FIRST, trusting=True), {})
        for folder in differences.created:
            if self.trusting and self._notes.has("came", folder.folder_id):
                # A copy of a folder is told as one event, without its items.
                self._records[folder.folder_id] = Record(folder=folder)
            else:
                await self._look(folder, None)
        for id_ in now:  # in the server's order
            if id_ in differences.touched:
                await self._look(now[id_], known[id_], fresh=not records)
        self._records |= {folder.folder_id: None for folder in differences.deleted}
        return differences

    # --- folders

    async def _survey(self, known: Known | None) -> tuple[Known, dict[str, Folder]]:
        """All folders that matter, by id. Search folders show items of others."""
        access = self.way.access
        if access.folders is not None:
            folders = await self._get_folders(access.folders)
            inbox = folders.get(access.folder("inbox"))
            known = Known(top="", inbox="" if inbox is None else inbox.folder_id, compared=0)
            return known, {folder.folder_id: folder for folder in folders.values()}
        if known is None:
            top, inbox_ref = access.folder("msgfolderroot"), access.folder("inbox")
            homes = await self._get_folders((top, inbox_ref))
            if top not in homes:
                raise ExchangeError(Failure(code="UnexpectedReply", text="a mailbox without msgfolderroot"))
            inbox = homes.get(inbox_ref)
            known = Known(
                top=homes[top].folder_id, inbox="" if inbox is None else inbox.folder_id, compared=0
            )
        found = await self._find_folders()
        return known, {f.folder_id: f for f in below(known.top, found) if f.element != "SearchFolder"}

    async def _get_folders(self, refs: tuple[FolderRef, ...]) -> dict[FolderRef, Folder]:
        told = await self._ask(get_folder, lambda content: read_get_folder(content, refs), refs)
        for failure in told.values():
            # Those that are gone are left out; that one cannot be told does not mean that it is gone.
            if isinstance(failure, Failure) and failure.code not in GONE:
                raise ExchangeError(failure)
        return {ref: folder for ref, folder in told.items() if isinstance(folder, Folder)}

    async def _find_folders(self) -> dict[str, Folder]:
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

    def _folder_events(
        self, differences: Differences, words: frozenset[str], *, trusting: bool
    ) -> list[MailboxEvent]:
        about = self._context(kinds=self.kinds & words, trusting=trusting)
        return folder_events(differences, about, self._notes)

    # --- items

    async def _look(self, folder: Folder, record: Record | None, *, fresh: bool = False) -> None:
        """Tells what changed in a folder. `record` None: it is new, and all in it; `fresh`: nothing was known."""
        settled = self._is_settled(record, folder)
        made = self._notes.seen(folder.folder_id)
        self._seen = set()
        about = self._context(folder=folder, cutoff=self._cutoff(record, fresh=fresh))
        old = fresh or (record is not None and self.distrusted(folder.folder_id))
        try:
            if record is None or (record.complete and not old):
                await self._sync(about, record, settled=settled)
            elif self.trusting:
                return  # nothing to compare with yet
            else:
                await self._find(about)
                self._say_unseen(folder, None if old else record)
                if record.complete:
                    await self._flush()
                    cutoff = moment(record.folder.commit_time_max)
                    await self._sync(replace(about, cutoff=cutoff), record, settled=settled)
                else:
                    record = msgspec.structs.replace(record, folder=folder, settled=settled)
                    self._records[folder.folder_id] = record
            await self._look_for(made - self._seen, about)
            self._looked[folder.folder_id] = made | self._seen
            self.folders += 1
        except ExchangeError as error:
            code, verdict = error.failure.code, error.failure.verdict
            if code in GONE:
                return  # the next comparison will say so
            if verdict is not Verdict.PARK and not (self.stubborn and verdict is Verdict.RETRY):
                raise
            self.unread.append(f"{folder.display_name or folder.folder_id} ({code})")

    def _is_settled(self, record: Record | None, folder: Folder) -> bool:
        """Whether a change that is not known yet would show: times are of whole seconds, so not within the same."""
        if record is not None and record.folder == folder:
            return True
        committed = moment(folder.commit_time_max)
        return committed is not None and committed < self.now() - SKEW

    def _cutoff(self, record: Record | None, *, fresh: bool) -> datetime | None:
        """From when on changes in a folder are wanted: by the server's own clock where it has told one."""
        if record is None or fresh or self.distrusted(record.folder.folder_id):
            return self.cutoff
        return moment(record.folder.commit_time_max) or self.cutoff

    async def _sync(self, about: Context, record: Record | None, *, settled: bool) -> None:
        assert about.folder is not None
        folder, full = about.folder, False
        most = None if record is None else most_created(record.folder, folder)
        state = None if record is None else record.sync_state
        # Created, but older than what is known: moved here, or the server took the state for none.
        held: list[Change] = []
        while True:
            try:
                self.requests += 1
                page = await next_changes(self.way, folder, state, SYNCED)
            except ExchangeError as error:
                if record is None or error.failure.verdict is not Verdict.RESYNC:
                    raise
                await self._find(about)
                self._say_unseen(folder, record)
                self._records[folder.folder_id] = Record(folder=folder)
                return
            state = page.sync_state
            self._seen.update(change.item_id for change in page.changes)
            old, new = parted(page.changes, None if record is None else about.cutoff)
            held += old
            full = full or (most is not None and len(held) > most)
            if full:
                held.clear()
            for change in new:
                again = full and change.kind is ChangeKind.CREATE
                self._add(as_found(change, about.cutoff) if again else change, about)
            if page.includes_last:
                break
            if len(self._pending) >= MANY:
                if record is not None and not held and not full:
                    self._records[folder.folder_id] = msgspec.structs.replace(record, sync_state=state)
                await self._flush()
        for change in held:
            self._add(change, about)
        if full:
            self._say_unseen(folder, record)
        self._records[folder.folder_id] = Record(
            folder=folder, sync_state=state, complete=True, settled=settled
        )

    async def _find(self, about: Context) -> None:
        """Tells the items that were modified since the cutoff. Those that are gone it cannot see."""
        folder = about.folder
        if folder is None or about.cutoff is None or _is_older(folder, about.cutoff):
            return
        about = replace(about, trusting=False)  # what is found like this may have been told long ago
        ref = FolderRef(folder_id=folder.folder_id)
        following: tuple[datetime | None, int] | None = (about.cutoff, 0)
        while following is not None:
            since, start = following
            read, created = partial(read_find_item, offset=start), (ItemProperty.DATE_TIME_CREATED,)
            page = await self._ask(find_item, read, ref, since=since, offset=start, properties=created)
            for item in page.found:
                self._add(as_found(item, about.cutoff), about)
            following = next_page(page, since, start)
            if len(self._pending) >= MANY:
                await self._flush()

    async def _look_for(self, ids: Iterable[str], about: Context) -> None:
        """Items that the stream told of, and that the folder does not show as changed: are they there?"""
        for batch in _batches(sorted(ids), BATCH):
            read = partial(read_get_item, item_ids=batch)
            for id_, found in (await self._ask(get_item, read, batch)).items():
                if isinstance(found, Item):
                    continue
                if found.code not in GONE:
                    raise ExchangeError(found)
                self._add(Change(kind=ChangeKind.DELETE, item_id=id_), about)

    def _say_unseen(self, folder: Folder, record: Record | None) -> None:
        """Unless the server's count shows that nothing was deleted."""
        before = None if record is None else record.folder.deleted_count_total
        if not self.trusting and (before is None or before != folder.deleted_count_total):
            self.unseen.append(folder.display_name or folder.folder_id)

    # --- telling

    def _context(
        self,
        *,
        kinds: frozenset[str] | None = None,
        trusting: bool = True,
        folder: Folder | None = None,
        cutoff: datetime | None = None,
    ) -> Context:
        return Context(
            mailbox=self.mailbox,
            kinds=self.kinds if kinds is None else kinds,
            time=f"{self.now():%Y-%m-%dT%H:%M:%SZ}",
            trusting=trusting and self.trusting and not self._notes.forgetful,
            folder=folder,
            is_inbox=folder is not None and folder.folder_id == self._inbox,
            cutoff=cutoff,
        )

    def _add(self, change: Change, about: Context) -> None:
        self._seen.add(change.item_id)
        if item_events(change, about, self._notes):
            self._pending.append((change, about))

    async def _flush(self, differences: Differences | None = None, whole: Known | None = None) -> None:
        """Tells what is still untold after the grace, and keeps the states that this leads to.

        With `whole`, at the end, how the folders look now is kept too, and what this leads to is told.
        """
        if self._pending or (differences and self._folder_events(differences, LAST, trusting=not self.found)):
            await trio.sleep(self.grace)
        told: dict[tuple[str, str | None, str | None], MailboxEvent] = {}
        missed = 0
        for change, about in self._pending:
            # A search by times may bring an item twice.
            new = {(e.type, e.item_id, e.change_key): e for e in item_events(change, about, self._notes)}
            missed += about.trusting and not new.keys() <= told.keys()
            told |= new
        events = list(told.values())
        if differences is not None:
            # Once something was found the stream is trusted no more.
            events += self._folder_events(differences, LAST, trusting=not self.found and not events)
        if whole is None:
            changes = _encoded({id_: self._interim(id_, record) for id_, record in self._records.items()})
        else:
            changes = _encoded(self._records) | {WHOLE: _ENCODE(whole)}
        await self._tell(events, changes)
        self.missed += missed
        self._pending.clear()
        for folder, ids in self._looked.items():
            self.delivered.look(self.mailbox, ids, folder)
        self._looked.clear()

    def _interim(self, id_: str, record: Record | None) -> Record | None:
        """As kept before the folder's own events are told: it looks as it did."""
        known = self._known.get(id_)
        if record is None or known is None:
            return record
        return msgspec.structs.replace(record, folder=known.folder, settled=False)

    async def _tell(self, events: list[MailboxEvent], changes: dict[str, bytes | None]) -> None:
        if events or changes:
            await self.states.save(self.mailbox, events, changes)
        self.delivered.note(events)
        self.found += len(events)

    async def _ask(
        self, request: Callable[..., bytes], read: Callable[[bytes], T], *what: object, **how: Any
    ) -> T:
        self.requests += 1
        return await self.way.ask(request, read, *what, **how)


async def next_changes(
    way: Way, folder: Folder, state: str | None, properties: Iterable[ItemProperty] = ()
) -> ItemChanges:
    """A page of a folder's changes since a state. Raises ExchangeError."""
    ref = FolderRef(folder_id=folder.folder_id)
    page = await way.ask(
        sync_folder_items, read_sync_folder_items, ref, sync_state=state, properties=properties
    )
    if not page.includes_last and not page.changes and page.sync_state == state:
        raise ExchangeError(Failure(code="UnexpectedReply", text="a SyncFolderItems that does not go on"))
    return page


async def build_page(way: Way, states: States, mailbox: str, skip: Container[str]) -> tuple[str, bool] | None:
    """Fetches one page of the first state that is not complete, and keeps it; what it tells is of no interest.

    Folders whose ids are in `skip` are passed over. Returns the folder's id and whether its state is complete now;
    None if there is nothing left to do. Raises FolderError.
    """
    _, records = await load_known(states, mailbox)
    todo = ((id_, record) for id_, record in records.items() if not record.complete and id_ not in skip)
    id_, record = next(todo, (None, None))
    if id_ is None or record is None:
        return None
    try:
        page = await next_changes(way, record.folder, record.sync_state)
    except ExchangeError as error:
        if error.failure.verdict is not Verdict.RESYNC or record.sync_state is None:
            raise FolderError(id_, error.failure) from error
        page = ItemChanges(sync_state="", includes_last=False)  # begin anew
    state = page.sync_state or None
    record = msgspec.structs.replace(record, sync_state=state, complete=page.includes_last)
    await states.save(mailbox, (), {id_: _ENCODE(record)})
    return id_, record.complete


class FolderError(ExchangeError):
    """A request about one folder came to nothing."""

    def __init__(self, folder_id: str, failure: Failure) -> None:
        self.folder_id = folder_id
        super().__init__(failure)


def _encoded(records: Mapping[str, Record | None]) -> dict[str, bytes | None]:
    return {id_: None if record is None else _ENCODE(record) for id_, record in records.items()}


def _batches(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


def _is_older(folder: Folder, cutoff: datetime) -> bool:
    """Whether nothing came or was changed in it since then."""
    committed = moment(folder.commit_time_max)
    return committed is not None and committed < cutoff


WHOLE = ""
FIRST, LAST = frozenset(("created", "moved")), frozenset(("modified", "deleted"))
GONE = frozenset(("ErrorFolderNotFound", "ErrorItemNotFound", "ErrorSyncFolderNotFound"))
SYNCED = (ItemProperty.DATE_TIME_CREATED, ItemProperty.LAST_MODIFIED_TIME)

# Items a GetItem. More are not recommended ("Best practices for EWS batch requests", learn.microsoft.com).
BATCH = 10

# How often folders are asked for if they change between two pages.
SURVEYS = 3

# Changes that are held in memory at most, give or take a page.
MANY = 5000

# How far the clocks of server and listener may differ.
SKEW = timedelta(minutes=5)

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE_RECORD = msgspec.msgpack.Decoder(Record).decode
_DECODE_KNOWN = msgspec.msgpack.Decoder(Known).decode
