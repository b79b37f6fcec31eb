"""The daemon ends, in order or not, and starts again: subscriptions live on, and nothing is lost.

RESTART_MAILBOXES makes it larger: 10000 is what it was built for.
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
KEPT = 3.0  # seconds after which changes are on the disk


def requests(there: Simulator, operation: str) -> int:
    """How many requests of this kind the simulator has had."""
    answers: dict[str, int] = there.state()["requests"].get(operation, {})
    return sum(answers.values())


class Requests:
    """How many requests came since it was made."""

    def __init__(self, there: Simulator) -> None:
        self._there = there
        self._before = there.state()["requests"]

    def __getitem__(self, operation: str) -> int:
        before: int = sum(self._before.get(operation, {}).values())
        return requests(self._there, operation) - before


def streaming(there: Simulator, mailboxes: int = 4) -> float:
    """Waits until so many mailboxes stream; returns how many seconds that took."""
    started_at = time.monotonic()
    seen = lambda: there.state()["mailboxes_streaming"] == mailboxes  # noqa: E731
    until(seen, f"{mailboxes} mailboxes streaming", TIMEOUT)
    return time.monotonic() - started_at


def nobody_streams(there: Simulator) -> None:
    until(lambda: there.state()["mailboxes_streaming"] == 0, "the end of all streams")


@contextmanager
def mail_for_all(there: Simulator) -> Iterator[None]:
    """Meanwhile new mail comes, to one mailbox after another."""
    enough = threading.Event()

    def deliver() -> None:
        for mailbox in itertools.cycle(there.mailboxes):
            if enough.wait(0.01):
                return
            there.create_events(mailbox)

    postman = threading.Thread(target=deliver)
    postman.start()
    try:
        yield
    finally:
        enough.set()
        postman.join()


def kept(daemon: Listener) -> None:
    """Returns when what the groups have is on the disk, so that not even kill -9 makes it forgotten."""
    time.sleep(KEPT)
    assert daemon.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_under_load_subscribes_nobody_and_loses_nothing(
    simulator: Start, listen: Listen, tmp_path: Path, number: signal.Signals
) -> None:
    ledger, output = tmp_path / "ledger.jsonl", tmp_path / "deliveries.jsonl"
    there = simulator("--mailboxes", str(MAILBOXES), "--ledger", str(ledger))
    daemon = listen(there)
    streaming(there, MAILBOXES)
    # Until a mailbox was compared once, nothing is known that its folders could differ from.
    until(lambda: requests(there, "FindFolder") >= MAILBOXES, "all mailboxes compared", 10 * TIMEOUT)
    with mail_for_all(there):
        kept(daemon)
        daemon.stop(number)
        nobody_streams(there)
        since, queued = Requests(there), there.state()["queued"]
        until(lambda: there.state()["queued"] >= queued + 50, "events while nobody listens")
        daemon = listen(there)
        took = streaming(there, MAILBOXES)
        assert (since["Subscribe"], since["Autodiscover"]) == (0, 0)
        assert since["GetStreamingEvents"] == len(there.state()["streams"])
        assert not daemon.logged("group.subscribing")
        (line,) = daemon.logged("subscriptions.restored")
        assert (line["mailboxes"], line["abandoned"]) == (MAILBOXES, 0)
    until(lambda: compare_with_ledger(ledger, output).lost == 0, "everything that happened", timeout=60)
    verdict = compare_with_ledger(ledger, output)
    assert verdict.generated > 100
    assert since["Subscribe"] == 0
    assert daemon.stop() == 0
    print(f"{MAILBOXES} mailboxes streaming {took:.1f} s after the start; {verdict}")


def test_a_restart_with_three_configured_groups_subscribes_each_mailbox_once(
    simulator: Start, listen: Listen, tmp_path: Path
) -> None:
    """The configuration gives the placements: nothing may place a mailbox again that a restored group has."""
    ledger, output = tmp_path / "ledger.jsonl", tmp_path / "deliveries.jsonl"
    there = simulator("--mailboxes", "150", "--backends", "3", "--ledger", str(ledger))
    configured_groups(there, 3)
    daemon = listen(there)
    streaming(there, 150)
    until(lambda: requests(there, "FindFolder") >= 150, "all mailboxes compared", 10 * TIMEOUT)
    started = daemon.log[0]["time"]
    with mail_for_all(there):
        kept(daemon)
        assert daemon.stop() == 0
        nobody_streams(there)
        since, queued = Requests(there), there.state()["queued"]
        until(lambda: there.state()["queued"] >= queued + 50, "events while nobody listens")
        daemon = listen(there)
        streaming(there, 150)
        kept(daemon)
    until(lambda: compare_with_ledger(ledger, output).lost == 0, "everything that happened", timeout=60)
    status = state_of(there)
    assert (status["streaming"], status["mailboxes"]) == (150, 150)
    assert sorted(group["mailboxes"] for group in status["groups"]) == [50, 50, 50]
    assert (since["Subscribe"], there.state()["subscriptions"]) == (0, 150)
    ids = [event["id"] for event in there.deliveries]
    assert compare_with_ledger(ledger, output).generated > 200
    assert len(ids) - len(set(ids)) <= len(ids) / 100
    assert min(event["time"] for event in there.deliveries) >= started[:19]
    assert not daemon.logged("group.subscribing")
    assert daemon.stop() == 0


def test_a_restart_with_smaller_groups_and_a_moved_mailbox_subscribes_each_mailbox_once(
    simulator: Start, listen: Listen
) -> None:
    there = simulator("--mailboxes", "12", "--backends", "1")
    configured_groups(there, 2)
    daemon = listen(there)
    streaming(there, 12)
    assert daemon.stop() == 0
    nobody_streams(there)
    moved = there.mailboxes[0]
    first = json.dumps(there.mailboxes[0::2])
    there.replace_config(first, json.dumps([m for m in there.mailboxes[0::2] if m != moved]))
    second = json.dumps(there.mailboxes[1::2])
    there.replace_config(second, json.dumps([moved, *there.mailboxes[1::2]]))
    there.append_config("\n[affinity]\ngroup_size = 4\n")
    daemon = listen(there)
    streaming(there, 12)
    until(lambda: there.state()["subscriptions"] == 12, "the old ones unsubscribed")
    until(lambda: state_of(there)["streaming"] == 12, "12 mailboxes streaming")
    status = state_of(there)
    assert sorted(group["mailboxes"] for group in status["groups"]) == [1, 3, 4, 4]
    ledger = [line for mailbox in there.mailboxes for line in there.create_events(mailbox)]
    items = {line["item_id"] for line in ledger if line["kind"] == "NewMailEvent"}

    def came() -> list[str]:
        return [e["subject"] for e in there.deliveries if e["type"] == "exchange.item.new_mail"]

    until(lambda: items <= set(came()), "events of all")
    time.sleep(1)
    assert sorted(came()) == sorted(items), "no event twice"
    assert daemon.stop() == 0


def test_ids_that_another_client_was_given_meanwhile_bring_no_event_under_a_wrong_mailbox(
    simulator: Start, listen: Listen, tmp_path: Path
) -> None:
    """The daemon ends, the server restarts, and its ids begin again at 1: all are one mailbox's by now."""
    ledger, output = tmp_path / "ledger.jsonl", tmp_path / "deliveries.jsonl"
    there = simulator("--backends", "1", "--counted-ids", "--ledger", str(ledger))
    daemon = listen(there)
    streaming(there, 4)
    until(lambda: requests(there, "FindFolder") >= 4, "all mailboxes compared")
    kept(daemon)
    assert daemon.stop() == 0
    nobody_streams(there)
    there.inject_fault(kind="backend_restart")
    taker, *others = there.mailboxes
    for _ in there.mailboxes:
        subscribe(there, taker)
    since = Requests(there)
    daemon = listen(there)
    daemon.until_logged("group.streaming")
    homes: dict[str, Any] = {}
    for _ in range(10):
        lines = [line for mailbox in there.mailboxes for line in there.create_events(mailbox)]
        homes |= {line["item_id"]: line["mailbox"] for line in lines if line["kind"] == "NewMailEvent"}
        time.sleep(0.2)
    (line, *_) = daemon.until_logged("subscription.not_proven")  # repeated lines are summed up
    assert line["mailbox"] in others
    until(lambda: since["Subscribe"] == len(others), "new subscriptions for all but the taker")
    until(lambda: compare_with_ledger(ledger, output).lost == 0, "everything that happened", timeout=60)
    wrong = [
        event
        for event in there.deliveries
        if homes.get(event.get("subject", ""), event["data"]["mailbox"]) != event["data"]["mailbox"]
    ]
    assert wrong == []
    assert since["Subscribe"] == len(others), "the taker's id is proven to be its own"
    assert daemon.stop() == 0


