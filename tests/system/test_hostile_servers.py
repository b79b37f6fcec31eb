"""Servers that send costly responses: memory stays bounded, other groups are served, and the daemon stops in time.

Run it with `-s` to print the figures of docs/OPERATING.md.
"""

import gzip
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from tests.system.processes import Listen, Listener, Simulator, Start, load_factor, until

MAX_MEMORY = 200.0
"""MiB."""
MAX_DELAY = 1.0
"""Seconds between an event of another group and its delivery."""
MAX_STOP = 5.0
"""Seconds from SIGTERM to the exit."""
MEBIBYTE = 1024 * 1024

SOAP = "http://schemas.xmlsoap.org/soap/envelope/"
M = "http://schemas.microsoft.com/exchange/services/2006/messages"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
OPEN = f'<s:Envelope xmlns:s="{SOAP}" xmlns:m="{M}"><s:Body>'.encode()
CLOSE = b"</s:Body></s:Envelope>"
OK = (
    OPEN + b"<m:GetStreamingEventsResponse><m:ResponseMessages><m:GetStreamingEventsResponseMessage"
    b' ResponseClass="Success"><m:ResponseCode>NoError</m:ResponseCode><m:ConnectionStatus>OK</m:ConnectionStatus>'
    b"</m:GetStreamingEventsResponseMessage></m:ResponseMessages></m:GetStreamingEventsResponse>" + CLOSE
)
SUBSCRIBED = (
    OPEN + b"<m:SubscribeResponse><m:ResponseMessages><m:SubscribeResponseMessage"
    b' ResponseClass="Success"><m:ResponseCode>NoError</m:ResponseCode><m:SubscriptionId>evil</m:SubscriptionId>'
    b"</m:SubscribeResponseMessage></m:ResponseMessages></m:SubscribeResponse>" + CLOSE
)

Body = Iterator[bytes]
Attack = Callable[[], Body]
"""Return the bytes of a response, starting with the status line."""


def response(content: bytes, status: bytes = b"200 OK", *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(content), *headers, b"", content]
    return b"\r\n".join(lines)


def chunks(parts: Body, *headers: bytes, status: bytes = b"200 OK") -> Body:
    yield (
        HEAD.replace(b"200 OK", status) + CHUNKED + b"".join(header + b"\r\n" for header in headers) + b"\r\n"
    )
    for part in parts:
        yield b"%x\r\n" % len(part) + part + b"\r\n"


def gzipped(parts: Body) -> Body:
    compressor = zlib.compressobj(9, wbits=31)
    for part in parts:
        if data := compressor.compress(part):
            yield data
    yield compressor.flush()


