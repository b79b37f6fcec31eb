"""Handlers that raise any exception, blocked log readers, secrets in environments, corrupted journals."""

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

SHORT_RETRY = "\n[delivery]\nretry_first = 0.05\nattempts = 2\n"
KINDS = [*RAISED, "cancelled"]


def until_delivered(exchange: Simulator, count: int) -> None:
    until(lambda: len(exchange.deliveries) >= count, f"{count} deliveries")


def test_raising_handlers_do_not_affect_other_handlers(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    exchange = simulator()
    for kind in KINDS:
        exchange.append_config(handler(kind, "acme:open_explosive", f'kind = "{kind}"'))
    exchange.append_config(SHORT_RETRY)
    daemon = listen(exchange, PYTHONPATH=plugins)
    exchange.until_streaming(4)
    ledger = [
        *exchange.create_events(exchange.mailboxes[0], count=2),
        *exchange.create_events(exchange.mailboxes[1]),
    ]
    until_delivered(exchange, len(ledger))
    for kind in KINDS:
        daemon.until_logged("handler.failed", handler=kind)
        daemon.until_logged("handler.dead_lettered", handler=kind)
    command = [sys.executable, "-m", "listener", "dead-letters", "list", "--json", "-c", str(exchange.config)]

    def letters() -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads(subprocess.check_output(command))
        return found if len(found) == len(KINDS) * len(exchange.deliveries) else []

    for letter in until(letters, "dead letters of all handlers"):
        assert len(letter["reason"]) < 5000
    ledger += exchange.create_events(exchange.mailboxes[2])
    until_delivered(exchange, len(ledger))
    assert daemon.stop(signal.SIGINT) == 0
    assert not daemon.logged("handler.crashed")


@pytest.mark.parametrize(
    ("use", "status", "message"),
    [
        ('acme:open_not"\nkind = "system_exit', 1, "handlers.bad: could not be opened: SystemExit: 7"),
        ('acme:open_not"\nkind = "unprintable', 1, "handlers.bad: could not be opened: UnprintableError"),
        ("acme_exits:open_it", 2, "handlers.bad.use: cannot import acme_exits: SystemExit: 3"),
    ],
)
def test_handler_that_cannot_be_opened_is_named_in_the_error(
    simulator: Start, listen: Listen, plugins: str, use: str, status: int, message: str
) -> None:
    exchange = simulator()
    exchange.append_config(handler("bad", use))
    daemon = listen(exchange, PYTHONPATH=plugins)
    assert daemon.wait() == status
    text = daemon.log_file.read_text()
    assert f"error: {message}" in text
    assert "Traceback" not in text


def test_handler_that_blocks_the_event_loop_is_logged(simulator: Start, listen: Listen, plugins: str) -> None:
    exchange = simulator()
    exchange.append_config(handler("napper", "acme:open_napping", "seconds = 4.0"))
    daemon = listen(exchange, PYTHONPATH=plugins)
    exchange.until_streaming(4)
    exchange.create_events(exchange.mailboxes[0])
    (line, *_) = daemon.until_logged("handler.blocked_loop", handler="napper")
    assert "time.sleep(seconds)" in line["stack"]
    assert daemon.stop() == 0


# --- logs


class StalledPipe:
    """A pipe whose reader does not read until `read` is called."""

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
def start_run() -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    processes = []

    def start(exchange: Simulator, stderr: int, *, close: bool = False) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "listener", "run", "-c", str(exchange.config)]
        if close:
            command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
        exchange.append_config('\n[log]\nlevel = "debug"\nrepeat_interval = 0\n')
        process: subprocess.Popen[bytes] = forked.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
        processes.append(process)
        return process

    yield start
    for process in processes:
        with process:
            process.kill()


@pytest.mark.parametrize("kind", ["full", "stalled", "gone", "closed"])
def test_unwritable_log_does_not_stop_the_daemon(
    simulator: Start, start_run: Callable[..., "subprocess.Popen[bytes]"], kind: str
) -> None:
    exchange = simulator()
    pipe = StalledPipe()
    stderr = os.open("/dev/full", os.O_WRONLY) if kind == "full" else pipe.writing
    process = start_run(exchange, stderr, close=kind == "closed")
    os.close(stderr)
    if kind == "gone":
        os.close(pipe.reading)
    exchange.until_streaming(4)
    for _ in range(3):
        for mailbox in exchange.mailboxes:
            exchange.create_events(mailbox, count=5)
    until_delivered(exchange, 60)
    started_at = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT) == 0
    assert time.monotonic() - started_at < 15


