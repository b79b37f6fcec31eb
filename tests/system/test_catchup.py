"""What comparisons find, through a real daemon: phantoms, replaced mailboxes, streams that a proxy holds back."""

import time

from tests.system.processes import Listen, Simulator, Start, until
from tests.system.test_restart import requests

FAST = """
[catch_up]
interval = "1s"
idle_interval = "1s"

[log]
level = "debug"
"""


def items(there: Simulator, *words: str) -> list[tuple[str, str]]:
    """Word and subject of the item events that were delivered, in order."""
    found = []
    for event in there.deliveries:
        kind = event["type"].removeprefix("exchange.item.")
        if kind in words:
            found.append((kind, event["subject"]))
    return found


def test_what_goes_while_a_comparison_waits_is_not_reported_as_there(
    simulator: Start, listen: Listen
) -> None:
    there = simulator("--mailboxes", "1", "--backends", "1")
    (ann,) = there.mailboxes
    daemon = listen(there)
    there.until_streaming(1)
    until(lambda: requests(there, "FindFolder") == 1, "the first look")
    time.sleep(1.1)  # what is of the second of the first subscription is left to the stream
    # What comes now is lost with the subscription, and the comparison that follows finds it.
    there.inject_fault(kind="silent_subscription", mailbox=ann, seconds=30)
    mail = there.create_events(ann, "CreatedEvent")[0]["item_id"]
    there.inject_fault(kind="backend_restart")
    until(lambda: requests(there, "SyncFolderItems") >= 1, "the comparison")
    daemon.until_logged("catchup.started", mailbox=ann)
    gone = {
        line["item_id"] for line in there.create_events(ann, "DeletedEvent") if line["kind"] == "DeletedEvent"
    }
    assert gone == {mail}
    daemon.until_logged("catchup.finished", mailbox=ann)
    words = [kind for kind, id_ in items(there, "created", "modified", "new_mail", "deleted") if id_ == mail]
    assert words == ["deleted"]
    assert daemon.stop() == 0


def test_a_mailbox_that_was_replaced_is_reported_once(simulator: Start, listen: Listen) -> None:
    there = simulator("--mailboxes", "3", "--backends", "1")
    there.append_config('\n[log]\nlevel = "debug"\n')
    ann = there.mailboxes[0]
    there.create_events(ann, count=5)
    daemon = listen(there)
    daemon.until_logged("catchup.ready", mailbox=ann)
    there.create_events(ann)
    until(lambda: items(there, "new_mail"), "a live event")
    before = len(there.deliveries)
    there.inject_fault(kind="mailbox_replaced", mailbox=ann)
    daemon.until_logged("catchup.reset", mailbox=ann)
    daemon.until_logged("catchup.finished", mailbox=ann)
    after = [event["type"] for event in there.deliveries[before:]]
    assert not [kind for kind in after if not kind.startswith("exchange.listener.")]
    assert len(daemon.logged("catchup.reset")) == 1
    lines = there.create_events(ann)
    (mail,) = {line["item_id"] for line in lines if line["kind"] == "NewMailEvent"}
    until(lambda: ("new_mail", mail) in items(there, "new_mail"), "an event of the new mailbox")
    assert daemon.stop() == 0


def test_behind_a_proxy_that_buffers_streams_mailboxes_are_compared(simulator: Start, listen: Listen) -> None:
    there = simulator("--mailboxes", "3", "--backends", "1", "--heartbeat", "1")
    there.append_config(FAST)
    there.replace_config("[exchange]", '[exchange]\nrequest_timeout = "2s"')
    for mailbox in there.mailboxes:
        there.create_events(mailbox, count=2)
    there.inject_fault(kind="buffered_streams", seconds=600)
    daemon = listen(there)
    until(lambda: there.state()["subscriptions"] == 3, "subscriptions")
    time.sleep(1.1)  # what is of the second of the first subscription is left to the stream
    made = set()
    for mailbox in there.mailboxes:
        made |= {line["item_id"] for line in there.create_events(mailbox) if line["kind"] == "NewMailEvent"}
    until(lambda: {id_ for _, id_ in items(there, "new_mail")} == made, "what came without a stream")
    assert sorted(items(there, "new_mail")) == sorted(("new_mail", id_) for id_ in made)
    assert len(daemon.logged("catchup.without_stream")) == 1
    # The proxy is put right: the streams come back, and bring nothing twice.
    there.end_faults()
    daemon.until_logged("group.streaming")
    daemon.until_logged("catchup.finished", 3)
    last = {
        line["item_id"] for line in there.create_events(there.mailboxes[0]) if line["kind"] == "NewMailEvent"
    }
    until(lambda: {id_ for _, id_ in items(there, "new_mail")} == made | last, "what came with a stream")
    assert len(items(there, "new_mail")) == 4
    assert daemon.stop() == 0
