"""Catch-up of a real daemon: deleted items, replaced mailboxes, streams that a proxy buffers."""

import time

from tests.system.processes import Listen, Simulator, Start, until
from tests.system.test_restart import requests

FAST_CATCH_UP = """
[catch_up]
interval = "1s"
idle_interval = "1s"

[log]
level = "debug"
"""


def items(there: Simulator, *kinds: str) -> list[tuple[str, str]]:
    """Return (type, subject) of the delivered item events of these types, in order."""
    found = []
    for event in there.deliveries:
        kind = event["type"].removeprefix("exchange.item.")
        if kind in kinds:
            found.append((kind, event["subject"]))
    return found


def test_item_deleted_during_catchup_is_not_reported_as_created(simulator: Start, listen: Listen) -> None:
    there = simulator("--mailboxes", "1", "--backends", "1")
    (ann,) = there.mailboxes
    daemon = listen(there)
    there.until_streaming(1)
    until(lambda: requests(there, "FindFolder") == 1, "the first snapshot")
    time.sleep(1.1)  # catch-up skips changes of the second of the first Subscribe: the stream reports them
    # The next event is lost with the subscription. The following catch-up finds it.
    there.inject_fault(kind="silent_subscription", mailbox=ann, seconds=30)
    mail = there.create_events(ann, "CreatedEvent")[0]["item_id"]
    there.inject_fault(kind="backend_restart")
    until(lambda: requests(there, "SyncFolderItems") >= 1, "the catch-up")
    daemon.until_logged("catchup.started", mailbox=ann)
    deleted = {
        line["item_id"] for line in there.create_events(ann, "DeletedEvent") if line["kind"] == "DeletedEvent"
    }
    assert deleted == {mail}
    daemon.until_logged("catchup.finished", mailbox=ann)
    kinds = [kind for kind, id_ in items(there, "created", "modified", "new_mail", "deleted") if id_ == mail]
    assert kinds == ["deleted"]
    assert daemon.stop() == 0


def test_replaced_mailbox_is_reported_once(simulator: Start, listen: Listen) -> None:
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


def test_catchup_runs_when_a_proxy_buffers_streams(simulator: Start, listen: Listen) -> None:
    there = simulator("--mailboxes", "3", "--backends", "1", "--heartbeat", "1")
    there.append_config(FAST_CATCH_UP)
    there.replace_config("[exchange]", '[exchange]\nrequest_timeout = "2s"')
    for mailbox in there.mailboxes:
        there.create_events(mailbox, count=2)
    there.inject_fault(kind="buffered_streams", seconds=600)
    daemon = listen(there)
    until(lambda: there.state()["subscriptions"] == 3, "subscriptions")
    time.sleep(1.1)  # catch-up skips changes of the second of the first Subscribe: the stream reports them
    made = set()
    for mailbox in there.mailboxes:
        made |= {line["item_id"] for line in there.create_events(mailbox) if line["kind"] == "NewMailEvent"}
    until(lambda: {id_ for _, id_ in items(there, "new_mail")} == made, "the events that catch-up found")
    assert sorted(items(there, "new_mail")) == sorted(("new_mail", id_) for id_ in made)
    assert len(daemon.logged("catchup.without_stream")) == 1
    # After the proxy is fixed, the streams recover without duplicates.
    there.end_faults()
    daemon.until_logged("group.streaming")
    daemon.until_logged("catchup.finished", 3)
    last = {
        line["item_id"] for line in there.create_events(there.mailboxes[0]) if line["kind"] == "NewMailEvent"
    }
    until(lambda: {id_ for _, id_ in items(there, "new_mail")} == made | last, "the event from the stream")
    assert len(items(there, "new_mail")) == 4
    assert daemon.stop() == 0
