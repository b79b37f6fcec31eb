"""Half-dead things on a real wire: one daemon lives through them all, and after each its mailboxes' events arrive."""

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
HASTE = """
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


class Wire:
    """A simulator and the daemon that listens to it."""

    def __init__(self, there: Simulator, daemon: Listener) -> None:
        self.there = there
        self.daemon = daemon

    def events_arrive(self) -> None:
        """Those of each mailbox. What falls into a gap may be lost: each is given some chances."""
        waiting = set(self.there.mailboxes)
        deadline = time.monotonic() + TIMEOUT
        while waiting:
            assert time.monotonic() < deadline, (
                f"nothing of {waiting}: {self.daemon.log_file.read_text()[-3000:]}"
            )
            made = {
                line.get("item_id") or line.get("folder_id"): mailbox
                for mailbox in waiting
                for line in self.there.create_events(mailbox)
            }
            again = time.monotonic() + 0.5
            while waiting and time.monotonic() < again:
                waiting -= {
                    made[event["subject"]] for event in self.there.deliveries if event["subject"] in made
                }
                time.sleep(0.02)

    def settle(self) -> None:
        """Returns when each mailbox is in one stream: a fault of before may have left one that is being replaced."""
        until(
            lambda: sum(stream["ids"] for stream in self.there.state()["streams"]) == MAILBOXES,
            lambda: f"the streams: {self.there.state()['streams']}",
        )

    def memory(self, what: str) -> int:
        """VmRSS or VmHWM of the daemon, in bytes (proc(5))."""
        status = Path(f"/proc/{self.daemon.process.pid}/status").read_text()
        (kilobytes,) = re.findall(rf"{what}:\s+(\d+) kB", status)
        return int(kilobytes) * 1024


@contextmanager
def running(
    folder: Path, *options: str, prepare: Callable[[Path], None] = lambda _: None, **environment: str
) -> Iterator[Wire]:
    path = folder / "listener.toml"
    command = [
        *(sys.executable, "-m", "listener", "simulate", "--rate", "0", "--mailboxes", str(MAILBOXES)),
        *("--backends", "1", "--heartbeat", "0.4", "--write-config", str(path), *options),
    ]
    with forked.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            there = Simulator(process, json.loads(process.stdout.readline()), path)
            there.replace_config("[exchange]", "[exchange]\nrequest_timeout = 1\nconnect_timeout = 1")
            there.append_config(HASTE)
            prepare(path)
            daemon = start_listener(path, environment)
            with daemon.process:
                try:
                    there.until_streaming(MAILBOXES)
                    yield Wire(there, daemon)
                finally:
                    daemon.process.kill()
        finally:
            process.kill()


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    with running(tmp_path_factory.mktemp("faults")) as wire:
        yield wire
        assert "Traceback" not in wire.daemon.log_file.read_text()
        assert wire.daemon.stop(signal.SIGTERM) == 0
        assert wire.daemon.log[-1]["event"] == "listener.stopped"


def stream(kind: str, **parameters: object) -> list[Fault]:
    """Befalls the open stream."""
    return [{"kind": kind, **parameters}]


def opening(kind: str, **parameters: object) -> list[Fault]:
    """Befalls the opening of the next stream, which is brought about."""
    return [{"kind": kind, "operation": "GetStreamingEvents", **parameters}, {"kind": "closed"}]


def subscribing(kind: str, **parameters: object) -> list[Fault]:
    """Befalls the next Subscribe, which is brought about."""
    lost = {"kind": "stream_code", "code": "ErrorSubscriptionNotFound"}
    return [{"kind": kind, "operation": "Subscribe", **parameters}, lost]


# What is done, and the line of the log that tells that it was noticed for what it is.
FAULTS: dict[str, tuple[list[Fault], str, dict[str, object]]] = {
    # peers that accept and never answer
    "no answer to a stream": (opening("no_answer"), "stream.refused", {"code": "ReadTimeout"}),
    "no answer to a Subscribe": (subscribing("no_answer"), "mailbox.refused", {"code": "ReadTimeout"}),
    "hang up": (opening("hang_up"), "stream.broken", {"code": "ConnectionReset"}),
    "reset": (opening("hang_up", reset=True), "stream.broken", {"code": "ConnectionReset"}),
    # streams that die without a word
    "silence": (stream("silent_stream"), "stream.silent", {"code": "StreamSilent"}),
    "a byte a second": (stream("slow", seconds=60), "stream.silent", {"code": "StreamSilent"}),
    "an answer of a byte a second": (
        subscribing("slow", seconds=60), "mailbox.refused", {"code": "ReadTimeout"},
    ),
    "no end": (stream("cut", where="end", how="close"), "stream.incomplete", {"code": "StreamIncomplete"}),
    "an end in an envelope": (stream("cut", how="order"), "stream.incomplete", {"code": "StreamIncomplete"}),
    "no end in an envelope": (stream("cut", how="close"), "stream.incomplete", {"code": "StreamIncomplete"}),
    "a reset in an envelope": (stream("cut", how="reset"), "stream.broken", {"code": "ConnectionReset"}),
    "a reset in an answer": (
        subscribing("cut", how="reset"), "mailbox.refused", {"code": "ConnectionReset"},
    ),
    # what proxies do
    "gzip": (opening("gzip"), "group.streaming", {}),
    "a gzipped answer": (subscribing("gzip"), "group.subscribed", {"refused": 0}),
    "a login page": (opening("login_page"), "stream.refused", {"code": "NotSoap"}),
    "a login page for a Subscribe": (subscribing("login_page"), "mailbox.refused", {"code": "NotSoap"}),
    "a redirect": (opening("http", status=302), "stream.refused", {"code": "Http302"}),
    "a bad gateway": (opening("http", status=502), "stream.refused", {"code": "Http502"}),
    "a pause": (opening("http", status=503, retry_after=1), "stream.refused", {"code": "Http503"}),
    "a pause to a date": (
        opening("http", status=503, retry_after=1, retry_after_date=True), "stream.refused", {"code": "Http503"},
    ),
    # what servers do
    "a stray response": (
        opening("stray_response"), "stream.refused", {"code": "ErrorInternalServerError"},
    ),
    "a stray response to a Subscribe": (
        subscribing("stray_response"), "mailbox.refused", {"code": "ErrorInternalServerError"},
    ),
    "Closed and events": (stream("closed", then="events", seconds=1), "stream.closed", {}),
    "two Closed": (stream("closed", then="closed"), "stream.closed", {}),
    "a token that dies": (
        [{"kind": "http", "status": 401, "operation": "GetStreamingEvents"}, {"kind": "cut"}],
        "stream.refused", {"code": "MailboxRefused"},  # the account is accepted for the others
    ),
    "a bad id, and no end": (
        stream("stream_code", code="ErrorSubscriptionNotFound", ends=False),
        "stream.refused", {"code": "ErrorSubscriptionNotFound"},
    ),
    "busy": (
        opening("response_code", code="ErrorServerBusy", place="fault", back_off_ms=300),
        "exchange.busy", {"code": "ErrorServerBusy", "seconds": 0.3},
    ),
    "an unknown code": (
        opening("response_code", code="ErrorOfAnotherDay", ids="none"),
        "exchange.unknown_code", {"code": "ErrorOfAnotherDay"},
    ),
    # bytes that are no XML, or too much of it
    "a bomb": (stream("doctype"), "stream.refused", {"code": "ForbiddenXml"}),
    "a document type": (stream("doctype", bomb=False), "stream.refused", {"code": "ForbiddenXml"}),
    "no UTF-8": (stream("invalid_characters", form="utf8"), "stream.refused", {"code": "MalformedXml"}),
    # the back end
    "a restart": (stream("backend_restart"), "stream.broken", {"code": "ConnectionReset"}),
    "nobody there": (stream("outage", seconds=0.7), "stream.refused", {"code": "ConnectFailed"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_after_it_events_arrive(wire: Wire, name: str) -> None:
    orders, noticed, fields = FAULTS[name]
    wire.settle()
    before, made = len(wire.daemon.logged(noticed, **fields)), sum(wire.there.fault_status()["made"].values())
    again, ordered = 0.0, 0

    def seen() -> bool:
        nonlocal again, ordered
        if time.monotonic() > again:  # a stream may be replaced for another reason before it is noticed
            for order in orders:
                wire.there.inject_fault(**order)
            again, ordered = time.monotonic() + 15, ordered + len(orders)
        return len(wire.daemon.logged(noticed, **fields)) > before

    until(seen, lambda: f"{noticed} {fields}; the log: {wire.daemon.log_file.read_text()[-3000:]}")
    until(lambda: sum(wire.there.fault_status()["made"].values()) == made + ordered, "the faults")
    wire.events_arrive()


@pytest.mark.parametrize("form", ["reference", "control"])
def test_characters_that_xml_forbids_break_nothing(wire: Wire, form: str) -> None:
    """Exchange passes them on from mails; the stream goes on."""
    wire.settle()
    before = wire.daemon.log
    assert wire.there.inject_fault(kind="invalid_characters", form=form)
    wire.events_arrive()
    assert [line for line in wire.daemon.log[len(before) :] if line["level"] == "warning"] == []


def test_what_comes_after_closed_is_delivered(wire: Wire) -> None:
    wire.settle()
    mailbox = wire.there.mailboxes[0]
    assert wire.there.inject_fault(kind="closed", then="events", seconds=0.5)
    ids = {
        line.get("item_id") or line.get("folder_id") for line in wire.there.create_events(mailbox, count=20)
    }
    until(
        lambda: ids <= {event["subject"] for event in wire.there.deliveries},
        "the events that came after Closed",
    )
    wire.events_arrive()


def test_an_unknown_code_was_told_once(wire: Wire) -> None:
    for _ in range(2):
        wire.settle()
        refused = len(wire.daemon.logged("stream.refused", code="ErrorOfTheDayAfter"))
        for order in opening("response_code", code="ErrorOfTheDayAfter", ids="none"):
            wire.there.inject_fault(**order)
        wire.daemon.until_logged("stream.refused", refused + 1, code="ErrorOfTheDayAfter")
    assert len(wire.daemon.logged("exchange.unknown_code", code="ErrorOfTheDayAfter")) == 1


def test_an_envelope_of_50_megabytes_is_not_kept(tmp_path: Path) -> None:
    # What is behind it takes time to come on a busy machine: that is no silence.
    with running(tmp_path, "--heartbeat", "10") as wire:
        Path(f"/proc/{wire.daemon.process.pid}/clear_refs").write_text(
            "5"
        )  # the high-water mark begins again
        rss = wire.memory("VmRSS")
        assert wire.there.inject_fault(kind="padding", megabytes=50)
        wire.daemon.until_logged("stream.refused", code="EnvelopeTooLarge")
        wire.events_arrive()
        grown = wire.memory("VmHWM") - rss
        print(f"50 MB: {grown / 1e6:.1f} MB more at most")
        assert grown < 40e6
        assert wire.daemon.stop() == 0


def test_certificates_that_expire_or_are_not_trusted(tmp_path: Path) -> None:
    with running(tmp_path, "--tls") as wire:
        for how in ("expired", "other_host", "other_authority"):
            before = len(wire.daemon.logged("stream.refused", code="TlsFailed"))
            wire.there.inject_fault(kind="bad_certificate", how=how, seconds=60)

            def seen() -> bool:
                if not wire.daemon.logged("stream.refused", code="TlsFailed")[before:]:  # noqa: B023
                    wire.there.inject_fault(kind="cut", within=0.3)
                    return False
                return True

            until(seen, f"a certificate that is refused, {how}")
            line = wire.daemon.logged("stream.refused", code="TlsFailed")[-1]
            assert "certificate" in line["text"].lower()
            wire.there.inject_fault(profile="none")
            wire.events_arrive()
        assert wire.daemon.stop() == 0


RESOLVER = """
import socket
from pathlib import Path

