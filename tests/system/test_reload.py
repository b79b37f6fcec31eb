"""Reload of the configuration of a running daemon."""

import signal
import socket
import time
from typing import Any

from tests.system.operating import command, socket_of, status
from tests.system.processes import Listen, Simulator, Start, handler, json_lines, until


def stream_times(exchange: Simulator) -> dict[str, float]:
    """Return when each group's stream was opened, by group."""
    return {group["name"]: group["stream_opened"] for group in status(exchange)["groups"]}


def stream_requests(exchange: Simulator) -> int:
    """Return the number of stream requests that the simulator received."""
    return sum(exchange.state()["requests"]["GetStreamingEvents"].values())


def test_adding_or_removing_a_mailbox_reopens_at_most_one_stream(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--mailboxes", "12", "--backends", "3")
    addresses = exchange.mailboxes
    listen(exchange)
    exchange.until_streaming(12)
    before = until(
        lambda: (found := status(exchange))["streaming"] == 12 and found, "all mailboxes in the status"
    )
    until(lambda: len(exchange.state()["streams"]) == len(before["groups"]), "one stream for each group")
    anchors = {group["anchor"] for group in before["groups"]}
    removed = next(mailbox for mailbox in addresses if mailbox not in anchors)
    file = exchange.folder / "mailboxes.txt"

    file.write_text("\n".join(mailbox for mailbox in addresses if mailbox != removed))
    streams, old = stream_requests(exchange), stream_times(exchange)
    done = command(exchange, "reload")
    assert (done.returncode, done.stdout) == (0, "reloaded\n")
    until(lambda: exchange.state()["mailboxes_streaming"] == 11, "one mailbox fewer")
    until(lambda: status(exchange)["streaming"] == 11, "one mailbox fewer in the status")
    changed = {name for name, moment in stream_times(exchange).items() if moment != old[name]}
    assert len(changed) <= 1
    assert stream_requests(exchange) - streams <= 1

    file.write_text("\n".join(addresses))
    streams, old = stream_requests(exchange), stream_times(exchange)
    assert command(exchange, "reload").returncode == 0
    exchange.until_streaming(12)
    until(lambda: status(exchange)["streaming"] == 12, "all mailboxes streaming again")
    changed = {name for name, moment in stream_times(exchange).items() if moment != old[name]}
    assert len(changed) == 1
    assert stream_requests(exchange) - streams == 1
    line = exchange.create_events(removed)[0]
    until(
        lambda: any(e["subject"] == line["item_id"] for e in exchange.deliveries),
        "an event of the mailbox that was added again",
    )


def test_handlers_filters_and_the_log_level_are_reloaded(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    first, second = exchange.mailboxes[:2]
    daemon = listen(exchange)
    exchange.until_streaming(4)
    streams = stream_requests(exchange)
    exchange.create_events(first)
    until(lambda: exchange.deliveries, "a delivery")
    exchange.append_config(handler("more", "file", 'path = "more.jsonl"', f'filter.mailboxes = ["{first}"]'))
    exchange.append_config('\n[log]\nlevel = "debug"\n')
    assert command(exchange, "reload").returncode == 0
    for mailbox in (first, second):
        exchange.create_events(mailbox)
    more = until(lambda: json_lines(exchange.folder / "more.jsonl"), "the new handler's line")
    assert {event["data"]["mailbox"] for event in more} == {first}

    exchange.replace_config(first, second)
    exchange.replace_config('use = "file"\npath = "more', 'use = "file"\ntimeout = 3\npath = "more')
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until_logged("listener.reloaded", count=2)
    exchange.create_events(second)
    until(
        lambda: json_lines(exchange.folder / "more.jsonl")[-1]["data"]["mailbox"] == second,
        "an event that the new filter accepts",
    )
    assert stream_requests(exchange) == streams
    assert daemon.logged("handler.started", handler="deliveries") == daemon.logged("handler.started")[:1]

    config = exchange.config.read_text()
    exchange.config.write_text(config[: config.index("[handlers.more]")])
    assert command(exchange, "reload").returncode == 0
    daemon.until_logged("handler.stopped", handler="more")
    made = {line.get("item_id") or line["folder_id"] for line in exchange.create_events(second)}
    until(
        lambda: made <= {event["subject"] for event in exchange.deliveries},
        "deliveries to the remaining handler",
    )
    assert [h["name"] for h in status(exchange)["handlers"]] == ["deliveries"]
    assert daemon.stop() == 0


def test_an_invalid_configuration_is_rejected_and_changes_nothing(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    daemon = listen(exchange)
    exchange.until_streaming(4)
    good = exchange.config.read_text()
    mailboxes = (exchange.folder / "mailboxes.txt").read_text()
    bad: list[tuple[str, str]] = [
        (good + '\n[log]\nlevel = "loud"\n', "error: log.level: "),
        (good + handler("x", "no_such"), 'error: handlers.x.use: unknown handler "no_such"'),
        (
            good + handler("x", "file", 'path = "no/such/folder/x"'),
            "error: handlers.x: could not be opened: ",
        ),
        (good.replace("[mailboxes]", "[mailboxes"), ":"),
    ]
    for number, (text, expected) in enumerate(bad, 1):
        (exchange.folder / "mailboxes.txt").write_text(mailboxes.splitlines()[0])
        exchange.config.write_text(text)
        done = command(exchange, "reload")
        assert done.returncode == 2
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
        if expected != ":":  # a TOML syntax error: the command reports it without the daemon
            daemon.until_logged("listener.reload_rejected", count=number)
    exchange.config.write_text(good)
    report = status(exchange)
    assert (report["mailboxes"], report["streaming"], report["reloads"]["refused"]) == (4, 4, 3)
    assert "handlers.x: could not be opened" in report["reloads"]["problems"][0]
    made = exchange.create_events(exchange.mailboxes[0])
    until(lambda: len(exchange.deliveries) == len(made), "further events")


def test_a_reload_finishes_if_the_client_disconnects(simulator: Start, listen: Listen, plugins: str) -> None:
    exchange = simulator()
    slow = handler("slow", "acme:open_slow", 'path = "slow.jsonl"', "seconds = 2")
    exchange.append_config(slow)
    daemon = listen(exchange, PYTHONPATH=plugins)
    exchange.until_streaming(4)
    made = exchange.create_events(exchange.mailboxes[0])
    until(lambda: len(exchange.deliveries) == len(made), "the deliveries to the other handler")
    exchange.replace_config("seconds = 2", "seconds = 0.01")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_of(exchange)))
        client.sendall(b"POST /reload HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n")
        time.sleep(0.5)
    assert not daemon.logged("listener.reloaded")
    daemon.until_logged("listener.reloaded")
    until(
        lambda: len(json_lines(exchange.folder / "slow.jsonl")) >= len(made),
        "the deliveries to the reopened handler",
    )


def test_changes_that_need_a_restart_are_reported(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    listen(exchange)
    exchange.until_streaming(4)
    exchange.replace_config("[exchange]", '[exchange]\nuser_agent = "other/1"')
    done = command(exchange, "reload")
    assert done.returncode == 0
    assert "exchange.user_agent takes effect at the next start" in done.stdout
    reloads: dict[str, Any] = status(exchange)["reloads"]
    assert (reloads["done"], reloads["pending"]) == (1, ["exchange.user_agent"])
