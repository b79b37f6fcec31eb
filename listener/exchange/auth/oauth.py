"""OAuth: a bearer token with every request (RFC 6750), and the token cache of an account.

All groups and streams of an account share one token:

1. One request fetches a token. Requests that come meanwhile wait for it and share its failure, or use the old token
   if that is still valid.
2. A token is renewed before it expires, by a request in the last part of its lifetime. If that fails, the old token
   is used until it expires. Open streams are not touched: a server checks the token when a request begins.
3. A refused token is fetched again once, with the claims that the server requests.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import httpx
import structlog
import trio

from listener.ews.codes import ExchangeError
from listener.exchange.auth.scheme import (
    challenge_parameters,
    choose_scheme,
    offered_schemes,
    require_https,
)
from listener.exchange.network import Network

log = structlog.get_logger()

RENEW_BEFORE_EXPIRY = 300.0
"""Seconds before its expiry when a token is renewed; a quarter of its lifetime, if that is shorter."""
RETRY_INTERVAL = 30.0
"""Seconds until the next attempt after a failed renewal, while the old token is valid."""


class OAuth:
    """Authenticate as an application, with its access token."""

    def __init__(self, tokens: Tokens, account: str) -> None:
        self.account = account
        self.password = None
        self._tokens = tokens

    @property
    def remaining(self) -> float | None:
        """Seconds until the token expires; None if there was no token yet."""
        return self._tokens.remaining

    @property
    def refusal(self) -> str:
        return (
            f"the server refuses the access token of {self.account}, and a new one too: has the application the "
            "permission full_access_as_app with admin consent, or a role of RBAC for Applications?"
        )

    def transport(self, network: Network) -> httpx.AsyncBaseTransport:
        return _BearerTransport(network.pool(), self._tokens)


class _BearerTransport(httpx.AsyncBaseTransport):
    def __init__(self, inner: httpx.AsyncBaseTransport, tokens: Tokens) -> None:
        self._inner = inner
        self._tokens = tokens

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        require_https(request.url, "the access token")
        token = await self._tokens.get()
        response = await self._send(request, token)
        if response.status_code != httpx.codes.UNAUTHORIZED:
            return response
        await response.aclose()
        if offers := offered_schemes(response.headers):
            choose_scheme(offers, "Bearer")
        return await self._send(request, await self._tokens.renew(token, requested_claims(response.headers)))

    async def _send(self, request: httpx.Request, token: str) -> httpx.Response:
        request.headers["Authorization"] = f"Bearer {token}"
        try:
            return await self._inner.handle_async_request(request)
        finally:
            del request.headers["Authorization"]

    async def aclose(self) -> None:
        await self._inner.aclose()


def requested_claims(headers: httpx.Headers) -> str | None:
    """Return the claims, as JSON, that the server requests of a token; None if it requests none.

    The header has them in base64. Source: "Claims challenges, claims requests, and client capabilities",
    learn.microsoft.com.
    """
    encoded = challenge_parameters(headers, "Bearer").get("claims")
    if not encoded:
        return None
    try:
        padded = encoded.rstrip("=") + "=" * (-len(encoded.rstrip("=")) % 4)
        return b64decode(padded.replace("-", "+").replace("_", "/"), validate=True).decode()
    except ValueError:  # not base64, not ASCII, not UTF-8
        return None


class Token(NamedTuple):
    """An access token and its lifetime in seconds. `refresh` is the age at which its issuer wants it renewed."""

    text: str
    lifetime: float
    refresh: float | None = None

    def __repr__(self) -> str:
        return f"Token('***', lifetime={self.lifetime:g})"


Fetch = Callable[[str | None], Awaitable[Token]]
"""Fetches a new token, with these claims (JSON) if any. Raises ExchangeError."""


class Tokens:
    """The token cache of one account. It fetches a token when a request needs one."""

    def __init__(self, fetch: Fetch, account: str) -> None:
        self._fetch = fetch
        self._account = account
        self._token: Token | None = None
        self._renew_at = self._expires_at = -float("inf")
        self._fetching = trio.Lock()
        self._fetches = 0
        self._error: ExchangeError | None = None

    @property
    def remaining(self) -> float | None:
        """Seconds until the token expires, 0 if it has expired; None if there was no token yet."""
        return None if self._token is None else max(0.0, self._expires_at - trio.current_time())

    async def get(self) -> str:
        """Return a valid token. Raises ExchangeError if none can be fetched."""
        if self._token is not None:
            now = trio.current_time()
            if now < self._renew_at or (now < self._expires_at and self._fetching.locked()):
                return self._token.text
        return await self._renew(None, None)

    async def renew(self, refused: str, claims: str | None) -> str:
        """Return another token than the one that the server refused. Raises ExchangeError."""
        return await self._renew(refused, claims)

    async def _renew(self, refused: str | None, claims: str | None) -> str:
        fetches_before = self._fetches
        async with self._fetching:
            now = trio.current_time()
            token = self._token
            if token is not None and token.text != refused and now < self._renew_at:
                return token.text  # another request has renewed it meanwhile
            if self._fetches != fetches_before and self._error is not None:
                raise ExchangeError(self._error.failure) from self._error
            try:
                token = await self._fetch(claims)
            except ExchangeError as error:
                self._error = error
                if token is None or refused is not None or now >= self._expires_at:
                    raise
                log.warning(
                    "auth.token_not_renewed",
                    account=self._account,
                    remaining=round(self._expires_at - now, 3),
                    code=error.failure.code,
                    text=error.failure.text,
                )
                self._renew_at = now + RETRY_INTERVAL
                return token.text
            finally:
                self._fetches += 1
            self._error = None
            self._token = token
            self._expires_at = now + token.lifetime
            renew_after = max(token.lifetime * 0.75, token.lifetime - RENEW_BEFORE_EXPIRY)
            self._renew_at = now + min(renew_after, token.refresh or renew_after)
            log.debug("auth.token_renewed", account=self._account, lifetime=round(token.lifetime, 3))
            return token.text
