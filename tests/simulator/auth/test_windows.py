"""NTLM and Negotiate with pyspnego as the client; tests/system/test_independent_clients.py uses other clients."""

from base64 import b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listener.simulator.auth import Admitted, Denied, Login, challenges
from listener.simulator.auth.passwords import Accounts
from listener.simulator.auth.windows import Negotiate, Ntlm, Protection, server_end_point
from listener.simulator.fault_effects import Conditions
from listener.simulator.faults import AccountLocked
from tests.simulator.auth.accounts import USER, USERS, Client, accounts
from tests.simulator.auth.test_binding import der
from tests.simulator.client import NOON, basic

SCHEMES = ("NTLM", "Negotiate")
OFFERS = {"NTLM": challenges("NTLM"), "Negotiate": challenges("Negotiate", "NTLM")}


def connect(
    scheme: str,
    protection: Protection = "off",
    certificate: bytes | None = None,
    people: Accounts | None = None,
) -> Login:
    """Return the login of a new connection."""
    people = people or accounts()
    if scheme == "NTLM":
        return Ntlm(people, protection).login(certificate)
    return Negotiate(people, protection, None).login(certificate)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_handshake_authenticates_the_connection(scheme: str, user: str) -> None:
    login = connect(scheme)
    assert login.check(None, NOON) == Denied(OFFERS[scheme])
    client = Client(login, user, scheme=scheme)
    asked = client.next_leg()
    assert isinstance(asked, Denied)
    ((name, challenge),) = asked.headers
    assert (name, challenge.partition(" ")[0], asked.refused) == ("WWW-Authenticate", scheme, None)
    admitted = client.authenticate()
    assert isinstance(admitted, Admitted)
    assert (admitted.account, admitted.mechanism, admitted.proved) == (USER, "ntlm", True)
    assert ("Persistent-Auth", "true") in admitted.headers
    for _ in range(2):
        assert login.check(None, NOON) == Admitted(USER, "ntlm", proved=False)


def test_negotiate_accepts_bare_ntlm() -> None:
    assert isinstance(Client(connect("Negotiate"), scheme="NTLM").authenticate(), Admitted)


@pytest.mark.parametrize("slipped", [None, basic(USER, "x"), "NTLM", "NTLM !"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_request_between_the_legs_breaks_the_handshake(scheme: str, slipped: str | None) -> None:
    login = connect(scheme)
    client = Client(login, scheme=scheme)
    client.next_leg()
    assert isinstance(login.check(slipped, NOON), Denied)
    assert isinstance(client.next_leg(), Denied)
    assert isinstance(login.check(None, NOON), Denied)
    assert isinstance(Client(login, scheme=scheme).authenticate(), Admitted)


def test_legs_on_two_connections_fail() -> None:
    client = Client(connect("NTLM"))
    client.next_leg()
    client.login = connect("NTLM")
    outcome = client.next_leg()
    assert isinstance(outcome, Denied)
    assert outcome.headers == OFFERS["NTLM"]


def test_new_handshake_ends_the_old_authentication() -> None:
    login = connect("NTLM")
    assert isinstance(Client(login).authenticate(), Admitted)
    Client(login, password="wrong").authenticate()
    assert login.check(None, NOON) == Denied(OFFERS["NTLM"])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("user", "password", "refused"),
    [
        (USER, "wrong", USER),
        ("CONTOSO\\svc", "", USER),
        ("other@contoso.example", "x", "other@contoso.example"),
    ],
)
def test_wrong_credentials(scheme: str, user: str, password: str, refused: str) -> None:
    outcome = Client(connect(scheme), user, password, scheme).authenticate()
    assert outcome == Denied(OFFERS[scheme], refused, "password")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("protection", "right", "wrong", "none"),
    [("off", True, True, True), ("allow", True, False, True), ("require", True, False, False)],
)
def test_extended_protection(
    scheme: str, protection: Protection, right: bool, wrong: bool, none: bool
) -> None:
    certificate = der()
    for binding, expected in (
        (server_end_point(certificate), right),
        (server_end_point(der()), wrong),
        (None, none),
    ):
        login = connect(scheme, protection, certificate)
        outcome = Client(login, scheme=scheme, binding=binding).authenticate()
        if expected:
            assert isinstance(outcome, Admitted)
        else:
            assert outcome == Denied(OFFERS[scheme], USER, "binding")
            assert login.check(None, NOON) == Denied(OFFERS[scheme])


def test_wrong_passwords_lock_the_account_but_wrong_bindings_do_not() -> None:
    people = accounts(lock_after=3)
    unbound = connect("NTLM", "require", der(), people)
    for _ in range(5):
        Client(unbound).authenticate()
    login = connect("NTLM", people=people)
    for _ in range(2):
        Client(login, password="wrong").authenticate()
    assert isinstance(Client(login).authenticate(), Admitted)
    for _ in range(3):
        Client(login, password="wrong").authenticate()
    assert Client(login).authenticate() == Denied(OFFERS["NTLM"], USER, "locked")


def test_fault_account_locked_affects_new_logins_only() -> None:
    conditions = Conditions()
    people = accounts(conditions)
    login = connect("NTLM", people=people)
    Client(login).authenticate()
    conditions.locked = AccountLocked()
    assert isinstance(login.check(None, NOON), Admitted)
    assert isinstance(Client(connect("NTLM", people=people)).authenticate(), Denied)


@settings(max_examples=50)
@given(st.sampled_from(SCHEMES), st.lists(st.binary(max_size=80), min_size=1, max_size=3))
def test_any_token_is_handled(scheme: str, tokens: list[bytes]) -> None:
    login = connect("Negotiate")
    for token in tokens:
        assert isinstance(login.check(f"{scheme} {b64encode(token).decode()}", NOON), Denied)


@settings(max_examples=50)
@given(st.sampled_from(SCHEMES), st.integers(0, 10_000), st.integers(1, 255))
def test_any_damaged_token_is_handled(scheme: str, place: int, change: int) -> None:
    client = Client(connect("Negotiate"), scheme=scheme)
    client.next_leg()
    token = bytearray(client._context.step(client._challenge) or b"")
    token[place % len(token)] ^= change
    assert client.login.check(f"{scheme} {b64encode(token).decode()}", NOON) is not None
