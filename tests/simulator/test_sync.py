"""Synchronization without the wire format."""

from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import compress
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.simulator.mailstore import Folder, Item, Mailbox
from listener.simulator.responses import Failure
from listener.simulator.sync import (
    FoldersState,
    ItemsState,
    decode,
    encode,
    folder_changes,
    item_changes,
)

GUID = UUID("6b0d3a52-7c1e-4f0a-9d55-0123456789ab")
ALL = 512
# Duplicates make an action more frequent.
ACTIONS = (
    *("deliver", "deliver", "read", "unread", "edit", "copy", "out", "in", "around", "purge", "purge"),
    *("fetch", "fetch", "fork", "switch"),
)


def new_mailbox(tombstones: int = 1000) -> Mailbox:
    return Mailbox("alice@contoso.example", "Alice", GUID, 1000.0, tombstones=tombstones)


def inbox_with(mailbox: Mailbox, count: int) -> tuple[Folder, list[Item]]:
    """Return the inbox with this many emails, oldest first."""
    for number in range(count):
        mailbox.deliver(f"Mail {number}", "bob@fabrikam.example", 1001.0 + number)
    inbox = mailbox.distinguished("inbox")
    return inbox, list(inbox.items.values())


def changes_since(
    mailbox: Mailbox, folder: Folder, state: ItemsState | None, limit: int = ALL
) -> tuple[list[tuple[str, str]], ItemsState]:
    """Return (kind, id) of all changes, and the final state."""
    found, last = [], False
    while not last:
        changes, state, last = item_changes(mailbox, folder, state, limit)
        assert len(changes) <= limit
        found += [(change.kind, change.item_id) for change in changes]
    assert state is not None
    return found, state


@contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(Failure) as caught:
        yield
    assert (caught.value.code, caught.value.fault) == ("ErrorInvalidSyncStateData", False)


# -- items ---------------------------------------------------------------------------------------------------


def test_first_sync_creates_all_items_newest_first() -> None:
    mailbox = new_mailbox()
    inbox, items = inbox_with(mailbox, 5)
    mailbox.edit(items[1], "Changed lately", 1100.0)
    order = [items[n].id for n in (1, 4, 3, 2, 0)]
    for limit in (1, 2, 3, 5, ALL):
        assert changes_since(mailbox, inbox, None, limit)[0] == [("Create", id_) for id_ in order]


def test_last_page_is_marked() -> None:
    mailbox = new_mailbox()
    inbox, _ = inbox_with(mailbox, 4)
    _, state, last = item_changes(mailbox, inbox, None, 2)
    assert not last
    _, state, last = item_changes(mailbox, inbox, state, 2)
    assert last
    assert item_changes(mailbox, inbox, state, 2) == ([], state, True)


def test_empty_folder() -> None:
    mailbox = new_mailbox()
    changes, state, last = item_changes(mailbox, mailbox.distinguished("notes"), None, ALL)
    assert (changes, last) == ([], True)
    mailbox.save(mailbox.distinguished("notes"), "IPM.StickyNote", "x", 1001.0)
    assert [kind for kind, _ in changes_since(mailbox, mailbox.distinguished("notes"), state)[0]] == [
        "Create"
    ]


def test_one_change_per_item() -> None:
    mailbox = new_mailbox()
    junk = mailbox.distinguished("junkemail")
    inbox, (edited, read, both, gone, moved, still) = inbox_with(mailbox, 6)
    gone_id, moved_id = gone.id, moved.id
    _, state = changes_since(mailbox, inbox, None)
    mailbox.edit(edited, "1", 1101.0)
    mailbox.edit(edited, "2", 1102.0)
    mailbox.mark(read, 1103.0, read=True)
    mailbox.edit(both, "3", 1104.0)
    mailbox.mark(both, 1105.0, read=True)
    mailbox.edit(gone, "4", 1106.0)
    mailbox.purge(gone, 1107.0)
    mailbox.move(moved, junk, 1108.0)
    mailbox.deliver("never seen", "bob@fabrikam.example", 1109.0)
    mailbox.purge(mailbox.latest(inbox, 1)[0], 1110.0)
    mailbox.deliver("new", "bob@fabrikam.example", 1111.0)
    mailbox.mark(mailbox.latest(inbox, 1)[0], 1112.0, read=True)
    changes, state = changes_since(mailbox, inbox, state)
    assert changes == [
        ("Create", mailbox.latest(inbox, 1)[0].id),
        ("Delete", moved_id),
        ("Delete", gone_id),
        ("Update", both.id),
        ("ReadFlagChange", read.id),
        ("Update", edited.id),
    ]
    assert still.id not in dict(changes)
    assert changes_since(mailbox, junk, None)[0] == [("Create", moved.id)]
    mailbox.move(moved, inbox, 1113.0)
    assert changes_since(mailbox, inbox, state)[0] == [("Create", moved.id)]


