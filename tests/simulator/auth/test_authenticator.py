from listener.simulator.auth import Admitted, Denied
from listener.simulator.auth.authenticator import Authenticator
from listener.simulator.fault_effects import Conditions
from listener.simulator.settings import Settings
from tests.simulator.auth.accounts import PASSWORD, USER, Client
from tests.simulator.client import NOON, basic


def authenticator(**settings: object) -> Authenticator:
    return Authenticator(Settings(**settings), {USER: PASSWORD}, Conditions())  # type: ignore[arg-type]


def test_each_setting_has_its_scheme() -> None:
    offers = {
        kind: authenticator(auth=kind).scheme.login(None).check(None, NOON).headers[0][1].partition(" ")[0]
        for kind in ("basic", "ntlm", "negotiate", "oauth")
    }
    assert offers == {"basic": "Basic", "ntlm": "NTLM", "negotiate": "Negotiate", "oauth": "Bearer"}
    assert authenticator().entra is None


def test_credentials_are_counted_but_not_requests() -> None:
    here = authenticator(auth="ntlm", lock_after=2)
    login = here.scheme.login(None)

    class Counted:
        def check(self, authorization: str | None, now: float) -> Admitted | Denied:
            outcome = login.check(authorization, now)
            here.note(outcome)
            return outcome

    for _ in range(2):
        Client(Counted()).authenticate()
        Counted().check(None, NOON)
    for _ in range(2):
        Client(Counted(), password="wrong").authenticate()
    Client(Counted()).authenticate()
    assert here.state() == {
        "proved": {"ntlm": 2},
        "refused": {USER: 3},
        "reasons": {"password": 2, "locked": 1},
        "locked": [USER],
        "tokens": 0,
        "token_errors": {},
    }


def test_state_has_entra_statistics() -> None:
    here = authenticator(auth="oauth")
    assert here.entra
    here.entra.handle("POST", "/missing/oauth2/v2.0/token", b"", NOON)
    here.note(here.scheme.login(None).check(basic(USER, PASSWORD), NOON))
    assert here.state() | {"proved": {}} == {
        "proved": {},
        "refused": {},
        "reasons": {},
        "locked": [],
        "tokens": 0,
        "token_errors": {"90002": 1},
    }
