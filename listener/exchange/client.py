"""One group's way to Exchange: an httpx client with a cookie jar of its own.

Errors leave as `ExchangeError`; trouble.py knows those of httpx.


The audit: every first use of an identity, at each server.

It is taken from the bytes that are sent, so that no request can be made past it. "First" is since the process began.
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

from listener.errors import ExchangeError
from listener.ews.addresses import header_value
from listener.ews.codes import Failure
from listener.ews.folders import get_folder
from listener.ews.http import http_failure
from listener.ews.soap import acting_as, owner_of_folders
from listener.ews.subscription import FolderRef
from listener.ews.urls import server_of
from listener.ews.values import http_date
from listener.exchange.auth import Accounts
from listener.exchange.auth.lockout import Identity
from listener.exchange.body import ERROR_PAGE_LIMIT, SOAP_LIMIT, Body
from listener.exchange.cookies import Cookie, bound, cookies_in, put_into
from listener.exchange.network import Network, hide_location, location_of, with_issuer
from listener.exchange.throttle import Throttle, Throttles
from listener.exchange.transport_errors import mapped_errors
from listener.tracing import Tracing

T = TypeVar("T")


# What a request asks for: the first element in its body.
OPERATION = re.compile(rb"Body>\s*<(?:\w+:)?(\w+)")

# The version that a request to EWS names; one to Autodiscover names it in another way.
VERSION = re.compile(rb'<t:RequestServerVersion Version="(\w+)"')

# Seconds that an answer may be on its way. What is more means that the server's clock was set back.
CLOCK_STEP = 60.0


class Logger(Protocol):
    """Where the lines go."""

    def info(self, event: str, **fields: object) -> object: ...


class Audit:
    """Notes identities: whom the account impersonates, whose folders it names as a delegate, or itself.

    `logger` may be changed at any time.
    """

    def __init__(self, logger: Logger | None = None) -> None:
        self.logger: Logger = logger or structlog.get_logger()
        self._seen: set[tuple[str, str, str, str]] = set()

    def note(self, request: bytes, url: str, account: str) -> None:
        """A request is about to be sent.

        That it cannot be recorded does not hold it up: the log says so, and the next use is taken for the first.
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
            log.error("audit.not_written", path=error.filename, reason=error.strerror, fix=FIX)
        else:
            self._seen.add(use)


FIX = "make room on its disk, or let the daemon write there"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What all groups of one account have in common. Times are in seconds.

    `auth` has the account for each server. `budgets` hold back what would be too much for a server; a stream counts
    until it is open. `audit` and `watching` are told of every request. `transport` takes the place of the network.
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
        """The way out of this machine."""
        return Network(tls=self.tls, proxy=self.proxy, transport=self.transport)