genuine = socket.getaddrinfo

def getaddrinfo(host, *arguments, **options):
    if host in ("localhost", b"localhost"):
        if Path({flag!r}).exists():
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        host = "127.0.0.1"
    return genuine(host, *arguments, **options)

socket.getaddrinfo = getaddrinfo
"""


def test_a_name_that_cannot_be_resolved_for_a_while(tmp_path: Path) -> None:
    """The names of the machine that the tests run on are not ours to break: the resolver is, in the daemon."""
    flag, folder = tmp_path / "no-dns", tmp_path / "python"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(RESOLVER.format(flag=str(flag)))

    def named(config: Path) -> None:
        text = config.read_text().replace("//127.0.0.1", "//localhost")
        config.write_text(text.replace("[exchange]", "[exchange]\nautodiscover = false"))

    with running(tmp_path, prepare=named, PYTHONPATH=str(folder)) as wire:
        wire.events_arrive()
        flag.touch()

        def seen() -> bool:
            wire.there.inject_fault(kind="outage", how="reset", seconds=0.2)
            return bool(wire.daemon.logged("stream.refused", code="NameNotResolved"))

        until(seen, "a name that is not resolved")
        line = wire.daemon.logged("stream.refused", code="NameNotResolved")[0]
        assert "name resolution" in line["text"]
        flag.unlink()
        wire.events_arrive()
        assert wire.daemon.stop() == 0
