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


def test_what_happens_with_a_mailbox(simulator: Start, listen: Listen, plugins: str) -> None:
    there = simulator()
    mailbox, other = there.mailboxes[:2]
    there.append_config(handler("raising", "acme:open_raising", "attempts = 1"))
    daemon = listen(there, PYTHONPATH=plugins)
    there.until_streaming(4)
    out, shown = there.folder / "watched.jsonl", there.folder / "shown"
    words = [sys.executable, "-m", "listener", "watch", mailbox, "--config", str(there.config)]
    with (
        out.open("w") as file,
        shown.open("w") as pretty,
        forked.Popen([*words, "--json"], stdout=file, stderr=subprocess.PIPE, text=True) as machine,
        forked.Popen(words, stdout=pretty) as people,
    ):
        try:
            until(lambda: json_lines(out) and "watching" in shown.read_text(), "watchers")
            made = there.create_events(mailbox)
            there.create_events(other)
            until(lambda: any(line["kind"] == "event" for line in json_lines(out)), "an event")
            there.inject_fault(kind="stream_code", code="ErrorSubscriptionNotFound", mailbox=mailbox)

            def seen() -> set[str]:
                return {
                    f"{line['kind']} {line.get('operation', line.get('result', ''))}"
                    for line in json_lines(out)
                }

            wanted = {
                "event ",
                "delivery done",
                "delivery dead_lettered",
                "request GetStreamingEvents",
                "log ",
            }
            until(lambda: wanted <= seen(), f"{wanted}")
            subjects = {line["subject"] for line in json_lines(out) if line["kind"] in ("event", "delivery")}
            assert subjects >= {line.get("item_id") or line["folder_id"] for line in made}
            assert other not in out.read_text()
            until(lambda: "delivery" in shown.read_text(), "the same for people")
            assert daemon.stop() == 0
            assert machine.wait(15) == 1
            assert machine.stderr is not None
            assert "the daemon has stopped" in machine.stderr.read()
            assert people.wait(15) == 1
        finally:
            machine.kill()
            people.kill()
    assert all(json.loads(line) for line in out.read_text().splitlines())


@contextmanager
def watched(there: Simulator, mailbox: str) -> Iterator[Path]:
    """The file that `watch --json` writes to, as soon as it watches."""
    out = there.folder / "watched.jsonl"
    words = [sys.executable, "-m", "listener", "watch", mailbox, "--config", str(there.config)]
    with out.open("w") as file, forked.Popen([*words, "--json"], stdout=file) as watching:
        try:
            until(lambda: json_lines(out), "a watcher")
            yield out
        finally:
            watching.kill()


def test_requests_about_the_accounts_own_mailbox(simulator: Start, listen: Listen) -> None:
    there = simulator()
    mine, other = there.mailboxes[:2]
    there.replace_config('file = "mailboxes.txt"', f'addresses = ["{mine}"]\naccess = "own"')
    there.replace_config(f'user = "{there.info["user"]}"', f'user = "{mine}"')
    listen(there)
    there.until_streaming(1)
    with watched(there, mine) as out:
        there.inject_fault(kind="stream_code", code="ErrorSubscriptionNotFound", mailbox=mine)
        until(
            lambda: (
                {"Subscribe", "GetStreamingEvents"}
                <= {line["operation"] for line in json_lines(out) if line["kind"] == "request"}
            ),
            "a new subscription and its stream",
        )
    assert other not in out.read_text()


def test_a_mailbox_that_is_known_by_its_sid(simulator: Start, listen: Listen) -> None:
    there = simulator("--backends", "1")
    people = Directory(Settings(mailboxes=4, backends=1), 0.0)
    assert sorted(person.address for person in people) == there.mailboxes
    known = {person.address: people.sid(person).upper() for person in people}
    mailbox = there.mailboxes[0]
    (there.folder / "mailboxes.txt").write_text("\n".join(known.values()))
    there.replace_config('file = "mailboxes.txt"', 'file = "mailboxes.txt"\nimpersonate_by = "SID"')
    there.replace_config("[auth]", "autodiscover = false\n\n[auth]")
    listen(there)
    there.until_streaming(4)
    with watched(there, known[mailbox].lower()) as out:
        there.create_events(mailbox)
        until(lambda: any(line["kind"] == "event" for line in json_lines(out)), "an event")
        there.inject_fault(kind="stream_code", code="ErrorSubscriptionNotFound", mailbox=mailbox)
        until(
            lambda: any(line.get("operation") == "Subscribe" for line in json_lines(out)),
            "a new subscription",
        )


def test_a_watcher_that_does_not_read_does_not_hold_up_the_end(simulator: Start, listen: Listen) -> None:
    there = simulator()
    mailbox = there.mailboxes[0]
    daemon = listen(there)
    there.until_streaming(4)
    with socket.socket(socket.AF_UNIX) as idle:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        idle.connect(str(socket_of(there)))
        idle.sendall(f"GET /watch/{mailbox} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
        time.sleep(0.5)
        before = len(there.deliveries)
        for _ in range(3):
            there.create_events(mailbox, count=1000)  # more than any buffer on the way holds
        until(lambda: len(there.deliveries) >= before + 3000, "the deliveries", timeout=60)
        started_at = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - started_at < 10


def test_a_mailbox_that_is_not_listened_to(simulator: Start, listen: Listen) -> None:
    there = simulator()
    assert "no daemon answers" in command(there, "watch", "nobody@contoso.example").stderr
    listen(there)
    there.until_streaming(4)
    told = command(there, "watch", "nobody@contoso.example")
    assert told.returncode == 1
    assert told.stderr == "error: unknown mailbox nobody@contoso.example: the daemon does not listen to it\n"
