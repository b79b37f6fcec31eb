"""Faults on the wire: a real simulator, and a client of sockets and h11 that uses no code of the daemon."""

import gzip
import json
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import h11
import pytest

from tests.simulator.client import basic, envelope, envelopes, stream_body, subscribe_body
from tests.system import forked

Start = Callable[..., tuple["subprocess.Popen[str]", dict[str, Any]]]
ENVELOPE_END = b"</Envelope>"
SHORT = 0.3


class Peer:
    """One connection. Reads raise TimeoutError after 10 seconds without data."""

    def __init__(self, info: dict[str, Any], sock: socket.socket) -> None:
        self.info = info
        self.sock = sock
        self.http = h11.Connection(h11.CLIENT)

    def send(self, body: str, mailbox: str) -> None:
        content = envelope(body, impersonate=mailbox)
        headers = [
            ("Host", "localhost"),
            ("Authorization", basic(self.info["user"], self.info["password"])),
            ("X-AnchorMailbox", mailbox),
            ("Content-Length", str(len(content))),
        ]
        request = h11.Request(method="POST", target="/EWS/Exchange.asmx", headers=headers)
        self.sock.sendall(
            b"".join(self.http.send(e) or b"" for e in (request, h11.Data(data=content), h11.EndOfMessage()))
        )

    def event(self) -> h11.Event:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(self.sock.recv(65536))
        assert not isinstance(event, type)
        return event

    def head(self) -> h11.Response:
        event = self.event()
        assert isinstance(event, h11.Response)
        return event

    def read_until(self, marker: bytes) -> bytes:
        """Read the body until it contains `marker`."""
        data = b""
        while marker not in data:
            event = self.event()
            assert isinstance(event, h11.Data), data
            data += event.data
        return data

    def body(self) -> bytes:
        """Read the rest of the body."""
        data = b""
        while isinstance(event := self.event(), h11.Data):
            data += event.data
        assert isinstance(event, h11.EndOfMessage)
        return data

    def answer(self) -> bytes:
        """Read a whole answer and prepare the connection for the next request."""
        assert self.head().status_code in (200, 500)
        data = self.body()
        self.http.start_next_cycle()
        return data

    def silent(self) -> bool:
        """Return whether the connection is open and no data arrives."""
        self.sock.settimeout(SHORT)
        try:
            self.sock.recv(1)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(10)
        return False


