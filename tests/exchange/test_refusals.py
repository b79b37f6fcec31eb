"""Exact texts of the failures when the simulated server, or its Entra ID, refuses the account."""

import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from listener.build import access
from listener.config import parse
from listener.ews.codes import ExchangeError, Failure
from listener.ews.http import http_failure
from listener.exchange.client import ExchangeClient
from listener.simulator.fault_effects import Conditions
from listener.simulator.faults import (
    AccountLocked,
    BadCertificate,
    ClaimsChallenge,
    ClockOff,
    EwsDisabled,
    TokenRefused,
)
from listener.simulator.run import configuration
from listener.simulator.server import Running, serve
from listener.simulator.settings import Settings
from tests.simulator.client import envelope, subscribe_body

Change = Callable[[dict[str, Any]], None]


@asynccontextmanager
async def organization(
    folder: Path, change: Change = lambda document: None, **settings: Any
) -> AsyncIterator[tuple[Running, ExchangeClient]]:
    """Run a simulator. Yield it and a client with its configuration, modified by `change`."""
    simulator_settings = Settings(mailboxes=2, rate=0, tls=True, **settings)
    async with trio.open_nursery() as nursery:
        running: Running = await nursery.start(serve, simulator_settings)
        assert running.ca_pem is not None
        (folder / "ca.pem").write_bytes(running.ca_pem)
        (folder / "mailboxes.txt").write_text("a@contoso.example")
        document = tomllib.loads(configuration(running, simulator_settings, tls=True))
        change(document)
        config = parse(document, folder, {})
        async with ExchangeClient(running.ews_url, access(config)) as client:
            yield running, client
        nursery.cancel_scope.cancel()


async def subscribe(running: Running, client: ExchangeClient) -> Failure | None:
    """Send a Subscribe and return its failure."""
    mailbox = next(iter(running.exchange.directory)).address
    try:
        with trio.fail_after(5):
            await client.call(
                envelope(subscribe_body(), impersonate=mailbox), {"X-AnchorMailbox": mailbox}, bytes
            )
    except ExchangeError as error:
        return error.failure
    return None


def auth(**values: object) -> Change:
    return lambda document: document["auth"].update(values)


def other_tenant(url: str) -> Change:
    """Return a change to another tenant."""
    return lambda document: document["auth"].update(
        authority=document["auth"]["authority"].rpartition("/")[0] + url
    )


LOCKED = AccountLocked()
APP = Settings().client_id
REFUSED = (
    "the server refuses svc-listener@contoso.example: the password is wrong, or the account is locked, disabled or "
    "expired (the server does not say which); "
)
PROTECTION = (
    "or the password is right, and Extended Protection rejects the handshake: a proxy or load balancer terminates "
    "TLS with a certificate other than the server's own, so that the channel binding differs"
)
HERE = "https://127.0.0.1:{port}"
PLAIN = f"{REFUSED}the server offers Basic"
SECRET = f"the client secret of {APP} is wrong: configure the secret's value, not its ID"


@pytest.mark.parametrize(
    ("settings", "change", "conditions", "code", "text"),
    [
        pytest.param({}, auth(password="wrong"), {}, "Http401", PLAIN, id="basic-password"),
        pytest.param({}, auth(), {"locked": LOCKED}, "Http401", PLAIN, id="basic-locked"),
        pytest.param(
            {"auth": "ntlm"}, auth(password="wrong"), {}, "HandshakeRefused", REFUSED + PROTECTION, id="ntlm-password"
        ),
        pytest.param(
            {"auth": "negotiate"}, auth(), {"locked": LOCKED}, "HandshakeRefused", REFUSED + PROTECTION,
            id="negotiate-locked",
        ),
        pytest.param({"auth": "oauth"}, auth(client_secret="wrong"), {}, "AADSTS7000215", SECRET, id="oauth-secret"),
        pytest.param(
            {"auth": "oauth"}, auth(), {"token_refused": TokenRefused(code=7000222)}, "AADSTS7000222",
            f"the client secret of {APP} has expired: create a new one in the application's registration",
            id="oauth-expired",
        ),
        pytest.param(
            {"auth": "oauth"}, auth(), {"locked": LOCKED}, "AADSTS50053",
            f"{APP} is locked after too many attempts with wrong credentials; it is unlocked after a while",
            id="oauth-locked",
        ),
        pytest.param(
            {"auth": "oauth"}, other_tenant("/fabrikam.example"), {}, "AADSTS90002",
            f"unknown tenant {HERE}/fabrikam.example: check tenant and cloud", id="oauth-tenant",
        ),
        pytest.param(
            {"auth": "oauth"}, auth(scope="https://other.example/.default"), {}, "AADSTS500011",
            f"the tenant {HERE}/{{tenant}} has no resource https://other.example: check scope and cloud",
            id="oauth-scope",
        ),
        pytest.param(
            {"auth": "ntlm"}, auth(kind="basic"), {}, "SchemeNotOffered",
            "the server offers NTLM, but the configuration requires Basic", id="basic-where-ntlm-is-wanted",
        ),
        pytest.param(
            {}, auth(), {"ews_disabled": EwsDisabled()}, "EwsDisabled",
            "EWS is switched off for this tenant or application: EWSDisabledForTenant", id="ews-blocked",
        ),
    ],
)  # fmt: skip
async def test_each_refusal_has_its_own_text(
    tmp_path: Path, settings: dict[str, Any], change: Change, conditions: dict[str, Any], code: str, text: str
) -> None:
    async with organization(tmp_path, change, **settings) as (running, client):
        set_conditions(running, conditions)
        failure = await subscribe(running, client)
        assert failure is not None
        port = (running.login_url or "").rpartition(":")[2]
        expected = text.replace("{port}", port).replace("{tenant}", Settings().tenant)
        assert (failure.code, failure.text.partition("; an HTML page")[0]) == (code, expected)


