"""Responses and access control of the HTTP application, without a socket."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import pytest

from listener.admin.app import build
from listener.admin.snapshot import Snapshot
from listener.errors import ConfigError, Problem
from tests.admin.statuses import snapshot

TOKEN = "t0ken"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class Daemon:
    now: Snapshot = field(default_factory=snapshot)
    problems: list[Problem] = field(default_factory=list)
    reloads: int = 0

    def snapshot(self) -> Snapshot:
        return self.now

    def streaming(self) -> Iterable[tuple[str, bool]]:
        return [("bob@x.example", True)]

    async def reload(self) -> tuple[str, ...]:
        self.reloads += 1
        if self.problems:
            raise ConfigError(self.problems)
        return ("exchange.proxy",)

    def watch(self, mailbox: str) -> AsyncIterator[bytes]:
        if mailbox.casefold() != "bob@x.example":
            raise LookupError(f"unknown mailbox {mailbox}")

        async def lines() -> AsyncIterator[bytes]:
            yield b'{"n":1}\n'
            yield b'{"n":2}\n'

        return lines()


async def ask(
    daemon: Daemon, path: str, *, method: str = "GET", local: bool = True, headers: Any = None, **options: Any
) -> httpx.Response:
    app = build(daemon, **options)

    async def seen(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and local:
            scope["client"] = None  # as over a Unix socket
        await app(scope, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(seen), base_url="http://x") as client:
        return await client.request(method, path, headers=headers)


async def test_status_is_the_snapshot() -> None:
    answer = await ask(Daemon(), "/status.json")
    assert answer.headers["content-type"] == "application/json"
    assert msgspec.json.decode(answer.content, type=Snapshot) == snapshot()


@pytest.mark.parametrize(
    ("path", "changes", "status"),
    [
        ("/healthz", {}, 200),
        ("/healthz", {"healthy": False}, 503),
        ("/readyz", {}, 200),
        ("/readyz", {"state": "starting"}, 503),
        ("/readyz", {"state": "ending"}, 503),
        ("/nowhere", {}, 404),
    ],
)
async def test_health_status_codes(path: str, changes: Any, status: int) -> None:
    assert (await ask(Daemon(snapshot(**changes)), path, local=False, token=TOKEN)).status_code == status


async def test_metrics_by_mailbox_only_if_enabled() -> None:
    assert "mailbox_streaming{" not in (await ask(Daemon(), "/metrics")).text
    assert (
        'mailbox_streaming{mailbox="bob@x.example"} 1.0'
        in (await ask(Daemon(), "/metrics", by_mailbox=True)).text
    )


@pytest.mark.parametrize("path", ["/metrics", "/status.json"])
async def test_reading_needs_a_token_only_if_one_is_configured(path: str) -> None:
    assert (await ask(Daemon(), path, local=False)).status_code == 200
    refused = await ask(Daemon(), path, local=False, token=TOKEN)
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert (await ask(Daemon(), path, local=True, token=TOKEN)).status_code == 200
    assert (await ask(Daemon(), path, local=False, token=TOKEN, headers=BEARER)).status_code == 200


@pytest.mark.parametrize("given", ["Bearer t0ke", "Bearer", "Basic t0ken", "Bearer t\u00f6ken", ""])
async def test_wrong_token_is_rejected(given: str) -> None:
    headers = {"Authorization": given.encode()}
    assert (await ask(Daemon(), "/metrics", local=False, token=TOKEN, headers=headers)).status_code == 401


@pytest.mark.parametrize(("method", "path"), [("POST", "/reload"), ("GET", "/watch/bob@x.example")])
async def test_reload_and_watch_always_need_the_token_over_tcp(method: str, path: str) -> None:
    daemon = Daemon()
    assert (await ask(daemon, path, method=method, local=False)).status_code == 403
    assert (await ask(daemon, path, method=method, local=False, token=TOKEN)).status_code == 401
    assert daemon.reloads == 0
    assert (
        await ask(daemon, path, method=method, local=False, token=TOKEN, headers=BEARER)
    ).status_code == 200
    assert (await ask(daemon, path, method=method)).status_code == 200


async def test_get_does_not_reload() -> None:
    daemon = Daemon()
    assert (await ask(daemon, "/reload")).status_code == 405
    assert daemon.reloads == 0


async def test_reload_returns_pending_keys_or_problems() -> None:
    assert (await ask(Daemon(), "/reload", method="POST")).json() == {"pending": ["exchange.proxy"]}
    refused = await ask(Daemon(problems=[Problem("log.level", "is wrong")]), "/reload", method="POST")
    assert (refused.status_code, refused.json()) == (422, {"problems": ["log.level: is wrong"]})


async def test_watch_streams_lines() -> None:
    assert (await ask(Daemon(), "/watch/Bob@x.example")).text == '{"n":1}\n{"n":2}\n'
    assert (await ask(Daemon(), "/watch/ann@x.example")).status_code == 404
