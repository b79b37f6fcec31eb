"""The server's end of Kerberos, by libkrb5: its own SPNEGO included, so that it is not pyspnego on both sides."""

from pathlib import Path
from typing import Any

from listener.simulator.auth.accounts import Accounts
from listener.simulator.auth.binding import Binding
from listener.simulator.auth.connection import Refusal

_CHANNEL_BOUND = 2048
"""GSS_C_CHANNEL_BOUND_FLAG: the client has sent bindings, and they are ours."""


def load_key(keytab: Path) -> Any:
    """What accepts tickets: gssapi.Credentials. OSError: the file has no keys, or Kerberos is not installed."""
    try:
        import gssapi
    except ImportError:
        raise OSError("a keytab needs Kerberos: pip install 'ews-listener[kerberos]'") from None
    try:
        return gssapi.Credentials(usage="accept", store={"keytab": str(keytab)})
    except gssapi.exceptions.GSSError as error:
        raise OSError(f"no key in {keytab}: {error}") from None


class KerberosAcceptor:
    """One handshake; it takes one leg."""

    mechanism = "kerberos"

    def __init__(self, accounts: Accounts, binding: Binding, key: Any) -> None:
        import gssapi

        self._accounts = accounts
        self._bound = binding.required
        bindings = None
        if binding.data is not None:
            bindings = gssapi.raw.ChannelBindings(application_data=binding.data)
        self._context = gssapi.SecurityContext(creds=key, usage="accept", channel_bindings=bindings)
        self.account: str | None = None

    def step(self, token: bytes) -> bytes | None:
        import gssapi

        answer: bytes | None = None
        try:
            answer = self._context.step(token)
            complete = self._context.complete  # an error that comes with a token is raised here, not by step
        except gssapi.exceptions.BadChannelBindingsError:
            raise Refusal("", "binding", answer) from None
        except gssapi.exceptions.GSSError:
            raise Refusal("", "ticket", answer) from None
        if complete:
            name = str(self._context.initiator_name)
            account = self._accounts.find(name)
            if account is None:
                raise Refusal(name, "ticket")
            if self._bound and not int(self._context.actual_flags) & _CHANNEL_BOUND:
                raise Refusal(account, "binding")
            self.account = account
        return answer
