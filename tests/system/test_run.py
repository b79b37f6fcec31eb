"""`ews-listener run` as a process, against `ews-listener simulate` as another."""

import json
import re
import signal
import socket
from collections.abc import Callable
from datetime import datetime

import pytest

from tests.system.processes import TIMEOUT, Listen, Recorder, Simulator, Start, handler, json_lines, until

TYPES = {
    "CreatedEvent": "created",
    "ModifiedEvent": "modified",
    "DeletedEvent": "deleted",
    "MovedEvent": "moved",
    "CopiedEvent": "copied",
    "NewMailEvent": "new_mail",
    "FreeBusyChangedEvent": "free_busy_changed",
}


# --- from a change to its CloudEvent


def test_every_kind_of_change_arrives_as_a_cloudevent(simulator: Start, listen: Listen) -> None:
    there = simulator()
    listen(there)
    there.until_streaming(4)
    ledger = [
        line
        for mailbox in there.mailboxes[:2]
        for kind in TYPES
        for line in there.create_events(mailbox, kind, 2)
    ]
    events = until(lambda: len(there.deliveries) >= len(ledger) and there.deliveries, "all deliveries")
    assert len(events) == len(ledger)
    for mailbox in there.mailboxes[:2]:  # in order, mailbox by mailbox
        made = [line for line in ledger if line["mailbox"] == mailbox]
        told = [event for event in events if event["source"] == f"mailto:{mailbox}"]
        assert len(made) == len(told)
        for line, event in zip(made, told, strict=True):
            what = "item" if line.get("item_id") else "folder"
            thing = line[f"{what}_id"]
            assert list(event) == [
                "specversion", "id", "type", "source", "time", "datacontenttype", "subject", "data",
            ]  # fmt: skip
            assert event["specversion"] == "1.0"
            assert re.fullmatch("[0-9a-f]{32}", event["id"])
            assert event["type"] == f"exchange.{what}.{TYPES[line['kind']]}"
            assert event["subject"] == thing
            assert event["datacontenttype"] == "application/json"
            assert abs(datetime.fromisoformat(event["time"]).timestamp() - line["time"]) <= 1
            assert event["data"]["mailbox"] == mailbox
            assert event["data"][f"{what}_id"] == thing
            assert event["data"]["parent_folder_id"] == line["parent_folder_id"]
            if line["kind"] in ("MovedEvent", "CopiedEvent"):
                assert event["data"]["old_parent_folder_id"]
                assert event["data"][f"old_{what}_id"]
    assert {line["kind"] for line in ledger} == set(TYPES)


