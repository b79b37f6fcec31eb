"""Multi-leg handshakes and channel binding (RFC 5929 section 4.1)."""

import hashlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from listener.ews.codes import ExchangeError, Failure
from listener.exchange.auth.handshake import (
    MAX_LEGS,
    HandshakeTransport,
    certificate_binding,
    channel_binding,
)
from listener.exchange.network import KEEP_ALIVE
from tests.exchange.internet import network

URL = "https://mail.example.com/EWS/Exchange.asmx"
Server = Callable[[httpx.Request], httpx.Response]


class Ticket:
    """A mechanism that is its own handshake, with one token."""

    credentials = None
    header = "Negotiate"
    one_leg = True

    def __init__(self) -> None:
        self.made = 0

    @property
    def credentials_sent(self) -> bool:
        return self.made > 0

    async def begin(self, url: httpx.URL, offered: list[str], binding: bytes | None) -> "Ticket":
        assert offered == ["Negotiate"]
        return Ticket()

    async def step(self, received: bytes | None, binding: bytes | None) -> bytes | None:
        self.made += 1
        return b"ticket" if self.made == 1 else None

    def refusal(self, binding: bytes | None) -> Failure:
        return Failure(code="HandshakeRefused")


class Connection:
    """A network stream of httpcore without TLS."""

    def get_extra_info(self, name: str) -> None:
        return None


class Kerberos:
    """A server on one connection.

    `persistent`: the connection stays authenticated. `announced`: the server sends `Persistent-Auth: false`.
    """

    def __init__(self, persistent: bool, announced: bool = False, closing: bool = False) -> None:
        self.persistent, self.announced, self.closing = persistent, announced, closing
        self.connection, self.authenticated = Connection(), False
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        token = request.headers.get("Authorization", "")
        self.asked.append("token" if token else "plain")
        if not token and not self.authenticated:
            return self._answer(401, {"WWW-Authenticate": "Negotiate"})
        self.authenticated = self.persistent
        return self._answer(200, {"Persistent-Auth": "false"} if self.announced else {})

    def _answer(self, status: int, headers: dict[str, str]) -> httpx.Response:
        return httpx.Response(status, headers=headers, extensions={"network_stream": self.connection})


async def ask(server: Server, times: int) -> list[int]:
    async with httpx.AsyncClient(transport=HandshakeTransport(network(server), Ticket())) as client:
        return [(await client.post(URL, content=b"<x/>")).status_code for _ in range(times)]


@pytest.mark.parametrize(
    ("server", "asked"),
    [
        (Kerberos(persistent=True), ["plain", "token", "plain", "plain", "plain"]),
        (Kerberos(persistent=False), ["plain", "token", "plain", "token", "token", "token"]),
        (Kerberos(persistent=False, announced=True), ["plain", "token", "token", "token", "token"]),
    ],
    ids=["per connection", "per request", "per request, announced"],
)
async def test_a_token_is_sent_as_often_as_the_server_requires(server: Kerberos, asked: list[str]) -> None:
    assert await ask(server, 4) == [200] * 4
    assert server.asked == asked


async def test_a_refused_ticket_is_not_sent_again() -> None:
    asked: list[str] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("Authorization", ""))
        return httpx.Response(401, headers={"WWW-Authenticate": "Negotiate"})

    with pytest.raises(ExchangeError, match="HandshakeRefused"):
        await ask(refuse, 1)
    assert asked == ["", "Negotiate dGlja2V0"]


async def test_the_number_of_legs_is_limited() -> None:
    """The server always asks for one more leg, and the mechanism always has another token."""

    class Endless(Ticket):
        credentials_sent = False

        async def begin(self, url: httpx.URL, offered: list[str], binding: bytes | None) -> "Endless":
            return Endless()

        async def step(self, received: bytes | None, binding: bytes | None) -> bytes | None:
            return b"more"

    asked, connection = 0, Connection()

    def server(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        challenge = "Negotiate bW9yZQ==" if "Authorization" in request.headers else "Negotiate"
        headers = {"WWW-Authenticate": challenge}
        return httpx.Response(401, headers=headers, extensions={"network_stream": connection})

    async with httpx.AsyncClient(transport=HandshakeTransport(network(server), Endless())) as client:
        with pytest.raises(ExchangeError, match="HandshakeBroken"):
            await client.post(URL, content=b"<x/>")
    assert asked <= 1 + MAX_LEGS


async def test_an_endless_401_page_does_not_block_the_handshake() -> None:
    class Endless(httpx.AsyncByteStream):
        closed = False

        async def __aiter__(self) -> AsyncIterator[bytes]:
            while not self.closed:
                yield b"x" * 65536

        async def aclose(self) -> None:
            self.closed = True

    def server(request: httpx.Request) -> httpx.Response:
        if "Authorization" in request.headers:
            return httpx.Response(200)
        return httpx.Response(401, headers={"WWW-Authenticate": "Negotiate"}, stream=Endless())

    assert await ask(server, 1) == [200]


async def test_idle_connections_are_closed(autojump_clock: trio.testing.MockClock) -> None:
    transport = HandshakeTransport(network(Kerberos(persistent=True)), Ticket())
    async with httpx.AsyncClient(transport=transport) as client:
        await client.post(URL)
        (idle_connection,) = transport._idle
        await trio.sleep(KEEP_ALIVE + 1)
        await client.post(URL)
        assert idle_connection not in transport._idle
        assert len(transport._idle) == 1
    assert transport._idle == []


RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


def certificate(key: object, algorithm: hashes.HashAlgorithm | None, **how: object) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.example.com")])
    now = datetime(2026, 1, 1, tzinfo=UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())  # type: ignore[attr-defined]
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )
    return builder.sign(key, algorithm, **how).public_bytes(Encoding.DER)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("der", "name"),
    [
        (certificate(RSA, hashes.SHA256()), "sha256"),
        (certificate(RSA, hashes.SHA384()), "sha384"),
        (certificate(EC, hashes.SHA512()), "sha512"),
        (certificate(ed25519.Ed25519PrivateKey.generate(), None), "sha256"),
    ],
)
def test_the_binding_uses_the_hash_of_the_signature(der: bytes, name: str) -> None:
    assert certificate_binding(der) == b"tls-server-end-point:" + hashlib.new(name, der).digest()


def test_sha_1_is_replaced_by_sha_256(monkeypatch: pytest.MonkeyPatch) -> None:
    der = certificate(RSA, hashes.SHA256())
    oid = bytes.fromhex("06092a864886f70d0101")
    # sha1WithRSAEncryption: libraries can no longer sign with it.
    weak = der.replace(oid + b"\x0b", oid + b"\x05")
    assert weak != der
    assert certificate_binding(weak) == b"tls-server-end-point:" + hashlib.sha256(weak).digest()


def test_without_tls_there_is_no_channel_binding() -> None:
    class Plain:
        def get_extra_info(self, name: str) -> None:
            return None

    assert channel_binding(Plain()) is None
    assert channel_binding(None) is None


def test_an_unparsable_certificate_is_bound_by_sha_256() -> None:
    """OpenSSL accepts certificates that the parser does not."""
    assert (
        certificate_binding(b"no certificate")
        == b"tls-server-end-point:" + hashlib.sha256(b"no certificate").digest()
    )
