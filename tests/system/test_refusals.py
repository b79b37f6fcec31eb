"""What the started daemon says when it is not let in, word for word; and that it does not hammer."""

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.system.processes import Listen, Simulator, Start, until

SOON = 5.0
"""Seconds from the daemon's first line in which it must be said."""


class Case(NamedTuple):
    """`setup` makes it so. `text` may name the `client` or `user`, and `login`, which is Entra ID; `…` is anything.
    `event` is the log line that tells it."""

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


def wrong_authority(simulator: Simulator) -> None:
    simulator.replace_config('ca_file = "ca.pem"\n', "")
    simulator.replace_config("[exchange]\n", "[exchange]\nautodiscover = false\n")


def wrong_secret(simulator: Simulator) -> None:
    simulator.replace_config(simulator.info["oauth"]["client_secret"], "wrong-Secret")


def wrong_tenant(simulator: Simulator) -> None:
    simulator.replace_config(simulator.info["oauth"]["tenant"], "fabrikam.example")


def clock_off(simulator: Simulator) -> None:
    with_certificate(simulator)
    simulator.inject_fault(kind="clock_off", offset=-600, seconds=600)


def broken(kind: str, **parameters: object) -> Callable[[Simulator], object]:
    return lambda simulator: simulator.inject_fault(kind=kind, seconds=600, **parameters)


CLOSED = (
    "the server refuses {user}: the password is wrong, or the account is locked, disabled or expired (the server "
    "does not say which)"
)
UNBOUND = (
    "; or the password is right, and Extended Protection rejects the handshake: a proxy or load balancer terminates "
    "TLS with a certificate other than the server's own, so that the channel binding differs"
)
BASIC = ("--auth", "basic")
NTLM = ("--auth", "ntlm", "--extended-protection", "require")
NEGOTIATE = ("--auth", "negotiate", "--extended-protection", "require")
OFFERS_BASIC = "; the server offers Basic; an HTML page: Unauthorized"

CASES = {
    "wrong password, Basic": Case(BASIC, wrong_password, "Http401", CLOSED + OFFERS_BASIC),
    "wrong password, NTLM": Case(NTLM, wrong_password, "HandshakeRefused", CLOSED + UNBOUND),
    "locked account, Negotiate": Case(
        NEGOTIATE, broken("account_locked"), "HandshakeRefused", CLOSED + UNBOUND
    ),
    "wrong channel binding": Case(NTLM, broken("tls_offloaded"), "HandshakeRefused", CLOSED + UNBOUND),
    "wrong CA": Case(
        NTLM,
        wrong_authority,
        "TlsFailed",
        "the server's certificate is not trusted: unable to get local issuer certificate; the server shows a "
        "certificate for …, issued by …",
        "mailbox.refused",
    ),
    "EWS blocked": Case(
        NTLM,
        broken("ews_disabled"),
        "EwsDisabled",
        "EWS is switched off for this tenant or application: EWSDisabledForTenant; an HTML page: Forbidden",
        "mailbox.suspended",
    ),
    "expired secret": entra(
        broken("token_refused", code=7000222),
        7000222,
        "the client secret of {client} has expired: create a new one in the application's registration",
    ),
    "wrong secret": entra(
        wrong_secret,
        7000215,
        "the client secret of {client} is wrong: configure the secret's value, not its ID",
    ),
    "locked application": entra(
        broken("account_locked"),
        50053,
        "{client} is locked after too many attempts with wrong credentials; it is unlocked after a while",
    ),
    "wrong tenant": entra(
        wrong_tenant, 90002, "unknown tenant {login}/fabrikam.example: check tenant and cloud"
    ),
    "clock off": entra(
        clock_off,
        700024,
        "the assertion is not valid now: check this machine's clock and the age of the federated token; our clock is "
        "10 minutes ahead of the server's",
    ),
}


def names(told: dict[str, Any]) -> dict[str, str]:
    oauth = told["oauth"] or {"client_id": "", "authority": ""}
    return {
        "client": oauth["client_id"],
        "login": oauth["authority"].rpartition("/")[0],
        "user": told["user"],
    }


def test_it_gets_in_by_certificate(simulator: Start, listen: Listen) -> None:
    there = simulator("--auth", "oauth")
    with_certificate(there)
    daemon = listen(there)
    there.until_streaming(4)
    assert there.state()["authentication"]["tokens"] == 1
    assert daemon.stop() == 0


@pytest.mark.parametrize("case", CASES)
def test_each_refusal_has_its_own_message(simulator: Start, listen: Listen, case: str) -> None:
    options, setup, code, text, event = CASES[case]
    there = simulator(*options)
    setup(there)
    daemon = listen(there)
    refused = daemon.until_logged(event)[0]
    assert refused["code"] == code
    pattern = re.escape(text.format(**names(there.info))).replace("…", ".+")
    assert re.fullmatch(pattern, refused["text"]), refused["text"]
    assert daemon.seconds_since_start(refused) < SOON
    assert daemon.stop() == 0


def test_tokens_end_and_are_asked_for_more_while_streams_go_on(simulator: Start, listen: Listen) -> None:
    """None is sent that has ended; and a claims challenge is answered with a token that has the claim."""
    there = simulator("--auth", "oauth", "--token-lifetime", "2")
    there.append_config(
        '\n[catch_up]\ninterval = "1s"\nidle_interval = "1s"\n'
    )  # requests that can be challenged
    daemon = listen(there)
    there.until_streaming(4)
    streams = there.state()["requests"]["GetStreamingEvents"]
    there.inject_fault(kind="claims_challenge", seconds=600)
    there.create_events(there.mailboxes[0])
    until(lambda: there.deliveries, "the event")
    until(lambda: there.state()["authentication"]["reasons"].get("claims"), "a challenge")
    until(lambda: there.state()["authentication"]["tokens"] >= 2, "another token")
    state = there.state()
    assert state["requests"]["GetStreamingEvents"] == streams
    assert state["authentication"]["reasons"].keys() == {"claims"}
    assert daemon.stop() == 0


HAMMERING = {
    "basic": ("--auth", "basic"),
    "ntlm": ("--auth", "ntlm", "--extended-protection", "require"),
    "oauth": ("--auth", "oauth"),
}


@pytest.mark.parametrize("kind", HAMMERING)
def test_twelve_groups_do_not_lock_the_account(simulator: Start, listen: Listen, kind: str) -> None:
    """A second try comes soon, and then a pause of a minute and more, for all groups together."""
    there = simulator(*HAMMERING[kind], "--mailboxes", "12")
    there.replace_config(
        there.info["oauth"]["client_secret"] if kind == "oauth" else there.info["password"], "wrong-Secret"
    )
    there.replace_config("[exchange]\n", "[exchange]\nautodiscover = false\n")
    there.append_config("\n[affinity]\ngroup_size = 1\n")
    daemon = listen(there)
    daemon.until_logged("auth.refused", attempts=2, pause=60.0)
    time.sleep(1)
    state = there.state()["authentication"]
    assert sum(state["token_errors" if kind == "oauth" else "refused"].values()) == 2
    assert state["locked"] == []
    assert daemon.stop() == 0
    assert "wrong-Secret" not in daemon.log_file.read_text()