def bomb(piece: bytes, mebibytes: int) -> Body:
    return gzipped(piece * (MEBIBYTE // len(piece)) for _ in range(mebibytes))


def repeat(piece: bytes, times: int = 10**9) -> Body:
    for _ in range(times):
        yield piece


MANY_MEMBERS = gzip.compress(b"") * 3000
MANY_CHUNKS = b"1;%s\r\n \r\n" % (b"x" * 20) * 2000
NOTIFICATION = (
    b"<m:Notifications><m:Notification><SubscriptionId>evil</SubscriptionId>%s"
    b"</m:Notification></m:Notifications>"
)
EVENT = b"<CreatedEvent><ItemId Id='a'/></CreatedEvent>"


def message(content: bytes) -> bytes:
    top, _, rest = OK.partition(b"<m:ResponseCode>")
    return top + content + b"<m:ResponseCode>" + rest


def code(length: int) -> bytes:
    return OK.replace(b"NoError", b"Error" * (length // 5)).replace(b"Success", b"Error")


ATTACKS: dict[str, Attack] = {
    "gzip bomb inside an envelope": lambda: chunks(bomb(OPEN, 700), b"Content-Encoding: gzip"),
    "gzip bomb between envelopes": lambda: chunks(bomb(b" " * 1024, 700), b"Content-Encoding: gzip"),
    "gzip bomb of heartbeats": lambda: chunks(gzipped(repeat(OK * 1000, 1000)), b"Content-Encoding: gzip"),
    "empty gzip members": lambda: chunks(repeat(MANY_MEMBERS), b"Content-Encoding: gzip"),
    "15 MB of tiny elements": lambda: chunks(iter([OPEN + b"<a/>" * 3_900_000 + CLOSE])),
    "20 MB of tiny elements": lambda: chunks(iter([OPEN + b"<a>" * 6_600_000])),
    "15 MB of attributes": lambda: chunks(iter([OPEN + b"<a" + b' b=""' * 2_900_000 + b"/>" + CLOSE])),
    "15 MB of text": lambda: chunks(iter([OPEN + b"x" * 15_000_000 + CLOSE])),
    "15 MB of references": lambda: chunks(iter([OPEN + b"&#0;" * 3_900_000 + CLOSE])),
    "72,000 events at once": lambda: chunks(iter([message(NOTIFICATION % (EVENT * 72_000))])),
    "response codes of 9 MB": lambda: chunks(iter([code(9_000_000)])),
    "white space": lambda: chunks(repeat(b" " * 65536)),
    "heartbeats": lambda: chunks(repeat(OK * 100)),
    "tiny chunks": lambda: iter([HEAD + CHUNKED + b"\r\n", *[MANY_CHUNKS] * 500]),
    "an error page without end": lambda: chunks(repeat(b"<" * 65536), status=b"503 Busy"),
}
LAST = "gzip bomb between envelopes"
"""The attack that still runs when the daemon stops."""


class HostileServer:
    """A server that accepts each Subscribe and responds to GetStreamingEvents with an attack.

    The attack starts when `allowed` is set. `attacks` counts the responses.
    """

    def __init__(self, attack: Attack) -> None:
        self._attack = attack
        self.allowed = threading.Event()
        self.attacks = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._server]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.getsockname()[1]}/EWS/Exchange.asmx"

    def close(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._server.accept()
                self._sockets.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            while (request := self._request(client)) is not None:
                if b"<m:GetStreamingEvents" in request:
                    self.allowed.wait()
                    self.attacks += 1
                    for part in self._attack():
                        client.sendall(part)
                elif b"<m:Subscribe" in request:
                    client.sendall(response(SUBSCRIBED))
                else:
                    client.sendall(response(b"", b"500 Error"))

    @staticmethod
    def _request(client: socket.socket) -> bytes | None:
        received = b""
        while True:
            top, separator, body = received.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *(\d+)", top)
            if separator and length and len(body) >= int(length[1]):
                return received
            if not (data := client.recv(65536)):
                return None
            received += data


def peak_memory(listener: Listener) -> int:
    """Return the peak resident memory of the process in bytes (VmHWM)."""
    status = Path(f"/proc/{listener.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def slowest_delivery(simulator: Simulator, seconds: float) -> float:
    """Create events in a good group for `seconds`; return the longest time until a delivery, in seconds."""
    slowest, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        before = len(simulator.deliveries)
        made = len(simulator.create_events(simulator.mailboxes[0]))
        started_at = time.monotonic()
        until(lambda before=before, made=made: len(simulator.deliveries) >= before + made, "a delivery")  # type: ignore[misc]
        slowest = max(slowest, time.monotonic() - started_at)
        time.sleep(0.05)
    return slowest


def test_hostile_servers(simulator: Start, listen: Listen) -> None:
    """Run the attacks one after another, while a good group streams."""
    exchange = simulator()
    exchange.append_config('filter = { mailboxes = ["*@contoso.example"] }\n')
    hostile = {name: HostileServer(attack) for name, attack in ATTACKS.items()}
    for number, server in enumerate(hostile.values()):
        exchange.append_config(f'\n[[groups]]\news_url = "{server.url}"\nname = "hostile-{number}"\n')
        exchange.append_config(f'mailboxes = ["victim{number}@hostile.example"]\n')
    listener = listen(exchange)
    figures: dict[str, tuple[float, float]] = {}
    try:
        exchange.until_streaming(4)
        for name in (*(each for each in ATTACKS if each != LAST), LAST):
            server = hostile[name]
            Path(f"/proc/{listener.process.pid}/clear_refs").write_text("5")  # reset the peak
            server.allowed.set()
            until(lambda server=server: server.attacks, name)  # type: ignore[misc]
            delay = slowest_delivery(exchange, 1.0)
            figures[name] = peak_memory(listener) / MEBIBYTE, delay
            if name != LAST:
                server.close()
        started_at = time.monotonic()
        assert listener.stop() == 0
        stopped_in = time.monotonic() - started_at
    finally:
        for server in hostile.values():
            server.close()
    for name, (peak, delay) in figures.items():
        print(f"{name}: {peak:.0f} MiB, {delay:.2f} s")
    print(f"stop: {stopped_in:.2f} s; log: {listener.log_file.stat().st_size} bytes")
    assert {name: peak for name, (peak, _) in figures.items() if peak >= MAX_MEMORY} == {}
    # The load of other processes slows the work down by this factor.
    factor = load_factor()
    assert {name: delay for name, (_, delay) in figures.items() if delay >= MAX_DELAY * factor} == {}
    assert stopped_in < MAX_STOP * factor
    assert listener.log_file.stat().st_size < 200_000
