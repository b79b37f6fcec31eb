"""Restarts of the daemon after an orderly stop or a kill: it reuses its subscriptions and loses no event.

RESTART_MAILBOXES sets the number of mailboxes. The design target is 10000.
"""

import itertools
import json
import os
import re
import signal
import sys
import threading
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.system import forked
from tests.system.ledger import compare_with_ledger
from tests.system.processes import Listen, Listener, Recorder, Simulator, Start, until

MAILBOXES = int(os.environ.get("RESTART_MAILBOXES", "120"))
TIMEOUT = max(15.0, MAILBOXES / 50)
PERSIST_DELAY = 3.0  # seconds after which changes are on disk


def requests(exchange: Simulator, operation: str) -> int:
    """Return the number of requests of this operation that the simulator has received."""
    answers: dict[str, int] = exchange.state()["requests"].get(operation, {})
    return sum(answers.values())


class RequestCounter:
    """Counts the requests since its creation, by operation."""

    def __init__(self, exchange: Simulator) -> None:
        self._exchange = exchange
        self._before = exchange.state()["requests"]

    def __getitem__(self, operation: str) -> int:
        before: int = sum(self._before.get(operation, {}).values())
        return requests(self._exchange, operation) - before


def until_streaming(exchange: Simulator, mailboxes: int = 4) -> float:
    """Wait until this number of mailboxes stream; return the seconds that this took."""
    started_at = time.monotonic()
    reached = lambda: exchange.state()["mailboxes_streaming"] == mailboxes  # noqa: E731
    until(reached, f"{mailboxes} mailboxes streaming", TIMEOUT)
    return time.monotonic() - started_at


def until_no_streams(exchange: Simulator) -> None:
    until(lambda: exchange.state()["mailboxes_streaming"] == 0, "no open streams")


@contextmanager
def mail_traffic(exchange: Simulator) -> Iterator[None]:
    """Deliver new mail to one mailbox after another until the context is left."""
    stop = threading.Event()

    def deliver() -> None:
        for mailbox in itertools.cycle(exchange.mailboxes):
            if stop.wait(0.01):
                return
            exchange.create_events(mailbox)

    thread = threading.Thread(target=deliver)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def until_persisted(daemon: Listener) -> None:
    """Return when the state of the groups is on disk, so that it survives kill -9."""
    time.sleep(PERSIST_DELAY)
    assert daemon.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_under_load_reuses_all_subscriptions_and_loses_no_event(
    simulator: Start, listen: Listen, tmp_path: Path, number: signal.Signals
) -> None:
    ledger, output = tmp_path / "ledger.jsonl", tmp_path / "deliveries.jsonl"
    exchange = simulator("--mailboxes", str(MAILBOXES), "--ledger", str(ledger))
    daemon = listen(exchange)
    until_streaming(exchange, MAILBOXES)
    # Before the first resync of a mailbox there is no folder snapshot that a later resync can compare with.
    until(
        lambda: requests(exchange, "FindFolder") >= MAILBOXES,
        "a folder snapshot of every mailbox",
        10 * TIMEOUT,
    )
    with mail_traffic(exchange):
        until_persisted(daemon)
        daemon.stop(number)
        until_no_streams(exchange)
        since, queued = RequestCounter(exchange), exchange.state()["queued"]
        until(lambda: exchange.state()["queued"] >= queued + 50, "events while no daemon runs")
        daemon = listen(exchange)
        duration = until_streaming(exchange, MAILBOXES)
        assert (since["Subscribe"], since["Autodiscover"]) == (0, 0)
        assert since["GetStreamingEvents"] == len(exchange.state()["streams"])
        assert not daemon.logged("group.subscribing")
        (line,) = daemon.logged("subscriptions.restored")
        assert (line["mailboxes"], line["abandoned"]) == (MAILBOXES, 0)
    until(lambda: compare_with_ledger(ledger, output).lost == 0, "all changes", timeout=60)
    verdict = compare_with_ledger(ledger, output)
    assert verdict.generated > 100
    assert since["Subscribe"] == 0
    assert daemon.stop() == 0
    print(f"{MAILBOXES} mailboxes streaming {duration:.1f} s after the start; {verdict}")


