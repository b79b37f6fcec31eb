"""The first step of a comparison: which folders a mailbox has now, and whether it is still the same mailbox."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from listener.catchup.differences import FolderRecord, subtree
from listener.catchup.queries import Queries
from listener.catchup.snapshots import MailboxRecord
from listener.ews.codes import ExchangeError, Failure
from listener.ews.folders import Folder
from listener.ews.subscription import FolderRef


class Survey(NamedTuple):
    """The folders of a mailbox that matter, by id, in the server's order.

    `record`: the mailbox as it is now, with `compared_at` 0. `replaced`: another mailbox has this address now, or one
    of the subscribed folders was replaced under its name.
    """

    record: MailboxRecord
    folders: dict[str, Folder]
    replaced: bool


class ScopeChanges(NamedTuple):
    """`removed`: known folders that are not in the scope any more, or that belong to a replaced mailbox. `added`:
    folders that are new to the listener but not to the mailbox, with the moment since when items may be missing;
    None: none can be missing."""

    removed: set[str]
    added: dict[str, datetime | None]


async def survey(queries: Queries, known: MailboxRecord | None) -> Survey:
    """Query the folders of a mailbox. Search folders are left out: they show items of other folders.

    Raises ExchangeError.
    """
    access = queries.route.access
    if access.folders is not None:
        return await _survey_scope(queries, access.folders, known)
    replaced = False
    if known is None or not known.top_id:
        roots = await _roots(queries)
        found = await queries.all_folders()
    else:
        roots, found = known, await queries.all_folders()
        # The top is among the folders below the root. If it is missing, query it: the server may leave it out.
        if known.top_id not in found or (known.inbox_id and known.inbox_id not in found):
            roots = await _roots(queries)
            inbox_changed = roots.inbox_id != known.inbox_id and "" not in (roots.inbox_id, known.inbox_id)
            replaced = roots.top_id != known.top_id or inbox_changed
            if replaced:
                found = await queries.all_folders()
    record = MailboxRecord(top_id=roots.top_id, inbox_id=roots.inbox_id, compared_at=0, scope=())
    folders = {f.folder_id: f for f in subtree(record.top_id, found) if f.element != "SearchFolder"}
    return Survey(record, folders, replaced)


async def _survey_scope(
    queries: Queries, scope: tuple[FolderRef, ...], known: MailboxRecord | None
) -> Survey:
    """Query the folders of a mailbox of which only some are subscribed."""
    folders = await queries.folders(scope)
    inbox = folders.get(queries.route.access.folder("inbox"))
    folder_ids = {_name(ref): folder.folder_id for ref, folder in folders.items()}
    before = {} if known is None else known.folder_ids
    record = MailboxRecord(
        top_id="",
        inbox_id="" if inbox is None else inbox.folder_id,
        compared_at=0,
        folder_ids=folder_ids,
        scope=tuple(sorted(map(_name, scope))),
    )
    replaced = any(folder_ids.get(name, id_) != id_ for name, id_ in before.items())
    return Survey(record, {folder.folder_id: folder for folder in folders.values()}, replaced)


async def _roots(queries: Queries) -> MailboxRecord:
    """Query the ids of the top folder and the inbox."""
    access = queries.route.access
    top, inbox_ref = access.folder("msgfolderroot"), access.folder("inbox")
    roots = await queries.folders((top, inbox_ref))
    if top not in roots:
        raise ExchangeError(Failure(code="UnexpectedReply", text="a mailbox without msgfolderroot"))
    inbox = roots.get(inbox_ref)
    return MailboxRecord(
        top_id=roots[top].folder_id, inbox_id="" if inbox is None else inbox.folder_id, compared_at=0
    )


def scope_changes(
    before: MailboxRecord | None,
    now: Survey,
    records: Mapping[str, FolderRecord],
    since: datetime,
    floor: datetime,
) -> ScopeChanges:
    """Return which folders entered or left the scope, other than by changes in the mailbox.

    These are all folders of a mailbox that was replaced; single folders that were replaced under their names, if only
    some folders are subscribed; and folders that a new configuration adds or removes.

    `since`: when the mailbox was last known to be complete; `floor`: no earlier items count. Both are on the server's
    clock.
    """
    if before is None:
        return ScopeChanges(set(), {})
    # Items of the second in which the old mailbox was last known to be complete were reported, most likely. The
    # server's clock is known to a second.
    since = max(since.replace(microsecond=0) + 2 * SECOND, floor)
    record = now.record
    missing, new = records.keys() - now.folders.keys(), [id_ for id_ in now.folders if id_ not in records]
    if now.replaced and not record.folder_ids:
        return ScopeChanges(missing, dict.fromkeys(new, since))
    removed = {id_ for name, id_ in before.folder_ids.items() if record.folder_ids.get(name, id_) != id_}
    added: dict[str, datetime | None] = {
        id_: since for name, id_ in record.folder_ids.items() if before.folder_ids.get(name, id_) != id_
    }
    if before.scope is not None and before.scope != record.scope:
        removed |= missing
        added = dict.fromkeys(new) | added
    return ScopeChanges(removed, added)


def _name(ref: FolderRef) -> str:
    """Return the name of a subscribed folder; it does not depend on the folder's id."""
    return ref.name or ref.folder_id or ""


SECOND = timedelta(seconds=1)
