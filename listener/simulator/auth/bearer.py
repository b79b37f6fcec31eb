"""OAuth: tokens at Exchange's door ("Authenticate an EWS application by using OAuth", learn.microsoft.com; RFC 6750).

A token is looked at when a request comes. A stream that is open when its token ends goes on to its window's end.
"""

from base64 import b64encode

import msgspec

from listener.simulator.auth import Admitted, Denied, challenges
from listener.simulator.auth.entra import Entra
from listener.simulator.conditions import Conditions

_EXCHANGE = "00000002-0000-0ff1-ce00-000000000000"
"""The application id of Exchange, the same in every tenant."""


class Bearer:
    """The scheme, and the login of every connection: it keeps no state."""

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
            return self._refused(f'error="invalid_token", error_description="{error}"', "token")
        if claims["aud"] not in self._entra.exchange:
            return self._refused('error="invalid_token", error_description="The audience is wrong."', "token")
        challenge = self._conditions.claims
        if challenge and challenge.value not in claims.get("acrs", ()):
            wanted = {"access_token": {"acrs": {"essential": True, "value": challenge.value}}}
            encoded = b64encode(msgspec.json.encode(wanted)).decode()
            return self._refused(f'error="insufficient_claims", claims="{encoded}"', "claims")
        return Admitted(str(claims["appid"]), "oauth", app_only=True)

    def _challenge(self, error: str = "") -> str:
        return (
            f'Bearer client_id="{_EXCHANGE}", trusted_issuers="{_EXCHANGE}@*", '
            'token_types="app_asserted_user_v1 service_asserted_app_v1", '
            f'authorization_uri="{self._entra.base_url}/common/oauth2/authorize"{error and ", "}{error}'
        )

    def _refused(self, error: str, why: str) -> Denied:
        return Denied(challenges(self._challenge(error)), self._entra.registration.client_id, why)
