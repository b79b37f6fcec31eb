"""Compares one mailbox with what is known of it, and tells what no stream told.

The rules:

1. One FindFolder tells which folders changed. Of those, SyncFolderItems tells the changes since the saved SyncState.
2. Where there is no state that reaches back far enough, a folder of one page is told anew as a whole, and FindItem
   tells what was modified lately in a larger one. What that cannot see is said in `unseen`.
3. What handlers were told of, and no answer shows, is looked for.
4. What is found waits for some seconds, because a stream may be a moment late; what is still untold then is kept
   together with the new states. So a crash repeats events, and drops none.
5. What was there before the mailbox was first listened to (`floor`) is not reported as new, nor what was last changed
   before as changed.
6. A mailbox that was replaced under its address has other folders: it is looked at like a new one, and only what came
   since the old one was last known to be well is reported.
7. What an event deleted or moved away after the server was asked is not reported as created or modified.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import msgspec
import structlog
import trio

from listener.catchup.differences import (
    Context,
    Differences,
    Record,
    as_found,
    below,
    came_since,
    changed_since,
    compare,
    folder_events,
    item_events,
    most_created,
    parted,
)
from listener.catchup.history import FOLDERS, DeliveryHistory, Notes, report_key
from listener.catchup.queries import BATCH, GONE, Queries
from listener.catchup.snapshots import Known, Mark, States, encoded
from listener.catchup.strategy import (
    FolderFacts,
    NothingToRead,
    ReadAll,
    ReportAll,
    SearchByTime,
    Skip,
    SyncFrom,
    after_lost_state,
    choose,
)
from listener.errors import ExchangeError
from listener.event import MailboxEvent
from listener.ews.codes import Failure, Verdict
from listener.ews.folders import Folder
from listener.ews.items import Item, ItemProperty
from listener.ews.subscription import FolderRef
from listener.ews.sync import MAX_CHANGES, Change, ChangeKind
from listener.ews.values import moment

log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Resync:
    """One comparison of one mailbox. `cutoff` is for folders of which nothing is known, or nothing old enough: when
    the gap began (None: nothing was ever known, so nothing can be missing).

    `mark` is when the mailbox was first listened to, and `server_now` the present second, both by the server's clock.
    `since`: what came after this moment, by that clock too, may be missing in a mailbox that has been replaced.

    `trusting`: a sweep, with a stream open all the time. `distrusted`: what is known is younger than the gap.
    `stubborn`: folders that cannot be read are passed over. Afterwards `found` counts the events that were told,
    and `missed` the changes that a trusted stream should have told; `unseen` are the names of folders in which what
    was deleted could not be seen, `unread` those that could not be read at all. `replaced`: it is another mailbox
    now. `reported` are the keys of the events that were told.
    """

    mailbox: str
    queries: Queries
    kinds: frozenset[str]
    states: States
    delivered: DeliveryHistory
    now: Callable[[], datetime]
    grace: float
    mark: Mark
    server_now: float
    since: datetime
    cutoff: datetime | None = None
    trusting: bool = False
    distrusted: bool = False
    early: bool = False
    stubborn: bool = False
    found: int = 0
    missed: int = 0
    folders: int = 0
    replaced: bool = False
    reported: set[tuple[str | None, ...]] = field(default_factory=set)
    unseen: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    _inbox: str = ""
    _surveyed: int = 0  # the clock of the notes when the folders were asked for
    _parents: Mapping[str, str | None] = field(default_factory=dict)
    _last: datetime | None = None
    _ahead: timedelta = timedelta()  # the server's clock
    _notes: Notes = field(default_factory=Notes)
    _seen: set[str] = field(default_factory=set)
    _looked: dict[str, set[str]] = field(default_factory=dict)
    _known: Mapping[str, Record] = field(default_factory=dict)
    _pending: list[tuple[Change, Context]] = field(default_factory=list)
    _records: dict[str, Record | None] = field(default_factory=dict)
    _announced: list[MailboxEvent] = field(default_factory=list)

    async def run(self, known: Known | None, records: Mapping[str, Record]) -> None:
        """Compares with this knowledge, and replaces it. Raises ExchangeError; what was told by then is kept."""
        self.delivered.begin(self.mailbox)
        try:
            await self._run(known, records)
        finally:
            self.delivered.end(self.mailbox)

    async def _run(self, known: Known | None, records: Mapping[str, Record]) -> None:
        self._notes = self.delivered.of(self.mailbox)
        made = self._notes.seen()
        self._ahead = datetime.fromtimestamp(self.server_now, UTC) - self.now()
        self._last = None if known is None else datetime.fromtimestamp(known.compared, self.now().tzinfo)
        self._surveyed = self._notes.clock
        before, (known, now) = known, await self._survey(known)
        self._parents = {id_: folder.parent_folder_id for id_, folder in now.items()}
        self._inbox = known.inbox
        gone, fresh = self._strange(before, known, records, now)
        if self.replaced:
            self._announce_reset(before, known)
        first = not records and self.cutoff is None
        if first:
            fresh = dict.fromkeys(now)
        self._records |= dict.fromkeys(gone)
        for id_ in fresh:
            settled, start = self._is_settled(None, now[id_]), None if first else self.server_now
            self._records[id_] = Record.first(now[id_], settled=settled, start=start)
        differences = None
        usual = {id_: record for id_, record in records.items() if id_ not in gone}
        rest = {id_: folder for id_, folder in now.items() if id_ not in fresh}
        if usual or rest:
            differences = await self._compare(usual, rest, made.difference(gone, fresh))
        if before is None and self.mark.backfill is not None:
            fresh = dict.fromkeys(now, datetime.fromtimestamp(self.mark.backfill, UTC))
        for id_, since in fresh.items():
            if since is not None:
                await self._report_new(now[id_], since)
        self._looked[FOLDERS] = {*made, *now, *gone}
        for id_ in gone:
            self._looked[id_] = self._notes.seen(id_)
        compared = self.now().timestamp()
        known = msgspec.structs.replace(known, compared=compared, first=first or self.replaced)
        await self._flush(differences, known)
        self.delivered.done(self.mailbox)

    @property
    def floor(self) -> datetime:
        """When the mailbox was first listened to.

        Times of items are whole seconds, so that of the second of the first Subscribe nobody can tell what came
        before it. It counts as before, unless the stream was lost within that second (`early`).
        """
        start = datetime.fromtimestamp(self.mark.start, UTC)
        return start - SECOND if self.early and not self.replaced else start

    def _strange(
        self, before: Known | None, known: Known, records: Mapping[str, Record], now: Mapping[str, Folder]
    ) -> tuple[set[str], dict[str, datetime | None]]:
        """The known folders that are not the concern of this mailbox any more, and the folders that are new to us but
        not to the mailbox, with the moment since when something in them may be missing.

        That is so for all of a mailbox that was replaced, for single folders that were (a folder is known by its name
        where only some are listened to), and where other folders are listened to than before.
        """
        if before is None:
            return set(), {}
        # What came in the second in which the old one was last known to be well was reported, most likely. The
        # server's clock is known to a second.
        since = max(self.since.replace(microsecond=0) + 2 * SECOND, self.floor)
        others, new = records.keys() - now.keys(), [id_ for id_ in now if id_ not in records]
        if self.replaced and not known.places:
            return others, dict.fromkeys(new, since)
        gone = {id_ for name, id_ in before.places.items() if known.places.get(name, id_) != id_}
        fresh: dict[str, datetime | None] = {
            id_: since for name, id_ in known.places.items() if before.places.get(name, id_) != id_
        }
        if before.scope is not None and before.scope != known.scope:
            gone |= others
            fresh = dict.fromkeys(new) | fresh
        return gone, fresh

    def _announce_reset(self, before: Known | None, known: Known) -> None:
        log.warning("catchup.reset", mailbox=self.mailbox, inbox=known.inbox)
        since = max(self.since, self.floor)
        self._announced.append(
            MailboxEvent(
                type=f"exchange.listener.{RESET}",
                mailbox=self.mailbox,
                time=f"{self.now():%Y-%m-%dT%H:%M:%SZ}",
                reason="the mailbox was replaced: its folders have other ids than before; "
                f"what came since {since:%Y-%m-%dT%H:%M:%SZ} is reported",
            )
        )
        # What the new mailbox was filled with is older than this.
        self.mark = Mark(start=self.server_now)

    async def _compare(
        self, records: Mapping[str, Record], now: Mapping[str, Folder], made: set[str]
    ) -> Differences:
        # Without records all folders are new to us, not to the mailbox.
        known = records or {id_: Record(folder=folder) for id_, folder in now.items()}
        self._known = known
        differences = self._differences(known, now, made, doubtful=self.distrusted or not records)
        if self._folder_events(differences, FIRST, trusting=True):
            await trio.sleep(self.grace)
            await self._tell(self._folder_events(differences, FIRST, trusting=True), {})
        for folder in differences.created:
            if self.trusting and self._notes.has("copied", folder.folder_id):
                # A copy of a folder is told as one event, without its items.
                self._records[folder.folder_id] = Record(folder=folder)
            else:
                await self._look(folder, None)
        for id_ in now:  # in the server's order
            if id_ in differences.touched:
                await self._look(now[id_], known[id_], fresh=not records)
        for folder in differences.deleted:
            self._bury(folder)
        return differences

    def _differences(
        self, known: Mapping[str, Record], now: Mapping[str, Folder], made: set[str], *, doubtful: bool
    ) -> Differences:
        found = compare(known, now)
        vanished = (Folder(folder_id=id_) for id_ in sorted(made.difference(now, known)))
        changed = {folder.folder_id for _, folder in found.changed}
        doubts = (
            folder
            for id_, folder in now.items()
            if doubtful and id_ in known and id_ not in changed and changed_since(folder, self.floor)
        )
        return found._replace(deleted=(*found.deleted, *vanished), doubtful=tuple(doubts))

    def _bury(self, folder: Folder) -> None:
        """A folder is gone, and with it what was in it, of which a stream says nothing."""
        id_ = folder.folder_id
        self._records[id_] = None
        made = self._looked[id_] = self._notes.seen(id_)
        if not (self.trusting and self._notes.has("gone", id_)):
            about = self._context(folder=folder, trusting=False)
            self._seen = set()
            for item in sorted(made | self.delivered.present.of(self.mailbox, id_)):
                self._add(Change(kind=ChangeKind.DELETE, item_id=item), about)

    # --- folders

    async def _survey(self, known: Known | None) -> tuple[Known, dict[str, Folder]]:
        """All folders that matter, by id. Search folders show items of others."""
        access = self.queries.route.access
        if access.folders is not None:
            folders = await self.queries.folders(access.folders)
            inbox = folders.get(access.folder("inbox"))
            places = {_name(ref): folder.folder_id for ref, folder in folders.items()}
            before = {} if known is None else known.places
            self.replaced = any(places.get(name, id_) != id_ for name, id_ in before.items())
            known = Known(
                top="",
                inbox="" if inbox is None else inbox.folder_id,
                compared=0,
                places=places,
                scope=tuple(sorted(map(_name, access.folders))),
            )
            return known, {folder.folder_id: folder for folder in folders.values()}
        if known is None or not known.top:
            homes = await self._homes()
            found = await self.queries.all_folders()
        else:
            homes, found = known, await self.queries.all_folders()
            # The top is among the folders below the root. If it is not, ask: the server may leave it out.
            if known.top not in found or (known.inbox and known.inbox not in found):
                homes = await self._homes()
                inbox_changed = homes.inbox != known.inbox and "" not in (homes.inbox, known.inbox)
                self.replaced = homes.top != known.top or inbox_changed
                if self.replaced:
                    found = await self.queries.all_folders()
        known = Known(top=homes.top, inbox=homes.inbox, compared=0, scope=())
        return known, {f.folder_id: f for f in below(known.top, found) if f.element != "SearchFolder"}

    async def _homes(self) -> Known:
        """The ids of the top folder and the inbox as they are now."""
        access = self.queries.route.access
        top, inbox_ref = access.folder("msgfolderroot"), access.folder("inbox")
        homes = await self.queries.folders((top, inbox_ref))
        if top not in homes:
            raise ExchangeError(Failure(code="UnexpectedReply", text="a mailbox without msgfolderroot"))
        inbox = homes.get(inbox_ref)
        return Known(top=homes[top].folder_id, inbox="" if inbox is None else inbox.folder_id, compared=0)

    def _folder_events(
        self, differences: Differences, words: frozenset[str], *, trusting: bool
    ) -> list[MailboxEvent]:
        about = self._context(kinds=self.kinds & words, trusting=trusting)
        about = replace(about, asked=self._surveyed)
        return folder_events(differences, about, self._notes)

    # --- items

    async def _look(self, folder: Folder, record: Record | None, *, fresh: bool = False) -> None:
        """Tells what changed in a folder. `record` None: it is new, and all in it; `fresh`: nothing was known."""
        id_ = folder.folder_id
        made = self._notes.seen(id_)
        told = made | self.delivered.present.of(self.mailbox, id_)
        self._seen = set()
        about = self._context(folder=folder, cutoff=self._cutoff(record, fresh=fresh))
        strategy = choose(self._facts(folder, record, about.cutoff, fresh=fresh, reported=bool(told)))
        try:
            match strategy:
                case Skip():
                    return
                case ReportAll():
                    whole = await self._list(replace(about, cutoff=None), None)
                case SyncFrom():
                    assert record is not None
                    whole = await self._sync(about, record, strategy, told)
                case ReadAll() | SearchByTime() | NothingToRead():
                    assert record is not None
                    known = not (fresh or self.distrusted)
                    whole = await self._make_up(about, record, told, strategy, known=known)
            if self._notes.forgetful:
                whole = True  # of what has gone since then, these are all that is remembered
                self._may_be_unseen(folder, None if record is None else record.folder)
            await self._look_for(told if whole else made, about)
            self._looked[id_] = made | self._seen
            self.folders += 1
        except ExchangeError as error:
            if record is None and error.failure.code in GONE:
                self._records[id_] = Record(folder=folder)
            self._pass_over(folder, error)

    def _facts(
        self, folder: Folder, record: Record | None, cutoff: datetime | None, *, fresh: bool, reported: bool
    ) -> FolderFacts:
        """Return what decides how the changes in a folder are found."""
        return FolderFacts(
            is_new=record is None,
            has_snapshot=not fresh,
            snapshot_too_recent=self.distrusted,
            state_complete=record is not None and record.complete,
            state_too_recent=record is not None and record.young,
            sync_state=None if record is None else record.sync_state,
            is_sweep=self.trusting,
            fits_page=_is_small(folder),
            has_reported_items=reported,
            cutoff=cutoff,
            unchanged_since_cutoff=_is_older(folder, cutoff),
        )

    def _pass_over(self, folder: Folder, error: ExchangeError) -> None:
        """A folder cannot be read. Raises the error if that is a matter of the whole mailbox."""
        code, verdict = error.failure.code, error.failure.verdict
        if code in GONE:
            return  # the next comparison will say so
        if verdict is not Verdict.SUSPEND and not (self.stubborn and verdict is Verdict.RETRY):
            raise error
        self.unread.append(f"{folder.display_name or folder.folder_id} ({code})")

    async def _report_new(self, folder: Folder, since: datetime) -> None:
        """Report the items that are new in a folder since then, and nothing else."""
        if _is_older(folder, since):
            return
        about = self._asking(self._context(folder=folder, trusting=False, cutoff=since))
        try:
            async for items in self._recent(folder, since):
                for item in items:
                    if came_since(item, since) and not self._notes.has("made", item.item_id):
                        self._add(as_found(item, None), about)
                if len(self._pending) >= MANY:
                    await self._flush()
                about = self._asking(about)
        except ExchangeError as error:
            self._pass_over(folder, error)

    async def _recent(self, folder: Folder, since: datetime) -> AsyncIterator[Sequence[Item]]:
        """The items of a folder, page by page; of a large one those that were modified since then."""
        if not _is_small(folder):
            async for items in self.queries.modified_since(folder, since, ARRIVED):
                yield items
            return
        state, last = None, folder.total_count == 0
        while not last:
            page = await self.queries.changes(folder, state, ARRIVED)
            state, last = page.sync_state, page.includes_last
            yield page.changes

    async def _make_up(
        self,
        about: Context,
        record: Record,
        told: set[str],
        strategy: ReadAll | SearchByTime | NothingToRead,
        *,
        known: bool,
    ) -> bool:
        """Tells what changed in a folder whose state does not reach back far enough. `known`: how it looked does.

        Returns whether what it does not show of the items that were told of may have gone.
        """
        assert about.folder is not None
        folder, before = about.folder, record.folder if known else None
        if isinstance(strategy, ReadAll):
            await self._list(about, record)
        else:
            if isinstance(strategy, SearchByTime):
                await self._find(about, folder, strategy.since)
            settled = self._is_settled(record, folder)
            self._records[folder.folder_id] = msgspec.structs.replace(record, folder=folder, settled=settled)
        if strategy.then is not None:
            about = replace(about, cutoff=self._cutoff(record, fresh=False))
            await self._sync(about, record, strategy.then, told)
        self._may_be_unseen(folder, before)
        return _may_have_lost(folder, before)

    def _may_be_unseen(self, folder: Folder, before: Folder | None) -> None:
        """Of what has gone from a folder, not all may have been remembered."""
        name = folder.display_name or folder.folder_id
        if not self.trusting and _may_have_lost(folder, before) and name not in self.unseen:
            self.unseen.append(name)

    def _is_settled(self, record: Record | None, folder: Folder) -> bool:
        """Whether a change that is not known yet would show: times are of whole seconds, so not within the same."""
        if record is not None and record.folder == folder:
            return self._last is not None and self._last < self.now() - TICK
        committed = moment(folder.commit_time_max)
        return committed is not None and committed < datetime.fromtimestamp(self.server_now, UTC) - SKEW

    def _is_from_before(self, item: Item) -> bool:
        """Whether an item is as it was before the mailbox was first listened to."""
        times = [moment(item.date_time_created), moment(item.last_modified_time)]
        return all(time is not None and time < self.floor for time in times)

    def _cutoff(self, record: Record | None, *, fresh: bool) -> datetime | None:
        """From when on changes in a folder are wanted: by the server's own clock where it has told one, and not from
        before it was first listened to."""
        since = self._unbounded_cutoff(record, fresh=fresh)
        floor = self.floor
        if record is not None and record.start is not None:
            floor = max(floor, datetime.fromtimestamp(record.start, UTC))
        return floor if since is None else max(since, floor)

    def _unbounded_cutoff(self, record: Record | None, *, fresh: bool) -> datetime | None:
        if record is None or fresh or self.distrusted:
            return self.cutoff
        committed = moment(record.folder.commit_time_max)
        if committed is None:
            return self._last + self._ahead - SKEW if self._last else self.cutoff
        # Times are of whole seconds: there may be more in the last one, unless that was over when it was looked at.
        return committed + SECOND if record.settled else committed

    async def _sync(self, about: Context, record: Record, start: SyncFrom, told: set[str]) -> bool:
        """Tells what changed since a state. Whether what it does not show of the items that were told of may have
        gone."""
        assert about.folder is not None
        folder, state, full = about.folder, start.state, False
        most = most_created(record.folder, folder)
        # Created, but older than what is known: moved here, or the server took the state for none.
        held: list[Change] = []
        kinds: list[ChangeKind] = []
        earliest = about = self._asking(about)
        while True:
            try:
                page = await self.queries.changes(folder, state, SYNCED)
            except ExchangeError as error:
                if error.failure.verdict is not Verdict.RESYNC:
                    raise
                lost = Record(folder=record.folder)
                return await self._make_up(about, lost, told, after_lost_state(), known=True)
            state = page.sync_state
            kinds += (change.kind for change in page.changes)
            self._seen.update(change.item_id for change in page.changes)
            old, new = parted(page.changes, about.cutoff)
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
                if not held and not full:
                    self._records[folder.folder_id] = msgspec.structs.replace(record, sync_state=state)
                await self._flush()
            about = self._asking(about)
        whole = _may_be_whole(kinds, folder)
        for change in held:
            # It was moved here, or was there before anybody listened and the server took the state for none. If this
            # may be all that there is, the latter cannot be ruled out.
            if not (whole and self._is_from_before(change)):
                self._add(change, earliest)
        if full:
            self._may_be_unseen(folder, record.folder)
        self._keep(folder, record, state)
        return full or start.state is None or whole

    async def _list(self, about: Context, record: Record | None) -> bool:
        """Tells what is new in a folder, of all that there is; `record` None: all. True, since it is the whole."""
        assert about.folder is not None
        folder, state = about.folder, None
        if record is not None:
            about = replace(about, trusting=False)  # what is found like this may have been told long ago
        while folder.total_count != 0:
            about = self._asking(about)
            page = await self.queries.changes(folder, state, SYNCED)
            state = page.sync_state
            self._seen.update(change.item_id for change in page.changes)
            _, new = parted(page.changes, about.cutoff)
            for change in new:
                if record is None:
                    self._add(change, about)
                else:
                    self._add_found(change, about)
            if page.includes_last:
                break
            if len(self._pending) >= MANY:
                await self._flush()
        self._keep(folder, record, state)
        return True

    def _keep(self, folder: Folder, record: Record | None, state: str | None) -> None:
        settled = self._is_settled(record, folder)
        start = None if record is None else record.start
        self._records[folder.folder_id] = Record(
            folder=folder, sync_state=state, complete=True, settled=settled, start=start
        )

    async def _find(self, about: Context, folder: Folder, since: datetime) -> None:
        """Tells the items that were modified since then. Those that are gone it cannot see."""
        # What is found like this may have been reported long ago.
        about = self._asking(replace(about, trusting=False))
        async for items in self.queries.modified_since(folder, since):
            self._seen.update(item.item_id for item in items)
            for item in items:
                self._add_found(item, about)
            if len(self._pending) >= MANY:
                await self._flush()
            about = self._asking(about)

    async def _look_for(self, ids: set[str], about: Context) -> None:
        """Items that handlers know of, and that the folder has not shown: are they there?"""
        folder = about.folder
        assert folder is not None
        missing = ids - self._seen
        # Whichever takes fewer requests: to ask for each, or first to have all told that are there.
        total = folder.total_count
        if total is not None and len(missing) > BATCH and total * BATCH < len(missing) * MAX_CHANGES:
            missing -= await self.queries.all_items(folder)
        for id_ in await self.queries.gone(missing):
            self._add(Change(kind=ChangeKind.DELETE, item_id=id_), about)

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
            asked=self._notes.clock,
            parents=self._parents,
        )

    def _asking(self, about: Context) -> Context:
        """The same for a request that is sent now."""
        return replace(about, asked=self._notes.clock)

    def _add_found(self, item: Item, about: Context) -> None:
        """Adds an item of which only its times tell what became of it. They are of whole seconds, so that all of one
        second is found again: what was told then, before the last look, is left out."""
        id_, key, modified = item.item_id, item.change_key, moment(item.last_modified_time)
        again = about.cutoff is not None and modified is not None and modified < about.cutoff + SECOND
        if (again or self.distrusted) and key is not None and self._notes.had(id_, key):
            return
        change = as_found(item, about.cutoff)
        if self._notes.had("made", id_):
            change = msgspec.structs.replace(change, kind=ChangeKind.UPDATE)
        self._add(change, about)

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
        events = [*self._announced, *told.values()]
        self._announced.clear()
        if differences is not None:
            # Once something was found the stream is trusted no more.
            events += self._folder_events(differences, LAST, trusting=not self.found and not events)
        records = self._records
        if whole is None:
            records = {id_: self._interim(id_, record) for id_, record in records.items()}
        # The backfill is over with the first look.
        mark = None if whole is None else msgspec.structs.replace(self.mark, backfill=None)
        await self._tell(events, encoded(records, whole, mark))
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

    async def _tell(self, events: list[MailboxEvent], changes: Mapping[str, bytes | None]) -> None:
        if events or changes:
            await self.states.save(self.mailbox, events, changes)
        events = [event for event in events if not event.type.startswith("exchange.listener.")]
        self.delivered.note(events)
        self.reported.update(map(report_key, events))
        self.found += len(events)


def _name(ref: FolderRef) -> str:
    """What a folder that is listened to is known by, whatever its id is."""
    return ref.name or ref.folder_id or ""


def _is_small(folder: Folder) -> bool:
    """Whether one page tells all items."""
    return folder.total_count is not None and folder.total_count <= MAX_CHANGES


def _is_older(folder: Folder, cutoff: datetime | None) -> bool:
    """Whether nothing came or was changed in it since then."""
    committed = moment(folder.commit_time_max)
    return cutoff is not None and committed is not None and committed < cutoff


def _may_have_lost(folder: Folder, before: Folder | None) -> bool:
    """Whether anything may have been deleted from it since it looked so; None: since ever."""
    known = 0 if before is None else before.deleted_count_total
    return known is None or known != folder.deleted_count_total


def _may_be_whole(kinds: Sequence[ChangeKind], folder: Folder) -> bool:
    """Whether these can be all items that there are, as when the server took the state for none without saying so;
    some may have gone since they were counted."""
    created = kinds.count(ChangeKind.CREATE)
    total = folder.total_count
    return created == len(kinds) and (total is None or created >= max(total - FEW, min(total, 1)))


RESET = "reset"
FIRST, LAST = frozenset(("created", "moved")), frozenset(("modified", "deleted"))
SYNCED = (ItemProperty.DATE_TIME_CREATED, ItemProperty.LAST_MODIFIED_TIME)
ARRIVED = (ItemProperty.DATE_TIME_CREATED, ItemProperty.DATE_TIME_RECEIVED)

# Changes that are held in memory at most, give or take a page.
MANY = 5000

# So many items may go from a folder between two requests.
FEW = 5

# How far the clocks of server and listener may differ, and how much time must pass to be sure that a second has.
SKEW, TICK = timedelta(minutes=5), timedelta(seconds=2)
SECOND = timedelta(seconds=1)
