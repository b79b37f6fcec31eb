"""Handlers that raise anything, logs that nobody reads, programs that look around, a journal with flipped bytes."""

import fcntl
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from tests.system import forked
from tests.system.operating import free_port
from tests.system.plugins.acme import RAISED
from tests.system.processes import TIMEOUT, Listen, Simulator, Start, handler, until

HASTE = "\n[delivery]\nretry_first = 0.05\nattempts = 2\n"
KINDS = [*RAISED, "cancelled"]


def delivered(there: Simulator, count: int) -> None:
    until(lambda: len(there.deliveries) >= count, f"{count} deliveries")


def test_handlers_that_raise_anything_harm_nobody(simulator: Start, listen: Listen, plugins: str) -> None:
    there = simulator()
    for kind in KINDS:
        there.append_config(handler(kind, "acme:open_explosive", f'kind = "{kind}"'))
    there.append_config(HASTE)
    daemon = listen(there, PYTHONPATH=plugins)
    there.until_streaming(4)
    ledger = [*there.create_events(there.mailboxes[0], count=2), *there.create_events(there.mailboxes[1])]
    delivered(there, len(ledger))
    for kind in KINDS:
        daemon.until_logged("handler.failed", handler=kind)
        daemon.until_logged("handler.dead_lettered", handler=kind)
    command = [sys.executable, "-m", "listener", "dead-letters", "list", "--json", "-c", str(there.config)]

    def letters() -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads(subprocess.check_output(command))
        return found if len(found) == len(KINDS) * len(there.deliveries) else []

    for letter in until(letters, "dead letters of all"):
        assert len(letter["reason"]) < 5000
    ledger += there.create_events(there.mailboxes[2])
    delivered(there, len(ledger))
    assert daemon.stop(signal.SIGINT) == 0
    assert not daemon.logged("handler.crashed")


@pytest.mark.parametrize(
    ("use", "status", "said"),
    [
        ('acme:open_not"\nkind = "system_exit', 1, "handlers.bad: could not be opened: SystemExit: 7"),
        ('acme:open_not"\nkind = "unprintable', 1, "handlers.bad: could not be opened: UnprintableError"),
        ("acme_exits:open_it", 2, "handlers.bad.use: cannot import acme_exits: SystemExit: 3"),
    ],
)
def test_a_handler_that_cannot_be_had_ends_the_start_with_its_name(
    simulator: Start, listen: Listen, plugins: str, use: str, status: int, said: str
) -> None:
    there = simulator()
    there.append_config(handler("bad", use))
    daemon = listen(there, PYTHONPATH=plugins)
    assert daemon.wait() == status
    text = daemon.log_file.read_text()
    assert f"error: {said}" in text
    assert "Traceback" not in text


def test_a_handler_that_blocks_the_loop_is_named(simulator: Start, listen: Listen, plugins: str) -> None:
    there = simulator()
    there.append_config(handler("napper", "acme:open_napping", "seconds = 4.0"))
    daemon = listen(there, PYTHONPATH=plugins)
    there.until_streaming(4)
    there.create_events(there.mailboxes[0])
    (line, *_) = daemon.until_logged("handler.blocked_loop", handler="napper")
    assert "time.sleep(seconds)" in line["stack"]
    assert daemon.stop() == 0


# --- logs