def test_a_restart_with_three_configured_groups_subscribes_each_mailbox_once(
    simulator: Start, listen: Listen, tmp_path: Path
) -> None:
    """The configuration gives the placements: a mailbox of a restored group must not be placed again."""
    ledger, output = tmp_path / "ledger.jsonl", tmp_path / "deliveries.jsonl"
    exchange = simulator("--mailboxes", "150", "--backends", "3", "--ledger", str(ledger))
    configure_groups(exchange, 3)
    daemon = listen(exchange)
    until_streaming(exchange, 150)
    until(
        lambda: requests(exchange, "FindFolder") >= 150,
        "a folder snapshot of every mailbox",
        10 * TIMEOUT,
    )
    started = daemon.log[0]["time"]
    with mail_traffic(exchange):
        until_persisted(daemon)
        assert daemon.stop() == 0
        until_no_streams(exchange)
        since, queued = RequestCounter(exchange), exchange.state()["queued"]
        until(lambda: exchange.state()["queued"] >= queued + 50, "events while no daemon runs")
        daemon = listen(exchange)
        until_streaming(exchange, 150)
        until_persisted(daemon)
    until(lambda: compare_with_ledger(ledger, output).lost == 0, "all changes", timeout=60)
    status = daemon_status(exchange)
    assert (status["streaming"], status["mailboxes"]) == (150, 150)
    assert sorted(group["mailboxes"] for group in status["groups"]) == [50, 50, 50]
    assert (since["Subscribe"], exchange.state()["subscriptions"]) == (0, 150)
    ids = [event["id"] for event in exchange.deliveries]
    assert compare_with_ledger(ledger, output).generated > 200
    assert len(ids) - len(set(ids)) <= len(ids) / 100
    assert min(event["time"] for event in exchange.deliveries) >= started[:19]
    assert not daemon.logged("group.subscribing")
    assert daemon.stop() == 0


def test_a_restart_with_smaller_groups_and_a_moved_mailbox_subscribes_each_mailbox_once(
    simulator: Start, listen: Listen
) -> None:
    exchange = simulator("--mailboxes", "12", "--backends", "1")
    configure_groups(exchange, 2)
    daemon = listen(exchange)
    until_streaming(exchange, 12)
    assert daemon.stop() == 0
    until_no_streams(exchange)
    moved = exchange.mailboxes[0]
    first = json.dumps(exchange.mailboxes[0::2])
    exchange.replace_config(first, json.dumps([m for m in exchange.mailboxes[0::2] if m != moved]))
    second = json.dumps(exchange.mailboxes[1::2])
    exchange.replace_config(second, json.dumps([moved, *exchange.mailboxes[1::2]]))
    exchange.append_config("\n[affinity]\ngroup_size = 4\n")
    daemon = listen(exchange)
    until_streaming(exchange, 12)
    until(lambda: exchange.state()["subscriptions"] == 12, "the old subscriptions removed")
    until(lambda: daemon_status(exchange)["streaming"] == 12, "12 mailboxes streaming")
    status = daemon_status(exchange)
    assert sorted(group["mailboxes"] for group in status["groups"]) == [1, 3, 4, 4]
    ledger = [line for mailbox in exchange.mailboxes for line in exchange.create_events(mailbox)]
    items = {line["item_id"] for line in ledger if line["kind"] == "NewMailEvent"}

    def mail_delivered() -> list[str]:
        return [e["subject"] for e in exchange.deliveries if e["type"] == "exchange.item.new_mail"]

    until(lambda: items <= set(mail_delivered()), "events of all mailboxes")
    time.sleep(1)
    assert sorted(mail_delivered()) == sorted(items), "no event twice"
    assert daemon.stop() == 0


