"""The listener sockets and the main loop."""

import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import trio

from listener.simulator.auth import Denied
from listener.simulator.connection import Answer, HttpConnection, Transport, ignore_disconnect
from listener.simulator.control import Control
from listener.simulator.exchange import Exchange
from listener.simulator.http import HttpRequest, Reply, page
from listener.simulator.ledger import Ledger
from listener.simulator.settings import Settings
from listener.simulator.traffic import Traffic

if TYPE_CHECKING:
    from listener.simulator.auth.oauth import Entra


class ListenerSocket:
    """A listener socket that can be closed temporarily. Connections are then refused, but the port stays
    reserved."""

    def __init__(
        self,
        listeners: list[trio.SocketListener],
        handle: Callable[[trio.SocketStream], Awaitable[object]],
        nursery: trio.Nursery,
    ) -> None:
        self._nursery = nursery
        self._handle = handle
        self._addresses = [(each.socket.family, each.socket.getsockname()) for each in listeners]
        self._reserved: list[trio.socket.SocketType] = []
        self._accepting = trio.CancelScope()
        self._serve(listeners)

    async def set_open(self, *, wanted: bool) -> None:
        """Open or close it. Raises OSError if another process took the port in between."""
        if wanted == (not self._reserved):
            return
        if wanted:
            for reserved in self._reserved:
                reserved.listen(1024)
            listeners = [trio.SocketListener(reserved) for reserved in self._reserved]
            self._reserved = []
            self._serve(listeners)
            return
        self._accepting.cancel()
        await self._closed.wait()
        for family, address in self._addresses:
            # Bound, but not listening: connections are refused.
            reserved = trio.socket.socket(family, socket.SOCK_STREAM)
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            await reserved.bind(address)
            self._reserved.append(reserved)

    def close(self) -> None:
        for reserved in self._reserved:
            reserved.close()

    def _serve(self, listeners: list[trio.SocketListener]) -> None:
        self._accepting = trio.CancelScope()
        self._closed = trio.Event()
        self._nursery.start_soon(self._accept, listeners, self._accepting, self._closed)

    async def _accept(
        self, listeners: list[trio.SocketListener], scope: trio.CancelScope, closed: trio.Event
    ) -> None:
        with scope:
            await trio.serve_listeners(self._handle, listeners, handler_nursery=self._nursery)
        closed.set()


CONTROL = "/control"


def exchange_front(
    exchange: Exchange, control: Control, clock: Callable[[], float], certificate: bytes | None
) -> Answer:
    """Return the answers to a new connection that was shown this certificate (DER; None without TLS)."""
    authenticator, conditions = exchange.authenticator, exchange.conditions
    login = authenticator.scheme.login(certificate)

    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        now = clock()
        if path.startswith(CONTROL):
            return control.handle(method, path.removeprefix(CONTROL), body, now)
        outcome = login.check(headers.get("authorization"), conditions.server_time(now))
        authenticator.note(outcome)
        if isinstance(outcome, Denied):
            exchange.requests["-", 401] += 1
            return page(401, "Unauthorized", outcome.headers)
        request = HttpRequest(method, path, headers, body, outcome.account, outcome.app_only)
        reply = exchange.handle(request, now)
        reply.headers += outcome.headers
        return reply

    return answer


def entra_front(exchange: Exchange, entra: "Entra", clock: Callable[[], float]) -> Answer:
    """Return the answers of Entra ID, without authentication."""

    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        return entra.handle(method, path, body, exchange.conditions.server_time(clock()))

    return answer


_EXPIRY_CHECK = 5.0
_STREAM_CHECK = 0.1
_MIN_PAUSE = 0.001


class Running(NamedTuple):
    """A running server.

    `control_url` has its own port, which faults do not affect; the control API is also available on the main
    port. `login_url` is Entra ID on its own port, None without OAuth. `ca_pem` is the CA certificate, None
    without TLS. The other fields are the live objects, for tests in the same process.
    """

    ews_url: str
    autodiscover_url: str
    control_url: str
    login_url: str | None
    user: str
    password: str
    ca_pem: bytes | None
    exchange: Exchange
    traffic: Traffic
    control: Control


