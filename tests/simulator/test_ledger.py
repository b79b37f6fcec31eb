import json
from pathlib import Path
from uuid import UUID

from listener.simulator.ledger import Ledger
from listener.simulator.mailstore import Mailbox


def test_one_line_a_change(tmp_path: Path) -> None:
    mailbox = Mailbox("alice@contoso.example", "Alice", UUID(int=1), 0.0)
    events = mailbox.deliver("Hello", "bob@fabrikam.example", 1700000000.25)
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        for event in events:
            ledger.enter(event)
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


def test_without_a_file_it_counts() -> None:
    mailbox = Mailbox("alice@contoso.example", "Alice", UUID(int=1), 0.0)
    with Ledger(None) as ledger:
        for event in mailbox.deliver("Hello", "bob@fabrikam.example", 1.0):
            ledger.enter(event)
        assert ledger.count == 3
