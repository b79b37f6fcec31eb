"""`ews-listener watch` as a process."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from listener.simulator.directory import Directory
from listener.simulator.settings import Settings
from tests.system import forked
from tests.system.operating import command, socket_of
from tests.system.processes import Listen, Simulator, Start, handler, json_lines, until


def test_watch_reports_the_activity_of_one_mailbox(simulator: Start, listen: Listen, plugins: str) -> None:
    exchange = simulator()
    mailbox, other = exchange.mailboxes[:2]
    exchange.append_config(handler("raising", "acme:open_raising", "attempts = 1"))
    daemon = listen(exchange, PYTHONPATH=plugins)
    exchange.until_streaming(4)
    json_output, text_output = exchange.folder / "watched.jsonl", exchange.folder / "shown"
    arguments = [sys.executable, "-m", "listener", "watch", mailbox, "--config", str(exchange.config)]
    with (
        json_output.open("w") as file,
        text_output.open("w") as text,
        forked.Popen([*arguments, "--json"], stdout=file, stderr=subprocess.PIPE, text=True) as json_watcher,
        forked.Popen(arguments, stdout=text) as text_watcher,
    ):
        try:
            until(lambda: json_lines(json_output) and "watching" in text_output.read_text(), "watchers")
            made = exchange.create_events(mailbox)
            exchange.create_events(other)
            until(lambda: any(line["kind"] == "event" for line in json_lines(json_output)), "an event")
            exchange.inject_fault(kind="stream_code", code="ErrorSubscriptionNotFound", mailbox=mailbox)

            def seen() -> set[str]:
                return {
                    f"{line['kind']} {line.get('operation', line.get('result', ''))}"
                    for line in json_lines(json_output)
                }

            expected = {
                "event ",
                "delivery done",
                "delivery dead_lettered",
                "request GetStreamingEvents",
                "log ",
            }
            until(lambda: expected <= seen(), f"{expected}")
            subjects = {
                line["subject"] for line in json_lines(json_output) if line["kind"] in ("event", "delivery")
            }
            assert subjects >= {line.get("item_id") or line["folder_id"] for line in made}
            assert other not in json_output.read_text()
            until(lambda: "delivery" in text_output.read_text(), "the delivery in the text output")
            assert daemon.stop() == 0
            assert json_watcher.wait(15) == 1
            assert json_watcher.stderr is not None
            assert "the daemon has stopped" in json_watcher.stderr.read()
            assert text_watcher.wait(15) == 1
        finally:
            json_watcher.kill()
            text_watcher.kill()
    assert all(json.loads(line) for line in json_output.read_text().splitlines())


@contextmanager
def watched(exchange: Simulator, mailbox: str) -> Iterator[Path]:
    """Run `watch --json`; yield its output file as soon as it is connected."""
    json_output = exchange.folder / "watched.jsonl"
    arguments = [sys.executable, "-m", "listener", "watch", mailbox, "--config", str(exchange.config)]
    with json_output.open("w") as file, forked.Popen([*arguments, "--json"], stdout=file) as watcher:
        try:
            until(lambda: json_lines(json_output), "a watcher")
            yield json_output
        finally:
            watcher.kill()


def test_requests_about_the_accounts_own_mailbox(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    account, other = exchange.mailboxes[:2]
    exchange.replace_config('file = "mailboxes.txt"', f'addresses = ["{account}"]\naccess = "own"')
    exchange.replace_config(f'user = "{exchange.info["user"]}"', f'user = "{account}"')
    listen(exchange)
    exchange.until_streaming(1)
    with watched(exchange, account) as json_output:
        exchange.inject_fault(kind="stream_code", code="ErrorSubscriptionNotFound", mailbox=account)
        until(
            lambda: (
                {"Subscribe", "GetStreamingEvents"}
                <= {line["operation"] for line in json_lines(json_output) if line["kind"] == "request"}
            ),
            "a new subscription and its stream",
        )
    assert other not in json_output.read_text()


def test_a_mailbox_that_the_configuration_names_by_its_sid(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--backends", "1")
    directory = Directory(Settings(mailboxes=4, backends=1), 0.0)
    assert sorted(person.address for person in directory) == exchange.mailboxes
    sids = {person.address: directory.sid(person).upper() for person in directory}
    mailbox = exchange.mailboxes[0]
    (exchange.folder / "mailboxes.txt").write_text("\n".join(sids.values()))
    exchange.replace_config('file = "mailboxes.txt"', 'file = "mailboxes.txt"\nimpersonate_by = "SID"')
    exchange.replace_config("[auth]", "autodiscover = false\n\n[auth]")
    listen(exchange)
    exchange.until_streaming(4)
    with watched(exchange, sids[mailbox].lower()) as json_output:
        exchange.create_events(mailbox)
        until(lambda: any(line["kind"] == "event" for line in json_lines(json_output)), "an event")
        exchange.inject_fault(kind="stream_code", code="ErrorSubscriptionNotFound", mailbox=mailbox)
        until(
            lambda: any(line.get("operation") == "Subscribe" for line in json_lines(json_output)),
            "a new subscription",
        )


def test_a_watcher_that_does_not_read_does_not_delay_the_shutdown(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    mailbox = exchange.mailboxes[0]
    daemon = listen(exchange)
    exchange.until_streaming(4)
    with socket.socket(socket.AF_UNIX) as idle:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        idle.connect(str(socket_of(exchange)))
        idle.sendall(f"GET /watch/{mailbox} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
        time.sleep(0.5)
        before = len(exchange.deliveries)
        for _ in range(3):
            exchange.create_events(mailbox, count=1000)  # more than all socket buffers hold
        until(lambda: len(exchange.deliveries) >= before + 3000, "the deliveries", timeout=60)
        started_at = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - started_at < 10


def test_a_mailbox_that_is_not_configured_is_an_error(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    assert "no daemon answers" in command(exchange, "watch", "unknown@contoso.example").stderr
    listen(exchange)
    exchange.until_streaming(4)
    done = command(exchange, "watch", "unknown@contoso.example")
    assert done.returncode == 1
    assert done.stderr == "error: unknown mailbox unknown@contoso.example: the daemon does not listen to it\n"