def test_item_of_an_earlier_page_that_changes_again_is_an_update() -> None:
    mailbox = new_mailbox()
    inbox, (first, second, third) = inbox_with(mailbox, 3)
    mailbox.edit(first, "a", 1100.0)
    changes, state, _ = item_changes(mailbox, inbox, None, 1)
    assert [(change.kind, change.item_id) for change in changes] == [("Create", first.id)]
    mailbox.mark(first, 1101.0, read=True)
    mailbox.edit(second, "b", 1102.0)
    assert changes_since(mailbox, inbox, state, 1)[0] == [
        ("Create", second.id),
        ("ReadFlagChange", first.id),
        ("Create", third.id),
    ]


def test_move_within_a_folder_is_two_changes() -> None:
    mailbox = new_mailbox()
    inbox, (item,) = inbox_with(mailbox, 1)
    old_id = item.id
    _, state = changes_since(mailbox, inbox, None)
    mailbox.move(item, inbox, 1100.0)
    assert sorted(changes_since(mailbox, inbox, state, 1)[0]) == [("Create", item.id), ("Delete", old_id)]


def test_ignored_items_count_as_known() -> None:
    mailbox = new_mailbox()
    inbox, (first, second) = inbox_with(mailbox, 2)
    changes, state, _ = item_changes(mailbox, inbox, None, ALL, [first.id])
    assert [change.item_id for change in changes] == [second.id]
    mailbox.edit(first, "x", 1100.0)
    assert changes_since(mailbox, inbox, state)[0] == [("Update", first.id)]


def test_state_is_refused_if_a_needed_tombstone_was_dropped() -> None:
    mailbox = new_mailbox(tombstones=2)
    inbox, items = inbox_with(mailbox, 5)
    _, old = changes_since(mailbox, inbox, None)
    for item in items[:2]:
        mailbox.purge(item, 1100.0)
    assert len(changes_since(mailbox, inbox, old)[0]) == 2
    mailbox.purge(items[2], 1101.0)
    with refused():
        item_changes(mailbox, inbox, old, ALL)
    _, young = changes_since(mailbox, inbox, None)
    for item in items[3:]:
        mailbox.purge(item, 1102.0)
    assert len(changes_since(mailbox, inbox, young)[0]) == 2
    assert len(inbox.deleted) == 2
    assert inbox.deleted_total == 5


def test_tombstone_dropped_between_two_pages() -> None:
    mailbox = new_mailbox(tombstones=1)
    inbox, (first, second, _) = inbox_with(mailbox, 3)
    _, state = changes_since(mailbox, inbox, None)
    mailbox.purge(first, 1100.0)
    mailbox.deliver("new", "bob@fabrikam.example", 1101.0)
    _, state, last = item_changes(mailbox, inbox, state, 1)
    assert not last
    mailbox.purge(second, 1102.0)
    with refused():
        item_changes(mailbox, inbox, state, 1)


def test_invalid_states() -> None:
    mailbox, other = new_mailbox(), new_mailbox()
    inbox, _ = inbox_with(mailbox, 2)
    _, state = changes_since(mailbox, inbox, None)
    with refused():
        item_changes(mailbox, mailbox.distinguished("drafts"), state, ALL)
    _, folders = folder_changes(other, None, None)
    with refused():
        decode(encode(folders), ItemsState)
    with refused():
        decode(encode(state), FoldersState)
    newer = b64encode(compress(b'["items",2,0,"x",[]]')).decode()
    for text in ("!", "YWJj", b64encode(b"abc").decode(), encode(state)[:-8], encode(state)[:40], newer):
        with refused():
            decode(text, ItemsState)


