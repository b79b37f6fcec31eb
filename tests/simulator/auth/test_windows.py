"""NTLM and Negotiate against the client's end of pyspnego; strangers come in tests/system/test_strangers.py."""

from base64 import b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listener.simulator.auth import Admitted, Denied, Login, challenges
from listener.simulator.auth.passwords import Accounts
from listener.simulator.auth.windows import Negotiate, Ntlm, Protection, server_end_point
from listener.simulator.fault_effects import Conditions
from listener.simulator.faults import AccountLocked
from tests.simulator.auth.people import USER, USERS, Client, accounts
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
    """A new connection's login."""
    people = people or accounts()
    if scheme == "NTLM":
        return Ntlm(people, protection).login(certificate)
    return Negotiate(people, protection, None).login(certificate)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_handshake_admits_the_connection(scheme: str, user: str) -> None:
    login = connect(scheme)
    assert login.check(None, NOON) == Denied(OFFERS[scheme])
    client = Client(login, user, scheme=scheme)
    asked = client.leg()
    assert isinstance(asked, Denied)
    ((name, challenge),) = asked.headers
    assert (name, challenge.partition(" ")[0], asked.refused) == ("WWW-Authenticate", scheme, None)
    admitted = client.come_in()
    assert isinstance(admitted, Admitted)
    assert (admitted.account, admitted.mechanism, admitted.proved) == (USER, "ntlm", True)
    assert ("Persistent-Auth", "true") in admitted.headers
    for _ in range(2):
        assert login.check(None, NOON) == Admitted(USER, "ntlm", proved=False)


def test_negotiate_takes_bare_ntlm_too() -> None:
    assert isinstance(Client(connect("Negotiate"), scheme="NTLM").come_in(), Admitted)


@pytest.mark.parametrize("slipped", [None, basic(USER, "x"), "NTLM", "NTLM !"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_request_between_the_legs_breaks_the_handshake(scheme: str, slipped: str | None) -> None:
    login = connect(scheme)
    client = Client(login, scheme=scheme)
    client.leg()
    assert isinstance(login.check(slipped, NOON), Denied)
    assert isinstance(client.leg(), Denied)
    assert isinstance(login.check(None, NOON), Denied)
    assert isinstance(Client(login, scheme=scheme).come_in(), Admitted)


def test_legs_on_two_connections_are_no_handshake() -> None:
    client = Client(connect("NTLM"))
    client.leg()
    client.login = connect("NTLM")
    outcome = client.leg()
    assert isinstance(outcome, Denied)
    assert outcome.headers == OFFERS["NTLM"]


def test_a_new_handshake_forgets_who_it_was() -> None:
    login = connect("NTLM")
    assert isinstance(Client(login).come_in(), Admitted)
    Client(login, password="wrong").come_in()
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
    outcome = Client(connect(scheme), user, password, scheme).come_in()
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
        outcome = Client(login, scheme=scheme, binding=binding).come_in()
        if expected:
            assert isinstance(outcome, Admitted)
        else:
            assert outcome == Denied(OFFERS[scheme], USER, "binding")
            assert login.check(None, NOON) == Denied(OFFERS[scheme])


def test_refusals_lock_the_account_and_a_wrong_channel_does_not() -> None:
    people = accounts(lock_after=3)
    unbound = connect("NTLM", "require", der(), people)
    for _ in range(5):
        Client(unbound).come_in()
    login = connect("NTLM", people=people)
    for _ in range(2):
        Client(login, password="wrong").come_in()
    assert isinstance(Client(login).come_in(), Admitted)
    for _ in range(3):
        Client(login, password="wrong").come_in()
    assert Client(login).come_in() == Denied(OFFERS["NTLM"], USER, "locked")


def test_a_fault_locks_whoever_comes_and_nobody_who_is_in() -> None:
    conditions = Conditions()
    people = accounts(conditions)
    login = connect("NTLM", people=people)
    Client(login).come_in()
    conditions.locked = AccountLocked()
    assert isinstance(login.check(None, NOON), Admitted)
    assert isinstance(Client(connect("NTLM", people=people)).come_in(), Denied)


@settings(max_examples=50)
@given(st.sampled_from(SCHEMES), st.lists(st.binary(max_size=80), min_size=1, max_size=3))
def test_no_token_breaks_it(scheme: str, tokens: list[bytes]) -> None:
    login = connect("Negotiate")
    for token in tokens:
        assert isinstance(login.check(f"{scheme} {b64encode(token).decode()}", NOON), Denied)


@settings(max_examples=50)
@given(st.sampled_from(SCHEMES), st.integers(0, 10_000), st.integers(1, 255))
def test_no_damage_breaks_it(scheme: str, place: int, change: int) -> None:
    client = Client(connect("Negotiate"), scheme=scheme)
    client.leg()
    token = bytearray(client._context.step(client._heard) or b"")
    token[place % len(token)] ^= change
    assert client.login.check(f"{scheme} {b64encode(token).decode()}", NOON) is not None
