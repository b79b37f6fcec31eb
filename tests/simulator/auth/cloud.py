"""Entra ID without sockets, and an HTTP client for msal that uses it."""

from typing import Any, NamedTuple
from urllib.parse import urlencode

import msal

from listener.simulator.auth.oauth import Entra, Registration
from listener.simulator.fault_effects import Conditions
from listener.simulator.settings import Settings
from tests.simulator.auth.accounts import accounts
from tests.simulator.client import NOON

SETTINGS = Settings(auth="oauth")
REGISTRATION = Registration(SETTINGS)
HOST = "https://login.contoso.example"
SCOPE = "https://outlook.office365.com/.default"


class Response(NamedTuple):
    status_code: int
    text: str
    headers: dict[str, str]

    def raise_for_status(self) -> None:
        assert self.status_code < 400, self.text


class Cloud:
    """Entra ID. `now` is the time on its clock."""

    def __init__(self, lifetime: float = 3600.0, lock_after: int = 3) -> None:
        self.conditions = Conditions()
        self.now = NOON
        self.entra = Entra(REGISTRATION, accounts(self.conditions, lock_after), self.conditions, lifetime)
        self.entra.base_url = HOST

    def get(self, url: str, params: dict[str, str] | None = None, **_: Any) -> Response:
        return self._request("GET", url + ("?" + urlencode(params) if params else ""), b"")

    def post(self, url: str, data: dict[str, str] | None = None, **_: Any) -> Response:
        return self._request("POST", url, urlencode(data or {}).encode())

    def close(self) -> None:
        pass

    def _request(self, method: str, url: str, body: bytes) -> Response:
        reply = self.entra.handle(method, url.removeprefix(HOST), body, self.now)
        assert isinstance(reply.body, bytes)
        return Response(reply.status, reply.body.decode(), dict(reply.headers))

    def client(
        self,
        credential: Any = SETTINGS.client_secret,
        tenant: str = SETTINGS.tenant,
        client_id: str = SETTINGS.client_id,
        **options: Any,
    ) -> msal.ConfidentialClientApplication:
        """Return an msal application. Raises ValueError if msal refuses the authority."""
        options.setdefault("instance_discovery", False)
        return msal.ConfidentialClientApplication(
            client_id,
            client_credential=credential,
            authority=f"{HOST}/{tenant}",
            http_client=self,
            http_cache={},
            **options,
        )

    def token(self, claims: str | None = None, scope: str = SCOPE, **options: Any) -> dict[str, Any]:
        """Return msal's result: a token or an error."""
        answer: dict[str, Any] = self.client(**options).acquire_token_for_client(
            [scope], claims_challenge=claims
        )
        return answer
