"""How a comparison finds the changed items of a folder, as a table of what is known of the folder."""

from datetime import UTC, datetime
from itertools import product
from typing import Any

import pytest

from listener.catchup.strategy import (
    FolderFacts,
    NothingToRead,
    ReadAll,
    ReportAll,
    SearchByTime,
    Skip,
    Strategy,
    SyncFrom,
    after_lost_state,
    choose,
)

CUTOFF = datetime(2026, 3, 1, 12, tzinfo=UTC)
BUILDING: dict[str, Any] = {"state_complete": False, "sync_state": None}
STARTED: dict[str, Any] = {"state_complete": False, "sync_state": "part"}
UNCHANGED: dict[str, Any] = {"unchanged_since_cutoff": True}
SMALL: dict[str, Any] = {"fits_page": True}
REPORTED: dict[str, Any] = {"has_reported_items": True}

CASES: list[tuple[str, dict[str, Any], Strategy]] = [
    # --- a new folder: all of it is new
    ("new folder after a gap", {"is_new": True, **BUILDING}, ReportAll()),
    ("new folder in a sweep", {"is_new": True, "is_sweep": True, **BUILDING}, ReportAll()),
    ("new small folder", {"is_new": True, **SMALL, **BUILDING}, ReportAll()),
    # --- a complete SyncState that reaches back far enough shows every change
    ("complete state after a gap", {}, SyncFrom("state")),
    ("complete state in a sweep", {"is_sweep": True}, SyncFrom("state")),
    ("complete state of a small folder", SMALL, SyncFrom("state")),
    ("a counter may have changed without a new commit time", UNCHANGED, SyncFrom("state")),
    ("the folder was empty, so there is no state to continue", {"sync_state": None}, SyncFrom(None)),
    # --- the first SyncState is not complete
    ("state not built: nothing to compare with in a sweep", {"is_sweep": True, **BUILDING}, Skip()),
    ("state partly built: the same", {"is_sweep": True, **STARTED}, Skip()),
    ("a page is cheap, so a sweep reads it", {"is_sweep": True, **SMALL, **BUILDING}, ReadAll()),
    ("large: a gap cannot wait for the state", BUILDING, SearchByTime(CUTOFF)),
    ("a partial state must not be continued: it hides the other items", STARTED, SearchByTime(CUTOFF)),
    ("small: a page also shows deletions", {**SMALL, **BUILDING}, ReadAll()),
    ("no change since the cutoff", {**BUILDING, **UNCHANGED}, NothingToRead()),
    ("small, no change, no item that could be gone", {**SMALL, **BUILDING, **UNCHANGED}, NothingToRead()),
    (
        "small, reported items may be gone though the commit time is old",
        {**SMALL, **BUILDING, **UNCHANGED, **REPORTED},
        ReadAll(),
    ),
    (
        "large, reported items are queried by id instead",
        {**BUILDING, **UNCHANGED, **REPORTED},
        NothingToRead(),
    ),
    ("nothing can be missing without a cutoff", {**BUILDING, "cutoff": None}, NothingToRead()),
    ("small folder without a cutoff", {**SMALL, **BUILDING, "cutoff": None}, ReadAll()),
    # --- a complete SyncState that does not reach back far enough: search, then use it for later deletions
    ("state later than the snapshot", {"state_too_recent": True}, SearchByTime(CUTOFF, SyncFrom("state"))),
    (
        "state later than the snapshot, in a sweep",
        {"state_too_recent": True, "is_sweep": True},
        SearchByTime(CUTOFF, SyncFrom("state")),
    ),
    ("snapshot inside the gap", {"snapshot_too_recent": True}, SearchByTime(CUTOFF, SyncFrom("state"))),
    (
        "snapshot inside the gap, small folder",
        {"snapshot_too_recent": True, **SMALL},
        ReadAll(SyncFrom("state")),
    ),
    (
        "snapshot inside the gap, no change since the gap began",
        {"snapshot_too_recent": True, **UNCHANGED},
        NothingToRead(SyncFrom("state")),
    ),
    (
        "snapshot inside the gap, the folder was empty then: no state to continue",
        {"snapshot_too_recent": True, "sync_state": None},
        SearchByTime(CUTOFF),
    ),
    # --- the first comparison, after a gap: no folder has a snapshot
    ("no snapshot", {"has_snapshot": False, **BUILDING}, SearchByTime(CUTOFF)),
    ("no snapshot, small folder", {"has_snapshot": False, **SMALL, **BUILDING}, ReadAll()),
    ("no snapshot, unchanged", {"has_snapshot": False, **BUILDING, **UNCHANGED}, NothingToRead()),
]


def facts(**changes: Any) -> FolderFacts:
    given: dict[str, Any] = {"sync_state": "state", "cutoff": CUTOFF}
    return FolderFacts(**given | changes)


@pytest.mark.parametrize(("reason", "changes", "strategy"), CASES, ids=[case[0] for case in CASES])
def test_facts_lead_to_a_strategy(reason: str, changes: dict[str, Any], strategy: Strategy) -> None:
    assert choose(facts(**changes)) == strategy


def test_a_lost_state_leads_to_a_full_listing_without_a_state() -> None:
    assert after_lost_state() == ReadAll(None)


FLAGS = (
    "is_new",
    "has_snapshot",
    "snapshot_too_recent",
    "state_complete",
    "state_too_recent",
    "is_sweep",
    "fits_page",
    "has_reported_items",
    "unchanged_since_cutoff",
)
ALL_FACTS = [
    FolderFacts(**dict(zip(FLAGS, flags, strict=True)), sync_state=state, cutoff=cutoff)
    for flags in product((False, True), repeat=len(FLAGS))
    for state in ("state", None)
    for cutoff in (CUTOFF, None)
]


def test_only_a_sweep_skips_a_folder() -> None:
    assert all(each.is_sweep for each in ALL_FACTS if isinstance(choose(each), Skip))


def test_an_incomplete_state_is_never_continued() -> None:
    for each in ALL_FACTS:
        strategy = choose(each)
        used = strategy if isinstance(strategy, SyncFrom) else getattr(strategy, "then", None)
        assert used is None or each.state_complete


def test_a_state_alone_is_used_only_if_it_reaches_back_far_enough() -> None:
    for each in ALL_FACTS:
        if isinstance(choose(each), SyncFrom):
            assert not each.is_new
            assert each.has_snapshot
            assert not each.snapshot_too_recent
            assert not each.state_too_recent


def test_a_changed_folder_is_read_after_a_gap() -> None:
    for each in ALL_FACTS:
        if not each.is_sweep and each.cutoff is not None and not each.unchanged_since_cutoff:
            assert not isinstance(choose(each), Skip | NothingToRead)
