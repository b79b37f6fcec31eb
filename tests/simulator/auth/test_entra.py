"""Tokens, requested by msal as an independent client."""

import json
import time
import warnings
from pathlib import Path
from typing import Any, get_args, get_type_hints
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

from listener.simulator.auth.oauth import ENTRA_ERRORS, Registration
from listener.simulator.faults import AccountLocked, ClockOff, TokenRefused
from listener.simulator.settings import Settings
from tests.simulator.auth.cloud import HOST, REGISTRATION, SETTINGS, Cloud
from tests.simulator.client import NOON

OTHER = Registration(Settings(seed=2))


def code(answer: dict[str, Any]) -> int:
    """Return the AADSTS number of an error response."""
    assert sorted(answer)[:3] == ["correlation_id", "error", "error_codes"]
    (number,) = answer["error_codes"]
    assert answer["error_description"].startswith(f"AADSTS{number}: ")
    assert answer["error"] == ENTRA_ERRORS[number].error
    return int(number)


def certificate(registration: Registration = REGISTRATION) -> dict[str, str]:
    pem = registration.pem.decode()
    at = pem.index("-----BEGIN CERTIFICATE")
    return {"private_key": pem[:at], "public_certificate": pem[at:]}


def test_token_for_a_secret() -> None:
    cloud = Cloud(lifetime=20)
    answer = cloud.token()
    assert (answer["token_type"], answer["expires_in"]) == ("Bearer", 20)
    claims = cloud.entra.read(answer["access_token"], NOON)
    assert claims["appid"] == SETTINGS.client_id
    assert claims["aud"] == "https://outlook.office365.com"
    assert claims["roles"] == ["full_access_as_app"]
    assert cloud.entra.issued == 1


def test_published_keys_verify_tokens() -> None:
    cloud = Cloud()
    found = json.loads(cloud.get(f"{HOST}/{SETTINGS.domain}/v2.0/.well-known/openid-configuration").text)
    (key,) = json.loads(cloud.get(found["jwks_uri"]).text)["keys"]
    token = cloud.token()["access_token"]
    assert jwt.get_unverified_header(token)["kid"] == key["kid"]
    jwt.decode(token, jwt.PyJWK(key), options={"verify_aud": False, "verify_exp": False})


def test_authority_from_instance_discovery() -> None:
    cloud = Cloud()
    discovery = f"{HOST}/common/discovery/instance"
    assert "access_token" in cloud.token(instance_discovery=discovery)


def test_token_expires() -> None:
    cloud = Cloud(lifetime=20)
    token = cloud.token()["access_token"]
    cloud.entra.read(token, NOON + 19.9)
    with pytest.raises(ValueError, match="expired"):
        cloud.entra.read(token, NOON + 20)
    with pytest.raises(ValueError, match="not yet valid"):
        cloud.entra.read(token, NOON - 1)


def test_foreign_and_invalid_tokens() -> None:
    cloud = Cloud()
    for token in (Cloud().token()["access_token"], "", "abc", "a.b.c"):
        with pytest.raises(ValueError):
            cloud.entra.read(token, NOON)


