"""Basic authentication: where the password is sent, and how a changed password is reloaded."""

import threading
from base64 import b64decode
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
import trio

from listener.config.secrets import Secret, SecretError
from listener.ews.codes import ExchangeError
from listener.exchange.auth import Basic, Credentials
from tests.exchange.internet import network

URL = "https://mail.example.com/EWS/Exchange.asmx"


def server_accepting(*passwords: str) -> tuple[Callable[[httpx.Request], httpx.Response], list[str]]:
    """Return a server that accepts these passwords, and the list of the credentials that it received."""
    received: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        received.append(b64decode(request.headers["authorization"].removeprefix("Basic ")).decode())
        return httpx.Response(200 if received[-1].partition(":")[2] in passwords else 401)

    return answer, received


async def status(server: Callable[[httpx.Request], httpx.Response], password: Secret, url: str = URL) -> int:
    transport = Basic(Credentials("svc@example.com", password)).transport(network(server))
    async with httpx.AsyncClient(transport=transport) as client:
        return (await client.post(url, content=b"<x/>")).status_code


async def test_credentials_are_sent_in_utf_8() -> None:
    server, received = server_accepting("pä:ß")
    assert await status(server, Secret("pä:ß")) == 200
    assert received == ["svc@example.com:pä:ß"]


async def test_a_refused_password_is_reloaded_once() -> None:
    server, received = server_accepting("new")
    assert await status(server, Secret("old", lambda: "new")) == 200
    assert received == ["svc@example.com:old", "svc@example.com:new"]


@pytest.mark.parametrize("password", [Secret("old"), Secret("old", lambda: "old")])
async def test_an_unchanged_password_is_not_sent_again(password: Secret) -> None:
    server, received = server_accepting("new")
    assert await status(server, password) == 401
    assert received == ["svc@example.com:old"]


async def test_an_unreadable_password_is_not_sent_again() -> None:
    def unreadable() -> str:
        raise SecretError("cannot read /x: No such file or directory")

    server, received = server_accepting("new")
    assert await status(server, Secret("old", unreadable)) == 401
    assert len(received) == 1


async def test_cancellation_during_a_reload_closes_the_connection() -> None:
    reading, proceed, closed = trio.Event(), threading.Event(), []
    token = trio.lowlevel.current_trio_token()

    class Page(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"Unauthorized"

        async def aclose(self) -> None:
            closed.append(True)

    def reload() -> str:
        token.run_sync_soon(reading.set)
        proceed.wait(10)
        return "old"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(status, lambda _: httpx.Response(401, stream=Page()), Secret("old", reload))
        await reading.wait()
        nursery.cancel_scope.cancel()
    proceed.set()
    assert closed == [True]


async def test_the_password_is_not_sent_in_clear() -> None:
    server, received = server_accepting("p")
    with pytest.raises(
        ExchangeError, match=r"InsecureUrl: http://mail\.example\.com/ is not https: it would expose"
    ):
        await status(server, Secret("p"), "http://mail.example.com/")
    assert received == []
    assert await status(server, Secret("p"), "http://127.0.0.1:80/") == 200
