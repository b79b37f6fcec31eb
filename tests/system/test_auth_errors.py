"""Exact messages of the daemon when access is denied, and limits on its authentication attempts."""

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.system.processes import Listen, Simulator, Start, until

DEADLINE = 5.0
"""Seconds from the daemon's first log line within which the error must be logged."""


class Case(NamedTuple):
    """A failure that `setup` causes, and the log event that reports it.

    `text` may contain the placeholders `client`, `user` and `login` (the URL of Entra ID); `…` matches any text.
    """

    options: tuple[str, ...]
    setup: Callable[[Simulator], object]
    code: str
    text: str
    event: str = "auth.refused"


def entra(setup: Callable[[Simulator], object], code: int, text: str) -> Case:
    return Case(("--auth", "oauth"), setup, f"AADSTS{code}", text)


def with_certificate(simulator: Simulator) -> None:
    secret = simulator.info["oauth"]["client_secret"]
    simulator.replace_config(f'client_secret = "{secret}"', 'certificate = "application.pem"')


def wrong_password(simulator: Simulator) -> None:
    simulator.replace_config(simulator.info["password"], "wrong-Secret")


def untrusted_authority(simulator: Simulator) -> None:
    simulator.replace_config('ca_file = "ca.pem"\n', "")
    simulator.replace_config("[exchange]\n", "[exchange]\nautodiscover = false\n")


def wrong_secret(simulator: Simulator) -> None:
    simulator.replace_config(simulator.info["oauth"]["client_secret"], "wrong-Secret")


def wrong_tenant(simulator: Simulator) -> None:
    simulator.replace_config(simulator.info["oauth"]["tenant"], "fabrikam.example")


def skewed_clock(simulator: Simulator) -> None:
    with_certificate(simulator)
    simulator.inject_fault(kind="clock_off", offset=-600, seconds=600)


def fault(kind: str, **parameters: object) -> Callable[[Simulator], object]:
    return lambda simulator: simulator.inject_fault(kind=kind, seconds=600, **parameters)


REJECTED = (
    "the server refuses {user}: the password is wrong, or the account is locked, disabled or expired (the server "
    "does not say which)"
)
BINDING_DIFFERS = (
    "; or the password is right, and Extended Protection rejects the handshake: a proxy or load balancer terminates "
    "TLS with a certificate other than the server's own, so that the channel binding differs"
)
BASIC = ("--auth", "basic")
NTLM = ("--auth", "ntlm", "--extended-protection", "require")
NEGOTIATE = ("--auth", "negotiate", "--extended-protection", "require")
OFFERS_BASIC = "; the server offers Basic; an HTML page: Unauthorized"

CASES = {
    "wrong password, Basic": Case(BASIC, wrong_password, "Http401", REJECTED + OFFERS_BASIC),
    "wrong password, NTLM": Case(NTLM, wrong_password, "HandshakeRefused", REJECTED + BINDING_DIFFERS),
    "locked account, Negotiate": Case(
        NEGOTIATE, fault("account_locked"), "HandshakeRefused", REJECTED + BINDING_DIFFERS
    ),
    "wrong channel binding": Case(
        NTLM, fault("tls_offloaded"), "HandshakeRefused", REJECTED + BINDING_DIFFERS
    ),
    "wrong CA": Case(
        NTLM,
        untrusted_authority,
        "TlsFailed",
        "the server's certificate is not trusted: unable to get local issuer certificate; the server shows a "
        "certificate for …, issued by …",
        "mailbox.refused",
    ),
    "EWS blocked": Case(
        NTLM,
        fault("ews_disabled"),
        "EwsDisabled",
        "EWS is switched off for this tenant or application: EWSDisabledForTenant; an HTML page: Forbidden",
        "mailbox.suspended",
    ),
    "expired secret": entra(
        fault("token_refused", code=7000222),
        7000222,
        "the client secret of {client} has expired: create a new one in the application's registration",
    ),
    "wrong secret": entra(
        wrong_secret,
        7000215,
        "the client secret of {client} is wrong: configure the secret's value, not its ID",
    ),
    "locked application": entra(
        fault("account_locked"),
        50053,
        "{client} is locked after too many attempts with wrong credentials; it is unlocked after a while",
    ),
    "wrong tenant": entra(
        wrong_tenant, 90002, "unknown tenant {login}/fabrikam.example: check tenant and cloud"
    ),
    "clock skew": entra(
        skewed_clock,
        700024,
        "the assertion is not valid now: check this machine's clock and the age of the federated token; our clock is "
        "10 minutes ahead of the server's",
    ),
}