class TestCertificate:
    """Certificate credentials. msal uses the system clock in assertions."""

    def test_pem(self) -> None:
        cloud = Cloud()
        cloud.now = time.time()
        claims = cloud.entra.read(cloud.token(credential=certificate())["access_token"], cloud.now)
        assert claims["appidacr"] == "2"

    def test_pkcs12(self, tmp_path: Path) -> None:
        file = tmp_path / "application.p12"
        file.write_bytes(
            pkcs12.serialize_key_and_certificates(
                None, REGISTRATION.key, REGISTRATION.certificate, None, BestAvailableEncryption(b"open")
            )
        )
        cloud = Cloud()
        cloud.now = time.time()
        credential = {"private_key_pfx_path": str(file), "passphrase": "open"}
        assert "access_token" in cloud.token(credential=credential)

    def test_sha1_thumbprint(self) -> None:
        from cryptography.hazmat.primitives.hashes import SHA1

        cloud = Cloud()
        cloud.now = time.time()
        thumbprint = REGISTRATION.certificate.fingerprint(SHA1()).hex()
        private = certificate()["private_key"]
        assert "access_token" in cloud.token(credential={"private_key": private, "thumbprint": thumbprint})

    def test_wrong_certificate(self) -> None:
        cloud = Cloud()
        cloud.now = time.time()
        assert code(cloud.token(credential=certificate(OTHER))) == 700027

    def test_wrong_key_with_the_right_thumbprint(self) -> None:
        cloud = Cloud()
        cloud.now = time.time()
        forged = {**certificate(OTHER), "public_certificate": certificate()["public_certificate"]}
        assert code(cloud.token(credential=forged)) == 700027

    @pytest.mark.parametrize(("offset", "refused"), [(-600, 700024), (0, None), (250, None), (1000, 700024)])
    def test_clock_skew(self, offset: float, refused: int | None) -> None:
        cloud = Cloud()
        cloud.conditions.clock = ClockOff(offset=offset)
        cloud.now = cloud.conditions.server_time(time.time())
        answer = cloud.token(credential=certificate())
        assert (code(answer) if "error" in answer else None) == refused

    @pytest.mark.parametrize(
        "changed",
        [{"aud": f"{HOST}/elsewhere"}, {"iss": "another"}, {"sub": "another"}, {"exp": None}],
    )
    def test_invalid_assertion_claims(self, changed: dict[str, Any]) -> None:
        cloud = Cloud()
        claims = {
            "aud": f"{HOST}/{SETTINGS.tenant}/oauth2/v2.0/token",
            "iss": SETTINGS.client_id,
            "sub": SETTINGS.client_id,
            "exp": NOON + 60,
            "jti": str(uuid4()),
            **changed,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        from cryptography.hazmat.primitives.hashes import SHA256

        from listener.simulator.auth.oauth import _encode_digest

        header = {"x5t#S256": _encode_digest(REGISTRATION.certificate.fingerprint(SHA256()))}
        assertion = jwt.encode(claims, REGISTRATION.key, algorithm="RS256", headers=header)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # msal prefers a function
            assert code(cloud.token(credential={"client_assertion": assertion})) == 50027


def test_wrong_tenant() -> None:
    cloud = Cloud()
    with pytest.raises(ValueError, match="tenant"):
        cloud.client(tenant=str(uuid4()))
    answer = json.loads(cloud.post(f"{HOST}/fabrikam.example/oauth2/v2.0/token").text)
    assert code(answer) == 90002
    assert cloud.entra.refused == {90002: 2}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"credential": "wrong"}, 7000215),
        ({"client_id": str(uuid4())}, 700016),
        ({"credential": None}, 7000218),
        ({"scope": "https://outlook.office365.com/EWS.AccessAsUser.All"}, 1002012),
        ({"scope": "https://fabrikam.example/.default"}, 500011),
    ],
)
def test_refused_requests(options: dict[str, Any], expected: int) -> None:
    cloud = Cloud()
    assert code(cloud.token(**options)) == expected
    assert cloud.entra.refused == {expected: 1}
    assert cloud.entra.issued == 0


def test_unsupported_grant() -> None:
    answer = Cloud().post(f"{HOST}/{SETTINGS.tenant}/oauth2/v2.0/token", {"grant_type": "password"})
    assert code(json.loads(answer.text)) == 70003


def test_wrong_secrets_lock_the_application() -> None:
    cloud = Cloud(lock_after=3)
    for _ in range(3):
        cloud.token(credential="wrong")
    assert code(cloud.token()) == 50053


def test_locked_account() -> None:
    cloud = Cloud()
    cloud.conditions.locked = AccountLocked()
    assert code(cloud.token()) == 50053


@pytest.mark.parametrize("wanted", get_args(get_type_hints(TokenRefused)["code"]))
def test_fault_token_refused(wanted: Any) -> None:
    cloud = Cloud()
    cloud.conditions.token_refused = TokenRefused(code=wanted)
    assert code(cloud.token()) == wanted


@pytest.mark.parametrize(
    ("claims", "acrs"),
    [
        ({"access_token": {"acrs": {"essential": True, "value": "c1"}}}, ["c1"]),
        ({"access_token": {"acrs": {"values": ["c1", "c2"]}}}, ["c1", "c2"]),
        ({"access_token": {"nbf": {"essential": True, "value": "1"}}}, None),
        ({"access_token": {"acrs": None}}, None),
    ],
)
def test_requested_claims(claims: dict[str, Any], acrs: list[str] | None) -> None:
    cloud = Cloud()
    token = cloud.token(claims=json.dumps(claims))["access_token"]
    assert cloud.entra.read(token, NOON).get("acrs") == acrs


def test_ad_fs() -> None:
    cloud = Cloud()
    assert "access_token" in cloud.token(tenant="adfs")
    found = json.loads(cloud.get(f"{HOST}/adfs/.well-known/openid-configuration").text)
    assert found["token_endpoint"] == f"{HOST}/adfs/oauth2/token"


def test_unknown_paths() -> None:
    assert Cloud().get(f"{HOST}/{SETTINGS.tenant}/oauth2/v2.0/authorize").status_code == 404