def test_subscription_ids_reassigned_to_another_client_cause_no_event_of_a_wrong_mailbox(
    simulator: Start, listen: Listen, tmp_path: Path
) -> None:
    """While no daemon runs, the server restarts and counts IDs from 1 again: one mailbox now owns all of them."""
    ledger, output = tmp_path / "ledger.jsonl", tmp_path / "deliveries.jsonl"
    exchange = simulator("--backends", "1", "--counted-ids", "--ledger", str(ledger))
    daemon = listen(exchange)
    until_streaming(exchange, 4)
    until(lambda: requests(exchange, "FindFolder") >= 4, "a folder snapshot of every mailbox")
    until_persisted(daemon)
    assert daemon.stop() == 0
    until_no_streams(exchange)
    exchange.inject_fault(kind="backend_restart")
    owner, *others = exchange.mailboxes
    for _ in exchange.mailboxes:
        subscribe(exchange, owner)
    since = RequestCounter(exchange)
    daemon = listen(exchange)
    daemon.until_logged("group.streaming")
    mailbox_of_item: dict[str, Any] = {}
    for _ in range(10):
        lines = [line for mailbox in exchange.mailboxes for line in exchange.create_events(mailbox)]
        mailbox_of_item |= {
            line["item_id"]: line["mailbox"] for line in lines if line["kind"] == "NewMailEvent"
        }
        time.sleep(0.2)
    (line, *_) = daemon.until_logged("subscription.not_proven")  # repeated lines are rate limited
    assert line["mailbox"] in others
    until(lambda: since["Subscribe"] == len(others), "new subscriptions for all mailboxes but the owner")
    until(lambda: compare_with_ledger(ledger, output).lost == 0, "all changes", timeout=60)
    wrong = [
        event
        for event in exchange.deliveries
        if mailbox_of_item.get(event.get("subject", ""), event["data"]["mailbox"]) != event["data"]["mailbox"]
    ]
    assert wrong == []
    assert since["Subscribe"] == len(others), "the subscription of the owner is verified and kept"
    assert daemon.stop() == 0