def subscribe(there: Simulator, mailbox: str) -> None:
    """Subscribes to a mailbox as another client of the same account does."""
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
    token = b64encode(f"{there.info['user']}:{there.info['password']}".encode()).decode()
    headers = {"Authorization": f"Basic {token}", "Content-Type": "text/xml", "X-AnchorMailbox": mailbox}
    request = urllib.request.Request(there.info["ews_url"], body.encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as reply:
        assert b"NoError" in reply.read()


def configured_groups(there: Simulator, count: int) -> None:
    """Gives all mailboxes a placement in the configuration, in so many groups, and turns Autodiscover off."""
    there.replace_config("[exchange]", "[exchange]\nautodiscover = false")
    for number in range(count):
        addresses = json.dumps(there.mailboxes[number::count])
        there.append_config(f'\n[[groups]]\nname = "SITE{number}"\nmailboxes = {addresses}\n')


def state_of(there: Simulator) -> dict[str, Any]:
    """What the running daemon reports of itself."""
    done = forked.run(
        [sys.executable, "-m", "listener", "status", "--json", "--config", str(there.config)],
        capture_output=True,
        check=True,
        text=True,
    )
    status: dict[str, Any] = json.loads(done.stdout)
    return status


def test_only_what_the_server_forgot_is_subscribed_anew(
    simulator: Start, listen: Listen, tmp_path: Path
) -> None:
    ledger, output = tmp_path / "ledger.jsonl", tmp_path / "deliveries.jsonl"
    there = simulator("--mailboxes", "8", "--backends", "1", "--ledger", str(ledger))
    daemon = listen(there)
    streaming(there, 8)
    assert daemon.stop() == 0
    nobody_streams(there)
    forgotten = there.mailboxes[3]
    there.create_events(forgotten, count=3)
    there.inject_fault(kind="overflow", mailbox=forgotten)
    since = Requests(there)
    daemon = listen(there)
    streaming(there, 8)
    assert (since["Subscribe"], since["Autodiscover"], since["Unsubscribe"]) == (1, 0, 0)
    there.create_events(forgotten)
    until(lambda: compare_with_ledger(ledger, output).lost == 0, "everything that happened")
    assert daemon.stop() == 0


def test_what_was_told_before_is_not_told_again_and_what_has_gone_meanwhile_is_told(
    simulator: Start, listen: Listen, tmp_path: Path
) -> None:
    ledger, output = tmp_path / "ledger.jsonl", tmp_path / "deliveries.jsonl"
    there = simulator("--backends", "1", "--ledger", str(ledger))
    there.append_config('\n[log]\nlevel = "debug"\n')
    daemon = listen(there)
    ann = there.mailboxes[0]
    daemon.until_logged("catchup.ready", mailbox=ann)
    told = there.create_events(ann, count=5)
    until(lambda: len(there.deliveries) == len(told), "what happened before")
    assert daemon.stop() == 0
    nobody_streams(there)
    there.create_events(ann, "DeletedEvent", count=3)
    missed = there.create_events(ann, count=2)
    there.inject_fault(kind="overflow", mailbox=ann)
    daemon = listen(there)
    until(lambda: compare_with_ledger(ledger, output).lost == 0, "what happened meanwhile")
    daemon.until_logged("catchup.finished", mailbox=ann)
    (recalled,) = daemon.logged("catchup.history_loaded")
    assert recalled["events"] == len(told)
    again = [event for event in there.deliveries[len(told) :] if event["type"].startswith("exchange.item.")]
    assert all(event["data"]["recovered"] for event in again)
    assert {event["subject"] for event in again} >= {
        line["item_id"] for line in missed if line.get("item_id")
    }
    twice = {(line["item_id"], line["change_key"]) for line in told if line.get("item_id")}
    assert twice.isdisjoint((event["subject"], event["data"].get("change_key")) for event in again)
    assert daemon.stop() == 0


def test_a_server_that_forgot_everything_is_asked_for_everything(simulator: Start, listen: Listen) -> None:
    there = simulator("--mailboxes", "8", "--backends", "1")
    daemon = listen(there)
    streaming(there, 8)
    assert daemon.stop() == 0
    there.inject_fault(kind="backend_restart")
    since = Requests(there)
    daemon = listen(there)
    streaming(there, 8)
    assert (since["Subscribe"], since["Unsubscribe"]) == (8, 0)
    ledger = [line for mailbox in there.mailboxes for line in there.create_events(mailbox)]
    until(lambda: len(there.deliveries) == len(ledger), "events of the new subscriptions")
    assert daemon.stop() == 0


def test_another_wish_needs_other_subscriptions_and_the_old_ones_are_not_left_behind(
    simulator: Start, listen: Listen
) -> None:
    there = simulator("--mailboxes", "8")
    daemon = listen(there)
    streaming(there, 8)
    assert daemon.stop() == 0
    there.append_config('\n[subscription]\nfolders = ["inbox"]\n')
    since = Requests(there)
    daemon = listen(there)
    streaming(there, 8)
    until(lambda: since["Unsubscribe"] == 8, "the old ones unsubscribed")
    assert (since["Subscribe"], since["Autodiscover"]) == (8, 0)
    assert there.state()["subscriptions"] == 8
    assert daemon.stop() == 0


def test_mailboxes_come_and_go_between_two_starts(simulator: Start, listen: Listen) -> None:
    there = simulator("--mailboxes", "8", "--backends", "1")
    addresses = there.folder / "mailboxes.txt"
    first, *others = everybody = there.mailboxes
    addresses.write_text("\n".join(everybody[:-1]))
    daemon = listen(there)
    streaming(there, 7)
    assert daemon.stop() == 0
    addresses.write_text("\n".join(others))  # the anchor leaves, and a new one comes
    since = Requests(there)
    daemon = listen(there)
    until(lambda: since["Unsubscribe"] == 1, "the one that left unsubscribed")
    streaming(there, 7)
    assert (since["Subscribe"], since["Autodiscover"]) == (1, 1)
    ledger = [line for mailbox in others for line in there.create_events(mailbox)]
    there.create_events(first)
    until(lambda: len(there.deliveries) == len(ledger), "events of the others")
    assert {event["data"]["mailbox"] for event in there.deliveries} == set(others)
    assert daemon.stop() == 0


def test_the_groups_cookie_is_sent_with_the_first_request_after_the_restart_and_shown_to_nobody(
    simulator: Start, listen: Listen, record: Callable[[Simulator], Recorder]
) -> None:
    there = simulator("--mailboxes", "8", "--backends", "2")
    wire = record(there)
    there.replace_config('file = "mailboxes.txt"', f"addresses = {json.dumps(there.mailboxes)}")
    there.replace_config(
        there.info["ews_url"], there.info["ews_url"].replace(str(there.port), str(wire.port))
    )
    there.replace_config("[exchange]", "[exchange]\nautodiscover = false")
    there.append_config('\n[log]\nlevel = "debug"\n')
    daemon = listen(there)
    streaming(there, 8)
    assert daemon.stop() == 0
    nobody_streams(there)
    before = wire.requests
    log = daemon.log_file.read_text()
    daemon = listen(there)
    streaming(there, 8)
    after = wire.requests[len(before) :]
    stream = next(request for request in before if request.operation == "GetStreamingEvents")
    again = next(request for request in after if request.operation == "GetStreamingEvents")
    assert cookie(again) == cookie(stream)
    assert again.headers["x-anchormailbox"] == stream.headers["x-anchormailbox"]
    assert ids(again) == ids(stream)
    assert all("cookie" in request.headers for request in after)
    assert cookie(again) not in log + daemon.log_file.read_text()
    assert daemon.stop() == 0


def cookie(request: Any) -> str:
    (value,) = re.findall("X-BackEndOverrideCookie=([^;]+)", request.headers["cookie"])
    return str(value)


def ids(request: Any) -> list[str]:
    return sorted(re.findall("<t:SubscriptionId>(.*?)</t:SubscriptionId>", request.body))


def test_told_to_unsubscribe_it_leaves_nothing_behind_and_knows_it(simulator: Start, listen: Listen) -> None:
    there = simulator()
    there.append_config("\n[shutdown]\nunsubscribe = true\n")
    daemon = listen(there)
    streaming(there)
    assert daemon.stop() == 0
    assert there.state()["subscriptions"] == 0
    since = Requests(there)
    daemon = listen(there)
    streaming(there)
    assert (since["Subscribe"], since["Autodiscover"]) == (4, 0)
    assert not daemon.logged("stream.refused")
    assert daemon.stop() == 0
