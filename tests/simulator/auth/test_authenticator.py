from listener.simulator.auth import Admitted, Denied
from listener.simulator.auth.authenticator import Authenticator
from listener.simulator.fault_effects import Conditions
from listener.simulator.settings import Settings
from tests.simulator.auth.people import PASSWORD, USER, Client
from tests.simulator.client import NOON, basic


def authenticator(**settings: object) -> Authenticator:
    return Authenticator(Settings(**settings), {USER: PASSWORD}, Conditions())  # type: ignore[arg-type]


def test_each_kind_has_its_scheme() -> None:
    offers = {
        kind: authenticator(auth=kind).scheme.login(None).check(None, NOON).headers[0][1].partition(" ")[0]
        for kind in ("basic", "ntlm", "negotiate", "oauth")
    }
    assert offers == {"basic": "Basic", "ntlm": "NTLM", "negotiate": "Negotiate", "oauth": "Bearer"}
    assert authenticator().entra is None


def test_credentials_are_counted_and_requests_are_not() -> None:
    here = authenticator(auth="ntlm", lock_after=2)
    login = here.scheme.login(None)

    class Counted:
        def check(self, authorization: str | None, now: float) -> Admitted | Denied:
            outcome = login.check(authorization, now)
            here.note(outcome)
            return outcome

    for _ in range(2):
        Client(Counted()).come_in()
        Counted().check(None, NOON)
    for _ in range(2):
        Client(Counted(), password="wrong").come_in()
    Client(Counted()).come_in()
    assert here.state() == {
        "proved": {"ntlm": 2},
        "refused": {USER: 3},
        "reasons": {"password": 2, "locked": 1},
        "locked": [USER],
        "tokens": 0,
        "token_errors": {},
    }


def test_what_entra_did_is_told_too() -> None:
    here = authenticator(auth="oauth")
    assert here.entra
    here.entra.handle("POST", "/nowhere/oauth2/v2.0/token", b"", NOON)
    here.note(here.scheme.login(None).check(basic(USER, PASSWORD), NOON))
    assert here.state() | {"proved": {}} == {
        "proved": {},
        "refused": {},
        "reasons": {},
        "locked": [],
        "tokens": 0,
        "token_errors": {"90002": 1},
    }
