"""Snapshots of mailboxes: what each comparison stores for the next one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec
import structlog

from listener.catchup.differences import FolderRecord
from listener.event import MailboxEvent

log = structlog.get_logger()


class StateStore(Protocol):
    """Storage of events and snapshots: by mailbox, then by a key, as bytes."""

    async def load(self, mailbox: str, /) -> Mapping[str, bytes]: ...

    async def save(
        self, mailbox: str, events: Sequence[MailboxEvent], changes: Mapping[str, bytes | None], /
    ) -> None:
        """Store the events and then the changes (None removes a key); return when the events are durable.

        A crash may undo the changes, but never only the events.
        """


class MailboxRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The stored state of a mailbox as a whole.

    `top_id`, `inbox_id`: ids of the top folder and the inbox. `compared_at`: Unix seconds of the last comparison.
    `is_first`: that was the first comparison, which had nothing to compare with.

    If only some folders are subscribed, `folder_ids` are their ids by name, and `top_id` is empty. `scope` are those
    names, empty for the whole mailbox; None: written by an older release.
    """

    top_id: str = msgspec.field(name="top")
    inbox_id: str = msgspec.field(name="inbox")
    compared_at: float = msgspec.field(name="compared")
    is_first: bool = msgspec.field(name="first", default=False)
    folder_ids: dict[str, str] = msgspec.field(name="places", default_factory=dict)
    scope: tuple[str, ...] | None = None


class FirstSubscription(msgspec.Struct, frozen=True, kw_only=True):
    """When a mailbox was first subscribed. Older items existed before, so they are not reported as new.

    Both are whole Unix seconds on the server's clock. `backfill`: the first comparison also reports items that came
    since this earlier moment.
    """

    start: float
    backfill: float | None = None


class MailboxSnapshot(NamedTuple):
    """All that is stored for a mailbox. `folders` are by id.

    Before the first complete comparison, there is at most `first_subscription`.
    """

    mailbox: MailboxRecord | None
    folders: dict[str, FolderRecord]
    first_subscription: FirstSubscription | None


async def load_snapshot(states: StateStore, mailbox: str) -> MailboxSnapshot:
    """Return what is stored for a mailbox. Unreadable parts are logged, removed and treated as missing."""
    stored = await states.load(mailbox)
    first_subscription = None
    if FIRST_SUBSCRIPTION_KEY in stored:
        try:
            first_subscription = _DECODE_FIRST_SUBSCRIPTION(stored[FIRST_SUBSCRIPTION_KEY])
        except _UNREADABLE as error:
            await _discard(states, mailbox, (FIRST_SUBSCRIPTION_KEY,), error)
    if MAILBOX_KEY not in stored:
        return MailboxSnapshot(None, {}, first_subscription)
    try:
        folders = {
            key: _DECODE_FOLDER(value)
            for key, value in stored.items()
            if key not in (MAILBOX_KEY, FIRST_SUBSCRIPTION_KEY)
        }
        return MailboxSnapshot(_DECODE_MAILBOX(stored[MAILBOX_KEY]), folders, first_subscription)
    except _UNREADABLE as error:
        # The next comparison is a first one. Keep the first subscription: older items must not be reported as new.
        await _discard(states, mailbox, stored.keys() - {FIRST_SUBSCRIPTION_KEY}, error)
        return MailboxSnapshot(None, {}, first_subscription)


async def _discard(states: StateStore, mailbox: str, keys: Iterable[str], error: BaseException) -> None:
    log.warning("catchup.state_unreadable", mailbox=mailbox, reason=str(error))
    await states.save(mailbox, (), dict.fromkeys(keys))


async def stored_folders(states: StateStore, mailbox: str) -> set[str]:
    """Return the ids of the folders that are stored for a mailbox."""
    record, folders, _ = await load_snapshot(states, mailbox)
    return set(folders) if record is None else {record.top_id, record.inbox_id, *folders}


def encoded(
    folders: Mapping[str, FolderRecord | None],
    mailbox: MailboxRecord | None = None,
    first_subscription: FirstSubscription | None = None,
) -> dict[str, bytes | None]:
    """Return the changes with which StateStore.save() stores these records; a folder with None is removed."""
    changes = {id_: None if record is None else _ENCODE(record) for id_, record in folders.items()}
    if mailbox is not None:
        changes[MAILBOX_KEY] = _ENCODE(mailbox)
    if first_subscription is not None:
        changes[FIRST_SUBSCRIPTION_KEY] = _ENCODE(first_subscription)
    return changes


# No folder has such an id. Releases share these keys and the fields' stored names: do not change them.
MAILBOX_KEY, FIRST_SUBSCRIPTION_KEY = "", "?mark"

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE_FOLDER = msgspec.msgpack.Decoder(FolderRecord).decode
_DECODE_FIRST_SUBSCRIPTION = msgspec.msgpack.Decoder(FirstSubscription).decode
_DECODE_MAILBOX = msgspec.msgpack.Decoder(MailboxRecord).decode

# What a decoder raises for a damaged row, or for one of another version.
_UNREADABLE = (ValueError, TypeError, RecursionError, MemoryError)
