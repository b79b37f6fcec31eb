"""OAuth: a bearer token with every request (RFC 6750), renewed when it is refused.

Access tokens: one source an account, however many groups and streams.

The rules:

1. One request fetches, and whoever comes meanwhile waits for it, and shares its failure; or goes on with the old
   token, if that is still good.
2. A token is renewed before it ends, when a request comes in the last part of its life. If that fails, the old one
   is used as long as it lasts. Streams are not touched: a server looks at tokens when a request begins.
3. A token that was refused is fetched anew once, with the claims that the server asked for.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import httpx
import structlog
import trio

from listener.errors import ExchangeError
from listener.exchange.auth.scheme import (
    challenge_parameters,
    choose,
    not_in_clear,
    offered_schemes,
)
from listener.exchange.network import Network


class OAuth:
    """Access tokens of one application."""

    def __init__(self, tokens: Tokens, account: str) -> None:
        self.account = account
        self.password = None
        self._tokens = tokens

    @property
    def remaining(self) -> float | None:
        """How many seconds its token is good for; None if there was none yet."""
        return self._tokens.remaining

    @property
    def refusal(self) -> str:
        return (
            f"the server refuses the access token of {self.account}, and a new one too: has the application the "
            "permission full_access_as_app, with consent, or a role of RBAC for Applications?"
        )

    def over(self, network: Network) -> httpx.AsyncBaseTransport:
        return _BearerTransport(network.pool(), self._tokens)


class _BearerTransport(httpx.AsyncBaseTransport):
    def __init__(self, inner: httpx.AsyncBaseTransport, tokens: Tokens) -> None:
        self._inner = inner
        self._tokens = tokens

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        not_in_clear(request.url, "the access token")
        token = await self._tokens.get()
        response = await self._send(request, token)
        if response.status_code != httpx.codes.UNAUTHORIZED:
            return response
        await response.aclose()
        if offers := offered_schemes(response.headers):
            choose(offers, "Bearer")
        return await self._send(request, await self._tokens.renew(token, claims_of(response.headers)))

    async def _send(self, request: httpx.Request, token: str) -> httpx.Response:
        request.headers["Authorization"] = f"Bearer {token}"
        try:
            return await self._inner.handle_async_request(request)
        finally:
            del request.headers["Authorization"]

    async def aclose(self) -> None:
        await self._inner.aclose()


def claims_of(headers: httpx.Headers) -> str | None:
    """The claims that a token must have, as JSON, if the server asks for any; they come in base64 ("Claims
    challenges, claims requests, and client capabilities", learn.microsoft.com)."""
    told = challenge_parameters(headers, "Bearer").get("claims")
    if not told:
        return None
    try:
        padded = told.rstrip("=") + "=" * (-len(told.rstrip("=")) % 4)
        return b64decode(padded.replace("-", "+").replace("_", "/"), validate=True).decode()
    except ValueError:  # not base64, not ASCII, not UTF-8
        return None


log = structlog.get_logger()

EARLY = 300.0
"""Seconds before its end when a token is renewed; a quarter of its life, if that is shorter."""
PATIENCE = 30.0
"""Seconds until it is tried again after a failure, while the old token is good."""


class Token(NamedTuple):
    """An access token, and how many seconds it lives. `refresh` is when its issuer would have it renewed."""

    text: str
    lifetime: float
    refresh: float | None = None

    def __repr__(self) -> str:
        return f"Token('***', lifetime={self.lifetime:g})"


Fetch = Callable[[str | None], Awaitable[Token]]
"""Gets a new token, with these claims (JSON) if any. Raises ExchangeError."""


class Tokens:
    """The account's token, fetched when it is needed."""

    def __init__(self, fetch: Fetch, account: str) -> None:
        self._fetch = fetch
        self._account = account
        self._token: Token | None = None
        self._renew_at = self._ends = -float("inf")
        self._fetching = trio.Lock()
        self._fetches = 0
        self._error: ExchangeError | None = None

    @property
    def remaining(self) -> float | None:
        """How many seconds the token is good for, 0 if it has ended; None if there was none yet."""
        return None if self._token is None else max(0.0, self._ends - trio.current_time())

    async def get(self) -> str:
        """A good token. Raises ExchangeError if there is none to be had."""
        if self._token is not None:
            now = trio.current_time()
            if now < self._renew_at or (now < self._ends and self._fetching.locked()):
                return self._token.text
        return await self._renewed(None, None)

    async def renew(self, refused: str, claims: str | None) -> str:
        """Another token than the one that was refused. Raises ExchangeError."""
        return await self._renewed(refused, claims)

    async def _renewed(self, refused: str | None, claims: str | None) -> str:
        before = self._fetches
        async with self._fetching:
            now = trio.current_time()
            token = self._token
            if token is not None and token.text != refused and now < self._renew_at:
                return token.text  # somebody was faster
            if self._fetches != before and self._error is not None:
                raise ExchangeError(self._error.failure) from self._error
            try:
                token = await self._fetch(claims)
            except ExchangeError as error:
                self._error = error
                if token is None or refused is not None or now >= self._ends:
                    raise
                log.warning(
                    "auth.token_not_renewed",
                    account=self._account,
                    remaining=round(self._ends - now, 3),
                    code=error.failure.code,
                    text=error.failure.text,
                )
                self._renew_at = now + PATIENCE
                return token.text
            finally:
                self._fetches += 1
            self._error = None
            self._token = token
            self._ends = now + token.lifetime
            early = max(token.lifetime * 0.75, token.lifetime - EARLY)
            self._renew_at = now + min(early, token.refresh or early)
            log.debug("auth.token_renewed", account=self._account, lifetime=round(token.lifetime, 3))
            return token.text
