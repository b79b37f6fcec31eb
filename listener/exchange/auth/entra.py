"""Tokens of Entra ID and AD FS by msal, in threads: it blocks, and its constructor already asks the network.

Its requests are made on the loop, so that size and time of an answer have a bound, and nobody holds up a thread.
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
from listener.errors import ExchangeError
from listener.ews.codes import VERDICTS, Failure
from listener.ews.http import MAX_CLOCK_SKEW, describe_clock_skew
from listener.ews.values import http_date, json_object
from listener.ews.xml import excerpt
from listener.exchange.auth.aadsts import MEANINGS
from listener.exchange.auth.tokens import Token
from listener.exchange.body import TOKEN_LIMIT, Body
from listener.exchange.network import Network
from listener.exchange.transport_errors import mapped_errors

log = structlog.get_logger()

PATIENCE = 20.0
"""Seconds that a token endpoint may take for one answer."""
LONGEST_TOKEN = 64 * 1024
"""Characters of an access token. Servers refuse headers that are longer."""
SHORTEST_LIFE, LONGEST_LIFE = 1.0, 7 * 86400.0
"""Seconds that a token lives, whatever its endpoint says."""
LIFE = 3600.0
"""Seconds that a token is taken to live if its endpoint does not say (RFC 6749 section 5.1)."""
PASSING = frozenset({"temporarily_unavailable", "server_error"})
"""What an endpoint says of itself, and not of us (RFC 6749 section 4.1.2.1, and Entra ID's "Error handling")."""
WITHOUT_JUDGEMENT = frozenset({200, 429})
"""The statuses of answers that refuse nothing: with 200 it would be a token."""
ASKING = "asking for a token: "
"""What stands before the text of a failure on the way."""
KEPT = ("content-type", "date", "retry-after")
"""The headers of an answer that somebody looks at."""
_CODE = re.compile(r"AADSTS\d{1,10}")
_TOKEN = re.compile(r"[\x21-\x7e]+")


class Cloud(NamedTuple):
    """Where tokens come from, and what they are for."""

    authority: str
    resource: str


CLOUDS: Mapping[str, Cloud] = {
    "public": Cloud("https://login.microsoftonline.com", "https://outlook.office365.com"),
    "us-government": Cloud("https://login.microsoftonline.us", "https://outlook.office365.us"),
    "us-government-dod": Cloud("https://login.microsoftonline.us", "https://webmail.apps.mil"),
    "china": Cloud("https://login.partner.microsoftonline.cn", "https://partner.outlook.cn"),
}
"""By the names of [auth] cloud; "Microsoft 365 endpoints" and "National clouds", learn.microsoft.com."""


class Entra:
    """Fetches tokens for one application. `tls` and `proxy` are those of all other connections; `transport` takes
    the place of the network."""

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
        machine = "the managed identity of this machine"
        self._authority = (
            machine if auth.managed_identity else auth.authority or f"{cloud.authority}/{auth.tenant}"
        )
        self._scope = auth.scope or f"{cloud.resource}/.default"
        self._threads = trio.CapacityLimiter(2)

    @property
    def account(self) -> str:
        """The application, for people."""
        return self._auth.client_id or "the managed identity"

    async def fetch(self, claims: str | None) -> Token:
        """A new token, with these claims (JSON). Raises ExchangeError."""
        return await trio.to_thread.run_sync(
            self._fetch, claims, abandon_on_cancel=True, limiter=self._threads
        )

    def _fetch(self, claims: str | None) -> Token:
        http = _Http(self._network)
        try:
            proxy = None if self._auth.managed_identity else self._network.proxy
            with mapped_errors(ASKING, proxy):
                return self._token(self._ask(http, claims), http)
        except (SecretError, CertificateError) as error:
            raise ExchangeError(Failure(code="SecretUnreadable", text=str(error))) from error
        except ExchangeError:
            raise
        except Exception as error:  # msal raises whatever it runs into in an answer that it does not expect
            text = f"{self._authority} answers something else: {type(error).__name__}: {excerpt(str(error))}"
            raise ExchangeError(Failure(code="TokenEndpointFailed", text=text)) from error

    def _token(self, answer: Mapping[str, Any], http: _Http) -> Token:
        """Raises ExchangeError: there is none in the answer."""
        text, lifetime = answer.get("access_token"), _seconds(answer.get("expires_in", LIFE))
        if not text:
            raise ExchangeError(self._failure(answer, http))
        good = isinstance(text, str) and len(text) <= LONGEST_TOKEN and _TOKEN.fullmatch(text)
        if not good or lifetime is None:
            raise ExchangeError(Failure(code="TokenEndpointFailed", text=f"{self._authority}: {UNUSABLE}"))
        return Token(str(text), lifetime, _seconds(answer.get("refresh_in")))

    def _ask(self, http: _Http, claims: str | None) -> dict[str, Any]:
        """What msal gets. It is made anew each time: so its caches do not stand between us and a new secret."""
        try:
            answer = self._acquired(http, _usable(claims))
        except (httpx.HTTPError, ExchangeError, SecretError):
            raise
        except Exception as error:  # noqa: BLE001  (msal raises whatever an answer of another form leads to)
            return http.refusal or {"error": type(error).__name__, "error_description": str(error)}
        return answer if isinstance(answer, dict) else {"error": "no JSON object"}

    def _acquired(self, http: _Http, claims: str | None) -> Any:
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
            instance_discovery=False,  # the configuration's word is enough
            client_capabilities=["cp1"],  # we answer claims challenges
        )
        return application.acquire_token_for_client([self._scope], claims_challenge=claims)

    def _credential(self) -> Any:
        """In msal's form. Read again each time, since secrets and certificates are replaced while we run."""
        auth = self._auth
        if auth.client_secret is not None:
            return self._renewed(auth.client_secret)
        if auth.certificate is not None:
            password = None if auth.certificate_password is None else self._renewed(auth.certificate_password)
            pair = load_key_pair(auth.certificate, auth.certificate_key, password)
            return {"private_key": pair.key, "public_certificate": pair.certificate}
        return {"client_assertion": self._federated_token}

    def _renewed(self, secret: Secret) -> str:
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

    def _failure(self, answer: Mapping[str, Any], http: _Http) -> Failure:
        said = excerpt(str(answer.get("error_description") or answer.get("error") or "nothing"))
        code = next(iter(_CODE.findall(said)), "")
        told = MEANINGS.get(code, "").format(
            client=self.account,
            tenant=self._auth.tenant or self._authority,
            resource=self._scope.removesuffix("/.default"),
        )
        off = f"; {describe_clock_skew(http.skew)}" if abs(http.skew) > MAX_CLOCK_SKEW else ""
        if told and code in VERDICTS:
            return Failure(code=code, text=told + off)
        # A proxy's page in place of an answer refuses nothing.
        judged = not _is_passing(answer) and http.status not in WITHOUT_JUDGEMENT
        return Failure(
            code="TokenRefused" if judged or http.refusal else "TokenEndpointFailed",
            text=f"{self.account} gets no token from {self._authority}: {said}{off}",
        )


