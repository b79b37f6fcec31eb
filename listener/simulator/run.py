"""The simulator process: start the server, print its addresses, stop on request."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import trio

from listener.simulator.server import Running, serve
from listener.simulator.settings import Settings


def main(
    settings: Settings,
    *,
    duration: float | None = None,
    write_config: Path | None = None,
    until_stdin_closes: bool = False,
) -> None:
    """Run until SIGINT, SIGTERM, the end of `duration` (seconds) or, if requested, the end of standard input.

    The first line on standard output is a JSON object with `ews_url`, `autodiscover_url`, `control_url`,
    `auth`, `user`, `password`, `oauth`, `ca_file` and `mailboxes_file`. Raises OSError if a port or a file
    cannot be opened, FaultError if the faults name an unknown mailbox or back end.
    """
    try:
        trio.run(_run, settings, duration, write_config, until_stdin_closes)
    except ExceptionGroup as group:
        raise _unwrap(group) from None


def _unwrap(error: Exception) -> Exception:
    """Return the error inside nested exception groups that hold exactly one."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _run(
    settings: Settings, duration: float | None, write_config: Path | None, until_stdin_closes: bool
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            if until_stdin_closes:
                nursery.start_soon(_cancel_when_stdin_closes, nursery.cancel_scope)
            running: Running = await nursery.start(serve, settings)
            with _files(running, settings, write_config) as files:
                first = {
                    "ews_url": running.ews_url,
                    "autodiscover_url": running.autodiscover_url,
                    "control_url": running.control_url,
                    "auth": settings.auth,
                    "user": running.user,
                    "password": running.password,
                    "oauth": _oauth(running, settings, files),
                    "ca_file": _path_text(files.ca),
                    "mailboxes_file": _path_text(files.mailboxes),
                }
                sys.stdout.write(json.dumps(first) + "\n")
                sys.stdout.flush()
                with trio.move_on_after(duration if duration is not None else float("inf")):
                    async for _ in signals:
                        break
            nursery.cancel_scope.cancel()


async def _cancel_when_stdin_closes(scope: trio.CancelScope) -> None:
    """Cancel when standard input closes. The parent holds the other end, so this also covers a crash of the
    parent."""
    # os.read: a thread that is abandoned in sys.stdin would hold its lock when Python exits.
    while await trio.to_thread.run_sync(os.read, sys.stdin.fileno(), 1 << 16, abandon_on_cancel=True):
        pass
    scope.cancel()


class Files(NamedTuple):
    """The files of a run: CA certificate, the application's key and certificate, list of mailboxes."""

    ca: Path | None
    application: Path | None
    mailboxes: Path | None


def _path_text(path: Path | None) -> str | None:
    return str(path) if path else None


def _oauth(running: Running, settings: Settings, files: Files) -> dict[str, str | None] | None:
    if running.login_url is None:
        return None
    return {
        "authority": f"{running.login_url}/{settings.tenant}",
        "tenant": settings.tenant,
        "client_id": settings.client_id,
        "client_secret": settings.client_secret,
        "certificate_file": _path_text(files.application),
    }


@contextmanager
def _files(running: Running, settings: Settings, config: Path | None) -> Iterator[Files]:
    """Write the files. Those next to a configuration are kept; without one, they are temporary."""
    with (
        nullcontext(config.resolve().parent)
        if config
        else TemporaryDirectory(prefix="ews-simulator-") as directory
    ):
        folder = Path(directory)
        ca_file = application = mailboxes_file = None
        if running.ca_pem:
            ca_file = folder / "ca.pem"
            ca_file.write_bytes(running.ca_pem)
        if entra := running.exchange.authenticator.entra:
            application = folder / "application.pem"
            application.touch(mode=0o600)
            application.write_bytes(entra.registration.pem)
        if config:
            mailboxes_file = folder / "mailboxes.txt"
            addresses = sorted(mailbox.address for mailbox in running.exchange.directory)
            mailboxes_file.write_text("".join(f"{address}\n" for address in addresses), encoding="utf-8")
            config.touch(mode=0o600)  # contains the password
            config.write_text(configuration(running, settings, tls=ca_file is not None), encoding="utf-8")
        yield Files(ca_file, application, mailboxes_file)


def configuration(running: Running, settings: Settings, *, tls: bool) -> str:
    """Return a configuration (TOML) for `ews-listener run` against this simulator. Its files are in the same
    directory."""

    def text(value: str) -> str:
        return json.dumps(value, ensure_ascii=False)

    ca_file = 'ca_file = "ca.pem"\n' if tls else ""
    if running.login_url:
        credentials = {
            "kind": "oauth",
            "authority": f"{running.login_url}/{settings.tenant}",
            "client_id": settings.client_id,
            "client_secret": settings.client_secret,
        }
    else:
        credentials = {"kind": settings.auth, "user": running.user, "password": running.password}
    auth = "".join(f"{key} = {text(value)}\n" for key, value in credentials.items())
    return f"""\
state_directory = "state"

[exchange]
ews_url = {text(running.ews_url)}
autodiscover_url = {text(running.autodiscover_url)}
{ca_file}
[auth]
{auth}
[mailboxes]
file = "mailboxes.txt"

[stream]
heartbeat = {settings.heartbeat:g}

[handlers.deliveries]
use = "file"
path = "deliveries.jsonl"
"""