def test_mailbox_with_lost_sync_states() -> None:
    mailbox = new_mailbox()
    inbox, items = inbox_with(mailbox, 2)
    _, state = changes_since(mailbox, inbox, None)
    _, folders = folder_changes(mailbox, inbox, None)
    mailbox.lose_sync_states(quietly=False)
    with refused():
        item_changes(mailbox, inbox, state, ALL)
    with refused():
        folder_changes(mailbox, inbox, folders)
    _, state = changes_since(mailbox, inbox, None)
    _, folders = folder_changes(mailbox, None, None)
    assert changes_since(mailbox, inbox, state)[0] == []
    mailbox.lose_sync_states(quietly=True)
    assert changes_since(mailbox, inbox, state)[0] == [("Create", item.id) for item in reversed(items)]
    changes, _ = folder_changes(mailbox, None, folders)
    assert {change.folder_id for change in changes} == mailbox.folders.keys() - {
        mailbox.distinguished("root").id
    }


@given(st.tuples(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=4), st.integers(0, 99)))
def test_state_round_trips(given: tuple[list[tuple[int, int]], int]) -> None:
    seen, epoch = given
    state = ItemsState(1, epoch, "AAMk", tuple(seen))
    assert decode(encode(state), ItemsState) == state
    assert encode(state).startswith("H4sI")


class SyncClient:
    """A client's copy of the folder: the subject and read flag by item id."""

    def __init__(self, mailbox: Mailbox, folder: Folder) -> None:
        self.state: ItemsState | None = None
        self.items: dict[str, tuple[str, bool]] = {}
        self.refusals: list[str] = []
        self._mailbox = mailbox
        self._folder = folder

    def fork(self) -> "SyncClient":
        duplicate = SyncClient(self._mailbox, self._folder)
        duplicate.state, duplicate.items = self.state, dict(self.items)
        return duplicate

    def fetch(self, limit: int) -> bool:
        """Fetch one page and return whether it was the last. A refused state is discarded."""
        if self.state:
            self.state = decode(encode(self.state), ItemsState)
        try:
            changes, self.state, last = item_changes(self._mailbox, self._folder, self.state, limit)
        except Failure as failure:
            self.refusals.append(failure.code)
            self.state, self.items = None, {}
            return False
        assert len(changes) <= limit
        assert len({change.item_id for change in changes}) == len(changes)
        for kind, id_, item in changes:
            assert (kind == "Create") == (id_ not in self.items)
            if item is None:
                assert kind == "Delete"
                del self.items[id_]
                continue
            if kind == "ReadFlagChange":
                assert item.subject == self.items[id_][0]
            self.items[id_] = (item.subject, item.read)
        return last


@given(
    st.lists(
        st.tuples(
            st.sampled_from(ACTIONS),
            st.integers(0, 5),
        ),
        max_size=60,
    ),
    st.sampled_from([1, 3, 1000]),
)
def test_client_converges_to_the_folder_from_any_state(steps: list[tuple[str, int]], tombstones: int) -> None:
    mailbox = new_mailbox(tombstones)
    inbox, junk = mailbox.distinguished("inbox"), mailbox.distinguished("junkemail")
    clients = [SyncClient(mailbox, inbox)]
    for number, (action, which) in enumerate(steps):
        now = 1001.0 + number
        items = list(inbox.items.values())
        item = items[which % len(items)] if items else None
        if action == "deliver":
            mailbox.deliver(f"mail {number}", "y@z.example", now)
        elif action == "fetch":
            clients[-1].fetch(which + 1)
        elif action == "fork":
            clients.append(clients[-1].fork())
        elif action == "switch":
            clients.append(clients.pop(which % len(clients)))
        elif action == "in" and junk.items:
            mailbox.move(mailbox.latest(junk, 1)[0], inbox, now)
        elif item is None:
            continue
        elif action in ("read", "unread"):
            mailbox.mark(item, now, read=action == "read")
        elif action == "edit":
            mailbox.edit(item, f"edited {number}", now)
        elif action == "copy":
            mailbox.copy(item, inbox, now)
        elif action == "purge":
            mailbox.purge(item, now)
        elif action in ("out", "around"):
            mailbox.move(item, junk if action == "out" else inbox, now)
    expected = {id_: (item.subject, item.read) for id_, item in inbox.items.items()}
    for number, client in enumerate(clients):
        for _ in range(len(steps) + 2):
            if client.fetch(number % 3 + 1):
                break
        assert client.items == expected
        assert set(client.refusals) <= ({"ErrorInvalidSyncStateData"} if tombstones < 1000 else set())
        assert client.fetch(1)
        assert client.items == expected


# -- folders -------------------------------------------------------------------------------------------------


def folder_kinds(
    mailbox: Mailbox, root: Folder | None, state: FoldersState | None
) -> tuple[list[tuple[str, str]], FoldersState]:
    changes, after = folder_changes(mailbox, root, state)
    return [(change.kind, change.folder_id) for change in changes], after


