"""The scheme that the settings ask for, and statistics."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from listener.simulator.auth import Admitted, Denied, Scheme
from listener.simulator.auth.passwords import Accounts
from listener.simulator.fault_effects import Conditions
from listener.simulator.settings import Settings

if TYPE_CHECKING:
    from listener.simulator.auth.oauth import Entra


class Authenticator:
    """What stands between a connection and Exchange. `entra` is there with OAuth only."""

    def __init__(self, settings: Settings, passwords: Mapping[str, str], conditions: Conditions) -> None:
        self.accounts = Accounts(passwords, settings.lock_after, conditions)
        self.entra: Entra | None = None
        self.mechanisms: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.scheme = self._scheme(settings, conditions)

    def _scheme(self, settings: Settings, conditions: Conditions) -> Scheme:
        # pyspnego, PyJWT and what they bring are imported by those alone who need them.
        match settings.auth:
            case "basic":
                from listener.simulator.auth.passwords import Basic

                return Basic(self.accounts, settings.host)
            case "ntlm":
                from listener.simulator.auth.windows import Ntlm

                return Ntlm(self.accounts, settings.extended_protection)
            case "negotiate":
                from listener.simulator.auth.windows import Negotiate

                return Negotiate(self.accounts, settings.extended_protection, settings.keytab)
            case "oauth":
                from listener.simulator.auth.oauth import Bearer, Entra, Registration

                lifetime = settings.token_lifetime
                self.entra = Entra(Registration(settings), self.accounts, conditions, lifetime)
                return Bearer(self.entra, conditions)

    def note(self, outcome: Admitted | Denied) -> None:
        """Count an outcome of the scheme's logins."""
        if isinstance(outcome, Admitted):
            self.mechanisms[outcome.mechanism] += outcome.proved
        elif outcome.refused is not None:
            self.refused[outcome.refused] += 1
            self.reasons[outcome.reason] += 1

    def state(self) -> dict[str, Any]:
        """`proved` counts credentials that were good, by mechanism; `refused` those that were not, by account, and
        `reasons` the same by reason; `locked` are the accounts that have locked themselves out. `tokens` are those
        that were issued, `token_errors` the AADSTS codes of those that were not."""
        entra = self.entra
        return {
            "proved": dict(self.mechanisms),
            "refused": dict(self.refused),
            "reasons": dict(self.reasons),
            "locked": self.accounts.locked,
            "tokens": entra.issued if entra else 0,
            "token_errors": {str(code): count for code, count in entra.refused.items()} if entra else {},
        }
