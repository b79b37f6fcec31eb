"""Compares one mailbox with its snapshot and reports the changes that no stream reported.

The rules:

1. One FindFolder shows which folders changed. For those, SyncFolderItems returns the changes since the stored
   SyncState.
2. Where no SyncState reaches back far enough, a folder of one page is read as a whole. In a larger one, FindItem
   returns the recently modified items (strategy.py). Folders in which deletions cannot be detected are listed in
   `unseen`.
3. Items that handlers know of, and that no answer shows, are queried by their ids.
4. Changes wait for some seconds, because a stream may deliver them late. Those that are still unreported are stored
   together with the new SyncStates. So a crash repeats events, but loses none.
5. Items that existed before the first subscription (`floor`) are not reported as new, and changes before it are not
   reported.
6. A mailbox that was replaced under its address has other folders. It is compared like a new one: only items that
   came since the earlier mailbox was last known to be complete are reported.
7. A thing is not reported as created or modified if an event deleted it, or moved it away, after the request was
   sent.
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
    FolderRecord,
    arrived_since,
    as_change,
    changed_since,
    compare,
    folder_events,
    item_events,
    max_created,
    split_old,
)
from listener.catchup.history import FOLDERS, DeliveryHistory, MailboxHistory, report_key
from listener.catchup.queries import BATCH, GONE, Queries
from listener.catchup.snapshots import FirstSubscription, MailboxRecord, StateStore, encoded
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
from listener.catchup.survey import SECOND, scope_changes, survey
from listener.event import MailboxEvent
from listener.ews.codes import ExchangeError, Verdict
from listener.ews.folders import Folder
from listener.ews.items import Item, ItemProperty
from listener.ews.sync import MAX_CHANGES, Change, ChangeKind
from listener.ews.values import moment

log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Resync:
    """One comparison of one mailbox.

    `server_now`: the present second. `since`: changes after this moment may be missing in a mailbox that was
    replaced. `cutoff`: when the gap began, for folders without a snapshot from before it; None: the mailbox was never
    subscribed before, so no change can be missing. All moments are on the server's clock; `now` is the local one.

    `is_sweep`: a stream was open all the time. `snapshot_too_recent`: the snapshot was taken after the gap began.
    `lost_at_once`: the stream was lost within the second of the first subscription. `stubborn`: skip folders that
    cannot be read. `grace`: seconds to wait for events that a stream delivers late.

    Results: `found` events were reported; `missed` of them should have come from a reliable stream. `folders` were
    compared. `unseen` names folders in which deletions could not be detected, `unread` those that could not be read.
    `replaced`: another mailbox has the address now. `reported`: report_key() of the events.
    """

    mailbox: str
    queries: Queries
    kinds: frozenset[str]
    states: StateStore
    delivered: DeliveryHistory
    now: Callable[[], datetime]
    grace: float
    first_subscription: FirstSubscription
    server_now: float
    since: datetime
    cutoff: datetime | None = None
    is_sweep: bool = False
    snapshot_too_recent: bool = False
    lost_at_once: bool = False
    stubborn: bool = False
    found: int = 0
    missed: int = 0
    folders: int = 0
    replaced: bool = False
    reported: set[tuple[str | None, ...]] = field(default_factory=set)
    unseen: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    _inbox_id: str = ""
    _survey_clock: int = 0  # the clock of the history when the folders were queried
    _parents: Mapping[str, str | None] = field(default_factory=dict)
    _last_compared: datetime | None = None
    _server_ahead: timedelta = timedelta()  # the server's clock minus the local one
    _history: MailboxHistory = field(default_factory=MailboxHistory)
    _shown: set[str] = field(default_factory=set)  # ids that the answers about the present folder contained
    _compared_ids: dict[str, set[str]] = field(default_factory=dict)
    _known: Mapping[str, FolderRecord] = field(default_factory=dict)
    _pending: list[tuple[Change, Context]] = field(default_factory=list)
    _records: dict[str, FolderRecord | None] = field(default_factory=dict)  # to be stored with the next flush
    _announced: list[MailboxEvent] = field(default_factory=list)

    async def run(self, known: MailboxRecord | None, records: Mapping[str, FolderRecord]) -> None:
        """Compare the mailbox with this snapshot and replace the snapshot.

        Raises ExchangeError; the events that were reported until then stay reported.
        """
        self.delivered.begin_comparison(self.mailbox)
        try:
            await self._run(known, records)
        finally:
            self.delivered.end_comparison(self.mailbox)

    async def _run(self, before: MailboxRecord | None, records: Mapping[str, FolderRecord]) -> None:
        self._history = self.delivered.of(self.mailbox)
        known_ids = self._history.known_ids()
        self._server_ahead = datetime.fromtimestamp(self.server_now, UTC) - self.now()
        self._last_compared = (
            None if before is None else datetime.fromtimestamp(before.compared_at, self.now().tzinfo)
        )
        self._survey_clock = self._history.clock
        surveyed = await survey(self.queries, before)
        record, now, self.replaced = surveyed
        self._parents = {id_: folder.parent_folder_id for id_, folder in now.items()}
        self._inbox_id = record.inbox_id
        removed, added = scope_changes(before, surveyed, records, self.since, self.floor)
        if self.replaced:
            self._announce_reset(record)
        is_first = not records and self.cutoff is None
        if is_first:
            added = dict.fromkeys(now)
        self._records |= dict.fromkeys(removed)
        for id_ in added:
            settled, start = self._is_settled(None, now[id_]), None if is_first else self.server_now
            self._records[id_] = FolderRecord.first(now[id_], settled=settled, subscribed_at=start)
        differences = None
        common = {id_: each for id_, each in records.items() if id_ not in removed}
        rest = {id_: folder for id_, folder in now.items() if id_ not in added}
        if common or rest:
            differences = await self._compare(common, rest, known_ids.difference(removed, added))
        if before is None and self.first_subscription.backfill is not None:
            added = dict.fromkeys(now, datetime.fromtimestamp(self.first_subscription.backfill, UTC))
        for id_, since in added.items():
            if since is not None:
                await self._report_new(now[id_], since)
        self._compared_ids[FOLDERS] = {*known_ids, *now, *removed}
        for id_ in removed:
            self._compared_ids[id_] = self._history.known_ids(id_)
        record = msgspec.structs.replace(
            record, compared_at=self.now().timestamp(), is_first=is_first or self.replaced
        )
        await self._flush(differences, record)
        self.delivered.complete_comparison(self.mailbox)

    @property
    def floor(self) -> datetime:
        """When the mailbox was first subscribed.

        Times of items are whole seconds. An item of the second of the first Subscribe may have come before or after
        it. It counts as earlier, unless the stream was lost within that second (`lost_at_once`).
        """
        start = datetime.fromtimestamp(self.first_subscription.start, UTC)
        return start - SECOND if self.lost_at_once and not self.replaced else start

    def _announce_reset(self, record: MailboxRecord) -> None:
        log.warning("catchup.reset", mailbox=self.mailbox, inbox=record.inbox_id)
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
        # The items with which the new mailbox was filled are older than this.
        self.first_subscription = FirstSubscription(start=self.server_now)

    async def _compare(
        self, records: Mapping[str, FolderRecord], now: Mapping[str, Folder], known_ids: set[str]
    ) -> Differences:
        # Without a snapshot all folders are new to the listener, but not to the mailbox.
        known = records or {id_: FolderRecord(folder=folder) for id_, folder in now.items()}
        self._known = known
        uncertain = self.snapshot_too_recent or not records
        differences = self._differences(known, now, known_ids, uncertain=uncertain)
        if self._folder_events(differences, FIRST, stream_reliable=True):
            await trio.sleep(self.grace)
            await self._report(self._folder_events(differences, FIRST, stream_reliable=True), {})
        for folder in differences.created:
            if self.is_sweep and self._history.has("copied", folder.folder_id):
                # A stream reports the copy of a folder as one event, without its items.
                self._records[folder.folder_id] = FolderRecord(folder=folder)
            else:
                await self._compare_folder(folder, None)
        for id_ in now:  # in the server's order
            if id_ in differences.touched:
                await self._compare_folder(now[id_], known[id_], has_snapshot=bool(records))
        for folder in differences.deleted:
            self._report_deleted_items(folder)
        return differences

    def _differences(
        self,
        known: Mapping[str, FolderRecord],
        now: Mapping[str, Folder],
        known_ids: set[str],
        *,
        uncertain: bool,
    ) -> Differences:
        found = compare(known, now)
        vanished = (Folder(folder_id=id_) for id_ in sorted(known_ids.difference(now, known)))
        changed = {folder.folder_id for _, folder in found.changed}
        uncertain_folders = (
            folder
            for id_, folder in now.items()
            if uncertain and id_ in known and id_ not in changed and changed_since(folder, self.floor)
        )
        return found._replace(deleted=(*found.deleted, *vanished), uncertain=tuple(uncertain_folders))

    def _report_deleted_items(self, folder: Folder) -> None:
        """A folder is deleted, and with it its items, about which a stream sends no events."""
        id_ = folder.folder_id
        self._records[id_] = None
        known_ids = self._compared_ids[id_] = self._history.known_ids(id_)
        if not (self.is_sweep and self._history.has("gone", id_)):
            context = self._context(folder=folder, stream_reliable=False)
            self._shown = set()
            for item in sorted(known_ids | self.delivered.reported_items.of(self.mailbox, id_)):
                self._add(Change(kind=ChangeKind.DELETE, item_id=item), context)

    def _folder_events(
        self, differences: Differences, words: frozenset[str], *, stream_reliable: bool
    ) -> list[MailboxEvent]:
        context = self._context(kinds=self.kinds & words, stream_reliable=stream_reliable)
        context = replace(context, request_clock=self._survey_clock)
        return folder_events(differences, context, self._history)

    # --- items

    async def _compare_folder(
        self, folder: Folder, record: FolderRecord | None, *, has_snapshot: bool = True
    ) -> None:
        """Find the changed items of a folder. `record` None: the folder is new in the mailbox.

        `has_snapshot`: the mailbox has one. If it has none, `record` describes the folder as it is now.
        """
        id_ = folder.folder_id
        known_ids = self._history.known_ids(id_)
        reported = known_ids | self.delivered.reported_items.of(self.mailbox, id_)
        self._shown = set()
        context = self._context(folder=folder, cutoff=self._cutoff(record, has_snapshot=has_snapshot))
        strategy = choose(
            FolderFacts(
                is_new=record is None,
                has_snapshot=has_snapshot,
                snapshot_too_recent=self.snapshot_too_recent,
                state_complete=record is not None and record.state_complete,
                state_too_recent=record is not None and record.state_too_recent,
                sync_state=None if record is None else record.sync_state,
                is_sweep=self.is_sweep,
                fits_page=_fits_page(folder),
                has_reported_items=bool(reported),
                cutoff=context.cutoff,
                unchanged_since_cutoff=_unchanged_since(folder, context.cutoff),
            )
        )
        try:
            match strategy:
                case Skip():
                    return
                case ReportAll():
                    await self._read_all(replace(context, cutoff=None), None)
                    check_all = True
                case SyncFrom():
                    assert record is not None
                    check_all = await self._sync(context, record, strategy, reported)
                case ReadAll() | SearchByTime() | NothingToRead():
                    assert record is not None
                    before = record.folder if has_snapshot and not self.snapshot_too_recent else None
                    check_all = await self._read(context, record, reported, strategy, before)
            if self._history.incomplete:
                check_all = True  # the ids that are left are all that is known of deleted items
                self._note_unseen(folder, None if record is None else record.folder)
            await self._report_missing(reported if check_all else known_ids, context)
            self._compared_ids[id_] = known_ids | self._shown
            self.folders += 1
        except ExchangeError as error:
            if record is None and error.failure.code in GONE:
                self._records[id_] = FolderRecord(folder=folder)
            self._skip_unreadable(folder, error)

    def _skip_unreadable(self, folder: Folder, error: ExchangeError) -> None:
        """Note that a folder cannot be read. Raises the error if it concerns the whole mailbox."""
        code, verdict = error.failure.code, error.failure.verdict
        if code in GONE:
            return  # the next comparison will report it
        if verdict is not Verdict.SUSPEND and not (self.stubborn and verdict is Verdict.RETRY):
            raise error
        self.unread.append(f"{folder.display_name or folder.folder_id} ({code})")

    async def _report_new(self, folder: Folder, since: datetime) -> None:
        """Report only the items of a folder that are new since then."""
        if _unchanged_since(folder, since):
            return
        context = self._at_request(self._context(folder=folder, stream_reliable=False, cutoff=since))
        try:
            async for items in self._recent(folder, since):
                for item in items:
                    if arrived_since(item, since) and not self._history.has("made", item.item_id):
                        self._add(as_change(item, None), context)
                if len(self._pending) >= MAX_PENDING:
                    await self._flush()
                context = self._at_request(context)
        except ExchangeError as error:
            self._skip_unreadable(folder, error)

    async def _recent(self, folder: Folder, since: datetime) -> AsyncIterator[Sequence[Item]]:
        """Yield the items of a folder, page by page; of a large one only those that were modified since then."""
        if not _fits_page(folder):
            async for items in self.queries.modified_since(folder, since, ARRIVED):
                yield items
            return
        state, last = None, folder.total_count == 0
        while not last:
            page = await self.queries.changes(folder, state, ARRIVED)
            state, last = page.sync_state, page.includes_last
            yield page.changes

    async def _read(
        self,
        context: Context,
        record: FolderRecord,
        reported: set[str],
        strategy: ReadAll | SearchByTime | NothingToRead,
        before: Folder | None,
    ) -> bool:
        """Find the changes of a folder whose SyncState does not reach back far enough.

        `before`: the folder when the gap began; None: unknown. Returns whether reported items that no answer shows
        may have been deleted.
        """
        assert context.folder is not None
        folder = context.folder
        if isinstance(strategy, ReadAll):
            await self._read_all(context, record)
        else:
            if isinstance(strategy, SearchByTime):
                await self._search(context, folder, strategy.since)
            settled = self._is_settled(record, folder)
            self._records[folder.folder_id] = msgspec.structs.replace(record, folder=folder, settled=settled)
        if strategy.then is not None:
            context = replace(context, cutoff=self._cutoff(record, has_snapshot=True))
            await self._sync(context, record, strategy.then, reported)
        self._note_unseen(folder, before)
        return _may_have_lost(folder, before)

    def _note_unseen(self, folder: Folder, before: Folder | None) -> None:
        """Note a folder in which deletions may stay undetected: not all its items are remembered."""
        name = folder.display_name or folder.folder_id
        if not self.is_sweep and _may_have_lost(folder, before) and name not in self.unseen:
            self.unseen.append(name)

    def _is_settled(self, record: FolderRecord | None, folder: Folder) -> bool:
        """Return whether a further change would show in the folder's times.

        These are whole seconds, so a change within the same second would not show.
        """
        if record is not None and record.folder == folder:
            return self._last_compared is not None and self._last_compared < self.now() - TICK
        committed = moment(folder.commit_time_max)
        return committed is not None and committed < datetime.fromtimestamp(self.server_now, UTC) - SKEW

    def _is_from_before(self, item: Item) -> bool:
        """Return whether an item was created and last modified before the first subscription."""
        times = [moment(item.date_time_created), moment(item.last_modified_time)]
        return all(time is not None and time < self.floor for time in times)

    def _cutoff(self, record: FolderRecord | None, *, has_snapshot: bool) -> datetime | None:
        """Return since when changes of a folder may be missing, but not before its first subscription.

        The moment is on the server's clock where the server has reported one.
        """
        since = self._unbounded_cutoff(record, has_snapshot=has_snapshot)
        floor = self.floor
        if record is not None and record.subscribed_at is not None:
            floor = max(floor, datetime.fromtimestamp(record.subscribed_at, UTC))
        return floor if since is None else max(since, floor)

    def _unbounded_cutoff(self, record: FolderRecord | None, *, has_snapshot: bool) -> datetime | None:
        if record is None or not has_snapshot or self.snapshot_too_recent:
            return self.cutoff
        committed = moment(record.folder.commit_time_max)
        if committed is None:
            return self._last_compared + self._server_ahead - SKEW if self._last_compared else self.cutoff
        # Times are whole seconds: the last one may have more changes, unless it had passed at the comparison.
        return committed + SECOND if record.settled else committed

    async def _sync(
        self, context: Context, record: FolderRecord, start: SyncFrom, reported: set[str]
    ) -> bool:
        """Find the changes since a SyncState.

        Returns whether reported items that no answer shows may have been deleted: the server may have ignored the
        SyncState and returned all items.
        """
        assert context.folder is not None
        folder, state, ignored_state = context.folder, start.state, False
        most = max_created(record.folder, folder)
        # Created, but not modified since the snapshot: moved here, or the server ignored the SyncState.
        old: list[Change] = []
        kinds: list[ChangeKind] = []
        earliest = context = self._at_request(context)
        while True:
            try:
                page = await self.queries.changes(folder, state, SYNCED)
            except ExchangeError as error:
                if error.failure.verdict is not Verdict.RESYNC:
                    raise
                lost = FolderRecord(folder=record.folder)
                return await self._read(context, lost, reported, after_lost_state(), record.folder)
            state = page.sync_state
            kinds += (change.kind for change in page.changes)
            self._shown.update(change.item_id for change in page.changes)
            old_here, new = split_old(page.changes, context.cutoff)
            old += old_here
            ignored_state = ignored_state or (most is not None and len(old) > most)
            if ignored_state:
                old.clear()
            for change in new:
                by_time = ignored_state and change.kind is ChangeKind.CREATE
                self._add(as_change(change, context.cutoff) if by_time else change, context)
            if page.includes_last:
                break
            if len(self._pending) >= MAX_PENDING:
                if not old and not ignored_state:
                    self._records[folder.folder_id] = msgspec.structs.replace(record, sync_state=state)
                await self._flush()
            context = self._at_request(context)
        maybe_all = _may_be_all(kinds, folder)
        for change in old:
            # It was moved here, or it existed before the first subscription and the server ignored the SyncState. If
            # these may be all items of the folder, the latter is possible.
            if not (maybe_all and self._is_from_before(change)):
                self._add(change, earliest)
        if ignored_state:
            self._note_unseen(folder, record.folder)
        self._set_record(folder, record, state)
        return ignored_state or start.state is None or maybe_all

    async def _read_all(self, context: Context, record: FolderRecord | None) -> None:
        """Read all items of a folder and report the new ones; `record` None: all."""
        assert context.folder is not None
        folder, state = context.folder, None
        if record is not None:
            context = replace(context, stream_reliable=False)  # these items may have been reported long ago
        while folder.total_count != 0:
            context = self._at_request(context)
            page = await self.queries.changes(folder, state, SYNCED)
            state = page.sync_state
            self._shown.update(change.item_id for change in page.changes)
            _, new = split_old(page.changes, context.cutoff)
            for change in new:
                if record is None:
                    self._add(change, context)
                else:
                    self._add_by_time(change, context)
            if page.includes_last:
                break
            if len(self._pending) >= MAX_PENDING:
                await self._flush()
        self._set_record(folder, record, state)

    def _set_record(self, folder: Folder, record: FolderRecord | None, state: str | None) -> None:
        """Set what is stored of a folder that was compared to its end."""
        settled = self._is_settled(record, folder)
        subscribed_at = None if record is None else record.subscribed_at
        self._records[folder.folder_id] = FolderRecord(
            folder=folder,
            sync_state=state,
            state_complete=True,
            settled=settled,
            subscribed_at=subscribed_at,
        )

    async def _search(self, context: Context, folder: Folder, since: datetime) -> None:
        """Find the items that were modified since then. A search does not show deleted items."""
        # These items may have been reported long ago.
        context = self._at_request(replace(context, stream_reliable=False))
        async for items in self.queries.modified_since(folder, since):
            self._shown.update(item.item_id for item in items)
            for item in items:
                self._add_by_time(item, context)
            if len(self._pending) >= MAX_PENDING:
                await self._flush()
            context = self._at_request(context)

    async def _report_missing(self, ids: set[str], context: Context) -> None:
        """Query the items that handlers know of and that no answer showed; report the deleted ones."""
        folder = context.folder
        assert folder is not None
        missing = ids - self._shown
        # Choose what takes fewer requests: query each item, or list all items of the folder first.
        total = folder.total_count
        if total is not None and len(missing) > BATCH and total * BATCH < len(missing) * MAX_CHANGES:
            missing -= await self.queries.all_items(folder)
        for id_ in await self.queries.gone(missing):
            self._add(Change(kind=ChangeKind.DELETE, item_id=id_), context)

    # --- reports

    def _context(
        self,
        *,
        kinds: frozenset[str] | None = None,
        stream_reliable: bool = True,
        folder: Folder | None = None,
        cutoff: datetime | None = None,
    ) -> Context:
        return Context(
            mailbox=self.mailbox,
            kinds=self.kinds if kinds is None else kinds,
            time=f"{self.now():%Y-%m-%dT%H:%M:%SZ}",
            stream_reliable=stream_reliable and self.is_sweep and not self._history.incomplete,
            folder=folder,
            is_inbox=folder is not None and folder.folder_id == self._inbox_id,
            cutoff=cutoff,
            request_clock=self._history.clock,
            parents=self._parents,
        )

    def _at_request(self, context: Context) -> Context:
        """Return the same context for a request that is sent now."""
        return replace(context, request_clock=self._history.clock)

    def _add_by_time(self, item: Item, context: Context) -> None:
        """Add an item of which only the times show whether it is new.

        Times are whole seconds, so all items of the cutoff's second are found again. Those that were reported before
        the last comparison are left out.
        """
        id_, key, modified = item.item_id, item.change_key, moment(item.last_modified_time)
        in_cutoff_second = (
            context.cutoff is not None and modified is not None and modified < context.cutoff + SECOND
        )
        if (
            (in_cutoff_second or self.snapshot_too_recent)
            and key is not None
            and self._history.had_earlier(id_, key)
        ):
            return
        change = as_change(item, context.cutoff)
        if self._history.had_earlier("made", id_):
            change = msgspec.structs.replace(change, kind=ChangeKind.UPDATE)
        self._add(change, context)

    def _add(self, change: Change, context: Context) -> None:
        self._shown.add(change.item_id)
        if item_events(change, context, self._history):
            self._pending.append((change, context))

    async def _flush(
        self, differences: Differences | None = None, mailbox: MailboxRecord | None = None
    ) -> None:
        """Report the changes that are still unreported after the grace, and store the SyncStates that follow.

        With `mailbox`, at the end, the folders' present state is stored as well, and their own events are reported.
        """
        if self._pending or (
            differences and self._folder_events(differences, LAST, stream_reliable=not self.found)
        ):
            await trio.sleep(self.grace)
        found: dict[tuple[str, str | None, str | None], MailboxEvent] = {}
        missed = 0
        for change, context in self._pending:
            # A search by times may return an item twice.
            new = {(e.type, e.item_id, e.change_key): e for e in item_events(change, context, self._history)}
            missed += context.stream_reliable and not new.keys() <= found.keys()
            found |= new
        events = [*self._announced, *found.values()]
        self._announced.clear()
        if differences is not None:
            # After a find the stream is not reliable any more.
            stream_reliable = not self.found and not events
            events += self._folder_events(differences, LAST, stream_reliable=stream_reliable)
        records = self._records
        if mailbox is None:
            records = {id_: self._interim(id_, record) for id_, record in records.items()}
        # The backfill ends with the first comparison.
        first = None if mailbox is None else msgspec.structs.replace(self.first_subscription, backfill=None)
        await self._report(events, encoded(records, mailbox, first))
        self.missed += missed
        self._pending.clear()
        for folder, ids in self._compared_ids.items():
            self.delivered.mark_compared(self.mailbox, ids, folder)
        self._compared_ids.clear()

    def _interim(self, id_: str, record: FolderRecord | None) -> FolderRecord | None:
        """Return the record to store before the folder's own events are reported: with the folder as it was."""
        known = self._known.get(id_)
        if record is None or known is None:
            return record
        return msgspec.structs.replace(record, folder=known.folder, settled=False)

    async def _report(self, events: list[MailboxEvent], changes: Mapping[str, bytes | None]) -> None:
        if events or changes:
            await self.states.save(self.mailbox, events, changes)
        events = [event for event in events if not event.type.startswith("exchange.listener.")]
        self.delivered.note(events)
        self.reported.update(map(report_key, events))
        self.found += len(events)


