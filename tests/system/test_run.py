"""`ews-listener run` and `ews-listener simulate` as two processes."""

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


# --- changes and their CloudEvents


def test_every_kind_of_change_arrives_as_a_cloudevent(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    listen(exchange)
    exchange.until_streaming(4)
    ledger = [
        line
        for mailbox in exchange.mailboxes[:2]
        for kind in TYPES
        for line in exchange.create_events(mailbox, kind, 2)
    ]
    events = until(lambda: len(exchange.deliveries) >= len(ledger) and exchange.deliveries, "all deliveries")
    assert len(events) == len(ledger)
    for mailbox in exchange.mailboxes[:2]:  # the order is fixed within a mailbox only
        made = [line for line in ledger if line["mailbox"] == mailbox]
        received = [event for event in events if event["source"] == f"mailto:{mailbox}"]
        assert len(made) == len(received)
        for line, event in zip(made, received, strict=True):
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
    exchange = simulator()
    first, second = exchange.mailboxes[:2]
    exchange.append_config(
        handler(
            "acme", "acme:open_slow", 'path = "acme.jsonl"', 'filter.types = ["new_mail"]',
            f'filter.mailboxes = ["{second}"]',
        )
    )  # fmt: skip
    daemon = listen(exchange, PYTHONPATH=plugins)
    exchange.until_streaming(4)
    ledger = [*exchange.create_events(first), *exchange.create_events(second)]
    until(lambda: len(exchange.deliveries) == len(ledger), "all deliveries")
    (event,) = until(lambda: json_lines(exchange.folder / "acme.jsonl"), "the plugin's line")
    assert (event["type"], event["data"]["mailbox"]) == ("exchange.item.new_mail", second)
    assert daemon.stop() == 0
    assert (exchange.folder / "acme.closed").read_text() == "closed\n"


# --- handlers that misbehave


def test_handlers_that_raise_or_hang_do_not_affect_other_handlers(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    exchange = simulator()
    exchange.append_config(handler("raising", "acme:open_raising"))
    exchange.append_config(handler("hanging", "acme:open_hanging", "timeout = 0.2"))
    exchange.append_config("\n[delivery]\nattempts = 2\nretry_first = 0.05\n\n[shutdown]\ngrace = 0.1\n")
    daemon = listen(exchange, PYTHONPATH=plugins)
    exchange.until_streaming(4)
    ledger = exchange.create_events(exchange.mailboxes[0], count=30)
    until(lambda: len(exchange.deliveries) == len(ledger), "all deliveries to the handler that works")
    failed = daemon.until_logged("handler.failed", handler="raising")
    assert "LookupError: no such customer" in failed[0]["exception"]
    assert failed[0]["mailbox"] == exchange.mailboxes[0]
    daemon.until_logged("handler.dead_lettered", handler="raising")
    daemon.until_logged("handler.timeout", handler="hanging")
    daemon.until_logged("handler.dead_lettered", handler="hanging")
    assert not daemon.logged("handler.failed", handler="deliveries")
    assert daemon.stop() == 0
    (end,) = daemon.logged("handler.stopped", handler="deliveries")
    assert (end["delivered"], end["dead_lettered"], end["lag"]) == (len(ledger), 0, 0)


# --- shutdown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_daemon_in_order(
    simulator: Start, listen: Listen, plugins: str, number: signal.Signals
) -> None:
    exchange = simulator()
    exchange.append_config(handler("slow", "acme:open_slow", 'path = "slow.jsonl"', "seconds = 0.05"))
    exchange.append_config("\n[shutdown]\nunsubscribe = true\n")
    daemon = listen(exchange, PYTHONPATH=plugins)
    exchange.until_streaming(4)
    ledger = exchange.create_events(exchange.mailboxes[0], count=5)
    until(lambda: json_lines(exchange.folder / "slow.jsonl"), "the first event at the slow handler")
    assert daemon.stop(number) == 0
    assert len(json_lines(exchange.folder / "slow.jsonl")) == len(ledger)
    assert (exchange.folder / "slow.closed").exists()
    state = exchange.state()
    assert (state["subscriptions"], state["streams"]) == (0, [])
    assert state["requests"]["Unsubscribe"] == {"200": 4}
    names = [line["event"] for line in daemon.log]
    assert names[0] == "listener.started"
    assert names[-1] == "listener.stopped"
    assert names.index("listener.stopping") < names.index("group.stopped") < names.index("handler.stopped")
    assert not [line for line in daemon.log if line["level"] in ("warning", "error")]


def test_a_slow_handler_is_canceled_after_the_grace_period(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    exchange = simulator()
    exchange.append_config(handler("hanging", "acme:open_hanging") + "\n[shutdown]\ngrace = 0.2\n")
    daemon = listen(exchange, PYTHONPATH=plugins)
    exchange.until_streaming(4)
    ledger = exchange.create_events(exchange.mailboxes[0])
    until(lambda: len(exchange.deliveries) == len(ledger), "all deliveries to the other handler")
    assert daemon.stop() == 0
    (end,) = daemon.logged("handler.stopped", handler="hanging")
    assert (end["delivered"], end["lag"]) == (0, len(ledger))
    assert exchange.state()["subscriptions"] == 4


def test_a_second_signal_stops_the_daemon_at_once(simulator: Start, listen: Listen, plugins: str) -> None:
    exchange = simulator()
    exchange.append_config(handler("hanging", "acme:open_hanging") + "\n[shutdown]\ngrace = 600\n")
    daemon = listen(exchange, PYTHONPATH=plugins)
    exchange.until_streaming(4)
    ledger = exchange.create_events(exchange.mailboxes[0])
    until(lambda: len(exchange.deliveries) == len(ledger), "all deliveries to the other handler")
    daemon.process.send_signal(signal.SIGTERM)
    daemon.until_logged("group.stopped")
    assert daemon.stop() == -signal.SIGTERM


def test_signals_stop_a_daemon_that_a_handler_blocks(simulator: Start, listen: Listen, plugins: str) -> None:
    exchange = simulator()
    exchange.append_config(handler("blocking", "acme:open_blocking", 'path = "blocked"'))
    daemon = listen(exchange, PYTHONPATH=plugins)
    exchange.until_streaming(4)
    exchange.create_events(exchange.mailboxes[0])
    until((exchange.folder / "blocked").exists, "the blocking handler")

    def ended() -> bool:
        daemon.process.send_signal(signal.SIGTERM)  # two pending signals of one kind are merged
        return daemon.process.poll() is not None

    until(ended, "the exit of the daemon")
    assert daemon.wait() == -signal.SIGTERM


def test_the_daemon_stops_in_order_if_exchange_is_down(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    daemon = listen(exchange)
    exchange.until_streaming(4)
    exchange.process.kill()
    daemon.until_logged("group.backoff")
    assert daemon.stop() == 0
    assert daemon.log[-1]["event"] == "listener.stopped"


def test_the_daemon_stops_in_order_if_exchange_never_answers(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        exchange.replace_config(f":{exchange.port}/", f":{mute.getsockname()[1]}/")
        daemon = listen(exchange)
        mute.settimeout(TIMEOUT)
        with mute.accept()[0]:
            assert daemon.stop() == 0
    assert daemon.log[-1]["event"] == "listener.stopped"


# --- startup errors


def test_all_configuration_errors_are_reported(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    exchange.replace_config("heartbeat = ", "hartbeat = ")
    exchange.append_config('colour = "red"\n[affinity]\ngroup_size = 201\n[handlers.other]\nuse = "fiel"\n')
    daemon = listen(exchange)
    assert daemon.wait() == 2
    errors = daemon.log_file.read_text().splitlines()
    assert all(line.startswith("error: ") for line in errors)
    for key in ("stream.hartbeat", "handlers.deliveries.colour", "affinity.group_size", "handlers.other.use"):
        assert len([line for line in errors if line.startswith(f"error: {key}: ")]) == 1, errors
    assert len(errors) == 4
    assert exchange.info["password"] not in daemon.log_file.read_text()
    assert exchange.state()["requests"] == {}


def test_a_handler_that_never_opens_does_not_delay_the_shutdown(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    exchange = simulator()
    exchange.append_config(handler("mute", "acme:open_mute"))
    daemon = listen(exchange, PYTHONPATH=plugins)
    daemon.until_logged("handler.started", handler="deliveries")
    assert daemon.stop() == 0


def test_a_handler_that_cannot_be_opened_is_reported(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    exchange.append_config(handler("archive", "file", 'path = "no/such/folder/x.jsonl"'))
    daemon = listen(exchange)
    assert daemon.wait() == 1  # not 2: the folder may exist at the next start
    last = daemon.log_file.read_text().splitlines()[-1]
    assert last.startswith("error: handlers.archive: could not be opened: FileNotFoundError")
    assert exchange.state()["requests"] == {}


# --- connections to Exchange


def test_tls_with_a_private_certificate_authority(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--tls")
    listen(exchange)
    exchange.until_streaming(4)
    ledger = exchange.create_events(exchange.mailboxes[0])
    until(lambda: len(exchange.deliveries) == len(ledger), "all deliveries")


def test_an_untrusted_certificate_is_reported(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--tls")
    exchange.replace_config('ca_file = "ca.pem"\n', "")
    daemon = listen(exchange)
    (line, *_) = daemon.until_logged("mailbox.refused", code="TlsFailed")
    assert "certificate" in line["text"].lower()
    assert exchange.state()["requests"] == {}


def test_requests_of_a_group_on_the_wire(
    simulator: Start, listen: Listen, record: Callable[[Simulator], Recorder]
) -> None:
    exchange = simulator("--mailboxes", "8")
    wire = record(exchange)
    exchange.replace_config('file = "mailboxes.txt"', f"addresses = {json.dumps(exchange.mailboxes)}")
    exchange.replace_config(
        exchange.info["ews_url"], exchange.info["ews_url"].replace(str(exchange.port), str(wire.port))
    )
    exchange.replace_config("[exchange]", "[exchange]\nautodiscover = false")
    exchange.append_config('\n[shutdown]\nunsubscribe = true\n\n[catch_up]\nmode = "off"\n')
    daemon = listen(exchange)
    exchange.until_streaming(8)
    assert daemon.stop() == 0
    anchor, *others = exchange.mailboxes
    assert exchange.state()["requests"] == {
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
    assert len({backend["name"] for backend in exchange.state()["backends"] if backend["mailboxes"]}) > 1


def test_static_groups_without_autodiscover(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    ann, bob, cat, dan = exchange.mailboxes
    exchange.replace_config('[mailboxes]\nfile = "mailboxes.txt"\n', "")
    exchange.replace_config("[exchange]", "[exchange]\nautodiscover = false")
    exchange.append_config(
        f"\n[affinity]\nimpersonate_anchor_on_stream = false\n"
        f'\n[[groups]]\nname = "one"\nmailboxes = {json.dumps([bob, ann])}\n'
        f'\n[[groups]]\nname = "two"\nmailboxes = {json.dumps([cat, dan])}\n'
    )
    daemon = listen(exchange)
    exchange.until_streaming(4)
    state = exchange.state()
    assert sorted(stream["ids"] for stream in state["streams"]) == [2, 2]
    assert "Autodiscover" not in state["requests"]
    assert state["hanging"] == {exchange.info["user"]: 2}
    ledger = exchange.create_events(cat)
    until(lambda: len(exchange.deliveries) == len(ledger), "all deliveries")
    streaming = daemon.until_logged("group.streaming", count=2)
    assert {(line["group"], line["anchor"]) for line in streaming} == {("one/1", ann), ("two/1", cat)}


def test_autodiscover_sorts_mailboxes_by_back_end(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--mailboxes", "30")
    daemon = listen(exchange)
    exchange.until_streaming(30)
    state = exchange.state()
    placed = {backend["name"]: backend["mailboxes"] for backend in state["backends"]}
    assert {stream["backend"]: stream["ids"] for stream in state["streams"]} == placed
    assert all(codes.keys() == {"200"} for codes in state["requests"].values())
    (found,) = daemon.logged("discovery.found")
    assert (found["mailboxes"], found["missing"]) == (30, 0)


def test_a_missing_mailbox_is_reported_and_does_not_affect_others(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    with (exchange.folder / "mailboxes.txt").open("a") as file:
        file.write("unknown@contoso.example\n")
    daemon = listen(exchange)
    exchange.until_streaming(4)
    (failed,) = daemon.until_logged("discovery.failed")
    assert (failed["mailbox"], failed["code"]) == ("unknown@contoso.example", "InvalidUser")
    (found,) = daemon.logged("discovery.found")
    assert (found["mailboxes"], found["missing"], found["codes"]) == (4, 1, {"InvalidUser": 1})
    assert daemon.stop() == 0


def test_streams_reopen_after_a_server_outage(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    exchange.append_config("\n[backoff]\nfirst = 0.05\ncap = 0.2\n")
    daemon = listen(exchange)
    exchange.until_streaming(4)
    before = len(exchange.create_events(exchange.mailboxes[0]))
    until(lambda: len(exchange.deliveries) == before, "all deliveries before the outage")
    exchange.process.kill()
    exchange.process.wait()
    daemon.until_logged("group.backoff")
    config = exchange.config.read_text()
    exchange = simulator("--port", str(exchange.port))
    assert exchange.config.read_text() in config
    exchange.until_streaming(4)
    after = [line for mailbox in exchange.mailboxes for line in exchange.create_events(mailbox)]
    until(lambda: len(exchange.deliveries) == before + len(after), "all deliveries after the outage")
    assert sorted(event["subject"] for event in exchange.deliveries[before:]) == sorted(
        line.get("item_id") or line["folder_id"] for line in after
    )


# --- the log


def test_the_log_is_json_lines_and_contains_no_secret(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    exchange.append_config('\n[log]\nlevel = "debug"\n')
    exchange.append_config(handler("log", "log"))
    daemon = listen(exchange)
    exchange.until_streaming(4)
    exchange.create_events(exchange.mailboxes[0])
    daemon.until_logged("mailbox.event", mailbox=exchange.mailboxes[0])
    assert daemon.stop() == 0
    text = daemon.log_file.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(list(line)[:3] == ["time", "level", "event"] for line in lines)
    assert {"group.streaming", "mailbox.subscribed", "handler.started"} <= {line["event"] for line in lines}
    assert exchange.info["password"] not in text
    assert "X-BackEndOverrideCookie" not in text


def test_a_wrong_password_is_reported_and_not_retried_repeatedly(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    exchange.replace_config(exchange.info["password"], "Pw-wrong")
    exchange.replace_config("[exchange]", "[exchange]\nautodiscover = false")
    daemon = listen(exchange)
    daemon.until_logged("mailbox.refused", code="Http401")
    assert daemon.stop() == 0
    # The second request shows that the rejection does not concern the anchor only.
    assert exchange.state()["requests"]["-"] == {"401": 2}
    assert "Pw-wrong" not in daemon.log_file.read_text()
