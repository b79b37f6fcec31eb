"""HTTP client of one group: sends SOAP requests with the group's own cookie jar, and audits identities.

Failures are raised as `ExchangeError`; transport_errors.py maps those of httpx.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Protocol, TypeVar

import httpx
import structlog
import trio
from msgspec.structs import replace

from listener.ews.addresses import header_value
from listener.ews.codes import ExchangeError, Failure
from listener.ews.folders import get_folder
from listener.ews.http import http_failure
from listener.ews.soap import acting_as, owner_of_folders
from listener.ews.subscription import FolderRef
from listener.ews.urls import server_of
from listener.ews.values import http_date
from listener.exchange.auth import Accounts
from listener.exchange.auth.lockout import Identity
from listener.exchange.body import ERROR_PAGE_LIMIT, SOAP_LIMIT, Body
from listener.exchange.cookies import Cookie, add_cookies, limit_cookies, read_cookies
from listener.exchange.network import Network, add_issuer, hide_location, location_of
from listener.exchange.throttle import Throttle, Throttles
from listener.exchange.transport_errors import mapped_errors
from listener.tracing import Tracing

T = TypeVar("T")

log = structlog.get_logger()

# The operation of a request: the first element in its body.
OPERATION = re.compile(rb"Body>\s*<(?:\w+:)?(\w+)")

# The version in an EWS request. Autodiscover requests name their version in another element, and so do not match.
VERSION = re.compile(rb'<t:RequestServerVersion Version="(\w+)"')

# Seconds that a response may take to arrive. A larger difference means that the server's clock was set back.
CLOCK_STEP = 60.0


class Logger(Protocol):
    """The destination of audit lines."""

    def info(self, event: str, **fields: object) -> object: ...


class Audit:
    """Logs the first use of each identity at each server since the process started.

    An identity is the mailbox that the account impersonates, the mailbox whose folders it names as a delegate, or the
    account itself. It is read from the bytes that are sent, so that no request bypasses the audit. `logger` may be
    replaced at any time.
    """

    def __init__(self, logger: Logger | None = None) -> None:
        self.logger: Logger = logger or structlog.get_logger()
        self._seen: set[tuple[str, str, str, str]] = set()

    def record(self, request: bytes, url: str, account: str) -> None:
        """Record a request that is about to be sent.

        If the line cannot be written, the request is sent nevertheless. The failure is logged, and the next use of
        the identity counts as the first.
        """
        access, identity, named_by = "own", account, "account"
        if (impersonation := acting_as(request)) is not None:
            access, identity, named_by = "impersonation", impersonation.value, impersonation.kind
        elif (owner := owner_of_folders(request)) is not None:
            access, identity, named_by = "delegate", owner, "PrimarySmtpAddress"
        server = server_of(url)
        use = (server, account, access, identity)
        if use in self._seen:
            return
        try:
            self.logger.info(
                "audit.identity_used",
                account=account,
                server=server,
                access=access,
                identity=identity,
                named_by=named_by,
            )
        except OSError as error:
            log.error("audit.not_written", path=error.filename, reason=error.strerror, fix=AUDIT_FIX)
        else:
            self._seen.add(use)


AUDIT_FIX = "free disk space, or allow the daemon to write to the file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What all groups of the daemon share for their requests. Times are in seconds.

    `auth` has the account for each server. `throttles` limit the requests to each server; a stream counts until it is
    open. `audit` and `tracing` see every request. Tests pass a `transport` in place of the network.
    """

    auth: Accounts
    throttles: Throttles
    user_agent: str
    tls: ssl.SSLContext
    proxy: httpx.Proxy | None = None
    connect_timeout: float = 10.0
    request_timeout: float = 60.0
    transport: httpx.AsyncBaseTransport | None = None
    audit: Audit = field(default_factory=Audit)
    tracing: Tracing = field(default_factory=Tracing)

    @property
    def network(self) -> Network:
        """How to open connections."""
        return Network(tls=self.tls, proxy=self.proxy, transport=self.transport)


