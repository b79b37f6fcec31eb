"""The token cache and the bearer transport: one fetch at a time, renewal before expiry and after a refusal."""

from base64 import b64encode

import httpx
import pytest
import structlog
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from listener.ews.codes import ExchangeError, Failure
from listener.exchange.auth.oauth import OAuth, Token, Tokens, requested_claims
from listener.exchange.auth.scheme import challenge_token, offered_schemes
from tests.exchange.internet import network

EXPIRED_SECRET = Failure(code="AADSTS7000222", text="the client secret of 1 has expired")
URL = "https://outlook.office365.com/EWS/Exchange.asmx"


class Issuer:
    """Issues the tokens T1, T2 … after half a second each, or fails with `failure` if that is set."""

    def __init__(self, lifetime: float = 3600, refresh: float | None = None) -> None:
        self.lifetime = lifetime
        self.refresh = refresh
        self.failure: Failure | None = None
        self.claims: list[str | None] = []

    async def fetch(self, claims: str | None) -> Token:
        self.claims.append(claims)
        await trio.sleep(0.5)
        if self.failure is not None:
            raise ExchangeError(self.failure)
        return Token(f"T{len(self.claims)}", self.lifetime, self.refresh)


async def at_once(tokens: Tokens, times: int) -> list[str]:
    """Return the results of concurrent requests: a token, or the code of a failure."""
    got: list[str] = []

    async def one() -> None:
        try:
            got.append(await tokens.get())
        except ExchangeError as error:
            got.append(error.failure.code)

    async with trio.open_nursery() as nursery:
        for _ in range(times):
            nursery.start_soon(one)
    return got


async def test_one_fetch_serves_all(autojump_clock: trio.testing.MockClock) -> None:
    issuer = Issuer()
    tokens = Tokens(issuer.fetch, "1")
    assert await at_once(tokens, 40) == ["T1"] * 40
    assert await at_once(tokens, 40) == ["T1"] * 40
    assert issuer.claims == [None]


async def test_one_failure_serves_all(autojump_clock: trio.testing.MockClock) -> None:
    issuer = Issuer()
    issuer.failure = EXPIRED_SECRET
    assert await at_once(Tokens(issuer.fetch, "1"), 40) == ["AADSTS7000222"] * 40
    assert len(issuer.claims) == 1


@pytest.mark.parametrize(
    ("lifetime", "refresh", "renewed_after"), [(3600, None, 3300), (20, None, 15), (86400, 43200, 43200)]
)
async def test_a_token_is_renewed_before_it_expires(
    autojump_clock: trio.testing.MockClock, lifetime: float, refresh: float | None, renewed_after: float
) -> None:
    tokens = Tokens(Issuer(lifetime, refresh).fetch, "1")
    await tokens.get()
    await trio.sleep(renewed_after - 1)
    assert await tokens.get() == "T1"
    await trio.sleep(1)
    assert await at_once(tokens, 3) == ["T1", "T1", "T2"]  # requests that do not fetch use the valid token
    assert await tokens.get() == "T2"


async def test_the_old_token_is_used_until_it_expires(autojump_clock: trio.testing.MockClock) -> None:
    issuer = Issuer()
    tokens = Tokens(issuer.fetch, "1")
    await tokens.get()
    issuer.failure = Failure(code="ConnectFailed")
    await trio.sleep(3310)
    with structlog.testing.capture_logs() as logs:
        assert await tokens.get() == "T1"
    assert [(line["event"], line["code"]) for line in logs] == [("auth.token_not_renewed", "ConnectFailed")]
    assert await tokens.get() == "T1"
    assert len(issuer.claims) == 2  # not retried at once
    await trio.sleep(295)
    with pytest.raises(ExchangeError):
        await tokens.get()
    issuer.failure = None
    assert await tokens.get() == "T4"


async def test_after_a_cancelled_fetch_the_next_request_fetches(
    autojump_clock: trio.testing.MockClock,
) -> None:
    tokens = Tokens(Issuer().fetch, "1")
    with trio.move_on_after(0.1):
        await tokens.get()
    assert await tokens.get() == "T2"


class TestBearer:
    """The transport, against a server that accepts one token."""

    async def ask(
        self, tokens: Tokens, accepted: str, challenge: str, url: str = URL, times: int = 3
    ) -> tuple[list[int], list[str]]:
        sent: list[str] = []

        def answer(request: httpx.Request) -> httpx.Response:
            sent.append(request.headers["Authorization"])
            if sent[-1] == f"Bearer {accepted}":
                return httpx.Response(200)
            return httpx.Response(401, headers={"WWW-Authenticate": challenge})

        async with httpx.AsyncClient(transport=OAuth(tokens, "1").transport(network(answer))) as client:
            statuses = []

            async def one() -> None:
                statuses.append((await client.post(url, content=b"<x/>")).status_code)

            async with trio.open_nursery() as nursery:
                for _ in range(times):
                    nursery.start_soon(one)
        return statuses, sent

    async def test_a_refused_token_is_fetched_again_once_with_the_claims(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        claims = '{"access_token":{"nbf":{"essential":true,"value":"1"}}}?~'  # with + and / in base64
        issuer = Issuer()
        encoded = b64encode(claims.encode()).decode()
        challenge = f'Bearer realm="", error="insufficient_claims", claims="{encoded}"'
        statuses, sent = await self.ask(Tokens(issuer.fetch, "1"), "T2", challenge)
        assert statuses == [200] * 3
        assert sorted(sent) == ["Bearer T1"] * 3 + ["Bearer T2"] * 3
        assert issuer.claims == [None, claims]

    async def test_a_second_refusal_is_final(self, autojump_clock: trio.testing.MockClock) -> None:
        issuer = Issuer()
        statuses, sent = await self.ask(Tokens(issuer.fetch, "1"), "never", 'Bearer claims="%%%"')
        assert statuses == [401] * 3
        assert len(sent) == 6
        assert issuer.claims == [None, None]

    async def test_a_server_with_another_scheme_gets_no_second_token(self) -> None:
        issuer = Issuer()
        with pytest.RaisesGroup(
            pytest.RaisesExc(ExchangeError, match="offers NTLM, but the configuration requires Bearer")
        ):
            await self.ask(Tokens(issuer.fetch, "1"), "never", "NTLM", times=1)
        assert len(issuer.claims) == 1

    async def test_the_token_is_not_sent_in_clear(self) -> None:
        with pytest.RaisesGroup(pytest.RaisesExc(ExchangeError, match="would expose the access token")):
            await self.ask(Tokens(Issuer().fetch, "1"), "T1", "Bearer", "http://mail.example.com/", times=1)


def test_the_repr_of_a_token_hides_it() -> None:
    assert repr(Token("secret", 60)) == "Token('***', lifetime=60)"


@given(
    st.text(), st.sampled_from(['Bearer claims="{}"', "Bearer claims={}", "{}", 'Bearer x="", claims="{}'])
)
@example("\u00fc", 'Bearer claims="{}"')
@example("!", 'Bearer claims="{}"')
@example("/w==", 'Bearer claims="{}"')
def test_any_claims_challenge_is_parsed_without_error(claims: str, form: str) -> None:
    headers = httpx.Headers([(b"WWW-Authenticate", form.format(claims).encode("utf-8", "replace"))])
    found = requested_claims(headers)
    assert found is None or isinstance(found, str)
    challenge_token(headers, "Bearer")
    offered_schemes(headers)
