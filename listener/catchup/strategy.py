"""How a comparison finds the changed items of one folder. Pure.

`choose()` maps what is known of a folder to a strategy. `Resync` performs it.

| strategy        | requests                             | finds                                                     |
|-----------------|--------------------------------------|-----------------------------------------------------------|
| `ReportAll`     | SyncFolderItems without a SyncState  | every item of a folder that is new in the mailbox         |
| `SyncFrom`      | SyncFolderItems from a SyncState     | every change since the SyncState, with deletions          |
| `ReadAll`       | SyncFolderItems without a SyncState  | every item that was created or modified since the cutoff  |
| `SearchByTime`  | FindItem                             | the same, of a large folder; no deletions                 |
| `NothingToRead` | none                                 | nothing: no item was created or modified since the cutoff |
| `Skip`          | none                                 | nothing: the folder's first SyncState is not complete yet |
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFacts:
    """What is known of one folder when a comparison reaches it.

    The defaults describe a known folder with a complete SyncState, compared after a gap.
    """

    is_new: bool = False
    """The folder is new in the mailbox."""
    has_snapshot: bool = True
    """The mailbox has a snapshot. False at the first comparison."""
    snapshot_too_recent: bool = False
    """The snapshot was taken after the gap began, so it hides changes that came before it."""
    state_complete: bool = True
    """The SyncState covers all items. False while the first SyncState is being built."""
    state_too_recent: bool = False
    """The SyncState became complete after the snapshot was taken, so it hides changes in between."""
    sync_state: str | None = None
    """None with `state_complete`: the folder was empty."""
    is_sweep: bool = False
    """A stream was open all the time."""
    fits_page: bool = False
    """One page of SyncFolderItems holds all items."""
    has_reported_items: bool = False
    """Handlers know of items in this folder, which may have been deleted since."""
    cutoff: datetime | None = None
    """Changes from this moment on are searched; None: no change can be missing."""
    unchanged_since_cutoff: bool = False
    """No item was created or modified since the cutoff (by the folder's commit time)."""


@dataclass(frozen=True, slots=True)
class ReportAll:
    """Report every item as created."""


@dataclass(frozen=True, slots=True)
class SyncFrom:
    """Report the changes since a SyncState; None: since the folder was empty."""

    state: str | None


@dataclass(frozen=True, slots=True)
class ReadAll:
    """Read all items, report those that their times show as new or modified; then run `then`."""

    then: SyncFrom | None = None


@dataclass(frozen=True, slots=True)
class SearchByTime:
    """Search for items that were modified since a moment; then run `then`."""

    since: datetime
    then: SyncFrom | None = None


@dataclass(frozen=True, slots=True)
class NothingToRead:
    """Read no items by their times; run `then`."""

    then: SyncFrom | None = None


@dataclass(frozen=True, slots=True)
class Skip:
    """Leave the folder and its stored state as they are."""


Strategy: TypeAlias = ReportAll | SyncFrom | ReadAll | SearchByTime | NothingToRead | Skip


def choose(facts: FolderFacts) -> Strategy:
    """Return how to find the changed items of a folder.

    Order of preference: a SyncState that reaches back far enough shows every change. Without one, times show what
    was created or modified. A small folder is read as a whole, because one page also shows which reported items
    remain.
    """
    if facts.is_new:
        return ReportAll()
    snapshot_reaches_back = facts.has_snapshot and not facts.snapshot_too_recent
    if facts.state_complete and not facts.state_too_recent and snapshot_reaches_back:
        return SyncFrom(facts.sync_state)
    if facts.is_sweep and not facts.state_complete and not facts.fits_page:
        # No gap: the stream reports the changes. The next sweep compares the folder with its complete SyncState.
        return Skip()
    # The SyncState is too recent for the whole time, but it shows deletions since it was complete.
    has_state = facts.state_complete and facts.sync_state is not None
    then = SyncFrom(facts.sync_state) if has_state else None
    # With a page, deletions of reported items show even if nothing else has changed.
    if facts.fits_page and (facts.has_reported_items or not facts.unchanged_since_cutoff):
        return ReadAll(then)
    if facts.cutoff is None or facts.unchanged_since_cutoff:
        return NothingToRead(then)
    return SearchByTime(facts.cutoff, then)


def after_lost_state() -> ReadAll:
    """Return how to find the changes of a folder whose SyncState the server refuses.

    All items are read, however many there are: only the whole listing shows which reported items remain.
    """
    return ReadAll()
