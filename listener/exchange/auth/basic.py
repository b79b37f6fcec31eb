"""Basic authentication (RFC 7617), with the credentials sent unasked: a 401 costs a round trip a request."""

from __future__ import annotations

from base64 import b64encode

import httpx

from listener.exchange.auth.scheme import Credentials, choose, not_in_clear, offered_schemes, refused_password
from listener.exchange.network import Network


class Basic:
    """User and password with every request, UTF-8."""

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
        return refused_password(self.account)

    def over(self, network: Network) -> httpx.AsyncBaseTransport:
        return _BasicTransport(network.pool(), self._credentials)


class _BasicTransport(httpx.AsyncBaseTransport):
    def __init__(self, inner: httpx.AsyncBaseTransport, credentials: Credentials) -> None:
        self._inner = inner
        self._credentials = credentials

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        not_in_clear(request.url, "the password")
        password = self._credentials.password
        response = await self._send(request, password)
        if response.status_code != httpx.codes.UNAUTHORIZED:
            return response
        try:
            if offers := offered_schemes(response.headers):
                choose(offers, "Basic")
            again = await self._credentials.renewed(password)
        except BaseException:  # whoever asked may be gone meanwhile, and would leave the connection open
            await response.aclose()
            raise
        if not again:
            return response
        await response.aclose()
        return await self._send(request, self._credentials.password)

    async def _send(self, request: httpx.Request, password: str) -> httpx.Response:
        told = b64encode(f"{self._credentials.user}:{password}".encode()).decode()
        request.headers["Authorization"] = f"Basic {told}"
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()
