"""Accounts and client logins for these tests."""

from base64 import b64decode, b64encode

import spnego
from spnego.channel_bindings import GssChannelBindings

from listener.simulator.auth import Admitted, Denied, Login
from listener.simulator.auth.passwords import Accounts
from listener.simulator.fault_effects import Conditions
from tests.simulator.client import NOON

USER, PASSWORD = "svc@contoso.example", "pass-word"
USERS = (USER, USER.upper(), "CONTOSO\\svc", "contoso\\SVC")
"""Forms of the name of one account."""


def accounts(conditions: Conditions | None = None, lock_after: int = 3) -> Accounts:
    return Accounts({USER: PASSWORD}, lock_after, conditions or Conditions())


class Client:
    """The client side of a handshake over one connection. `binding` is the application data of the channel
    binding."""

    def __init__(
        self,
        login: Login,
        user: str = USER,
        password: str = PASSWORD,
        scheme: str = "NTLM",
        binding: bytes | None = None,
    ) -> None:
        self.login = login
        self.scheme = scheme
        self._context = spnego.client(
            user,
            password,
            hostname="mail.contoso.example",
            service="HTTP",
            protocol=scheme.lower(),
            channel_bindings=GssChannelBindings(application_data=binding) if binding else None,
        )
        self._challenge: bytes | None = None

    def next_leg(self) -> Admitted | Denied:
        """Send one request with the next token."""
        token = self._context.step(self._challenge)
        assert token is not None
        outcome = self.login.check(f"{self.scheme} {b64encode(token).decode()}", NOON)
        answers = [value.partition(" ")[2] for name, value in outcome.headers if name == "WWW-Authenticate"]
        self._challenge = b64decode(answers[0]) if answers and answers[0] else None
        return outcome

    def authenticate(self) -> Admitted | Denied:
        """Do the complete handshake."""
        outcome = self.next_leg()
        while isinstance(outcome, Denied) and self._challenge:
            outcome = self.next_leg()
        return outcome
