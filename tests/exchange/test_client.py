"""The HTTP client against a scripted peer, over a real socket."""

import gzip
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from listener.config.auth import tls_context
from listener.config.secrets import Secret
from listener.ews.codes import ExchangeError
from listener.exchange.auth import Accounts, Basic, Credentials
from listener.exchange.body import SOAP_LIMIT
from listener.exchange.client import Access, ExchangeClient
from listener.exchange.cookies import MAX_COOKIES, Cookie
from listener.exchange.throttle import Throttles

Peer = Callable[[trio.SocketStream], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def access(**changes: object) -> Access:
    settings: dict[str, object] = {
        "auth": Accounts.single(Basic(Credentials("svc", Secret("secret")))),
        "throttles": Throttles(10),
        "user_agent": "test/1",
        "tls": ssl.create_default_context(),
    }
    return Access(**(settings | changes))  # type: ignore[arg-type]


async def head(stream: trio.SocketStream) -> bytes:
    """Read one whole request and return its head; empty if the client closed the connection."""
    data = bytearray()
    while b"\r\n\r\n" not in data:
        chunk = await stream.receive_some()
        if not chunk:
            return b""
        data += chunk
    top, _, body = bytes(data).partition(b"\r\n\r\n")
    (length,) = (
        int(line.split(b":")[1]) for line in top.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += await stream.receive_some()
    return top


@asynccontextmanager
async def served(peer: Peer, **changes: object) -> AsyncIterator[ExchangeClient]:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await peer(stream)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        async with ExchangeClient(f"http://127.0.0.1:{port}/EWS/Exchange.asmx", access(**changes)) as client:
            yield client
        nursery.cancel_scope.cancel()


def answer(status: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers, b"", body]
    return b"\r\n".join(lines)


async def test_a_call_sends_credentials_headers_and_cookies() -> None:
    seen: list[bytes] = []

    async def peer(stream: trio.SocketStream) -> None:
        while request := await head(stream):
            seen.append(request.lower())
            await stream.send_all(
                answer(b"200 OK", b"<a/>", b"Set-Cookie: X-BackEndOverrideCookie=BE1~1; path=/")
            )

    async with served(peer) as client:
        for _ in range(2):
            assert await client.call(b"<x/>", {"X-AnchorMailbox": "ann@x.example"}, bytes) == b"<a/>"
        client.forget_cookies()
        await client.call(b"<x/>", {}, bytes)
    assert all(b"authorization: basic c3zjonnly3jlda==" in request for request in seen)
    assert b"x-anchormailbox: ann@x.example" in seen[0]
    assert b"accept-encoding: identity" in seen[0]
    assert b"user-agent: test/1" in seen[0]
    assert [b"cookie: x-backendoverridecookie=be1~1" in request for request in seen] == [False, True, False]


async def test_cookies_can_be_stored_and_a_clone_has_a_copy_of_them() -> None:
    seen: list[bytes] = []

    async def peer(stream: trio.SocketStream) -> None:
        while request := await head(stream):
            seen.append(request)
            await stream.send_all(
                answer(
                    b"200 OK",
                    b"<a/>",
                    b"Set-Cookie: X-BackEndOverrideCookie=BE%d~1; path=/EWS" % len(seen),
                    b"Set-Cookie: persistent=1; path=/; expires=Fri, 01 Jan 2100 00:00:00 GMT",
                    b"Set-Cookie: over-tls=1; path=/; secure",
                )
            )

    async with served(peer) as client:
        await client.call(b"<x/>", {}, bytes)
        stored = msgspec.msgpack.decode(msgspec.msgpack.encode(client.cookies), type=tuple[Cookie, ...])
        assert stored == client.cookies
        assert [(cookie.name, cookie.path, cookie.secure) for cookie in stored] == [
            ("over-tls", "/", True),
            ("persistent", "/", False),
            ("X-BackEndOverrideCookie", "/EWS", False),
        ]
        assert stored[1].expires == 4102444800
        async with client.clone() as clone:
            client.forget_cookies()
            await clone.call(b"<x/>", {}, bytes)
            await client.call(b"<x/>", {}, bytes)
        gone = msgspec.structs.replace(stored[1], name="gone", expires=1.0)
        async with ExchangeClient(client.url, client._access, (*stored, gone)) as later:
            await later.call(b"<x/>", {}, bytes)
    cookies = [re.findall(rb"(?i)cookie: (.*?)\r\n", request + b"\r\n") for request in seen]
    first = [b"X-BackEndOverrideCookie=BE1~1; persistent=1"]
    assert cookies == [[], first, [], first]


async def test_cookies_are_limited_and_the_first_ones_stay() -> None:
    answers = 0

    async def peer(stream: trio.SocketStream) -> None:
        nonlocal answers
        while await head(stream):
            answers += 1
            more = [b"Set-Cookie: c%d-%d=%s; path=/" % (answers, n, b"x" * 500) for n in range(99)]
            await stream.send_all(
                answer(b"200 OK", b"<a/>", b"Set-Cookie: X-BackEndOverrideCookie=BE1~%d" % answers, *more)
            )

    async with served(peer) as client:
        for _ in range(5):
            await client.call(b"<x/>", {}, bytes)
        stored = client.cookies
    assert len(stored) <= 50
    assert sum(len(cookie.value) for cookie in stored) <= 16 * 1024
    assert [cookie.value for cookie in stored if cookie.name == "X-BackEndOverrideCookie"] == ["BE1~5"]


@pytest.mark.parametrize("status", [b"401 Unauthorized", b"404 Not Found", b"503 Service Unavailable"])
async def test_an_endless_error_page_is_reported_by_its_status(status: bytes) -> None:
    async def peer(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            while await head(stream):
                await stream.send_all(b"HTTP/1.1 " + status + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
                while True:
                    await stream.send_all(b"10000\r\n" + b"x" * 65536 + b"\r\n")

    async with served(peer) as client:
        with pytest.raises(ExchangeError) as caught:
            await client.call(b"<x/>", {}, bytes)
    assert caught.value.failure.code == f"Http{status[:3].decode()}"
    assert len(caught.value.failure.text) < 1000


async def test_an_endless_response_is_too_large() -> None:
    sent = 0

    async def peer(stream: trio.SocketStream) -> None:
        nonlocal sent
        await head(stream)
        await stream.send_all(CHUNKED)
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536

    async with served(peer) as client:
        with pytest.raises(ExchangeError) as caught:
            await client.call(b"<x/>", {}, bytes)
    assert caught.value.failure.code == "EnvelopeTooLarge"
    assert sent < 2 * SOAP_LIMIT


async def test_a_stream_of_several_gzip_members_is_read_to_its_end() -> None:
    async def peer(stream: trio.SocketStream) -> None:
        await head(stream)
        body = b"".join(gzip.compress(b"<%d>" % number) for number in range(3))
        await stream.send_all(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async with served(peer) as client, aclosing(await client.open_stream(b"<x/>", {})) as stream:
        received = b""
        while chunk := await stream.receive():
            received += chunk
    assert received == b"<0><1><2>"


async def test_after_an_error_status_the_connection_is_not_used_again() -> None:
    connections = 0

    async def peer(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        while await head(stream):
            if connections == 1:
                await stream.send_all(
                    answer(b"503 Busy", b"no", b"Retry-After: 7") + answer(b"200 OK", b"<stray/>")
                )
            else:
                await stream.send_all(answer(b"200 OK", b"<a/>"))

    async with served(peer) as client:
        with pytest.raises(ExchangeError) as caught:
            await client.call(b"<x/>", {}, bytes)
        assert (caught.value.failure.code, caught.value.failure.wait) == ("Http503", 7)
        assert await client.call(b"<x/>", {}, bytes) == b"<a/>"
    assert connections == 2


async def test_a_stream_is_received_in_pieces_and_ends_with_the_body() -> None:
    async def peer(stream: trio.SocketStream) -> None:
        await head(stream)
        await stream.send_all(CHUNKED + b"3\r\nabc\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(b"2\r\nde\r\n0\r\n\r\n")

    async with served(peer) as client, aclosing(await client.open_stream(b"<x/>", {})) as stream:
        received = b""
        while data := await stream.receive():
            received += data
    assert received == b"abcde"


@pytest.mark.parametrize(
    ("written", "code"),
    [
        (CHUNKED + b"3\r\nabc\r\n", "StreamIncomplete"),
        (CHUNKED + b"3\r\nabc\r\nzzz", "ConnectionReset"),
        (OK + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nnogzi", "NotSoap"),
    ],
)
async def test_a_broken_stream_is_a_failure_with_its_own_code(written: bytes, code: str) -> None:
    async def peer(stream: trio.SocketStream) -> None:
        await head(stream)
        await stream.send_all(written)

    async with served(peer) as client:
        with pytest.raises(ExchangeError) as caught:
            async with aclosing(await client.open_stream(b"<x/>", {})) as stream:
                while await stream.receive():
                    pass
    assert caught.value.failure.code == code


async def test_a_connection_closed_without_a_response_is_a_failure() -> None:
    async def peer(stream: trio.SocketStream) -> None:
        await head(stream)

    async with served(peer) as client:
        with pytest.raises(ExchangeError) as caught:
            await client.call(b"<x/>", {}, bytes)
    assert caught.value.failure.code == "ConnectionReset"


async def test_a_closed_port_is_a_failure() -> None:
    async with ExchangeClient("http://127.0.0.1:9/EWS/Exchange.asmx", access()) as client:
        with pytest.raises(ExchangeError) as caught:
            await client.call(b"<x/>", {}, bytes)
    assert caught.value.failure.code == "ConnectFailed"


async def test_an_unknown_hostname_is_a_failure() -> None:
    async with ExchangeClient("https://mail.invalid/EWS/Exchange.asmx", access()) as client:
        with pytest.raises(ExchangeError) as caught:
            await client.call(b"<x/>", {}, bytes)
    assert caught.value.failure.code == "NameNotResolved"


async def test_an_untrusted_certificate_is_reported_with_its_issuer() -> None:
    import trustme

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)

    async def peer(stream: trio.SocketStream) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await trio.SSLStream(stream, context, server_side=True).do_handshake()

    async with served(peer) as client:
        client.url = client.url.replace("http:", "https:")
        with pytest.raises(ExchangeError) as caught:
            await client.call(b"<x/>", {}, bytes)
    assert caught.value.failure.code == "TlsFailed"
    text = caught.value.failure.text
    assert text.startswith(
        "the server's certificate is not trusted: unable to get local issuer certificate; "
    )
    assert "; the server shows a certificate for OU=Testing cert #" in text
    assert ", issued by OU=Testing CA #" in text


async def test_the_client_certificate_is_sent_to_a_server_that_requests_it(tmp_path: Path) -> None:
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    own = authority.issue_cert("listener.example.com")
    own.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "own.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    shown: list[str] = []

    async def peer(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        while b"<x/>" not in await tls.receive_some():
            pass
        shown.append(tls.getpeercert()["subjectAltName"][0][1])
        await tls.send_all(answer(b"200 OK", b"<a/>"))

    client_tls = tls_context(tmp_path / "ca.pem", tmp_path / "own.pem")
    async with served(peer, tls=client_tls) as client:
        client.url = client.url.replace("http:", "https:")
        assert await client.call(b"<x/>", {}, bytes) == b"<a/>"
    assert shown == ["listener.example.com"]


async def test_a_peer_that_never_responds_is_a_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def peer(stream: trio.SocketStream) -> None:
        await head(stream)
        await trio.sleep_forever()

    async with served(peer, request_timeout=60.0) as client:
        autojump_clock.autojump_threshold = 0.1
        started_at = trio.current_time()
        with pytest.raises(ExchangeError) as caught:
            await client.call(b"<x/>", {}, bytes)
        assert caught.value.failure.code == "ReadTimeout"
        assert trio.current_time() - started_at == pytest.approx(60, abs=1)


async def test_closing_a_stream_closes_its_connection() -> None:
    closed = trio.Event()

    async def peer(stream: trio.SocketStream) -> None:
        await head(stream)
        await stream.send_all(CHUNKED + b"3\r\nabc\r\n")
        assert await stream.receive_some() == b""
        closed.set()

    async with served(peer) as client:
        async with aclosing(await client.open_stream(b"<x/>", {})) as stream:
            assert await stream.receive() == b"abc"
            with trio.move_on_after(0.01):
                await stream.receive()
        with trio.fail_after(5):
            await closed.wait()


async def test_a_password_refused_meanwhile_is_not_sent_by_waiting_requests() -> None:
    statuses: list[bytes] = []

    async def peer(stream: trio.SocketStream) -> None:
        while await head(stream):
            refused = (b"401 Unauthorized", b"", b'WWW-Authenticate: Basic realm="x"')
            statuses.append(b"401" if statuses else b"200")
            await stream.send_all(answer(*refused) if len(statuses) > 1 else answer(b"200 OK", b"x"))

    codes: list[str] = []

    async def one() -> None:
        try:
            await client.call(b"", {}, bytes)
        except ExchangeError as error:
            codes.append(error.failure.code)

    async with served(peer, throttles=Throttles(2)) as client:
        await client.call(b"", {}, bytes)  # the server is trusted from now on
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(one)
    assert codes == ["Http401"] * 100
    assert statuses.count(b"401") <= 4


@pytest.mark.parametrize(
    "top",
    [
        b"HTTP/1.1 302 x\r\nLocation: https://[bad\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 x\r\nLocation: https://xn--.contoso.example/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 307 x\r\nLocation: //a:99999/\x01\xff\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 x\r\nRetry-After: Mon, 01 Jan 99999999999999999999 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 x\r\nDate: Mon, 01 Jan 0001 00:00:00 +2359\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 x\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 x\r\nContent-Encoding: \xff\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 x\r\nTransfer-Encoding: \xff\r\n\r\n",
        b"HTTP/1.1 999 x\r\nContent-Length: 0\r\n\r\n",
        b"\xff\x00\r\n\r\n",
    ],
)
async def test_any_response_raises_only_exchange_error(top: bytes) -> None:
    async def peer(stream: trio.SocketStream) -> None:
        await head(stream)
        await stream.send_all(top)

    async with served(peer) as client:
        with pytest.raises(ExchangeError):
            await client.call(b"<x/>", {"X-AnchorMailbox": "j\u00fcrgen@contoso.example\r\nX: y"}, bytes)


async def test_oversized_cookies_are_dropped_and_their_expiry_is_limited() -> None:
    endless = b"Set-Cookie: long=" + b"x" * 5000 + b"; Max-Age=60"
    far = b"Set-Cookie: far=1; Max-Age=99999999999999999999999999"

    async def peer(stream: trio.SocketStream) -> None:
        for number in range(3):
            await head(stream)
            many = [b"Set-Cookie: c%d=1" % (number * 100 + each) for each in range(100)]
            await stream.send_all(answer(b"200 OK", b"", *many, endless, far))

    async with served(peer) as client:
        for _ in range(3):
            await client.call(b"<x/>", {}, bytes)
        assert len(client.cookies) <= MAX_COOKIES
        assert "long" not in {cookie.name for cookie in client.cookies}
        msgspec.msgpack.encode(client.cookies)  # as the journal stores them
