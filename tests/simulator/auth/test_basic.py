import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.simulator.auth import Admitted, Denied
from listener.simulator.auth.passwords import Basic
from tests.simulator.auth.accounts import PASSWORD, USER, USERS, accounts
from tests.simulator.client import NOON, basic

CHALLENGE = (("WWW-Authenticate", 'Basic realm="mail.contoso.example"'),)


def scheme(lock_after: int = 3) -> Basic:
    return Basic(accounts(lock_after=lock_after), "mail.contoso.example")


@pytest.mark.parametrize("user", USERS)
def test_right_password(user: str) -> None:
    assert scheme().check(basic(user, PASSWORD), NOON) == Admitted(USER, "basic")


def test_scheme_name_is_case_insensitive() -> None:
    assert scheme().check(basic(USER, PASSWORD).replace("Basic", "bAsIc"), NOON) == Admitted(USER, "basic")


@pytest.mark.parametrize("authorization", [None, "", "Bearer abc", "NTLM TlRMTVNTUAAB"])
def test_missing_credentials_are_not_a_refusal(authorization: str | None) -> None:
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
def test_wrong_credentials_are_a_refusal(authorization: str, refused: str) -> None:
    assert scheme().check(authorization, NOON) == Denied(CHALLENGE, refused, "password")


def test_locked_account_with_the_right_password() -> None:
    locking = scheme(lock_after=2)
    for _ in range(2):
        locking.check(basic(USER, "wrong"), NOON)
    assert locking.check(basic(USER, PASSWORD), NOON) == Denied(CHALLENGE, USER, "locked")


@given(st.text())
def test_any_header_is_handled(authorization: str) -> None:
    assert isinstance(scheme().check(authorization, NOON), Denied)
