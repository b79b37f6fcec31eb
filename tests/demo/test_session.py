"""The summary of the demo."""

from pathlib import Path

from structlog.testing import capture_logs

from listener.demo.session import Plan, Session

LINE = b'{"seq":1,"time":1767225600.25,"kind":"CreatedEvent","mailbox":"ann@x.example","item_id":"one"}\n'


def test_lost_changes_are_logged(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_bytes(LINE)
    plan = Plan(mailboxes=1, rate=1, seed=1, duration=1, faults="none", auth="basic")
    with capture_logs() as lines:
        summary = Session(plan, tmp_path).summary()
    assert (summary["generated"], summary["lost"]) == (1, 1)
    (line,) = lines
    assert line == {
        "event": "demo.lost",
        "log_level": "error",
        "mailbox": "ann@x.example",
        "type": "exchange.item.created",
        "subject": "one",
        "happened": "1767225600.250",
    }
