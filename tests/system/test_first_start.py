"""First and second start: changes from before the first subscription of a mailbox are not reported.

FIRST_START_SECONDS extends the first run. By default it ends after the first snapshot of each mailbox.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from tests.system.ledger import compare_with_ledger
from tests.system.processes import Listen, Simulator, Start, json_lines, until
from tests.system.test_restart import requests

MAILBOXES = 60
SECONDS = float(os.environ.get("FIRST_START_SECONDS", "0"))


def recovered(exchange: Simulator) -> list[dict[str, Any]]:
    return [event for event in exchange.deliveries if event["data"].get("recovered")]


def test_changes_before_the_first_start_are_not_reported_as_new(
    simulator: Start, listen: Listen, tmp_path: Path
) -> None:
    ledger, output = tmp_path / "ledger.jsonl", tmp_path / "deliveries.jsonl"
    exchange = simulator("--mailboxes", str(MAILBOXES), "--ledger", str(ledger))
    for mailbox in exchange.mailboxes:
        exchange.create_events(mailbox, count=3)
        exchange.create_events(mailbox, "ModifiedEvent", count=2)
    exchange.set_rate(40)
    time.sleep(1.5)  # these changes are older than the first start
    # A stream that ends within the second of its Subscribe may report changes that are up to a second older.
    first = time.time() - 1.0
    daemon = listen(exchange)
    exchange.until_streaming(MAILBOXES)
    streaming = time.time() + 1
    until(lambda: requests(exchange, "FindFolder") >= MAILBOXES, "a snapshot of every mailbox")
    time.sleep(max(0.0, first + SECONDS - time.time()))
    assert daemon.stop() == 0
    queued = exchange.state()["queued"]
    until(lambda: exchange.state()["queued"] >= queued + 40, "events while no daemon runs")
    daemon = listen(exchange)
    exchange.until_streaming(MAILBOXES)
    daemon.until_logged("catchup.finished", MAILBOXES)
    exchange.set_rate(0)
    until(lambda: lost(ledger, output, streaming) == 0, "all changes since the first start")
    assert daemon.stop() == 0

    lines = json_lines(ledger)
    made = {
        line.get("item_id") or line.get("folder_id"): line["time"]
        for line in lines
        if line["kind"] in ("CreatedEvent", "CopiedEvent", "MovedEvent")
    }
    old = [
        event
        for event in exchange.deliveries
        if event["type"].rpartition(".")[2] in ("created", "new_mail") and made[event["subject"]] < first
    ]
    # The subscriptions survive the restart, and the streams report nearly all changes in between. Catch-up finds only
    # changes whose notifications were in transit when the first process ended.
    live = {key(event) for event in exchange.deliveries if not event["data"].get("recovered")}
    changed = {line.get("item_id") or line.get("folder_id") for line in lines if line["time"] >= first}
    unexpected = [each for each in recovered(exchange) if key(each) in live or each["subject"] not in changed]
    print(
        f"{len(exchange.deliveries)} events, {len(recovered(exchange))} recovered, {len(old)} of them old, "
        f"{len(unexpected)} unexpected"
    )
    assert old == []
    assert unexpected == []


def key(event: dict[str, Any]) -> tuple[str, ...]:
    """Return what identifies the change of an event, live or recovered."""
    change_key = (
        "" if event["type"].endswith(("created", "new_mail")) else event["data"].get("change_key", "")
    )
    return event["type"], event["subject"], change_key


def lost(ledger: Path, output: Path, since: float) -> int:
    """Return the number of ledger changes since this time that were not reported."""
    part = ledger.with_name("part.jsonl")
    with part.open("w") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in json_lines(ledger) if line["time"] >= since)
    return compare_with_ledger(part, output).lost
