"""A subscription that tells nothing any more, while heart-beats go on: comparing with the mailbox finds it."""

import time
from pathlib import Path

from tests.system.ledger import compare_with_ledger
from tests.system.processes import Listen, Start, until

INTERVAL = 3.0


def test_what_a_silent_subscription_keeps_back_comes_within_one_sweep(
    simulator: Start, listen: Listen, tmp_path: Path
) -> None:
    ledger, output = tmp_path / "ledger.jsonl", tmp_path / "deliveries.jsonl"
    there = simulator("--heartbeat", "0.5", "--ledger", str(ledger), "--backends", "1")
    there.append_config(f'\n[catch_up]\ninterval = "{INTERVAL:g}s"\n\n[log]\nlevel = "debug"\n')
    daemon = listen(there)
    there.until_streaming(4)
    listening = time.monotonic()
    ann, bob, *_ = there.mailboxes
    daemon.until_logged("catchup.ready", mailbox=ann)
    before = there.create_events(ann)
    until(lambda: len(there.deliveries) == len(before), "events before")
    # Of the second of the first Subscribe a comparison cannot tell what is new.
    until(lambda: time.monotonic() > listening + 1.0, "the next second")
    there.inject_fault(kind="silent_subscription", mailbox=ann, seconds=600)

    started_at, swept = time.monotonic(), len(daemon.logged("sweep.finished", mailbox=ann))
    kept_back = there.create_events(ann, count=3)
    others = there.create_events(bob, count=3)
    until(lambda: len(there.deliveries) == len(before) + len(others), "the events of others")
    assert {event["data"]["mailbox"] for event in there.deliveries[len(before) :]} == {bob}
    until(lambda: compare_with_ledger(ledger, output).lost == 0, "what was kept back")
    took = time.monotonic() - started_at
    verdict = compare_with_ledger(ledger, output)
    found = [event for event in there.deliveries if event["data"].get("recovered")]
    assert {event["data"]["mailbox"] for event in found} == {ann}
    assert verdict.unseen == 0
    daemon.until_logged("subscription.stalled", mailbox=ann)
    # A sweep that was under way may have been too early to see them.
    missed = [line["missed"] for line in daemon.logged("sweep.finished", mailbox=ann)[swept:]]
    assert max(missed[:2]) == len({line["item_id"] for line in kept_back if line.get("item_id")})
    print(f"{len(kept_back)} changes found {took:.1f} s after they were made; a sweep every {INTERVAL:g} s")

    # It has a new subscription, which speaks.
    so_far = len(there.deliveries)
    until(lambda: there.state()["requests"]["Subscribe"] == {"200": 5}, "a new subscription")
    there.until_streaming(4)
    again = there.create_events(ann)
    until(lambda: len(there.deliveries) == so_far + len(again), "events of the new subscription")
    assert not there.deliveries[-1]["data"].get("recovered")
    assert not daemon.logged("group.backoff")
    assert daemon.stop() == 0
