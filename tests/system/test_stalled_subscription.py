"""A subscription that delivers no events while heartbeats continue: a sweep of the mailbox detects it."""

import time
from pathlib import Path

from tests.system.ledger import compare_with_ledger
from tests.system.processes import Listen, Start, until

INTERVAL = 3.0


def test_one_sweep_recovers_the_events_of_a_stalled_subscription(
    simulator: Start, listen: Listen, tmp_path: Path
) -> None:
    ledger, output = tmp_path / "ledger.jsonl", tmp_path / "deliveries.jsonl"
    exchange = simulator("--heartbeat", "0.5", "--ledger", str(ledger), "--backends", "1")
    exchange.append_config(f'\n[catch_up]\ninterval = "{INTERVAL:g}s"\n\n[log]\nlevel = "debug"\n')
    daemon = listen(exchange)
    exchange.until_streaming(4)
    streaming_since = time.monotonic()
    ann, bob, *_ = exchange.mailboxes
    daemon.until_logged("catchup.ready", mailbox=ann)
    before = exchange.create_events(ann)
    until(lambda: len(exchange.deliveries) == len(before), "the events before the stall")
    # A sweep cannot distinguish old from new changes within the second of the first Subscribe.
    until(lambda: time.monotonic() > streaming_since + 1.0, "the next second")
    exchange.inject_fault(kind="silent_subscription", mailbox=ann, seconds=600)

    started_at, sweeps = time.monotonic(), len(daemon.logged("sweep.finished", mailbox=ann))
    withheld = exchange.create_events(ann, count=3)
    others = exchange.create_events(bob, count=3)
    until(lambda: len(exchange.deliveries) == len(before) + len(others), "the events of the other mailbox")
    assert {event["data"]["mailbox"] for event in exchange.deliveries[len(before) :]} == {bob}
    until(lambda: compare_with_ledger(ledger, output).lost == 0, "the withheld events")
    duration = time.monotonic() - started_at
    verdict = compare_with_ledger(ledger, output)
    recovered = [event for event in exchange.deliveries if event["data"].get("recovered")]
    assert {event["data"]["mailbox"] for event in recovered} == {ann}
    assert verdict.unseen == 0
    daemon.until_logged("subscription.stalled", mailbox=ann)
    # A sweep that had already started may miss them.
    missed = [line["missed"] for line in daemon.logged("sweep.finished", mailbox=ann)[sweeps:]]
    assert max(missed[:2]) == len({line["item_id"] for line in withheld if line.get("item_id")})
    print(
        f"{len(withheld)} changes found {duration:.1f} s after they were made; a sweep every {INTERVAL:g} s"
    )

    # The new subscription delivers events.
    count = len(exchange.deliveries)
    until(lambda: exchange.state()["requests"]["Subscribe"] == {"200": 5}, "a new subscription")
    exchange.until_streaming(4)
    new = exchange.create_events(ann)
    until(lambda: len(exchange.deliveries) == count + len(new), "events of the new subscription")
    assert not exchange.deliveries[-1]["data"].get("recovered")
    assert not daemon.logged("group.backoff")
    assert daemon.stop() == 0
