"""Network and server faults on real connections: after each one, the same daemon delivers events of all mailboxes."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.system import forked
from tests.system.processes import TIMEOUT, Listener, Simulator, start_listener, until

MAILBOXES = 4
SHORT_BACKOFF = """
[backoff]
first = 0.1
cap = 0.3
suspended_first = 0.3
suspended_cap = 0.5

[log]
level = "debug"
repeat_interval = 0
"""
Fault = dict[str, Any]


class System:
    """A running simulator and its daemon."""

    def __init__(self, exchange: Simulator, daemon: Listener) -> None:
        self.exchange = exchange
        self.daemon = daemon

    def events_arrive(self) -> None:
        """Wait for an event of each mailbox. Create new ones every 0.5 s, because an event in a gap may be lost."""
        waiting = set(self.exchange.mailboxes)
        deadline = time.monotonic() + TIMEOUT
        while waiting:
            assert time.monotonic() < deadline, (
                f"no event of {waiting}: {self.daemon.log_file.read_text()[-3000:]}"
            )
            made = {
                line.get("item_id") or line.get("folder_id"): mailbox
                for mailbox in waiting
                for line in self.exchange.create_events(mailbox)
            }
            again = time.monotonic() + 0.5
            while waiting and time.monotonic() < again:
                waiting -= {
                    made[event["subject"]] for event in self.exchange.deliveries if event["subject"] in made
                }
                time.sleep(0.02)

    def settle(self) -> None:
        """Wait until each mailbox is in one stream. The daemon may still be replacing one after an earlier fault."""
        until(
            lambda: sum(stream["ids"] for stream in self.exchange.state()["streams"]) == MAILBOXES,
            lambda: f"the streams: {self.exchange.state()['streams']}",
        )

    def memory(self, field: str) -> int:
        """Return VmRSS or VmHWM of the daemon in bytes (proc(5))."""
        status = Path(f"/proc/{self.daemon.process.pid}/status").read_text()
        (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", status)
        return int(kilobytes) * 1024


@contextmanager
def running(
    folder: Path, *options: str, prepare: Callable[[Path], None] = lambda _: None, **environment: str
) -> Iterator[System]:
    path = folder / "listener.toml"
    command = [
        *(sys.executable, "-m", "listener", "simulate", "--rate", "0", "--mailboxes", str(MAILBOXES)),
        *("--backends", "1", "--heartbeat", "0.4", "--write-config", str(path), *options),
    ]
    with forked.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            exchange = Simulator(process, json.loads(process.stdout.readline()), path)
            exchange.replace_config("[exchange]", "[exchange]\nrequest_timeout = 1\nconnect_timeout = 1")
            exchange.append_config(SHORT_BACKOFF)
            prepare(path)
            daemon = start_listener(path, environment)
            with daemon.process:
                try:
                    exchange.until_streaming(MAILBOXES)
                    yield System(exchange, daemon)
                finally:
                    daemon.process.kill()
        finally:
            process.kill()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("faults")) as system:
        yield system
        assert "Traceback" not in system.daemon.log_file.read_text()
        assert system.daemon.stop(signal.SIGTERM) == 0
        assert system.daemon.log[-1]["event"] == "listener.stopped"


def stream(kind: str, **parameters: object) -> list[Fault]:
    """A fault of the open stream."""
    return [{"kind": kind, **parameters}]


def opening(kind: str, **parameters: object) -> list[Fault]:
    """A fault of the next GetStreamingEvents, which a second fault causes."""
    return [{"kind": kind, "operation": "GetStreamingEvents", **parameters}, {"kind": "closed"}]


def subscribing(kind: str, **parameters: object) -> list[Fault]:
    """A fault of the next Subscribe, which a second fault causes."""
    cause = {"kind": "stream_code", "code": "ErrorSubscriptionNotFound"}
    return [{"kind": kind, "operation": "Subscribe", **parameters}, cause]


# Per case: the faults, and the event and fields of the log line with which the daemon reports them.
FAULTS: dict[str, tuple[list[Fault], str, dict[str, object]]] = {
    # servers that accept a request and never respond
    "no response to a stream": (opening("no_answer"), "stream.refused", {"code": "ReadTimeout"}),
    "no response to a Subscribe": (subscribing("no_answer"), "mailbox.refused", {"code": "ReadTimeout"}),
    "connection closed": (opening("hang_up"), "stream.broken", {"code": "ConnectionReset"}),
    "connection reset": (opening("hang_up", reset=True), "stream.broken", {"code": "ConnectionReset"}),
    # streams that end or stall without an error
    "silent stream": (stream("silent_stream"), "stream.silent", {"code": "StreamSilent"}),
    "stream of one byte per second": (stream("slow", seconds=60), "stream.silent", {"code": "StreamSilent"}),
    "response of one byte per second": (
        subscribing("slow", seconds=60), "mailbox.refused", {"code": "ReadTimeout"},
    ),
    "close without the final chunk": (
        stream("cut", where="end", how="close"), "stream.incomplete", {"code": "StreamIncomplete"},
    ),
    "end inside an envelope": (stream("cut", how="order"), "stream.incomplete", {"code": "StreamIncomplete"}),
    "close inside an envelope": (stream("cut", how="close"), "stream.incomplete", {"code": "StreamIncomplete"}),
    "reset inside an envelope": (stream("cut", how="reset"), "stream.broken", {"code": "ConnectionReset"}),
    "reset inside a response": (
        subscribing("cut", how="reset"), "mailbox.refused", {"code": "ConnectionReset"},
    ),
    # proxies
    "gzipped stream": (opening("gzip"), "group.streaming", {}),
    "gzipped response": (subscribing("gzip"), "group.subscribed", {"refused": 0}),
    "login page": (opening("login_page"), "stream.refused", {"code": "NotSoap"}),
    "login page for a Subscribe": (subscribing("login_page"), "mailbox.refused", {"code": "NotSoap"}),
    "redirect": (opening("http", status=302), "stream.refused", {"code": "Http302"}),
    "bad gateway": (opening("http", status=502), "stream.refused", {"code": "Http502"}),
    "Retry-After in seconds": (opening("http", status=503, retry_after=1), "stream.refused", {"code": "Http503"}),
    "Retry-After as a date": (
        opening("http", status=503, retry_after=1, retry_after_date=True), "stream.refused", {"code": "Http503"},
    ),
    # servers
    "unrequested response": (
        opening("stray_response"), "stream.refused", {"code": "ErrorInternalServerError"},
    ),
    "unrequested response to a Subscribe": (
        subscribing("stray_response"), "mailbox.refused", {"code": "ErrorInternalServerError"},
    ),
    "events after Closed": (stream("closed", then="events", seconds=1), "stream.closed", {}),
    "Closed twice": (stream("closed", then="closed"), "stream.closed", {}),
    "expired token": (
        [{"kind": "http", "status": 401, "operation": "GetStreamingEvents"}, {"kind": "cut"}],
        "stream.refused", {"code": "MailboxRefused"},  # other mailboxes still accept the account
    ),
    "unknown subscription id without a stream end": (
        stream("stream_code", code="ErrorSubscriptionNotFound", ends=False),
        "stream.refused", {"code": "ErrorSubscriptionNotFound"},
    ),
    "server busy": (
        opening("response_code", code="ErrorServerBusy", place="fault", back_off_ms=300),
        "exchange.busy", {"code": "ErrorServerBusy", "seconds": 0.3},
    ),
    "unknown code": (
        opening("response_code", code="ErrorOfAnotherDay", ids="none"),
        "exchange.unknown_code", {"code": "ErrorOfAnotherDay"},
    ),
    # malformed or oversized XML
    "entity bomb": (stream("doctype"), "stream.refused", {"code": "ForbiddenXml"}),
    "document type": (stream("doctype", bomb=False), "stream.refused", {"code": "ForbiddenXml"}),
    "invalid UTF-8": (stream("invalid_characters", form="utf8"), "stream.refused", {"code": "MalformedXml"}),
    # back ends
    "back-end restart": (stream("backend_restart"), "stream.broken", {"code": "ConnectionReset"}),
    "connection refused": (stream("outage", seconds=0.7), "stream.refused", {"code": "ConnectFailed"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_events_arrive_after_a_fault(system: System, name: str) -> None:
    faults, event, fields = FAULTS[name]
    system.settle()
    before, made = (
        len(system.daemon.logged(event, **fields)),
        sum(system.exchange.fault_status()["made"].values()),
    )
    next_try, requested = 0.0, 0

    def detected() -> bool:
        nonlocal next_try, requested
        # Repeat: the daemon may replace the stream for another reason before it detects the fault.
        if time.monotonic() > next_try:
            for fault in faults:
                system.exchange.inject_fault(**fault)
            next_try, requested = time.monotonic() + 15, requested + len(faults)
        return len(system.daemon.logged(event, **fields)) > before

    until(detected, lambda: f"{event} {fields}; the log: {system.daemon.log_file.read_text()[-3000:]}")
    until(lambda: sum(system.exchange.fault_status()["made"].values()) == made + requested, "the faults")
    system.events_arrive()


@pytest.mark.parametrize("form", ["reference", "control"])
def test_forbidden_xml_characters_do_not_break_the_stream(system: System, form: str) -> None:
    """Exchange copies such characters from mails into its responses."""
    system.settle()
    before = system.daemon.log
    assert system.exchange.inject_fault(kind="invalid_characters", form=form)
    system.events_arrive()
    assert [line for line in system.daemon.log[len(before) :] if line["level"] == "warning"] == []


def test_events_after_closed_are_delivered(system: System) -> None:
    system.settle()
    mailbox = system.exchange.mailboxes[0]
    assert system.exchange.inject_fault(kind="closed", then="events", seconds=0.5)
    ids = {
        line.get("item_id") or line.get("folder_id")
        for line in system.exchange.create_events(mailbox, count=20)
    }
    until(
        lambda: ids <= {event["subject"] for event in system.exchange.deliveries},
        "the events after Closed",
    )
    system.events_arrive()


def test_unknown_code_is_logged_once(system: System) -> None:
    for _ in range(2):
        system.settle()
        refused = len(system.daemon.logged("stream.refused", code="ErrorOfTheDayAfter"))
        for fault in opening("response_code", code="ErrorOfTheDayAfter", ids="none"):
            system.exchange.inject_fault(**fault)
        system.daemon.until_logged("stream.refused", refused + 1, code="ErrorOfTheDayAfter")
    assert len(system.daemon.logged("exchange.unknown_code", code="ErrorOfTheDayAfter")) == 1


def test_envelope_of_50_megabytes_is_not_buffered(tmp_path: Path) -> None:
    # On a busy machine the envelope delays the next heartbeat. A longer interval keeps the stream alive.
    with running(tmp_path, "--heartbeat", "10") as system:
        # Reset the high-water mark.
        Path(f"/proc/{system.daemon.process.pid}/clear_refs").write_text("5")
        rss = system.memory("VmRSS")
        assert system.exchange.inject_fault(kind="padding", megabytes=50)
        system.daemon.until_logged("stream.refused", code="EnvelopeTooLarge")
        system.events_arrive()
        grown = system.memory("VmHWM") - rss
        print(f"50 MB: {grown / 1e6:.1f} MB more at most")
        assert grown < 40e6
        assert system.daemon.stop() == 0


def test_expired_or_untrusted_certificates(tmp_path: Path) -> None:
    with running(tmp_path, "--tls") as system:
        for how in ("expired", "other_host", "other_authority"):
            before = len(system.daemon.logged("stream.refused", code="TlsFailed"))
            system.exchange.inject_fault(kind="bad_certificate", how=how, seconds=60)

            def detected() -> bool:
                if not system.daemon.logged("stream.refused", code="TlsFailed")[before:]:  # noqa: B023
                    system.exchange.inject_fault(kind="cut", within=0.3)
                    return False
                return True

            until(detected, f"a refused certificate: {how}")
            line = system.daemon.logged("stream.refused", code="TlsFailed")[-1]
            assert "certificate" in line["text"].lower()
            system.exchange.inject_fault(profile="none")
            system.events_arrive()
        assert system.daemon.stop() == 0


RESOLVER = """
import socket
from pathlib import Path

