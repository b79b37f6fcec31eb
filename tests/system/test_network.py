"""The network between the daemon and Exchange: an HTTP proxy, old TLS versions, servers with different accounts."""

import base64
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trustme

from tests.leaks import plant
from tests.system import forked
from tests.system.processes import Listener, Simulator, Start, start_listener, until

PROXY_PASSWORD = "Pw-of-the-proxy"


class Proxy:
    """An HTTP proxy that supports only CONNECT, and requires Basic.

    `targets` lists the targets of accepted requests.
    """

    def __init__(self) -> None:
        self.targets: list[str] = []
        self.rejected = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._server]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def close(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):  # the socket was closed
            while True:
                client, _ = self._server.accept()
                self._sockets.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            top = b""
            while b"\r\n\r\n" not in top:
                top += client.recv(65536)
            first, *lines = top.partition(b"\r\n\r\n")[0].decode().split("\r\n")
            method, target, _ = first.split()
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            user = base64.b64encode(f"listener:{PROXY_PASSWORD}".encode()).decode()
            if method != "CONNECT" or headers.get("proxy-authorization") != f"Basic {user}":
                self.rejected += 1
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                client.close()
                return
            self.targets.append(target)
            host, _, port = target.partition(":")
            server = socket.create_connection((host, int(port)))
            self._sockets.append(server)
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            threading.Thread(target=self._copy, args=(server, client), daemon=True).start()
            self._copy(client, server)

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # either end may close the connection
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@contextmanager
def running_proxy() -> Iterator[Proxy]:
    server = Proxy()
    try:
        yield server
    finally:
        server.close()


def test_all_connections_use_the_proxy(simulator: Start, listen: Callable[..., Listener]) -> None:
    plant(PROXY_PASSWORD)
    exchange = simulator("--tls")
    with running_proxy() as proxy:
        exchange.replace_config(
            "[exchange]",
            f'[exchange]\nproxy = "{proxy.url}"\nproxy_user = "listener"\nproxy_password = "{PROXY_PASSWORD}"',
        )
        daemon = listen(exchange)
        exchange.until_streaming(4)
        ledger = exchange.create_events(exchange.mailboxes[0])
        until(lambda: len(exchange.deliveries) == len(ledger), "all deliveries")
        assert daemon.stop() == 0
        assert set(proxy.targets) == {f"127.0.0.1:{exchange.port}"}
        assert proxy.rejected == 0


def test_a_proxy_that_rejects_the_daemon_is_reported(
    simulator: Start, listen: Callable[..., Listener]
) -> None:
    exchange = simulator("--tls")
    with running_proxy() as proxy:
        exchange.replace_config("[exchange]", f'[exchange]\nautodiscover = false\nproxy = "{proxy.url}"')
        daemon = listen(exchange)
        line = daemon.until_logged("mailbox.suspended", code="Http407")[0]
        assert "proxy" in line["text"].lower()
        assert daemon.stop() == 0
    assert exchange.state()["requests"] == {}


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
def test_tls_versions_before_1_2_are_rejected(simulator: Start, listen: Callable[..., Listener]) -> None:
    exchange = simulator("--tls")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    authority.cert_pem.write_to_path(str(exchange.folder / "ca.pem"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        handshakes: list[str] = []

        def serve() -> None:
            with suppress(OSError):  # the socket was closed
                while True:
                    client, _ = server.accept()
                    try:
                        with context.wrap_socket(client, server_side=True) as tls:
                            handshakes.append(tls.version() or "")
                    except ssl.SSLError as error:
                        handshakes.append(error.reason)

        threading.Thread(target=serve, daemon=True).start()
        exchange.replace_config("[exchange]", "[exchange]\nautodiscover = false")
        exchange.replace_config(
            exchange.info["ews_url"],
            exchange.info["ews_url"].replace(str(exchange.port), str(server.getsockname()[1])),
        )
        daemon = listen(exchange)
        line = daemon.until_logged("mailbox.refused", code="TlsFailed")[0]
        assert "protocol" in line["text"].lower()
        until(lambda: handshakes, "a handshake")
        assert set(handshakes) == {"UNSUPPORTED_PROTOCOL"}
        assert daemon.stop() == 0


def test_each_server_has_its_own_account(tmp_path: Path) -> None:
    """One daemon, two organizations: one server requires NTLM with Extended Protection, the other one Basic."""
    with (
        running_simulator(tmp_path / "one", "--auth", "ntlm", "--extended-protection", "require") as one,
        running_simulator(tmp_path / "two", "--auth", "basic", "--tls", "--hostname", "localhost") as two,
    ):
        authorities = [(each.folder / "ca.pem").read_text() for each in (one, two)]
        (one.folder / "ca.pem").write_text("".join(authorities))
        one.replace_config('[mailboxes]\nfile = "mailboxes.txt"\n', "")
        one.replace_config("[exchange]", "[exchange]\nautodiscover = false")
        one.append_config(
            f'\n[[groups]]\nname = "one"\nmailboxes = {json.dumps(one.mailboxes[:2])}\n'
            f'\n[[groups]]\nname = "two"\news_url = "{two.info["ews_url"]}"\n'
            f"mailboxes = {json.dumps(two.mailboxes[2:])}\n"
            f'\n[[servers]]\nhosts = ["localhost"]\n'
            f'auth = {{ kind = "basic", user = "{two.info["user"]}", password = "{two.info["password"]}" }}\n'
        )
        daemon = start_listener(one.config, {})
        with daemon.process as process:
            try:
                one.until_streaming(2)
                two.until_streaming(2)
                count = len(one.create_events(one.mailboxes[0])) + len(two.create_events(two.mailboxes[2]))
                until(lambda: len(one.deliveries) == count, "events of both servers")
                assert daemon.stop() == 0
                assert not daemon.logged("auth.refused")
                assert two.info["password"] not in daemon.log_file.read_text()
            finally:
                process.kill()
        assert one.state()["authentication"]["proved"].keys() == {"ntlm"}
        assert two.state()["authentication"]["proved"].keys() == {"basic"}


@contextmanager
def running_simulator(folder: Path, *options: str) -> Iterator[Simulator]:
    folder.mkdir()
    config = folder / "listener.toml"
    command = ["simulate", "--rate", "0", "--mailboxes", "4", "--write-config", str(config), *options]
    with forked.Popen(
        [sys.executable, "-m", "listener", *command], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            info = json.loads(process.stdout.readline())
            plant(info["password"])
            yield Simulator(process, info, config)
        finally:
            process.kill()
