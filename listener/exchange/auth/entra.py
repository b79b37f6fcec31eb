"""Access tokens of Entra ID and AD FS, requested by msal.

msal blocks, and its constructor already sends requests, so it runs in threads. Its HTTP requests run on the event
loop, where the size and the time of a response are bounded.
"""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import httpx
import msal
import msgspec
import structlog
import trio

from listener.config import OAuthAuth
from listener.config.auth import CertificateError, load_key_pair
from listener.config.secrets import Secret, SecretError
from listener.ews.codes import VERDICTS, ExchangeError, Failure
from listener.ews.http import MAX_CLOCK_SKEW, describe_clock_skew
from listener.ews.values import http_date, json_object
from listener.ews.xml import excerpt
from listener.exchange.auth.oauth import Token
from listener.exchange.body import TOKEN_LIMIT, Body
from listener.exchange.network import Network
from listener.exchange.transport_errors import mapped_errors

log = structlog.get_logger()

REQUEST_TIMEOUT = 20.0
"""Seconds for one response of a token endpoint."""
MAX_TOKEN_LENGTH = 64 * 1024
"""Characters of an access token. Servers refuse longer headers."""
MIN_LIFETIME, MAX_LIFETIME = 1.0, 7 * 86400.0
"""Seconds: bounds of a token's lifetime, whatever its endpoint reports."""
DEFAULT_LIFETIME = 3600.0
"""Seconds that a token is assumed to live if its endpoint reports no lifetime (RFC 6749 section 5.1)."""
TRANSIENT_ERRORS = frozenset({"temporarily_unavailable", "server_error"})
"""Errors of the endpoint itself, not of the request (RFC 6749 section 4.1.2.1, and Entra ID's "Error handling")."""
NOT_A_REFUSAL = frozenset({200, 429})
"""HTTP statuses that do not refuse the credentials."""
TEXT_PREFIX = "asking for a token: "
"""Stands before the text of a transport error."""
KEPT_HEADERS = ("content-type", "date", "retry-after")
"""The response headers that msal or this module reads."""
_CODE = re.compile(r"AADSTS\d{1,10}")
_TOKEN = re.compile(r"[\x21-\x7e]+")

MEANINGS: Mapping[str, str] = {
    "AADSTS50013": "the signature of the assertion is invalid: is the certificate that of {client}?",
    "AADSTS50027": "the assertion is malformed, or issued for another audience",
    "AADSTS50053": "{client} is locked after too many attempts with wrong credentials; it is unlocked after a while",
    "AADSTS53003": "a Conditional Access policy blocks {client}",
    "AADSTS70021": "no federated identity of {client} has the issuer, subject and audience of this federated token",
    "AADSTS90002": "unknown tenant {tenant}: check tenant and cloud",
    "AADSTS500011": "the tenant {tenant} has no resource {resource}: check scope and cloud",
    "AADSTS700016": "the tenant {tenant} has no application {client}: check client_id, tenant and cloud",
    "AADSTS700024": "the assertion is not valid now: check this machine's clock and the age of the federated token",
    "AADSTS700027": "the certificate is not registered for {client}, or its key does not match",
    "AADSTS700211": "no federated identity of {client} has the issuer of this federated token",
    "AADSTS700212": "no federated identity of {client} has the audience of this federated token",
    "AADSTS700213": "no federated identity of {client} has the subject of this federated token",
    "AADSTS900023": "{tenant} is neither the ID nor the domain of a tenant",
    "AADSTS1002012": "the scope must be a resource followed by /.default",
    "AADSTS7000112": "the application {client} is disabled in the tenant {tenant}",
    "AADSTS7000215": "the client secret of {client} is wrong: configure the secret's value, not its ID",
    "AADSTS7000218": "{client} needs a client secret or an assertion",
    "AADSTS7000222": "the client secret of {client} has expired: create a new one in the application's registration",
    "AADSTS7000229": "the application {client} has no service principal in the tenant {tenant}: grant admin consent",
}
"""The errors of Entra ID and what they mean here ("Microsoft Entra authentication and authorization error codes",
learn.microsoft.com). Each is also a code in listener/ews/codes.py and docs/TROUBLE.md."""


class Cloud(NamedTuple):
    """The token authority of a cloud, and the resource that tokens are for."""

    authority: str
    resource: str


CLOUDS: Mapping[str, Cloud] = {
    "public": Cloud("https://login.microsoftonline.com", "https://outlook.office365.com"),
    "us-government": Cloud("https://login.microsoftonline.us", "https://outlook.office365.us"),
    "us-government-dod": Cloud("https://login.microsoftonline.us", "https://webmail.apps.mil"),
    "china": Cloud("https://login.partner.microsoftonline.cn", "https://partner.outlook.cn"),
}
"""By the values of [auth] cloud; "Microsoft 365 endpoints" and "National clouds", learn.microsoft.com."""


