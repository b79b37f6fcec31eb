"""Basic authentication (RFC 7617). The credentials are sent preemptively: a 401 first would cost a round trip."""

from __future__ import annotations

from base64 import b64encode

import httpx

from listener.exchange.auth.scheme import (
    Credentials,
    choose_scheme,
    offered_schemes,
    password_refused,
    require_https,
)
from listener.exchange.network import Network


class Basic:
    """Send the username and password, in UTF-8, with every request."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    @property
    def account(self) -> str:
        return self._credentials.user

    @property
    def password(self) -> str:
        return self._credentials.password

    @property
    def refusal(self) -> str:
        return password_refused(self.account)

    def transport(self, network: Network) -> httpx.AsyncBaseTransport:
        return _BasicTransport(network.pool(), self._credentials)


class _BasicTransport(httpx.AsyncBaseTransport):
    def __init__(self, inner: httpx.AsyncBaseTransport, credentials: Credentials) -> None:
        self._inner = inner
        self._credentials = credentials

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        require_https(request.url, "the password")
        password = self._credentials.password
        response = await self._send(request, password)
        if response.status_code != httpx.codes.UNAUTHORIZED:
            return response
        try:
            if offers := offered_schemes(response.headers):
                choose_scheme(offers, "Basic")
            changed = await self._credentials.reload(password)
        except (
            BaseException
        ):  # a cancelled caller never gets the response, and could not close its connection
            await response.aclose()
            raise
        if not changed:
            return response
        await response.aclose()
        return await self._send(request, self._credentials.password)

    async def _send(self, request: httpx.Request, password: str) -> httpx.Response:
        encoded = b64encode(f"{self._credentials.user}:{password}".encode()).decode()
        request.headers["Authorization"] = f"Basic {encoded}"
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()