async def serve(
    settings: Settings, *, task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled. Reports a `Running` when connections are accepted.

    The clock starts at the system time and advances with trio's clock. So it works with
    trio.testing.MockClock and ignores changes of the system time. Raises OSError if the port or the ledger
    cannot be opened, FaultError if the faults name an unknown mailbox or back end.
    """
    offset = time.time() - trio.current_time()

    def clock() -> float:
        return trio.current_time() + offset

    with Ledger(settings.ledger) as ledger:
        exchange = Exchange(settings, ledger, clock())
        traffic = Traffic(list(exchange.directory), settings.rate, Random(f"traffic {settings.seed}"))
        control = Control(exchange, traffic, Random(f"control {settings.seed}"))
        listeners = await trio.open_tcp_listeners(settings.port, host=settings.host)
        port = listeners[0].socket.getsockname()[1]
        control_listeners = await trio.open_tcp_listeners(0, host=settings.host)
        control_port = control_listeners[0].socket.getsockname()[1]
        entra = exchange.authenticator.entra
        login_listeners = await trio.open_tcp_listeners(0, host=settings.host) if entra else []
        certificates = None
        if settings.tls:
            from listener.simulator.tls import Certificates  # slow to import

            certificates = Certificates(settings.hostname)
        scheme = "https" if certificates else "http"
        exchange.base_url = f"{scheme}://{settings.hostname}:{port}"
        if entra:
            entra.exchange.add(exchange.base_url)
            entra.base_url = f"{scheme}://{settings.hostname}:{login_listeners[0].socket.getsockname()[1]}"

        async def handle(raw: trio.SocketStream) -> None:
            transport: Transport = raw
            at, certificate = raw.socket.getsockname()[1], None
            if certificates:
                conditions = exchange.conditions
                if at == port and conditions.offloaded:
                    certificate = certificates.offloaded()
                else:
                    certificate = certificates.present(conditions.certificate if at == port else None)
                transport = trio.SSLStream(raw, certificate.context, server_side=True, https_compatible=True)
            if entra and at not in (port, control_port):
                answer = entra_front(exchange, entra, clock)
            else:
                answer = exchange_front(
                    exchange, control, clock, certificate.certificate if certificate else None
                )
            async with ignore_disconnect(transport):
                await HttpConnection(transport, exchange.conditions, answer, clock, offset).run()

        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, handle, [*control_listeners, *login_listeners])
            nursery.start_soon(
                _run_clock, exchange, traffic, clock, ListenerSocket(listeners, handle, nursery)
            )
            task_status.started(
                Running(
                    ews_url=f"{exchange.base_url}/EWS/Exchange.asmx",
                    autodiscover_url=f"{exchange.base_url}/autodiscover/autodiscover.svc",
                    control_url=f"{scheme}://{settings.hostname}:{control_port}{CONTROL}",
                    login_url=entra.base_url if entra else None,
                    user=settings.user,
                    password=settings.password,
                    ca_pem=certificates.ca_pem if certificates else None,
                    exchange=exchange,
                    traffic=traffic,
                    control=control,
                )
            )


async def _run_clock(
    exchange: Exchange, traffic: Traffic, clock: Callable[[], float], listener_socket: ListenerSocket
) -> None:
    """Run the traffic, the faults and the timers."""
    fault_scheduler = exchange.fault_scheduler
    with closing(listener_socket):
        while True:
            changed = trio.Event()
            traffic.wake = fault_scheduler.wake = changed.set
            now = clock()
            exchange.publish(traffic.due(now))
            exchange.advance(now)
            outage = exchange.conditions.outage
            await listener_socket.set_open(wanted=outage is None or outage.how != "refuse")
            pause = min(traffic.interval, _EXPIRY_CHECK, max(fault_scheduler.deadline - now, _MIN_PAUSE))
            with trio.move_on_after(min(pause, _STREAM_CHECK) if fault_scheduler.waits_for_stream else pause):
                await changed.wait()
