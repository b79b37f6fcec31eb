import json
from pathlib import Path
from random import Random
from uuid import UUID

import pytest

from listener.simulator.ledger import Ledger
from listener.simulator.mailstore import KINDS, Folder, Item, Mailbox
from listener.simulator.traffic import make


def test_one_line_per_change(tmp_path: Path) -> None:
    mailbox = Mailbox("alice@contoso.example", "Alice", UUID(int=1), 0.0)
    events = mailbox.deliver("Hello", "bob@fabrikam.example", 1700000000.25)
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        for event in events:
            ledger.record(event)
        ledger.flush()
        lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [line["seq"] for line in lines] == [1, 2, 3]
    assert [line["kind"] for line in lines] == ["CreatedEvent", "NewMailEvent", "ModifiedEvent"]
    inbox = mailbox.distinguished("inbox").id
    assert lines[0] == {
        "seq": 1,
        "time": 1700000000.25,
        "mailbox": "alice@contoso.example",
        "kind": "CreatedEvent",
        "item_id": events[0].item_id,
        "parent_folder_id": inbox,
        "change_key": events[0].change_key,
    }
    assert lines[2]["folder_id"] == inbox
    assert "item_id" not in lines[2]


def test_without_a_file_it_only_counts() -> None:
    mailbox = Mailbox("alice@contoso.example", "Alice", UUID(int=1), 0.0)
    with Ledger(None) as ledger:
        for event in mailbox.deliver("Hello", "bob@fabrikam.example", 1.0):
            ledger.record(event)
        assert ledger.count == 3


@pytest.mark.parametrize("kind", KINDS)
def test_every_line_has_the_ids_and_change_key(kind: str) -> None:
    mailbox = Mailbox("alice@contoso.example", "Alice", UUID(int=1), 0.0)
    lines = [Ledger(None).record(event) for event in make(mailbox, kind, Random(1), 1.0)]
    assert any(line.kind == kind for line in lines)
    # Each state of an object has its own change key, and the last one is what the server reports now.
    keys = {line.item_id or line.folder_id: line.change_key for line in lines}
    things: list[Item | Folder] = list(mailbox.folders.values())
    things += [item for folder in mailbox.folders.values() for item in folder.items.values()]
    for thing in things:
        assert keys.get(thing.id) in (None, mailbox.change_key(thing))
    for line in lines:
        assert line.change_key
        assert line.parent_folder_id
        assert (line.item_id is None) != (line.folder_id is None)
        assert (line.old_id is not None) == (line.kind in ("MovedEvent", "CopiedEvent"))