class ExchangeClient:
    """One group's connections to one EWS URL. Use it as an async context manager."""

    def __init__(self, url: str, access: Access, cookies: Iterable[Cookie] = ()) -> None:
        self.url = url
        self._access = access
        self._account = access.auth.of(url)
        self._http = httpx.AsyncClient(
            transport=self._account.scheme.over(access.network),
            trust_env=False,
            follow_redirects=False,
            event_hooks={"response": [hide_location]},
            timeout=httpx.Timeout(None, connect=access.connect_timeout, write=access.request_timeout),
            headers={
                "User-Agent": access.user_agent,
                "Content-Type": "text/xml; charset=utf-8",
                "Accept": "text/xml",
                # A compressed stream would be held back until the compressor has enough.
                "Accept-Encoding": "identity",
            },
        )
        put_into(self._http.cookies.jar, cookies)
        # From trio's clock to the server's, in seconds, as far as its answers tell (Date).
        self.server_offset: float | None = None
        # The code of the latest request if it failed, else empty.
        self.last_failure = ""

    async def __aenter__(self) -> ExchangeClient:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    def clone(self) -> ExchangeClient:
        """Another client with the cookies that this one has now. What either gets from here on is its own."""
        return ExchangeClient(self.url, self._access, self.cookies)

    @property
    def cookies(self) -> tuple[Cookie, ...]:
        """What the next request would carry."""
        return tuple(cookies_in(self._http.cookies.jar))

    @property
    def account(self) -> str:
        """Who makes the requests, as far as logs may know."""
        return self._account.scheme.account

    def forget_cookies(self) -> None:
        """The next request is routed by its anchor alone, and may be given a new back end."""
        self._http.cookies.clear()

    async def call(
        self,
        body: bytes,
        headers: Mapping[str, str],
        read: Callable[[bytes], T],
        *,
        limit: int = SOAP_LIMIT,
    ) -> T:
        """Posts one SOAP request and returns what `read` makes of a 200 answer of at most `limit` bytes.

        Raises ExchangeError for every other status, for trouble on the way, and as `read` does.
        """
        return await self._asked(body, headers, lambda answer: _read_whole(answer, read, limit))

    async def open_stream(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Posts GetStreamingEvents and returns its answer, to be received as it comes and closed by the caller.

        How long to wait for each chunk is the caller's own affair: no read time-out is set. Raises ExchangeError
        when the answer is not a 200.
        """
        return await self._asked(body, headers, _as_it_is)

    @property
    def throttle(self) -> Throttle:
        """What all groups of the account that speak to this server share."""
        return self._access.throttles.of(self.url)

    async def _asked(
        self, body: bytes, headers: Mapping[str, str], take: Callable[[Answer], Awaitable[T]]
    ) -> T:
        throttle, seconds = self.throttle, self._access.request_timeout
        started_at = trio.current_time()
        version = VERSION.search(body)
        identity = None if version is None else _identity(body, headers)
        confirm = None if version is None else partial(self._confirm, version[1].decode())
        try:
            # The budget first: who has waited for it must know what became of the credentials meanwhile.
            async with throttle, self._account.lockout.asking(self.url, identity, confirm):
                self._access.audit.note(body, self.url, self._account.scheme.account)
                with trio.move_on_after(seconds):
                    taken = await take(await self._post(body, headers))
                    throttle.went_well()
                    self.last_failure = ""
                    self._show(body, headers, "ok", started_at)
                    return taken
            raise ExchangeError(Failure(code="ReadTimeout", text=f"no answer in {seconds:g} s"))
        except ExchangeError as error:
            throttle.failed(error.failure)
            self.last_failure = error.failure.code
            self._show(body, headers, error.failure.code, started_at)
            if error.failure.code != "TlsFailed":
                raise
            told = await with_issuer(error.failure, self.url, self._access.network)
            raise ExchangeError(told) from error

    async def _confirm(self, version: str, identity: Identity) -> None:
        """Asks for the inbox of a mailbox that the server has accepted the account for. Raises ExchangeError."""
        folders = [FolderRef("inbox", mailbox=identity.owner)]
        body = get_folder(folders, version=version, impersonate=identity.impersonate, id_only=True)
        self._access.audit.note(body, self.url, self._account.scheme.account)
        with trio.move_on_after(self._access.request_timeout):
            # No cookies: they lead to the back end of another mailbox.
            async with ExchangeClient(self.url, self._access) as other:
                answer = await other._post(body, {"X-AnchorMailbox": identity.anchor})
                await _read_whole(answer, bytes, SOAP_LIMIT)
            return
        raise ExchangeError(Failure(code="ReadTimeout", text="no answer"))

    def _show(self, body: bytes, headers: Mapping[str, str], code: str, started_at: float) -> None:
        """Tells whoever watches a mailbox what became of a request about it."""
        tracing = self._access.tracing
        if tracing.on:
            found = OPERATION.search(body)
            operation = found[1].decode() if found else ""
            anchor, seconds = headers.get("X-AnchorMailbox", ""), trio.current_time() - started_at
            tracing.trace_request(operation, body, anchor, code=code, seconds=seconds)

    async def _post(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        raw = [(name.encode(), header_value(value)) for name, value in headers.items()]
        with mapped_errors(proxy=self._access.proxy):
            request = self._http.build_request("POST", self.url, content=body, headers=raw)
            response = await self._http.send(request, stream=True)
        bound(self._http.cookies.jar)
        self._note_date(response.headers.get("date", ""))
        answer = Answer(response)
        if answer.status == httpx.codes.OK:
            return answer
        async with aclosing(answer):
            content = await answer.beginning(ERROR_PAGE_LIMIT)
            # Some servers write a second, stray answer after a fault: this connection is not used again.
            answer.hang_up()
        failure = http_failure(answer.status, answer.headers, content, datetime.now(UTC))
        if failure.code in ("Http401", "Http440"):
            failure = replace(
                failure, text="; ".join(filter(None, [self._account.scheme.refusal, failure.text]))
            )
        raise ExchangeError(failure)

    def _note_date(self, written: str) -> None:
        """Take the server's time from an answer. It is cut off to the second and was on its way for a while, so that
        the server's clock is this far at least; a clock that was set back shows after CLOCK_STEP."""
        date = http_date(written)
        if date is None:
            return
        offset = date.timestamp() - trio.current_time()
        known = self.server_offset
        if known is None or offset > known or offset < known - CLOCK_STEP:
            self.server_offset = offset


class Answer(Body):
    """An answer: its status and headers, and its body, received piece by piece."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(response)
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        if (location := location_of(response)) is not None:
            self.headers = {**response.headers, "location": location}

    def hang_up(self) -> None:
        """Makes sure that the connection serves no further request."""
        connection = self._response.extensions["network_stream"].get_extra_info("socket")
        # The pool finds it at its end and closes it; closing it here would pull it from under the pool's feet.
        with suppress(OSError):  # the peer was faster
            connection.shutdown(trio.socket.SHUT_RDWR)


def _identity(body: bytes, headers: Mapping[str, str]) -> Identity:
    return Identity(
        impersonate=acting_as(body),
        owner=owner_of_folders(body),
        anchor=headers.get("X-AnchorMailbox", ""),
    )


async def _as_it_is(answer: Answer) -> Answer:
    return answer


async def _read_whole(answer: Answer, read: Callable[[bytes], T], limit: int) -> T:
    async with aclosing(answer):
        return read(await answer.whole(limit))


log = structlog.get_logger()
