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


def items(exchange: Simulator, *kinds: str) -> list[tuple[str, str]]:
    """Return (type, subject) of the delivered item events of these types, in order."""
    found = []
    for event in exchange.deliveries:
        kind = event["type"].removeprefix("exchange.item.")
        if kind in kinds:
            found.append((kind, event["subject"]))
    return found


def test_item_deleted_during_catchup_is_not_reported_as_created(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--mailboxes", "1", "--backends", "1")
    (ann,) = exchange.mailboxes
    daemon = listen(exchange)
    exchange.until_streaming(1)
    until(lambda: requests(exchange, "FindFolder") == 1, "the first snapshot")
    time.sleep(1.1)  # catch-up skips changes of the second of the first Subscribe: the stream reports them
    # The next event is lost with the subscription. The following catch-up finds it.
    exchange.inject_fault(kind="silent_subscription", mailbox=ann, seconds=30)
    mail = exchange.create_events(ann, "CreatedEvent")[0]["item_id"]
    exchange.inject_fault(kind="backend_restart")
    until(lambda: requests(exchange, "SyncFolderItems") >= 1, "the catch-up")
    daemon.until_logged("catchup.started", mailbox=ann)
    deleted = {
        line["item_id"]
        for line in exchange.create_events(ann, "DeletedEvent")
        if line["kind"] == "DeletedEvent"
    }
    assert deleted == {mail}
    daemon.until_logged("catchup.finished", mailbox=ann)
    kinds = [
        kind for kind, id_ in items(exchange, "created", "modified", "new_mail", "deleted") if id_ == mail
    ]
    assert kinds == ["deleted"]
    assert daemon.stop() == 0


def test_replaced_mailbox_is_reported_once(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--mailboxes", "3", "--backends", "1")
    exchange.append_config('\n[log]\nlevel = "debug"\n')
    ann = exchange.mailboxes[0]
    exchange.create_events(ann, count=5)
    daemon = listen(exchange)
    daemon.until_logged("catchup.ready", mailbox=ann)
    exchange.create_events(ann)
    until(lambda: items(exchange, "new_mail"), "a live event")
    before = len(exchange.deliveries)
    exchange.inject_fault(kind="mailbox_replaced", mailbox=ann)
    daemon.until_logged("catchup.reset", mailbox=ann)
    daemon.until_logged("catchup.finished", mailbox=ann)
    after = [event["type"] for event in exchange.deliveries[before:]]
    assert not [kind for kind in after if not kind.startswith("exchange.listener.")]
    assert len(daemon.logged("catchup.reset")) == 1
    lines = exchange.create_events(ann)
    (mail,) = {line["item_id"] for line in lines if line["kind"] == "NewMailEvent"}
    until(lambda: ("new_mail", mail) in items(exchange, "new_mail"), "an event of the new mailbox")
    assert daemon.stop() == 0


def test_catchup_runs_when_a_proxy_buffers_streams(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--mailboxes", "3", "--backends", "1", "--heartbeat", "1")
    exchange.append_config(FAST_CATCH_UP)
    exchange.replace_config("[exchange]", '[exchange]\nrequest_timeout = "2s"')
    for mailbox in exchange.mailboxes:
        exchange.create_events(mailbox, count=2)
    exchange.inject_fault(kind="buffered_streams", seconds=600)
    daemon = listen(exchange)
    until(lambda: exchange.state()["subscriptions"] == 3, "subscriptions")
    time.sleep(1.1)  # catch-up skips changes of the second of the first Subscribe: the stream reports them
    made = set()
    for mailbox in exchange.mailboxes:
        made |= {
            line["item_id"] for line in exchange.create_events(mailbox) if line["kind"] == "NewMailEvent"
        }
    until(lambda: {id_ for _, id_ in items(exchange, "new_mail")} == made, "the events that catch-up found")
    assert sorted(items(exchange, "new_mail")) == sorted(("new_mail", id_) for id_ in made)
    assert len(daemon.logged("catchup.without_stream")) == 1
    # After the proxy is fixed, the streams recover without duplicates.
    exchange.end_faults()
    daemon.until_logged("group.streaming")
    daemon.until_logged("catchup.finished", 3)
    last = {
        line["item_id"]
        for line in exchange.create_events(exchange.mailboxes[0])
        if line["kind"] == "NewMailEvent"
    }
    until(lambda: {id_ for _, id_ in items(exchange, "new_mail")} == made | last, "the event from the stream")
    assert len(items(exchange, "new_mail")) == 4
    assert daemon.stop() == 0
