"""OAuth: Entra ID for applications without a user, AD FS, and bearer tokens at Exchange.

GET  /common/discovery/instance                     known clouds
GET  /TENANT/v2.0/.well-known/openid-configuration  endpoints (AD FS: /adfs/.well-known/…)
GET  /TENANT/discovery/v2.0/keys                    the keys that sign tokens
POST /TENANT/oauth2/v2.0/token                      client_credentials, by secret or by assertion
    (AD FS: /adfs/oauth2/token)

"Microsoft identity platform and the OAuth 2.0 client credentials flow", "… application authentication certificate
credentials", "Microsoft Entra authentication and authorization error codes", "Authenticate an EWS application by
using OAuth" (learn.microsoft.com); RFC 6750, RFC 7523.

A token is checked when a request arrives. A stream that is open when its token expires stays open to its end.
"""

import hashlib
import time
from base64 import b64encode, urlsafe_b64encode
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hmac import compare_digest
from typing import Any, NamedTuple
from urllib.parse import parse_qs
from uuid import uuid4

import jwt
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from jwt.algorithms import RSAAlgorithm

from listener.simulator.auth import Admitted, Denied, challenges
from listener.simulator.auth.passwords import Accounts
from listener.simulator.fault_effects import Conditions
from listener.simulator.http import Reply
from listener.simulator.settings import Settings


