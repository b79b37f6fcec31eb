"""Getting in by Kerberos tickets, in a realm of its own."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.simulator.client import envelope
from tests.system import kdc
from tests.system.kdc import Realm
from tests.system.processes import Simulator, Start
from tests.system.test_strangers import GET_INBOX

pytestmark = pytest.mark.skipif(bool(kdc.missing()), reason=f"no Kerberos here: {kdc.missing()} missing")
SERVICE, ACCOUNT = "HTTP/localhost", "svc-listener"


@pytest.fixture
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    with kdc.running_realm(tmp_path_factory.mktemp("realm")) as realm:
        yield realm


@pytest.fixture
def exchange(simulator: Start, realm: Realm) -> Callable[..., Simulator]:
    """Starts a simulator that takes tickets for HTTP/localhost, and passwords for NTLM too."""

    def start(*options: str, **environment: str) -> Simulator:
        keytab = realm.add(SERVICE)
        return simulator(
            *("--auth", "negotiate", "--keytab", str(keytab), "--hostname", "localhost", *options),
            **realm.environment,
            **environment,
        )

    return start


def proved(simulator: Simulator) -> dict[str, int]:
    """How many good credentials there were, by mechanism."""
    counts: dict[str, int] = simulator.state()["authentication"]["proved"]
    return counts


def test_curl_gets_in_by_ticket(exchange: Callable[..., Simulator], realm: Realm, tmp_path: Path) -> None:
    """A client that others wrote. It sends no channel binding."""
    there = exchange("--extended-protection", "allow")
    body = tmp_path / "body.xml"
    body.write_bytes(envelope(GET_INBOX, impersonate=there.mailboxes[0]))

    def status() -> str:
        return subprocess.run(
            [
                *("curl", "-s", "-k", "--negotiate", "-u", ":", "-o", "/dev/null", "-w", "%{http_code}"),
                *("-H", "Content-Type: text/xml", "--data-binary", f"@{body}", there.told["ews_url"]),
            ],
            env={**os.environ, **realm.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        ).stdout

    assert status() == "401"
    realm.kinit(ACCOUNT, realm.add(ACCOUNT))
    assert status() == "200"
    assert proved(there) == {"kerberos": 1}