class Entra:
    """Fetches tokens for one application. `tls` and `proxy` are those of all other connections. Tests pass a
    `transport` in place of the network."""

    def __init__(
        self,
        auth: OAuthAuth,
        tls: ssl.SSLContext,
        proxy: httpx.Proxy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        cloud = CLOUDS[auth.cloud]
        self._auth = auth
        self._network = Network(tls=tls, proxy=proxy, transport=transport)
        managed_identity = "the managed identity of this machine"
        self._authority = (
            managed_identity
            if auth.managed_identity
            else auth.authority or f"{cloud.authority}/{auth.tenant}"
        )
        self._scope = auth.scope or f"{cloud.resource}/.default"
        self._threads = trio.CapacityLimiter(2)

    @property
    def account(self) -> str:
        """The application's name, for logs and messages."""
        return self._auth.client_id or "the managed identity"

    async def fetch(self, claims: str | None) -> Token:
        """Return a new token, with these claims (JSON) if any. Raises ExchangeError."""
        return await trio.to_thread.run_sync(
            self._fetch, claims, abandon_on_cancel=True, limiter=self._threads
        )

    def _fetch(self, claims: str | None) -> Token:
        http = _Http(self._network)
        try:
            proxy = None if self._auth.managed_identity else self._network.proxy
            with mapped_errors(TEXT_PREFIX, proxy):
                return self._token(self._request_token(http, claims), http)
        except (SecretError, CertificateError) as error:
            raise ExchangeError(Failure(code="SecretUnreadable", text=str(error))) from error
        except ExchangeError:
            raise
        except Exception as error:  # msal raises any exception for a response that it does not expect
            text = f"unexpected response of {self._authority}: {type(error).__name__}: {excerpt(str(error))}"
            raise ExchangeError(Failure(code="TokenEndpointFailed", text=text)) from error

    def _token(self, result: Mapping[str, Any], http: _Http) -> Token:
        """Return the token of a response. Raises ExchangeError if there is none."""
        text, lifetime = result.get("access_token"), _seconds(result.get("expires_in", DEFAULT_LIFETIME))
        if not text:
            raise ExchangeError(self._failure(result, http))
        valid = isinstance(text, str) and len(text) <= MAX_TOKEN_LENGTH and _TOKEN.fullmatch(text)
        if not valid or lifetime is None:
            raise ExchangeError(Failure(code="TokenEndpointFailed", text=f"{self._authority}: {UNUSABLE}"))
        return Token(str(text), lifetime, _seconds(result.get("refresh_in")))

    def _request_token(self, http: _Http, claims: str | None) -> dict[str, Any]:
        """Return msal's result. Its client is created for each request: its caches would hide a changed secret."""
        try:
            result = self._acquire_token(http, _valid_claims(claims))
        except (httpx.HTTPError, ExchangeError, SecretError):
            raise
        except Exception as error:  # noqa: BLE001  (msal raises any exception for a malformed response)
            return http.refusal or {"error": type(error).__name__, "error_description": str(error)}
        return result if isinstance(result, dict) else {"error": "no JSON object"}

    def _acquire_token(self, http: _Http, claims: str | None) -> Any:
        auth = self._auth
        if auth.managed_identity:
            identity = (
                msal.UserAssignedManagedIdentity(client_id=auth.client_id)
                if auth.client_id
                else msal.SystemAssignedManagedIdentity()
            )
            managed = msal.ManagedIdentityClient(identity, http_client=http)
            return managed.acquire_token_for_client(
                resource=self._scope.removesuffix("/.default"), claims_challenge=claims
            )
        try:
            credential = self._credential()
        except CertificateError as error:
            raise SecretError(str(error)) from error
        application = msal.ConfidentialClientApplication(
            auth.client_id,
            client_credential=credential,
            authority=self._authority,
            http_client=http,
            instance_discovery=False,  # the authority is configured, so there is nothing to discover
            client_capabilities=["cp1"],  # the client handles claims challenges
        )
        return application.acquire_token_for_client([self._scope], claims_challenge=claims)

    def _credential(self) -> Any:
        """Return the credential in msal's form. It is read each time: secrets and certificates change at run time."""
        auth = self._auth
        if auth.client_secret is not None:
            return self._reloaded(auth.client_secret)
        if auth.certificate is not None:
            password = (
                None if auth.certificate_password is None else self._reloaded(auth.certificate_password)
            )
            pair = load_key_pair(auth.certificate, auth.certificate_key, password)
            return {"private_key": pair.key, "public_certificate": pair.certificate}
        return {"client_assertion": self._federated_token}

    def _reloaded(self, secret: Secret) -> str:
        try:
            secret.renew()
        except SecretError as error:
            log.warning("auth.secret_unreadable", account=self.account, text=str(error))
        return secret.reveal()

    def _federated_token(self) -> str:
        path = self._auth.federated_token_file
        assert path is not None
        try:
            return path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise SecretError(f"cannot read {path}: {error.strerror}") from None

    def _failure(self, result: Mapping[str, Any], http: _Http) -> Failure:
        reported = excerpt(str(result.get("error_description") or result.get("error") or "nothing"))
        code = next(iter(_CODE.findall(reported)), "")
        meaning = MEANINGS.get(code, "").format(
            client=self.account,
            tenant=self._auth.tenant or self._authority,
            resource=self._scope.removesuffix("/.default"),
        )
        off = f"; {describe_clock_skew(http.skew)}" if abs(http.skew) > MAX_CLOCK_SKEW else ""
        if meaning and code in VERDICTS:
            return Failure(code=code, text=meaning + off)
        # An HTML page of a proxy in place of a response is not a refusal.
        refused = not _is_transient(result) and http.status not in NOT_A_REFUSAL
        return Failure(
            code="TokenRefused" if refused or http.refusal else "TokenEndpointFailed",
            text=f"{self._authority} issues no token for {self.account}: {reported}{off}",
        )


class _Http:
    """The HTTP client interface of msal, on httpx. It is used in a thread that trio has started."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.refusal: dict[str, Any] | None = None
        self.status: int | None = None
        self.skew = 0.0

    def get(
        self,
        url: str,
        params: Any = None,
        headers: Any = None,
        **_: Any,  # options of the requests library
    ) -> httpx.Response:
        return self._record(
            trio.from_thread.run(partial(self._send, "GET", url, params=params, headers=headers))
        )

    def post(
        self, url: str, params: Any = None, data: Any = None, headers: Any = None, **_: Any
    ) -> httpx.Response:
        # msal passes assertions as bytes, which httpx would send as b'…'.
        plain = {
            key: value.decode() if isinstance(value, bytes) else value for key, value in (data or {}).items()
        }
        send = partial(self._send, "POST", url, params=params, data=plain, headers=headers)
        return self._record(trio.from_thread.run(send))

    def close(self) -> None:
        """Do nothing: each request has its own client."""

    async def _send(self, method: str, url: str, **options: Any) -> httpx.Response:
        """Return a response with its whole body, within REQUEST_TIMEOUT."""
        network = self._network
        if url.startswith("http:"):
            # The endpoint of a managed identity is on this machine or a link-local address, which no proxy can reach.
            network = replace(network, proxy=None)
        with trio.move_on_after(REQUEST_TIMEOUT):
            async with httpx.AsyncClient(
                transport=network.pool(), trust_env=False, timeout=REQUEST_TIMEOUT
            ) as client:
                request = client.build_request(method, url, **options)
                request.headers["Accept-Encoding"] = "identity"
                response = await client.send(request, stream=True)
                async with aclosing(Body(response)) as body:
                    read = body.whole if response.is_success else body.beginning
                    try:
                        content = await read(TOKEN_LIMIT)
                    except ExchangeError as error:
                        failure = msgspec.structs.replace(
                            error.failure, text=TEXT_PREFIX + error.failure.text
                        )
                        raise ExchangeError(failure) from error
            headers = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
            return httpx.Response(response.status_code, headers=headers, content=content, request=request)
        text = f"{TEXT_PREFIX}no response in {REQUEST_TIMEOUT:g} s"
        raise ExchangeError(Failure(code="ReadTimeout", text=text))

    def _record(self, response: httpx.Response) -> httpx.Response:
        """Record the status, the refusal and the clock skew, which msal does not report for an unusable response."""
        response.encoding = "utf-8"  # as JSON requires (RFC 8259), whatever charset the response names
        date = http_date(response.headers.get("date", ""))
        self.skew = 0.0 if date is None else (datetime.now(UTC) - date).total_seconds()
        self.status, self.refusal = response.status_code, None
        if response.is_client_error:
            body = json_object(response.text)
            refused = body is not None and "error" in body and not _is_transient(body)
            self.refusal = body if refused else None
        return response


def _valid_claims(claims: str | None) -> str | None:
    """Return the claims if they are valid: a JSON object, in which `access_token` is an object that msal extends."""
    parsed = json_object(claims or "")
    return None if parsed is None or not isinstance(parsed.get("access_token", {}), dict) else claims


def _is_transient(result: Mapping[str, Any]) -> bool:
    error = result.get("error")
    return isinstance(error, str) and error in TRANSIENT_ERRORS


def _seconds(value: object) -> float | None:
    """Return a lifetime, given as a number or a string, within bounds; None if it is not a number."""
    try:
        seconds = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, MIN_LIFETIME), MAX_LIFETIME) if math.isfinite(seconds) else None


UNUSABLE = "the response has an unusable access_token or expires_in"
