"""Basic: who may see the password, and what happens when it changes."""

import threading
from base64 import b64decode
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
import trio

from listener.config.secrets import Secret, SecretError
from listener.errors import ExchangeError
from listener.exchange.auth import Basic, Credentials
from tests.exchange.internet import network

URL = "https://mail.example.com/EWS/Exchange.asmx"


def knows(*passwords: str) -> tuple[Callable[[httpx.Request], httpx.Response], list[str]]:
    """A server that takes these passwords, and what it was told."""
    told: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        told.append(b64decode(request.headers["authorization"].removeprefix("Basic ")).decode())
        return httpx.Response(200 if told[-1].partition(":")[2] in passwords else 401)

    return answer, told


async def status(server: Callable[[httpx.Request], httpx.Response], password: Secret, url: str = URL) -> int:
    way = Basic(Credentials("svc@example.com", password)).transport(network(server))
    async with httpx.AsyncClient(transport=way) as client:
        return (await client.post(url, content=b"<x/>")).status_code


async def test_it_is_utf_8() -> None:
    server, told = knows("pä:ß")
    assert await status(server, Secret("pä:ß")) == 200
    assert told == ["svc@example.com:pä:ß"]


async def test_a_refused_password_is_read_again_once() -> None:
    server, told = knows("new")
    assert await status(server, Secret("old", lambda: "new")) == 200
    assert told == ["svc@example.com:old", "svc@example.com:new"]


@pytest.mark.parametrize("password", [Secret("old"), Secret("old", lambda: "old")])
async def test_one_that_stays_the_same_is_not_sent_again(password: Secret) -> None:
    server, told = knows("new")
    assert await status(server, password) == 401
    assert told == ["svc@example.com:old"]


async def test_one_that_cannot_be_read_any_more_stays_as_it_was() -> None:
    def gone() -> str:
        raise SecretError("cannot read /x: No such file or directory")

    server, told = knows("new")
    assert await status(server, Secret("old", gone)) == 401
    assert len(told) == 1


async def test_who_goes_while_the_password_is_read_again_leaves_no_connection_open() -> None:
    reading, goes_on, closed = trio.Event(), threading.Event(), []
    token = trio.lowlevel.current_trio_token()

    class Page(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"Unauthorized"

        async def aclose(self) -> None:
            closed.append(True)

    def read_again() -> str:
        token.run_sync_soon(reading.set)
        goes_on.wait(10)
        return "old"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(status, lambda _: httpx.Response(401, stream=Page()), Secret("old", read_again))
        await reading.wait()
        nursery.cancel_scope.cancel()
    goes_on.set()
    assert closed == [True]


async def test_it_is_not_sent_in_clear() -> None:
    server, told = knows("p")
    with pytest.raises(
        ExchangeError, match=r"InsecureUrl: http://mail\.example\.com/ is not https: it would expose"
    ):
        await status(server, Secret("p"), "http://mail.example.com/")
    assert told == []
    assert await status(server, Secret("p"), "http://127.0.0.1:80/") == 200
