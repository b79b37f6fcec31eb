"""What the daemon answers to operators and machines over HTTP; docs/METRICS.md and docs/CLI.md tell the paths.

Who comes by the Unix socket is the daemon's own user, and may do all. Over TCP reading is free, unless a token is
configured; what changes anything, or shows the mail of one mailbox, takes the token.
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
    """What the operator sees of the daemon and can ask of it."""

    def snapshot(self) -> Snapshot: ...

    def streaming(self) -> Iterable[tuple[str, bool]]:
        """Each mailbox, and whether it has a stream."""

    async def reload(self) -> tuple[str, ...]:
        """Takes up the configuration anew; returns the keys that take effect at the next start only.

        Raises ConfigError if it is bad; then nothing has changed.
        """

    def watch(self, mailbox: str) -> AsyncIterator[bytes]:
        """Lines of JSON about what happens with a mailbox, as it happens. Raises LookupError if it is unknown."""


def build(
    daemon: Operable,
    *,
    token: str | None = None,
    by_mailbox: bool = False,
    is_ours: Callable[[str | None], bool] = lambda _host: True,
) -> ASGIApp:
    """The ASGI application. `by_mailbox`: the metrics have a series a mailbox; `is_ours`: whether a request over TCP
    with this Host header is answered (listener/admin/hosts.py)."""

    def guarded(endpoint: Endpoint, *, strictly: bool) -> Endpoint:
        async def guard(request: Request) -> Response:
            local = request.client is None  # a Unix socket has no address
            if local or (token is None and not strictly) or _has(request, token):
                return await endpoint(request)
            if token is None:
                return _says(403, "only over the Unix socket, or with [status] token")
            return _says(401, "a token is needed", headers={"WWW-Authenticate": "Bearer"})

        return guard

    async def healthz(_: Request) -> Response:
        return (
            _says(200, "ok") if daemon.snapshot().healthy else _says(503, "the journal's writer stands still")
        )

    async def readyz(_: Request) -> Response:
        it = daemon.snapshot()
        return _says(200 if it.ready else 503, it.state)

    async def metrics(request: Request) -> Response:
        snapshot = daemon.snapshot()
        streaming = list(daemon.streaming()) if by_mailbox else []
        accept = request.headers.get("accept", "")
        # In a thread: the text of thousands of series must not keep events waiting.
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
            return _says(404, str(error))
        return StreamingResponse(lines, media_type="application/x-ndjson")

    answers = Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", guarded(metrics, strictly=False)),
            Route("/status.json", guarded(status, strictly=False)),
            Route("/reload", guarded(reload, strictly=True), methods=["POST"]),
            Route("/watch/{mailbox}", guarded(watch, strictly=True)),
        ]
    )

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope.get("client") is not None:
            host = Headers(scope=scope).get("host")
            if not is_ours(host):
                told = "no Host header" if host is None else f'the host "{printable(shortened(host, 200))}"'
                text = f"{told} is not answered here; add a name to [status] allowed_hosts"
                await _says(421, text)(scope, receive, send)
                return
        await answers(scope, receive, send)

    return checked


def _has(request: Request, token: str | None) -> bool:
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    return (
        token is not None and kind.lower() == "bearer" and hmac.compare_digest(given.encode(), token.encode())
    )


def _says(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(text + "\n", status_code=status, headers=headers)


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value) + b"\n", status_code=status, media_type="application/json")