class Server:
    """A simulated Exchange of two mailboxes on one back end."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info
        self.port = int(info["ews_url"].split(":")[2].partition("/")[0])
        addresses = Path(info["mailboxes_file"]).read_text().split()
        self.alice, self.bob = addresses

    @contextmanager
    def peer(self) -> Iterator[Peer]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as sock:
            yield Peer(self.info, sock)

    @contextmanager
    def streaming(self) -> Iterator[tuple[Peer, str]]:
        """Yield a stream that has sent its first heartbeat, and the ID of its subscription."""
        with self.peer() as peer:
            id_ = self.subscribe(peer)
            peer.send(stream_body([id_]), self.alice)
            assert peer.head().status_code == 200
            peer.read_until(ENVELOPE_END)
            yield peer, id_

    def subscribe(self, peer: Peer) -> str:
        peer.send(subscribe_body(), self.alice)
        (root,) = envelopes(peer.answer())
        id_ = root.findtext(".//{*}SubscriptionId")
        assert id_
        return id_

    def break_(self, kind: str, **parameters: object) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = self.control("faults", {"kind": kind, **parameters})["made"]
        return lines

    def new_mail(self, count: int = 1) -> None:
        self.control("events", {"mailbox": self.alice, "kind": "NewMailEvent", "count": count})

    def control(self, resource: str, body: object = None) -> dict[str, Any]:
        url = f"{self.info['control_url']}/{resource}"
        context = ssl.create_default_context(cafile=self.info["ca_file"]) if self.info["ca_file"] else None
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(url, data, timeout=10, context=context) as reply:
            answer: dict[str, Any] = json.load(reply)
        return answer


def start(simulate: Start, folder: Path, *options: str) -> Server:
    config = folder / "listener.toml"
    _, info = simulate(
        "--rate", "0", "--mailboxes", "2", "--backends", "1", "--write-config", str(config), *options
    )  # fmt: skip
    return Server(info)


@pytest.fixture
def server(simulate: Start, tmp_path: Path) -> Server:
    return start(simulate, tmp_path)


# -- answers -------------------------------------------------------------------------------------------------


def test_no_answer(server: Server) -> None:
    server.break_("no_answer")
    server.break_("no_answer", seconds=0.1)
    with server.peer() as forever, server.peer() as for_a_while:
        forever.send(subscribe_body(), server.alice)
        assert forever.silent()
        for_a_while.send(subscribe_body(), server.alice)
        assert for_a_while.sock.recv(1) == b""


def test_connection_closed_before_an_answer(server: Server) -> None:
    server.break_("hang_up")
    with server.peer() as peer:
        peer.send(subscribe_body(), server.alice)
        assert peer.sock.recv(1) == b""


def test_connection_reset_before_an_answer(server: Server) -> None:
    server.break_("hang_up", reset=True)
    with server.peer() as peer:
        peer.send(subscribe_body(), server.alice)
        with pytest.raises(ConnectionResetError):
            peer.sock.recv(1)


def test_unrequested_gzip(server: Server) -> None:
    server.break_("gzip")
    with server.peer() as peer:
        peer.send(subscribe_body(), server.alice)
        assert (b"content-encoding", b"gzip") in list(peer.head().headers)
        assert b"SubscriptionId" in gzip.decompress(peer.body())


def test_a_gzipped_stream(server: Server) -> None:
    with server.peer() as peer:
        id_ = server.subscribe(peer)
        server.break_("gzip", operation="GetStreamingEvents")
        peer.send(stream_body([id_]), server.alice)
        assert (b"content-encoding", b"gzip") in list(peer.head().headers)
        inflate = zlib.decompressobj(wbits=31)
        event = peer.event()
        assert isinstance(event, h11.Data)
        # The server flushes each write: the client can decompress it before more data arrives.
        assert inflate.decompress(event.data).endswith(ENVELOPE_END)
        server.break_("closed")
        rest = inflate.decompress(peer.body())
        assert b"Closed" in rest
        assert inflate.eof


def test_a_stray_response_after_a_fault(server: Server) -> None:
    server.break_("stray_response")
    with server.peer() as peer:
        peer.send(subscribe_body(), server.alice)
        assert b"ErrorInternalServerError" in peer.answer()
        peer.send(subscribe_body(), server.alice)
        assert peer.answer() == b"<html><body>The connection was lost.</body></html>"


def test_an_answer_one_byte_at_a_time(server: Server) -> None:
    server.break_("slow", operation="Subscribe", seconds=SHORT, interval=0.01)
    with server.peer() as peer:
        peer.send(subscribe_body(), server.alice)
        started_at = time.monotonic()
        assert len(peer.sock.recv(100)) == 1
        rest = b""
        while not rest.endswith(b":Envelope>"):
            rest += peer.sock.recv(65536)
        assert time.monotonic() - started_at > SHORT / 2


@pytest.mark.parametrize("how", ["order", "close", "reset"])
@pytest.mark.parametrize("where", ["envelope", "end"])
def test_an_answer_that_is_cut(server: Server, how: str, where: str) -> None:
    server.break_("cut", operation="Subscribe", how=how, where=where)
    with server.peer() as peer:
        peer.send(subscribe_body(), server.alice)
        assert_cut(peer, how, where, b":Envelope>", head=True)


def assert_cut(peer: Peer, how: str, where: str, marker: bytes, *, head: bool = False) -> None:
    data = b""
    errors = {"close": h11.RemoteProtocolError, "reset": ConnectionResetError}
    with pytest.raises(errors[how]) if how in errors else nullcontext():
        if head:
            peer.head()
        while isinstance(event := peer.event(), h11.Data):
            data += event.data
    if how != "reset":  # a reset may discard data that was sent before it
        assert data.endswith(marker) == (where == "end")


# -- streams -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["order", "close", "reset"])
@pytest.mark.parametrize("where", ["envelope", "end"])
def test_a_stream_that_is_cut(server: Server, how: str, where: str) -> None:
    with server.streaming() as (peer, _):
        server.break_("cut", how=how, where=where)
        assert_cut(peer, how, where, ENVELOPE_END)


def test_a_silent_stream_recovers_unless_the_silence_is_permanent(server: Server) -> None:
    with server.streaming() as (peer, _):
        server.break_("silent_stream")
        server.new_mail()
        assert peer.silent()
        server.control("faults", {"profile": "none"})
        assert peer.silent(), "without a duration the silence is permanent"
    with server.streaming() as (peer, _):
        server.break_("silent_stream", seconds=60)
        server.new_mail()
        assert peer.silent()
        server.control("faults", {"profile": "none"})
        assert b"NewMailEvent" in peer.read_until(ENVELOPE_END)


def test_a_silent_stream_is_removed_when_its_client_disconnects(server: Server) -> None:
    with server.streaming():
        server.break_("silent_stream")
        assert len(server.control("state")["streams"]) == 1
    deadline = time.monotonic() + 10
    while server.control("state")["streams"]:
        assert time.monotonic() < deadline


def test_a_stream_one_byte_at_a_time(server: Server) -> None:
    with server.streaming() as (peer, _):
        server.break_("slow", seconds=SHORT, interval=0.01)
        server.new_mail()
        assert len(peer.sock.recv(100)) == 1
        data = b""
        while ENVELOPE_END not in data:
            data += peer.sock.recv(65536)
        server.new_mail()
        assert peer.sock.recv(65536).count(b"NewMailEvent") > 0


def test_a_response_code_in_a_stream(server: Server) -> None:
    with server.streaming() as (peer, id_):
        (line,) = server.break_("stream_code", code="ErrorExpiredSubscription")
        assert (line["subscription"], line["mailbox"]) == (id_, server.alice)
        data = peer.body()
        assert b"ErrorExpiredSubscription" in data
        assert id_.encode() in data


def test_events_after_closed(server: Server) -> None:
    with server.streaming() as (peer, _):
        server.break_("closed", then="events", seconds=SHORT)
        peer.read_until(b"Closed")
        server.new_mail()
        assert b"NewMailEvent" in peer.body()


def test_an_envelope_of_fifty_megabytes(server: Server) -> None:
    with server.streaming() as (peer, _):
        server.break_("padding")
        size = 0
        while size < 50_000_000:
            event = peer.event()
            assert isinstance(event, h11.Data)
            size += len(event.data)
        server.new_mail()
        peer.read_until(b"NewMailEvent")


# -- the organization ----------------------------------------------------------------------------------------


def test_a_restart_resets_its_streams(server: Server) -> None:
    with server.streaming() as (peer, id_):
        server.break_("backend_restart", backend="EX01")
        with pytest.raises(ConnectionResetError):
            peer.sock.recv(1)
    with server.streaming() as (_, second_id):
        assert second_id == id_


def test_connections_are_refused_and_then_accepted_again(server: Server) -> None:
    for _ in range(2):
        with server.streaming() as (peer, _):
            server.break_("outage", seconds=60)
            with pytest.raises(ConnectionResetError):
                peer.sock.recv(1)
        until_accepted(server, wanted=False)
        server.control("faults", {"profile": "none"})
        until_accepted(server, wanted=True)


def until_accepted(server: Server, *, wanted: bool) -> None:
    """Wait until the server accepts connections, or until it does not."""
    deadline = time.monotonic() + 10
    while True:
        try:
            with server.peer():
                accepted = True
        except (ConnectionRefusedError, ConnectionResetError):
            accepted = False
        if accepted == wanted:
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_outage_ends_after_its_duration(server: Server) -> None:
    server.break_("outage", seconds=1)
    until_accepted(server, wanted=False)
    until_accepted(server, wanted=True)
    with server.streaming():
        pass


def test_outages_that_reset_connections_or_answer_503(server: Server) -> None:
    with server.peer() as idle:
        server.subscribe(idle)
        server.break_("outage", how="reset", seconds=60)
        idle.send(subscribe_body(), server.alice)
        with pytest.raises(ConnectionResetError):
            idle.sock.recv(1)
    server.control("faults", {"profile": "none"})
    server.break_("outage", how="503", seconds=60)
    with server.peer() as peer:
        peer.send(subscribe_body(), server.alice)
        assert peer.head().status_code == 503


@pytest.mark.parametrize("how", ["expired", "other_host", "other_authority"])
def test_certificates(simulate: Start, tmp_path: Path, how: str) -> None:
    server = start(simulate, tmp_path, "--tls")
    context = ssl.create_default_context(cafile=server.info["ca_file"])

    def handshake() -> None:
        with server.peer() as peer, context.wrap_socket(peer.sock, server_hostname="127.0.0.1"):
            pass

    handshake()
    server.break_("bad_certificate", how=how, seconds=60)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake()
    server.control("faults", {"profile": "none"})
    handshake()


# -- the command ---------------------------------------------------------------------------------------------


def test_a_plan_file_and_the_ledger_of_its_faults(simulate: Start, tmp_path: Path) -> None:
    plan, ledger = tmp_path / "faults.toml", tmp_path / "ledger.jsonl"
    plan.write_text('[[faults]]\nkind = "backend_restart"\nbackend = "ex01"\nat = [0.05, 0.1]\n')
    process, _ = simulate("--rate", "0", "--faults", str(plan), "--ledger", str(ledger), "--duration", "0.5")
    assert process.wait(10) == 0
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [(line["seq"], line["kind"], line["fault"], line["backend"]) for line in lines] == [
        (1, "fault", "backend_restart", "ex01.contoso.example"),
        (2, "fault", "backend_restart", "ex01.contoso.example"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('kind = "outrage"\nat = 1', 'faults[1]: unknown kind "outrage", did you mean "outage"?'),
        (
            'kind = "backend_restart"\nat = 1\nbackend = "EX9"',
            'unknown back end "EX9"; known back ends: ex01, ex02, ex03',
        ),
    ],
)  # fmt: skip
def test_an_invalid_plan_is_rejected(tmp_path: Path, text: str, expected: str) -> None:
    plan = tmp_path / "faults.toml"
    plan.write_text(f"[[faults]]\n{text}\n")
    done = run("--faults", str(plan))
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(expected)


def test_print_faults_prints_a_profile() -> None:
    done = run("--faults", "light", "--print-faults")
    assert done.returncode == 0
    assert done.stdout.startswith('[[faults]]\nkind = "response_code"\n')
    assert done.stdout.count("[[faults]]") > 5


def run(*options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "listener", "simulate", "--duration", "0", *options]
    return forked.run(command, capture_output=True, text=True, check=False, timeout=20)
