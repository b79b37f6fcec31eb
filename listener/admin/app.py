"""HTTP application for status, metrics, reload and tracing. docs/METRICS.md and docs/CLI.md describe the paths.

Only the daemon's own user and root can open the Unix socket, so every request over it is allowed. Over TCP, reading
needs a token only if one is configured. A reload, or tracing one mailbox, always needs the token.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Protocol

import msgspec
import trio
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from listener.admin.metrics import render
from listener.admin.snapshot import Snapshot
from listener.errors import ConfigError
from listener.text import printable, shortened

Endpoint = Callable[[Request], Awaitable[Response]]


class Operable(Protocol):
    """Operations of the daemon that the application exposes."""

    def snapshot(self) -> Snapshot: ...

    def streaming(self) -> Iterable[tuple[str, bool]]:
        """Return each mailbox, and whether it has a stream."""

    async def reload(self) -> tuple[str, ...]:
        """Reload the configuration. Return the keys that take effect only at the next start.

        Raises ConfigError if it is invalid; then nothing has changed.
        """

    def watch(self, mailbox: str) -> AsyncIterator[bytes]:
        """Trace a mailbox in real time, as lines of JSON. Raises LookupError if it is unknown."""


def build(
    daemon: Operable,
    *,
    token: str | None = None,
    by_mailbox: bool = False,
    host_allowed: Callable[[str | None], bool] = lambda _host: True,
) -> ASGIApp:
    """Return the ASGI application.

    `by_mailbox`: the metrics have one series per mailbox. `host_allowed`: whether a TCP request with this Host header
    is answered (listener/admin/hosts.py).
    """

    def authorized(endpoint: Endpoint, *, always: bool) -> Endpoint:
        """Require the token; with `always`, even if none is configured."""

        async def check(request: Request) -> Response:
            local = request.client is None  # a Unix socket has no address
            if local or (token is None and not always) or _has_token(request, token):
                return await endpoint(request)
            if token is None:
                return _text(403, "allowed only over the Unix socket, or with a token ([status] token)")
            return _text(401, "a token is required", headers={"WWW-Authenticate": "Bearer"})

        return check

    async def healthz(_: Request) -> Response:
        return _text(200, "ok") if daemon.snapshot().healthy else _text(503, "the journal writer is stuck")

    async def readyz(_: Request) -> Response:
        snapshot = daemon.snapshot()
        return _text(200 if snapshot.ready else 503, snapshot.state)

    async def metrics(request: Request) -> Response:
        snapshot = daemon.snapshot()
        streaming = list(daemon.streaming()) if by_mailbox else []
        accept = request.headers.get("accept", "")
        # In a thread: rendering thousands of series must not delay events.
        text, kind = await trio.to_thread.run_sync(render, snapshot, streaming, accept)
        return Response(text, media_type=kind)

    async def status(_: Request) -> Response:
        return _json(daemon.snapshot())

    async def reload(_: Request) -> Response:
        try:
            pending = await daemon.reload()
        except ConfigError as error:
            return _json({"problems": [str(problem) for problem in error.problems]}, status=422)
        return _json({"pending": pending})

    async def watch(request: Request) -> Response:
        try:
            lines = daemon.watch(request.path_params["mailbox"])
        except LookupError as error:
            return _text(404, str(error))
        return StreamingResponse(lines, media_type="application/x-ndjson")

    routes = Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", authorized(metrics, always=False)),
            Route("/status.json", authorized(status, always=False)),
            Route("/reload", authorized(reload, always=True), methods=["POST"]),
            Route("/watch/{mailbox}", authorized(watch, always=True)),
        ]
    )

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope.get("client") is not None:
            host = Headers(scope=scope).get("host")
            if not host_allowed(host):
                problem = (
                    "the request has no Host header"
                    if host is None
                    else f'the Host header "{printable(shortened(host, 200))}" is not allowed'
                )
                text = f"{problem}; to allow a name, add it to [status] allowed_hosts"
                await _text(421, text)(scope, receive, send)
                return
        await routes(scope, receive, send)

    return application


def _has_token(request: Request, token: str | None) -> bool:
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    return (
        token is not None
        and scheme.lower() == "bearer"
        and hmac.compare_digest(sent.encode(), token.encode())
    )


def _text(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(text + "\n", status_code=status, headers=headers)


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value) + b"\n", status_code=status, media_type="application/json")
