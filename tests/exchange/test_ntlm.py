"""NTLM on real sockets: all legs on one connection, with the channel binding, and with faulty servers."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import trio

from listener.config.secrets import Secret
from listener.ews.codes import ExchangeError
from listener.exchange.auth import Accounts, Credentials
from listener.exchange.auth.ntlm import Ntlm
from listener.exchange.client import Access, ExchangeClient
from listener.exchange.throttle import Throttles
from tests.exchange.acceptor import DOMAIN, PASSWORD, USER, Acceptor


@asynccontextmanager
async def connected_client(
    acceptor: Acceptor, folder: Path, password: str = PASSWORD, user: str = f"{DOMAIN}\\{USER}"
) -> AsyncIterator[ExchangeClient]:
    async with acceptor.open(folder):
        access = Access(
            auth=Accounts.single(Ntlm(Credentials(user, Secret(password)))),
            throttles=Throttles(10),
            user_agent="test/1",
            tls=acceptor.trust,
        )
        async with ExchangeClient(acceptor.url, access) as client:
            yield client


async def test_a_connection_is_authenticated_once(tmp_path: Path) -> None:
    acceptor = Acceptor(protection=True)
    async with connected_client(acceptor, tmp_path) as client:
        for _ in range(3):
            assert await client.call(b"<x/>", {}, bytes) == b"<ok/>"
    assert [(number, scheme) for number, scheme, _ in acceptor.requests] == [
        (1, ""), (1, "NTLM"), (1, "NTLM"), (1, ""), (1, ""),
    ]  # fmt: skip
    assert acceptor.bodies == [b"<x/>"] * 3


async def test_no_other_request_uses_the_connection_of_a_stream(tmp_path: Path) -> None:
    acceptor = Acceptor(protection=True)
    async with connected_client(acceptor, tmp_path) as client:
        stream = await client.open_stream(b"<stream/>", {})
        async with aclosing(stream):
            await client.call(b"<x/>", {}, bytes)
            await client.call(b"<x/>", {}, bytes)
            assert acceptor.served == [1, 2, 2]
            assert await stream.receive() == b"<ok/>"
            assert await stream.receive() == b""
        await client.call(b"<x/>", {}, bytes)
    assert acceptor.connections == 2


async def test_concurrent_handshakes_have_their_own_connections(tmp_path: Path) -> None:
    acceptor = Acceptor(protection=True, hold=trio.Event())
    assert acceptor.hold is not None
    async with connected_client(acceptor, tmp_path) as client:
        acceptor.hold.set()
        await client.call(b"<first/>", {}, bytes)
        acceptor.hold = trio.Event()
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(client.call, b"<%d/>" % number, {}, bytes)
            while len(acceptor.served) < 6:
                await trio.sleep(0.01)
            acceptor.hold.set()
        assert sorted(acceptor.served) == [1, 1, 2, 3, 4, 5]
    assert sorted(acceptor.bodies[1:]) == [b"<%d/>" % number for number in range(5)]


@pytest.mark.parametrize(
    ("habits", "connections"),
    [
        ([{"close_401"}], 2),
        ([{"close_challenge"}, set()], 2),
        ([{"reset"}, set()], 2),
        ([{"silent_challenge"}, set()], None),
        ([{"reset"}, {"close_challenge"}, set()], 3),
        ([{"each_request"}], 1),
    ],
)
async def test_an_interrupted_handshake_starts_again(
    tmp_path: Path, habits: list[set[str]], connections: int | None
) -> None:
    acceptor = Acceptor(protection=True, habits=habits)
    async with connected_client(acceptor, tmp_path) as client:
        if connections is None:
            with pytest.raises(ExchangeError, match="HandshakeBroken"):
                await client.call(b"<x/>", {}, bytes)
            assert acceptor.tokens["NTLM"] <= 3
            return
        for _ in range(2):
            assert await client.call(b"<x/>", {}, bytes) == b"<ok/>"
    assert acceptor.connections == connections


async def test_a_server_that_never_continues_is_a_failure_without_a_password_attempt(tmp_path: Path) -> None:
    acceptor = Acceptor(habits=[{"close_challenge"}])
    async with connected_client(acceptor, tmp_path) as client:
        with pytest.raises(ExchangeError) as caught:
            await client.call(b"<x/>", {}, bytes)
    assert caught.value.failure.code == "HandshakeBroken"
    assert caught.value.failure.text == (
        "the server closed the connection or sent no usable token, 3 times in the middle of a handshake: NTLM and "
        "Negotiate fail behind a proxy or load balancer that does not keep each client on its own connection"
    )
    assert acceptor.served == []


async def test_cookies_of_all_legs_belong_to_the_group(tmp_path: Path) -> None:
    acceptor = Acceptor(habits=[{"cookie"}])
    async with connected_client(acceptor, tmp_path) as client:
        await client.call(b"<x/>", {}, bytes)
        await client.call(b"<x/>", {}, bytes)
        client.forget_cookies()
        await client.call(b"<x/>", {}, bytes)
    assert acceptor.cookies == ["", "", "", "balancer=B7", ""]


async def test_ntlm_uses_negotiate_if_the_server_offers_nothing_else(tmp_path: Path) -> None:
    acceptor = Acceptor(schemes=("Negotiate", 'Basic realm="x"'))
    async with connected_client(acceptor, tmp_path) as client:
        assert await client.call(b"<x/>", {}, bytes) == b"<ok/>"
    assert acceptor.tokens == {"Negotiate": 2}


WRONG = (
    "the server refuses CONTOSO\\svc-listener: the password is wrong, or the account is locked, disabled or expired "
    "(the server does not say which); or the password is right, and Extended Protection rejects the handshake: "
)
PROXY = (
    "a proxy or load balancer terminates TLS with a certificate other than the server's own, so that the channel "
    "binding differs"
)
PLAIN = "the server requires the channel binding of a TLS connection, but the URL is http"


@pytest.mark.parametrize(("tls", "cause"), [(True, PROXY), (False, PLAIN)])
async def test_a_wrong_password_is_one_attempt(tmp_path: Path, tls: bool, cause: str) -> None:
    acceptor = Acceptor(tls=tls)
    async with connected_client(acceptor, tmp_path, password="Pw-wrong") as client:
        with pytest.raises(ExchangeError) as caught:
            await client.call(b"<x/>", {}, bytes)
    assert (caught.value.failure.code, caught.value.failure.text) == ("HandshakeRefused", WRONG + cause)
    assert acceptor.tokens == {"NTLM": 2}


async def test_a_missing_channel_binding_is_explained(tmp_path: Path) -> None:
    acceptor = Acceptor(tls=False, protection=True)
    async with connected_client(acceptor, tmp_path) as client:
        with pytest.raises(ExchangeError) as caught:
            await client.call(b"<x/>", {}, bytes)
    assert caught.value.failure.text == WRONG + PLAIN


async def test_a_server_with_other_schemes_gets_no_token(tmp_path: Path) -> None:
    acceptor = Acceptor(schemes=('Basic realm="NTLM, Negotiate"', "Bearer"))
    async with connected_client(acceptor, tmp_path) as client:
        with pytest.raises(ExchangeError) as caught:
            await client.call(b"<x/>", {}, bytes)
    assert (
        str(caught.value)
        == "SchemeNotOffered: the server offers Basic, Bearer, but the configuration requires NTLM or Negotiate"
    )
    assert not acceptor.tokens
