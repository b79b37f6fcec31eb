"""The authentication scheme that the settings select, and statistics."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from listener.simulator.auth import Admitted, Denied, Scheme
from listener.simulator.auth.passwords import Accounts, Basic
from listener.simulator.fault_effects import Conditions
from listener.simulator.settings import Settings

if TYPE_CHECKING:
    from listener.simulator.auth.oauth import Entra


class Authenticator:
    """Authenticates connections to Exchange. `entra` is None without OAuth."""

    def __init__(self, settings: Settings, passwords: Mapping[str, str], conditions: Conditions) -> None:
        self.accounts = Accounts(passwords, settings.lock_after, conditions)
        self.entra: Entra | None = None
        self.mechanisms: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.scheme = self._scheme(settings, conditions)

    def _scheme(self, settings: Settings, conditions: Conditions) -> Scheme:
        # pyspnego and PyJWT are slow to import, so the schemes that need them are imported only if they are used.
        match settings.auth:
            case "basic":
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
        """Count the result of a login."""
        if isinstance(outcome, Admitted):
            self.mechanisms[outcome.mechanism] += outcome.proved
        elif outcome.refused is not None:
            self.refused[outcome.refused] += 1
            self.reasons[outcome.reason] += 1

    def state(self) -> dict[str, Any]:
        """Return statistics for the control API.

        `proved` counts accepted credentials by mechanism, `refused` refused ones by account, `reasons` the
        same by reason. `locked` are the accounts with too many refusals. `tokens` counts issued tokens,
        `token_errors` AADSTS codes.
        """
        entra = self.entra
        return {
            "proved": dict(self.mechanisms),
            "refused": dict(self.refused),
            "reasons": dict(self.reasons),
            "locked": self.accounts.locked,
            "tokens": entra.issued if entra else 0,
            "token_errors": {str(code): count for code, count in entra.refused.items()} if entra else {},
        }