class Registration:
    """The registration of one application in one tenant.

    The certificate is created on first use, because that takes time.
    """

    roles = ("full_access_as_app",)

    def __init__(self, settings: Settings) -> None:
        self.tenant = settings.tenant
        self.domain = settings.domain
        self.client_id = settings.client_id
        self.secret = settings.client_secret

    def is_tenant(self, name: str) -> bool:
        """Return whether this is the tenant's id or one of its domains."""
        return name.lower() in (self.tenant, self.domain)

    @cached_property
    def key(self) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @cached_property
    def certificate(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ews-listener")])
        today = datetime.now(UTC)
        return (
            x509.CertificateBuilder(name, name, self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(today - timedelta(days=1))
            .not_valid_after(today + timedelta(days=365))
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        """Key and certificate in one PEM file."""
        key = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return key + self.certificate.public_bytes(serialization.Encoding.PEM)

    def is_thumbprint(self, header: dict[str, object]) -> bool:
        """Return whether a JWT's `x5t` or `x5t#S256` (RFC 7515) matches the certificate."""
        der = self.certificate.public_bytes(serialization.Encoding.DER)
        if "x5t#S256" in header:
            return _without_padding(header["x5t#S256"]) == _encode_digest(hashlib.sha256(der).digest())
        if "x5t" in header:
            return _without_padding(header["x5t"]) == _encode_digest(
                hashlib.sha1(der, usedforsecurity=False).digest()
            )
        return False


def _encode_digest(digest: bytes) -> str:
    return urlsafe_b64encode(digest).decode().rstrip("=")


def _without_padding(value: object) -> str:
    return str(value).rstrip("=")  # some clients send the padding, which RFC 7515 omits


ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_EXCHANGE_RESOURCES = ("https://outlook.office365.com", "https://outlook.office.com")
_OTHER_RESOURCES = ("https://graph.microsoft.com",)
"""Resources whose tokens Exchange refuses."""
_ADFS = "adfs"
_KEY_ID = "simulated"
_SKEW = 300.0
"""Accepted clock difference of an assertion, in seconds."""
_CLAIMS = msgspec.json.Decoder(dict[str, dict[str, dict[str, Any] | None]])


class EntraError(NamedTuple):
    """How an AADSTS code is reported: HTTP status, OAuth error, text."""

    status: int
    error: str
    text: str


ENTRA_ERRORS: Mapping[int, EntraError] = {
    50027: EntraError(400, "invalid_request", "The assertion is malformed, or its audience is wrong."),
    50053: EntraError(
        400, "invalid_grant", "The account is locked: too many attempts with wrong credentials."
    ),
    70003: EntraError(
        400, "unsupported_grant_type", "The application asked for a grant that is not offered."
    ),
    90002: EntraError(400, "invalid_request", "Tenant not found. Check its id or domain, and the cloud."),
    500011: EntraError(400, "invalid_resource", "The tenant has no such resource."),
    700016: EntraError(400, "unauthorized_client", "The application was not found in the directory."),
    700024: EntraError(401, "invalid_client", "The client assertion is not within its valid time range."),
    700027: EntraError(401, "invalid_client", "The certificate is not registered for the application."),
    1002012: EntraError(400, "invalid_scope", "The scope must be a resource with the suffix /.default."),
    7000215: EntraError(401, "invalid_client", "Invalid client secret provided."),
    7000218: EntraError(401, "invalid_client", "The request must have client_assertion or client_secret."),
    7000222: EntraError(401, "invalid_client", "The provided client secret keys are expired."),
}


class TokenDenied(Exception):  # noqa: N818
    """No token is issued. `code` is the number of the AADSTS error."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Entra:
    """Entra ID. Set `base_url`, without a trailing slash, before use. `lifetime` of tokens is in seconds.

    `exchange` are the resources of Exchange; `issued` counts tokens, `refused` AADSTS codes.
    """

    def __init__(
        self, registration: Registration, accounts: Accounts, conditions: Conditions, lifetime: float
    ) -> None:
        self.base_url = ""
        self.exchange = {*_EXCHANGE_RESOURCES}
        self.issued = 0
        self.refused: Counter[int] = Counter()
        self.registration = registration
        self._accounts = accounts
        self._conditions = conditions
        self._lifetime = lifetime

    def handle(self, method: str, path: str, body: bytes, now: float) -> Reply:
        """Return the reply to one request. `now`, in Unix seconds, is the time on this server's clock."""
        tenant, _, rest = path.partition("?")[0].strip("/").partition("/")
        match method, tenant, rest.lower():
            case "GET", "common", "discovery/instance":
                return _json(200, self._instance())
            case "GET", _, ".well-known/openid-configuration" | "v2.0/.well-known/openid-configuration":
                return self._respond(tenant, self._configuration, now)
            case "GET", _, "discovery/keys" | "discovery/v2.0/keys":
                return self._respond(tenant, lambda tenant: self._keys(), now)
            case "POST", _, "oauth2/token" | "oauth2/v2.0/token":
                form = {name: values[0] for name, values in parse_qs(body.decode("latin-1")).items()}
                return self._respond(tenant, lambda tenant: self._token(tenant, form, now), now)
        return _json(404, {"error": "not_found"})

    def read(self, token: str, now: float) -> dict[str, Any]:
        """Return the claims of a valid token that was issued here. Raises ValueError with the reason if it is
        invalid."""
        try:
            claims: dict[str, Any] = jwt.decode(
                token, self._signing_key.public_key(), algorithms=["RS256"], options=_TOKEN_OPTIONS
            )
        except jwt.PyJWTError as error:
            raise ValueError(str(error)) from None
        if not claims["nbf"] <= now < claims["exp"]:
            raise ValueError(
                "The token has expired." if now >= claims["exp"] else "The token is not yet valid."
            )
        return claims

    @cached_property
    def _signing_key(self) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def _respond(self, tenant: str, answer: Any, now: float) -> Reply:
        try:
            if tenant.lower() != _ADFS and not self.registration.is_tenant(tenant):
                raise TokenDenied(90002)
            return _json(200, answer(tenant))
        except TokenDenied as refused:
            self.refused[refused.code] += 1
            return _error(refused.code, now)

    # -- discovery -------------------------------------------------------------------------------------------

    def _instance(self) -> dict[str, Any]:
        host = self.base_url.rpartition("/")[2]
        return {
            "tenant_discovery_endpoint": self._configuration_url(self.registration.tenant),
            "api-version": "1.1",
            "metadata": [{"preferred_network": host, "preferred_cache": host, "aliases": [host]}],
        }

    def _configuration_url(self, tenant: str) -> str:
        return f"{self.base_url}/{tenant}/v2.0/.well-known/openid-configuration"

    def _configuration(self, tenant: str) -> dict[str, Any]:
        adfs = tenant.lower() == _ADFS
        home = f"{self.base_url}/{_ADFS if adfs else self.registration.tenant}"
        version = "" if adfs else "/v2.0"
        return {
            "token_endpoint": f"{home}/oauth2{version}/token",
            "authorization_endpoint": f"{home}/oauth2{version}/authorize",
            "jwks_uri": f"{home}/discovery{version}/keys",
            "issuer": f"{home}{version}",
            "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "response_types_supported": ["code"],
            "subject_types_supported": ["pairwise"],
            "scopes_supported": ["openid"],
        }

    def _keys(self) -> dict[str, Any]:
        key = RSAAlgorithm.to_jwk(self._signing_key.public_key(), as_dict=True)
        return {"keys": [{**key, "kid": _KEY_ID, "use": "sig"}]}

    # -- tokens ----------------------------------------------------------------------------------------------

    def _token(self, tenant: str, form: dict[str, str], now: float) -> dict[str, Any]:
        """Return a token response to this form. Raises TokenDenied."""
        if form.get("grant_type") != "client_credentials":
            raise TokenDenied(70003)
        self._authenticate(tenant, form, now)
        audience = self._audience(form)
        claims = {
            "aud": audience,
            "iss": self._configuration(tenant)["issuer"],
            "iat": int(now),
            "nbf": int(now),
            "exp": now + self._lifetime,
            "appid": self.registration.client_id,
            "appidacr": "2" if "client_assertion" in form else "1",
            "idtyp": "app",
            "roles": list(self.registration.roles),
            "tid": self.registration.tenant,
            "uti": uuid4().hex,
            "ver": "1.0",
            **_requested_claims(form.get("claims", "")),
        }
        token = jwt.encode(claims, self._signing_key, algorithm="RS256", headers={"kid": _KEY_ID})
        self.issued += 1
        lifetime = int(self._lifetime)
        return {
            "token_type": "Bearer",
            "expires_in": lifetime,
            "ext_expires_in": lifetime,
            "access_token": token,
        }

    def _authenticate(self, tenant: str, form: dict[str, str], now: float) -> None:
        """Raise TokenDenied if the application's credentials are wrong or it is locked."""
        registration, accounts = self.registration, self._accounts
        if form.get("client_id") != registration.client_id:
            raise TokenDenied(700016)
        if self._conditions.token_refused:
            raise TokenDenied(self._conditions.token_refused.code)
        if accounts.is_locked(registration.client_id):
            raise TokenDenied(50053)
        try:
            if "client_assertion" in form:
                self._check_assertion(form, tenant, now)
            elif "client_secret" not in form:
                raise TokenDenied(7000218)
            elif not compare_digest(form["client_secret"].encode(), registration.secret.encode()):
                raise TokenDenied(7000215)
        except TokenDenied:
            accounts.refuse(registration.client_id)
            raise
        accounts.admit(registration.client_id)

    def _check_assertion(self, form: dict[str, str], tenant: str, now: float) -> None:
        """Raise TokenDenied if the JWT has a wrong signature, audience, issuer or time."""
        registration, assertion = self.registration, form["client_assertion"]
        if form.get("client_assertion_type") != ASSERTION_TYPE:
            raise TokenDenied(7000218)
        try:
            if not registration.is_thumbprint(jwt.get_unverified_header(assertion)):
                raise TokenDenied(700027)
            claims = jwt.decode(
                assertion,
                registration.certificate.public_key(),  # type: ignore[arg-type]  # it is RSA's
                algorithms=["PS256", "RS256"],
                audience=[
                    self._configuration(each)["token_endpoint"] for each in (tenant, registration.tenant)
                ],
                options=_ASSERTION_OPTIONS,
            )
        except jwt.InvalidSignatureError:
            raise TokenDenied(700027) from None
        except jwt.PyJWTError:
            raise TokenDenied(50027) from None
        if not claims["iss"] == claims["sub"] == registration.client_id:
            raise TokenDenied(50027)
        if not claims.get("nbf", claims.get("iat", now)) - _SKEW <= now <= claims["exp"] + _SKEW:
            raise TokenDenied(700024)

    def _audience(self, form: dict[str, str]) -> str:
        resource, _, suffix = form.get("scope", "").split(" ")[0].rpartition("/")
        if suffix != ".default":
            raise TokenDenied(1002012)
        resource = resource.rstrip("/")
        if resource not in (*self.exchange, *_OTHER_RESOURCES):
            raise TokenDenied(500011)
        return resource


# Entra compares the times itself, because PyJWT uses the system clock.
_TIMES: dict[str, Any] = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
_ASSERTION_OPTIONS: Any = {**_TIMES, "require": ["aud", "exp", "iss", "sub"]}
_TOKEN_OPTIONS: Any = {**_TIMES, "verify_aud": False}


def _requested_claims(text: str) -> dict[str, list[str]]:
    """Return the `acrs` (authentication contexts) that a claims request (OpenID Connect Core 5.5) wants in
    the access token.

    Other requested claims are ignored.
    """
    try:
        wanted = _CLAIMS.decode(text or b"{}").get("access_token", {}).get("acrs") or {}
    except msgspec.DecodeError:
        raise TokenDenied(50027) from None
    values = wanted.get("values") or ([wanted["value"]] if "value" in wanted else [])
    return {"acrs": [str(value) for value in values]} if values else {}


def _error(code: int, now: float) -> Reply:
    error = ENTRA_ERRORS[code]
    trace, correlation = str(uuid4()), str(uuid4())
    moment = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(now))
    description = (
        f"AADSTS{code}: {error.text} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {moment}"
    )
    return _json(
        error.status,
        {
            "error": error.error,
            "error_description": description,
            "error_codes": [code],
            "timestamp": moment,
            "trace_id": trace,
            "correlation_id": correlation,
        },
    )


def _json(status: int, value: object) -> Reply:
    return Reply(status, msgspec.json.encode(value), content_type="application/json; charset=utf-8")


_EXCHANGE_APP_ID = "00000002-0000-0ff1-ce00-000000000000"
"""The application id of Exchange, the same in every tenant."""


class Bearer:
    """Bearer tokens. It has no state, so it is also the login of every connection."""

    def __init__(self, entra: Entra, conditions: Conditions) -> None:
        self._entra = entra
        self._conditions = conditions

    def login(self, certificate: bytes | None) -> "Bearer":
        return self

    def check(self, authorization: str | None, now: float) -> Admitted | Denied:
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return Denied(challenges(self._challenge()))
        try:
            claims = self._entra.read(token, now)
        except ValueError as error:
            return self._deny(f'error="invalid_token", error_description="{error}"', "token")
        if claims["aud"] not in self._entra.exchange:
            return self._deny('error="invalid_token", error_description="The audience is wrong."', "token")
        challenge = self._conditions.claims
        if challenge and challenge.value not in claims.get("acrs", ()):
            wanted = {"access_token": {"acrs": {"essential": True, "value": challenge.value}}}
            encoded = b64encode(msgspec.json.encode(wanted)).decode()
            return self._deny(f'error="insufficient_claims", claims="{encoded}"', "claims")
        return Admitted(str(claims["appid"]), "oauth", app_only=True)

    def _challenge(self, error: str = "") -> str:
        return (
            f'Bearer client_id="{_EXCHANGE_APP_ID}", trusted_issuers="{_EXCHANGE_APP_ID}@*", '
            'token_types="app_asserted_user_v1 service_asserted_app_v1", '
            f'authorization_uri="{self._entra.base_url}/common/oauth2/authorize"{error and ", "}{error}'
        )

    def _deny(self, error: str, reason: str) -> Denied:
        return Denied(challenges(self._challenge(error)), self._entra.registration.client_id, reason)
