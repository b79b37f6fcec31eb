import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.simulator.auth import Admitted, Denied
from listener.simulator.auth.passwords import Basic
from tests.simulator.auth.people import PASSWORD, USER, USERS, accounts
from tests.simulator.client import NOON, basic

CHALLENGE = (("WWW-Authenticate", 'Basic realm="mail.contoso.example"'),)


def scheme(lock_after: int = 3) -> Basic:
    return Basic(accounts(lock_after=lock_after), "mail.contoso.example")


@pytest.mark.parametrize("user", USERS)
def test_the_right_password(user: str) -> None:
    assert scheme().check(basic(user, PASSWORD), NOON) == Admitted(USER, "basic")


def test_the_name_of_the_scheme_is_in_any_case() -> None:
    assert scheme().check(basic(USER, PASSWORD).replace("Basic", "bAsIc"), NOON) == Admitted(USER, "basic")


@pytest.mark.parametrize("authorization", [None, "", "Bearer abc", "NTLM TlRMTVNTUAAB"])
def test_no_password_is_no_refusal(authorization: str | None) -> None:
    assert scheme().check(authorization, NOON) == Denied(CHALLENGE)


@pytest.mark.parametrize(
    ("authorization", "refused"),
    [
        ("Basic", ""),
        ("Basic !", ""),
        ("Basic 5Ak=", ""),
        (basic(USER, "password"), USER),
        (basic("CONTOSO\\svc", ""), USER),
        (basic("other@contoso.example", PASSWORD), "other@contoso.example"),
    ],
)
def test_a_wrong_one_is(authorization: str, refused: str) -> None:
    assert scheme().check(authorization, NOON) == Denied(CHALLENGE, refused, "password")


def test_a_locked_account_is_refused_with_the_right_password() -> None:
    locking = scheme(lock_after=2)
    for _ in range(2):
        locking.check(basic(USER, "wrong"), NOON)
    assert locking.check(basic(USER, PASSWORD), NOON) == Denied(CHALLENGE, USER, "locked")


@given(st.text())
def test_no_header_breaks_it(authorization: str) -> None:
    assert isinstance(scheme().check(authorization, NOON), Denied)