class ExchangeClient:
    """One group's connections to one EWS URL. Use it as an async context manager."""

    def __init__(self, url: str, access: Access, cookies: Iterable[Cookie] = ()) -> None:
        self.url = url
        self._access = access
        self._account = access.auth.of(url)
        self._http = httpx.AsyncClient(
            transport=self._account.scheme.transport(access.network),
            trust_env=False,
            follow_redirects=False,
            event_hooks={"response": [hide_location]},
            timeout=httpx.Timeout(None, connect=access.connect_timeout, write=access.request_timeout),
            headers={
                "User-Agent": access.user_agent,
                "Content-Type": "text/xml; charset=utf-8",
                "Accept": "text/xml",
                # A compressor would hold a stream back until its buffer is full.
                "Accept-Encoding": "identity",
            },
        )
        add_cookies(self._http.cookies.jar, cookies)
        # Seconds to add to trio's clock for the server's, from the Date of its responses; None: there was none yet.
        self.server_offset: float | None = None
        # The failure code of the latest request; empty if it succeeded.
        self.last_failure = ""

    async def __aenter__(self) -> ExchangeClient:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    def clone(self) -> ExchangeClient:
        """Return another client with a copy of this client's cookies. Later changes are not shared."""
        return ExchangeClient(self.url, self._access, self.cookies)

    @property
    def cookies(self) -> tuple[Cookie, ...]:
        """The cookies of the next request."""
        return tuple(read_cookies(self._http.cookies.jar))

    @property
    def account(self) -> str:
        """The name of the account, for logs."""
        return self._account.scheme.account

    def forget_cookies(self) -> None:
        """Delete the cookies. The next request is routed by its anchor alone, and may reach another back end."""
        self._http.cookies.clear()

    async def call(
        self,
        body: bytes,
        headers: Mapping[str, str],
        read: Callable[[bytes], T],
        *,
        limit: int = SOAP_LIMIT,
    ) -> T:
        """Post one SOAP request and return `read` of the body of a 200 response, which has at most `limit` bytes.

        Raises ExchangeError for every other status, for transport errors, and as `read` does.
        """
        return await self._send(body, headers, lambda response: _read_whole(response, read, limit))

    async def open_stream(self, body: bytes, headers: Mapping[str, str]) -> Response:
        """Post GetStreamingEvents and return its response unread. The caller must close it.

        The caller also sets the deadline for each chunk: there is no read timeout. Raises ExchangeError unless the
        status is 200.
        """
        return await self._send(body, headers, _return_unread)

    @property
    def throttle(self) -> Throttle:
        """The throttle that all groups share for this server."""
        return self._access.throttles.of(self.url)

    async def _send(
        self, body: bytes, headers: Mapping[str, str], consume: Callable[[Response], Awaitable[T]]
    ) -> T:
        throttle, seconds = self.throttle, self._access.request_timeout
        started_at = trio.current_time()
        version = VERSION.search(body)
        identity = None if version is None else _identity(body, headers)
        confirm = None if version is None else partial(self._confirm, version[1].decode())
        try:
            # Throttle first: lockout protection must decide after the wait, on the current state of the credentials.
            async with throttle, self._account.lockout.request(self.url, identity, confirm):
                self._access.audit.record(body, self.url, self._account.scheme.account)
                with trio.move_on_after(seconds):
                    result = await consume(await self._post(body, headers))
                    throttle.succeeded()
                    self.last_failure = ""
                    self._trace(body, headers, "ok", started_at)
                    return result
            raise ExchangeError(Failure(code="ReadTimeout", text=f"no response in {seconds:g} s"))
        except ExchangeError as error:
            throttle.failed(error.failure)
            self.last_failure = error.failure.code
            self._trace(body, headers, error.failure.code, started_at)
            if error.failure.code != "TlsFailed":
                raise
            failure = await add_issuer(error.failure, self.url, self._access.network)
            raise ExchangeError(failure) from error

    async def _confirm(self, version: str, identity: Identity) -> None:
        """Request the inbox of a mailbox for which the server has accepted the account. Raises ExchangeError."""
        folders = [FolderRef("inbox", mailbox=identity.owner)]
        body = get_folder(folders, version=version, impersonate=identity.impersonate, id_only=True)
        self._access.audit.record(body, self.url, self._account.scheme.account)
        with trio.move_on_after(self._access.request_timeout):
            # Without cookies: they route to the back end of another mailbox.
            async with ExchangeClient(self.url, self._access) as other:
                response = await other._post(body, {"X-AnchorMailbox": identity.anchor})
                await _read_whole(response, bytes, SOAP_LIMIT)
            return
        raise ExchangeError(Failure(code="ReadTimeout", text="no response"))

    def _trace(self, body: bytes, headers: Mapping[str, str], code: str, started_at: float) -> None:
        """Report the result of a request to the commands that trace its mailbox."""
        tracing = self._access.tracing
        if tracing.on:
            found = OPERATION.search(body)
            operation = found[1].decode() if found else ""
            anchor, seconds = headers.get("X-AnchorMailbox", ""), trio.current_time() - started_at
            tracing.trace_request(operation, body, anchor, code=code, seconds=seconds)

    async def _post(self, body: bytes, headers: Mapping[str, str]) -> Response:
        raw = [(name.encode(), header_value(value)) for name, value in headers.items()]
        with mapped_errors(proxy=self._access.proxy):
            request = self._http.build_request("POST", self.url, content=body, headers=raw)
            http_response = await self._http.send(request, stream=True)
        limit_cookies(self._http.cookies.jar)
        self._update_server_offset(http_response.headers.get("date", ""))
        response = Response(http_response)
        if response.status == httpx.codes.OK:
            return response
        async with aclosing(response):
            content = await response.beginning(ERROR_PAGE_LIMIT)
            # Some servers send a second, stray response after a fault, so this connection must not be used again.
            response.shut_down()
        failure = http_failure(response.status, response.headers, content, datetime.now(UTC))
        if failure.code in ("Http401", "Http440"):
            failure = replace(
                failure, text="; ".join(filter(None, [self._account.scheme.refusal, failure.text]))
            )
        raise ExchangeError(failure)

    def _update_server_offset(self, date_header: str) -> None:
        """Update `server_offset` from the Date of a response.

        Date is truncated to the second and arrives late, so each one gives a lower bound and the highest is used. If
        the bound falls by more than CLOCK_STEP, the server's clock was set back.
        """
        date = http_date(date_header)
        if date is None:
            return
        offset = date.timestamp() - trio.current_time()
        known = self.server_offset
        if known is None or offset > known or offset < known - CLOCK_STEP:
            self.server_offset = offset


class Response(Body):
    """A response: its status and headers, and its body, which is received in pieces."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(response)
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        if (location := location_of(response)) is not None:
            self.headers = {**response.headers, "location": location}

    def shut_down(self) -> None:
        """Shut the connection down, so that it serves no further request."""
        connection = self._response.extensions["network_stream"].get_extra_info("socket")
        # Not closed: the pool still owns the socket. It finds the connection at its end, and closes it.
        with suppress(OSError):  # the server has closed it already
            connection.shutdown(trio.socket.SHUT_RDWR)


def _identity(body: bytes, headers: Mapping[str, str]) -> Identity:
    return Identity(
        impersonate=acting_as(body),
        owner=owner_of_folders(body),
        anchor=headers.get("X-AnchorMailbox", ""),
    )


async def _return_unread(response: Response) -> Response:
    return response


async def _read_whole(response: Response, read: Callable[[bytes], T], limit: int) -> T:
    async with aclosing(response):
        return read(await response.whole(limit))