def set_conditions(running: Running, conditions: dict[str, Any]) -> None:
    now: Conditions = running.exchange.conditions
    for name, value in conditions.items():
        setattr(now, name, value)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("other_authority", "unable to get local issuer certificate"), ("expired", "certificate has expired")],
)
async def test_an_untrusted_certificate_is_reported_with_its_issuer(
    tmp_path: Path, kind: Any, reason: str
) -> None:
    async with organization(tmp_path) as (running, client):
        running.exchange.conditions.certificate = BadCertificate(how=kind)
        failure = await subscribe(running, client)
        assert failure is not None
        text, _, shown = failure.text.partition("; ")
        assert (failure.code, text) == ("TlsFailed", f"the server's certificate is not trusted: {reason}")
        before, _, issuer = shown.partition(", issued by ")
        assert before.startswith("the server shows a certificate for OU=Testing cert #")
        assert issuer.startswith("OU=Testing CA #")


def key_pair(folder: Path, running: Running) -> str:
    entra = running.exchange.authenticator.entra
    assert entra is not None
    (folder / "application.pem").write_bytes(entra.registration.pem)
    return "application.pem"


@pytest.mark.parametrize(
    ("offset", "difference"), [(1200.0, "20 minutes behind"), (-600.0, "10 minutes ahead of")]
)
async def test_clock_skew_is_reported_with_an_assertion(
    tmp_path: Path, offset: float, difference: str
) -> None:
    """An assertion is valid for a period only. A certificate is enough to have one."""
    own = trustme.CA().issue_cert("x.example")
    own.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "application.pem"))
    settings: Any = {"auth": "oauth"}
    change = _by_certificate
    async with organization(tmp_path, change, **settings) as (running, client):
        key_pair(tmp_path, running)
        assert await subscribe(running, client) is None
    async with organization(tmp_path, change, **settings) as (running, client):
        key_pair(tmp_path, running)
        running.exchange.conditions.clock = ClockOff(offset=offset)
        failure = await subscribe(running, client)
        assert failure is not None
        assert failure.code == "AADSTS700024"
        assert failure.text == (
            "the assertion is not valid now: check this machine's clock and the age of the federated token; our "
            f"clock is {difference} the server's"
        )


def _by_certificate(document: dict[str, Any]) -> None:
    del document["auth"]["client_secret"]
    document["auth"]["certificate"] = "application.pem"


def test_clock_skew_is_reported_with_every_401() -> None:
    now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    for minutes, text in (
        (10, "our clock is 10 minutes behind the server's"),
        (-10, "our clock is 10 minutes ahead of the server's"),
        (4, ""),
    ):
        date = format_datetime(now.fromtimestamp(now.timestamp() + 60 * minutes, UTC), usegmt=True)
        assert http_failure(401, {"Date": date}, b"", now).text == text
        assert http_failure(404, {"Date": date}, b"", now).text == ""


async def test_a_claims_challenge_is_answered(tmp_path: Path) -> None:
    async with organization(tmp_path, auth="oauth") as (running, client):
        assert await subscribe(running, client) is None
        running.exchange.conditions.claims = ClaimsChallenge()
        assert await subscribe(running, client) is None


async def test_an_expiring_token_is_renewed_in_time(tmp_path: Path) -> None:
    async with organization(tmp_path, auth="oauth", token_lifetime=1.0) as (running, client):
        for _ in range(3):
            assert await subscribe(running, client) is None
            await trio.sleep(0.5)
        assert running.exchange.authenticator.state()["refused"] == {}
