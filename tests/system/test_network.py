"""What stands between the daemon and Exchange: a proxy, an old TLS, servers that want different accounts."""

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
    """An HTTP proxy that knows CONNECT only, and wants Basic. `asked` are the targets of those it let through."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refused = 0
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
        with suppress(OSError):  # closed
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
                self.refused += 1
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                client.close()
                return
            self.asked.append(target)
            host, _, port = target.partition(":")
            server = socket.create_connection((host, int(port)))
            self._sockets.append(server)
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            threading.Thread(target=self._copy, args=(server, client), daemon=True).start()
            self._copy(client, server)

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # either end may hang up
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@contextmanager
def proxy() -> Iterator[Proxy]:
    there = Proxy()
    try:
        yield there
    finally:
        there.close()


def test_all_goes_through_the_proxy(simulator: Start, listen: Callable[..., Listener]) -> None:
    plant(PROXY_PASSWORD)
    there = simulator("--tls")
    with proxy() as between:
        there.replace_config(
            "[exchange]",
            f'[exchange]\nproxy = "{between.url}"\nproxy_user = "listener"\nproxy_password = "{PROXY_PASSWORD}"',
        )
        daemon = listen(there)
        there.until_streaming(4)
        ledger = there.create_events(there.mailboxes[0])
        until(lambda: len(there.deliveries) == len(ledger), "all deliveries")
        assert daemon.stop() == 0
        assert set(between.asked) == {f"127.0.0.1:{there.port}"}
        assert between.refused == 0


def test_a_proxy_that_does_not_take_us_is_named(simulator: Start, listen: Callable[..., Listener]) -> None:
    there = simulator("--tls")
    with proxy() as between:
        there.replace_config("[exchange]", f'[exchange]\nautodiscover = false\nproxy = "{between.url}"')
        daemon = listen(there)
        line = daemon.until_logged("mailbox.suspended", code="Http407")[0]
        assert "proxy" in line["text"].lower()
        assert daemon.stop() == 0
    assert there.state()["requests"] == {}


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
def test_nothing_older_than_tls_1_2_is_spoken(simulator: Start, listen: Callable[..., Listener]) -> None:
    there = simulator("--tls")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    authority.cert_pem.write_to_path(str(there.folder / "ca.pem"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        handshakes: list[str] = []

        def serve() -> None:
            with suppress(OSError):  # closed
                while True:
                    client, _ = server.accept()
                    try:
                        with context.wrap_socket(client, server_side=True) as spoken:
                            handshakes.append(spoken.version() or "")
                    except ssl.SSLError as error:
                        handshakes.append(error.reason)

        threading.Thread(target=serve, daemon=True).start()
        there.replace_config("[exchange]", "[exchange]\nautodiscover = false")
        there.replace_config(
            there.info["ews_url"],
            there.info["ews_url"].replace(str(there.port), str(server.getsockname()[1])),
        )
        daemon = listen(there)
        line = daemon.until_logged("mailbox.refused", code="TlsFailed")[0]
        assert "protocol" in line["text"].lower()
        until(lambda: handshakes, "a handshake")
        assert set(handshakes) == {"UNSUPPORTED_PROTOCOL"}
        assert daemon.stop() == 0


def test_servers_with_accounts_of_their_own(tmp_path: Path) -> None:
    """One daemon, two organisations: NTLM with Extended Protection here, Basic there."""
    with (
        office(tmp_path / "one", "--auth", "ntlm", "--extended-protection", "require") as one,
        office(tmp_path / "two", "--auth", "basic", "--tls", "--hostname", "localhost") as two,
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
                made = len(one.create_events(one.mailboxes[0])) + len(two.create_events(two.mailboxes[2]))
                until(lambda: len(one.deliveries) == made, "events of both")
                assert daemon.stop() == 0
                assert not daemon.logged("auth.refused")
                assert two.info["password"] not in daemon.log_file.read_text()
            finally:
                process.kill()
        assert one.state()["authentication"]["proved"].keys() == {"ntlm"}
        assert two.state()["authentication"]["proved"].keys() == {"basic"}


@contextmanager
def office(folder: Path, *options: str) -> Iterator[Simulator]:
    folder.mkdir()
    config = folder / "listener.toml"
    command = ["simulate", "--rate", "0", "--mailboxes", "4", "--write-config", str(config), *options]
    with forked.Popen(
        [sys.executable, "-m", "listener", *command], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            plant(told["password"])
            yield Simulator(process, told, config)
        finally:
            process.kill()
