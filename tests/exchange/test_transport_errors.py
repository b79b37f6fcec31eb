"""Texts of transport errors name the host and port, or the proxy."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
import trio

from listener.ews.codes import NO_TLS, ONLY_TLS, ExchangeError, Failure
from listener.exchange.client import ExchangeClient
from tests.exchange.test_client import access

Peer = Callable[[trio.SocketStream], Awaitable[None]]


async def failure_at(url: str, **options: object) -> Failure:
    async with ExchangeClient(url, access(**options)) as client:
        with pytest.raises(ExchangeError) as caught:
            await client.call(b"<x/>", {}, bytes)
    return caught.value.failure


@asynccontextmanager
async def port_with(peer: Peer) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, peer, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


async def test_an_unresolvable_hostname() -> None:
    failure = await failure_at("https://mail.invalid/EWS/Exchange.asmx")
    assert failure.code == "NameNotResolved"
    assert failure.text.startswith("the hostname mail.invalid cannot be resolved: [Errno -")


async def test_a_refused_connection() -> None:
    port = closed_port()
    failure = await failure_at(f"http://127.0.0.1:{port}/EWS/Exchange.asmx")
    assert (failure.code, failure.text) == (
        "ConnectFailed",
        f"127.0.0.1:{port} does not accept a connection: Connection refused",
    )


async def test_an_unreachable_proxy_is_named_instead_of_the_server() -> None:
    port = closed_port()
    failure = await failure_at(
        "https://mail.invalid/EWS/Exchange.asmx", proxy=httpx.Proxy(f"http://127.0.0.1:{port}")
    )
    assert (failure.code, failure.text) == (
        "ConnectFailed",
        f"the proxy 127.0.0.1:{port} does not accept a connection: Connection refused",
    )
    failure = await failure_at(
        "https://127.0.0.1/EWS/Exchange.asmx", proxy=httpx.Proxy("http://proxy.invalid:3128")
    )
    assert failure.text.startswith("the hostname of the proxy proxy.invalid cannot be resolved: ")


async def test_a_refusing_proxy_is_named() -> None:
    async def peer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
        await stream.aclose()

    async with port_with(peer) as port:
        failure = await failure_at(
            "https://mail.invalid/EWS/Exchange.asmx", proxy=httpx.Proxy(f"http://127.0.0.1:{port}")
        )
    assert (failure.code, failure.text) == (
        "Http407",
        f"the proxy 127.0.0.1:{port} says: 407 Proxy Authentication Required",
    )


async def test_https_to_a_port_without_tls() -> None:
    async def peer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

    async with port_with(peer) as port:
        failure = await failure_at(f"https://127.0.0.1:{port}/EWS/Exchange.asmx")
    assert failure.code == "TlsFailed"
    assert failure.text.startswith(f"TLS with 127.0.0.1:{port} fails: {NO_TLS}")


async def test_http_to_a_port_with_tls() -> None:
    async def peer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"\x15\x03\x01\x00\x02\x02\x46")  # an alert: protocol_version
        await stream.aclose()

    async with port_with(peer) as port:
        failure = await failure_at(f"http://127.0.0.1:{port}/EWS/Exchange.asmx")
    assert failure.code == "ConnectionReset"
    assert failure.text == f"127.0.0.1:{port} does not answer in HTTP: {ONLY_TLS}"
