"""The mailbox of each subscription id, and whether that ownership is proven. Pure.

A subscription id belongs to a server and to the account that made it. Groups do not matter: some servers count ids
from 1 again after a restart, and then one group's old id may be another group's new one.

1. An id is proven when the server has just given it to this mailbox (`claim` with `proven`).
2. It is unproven after a restart of this process, and whenever the server may have restarted without a visible sign
   (`doubt`): the server may have given it to another mailbox, or to another client of the same account.
3. An event names its folder, and folder ids are unique on a server. So an event in a folder that is known as the
   mailbox's proves the id, and an event in a folder of another mailbox disproves it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import urlsplit

Server: TypeAlias = str


def server_of(ews_url: str) -> Server:
    """Return the server of an EWS URL: scheme, host and port. One account is used for each URL."""
    parts = urlsplit(ews_url.lower())
    return f"{parts.scheme}://{parts.netloc}"


@dataclass(slots=True)
class Ownership:
    """All subscription ids of this process. Folder ids are stored as hashes, at most MAX_FOLDERS."""

    _owners: dict[tuple[Server, str], str] = field(default_factory=dict)
    _claims: dict[str, tuple[Server, str]] = field(default_factory=dict)
    _unproven: set[tuple[Server, str]] = field(default_factory=set)
    _folders: dict[int, str] = field(default_factory=dict)

    def claim(self, server: Server, subscription: str, mailbox: str, *, proven: bool) -> str | None:
        """Note that the mailbox has this id, and no other one. Return the mailbox that had it before, if any."""
        key = server, subscription
        if (former := self._claims.get(mailbox)) is not None:
            self.release(*former, mailbox)
        loser = self._owners.get(key)
        if loser is not None:
            self._claims.pop(loser, None)
        self._owners[key], self._claims[mailbox] = mailbox, key
        if proven:
            self._unproven.discard(key)
        else:
            self._unproven.add(key)
        return loser

    def release(self, server: Server, subscription: str, mailbox: str) -> None:
        """Note that the mailbox does not have this id any more."""
        key = server, subscription
        if self._owners.get(key) == mailbox:
            del self._owners[key]
            self._unproven.discard(key)
            self._claims.pop(mailbox, None)

    def forget(self, mailbox: str) -> None:
        """Forget the id of a mailbox."""
        if (former := self._claims.get(mailbox)) is not None:
            self.release(*former, mailbox)

    def owner(self, server: Server, subscription: str) -> str | None:
        """Return the mailbox that has this id."""
        return self._owners.get((server, subscription))

    def doubt(self, server: Server, subscriptions: Iterable[str]) -> None:
        """Note that the server may have restarted: these ids need a proof again."""
        keys = ((server, subscription) for subscription in subscriptions)
        self._unproven.update(key for key in keys if key in self._owners)

    def confirm(self, server: Server, subscription: str) -> None:
        """Note that the id is proven."""
        self._unproven.discard((server, subscription))

    def is_proven(self, server: Server, subscription: str) -> bool:
        """Return whether events of this id count without further proof."""
        return (server, subscription) not in self._unproven

    def add_folders(self, mailbox: str, folders: Iterable[str | None]) -> None:
        """Note that the mailbox has these folders. A folder id that two mailboxes have proves nothing any more."""
        known = self._folders
        for folder in folders:
            if folder is None:
                continue
            key = hash(folder)
            owner = known.get(key)
            if owner is None:
                if len(known) < MAX_FOLDERS:
                    known[key] = mailbox
            elif owner != mailbox:
                known[key] = AMBIGUOUS

    def owns_folders(self, mailbox: str, folders: Iterable[str | None]) -> bool | None:
        """Return whether events in these folders are the mailbox's; None if the folders are not known."""
        owners = {self._folders.get(hash(folder)) for folder in folders if folder is not None}
        owners -= {None, AMBIGUOUS}
        return None if not owners else owners == {mailbox}


# Folder hashes. This many take about 20 MB.
MAX_FOLDERS = 200_000

AMBIGUOUS = ""