def subscribe(exchange: Simulator, mailbox: str) -> None:
    """Subscribe to a mailbox as another client of the same account."""
    names = ("Copied", "Created", "Deleted", "Modified", "Moved", "NewMail", "FreeBusyChanged")
    kinds = "".join(f"<t:EventType>{name}Event</t:EventType>" for name in names)
    body = (
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"'
        ' xmlns:t="http://schemas.microsoft.com/exchange/services/2006/types"'
        ' xmlns:m="http://schemas.microsoft.com/exchange/services/2006/messages"><s:Header>'
        '<t:RequestServerVersion Version="Exchange2013_SP1"/><t:ExchangeImpersonation><t:ConnectingSID>'
        f"<t:PrimarySmtpAddress>{mailbox}</t:PrimarySmtpAddress></t:ConnectingSID></t:ExchangeImpersonation>"
        '</s:Header><s:Body><m:Subscribe><m:StreamingSubscriptionRequest SubscribeToAllFolders="true">'
        f"<t:EventTypes>{kinds}</t:EventTypes></m:StreamingSubscriptionRequest></m:Subscribe></s:Body></s:Envelope>"
    )
    token = b64encode(f"{exchange.info['user']}:{exchange.info['password']}".encode()).decode()
    headers = {"Authorization": f"Basic {token}", "Content-Type": "text/xml", "X-AnchorMailbox": mailbox}
    request = urllib.request.Request(exchange.info["ews_url"], body.encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as reply:
        assert b"NoError" in reply.read()


def configure_groups(exchange: Simulator, count: int) -> None:
    """Place all mailboxes into `count` configured groups and disable Autodiscover."""
    exchange.replace_config("[exchange]", "[exchange]\nautodiscover = false")
    for number in range(count):
        addresses = json.dumps(exchange.mailboxes[number::count])
        exchange.append_config(f'\n[[groups]]\nname = "SITE{number}"\nmailboxes = {addresses}\n')


def daemon_status(exchange: Simulator) -> dict[str, Any]:
    """Return the report of `ews-listener status --json`."""
    done = forked.run(
        [sys.executable, "-m", "listener", "status", "--json", "--config", str(exchange.config)],
        capture_output=True,
        check=True,
        text=True,
    )
    status: dict[str, Any] = json.loads(done.stdout)
    return status


def test_only_lost_subscriptions_are_created_again(simulator: Start, listen: Listen, tmp_path: Path) -> None:
    ledger, output = tmp_path / "ledger.jsonl", tmp_path / "deliveries.jsonl"
    exchange = simulator("--mailboxes", "8", "--backends", "1", "--ledger", str(ledger))
    daemon = listen(exchange)
    until_streaming(exchange, 8)
    assert daemon.stop() == 0
    until_no_streams(exchange)
    lost = exchange.mailboxes[3]
    exchange.create_events(lost, count=3)
    exchange.inject_fault(kind="overflow", mailbox=lost)
    since = RequestCounter(exchange)
    daemon = listen(exchange)
    until_streaming(exchange, 8)
    assert (since["Subscribe"], since["Autodiscover"], since["Unsubscribe"]) == (1, 0, 0)
    exchange.create_events(lost)
    until(lambda: compare_with_ledger(ledger, output).lost == 0, "all changes")
    assert daemon.stop() == 0


def test_a_restart_reports_missed_changes_and_deletions_and_repeats_no_delivered_change(
    simulator: Start, listen: Listen, tmp_path: Path
) -> None:
    ledger, output = tmp_path / "ledger.jsonl", tmp_path / "deliveries.jsonl"
    exchange = simulator("--backends", "1", "--ledger", str(ledger))
    exchange.append_config('\n[log]\nlevel = "debug"\n')
    daemon = listen(exchange)
    ann = exchange.mailboxes[0]
    daemon.until_logged("catchup.ready", mailbox=ann)
    delivered = exchange.create_events(ann, count=5)
    until(lambda: len(exchange.deliveries) == len(delivered), "the deliveries before the restart")
    assert daemon.stop() == 0
    until_no_streams(exchange)
    exchange.create_events(ann, "DeletedEvent", count=3)
    missed = exchange.create_events(ann, count=2)
    exchange.inject_fault(kind="overflow", mailbox=ann)
    daemon = listen(exchange)
    until(lambda: compare_with_ledger(ledger, output).lost == 0, "the changes while no daemon ran")
    daemon.until_logged("catchup.finished", mailbox=ann)
    (history,) = daemon.logged("catchup.history_loaded")
    assert history["events"] == len(delivered)
    new_events = [
        event for event in exchange.deliveries[len(delivered) :] if event["type"].startswith("exchange.item.")
    ]
    assert all(event["data"]["recovered"] for event in new_events)
    assert {event["subject"] for event in new_events} >= {
        line["item_id"] for line in missed if line.get("item_id")
    }
    earlier = {(line["item_id"], line["change_key"]) for line in delivered if line.get("item_id")}
    assert earlier.isdisjoint((event["subject"], event["data"].get("change_key")) for event in new_events)
    assert daemon.stop() == 0


def test_all_subscriptions_are_created_again_after_a_server_restart(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--mailboxes", "8", "--backends", "1")
    daemon = listen(exchange)
    until_streaming(exchange, 8)
    assert daemon.stop() == 0
    exchange.inject_fault(kind="backend_restart")
    since = RequestCounter(exchange)
    daemon = listen(exchange)
    until_streaming(exchange, 8)
    assert (since["Subscribe"], since["Unsubscribe"]) == (8, 0)
    ledger = [line for mailbox in exchange.mailboxes for line in exchange.create_events(mailbox)]
    until(lambda: len(exchange.deliveries) == len(ledger), "events of the new subscriptions")
    assert daemon.stop() == 0


def test_a_changed_subscription_spec_replaces_all_subscriptions(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--mailboxes", "8")
    daemon = listen(exchange)
    until_streaming(exchange, 8)
    assert daemon.stop() == 0
    exchange.append_config('\n[subscription]\nfolders = ["inbox"]\n')
    since = RequestCounter(exchange)
    daemon = listen(exchange)
    until_streaming(exchange, 8)
    until(lambda: since["Unsubscribe"] == 8, "the old subscriptions removed")
    assert (since["Subscribe"], since["Autodiscover"]) == (8, 0)
    assert exchange.state()["subscriptions"] == 8
    assert daemon.stop() == 0


def test_mailboxes_are_added_and_removed_between_two_starts(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--mailboxes", "8", "--backends", "1")
    file = exchange.folder / "mailboxes.txt"
    first, *others = addresses = exchange.mailboxes
    file.write_text("\n".join(addresses[:-1]))
    daemon = listen(exchange)
    until_streaming(exchange, 7)
    assert daemon.stop() == 0
    file.write_text("\n".join(others))  # removes the anchor, adds another mailbox
    since = RequestCounter(exchange)
    daemon = listen(exchange)
    until(lambda: since["Unsubscribe"] == 1, "the removed mailbox unsubscribed")
    until_streaming(exchange, 7)
    assert (since["Subscribe"], since["Autodiscover"]) == (1, 1)
    ledger = [line for mailbox in others for line in exchange.create_events(mailbox)]
    exchange.create_events(first)
    until(lambda: len(exchange.deliveries) == len(ledger), "events of the other mailboxes")
    assert {event["data"]["mailbox"] for event in exchange.deliveries} == set(others)
    assert daemon.stop() == 0


def test_the_affinity_cookie_is_sent_from_the_first_request_after_a_restart_and_never_logged(
    simulator: Start, listen: Listen, record: Callable[[Simulator], Recorder]
) -> None:
    exchange = simulator("--mailboxes", "8", "--backends", "2")
    wire = record(exchange)
    exchange.replace_config('file = "mailboxes.txt"', f"addresses = {json.dumps(exchange.mailboxes)}")
    exchange.replace_config(
        exchange.info["ews_url"], exchange.info["ews_url"].replace(str(exchange.port), str(wire.port))
    )
    exchange.replace_config("[exchange]", "[exchange]\nautodiscover = false")
    exchange.append_config('\n[log]\nlevel = "debug"\n')
    daemon = listen(exchange)
    until_streaming(exchange, 8)
    assert daemon.stop() == 0
    until_no_streams(exchange)
    before = wire.requests
    log = daemon.log_file.read_text()
    daemon = listen(exchange)
    until_streaming(exchange, 8)
    after = wire.requests[len(before) :]
    stream = next(request for request in before if request.operation == "GetStreamingEvents")
    reopened = next(request for request in after if request.operation == "GetStreamingEvents")
    assert cookie(reopened) == cookie(stream)
    assert reopened.headers["x-anchormailbox"] == stream.headers["x-anchormailbox"]
    assert ids(reopened) == ids(stream)
    assert all("cookie" in request.headers for request in after)
    assert cookie(reopened) not in log + daemon.log_file.read_text()
    assert daemon.stop() == 0


def cookie(request: Any) -> str:
    (value,) = re.findall("X-BackEndOverrideCookie=([^;]+)", request.headers["cookie"])
    return str(value)


def ids(request: Any) -> list[str]:
    return sorted(re.findall("<t:SubscriptionId>(.*?)</t:SubscriptionId>", request.body))


def test_shutdown_unsubscribe_leaves_no_subscription_and_none_is_restored(
    simulator: Start, listen: Listen
) -> None:
    exchange = simulator()
    exchange.append_config("\n[shutdown]\nunsubscribe = true\n")
    daemon = listen(exchange)
    until_streaming(exchange)
    assert daemon.stop() == 0
    assert exchange.state()["subscriptions"] == 0
    since = RequestCounter(exchange)
    daemon = listen(exchange)
    until_streaming(exchange)
    assert (since["Subscribe"], since["Autodiscover"]) == (4, 0)
    assert not daemon.logged("stream.refused")
    assert daemon.stop() == 0
