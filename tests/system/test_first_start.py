"""The first start and the second one: what was there before a mailbox was listened to is not reported.

FIRST_START_SECONDS makes the first run longer than it takes to look at each mailbox once.
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


def recovered(there: Simulator) -> list[dict[str, Any]]:
    return [event for event in there.deliveries if event["data"].get("recovered")]


def test_nothing_that_is_older_than_the_first_start_is_reported_as_new(
    simulator: Start, listen: Listen, tmp_path: Path
) -> None:
    ledger, output = tmp_path / "ledger.jsonl", tmp_path / "deliveries.jsonl"
    there = simulator("--mailboxes", str(MAILBOXES), "--ledger", str(ledger))
    for mailbox in there.mailboxes:
        there.create_events(mailbox, count=3)
        there.create_events(mailbox, "ModifiedEvent", count=2)
    there.set_rate(40)
    time.sleep(1.5)  # what happens now is older than the first start
    # A stream that ends within the second of its Subscribe may bring back what is up to a second older.
    first = time.time() - 1.0
    daemon = listen(there)
    there.until_streaming(MAILBOXES)
    streaming = time.time() + 1
    until(lambda: requests(there, "FindFolder") >= MAILBOXES, "all mailboxes looked at")
    time.sleep(max(0.0, first + SECONDS - time.time()))
    assert daemon.stop() == 0
    queued = there.state()["queued"]
    until(lambda: there.state()["queued"] >= queued + 40, "events while nobody listens")
    daemon = listen(there)
    there.until_streaming(MAILBOXES)
    daemon.until_logged("catchup.finished", MAILBOXES)
    there.set_rate(0)
    until(lambda: lost(ledger, output, streaming) == 0, "what happened since the first start")
    assert daemon.stop() == 0

    lines = json_lines(ledger)
    made = {
        line.get("item_id") or line.get("folder_id"): line["time"]
        for line in lines
        if line["kind"] in ("CreatedEvent", "CopiedEvent", "MovedEvent")
    }
    old = [
        event
        for event in there.deliveries
        if event["type"].rpartition(".")[2] in ("created", "new_mail") and made[event["subject"]] < first
    ]
    # The subscriptions live on, and the streams report nearly all that came meanwhile: only what was on its way when
    # the first process ended is found by comparing.
    live = {key(event) for event in there.deliveries if not event["data"].get("recovered")}
    changed = {line.get("item_id") or line.get("folder_id") for line in lines if line["time"] >= first}
    unexpected = [each for each in recovered(there) if key(each) in live or each["subject"] not in changed]
    print(
        f"{len(there.deliveries)} events, {len(recovered(there))} recovered, {len(old)} of them old, "
        f"{len(unexpected)} unexpected"
    )
    assert old == []
    assert unexpected == []


def key(event: dict[str, Any]) -> tuple[str, ...]:
    """What two reports of one change have in common."""
    state = "" if event["type"].endswith(("created", "new_mail")) else event["data"].get("change_key", "")
    return event["type"], event["subject"], state


def lost(ledger: Path, output: Path, since: float) -> int:
    """How many changes of the ledger since then were not reported."""
    part = ledger.with_name("part.jsonl")
    with part.open("w") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in json_lines(ledger) if line["time"] >= since)
    return compare_with_ledger(part, output).lost