class Stalled:
    """A pipe whose reader reads nothing, until it is asked to."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, 4096)

    def read(self) -> bytes:
        os.set_blocking(self.reading, False)
        found = b""
        try:
            while chunk := os.read(self.reading, 65536):
                found += chunk
        except BlockingIOError:
            pass
        return found


@pytest.fixture
def started() -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    processes = []

    def start(there: Simulator, stderr: int, *, close: bool = False) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "listener", "run", "-c", str(there.config)]
        if close:
            command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
        there.append_config('\n[log]\nlevel = "debug"\nrepeat_interval = 0\n')
        process: subprocess.Popen[bytes] = forked.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
        processes.append(process)
        return process

    yield start
    for process in processes:
        with process:
            process.kill()


@pytest.mark.parametrize("kind", ["full", "stalled", "gone", "closed"])
def test_a_log_that_cannot_be_written_stops_nothing(
    simulator: Start, started: Callable[..., "subprocess.Popen[bytes]"], kind: str
) -> None:
    there = simulator()
    pipe = Stalled()
    stderr = os.open("/dev/full", os.O_WRONLY) if kind == "full" else pipe.writing
    process = started(there, stderr, close=kind == "closed")
    os.close(stderr)
    if kind == "gone":
        os.close(pipe.reading)
    there.until_streaming(4)
    for _ in range(3):
        for mailbox in there.mailboxes:
            there.create_events(mailbox, count=5)
    delivered(there, 60)
    started_at = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT) == 0
    assert time.monotonic() - started_at < 15


def test_a_reader_that_comes_back_gets_every_line_in_order(
    simulator: Start, started: Callable[..., "subprocess.Popen[bytes]"]
) -> None:
    there = simulator()
    pipe = Stalled()
    process = started(there, pipe.writing)
    os.close(pipe.writing)
    there.until_streaming(4)
    for mailbox in there.mailboxes:
        there.create_events(mailbox, count=5)
    delivered(there, 20)
    process.send_signal(signal.SIGTERM)
    found = b""
    while process.poll() is None:
        found += pipe.read()
        time.sleep(0.01)
    lines = [json.loads(line) for line in (found + pipe.read()).splitlines()]
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    assert lines[0]["event"] == "listener.started"
    assert lines[-1]["event"] == "listener.stopped"
    assert not [line for line in lines if line["event"] == "log.dropped"]


# --- programs, the status port


def test_a_program_gets_no_secrets(simulator: Start, listen: Listen) -> None:
    there = simulator()
    text = 'env > "$1.new"; ls /proc/$$/fd > "$1.fd"; mv "$1.new" "$1"; cat > /dev/null'
    out = there.folder / "environment"
    command = json.dumps(["sh", "-c", text, "sh", str(out)])
    there.append_config(handler("look", "exec", f"command = {command}", 'environment = { API = "x" }'))
    secret = {"EWS_LISTENER_PASSWORD": "p", "CREDENTIALS_DIRECTORY": "/c", "LISTEN_FDS": "1", "ODD": "o"}
    daemon = listen(there, **secret)
    there.until_streaming(4)
    there.create_events(there.mailboxes[0])
    until(out.exists, "the program has run")
    names = {line.partition("=")[0] for line in out.read_text().splitlines()}
    assert not names & {*secret, "NOTIFY_SOCKET"}
    assert names >= {"API", "PATH", "EWS_EVENT_ID", "EWS_EVENT_TYPE", "EWS_MAILBOX"}
    assert set((there.folder / "environment.fd").read_text().split()) <= {"0", "1", "2", "3", "10", "255"}
    assert daemon.stop() == 0


def test_a_foreign_host_gets_no_answer(simulator: Start, listen: Listen) -> None:
    there = simulator()
    address = f"127.0.0.1:{free_port()}"
    there.append_config(f'\n[status]\nlisten = "{address}"\nallowed_hosts = ["mon.example"]\n')
    daemon = listen(there)
    there.until_streaming(4)

    def ask(host: str) -> tuple[int, str]:
        request = urllib.request.Request(f"http://{address}/status.json", headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    for good in (address, "localhost", "mon.example:80"):
        assert ask(good)[0] == 200, good
    status, text = ask("rebound.evil.example")
    assert status == 421
    assert "rebound.evil.example" in text
    assert daemon.stop() == 0


# --- the journal


def test_flipped_bytes_in_rows_are_told_and_passed_over(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    there = simulator()
    lagging = handler("late", "acme:open_hanging")
    there.append_config(lagging + "timeout = 1000.0\n" + HASTE + "\n[shutdown]\ngrace = 0.2\n")
    daemon = listen(there, PYTHONPATH=plugins)
    there.until_streaming(4)
    for mailbox in there.mailboxes:
        there.create_events(mailbox, count=3)
    delivered(there, 12)
    assert daemon.stop() == 0
    journal = there.folder / "state" / "journal.db"
    chance = random.Random(1)
    with sqlite3.connect(journal) as connection:
        for last, body in connection.execute("SELECT last, body FROM chunks").fetchall():
            bad = bytearray(body)
            for _ in range(len(bad) // 4):
                bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
            connection.execute("UPDATE chunks SET body = ? WHERE last = ?", (bytes(bad), last))
        connection.execute("UPDATE state SET value = ?", (b"\xc1",))
        connection.execute("UPDATE handlers SET unfinished = ?", (b"\xc1",))
    connection.close()
    there.replace_config(lagging, handler("late", "log"))
    daemon = listen(there)
    daemon.until_logged("journal.events_unreadable", handler="late")
    there.until_streaming(4)
    before = len(there.deliveries)
    there.create_events(there.mailboxes[0])
    delivered(there, before + 1)
    assert daemon.logged("journal.progress_unreadable", handler="late")
    assert daemon.stop() == 0


def test_a_damaged_schema_ends_with_2_and_one_error(simulator: Start, listen: Listen) -> None:
    there = simulator()
    daemon = listen(there)
    there.until_streaming(4)
    assert daemon.stop() == 0
    connection = sqlite3.connect(there.folder / "state" / "journal.db")
    connection.execute("ALTER TABLE state RENAME TO statf")
    connection.close()
    daemon = listen(there)
    assert daemon.wait() == 2
    text = daemon.log_file.read_text()
    assert text.count("error: ") == 1
    assert "recover" in text
    assert "Traceback" not in text