def placeholders(info: dict[str, Any]) -> dict[str, str]:
    oauth = info["oauth"] or {"client_id": "", "authority": ""}
    return {
        "client": oauth["client_id"],
        "login": oauth["authority"].rpartition("/")[0],
        "user": info["user"],
    }


def test_authentication_with_a_certificate(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--auth", "oauth")
    with_certificate(exchange)
    daemon = listen(exchange)
    exchange.until_streaming(4)
    assert exchange.state()["authentication"]["tokens"] == 1
    assert daemon.stop() == 0


@pytest.mark.parametrize("case", CASES)
def test_each_failure_has_its_own_message(simulator: Start, listen: Listen, case: str) -> None:
    options, setup, code, text, event = CASES[case]
    exchange = simulator(*options)
    setup(exchange)
    daemon = listen(exchange)
    error = daemon.until_logged(event)[0]
    assert error["code"] == code
    pattern = re.escape(text.format(**placeholders(exchange.info))).replace("…", ".+")
    assert re.fullmatch(pattern, error["text"]), error["text"]
    assert daemon.seconds_since_start(error) < DEADLINE
    assert daemon.stop() == 0


def test_tokens_are_renewed_while_streams_stay_open(simulator: Start, listen: Listen) -> None:
    """No expired token is sent. The daemon answers a claims challenge with a token that has the claim."""
    exchange = simulator("--auth", "oauth", "--token-lifetime", "2")
    # Sweeps send requests that the server can challenge; an open stream sends none.
    exchange.append_config('\n[catch_up]\ninterval = "1s"\nidle_interval = "1s"\n')
    daemon = listen(exchange)
    exchange.until_streaming(4)
    streams = exchange.state()["requests"]["GetStreamingEvents"]
    exchange.inject_fault(kind="claims_challenge", seconds=600)
    exchange.create_events(exchange.mailboxes[0])
    until(lambda: exchange.deliveries, "the event")
    until(lambda: exchange.state()["authentication"]["reasons"].get("claims"), "a challenge")
    until(lambda: exchange.state()["authentication"]["tokens"] >= 2, "another token")
    state = exchange.state()
    assert state["requests"]["GetStreamingEvents"] == streams
    assert state["authentication"]["reasons"].keys() == {"claims"}
    assert daemon.stop() == 0


AUTH_OPTIONS = {
    "basic": ("--auth", "basic"),
    "ntlm": ("--auth", "ntlm", "--extended-protection", "require"),
    "oauth": ("--auth", "oauth"),
}


@pytest.mark.parametrize("kind", AUTH_OPTIONS)
def test_twelve_groups_do_not_lock_the_account(simulator: Start, listen: Listen, kind: str) -> None:
    """The second attempt follows soon, then a pause of at least one minute, for all groups together."""
    exchange = simulator(*AUTH_OPTIONS[kind], "--mailboxes", "12")
    exchange.replace_config(
        exchange.info["oauth"]["client_secret"] if kind == "oauth" else exchange.info["password"],
        "wrong-Secret",
    )
    exchange.replace_config("[exchange]\n", "[exchange]\nautodiscover = false\n")
    exchange.append_config("\n[affinity]\ngroup_size = 1\n")
    daemon = listen(exchange)
    daemon.until_logged("auth.refused", attempts=2, pause=60.0)
    time.sleep(1)
    state = exchange.state()["authentication"]
    assert sum(state["token_errors" if kind == "oauth" else "refused"].values()) == 2
    assert state["locked"] == []
    assert daemon.stop() == 0
    assert "wrong-Secret" not in daemon.log_file.read_text()