def test_log_lines_are_kept_in_order_until_the_reader_resumes(
    simulator: Start, start_run: Callable[..., "subprocess.Popen[bytes]"]
) -> None:
    exchange = simulator()
    pipe = StalledPipe()
    process = start_run(exchange, pipe.writing)
    os.close(pipe.writing)
    exchange.until_streaming(4)
    for mailbox in exchange.mailboxes:
        exchange.create_events(mailbox, count=5)
    until_delivered(exchange, 20)
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


# --- programs and the status port


def test_programs_get_no_secrets(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    text = 'env > "$1.new"; ls /proc/$$/fd > "$1.fd"; mv "$1.new" "$1"; cat > /dev/null'
    out = exchange.folder / "environment"
    command = json.dumps(["sh", "-c", text, "sh", str(out)])
    exchange.append_config(handler("look", "exec", f"command = {command}", 'environment = { API = "x" }'))
    secrets = {"EWS_LISTENER_PASSWORD": "p", "CREDENTIALS_DIRECTORY": "/c", "LISTEN_FDS": "1", "ODD": "o"}
    daemon = listen(exchange, **secrets)
    exchange.until_streaming(4)
    exchange.create_events(exchange.mailboxes[0])
    until(out.exists, "the program has run")
    names = {line.partition("=")[0] for line in out.read_text().splitlines()}
    assert not names & {*secrets, "NOTIFY_SOCKET"}
    assert names >= {"API", "PATH", "EWS_EVENT_ID", "EWS_EVENT_TYPE", "EWS_MAILBOX"}
    assert set((exchange.folder / "environment.fd").read_text().split()) <= {"0", "1", "2", "3", "10", "255"}
    assert daemon.stop() == 0


def test_unknown_host_header_is_rejected(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    address = f"127.0.0.1:{free_port()}"
    exchange.append_config(f'\n[status]\nlisten = "{address}"\nallowed_hosts = ["mon.example"]\n')
    daemon = listen(exchange)
    exchange.until_streaming(4)

    def get_status(host: str) -> tuple[int, str]:
        request = urllib.request.Request(f"http://{address}/status.json", headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    for good in (address, "localhost", "mon.example:80"):
        assert get_status(good)[0] == 200, good
    status, text = get_status("rebound.evil.example")
    assert status == 421
    assert "rebound.evil.example" in text
    assert daemon.stop() == 0


# --- the journal


def test_corrupted_rows_are_logged_and_skipped(simulator: Start, listen: Listen, plugins: str) -> None:
    exchange = simulator()
    lagging = handler("late", "acme:open_hanging")
    exchange.append_config(lagging + "timeout = 1000.0\n" + SHORT_RETRY + "\n[shutdown]\ngrace = 0.2\n")
    daemon = listen(exchange, PYTHONPATH=plugins)
    exchange.until_streaming(4)
    for mailbox in exchange.mailboxes:
        exchange.create_events(mailbox, count=3)
    until_delivered(exchange, 12)
    assert daemon.stop() == 0
    journal = exchange.folder / "state" / "journal.db"
    rng = random.Random(1)
    with sqlite3.connect(journal) as connection:
        for last, body in connection.execute("SELECT last, body FROM chunks").fetchall():
            corrupted = bytearray(body)
            for _ in range(len(corrupted) // 4):
                corrupted[rng.randrange(len(corrupted))] ^= 1 << rng.randrange(8)
            connection.execute("UPDATE chunks SET body = ? WHERE last = ?", (bytes(corrupted), last))
        connection.execute("UPDATE state SET value = ?", (b"\xc1",))
        connection.execute("UPDATE handlers SET unfinished = ?", (b"\xc1",))
    connection.close()
    exchange.replace_config(lagging, handler("late", "log"))
    daemon = listen(exchange)
    daemon.until_logged("journal.events_unreadable", handler="late")
    exchange.until_streaming(4)
    before = len(exchange.deliveries)
    exchange.create_events(exchange.mailboxes[0])
    until_delivered(exchange, before + 1)
    assert daemon.logged("journal.progress_unreadable", handler="late")
    assert daemon.stop() == 0


def test_damaged_schema_exits_with_2_and_one_error(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    daemon = listen(exchange)
    exchange.until_streaming(4)
    assert daemon.stop() == 0
    connection = sqlite3.connect(exchange.folder / "state" / "journal.db")
    connection.execute("ALTER TABLE state RENAME TO statf")
    connection.close()
    daemon = listen(exchange)
    assert daemon.wait() == 2
    text = daemon.log_file.read_text()
    assert text.count("error: ") == 1
    assert "recover" in text
    assert "Traceback" not in text