original = socket.getaddrinfo

def getaddrinfo(host, *arguments, **options):
    if host in ("localhost", b"localhost"):
        if Path({flag!r}).exists():
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        host = "127.0.0.1"
    return original(host, *arguments, **options)

socket.getaddrinfo = getaddrinfo
"""


def test_temporary_name_resolution_failure(tmp_path: Path) -> None:
    """The daemon gets a patched resolver, because the test cannot change the name resolution of the machine."""
    flag, folder = tmp_path / "no-dns", tmp_path / "python"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(RESOLVER.format(flag=str(flag)))

    def use_hostname(config: Path) -> None:
        text = config.read_text().replace("//127.0.0.1", "//localhost")
        config.write_text(text.replace("[exchange]", "[exchange]\nautodiscover = false"))

    with running(tmp_path, prepare=use_hostname, PYTHONPATH=str(folder)) as system:
        system.events_arrive()
        flag.touch()

        def detected() -> bool:
            system.exchange.inject_fault(kind="outage", how="reset", seconds=0.2)
            return bool(system.daemon.logged("stream.refused", code="NameNotResolved"))

        until(detected, "a name resolution failure")
        line = system.daemon.logged("stream.refused", code="NameNotResolved")[0]
        assert "name resolution" in line["text"]
        flag.unlink()
        system.events_arrive()
        assert system.daemon.stop() == 0