def test_created_changed_and_deleted_folders() -> None:
    mailbox = new_mailbox()
    top, inbox = mailbox.distinguished("msgfolderroot"), mailbox.distinguished("inbox")
    first, state = folder_kinds(mailbox, top, None)
    assert first == [("Create", folder.id) for folder in mailbox.below(top)]
    mailbox.deliver("x", "y@z.example", 1001.0)
    changes, state = folder_kinds(mailbox, top, state)
    assert changes == [], "a change of the content is not a change of the folder"
    for name in ("A", "B", "C"):
        mailbox.create_folder(name, inbox, 1002.0)
    a, b, c = mailbox.own_folders()
    mailbox.purge_folder(c, 1003.0)
    mailbox.rename_folder(a, "A2", 1004.0)
    changes, state = folder_kinds(mailbox, top, state)
    assert changes == [("Create", a.id), ("Create", b.id)]
    mailbox.rename_folder(a, "A3", 1005.0)
    mailbox.move_folder(b, a, 1006.0)
    changes, later = folder_kinds(mailbox, top, state)
    assert changes == [("Update", a.id), ("Update", b.id)]
    mailbox.purge_folder(a, 1007.0)
    assert folder_kinds(mailbox, top, state)[0] == [("Delete", a.id), ("Delete", b.id)]
    assert folder_kinds(mailbox, top, later)[0] == [("Delete", a.id), ("Delete", b.id)]


def test_folder_moved_out_of_the_root_is_a_delete() -> None:
    mailbox = new_mailbox()
    inbox, deleted_items = mailbox.distinguished("inbox"), mailbox.distinguished("deleteditems")
    mailbox.create_folder("A", inbox, 1001.0)
    (folder,) = mailbox.own_folders()
    _, in_inbox = folder_kinds(mailbox, inbox, None)
    _, in_bin = folder_kinds(mailbox, deleted_items, None)
    mailbox.move_folder(folder, deleted_items, 1002.0)
    assert folder_kinds(mailbox, inbox, in_inbox)[0] == [("Delete", folder.id)]
    assert folder_kinds(mailbox, deleted_items, in_bin)[0] == [("Create", folder.id)]


def test_state_is_valid_for_one_root_only() -> None:
    mailbox = new_mailbox()
    root = mailbox.distinguished("root")
    _, of_root = folder_kinds(mailbox, root, None)
    _, of_none = folder_kinds(mailbox, None, None)
    for wrong, state in ((None, of_root), (root, of_none), (mailbox.distinguished("inbox"), of_root)):
        with refused():
            folder_changes(mailbox, wrong, state)
    with refused():
        folder_changes(Mailbox("bob@contoso.example", "Bob", UUID(int=7), 1000.0), None, of_none)


@given(
    st.lists(
        st.tuples(st.sampled_from(["create", "rename", "move", "purge", "sync"]), st.integers(0, 5)),
        max_size=30,
    )
)
def test_client_converges_to_the_folders(steps: list[tuple[str, int]]) -> None:
    mailbox = new_mailbox()
    inbox, top = mailbox.distinguished("inbox"), mailbox.distinguished("msgfolderroot")
    state: FoldersState | None = None
    known: dict[str, tuple[str, Folder | None]] = {}

    def fetch() -> None:
        nonlocal state
        changes, state = folder_changes(mailbox, top, state and decode(encode(state), FoldersState))
        for kind, id_, folder in changes:
            assert (kind == "Create") == (id_ not in known)
            if folder is None:
                assert kind == "Delete"
                del known[id_]
            else:
                known[id_] = (folder.name, folder.parent)

    for number, (action, which) in enumerate(steps):
        now, own = 1001.0 + number, [f for f in mailbox.folders.values() if f.distinguished is None]
        folder = own[which % len(own)] if own else None
        if action == "sync":
            fetch()
        elif action == "create":
            mailbox.create_folder(f"folder {number}", folder or inbox, now)
        elif folder is None:
            continue
        elif action == "rename":
            mailbox.rename_folder(folder, f"renamed {number}", now)
        elif action == "move":
            mailbox.move_folder(folder, top if folder.parent is inbox else inbox, now)
        else:
            mailbox.purge_folder(folder, now)
    fetch()
    assert known == {folder.id: (folder.name, folder.parent) for folder in mailbox.below(top)}
