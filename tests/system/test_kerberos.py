"""Getting in by Kerberos tickets, in a realm of its own."""

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
from tests.system.test_strangers import GET_INBOX

pytestmark = pytest.mark.skipif(bool(kdc.missing()), reason=f"no Kerberos here: {kdc.missing()} missing")
PASSWORD = "Passw0rd-of-the-realm"
SERVICE, ACCOUNT = "HTTP/localhost", "svc-listener"


@pytest.fixture
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    realm = Realm(tmp_path_factory.mktemp("realm"))
    realm.start()
    yield realm
    realm.stop()


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


@pytest.mark.parametrize(("protection", "expected"), [("allow", "200"), ("require", "401")])
def test_curl_gets_in_by_ticket(
    exchange: Start, realm: Realm, tmp_path: Path, protection: str, expected: str
) -> None:
    """A client that others wrote. It sends no channel binding."""
    there = exchange("--extended-protection", protection)
    body = tmp_path / "body.xml"
    body.write_bytes(envelope(GET_INBOX, impersonate=there.mailboxes[0]))

    def status() -> str:
        return subprocess.run(
            [
                *("curl", "-s", "-k", "--negotiate", "-u", ":", "-o", "/dev/null", "-w", "%{http_code}"),
                *("-H", "Content-Type: text/xml", "--data-binary", f"@{body}", there.info["ews_url"]),
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
    state = there.state()["authentication"]
    assert (state["proved"], state["reasons"]) == (
        ({"kerberos": 1}, {}) if expected == "200" else ({}, {"binding": 1})
    )


def credentials(simulator: Simulator, **keys: str) -> None:
    """The configuration has these keys under [auth], and no others."""
    simulator.replace_config(
        f'user = "{simulator.info["user"]}"\npassword = "{simulator.info["password"]}"\n', ""
    )
    given = "".join(f'{key} = "{value}"\n' for key, value in keys.items())
    simulator.replace_config('kind = "negotiate"\n', f'kind = "negotiate"\n{given}')


@pytest.mark.parametrize("by", ["ticket", "keytab", "password"])
def test_the_daemon_gets_in(exchange: Start, listen: Listen, realm: Realm, by: str) -> None:
    """With a ticket for each request, bound to the channel; events come on the stream."""
    there = exchange("--extended-protection", "require")
    keytab, environment = realm.add(ACCOUNT, PASSWORD), realm.environment
    match by:
        case "ticket":
            realm.kinit(ACCOUNT, keytab)
            credentials(there)
        case "keytab":
            environment["KRB5_CLIENT_KTNAME"] = str(keytab)
            credentials(there)
        case "password":
            credentials(there, user=f"{ACCOUNT}@{kdc.NAME}", password=PASSWORD)
    daemon = listen(there, **environment)
    there.until_streaming(4)
    there.create_events(there.mailboxes[0])
    until(lambda: there.deliveries, "the event")
    assert proved(there).keys() == {"kerberos"}
    assert there.state()["authentication"]["refused"] == {}
    assert daemon.stop() == 0


@pytest.mark.parametrize("by", ["keytab", "password"])
def test_a_ticket_that_ends_is_replaced_and_the_stream_goes_on(
    exchange: Start, listen: Listen, realm: Realm, by: str
) -> None:
    there = exchange("--extended-protection", "require")
    keytab, environment = realm.add(ACCOUNT, PASSWORD), realm.environment
    realm.modify(ACCOUNT, "-maxlife", "5 seconds")
    if by == "keytab":
        environment["KRB5_CLIENT_KTNAME"] = str(keytab)
        credentials(there)
    else:
        credentials(there, user=f"{ACCOUNT}@{kdc.NAME}", password=PASSWORD)
    there.append_config('\n[catch_up]\ninterval = "1s"\nidle_interval = "1s"\n')
    daemon = listen(there, **environment)
    there.until_streaming(4)
    started_at = time.monotonic()
    requests = proved(there)["kerberos"]
    until(lambda: time.monotonic() - started_at > 12, "two lives of a ticket")
    after = proved(there)["kerberos"]
    until(lambda: proved(there)["kerberos"] > after, "requests with another ticket")
    assert after > requests
    there.create_events(there.mailboxes[0])
    until(lambda: there.deliveries, "the event")
    assert proved(there).keys() == {"kerberos"}
    assert there.state()["authentication"]["refused"] == {}
    assert daemon.stop() == 0
    for event in ("auth.refused", "stream.refused", "stream.broken", "group.backoff"):
        assert not daemon.logged(event)


def test_ntlm_takes_over_where_there_is_no_ticket_to_be_had(
    exchange: Start, listen: Listen, realm: Realm
) -> None:
    """The KDC does not know the server under the name that the daemon calls it by."""
    there = exchange("--extended-protection", "require")
    there.replace_config("localhost", "127.0.0.1")
    there.replace_config("[exchange]\n", "[exchange]\nautodiscover = false\n")
    realm.add(ACCOUNT, there.info["password"])
    daemon = listen(there, **realm.environment)
    there.until_streaming(4)
    assert proved(there).keys() == {"ntlm"}
    assert daemon.stop() == 0


@pytest.mark.skipif(kdc.faketime() is None, reason="there is no libfaketime (Debian: faketime)")
def test_the_servers_clock_is_off(exchange: Start, listen: Listen, realm: Realm) -> None:
    """Ours and the server's are 10 minutes behind the domain's. libkrb5 takes the time from the KDC's answers, and so
    it is the server that refuses the ticket, which comes from the future."""
    there = exchange("--extended-protection", "require")
    realm.add(ACCOUNT, PASSWORD)
    realm.stop()
    realm.start(offset="+600s")
    credentials(there, user=f"{ACCOUNT}@{kdc.NAME}", password=PASSWORD)
    daemon = listen(there, **realm.environment)
    (refused, *_) = daemon.until_logged("auth.refused")
    assert refused["code"] == "ClockSkew"
    assert refused["text"] == "the clocks of the server and of the domain differ by more than 5 minutes"
    assert there.state()["authentication"]["reasons"] == {"ticket": 1}
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


@pytest.mark.parametrize("why", REFUSALS)
def test_what_the_domain_says_is_told_and_not_asked_again(
    exchange: Start, listen: Listen, realm: Realm, why: str
) -> None:
    """Within 5 seconds, and without a try by NTLM, which would be one more bad try."""
    there = exchange("--extended-protection", "require")
    account = f"{ACCOUNT}@{kdc.NAME}"
    if why != "unknown":
        realm.add(ACCOUNT, "another" if why == "password" else PASSWORD)
    match why:
        case "locked":
            realm.modify(ACCOUNT, "-allow_tix")
        case "expired":
            realm.modify(ACCOUNT, "-pwexpire", "2020-01-01")
        case "clock":
            if kdc.faketime() is None:
                pytest.skip("there is no libfaketime (Debian: faketime)")
            realm.stop()
            realm.start(offset="+600s")
            file = realm.folder / "krb5.conf"  # otherwise libkrb5 takes the time from the KDC
            file.write_text(file.read_text().replace("[realms]", "    kdc_timesync = 0\n[realms]"))
    credentials(there, user=account, password=PASSWORD)
    daemon = listen(there, **realm.environment)
    (refused, *_) = daemon.until_logged("auth.refused")
    assert daemon.seconds_since_start(refused) < 5
    code, text = REFUSALS[why]
    assert (refused["code"], refused["text"]) == (code, text.format(account=account))
    assert there.state()["authentication"]["refused"] == {}
    assert daemon.stop() == 0