def _fits_page(folder: Folder) -> bool:
    """Return whether one page of SyncFolderItems holds all items."""
    return folder.total_count is not None and folder.total_count <= MAX_CHANGES


def _unchanged_since(folder: Folder, cutoff: datetime | None) -> bool:
    """Return whether no item was created or modified in a folder since then."""
    committed = moment(folder.commit_time_max)
    return cutoff is not None and committed is not None and committed < cutoff


def _may_have_lost(folder: Folder, before: Folder | None) -> bool:
    """Return whether an item may have been deleted since the folder looked like `before`; None: ever."""
    known = 0 if before is None else before.deleted_count_total
    return known is None or known != folder.deleted_count_total


def _may_be_all(kinds: Sequence[ChangeKind], folder: Folder) -> bool:
    """Return whether these changes can be all items of the folder.

    That is so if the server silently ignored the SyncState. Some items may have been deleted since they were counted.
    """
    created = kinds.count(ChangeKind.CREATE)
    total = folder.total_count
    return created == len(kinds) and (total is None or created >= max(total - FEW, min(total, 1)))


RESET = "reset"
FIRST, LAST = frozenset(("created", "moved")), frozenset(("modified", "deleted"))
SYNCED = (ItemProperty.DATE_TIME_CREATED, ItemProperty.LAST_MODIFIED_TIME)
ARRIVED = (ItemProperty.DATE_TIME_CREATED, ItemProperty.DATE_TIME_RECEIVED)

# Changes that are held in memory at most, give or take a page.
MAX_PENDING = 5000

# Items that may be deleted from a folder between two requests.
FEW = 5

# How far the clocks of server and listener may differ, and how much time must pass to be sure that a second has.
SKEW, TICK = timedelta(minutes=5), timedelta(seconds=2)