def test_a_plugin_from_pythonpath_with_its_options_and_filter(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    there = simulator()
    first, second = there.mailboxes[:2]
    there.append_config(
        handler(
            "acme", "acme:open_slow", 'path = "acme.jsonl"', 'filter.types = ["new_mail"]',
            f'filter.mailboxes = ["{second}"]',
        )
    )  # fmt: skip
    daemon = listen(there, PYTHONPATH=plugins)
    there.until_streaming(4)
    ledger = [*there.create_events(first), *there.create_events(second)]
    until(lambda: len(there.deliveries) == len(ledger), "all deliveries")
    (event,) = until(lambda: json_lines(there.folder / "acme.jsonl"), "the plugin's line")
    assert (event["type"], event["data"]["mailbox"]) == ("exchange.item.new_mail", second)
    assert daemon.stop() == 0
    assert (there.folder / "acme.closed").read_text() == "closed\n"


# --- handlers that misbehave


def test_one_that_raises_and_one_that_hangs_harm_no_other(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    there = simulator()
    there.append_config(handler("raising", "acme:open_raising"))
    there.append_config(handler("hanging", "acme:open_hanging", "timeout = 0.2"))
    there.append_config("\n[delivery]\nattempts = 2\nretry_first = 0.05\n\n[shutdown]\ngrace = 0.1\n")
    daemon = listen(there, PYTHONPATH=plugins)
    there.until_streaming(4)
    ledger = there.create_events(there.mailboxes[0], count=30)
    until(lambda: len(there.deliveries) == len(ledger), "all deliveries to the handler that works")
    failed = daemon.until_logged("handler.failed", handler="raising")
    assert "LookupError: no such customer" in failed[0]["exception"]
    assert failed[0]["mailbox"] == there.mailboxes[0]
    daemon.until_logged("handler.dead_lettered", handler="raising")
    daemon.until_logged("handler.timeout", handler="hanging")
    daemon.until_logged("handler.dead_lettered", handler="hanging")
    assert not daemon.logged("handler.failed", handler="deliveries")
    assert daemon.stop() == 0
    (end,) = daemon.logged("handler.stopped", handler="deliveries")
    assert (end["delivered"], end["dead_lettered"], end["lag"]) == (len(ledger), 0, 0)


# --- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(
    simulator: Start, listen: Listen, plugins: str, number: signal.Signals
) -> None:
    there = simulator()
    there.append_config(handler("slow", "acme:open_slow", 'path = "slow.jsonl"', "seconds = 0.05"))
    there.append_config("\n[shutdown]\nunsubscribe = true\n")
    daemon = listen(there, PYTHONPATH=plugins)
    there.until_streaming(4)
    ledger = there.create_events(there.mailboxes[0], count=5)
    until(lambda: json_lines(there.folder / "slow.jsonl"), "the first event at the slow handler")
    assert daemon.stop(number) == 0
    assert len(json_lines(there.folder / "slow.jsonl")) == len(ledger)
    assert (there.folder / "slow.closed").exists()
    state = there.state()
    assert (state["subscriptions"], state["streams"]) == (0, [])
    assert state["requests"]["Unsubscribe"] == {"200": 4}
    names = [line["event"] for line in daemon.log]
    assert names[0] == "listener.started"
    assert names[-1] == "listener.stopped"
    assert names.index("listener.stopping") < names.index("group.stopped") < names.index("handler.stopped")
    assert not [line for line in daemon.log if line["level"] in ("warning", "error")]


def test_a_handler_that_takes_too_long_is_cut_off_after_the_grace(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    there = simulator()
    there.append_config(handler("hanging", "acme:open_hanging") + "\n[shutdown]\ngrace = 0.2\n")
    daemon = listen(there, PYTHONPATH=plugins)
    there.until_streaming(4)
    ledger = there.create_events(there.mailboxes[0])
    until(lambda: len(there.deliveries) == len(ledger), "all deliveries to the other handler")
    assert daemon.stop() == 0
    (end,) = daemon.logged("handler.stopped", handler="hanging")
    assert (end["delivered"], end["lag"]) == (0, len(ledger))
    assert there.state()["subscriptions"] == 4


def test_a_second_signal_ends_it_at_once(simulator: Start, listen: Listen, plugins: str) -> None:
    there = simulator()
    there.append_config(handler("hanging", "acme:open_hanging") + "\n[shutdown]\ngrace = 600\n")
    daemon = listen(there, PYTHONPATH=plugins)
    there.until_streaming(4)
    ledger = there.create_events(there.mailboxes[0])
    until(lambda: len(there.deliveries) == len(ledger), "all deliveries to the other handler")
    daemon.process.send_signal(signal.SIGTERM)
    daemon.until_logged("group.stopped")
    assert daemon.stop() == -signal.SIGTERM


def test_a_handler_that_blocks_everything_can_be_ended_too(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    there = simulator()
    there.append_config(handler("blocking", "acme:open_blocking", 'path = "blocked"'))
    daemon = listen(there, PYTHONPATH=plugins)
    there.until_streaming(4)
    there.create_events(there.mailboxes[0])
    until((there.folder / "blocked").exists, "the handler that blocks")

    def ended() -> bool:
        daemon.process.send_signal(signal.SIGTERM)  # two that come at once may count as one
        return daemon.process.poll() is not None

    until(ended, "the end")
    assert daemon.wait() == -signal.SIGTERM


def test_it_ends_in_order_though_exchange_is_gone(simulator: Start, listen: Listen) -> None:
    there = simulator()
    daemon = listen(there)
    there.until_streaming(4)
    there.process.kill()
    daemon.until_logged("group.backoff")
    assert daemon.stop() == 0
    assert daemon.log[-1]["event"] == "listener.stopped"


def test_it_ends_in_order_though_exchange_never_answers(simulator: Start, listen: Listen) -> None:
    there = simulator()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        there.replace_config(f":{there.port}/", f":{mute.getsockname()[1]}/")
        daemon = listen(there)
        mute.settimeout(TIMEOUT)
        with mute.accept()[0]:
            assert daemon.stop() == 0
    assert daemon.log[-1]["event"] == "listener.stopped"


# --- what is wrong from the start


def test_a_bad_configuration_is_told_whole(simulator: Start, listen: Listen) -> None:
    there = simulator()
    there.replace_config("heartbeat = ", "hartbeat = ")
    there.append_config('colour = "red"\n[affinity]\ngroup_size = 201\n[handlers.other]\nuse = "fiel"\n')
    daemon = listen(there)
    assert daemon.wait() == 2
    told = daemon.log_file.read_text().splitlines()
    assert all(line.startswith("error: ") for line in told)
    for key in ("stream.hartbeat", "handlers.deliveries.colour", "affinity.group_size", "handlers.other.use"):
        assert len([line for line in told if line.startswith(f"error: {key}: ")]) == 1, told
    assert len(told) == 4
    assert there.info["password"] not in daemon.log_file.read_text()
    assert there.state()["requests"] == {}


def test_a_handler_that_never_opens_does_not_hold_up_the_end(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    there = simulator()
    there.append_config(handler("mute", "acme:open_mute"))
    daemon = listen(there, PYTHONPATH=plugins)
    daemon.until_logged("handler.started", handler="deliveries")
    assert daemon.stop() == 0


def test_a_handler_that_cannot_be_opened_is_named(simulator: Start, listen: Listen) -> None:
    there = simulator()
    there.append_config(handler("archive", "file", 'path = "no/such/folder/x.jsonl"'))
    daemon = listen(there)
    assert daemon.wait() == 1  # it may be there the next time
    last = daemon.log_file.read_text().splitlines()[-1]
    assert last.startswith("error: handlers.archive: could not be opened: FileNotFoundError")
    assert there.state()["requests"] == {}


# --- the way to Exchange


def test_tls_with_the_companys_authority(simulator: Start, listen: Listen) -> None:
    there = simulator("--tls")
    listen(there)
    there.until_streaming(4)
    ledger = there.create_events(there.mailboxes[0])
    until(lambda: len(there.deliveries) == len(ledger), "all deliveries")


def test_tls_without_an_authority_that_vouches_is_told(simulator: Start, listen: Listen) -> None:
    there = simulator("--tls")
    there.replace_config('ca_file = "ca.pem"\n', "")
    daemon = listen(there)
    (line, *_) = daemon.until_logged("mailbox.refused", code="TlsFailed")
    assert "certificate" in line["text"].lower()
    assert there.state()["requests"] == {}


def test_what_a_group_says_on_the_wire(
    simulator: Start, listen: Listen, record: Callable[[Simulator], Recorder]
) -> None:
    there = simulator("--mailboxes", "8")
    wire = record(there)
    there.replace_config('file = "mailboxes.txt"', f"addresses = {json.dumps(there.mailboxes)}")
    there.replace_config(
        there.info["ews_url"], there.info["ews_url"].replace(str(there.port), str(wire.port))
    )
    there.replace_config("[exchange]", "[exchange]\nautodiscover = false")
    there.append_config('\n[shutdown]\nunsubscribe = true\n\n[catch_up]\nmode = "off"\n')
    daemon = listen(there)
    there.until_streaming(8)
    assert daemon.stop() == 0
    anchor, *others = there.mailboxes
    assert there.state()["requests"] == {
        "GetStreamingEvents": {"200": 1}, "Subscribe": {"200": 8}, "Unsubscribe": {"200": 8},
    }  # fmt: skip
    for request in wire.requests:
        assert request.headers["x-anchormailbox"] == anchor
        assert request.headers["x-preferserveraffinity"] == "true"
        assert request.headers["user-agent"].startswith("ews-listener/")
        assert request.headers["authorization"].startswith("Basic ")
        assert request.headers["content-type"] == "text/xml; charset=utf-8"
        assert request.headers["accept-encoding"] == "identity"
    acting_as = {
        operation: [
            "".join(re.findall("<t:PrimarySmtpAddress>(.*?)</t:PrimarySmtpAddress>", request.body))
            for request in wire.requests
            if request.operation == operation
        ]
        for operation in ("Subscribe", "GetStreamingEvents", "Unsubscribe")
    }
    assert sorted(acting_as["Subscribe"]) == sorted(acting_as["Unsubscribe"]) == [anchor, *others]
    assert acting_as["GetStreamingEvents"] == [anchor]
    without = [request for request in wire.requests if "cookie" not in request.headers]
    assert [(request.operation, f">{anchor}<" in request.body) for request in without] == [
        ("Subscribe", True)
    ]
    cookies = {
        re.findall("X-BackEndOverrideCookie=([^;]+)", request.headers["cookie"])[0]
        for request in wire.requests
        if request not in without
    }
    assert len(cookies) == 1
    assert len({backend["name"] for backend in there.state()["backends"] if backend["mailboxes"]}) > 1


def test_static_groups_without_autodiscover(simulator: Start, listen: Listen) -> None:
    there = simulator()
    ann, bob, cat, dan = there.mailboxes
    there.replace_config('[mailboxes]\nfile = "mailboxes.txt"\n', "")
    there.replace_config("[exchange]", "[exchange]\nautodiscover = false")
    there.append_config(
        f"\n[affinity]\nimpersonate_anchor_on_stream = false\n"
        f'\n[[groups]]\nname = "one"\nmailboxes = {json.dumps([bob, ann])}\n'
        f'\n[[groups]]\nname = "two"\nmailboxes = {json.dumps([cat, dan])}\n'
    )
    daemon = listen(there)
    there.until_streaming(4)
    state = there.state()
    assert sorted(stream["ids"] for stream in state["streams"]) == [2, 2]
    assert "Autodiscover" not in state["requests"]
    assert state["hanging"] == {there.info["user"]: 2}
    ledger = there.create_events(cat)
    until(lambda: len(there.deliveries) == len(ledger), "all deliveries")
    streaming = daemon.until_logged("group.streaming", count=2)
    assert {(line["group"], line["anchor"]) for line in streaming} == {("one/1", ann), ("two/1", cat)}


def test_autodiscover_sorts_mailboxes_by_back_end(simulator: Start, listen: Listen) -> None:
    there = simulator("--mailboxes", "30")
    daemon = listen(there)
    there.until_streaming(30)
    state = there.state()
    homes = {backend["name"]: backend["mailboxes"] for backend in state["backends"]}
    assert {stream["backend"]: stream["ids"] for stream in state["streams"]} == homes
    assert all(codes.keys() == {"200"} for codes in state["requests"].values())
    (found,) = daemon.logged("discovery.found")
    assert (found["mailboxes"], found["missing"]) == (30, 0)


def test_a_mailbox_that_is_not_there_is_told_and_harms_no_other(simulator: Start, listen: Listen) -> None:
    there = simulator()
    with (there.folder / "mailboxes.txt").open("a") as file:
        file.write("nobody@contoso.example\n")
    daemon = listen(there)
    there.until_streaming(4)
    (failed,) = daemon.until_logged("discovery.failed")
    assert (failed["mailbox"], failed["code"]) == ("nobody@contoso.example", "InvalidUser")
    (found,) = daemon.logged("discovery.found")
    assert (found["mailboxes"], found["missing"], found["codes"]) == (4, 1, {"InvalidUser": 1})
    assert daemon.stop() == 0


def test_an_exchange_that_dies_and_comes_back_is_listened_to_again(simulator: Start, listen: Listen) -> None:
    there = simulator()
    there.append_config("\n[backoff]\nfirst = 0.05\ncap = 0.2\n")
    daemon = listen(there)
    there.until_streaming(4)
    before = len(there.create_events(there.mailboxes[0]))
    until(lambda: len(there.deliveries) == before, "all deliveries before")
    there.process.kill()
    there.process.wait()
    daemon.until_logged("group.backoff")
    config = there.config.read_text()
    there = simulator("--port", str(there.port))
    assert there.config.read_text() in config
    there.until_streaming(4)
    after = [line for mailbox in there.mailboxes for line in there.create_events(mailbox)]
    until(lambda: len(there.deliveries) == before + len(after), "all deliveries after")
    assert sorted(event["subject"] for event in there.deliveries[before:]) == sorted(
        line.get("item_id") or line["folder_id"] for line in after
    )


# --- the log


def test_the_log_is_json_lines_and_holds_no_secret(simulator: Start, listen: Listen) -> None:
    there = simulator()
    there.append_config('\n[log]\nlevel = "debug"\n')
    there.append_config(handler("log", "log"))
    daemon = listen(there)
    there.until_streaming(4)
    there.create_events(there.mailboxes[0])
    daemon.until_logged("mailbox.event", mailbox=there.mailboxes[0])
    assert daemon.stop() == 0
    text = daemon.log_file.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(list(line)[:3] == ["time", "level", "event"] for line in lines)
    assert {"group.streaming", "mailbox.subscribed", "handler.started"} <= {line["event"] for line in lines}
    assert there.info["password"] not in text
    assert "X-BackEndOverrideCookie" not in text


def test_a_wrong_password_is_told_and_not_tried_over_and_over(simulator: Start, listen: Listen) -> None:
    there = simulator()
    there.replace_config(there.info["password"], "Pw-wrong")
    there.replace_config("[exchange]", "[exchange]\nautodiscover = false")
    daemon = listen(there)
    daemon.until_logged("mailbox.refused", code="Http401")
    assert daemon.stop() == 0
    # The second one shows that the refusal is not about the anchor only.
    assert there.state()["requests"]["-"] == {"401": 2}
    assert "Pw-wrong" not in daemon.log_file.read_text()