class _Http:
    """What msal wants of an HTTP client, by httpx. It is used in a thread that trio has started."""

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
        **_: Any,  # what requests would take
    ) -> httpx.Response:
        return self._noted(
            trio.from_thread.run(partial(self._send, "GET", url, params=params, headers=headers))
        )

    def post(
        self, url: str, params: Any = None, data: Any = None, headers: Any = None, **_: Any
    ) -> httpx.Response:
        # msal has assertions as bytes, which httpx would write as Python does: b'…'.
        plain = {
            key: value.decode() if isinstance(value, bytes) else value for key, value in (data or {}).items()
        }
        send = partial(self._send, "POST", url, params=params, data=plain, headers=headers)
        return self._noted(trio.from_thread.run(send))

    def close(self) -> None:
        """msal never means it."""

    async def _send(self, method: str, url: str, **what: Any) -> httpx.Response:
        """An answer with its whole body, within PATIENCE."""
        network = self._network
        if url.startswith("http:"):
            # A managed identity is asked for on this machine or its own link, which no proxy can reach.
            network = replace(network, proxy=None)
        with trio.move_on_after(PATIENCE):
            async with httpx.AsyncClient(
                transport=network.pool(), trust_env=False, timeout=PATIENCE
            ) as client:
                request = client.build_request(method, url, **what)
                request.headers["Accept-Encoding"] = "identity"
                response = await client.send(request, stream=True)
                async with aclosing(Body(response)) as body:
                    read = body.whole if response.is_success else body.beginning
                    try:
                        content = await read(TOKEN_LIMIT)
                    except ExchangeError as error:
                        failure = msgspec.structs.replace(error.failure, text=ASKING + error.failure.text)
                        raise ExchangeError(failure) from error
            headers = {name: response.headers[name] for name in KEPT if name in response.headers}
            return httpx.Response(response.status_code, headers=headers, content=content, request=request)
        text = f"{ASKING}no answer in {PATIENCE:g} s"
        raise ExchangeError(Failure(code="ReadTimeout", text=text))

    def _noted(self, response: httpx.Response) -> httpx.Response:
        """Keeps what msal does not tell of an answer that it makes nothing of."""
        response.encoding = "utf-8"  # JSON's (RFC 8259), whatever charset the answer names
        told = http_date(response.headers.get("date", ""))
        self.skew = 0.0 if told is None else (datetime.now(UTC) - told).total_seconds()
        self.status, self.refusal = response.status_code, None
        if response.is_client_error:
            body = json_object(response.text)
            judged = body is not None and "error" in body and not _is_passing(body)
            self.refusal = body if judged else None
        return response


def _usable(claims: str | None) -> str | None:
    """The claims if they are what a server may ask for: a JSON object, in which msal adds to `access_token`."""
    asked = json_object(claims or "")
    return None if asked is None or not isinstance(asked.get("access_token", {}), dict) else claims


def _is_passing(answer: Mapping[str, Any]) -> bool:
    error = answer.get("error")
    return isinstance(error, str) and error in PASSING


def _seconds(value: object) -> float | None:
    """A lifetime as an endpoint writes it: a number, or a text of one; None if it is none."""
    try:
        seconds = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, SHORTEST_LIFE), LONGEST_LIFE) if math.isfinite(seconds) else None


UNUSABLE = "the answer has an access_token or an expires_in of a form that cannot be used"
