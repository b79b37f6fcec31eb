"""Authentication with Kerberos tickets, in a realm that the tests create."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.simulator.client import envelope
from tests.system import kdc
from tests.system.kdc import Realm
from tests.system.processes import Listen, Simulator, Start, until
from tests.system.test_independent_clients import GET_INBOX

pytestmark = pytest.mark.skipif(bool(kdc.missing()), reason=f"missing Kerberos programs: {kdc.missing()}")
PASSWORD = "Passw0rd-of-the-realm"
SERVICE, ACCOUNT = "HTTP/localhost", "svc-listener"


@pytest.fixture
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    realm = Realm(tmp_path_factory.mktemp("realm"))
    realm.start()
    yield realm
    realm.stop()


@pytest.fixture
def start_exchange(simulator: Start, realm: Realm) -> Callable[..., Simulator]:
    """Start a simulator that accepts tickets for HTTP/localhost, and passwords for NTLM."""

    def start(*options: str, **environment: str) -> Simulator:
        keytab = realm.add(SERVICE)
        return simulator(
            *("--auth", "negotiate", "--keytab", str(keytab), "--hostname", "localhost", *options),
            **realm.environment,
            **environment,
        )

    return start


def successes(simulator: Simulator) -> dict[str, int]:
    """Return the number of successful authentications by mechanism."""
    counts: dict[str, int] = simulator.state()["authentication"]["proved"]
    return counts


@pytest.mark.parametrize(("protection", "expected"), [("allow", "200"), ("require", "401")])
def test_curl_authenticates_with_a_ticket(
    start_exchange: Start, realm: Realm, tmp_path: Path, protection: str, expected: str
) -> None:
    """curl is an independent client. It sends no channel binding."""
    exchange = start_exchange("--extended-protection", protection)
    body = tmp_path / "body.xml"
    body.write_bytes(envelope(GET_INBOX, impersonate=exchange.mailboxes[0]))

    def status() -> str:
        return subprocess.run(
            [
                *("curl", "-s", "-k", "--negotiate", "-u", ":", "-o", "/dev/null", "-w", "%{http_code}"),
                *("-H", "Content-Type: text/xml", "--data-binary", f"@{body}", exchange.info["ews_url"]),
            ],
            env={**os.environ, **realm.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        ).stdout

    assert status() == "401"
    realm.kinit(ACCOUNT, realm.add(ACCOUNT))
    assert status() == expected
    state = exchange.state()["authentication"]
    assert (state["proved"], state["reasons"]) == (
        ({"kerberos": 1}, {}) if expected == "200" else ({}, {"binding": 1})
    )


def credentials(simulator: Simulator, **keys: str) -> None:
    """Replace the credentials under [auth] with these keys."""
    simulator.replace_config(
        f'user = "{simulator.info["user"]}"\npassword = "{simulator.info["password"]}"\n', ""
    )
    given = "".join(f'{key} = "{value}"\n' for key, value in keys.items())
    simulator.replace_config('kind = "negotiate"\n', f'kind = "negotiate"\n{given}')


@pytest.mark.parametrize("credential", ["ticket", "keytab", "password"])
def test_the_daemon_authenticates(
    start_exchange: Start, listen: Listen, realm: Realm, credential: str
) -> None:
    """Each request carries a ticket with a channel binding. The stream delivers events."""
    exchange = start_exchange("--extended-protection", "require")
    keytab, environment = realm.add(ACCOUNT, PASSWORD), realm.environment
    match credential:
        case "ticket":
            realm.kinit(ACCOUNT, keytab)
            credentials(exchange)
        case "keytab":
            environment["KRB5_CLIENT_KTNAME"] = str(keytab)
            credentials(exchange)
        case "password":
            credentials(exchange, user=f"{ACCOUNT}@{kdc.NAME}", password=PASSWORD)
    daemon = listen(exchange, **environment)
    exchange.until_streaming(4)
    exchange.create_events(exchange.mailboxes[0])
    until(lambda: exchange.deliveries, "the event")
    assert successes(exchange).keys() == {"kerberos"}
    assert exchange.state()["authentication"]["refused"] == {}
    assert daemon.stop() == 0


@pytest.mark.parametrize("credential", ["keytab", "password"])
def test_an_expired_ticket_is_replaced_without_interrupting_the_stream(
    start_exchange: Start, listen: Listen, realm: Realm, credential: str
) -> None:
    exchange = start_exchange("--extended-protection", "require")
    keytab, environment = realm.add(ACCOUNT, PASSWORD), realm.environment
    realm.modify(ACCOUNT, "-maxlife", "5 seconds")
    if credential == "keytab":
        environment["KRB5_CLIENT_KTNAME"] = str(keytab)
        credentials(exchange)
    else:
        credentials(exchange, user=f"{ACCOUNT}@{kdc.NAME}", password=PASSWORD)
    exchange.append_config('\n[catch_up]\ninterval = "1s"\nidle_interval = "1s"\n')
    daemon = listen(exchange, **environment)
    exchange.until_streaming(4)
    started_at = time.monotonic()
    requests = successes(exchange)["kerberos"]
    until(lambda: time.monotonic() - started_at > 12, "two ticket lifetimes")
    after = successes(exchange)["kerberos"]
    until(lambda: successes(exchange)["kerberos"] > after, "requests with another ticket")
    assert after > requests
    exchange.create_events(exchange.mailboxes[0])
    until(lambda: exchange.deliveries, "the event")
    assert successes(exchange).keys() == {"kerberos"}
    assert exchange.state()["authentication"]["refused"] == {}
    assert daemon.stop() == 0
    for event in ("auth.refused", "stream.refused", "stream.broken", "group.backoff"):
        assert not daemon.logged(event)


def test_ntlm_is_used_if_no_ticket_is_available(start_exchange: Start, listen: Listen, realm: Realm) -> None:
    """The KDC does not know the server by the hostname that the daemon uses."""
    exchange = start_exchange("--extended-protection", "require")
    exchange.replace_config("localhost", "127.0.0.1")
    exchange.replace_config("[exchange]\n", "[exchange]\nautodiscover = false\n")
    realm.add(ACCOUNT, exchange.info["password"])
    daemon = listen(exchange, **realm.environment)
    exchange.until_streaming(4)
    assert successes(exchange).keys() == {"ntlm"}
    assert daemon.stop() == 0


@pytest.mark.skipif(kdc.faketime() is None, reason="libfaketime is not installed (Debian: faketime)")
def test_clock_skew_of_the_server_is_reported(start_exchange: Start, listen: Listen, realm: Realm) -> None:
    """The clocks of this machine and of the server are 10 minutes behind the domain's.

    libkrb5 takes the time from the KDC's answers, so only the server rejects the ticket: it starts in the future.
    """
    exchange = start_exchange("--extended-protection", "require")
    realm.add(ACCOUNT, PASSWORD)
    realm.stop()
    realm.start(offset="+600s")
    credentials(exchange, user=f"{ACCOUNT}@{kdc.NAME}", password=PASSWORD)
    daemon = listen(exchange, **realm.environment)
    (refused, *_) = daemon.until_logged("auth.refused")
    assert refused["code"] == "ClockSkew"
    assert refused["text"] == "the clocks of the server and of the domain differ by more than 5 minutes"
    assert exchange.state()["authentication"]["reasons"] == {"ticket": 1}
    assert daemon.stop() == 0


REFUSALS = {
    "locked": ("AccountLocked", "the account {account} is locked or disabled"),
    "password": ("PasswordRefused", "the password of {account} is wrong"),
    "unknown": ("AccountUnknown", "the domain does not know the account {account}"),
    "expired": ("PasswordExpired", "the password of {account} has expired"),
    "clock": (
        "ClockSkew",
        "the clocks of this machine and of the domain differ by more than 5 minutes",
    ),
}


@pytest.mark.parametrize("cause", REFUSALS)
def test_an_error_from_the_domain_is_reported_and_not_retried(
    start_exchange: Start, listen: Listen, realm: Realm, cause: str
) -> None:
    """Within 5 seconds, and without an NTLM attempt, which would count as one more failed logon."""
    exchange = start_exchange("--extended-protection", "require")
    account = f"{ACCOUNT}@{kdc.NAME}"
    if cause != "unknown":
        realm.add(ACCOUNT, "another" if cause == "password" else PASSWORD)
    match cause:
        case "locked":
            realm.modify(ACCOUNT, "-allow_tix")
        case "expired":
            realm.modify(ACCOUNT, "-pwexpire", "2020-01-01")
        case "clock":
            if kdc.faketime() is None:
                pytest.skip("libfaketime is not installed (Debian: faketime)")
            realm.stop()
            realm.start(offset="+600s")
            file = realm.folder / "krb5.conf"  # otherwise libkrb5 takes the time from the KDC
            file.write_text(file.read_text().replace("[realms]", "    kdc_timesync = 0\n[realms]"))
    credentials(exchange, user=account, password=PASSWORD)
    daemon = listen(exchange, **realm.environment)
    (refused, *_) = daemon.until_logged("auth.refused")
    assert daemon.seconds_since_start(refused) < 5
    code, text = REFUSALS[cause]
    assert (refused["code"], refused["text"]) == (code, text.format(account=account))
    assert exchange.state()["authentication"]["refused"] == {}
    assert daemon.stop() == 0
