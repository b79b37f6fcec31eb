"""Failures of HTTP replies."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.ews.codes import Failure, Verdict
from listener.ews.http import http_failure
from tests.ews.samples import back_off, fault, refused, subscribed

NOW = datetime(2024, 5, 14, 9, 30, tzinfo=UTC)


def failure(status: int, body: bytes = b"", **headers: str) -> Failure:
    return http_failure(status, {name.replace("_", "-"): value for name, value in headers.items()}, body, NOW)


def test_status_without_a_body() -> None:
    assert failure(502) == Failure(code="Http502", status=502, text="")


def test_code_in_the_body_takes_precedence_over_the_status() -> None:
    assert failure(500, fault(text="Busy.")) == Failure(code="ErrorServerBusy", status=500, text="Busy.")
    said = failure(500, refused("Subscribe", "ErrorAccessDenied"))
    assert said == Failure(code="ErrorAccessDenied", status=500, text="No.")


def test_fault_with_status_200() -> None:
    assert failure(200, fault()).code == "ErrorServerBusy"


@pytest.mark.parametrize("status", [401, 500, 503])
@pytest.mark.parametrize("faultcode", ["s:Client", "s:Server", ""])
def test_status_takes_precedence_over_a_generic_fault(status: int, faultcode: str) -> None:
    said = failure(status, fault(None, faultcode=faultcode, text="Went wrong."))
    assert said == Failure(code=f"Http{status}", status=status, text="Went wrong.")


def test_successful_body_with_an_error_status_is_a_failure() -> None:
    assert failure(500, subscribed()).code == "Http500"


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Tue, 14 May 2024 09:31:30 GMT", 90.0),
        ("Tue, 14 May 2024 09:31:30 -0000", 90.0),
        ("Tue, 14 May 2024 11:30:01 +0200", 1.0),
        ("Tue, 14 May 2024 08:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_retry_after(value: str, wait: float | None) -> None:
    assert failure(503, retry_after=value).wait == wait


@given(st.text() | st.from_regex(r"\w{3}, \d+ \w{3} \d+ \d+:\d+:\d+ [+-]\d{4}"))
def test_no_retry_after_raises(value: str) -> None:
    wait = failure(503, retry_after=value).wait
    assert wait is None or wait >= 0


def test_wait_of_the_body_takes_precedence_over_retry_after() -> None:
    assert failure(503, fault(values=back_off(2500)), Retry_After="60").wait == 2.5
    assert failure(503, fault(), Retry_After="60").wait == 60.0


def test_ews_disabled() -> None:
    said = failure(403, b"<html><title>403</title></html>", x_ews_policy_reason="EwsBlocked")
    assert said.code == "EwsDisabled"
    assert said.text == ("EWS is switched off for this tenant or application: EwsBlocked; an HTML page: 403")
    assert failure(403).code == "Http403"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_has_its_location(status: int) -> None:
    said = failure(status, Location="/owa/error.aspx")
    assert said.code == f"Http{status}"
    assert said.text == "redirected to /owa/error.aspx"
    assert said.location == "/owa/error.aspx"


def test_redirect_with_x_ms_location() -> None:
    said = failure(451, X_MS_Location="https://pod2.example.org/ews", Location="x")
    assert said.location == "https://pod2.example.org/ews"
    assert failure(302).text == "redirect without a target"


@pytest.mark.parametrize(
    ("challenge", "text"),
    [
        ('Negotiate, NTLM, Basic realm="mail.example.org"', "the server offers Negotiate, NTLM, Basic"),
        ('Bearer realm="", client_id="0000", error="invalid_token"', "the server offers Bearer"),
        ("NTLM", "the server offers NTLM"),
        ("", ""),
    ],
)
def test_offered_authentication_schemes(challenge: str, text: str) -> None:
    assert failure(401, WWW_Authenticate=challenge).text == text


def test_diagnostics_without_a_body() -> None:
    said = failure(401, x_ms_diagnostics='2000003;reason="The audience claim value is invalid.";')
    assert said.text == '2000003;reason="The audience claim value is invalid.";'


def test_excerpt_of_a_body_that_is_not_soap() -> None:
    assert failure(503, b"no healthy upstream").text == "no healthy upstream"
    assert failure(502, b"<html><head><title>502 Bad Gateway</title>").text == "an HTML page: 502 Bad Gateway"


@pytest.mark.parametrize("status", [456, 457])
def test_accounts_that_cannot_sign_in(status: int) -> None:
    found = failure(status)
    assert found.verdict is Verdict.CREDENTIALS
    assert ("blocked" if status == 456 else "multi-factor") in found.text


@pytest.mark.parametrize("code", ["UserNotFound", "MailboxGuidWithDomainNotFound", "usernotfound"])
def test_mailbox_unknown_to_the_front_end(code: str) -> None:
    found = failure(404, X_CasErrorCode=code)
    assert found.code.lower() == code.lower()
    assert found.verdict is Verdict.SUSPEND
    assert failure(404, X_CasErrorCode="ServerNotFound").code == "Http404"
    assert "ServerNotFound" in failure(404, X_CasErrorCode="ServerNotFound").text


@pytest.mark.parametrize("body", [b"", fault(), b"<html/>"])
@pytest.mark.parametrize("status", [401, 403, 500])
def test_diagnostics_are_part_of_the_text(status: int, body: bytes) -> None:
    diagnostics = '2000003;reason="The audience is invalid.";error_category="invalid_resource"'
    assert "The audience is invalid." in failure(status, body, x_ms_diagnostics=diagnostics).text


HEADERS = (
    "date", "retry-after", "location", "x-ms-location", "www-authenticate", "x-caserrorcode", "x-ms-diagnostics",
    "x-ews-policy-reason",
)  # fmt: skip


@given(
    status=st.integers(300, 599),
    headers=st.dictionaries(
        st.sampled_from(HEADERS),
        st.text(),
    ),
    body=st.binary(),
)
def test_any_reply_is_a_failure(status: int, headers: dict[str, str], body: bytes) -> None:
    http_failure(status, headers, body, NOW)
