import json
import re
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.simulator.auth import Admitted, Denied
from listener.simulator.auth.oauth import Bearer
from listener.simulator.faults import ClaimsChallenge
from tests.simulator.auth.cloud import SETTINGS, Cloud
from tests.simulator.client import NOON

APPLICATION = SETTINGS.client_id


def challenge(outcome: Admitted | Denied) -> str:
    assert isinstance(outcome, Denied)
    ((name, value),) = outcome.headers
    assert name == "WWW-Authenticate"
    return value


def test_valid_token_admits_the_application() -> None:
    cloud = Cloud()
    token = cloud.token()["access_token"]
    admitted = Bearer(cloud.entra, cloud.conditions).login(None).check(f"Bearer {token}", NOON)
    assert admitted == Admitted(APPLICATION, "oauth", app_only=True)


def test_missing_token_is_not_a_refusal() -> None:
    cloud = Cloud()
    for authorization in (None, "Basic eDp5"):
        outcome = Bearer(cloud.entra, cloud.conditions).check(authorization, NOON)
        assert challenge(outcome).startswith('Bearer client_id="00000002-0000-0ff1-ce00-000000000000"')
        assert isinstance(outcome, Denied)
        assert outcome.refused is None


def test_expired_token() -> None:
    cloud = Cloud(lifetime=20)
    token = cloud.token()["access_token"]
    scheme = Bearer(cloud.entra, cloud.conditions)
    outcome = scheme.check(f"Bearer {token}", NOON + 20)
    assert 'error="invalid_token"' in challenge(outcome)
    assert isinstance(outcome, Denied)
    assert (outcome.refused, outcome.reason) == (APPLICATION, "token")


def test_token_with_another_audience() -> None:
    cloud = Cloud()
    token = cloud.token(scope="https://graph.microsoft.com/.default")["access_token"]
    assert "audience" in challenge(Bearer(cloud.entra, cloud.conditions).check(f"Bearer {token}", NOON))


@pytest.mark.parametrize(
    "scope", ["https://outlook.office.com/.default", "https://mail.contoso.example/.default"]
)
def test_exchange_accepts_several_resources(scope: str) -> None:
    cloud = Cloud()
    cloud.entra.exchange.add("https://mail.contoso.example")
    token = cloud.token(scope=scope)["access_token"]
    assert isinstance(Bearer(cloud.entra, cloud.conditions).check(f"Bearer {token}", NOON), Admitted)


def test_forwarded_claims_challenge_succeeds() -> None:
    cloud = Cloud()
    scheme = Bearer(cloud.entra, cloud.conditions)
    cloud.conditions.claims = ClaimsChallenge(value="c7")
    outcome = scheme.check(f"Bearer {cloud.token()['access_token']}", NOON)
    header = challenge(outcome)
    assert 'error="insufficient_claims"' in header
    assert isinstance(outcome, Denied)
    assert outcome.reason == "claims"
    found = re.search(r'claims="([^"]+)"', header)
    assert found
    claims = b64decode(found[1]).decode()
    assert json.loads(claims) == {"access_token": {"acrs": {"essential": True, "value": "c7"}}}
    better = cloud.token(claims=claims)["access_token"]
    assert isinstance(scheme.check(f"Bearer {better}", NOON), Admitted)


CLOUD = Cloud()


@given(st.text())
def test_any_token_is_handled(token: str) -> None:
    assert isinstance(Bearer(CLOUD.entra, CLOUD.conditions).check(f"Bearer {token}", NOON), Denied)
