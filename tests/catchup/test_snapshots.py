"""The stored form of snapshots, which releases share."""

from collections.abc import Mapping, Sequence

import msgspec

from listener.catchup.differences import FolderRecord
from listener.catchup.snapshots import (
    FirstSubscription,
    MailboxRecord,
    MailboxSnapshot,
    encoded,
    load_snapshot,
)
from listener.event import MailboxEvent
from listener.ews.folders import Folder

FOLDER = FolderRecord(
    folder=Folder(folder_id="f"),
    sync_state="state",
    state_complete=True,
    state_too_recent=True,
    settled=True,
    subscribed_at=7.0,
)
MAILBOX = MailboxRecord(
    top_id="top",
    inbox_id="inbox",
    compared_at=8.0,
    is_first=True,
    folder_ids={"inbox": "i"},
    scope=("inbox",),
)
FIRST = FirstSubscription(start=5.0, backfill=3.0)
STORED: dict[str, dict[str, object]] = {
    "f": {
        "folder": {"folder_id": "f"},
        "sync_state": "state",
        "complete": True,
        "young": True,
        "settled": True,
        "start": 7.0,
    },
    "": {
        "top": "top",
        "inbox": "inbox",
        "compared": 8.0,
        "first": True,
        "places": {"inbox": "i"},
        "scope": ["inbox"],
    },
    "?mark": {"start": 5.0, "backfill": 3.0},
}


class Rows:
    def __init__(self, rows: Mapping[str, bytes]) -> None:
        self.rows = rows

    async def load(self, _mailbox: str, /) -> Mapping[str, bytes]:
        return self.rows

    async def save(
        self, mailbox: str, events: Sequence[MailboxEvent], changes: Mapping[str, bytes | None], /
    ) -> None:
        raise AssertionError("nothing is unreadable")


async def test_rows_of_earlier_releases_are_readable() -> None:
    rows = Rows({key: msgspec.msgpack.encode(value) for key, value in STORED.items()})
    assert await load_snapshot(rows, "ann@example.org") == MailboxSnapshot(MAILBOX, {"f": FOLDER}, FIRST)


def test_stored_names_stay_the_same() -> None:
    written = encoded({"f": FOLDER, "removed": None}, MAILBOX, FIRST)
    assert written.pop("removed") is None
    names = {
        key: set(msgspec.msgpack.decode(value, type=dict[str, object]))
        for key, value in written.items()
        if value
    }
    assert names == {key: set(row) for key, row in STORED.items()}
