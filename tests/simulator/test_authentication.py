import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.simulator.authentication import BasicLogin, Denied
from tests.simulator.client import basic

LOGIN = BasicLogin({"svc@contoso.example": "pass:word"}, "mail.contoso.example")


def test_the_right_password() -> None:
    assert LOGIN.check(basic("svc@contoso.example", "pass:word")) == "svc@contoso.example"
    assert (
        LOGIN.check(basic("SVC@contoso.example", "pass:word").replace("Basic", "basic"))
        == "svc@contoso.example"
    )


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Basic",
        "Basic !",
        "Basic 5Ak=",
        "Bearer abc",
        basic("svc@contoso.example", "password"),
        basic("other@contoso.example", "pass:word"),
    ],
)
def test_anything_else_is_asked_for_a_password(authorization: str | None) -> None:
    assert LOGIN.check(authorization) == Denied(('Basic realm="mail.contoso.example"',))


@given(st.text())
def test_no_header_breaks_it(authorization: str) -> None:
    assert isinstance(LOGIN.check(authorization), Denied)
