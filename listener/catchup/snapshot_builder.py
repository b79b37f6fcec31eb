"""Builds the first SyncStates of a mailbox in the background, one page at a time, without events."""

from __future__ import annotations

from collections.abc import Container, MutableMapping

import msgspec
import structlog
import trio

from listener.catchup.mailbox_state import MailboxState, SkippedFolder
from listener.catchup.paging import Progress
from listener.catchup.queries import Queries
from listener.catchup.snapshots import StateStore, encoded, load_snapshot
from listener.ews.codes import ExchangeError, Failure, Verdict
from listener.ews.sync import ItemChanges

log = structlog.get_logger()


class FolderError(ExchangeError):
    """A request about one folder failed."""

    def __init__(self, folder_id: str, failure: Failure) -> None:
        self.folder_id = folder_id
        super().__init__(failure)


async def build_next(
    queries: Queries, states: StateStore, mailbox: str, state: MailboxState, *, stubborn: bool
) -> float | None:
    """Build one page, wait PACE seconds, and return when the next page is due; None: all folders are done.

    A folder that cannot be read is skipped for a while. Raises ExchangeError if the failure concerns more than one
    folder. `stubborn`: earlier attempts failed too, so a temporary failure skips the folder as well.
    """
    try:
        now = trio.current_time()
        skip = {folder for folder, skipped in state.skipped_folders.items() if skipped.until > now}
        built = await build_page(queries, states, mailbox, skip, state.listings)
    except FolderError as error:
        fails_again = error.failure.verdict is Verdict.RETRY and stubborn
        if not fails_again and error.failure.code not in FOLDER_CODES:
            raise
        log.warning(
            "catchup.folder_skipped", mailbox=mailbox, code=error.failure.code, folder=error.folder_id
        )
        earlier = state.skipped_folders.get(error.folder_id)
        delay = min(FIRST_SKIP if earlier is None else earlier.delay * 2, LONGEST_SKIP)
        state.skipped_folders[error.folder_id] = SkippedFolder(trio.current_time() + delay, delay)
        built = error.folder_id, False
    await trio.sleep(PACE)
    now = trio.current_time()
    if built is not None:
        return now
    log.debug("catchup.ready", mailbox=mailbox)
    return min(
        (skipped.until for skipped in state.skipped_folders.values() if skipped.until > now), default=None
    )


async def build_page(
    queries: Queries,
    states: StateStore,
    mailbox: str,
    skip: Container[str],
    listings: MutableMapping[str, Progress] | None = None,
) -> tuple[str, bool] | None:
    """Read and store one page of the first SyncState that is not complete. The page's items are not reported.

    `listings` has the progress of the folders that were begun. Folders whose ids are in `skip` are left out. Returns
    the folder's id and whether its state is complete now; None if no folder is left. Raises FolderError.
    """
    folders = (await load_snapshot(states, mailbox)).folders
    todo = ((id_, record) for id_, record in folders.items() if not record.state_complete and id_ not in skip)
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
            page = ItemChanges(sync_state="", includes_last=False)  # start again without a SyncState
    except ExchangeError as error:
        if error.failure.code == "UnexpectedReply":
            listings.pop(id_, None)  # the next attempt counts its pages from zero
        raise FolderError(id_, error.failure) from error
    last = page.includes_last
    if last:
        listings.pop(id_, None)
    record = msgspec.structs.replace(
        record, sync_state=page.sync_state or None, state_complete=last, state_too_recent=last
    )
    await states.save(mailbox, (), encoded({id_: record}))
    return id_, last


# Seconds between two pages: no event waits for them, so they leave room for other requests.
PACE = 0.05

# Failures that concern one folder, and not the mailbox or the account.
FOLDER_CODES = frozenset(
    {
        "ErrorAccessDenied",
        "ErrorFolderNotFound",
        "ErrorSyncFolderNotFound",
        "ErrorItemNotFound",
        "UnexpectedReply",  # also a listing that makes no progress: a page in between must not hide it
    }
)
# Seconds for which a folder without a first SyncState is skipped. Each pause is twice as long as the one before.
FIRST_SKIP, LONGEST_SKIP = 900.0, 86400.0
