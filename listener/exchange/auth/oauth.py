"""OAuth: a bearer token with every request (RFC 6750), renewed when it is refused."""

from __future__ import annotations

from base64 import b64decode

import httpx

from listener.exchange.auth import challenges
from listener.exchange.auth.scheme import choose, not_in_clear
from listener.exchange.auth.tokens import Tokens
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
        if offers := challenges.offered(response.headers):
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
    told = challenges.parameters(headers, "Bearer").get("claims")
    if not told:
        return None
    try:
        padded = told.rstrip("=") + "=" * (-len(told.rstrip("=")) % 4)
        return b64decode(padded.replace("-", "+").replace("_", "/"), validate=True).decode()
    except ValueError:  # not base64, not ASCII, not UTF-8
        return None
