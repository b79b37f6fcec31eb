"""The stages of failures, and the totals of a report."""

import pytest

from listener.ews.codes import VERDICTS, Failure, Verdict
from listener.preflight.check import STAGES, MailboxCheck, Report, ServerCheck, stage_of
from listener.preflight.scope import Attempt, Finding

DENIED = Failure(code="ErrorImpersonateUserDenied")


@pytest.mark.parametrize(
    ("code", "stage"),
    [
        ("NameNotResolved", "resolve"),
        ("ConnectFailed", "connect"),
        ("TlsFailed", "secure"),
        ("SchemeNotOffered", "authenticate"),
        ("EwsDisabled", "speak"),
        ("ErrorImpersonateUserDenied", None),
        ("ErrorServerBusy", None),
        ("Http403", None),
        ("ErrorUnknownCode", None),
    ],
)
def test_stage_of_codes(code: str, stage: str | None) -> None:
    assert stage_of(Failure(code=code)) == stage
    assert stage is None or stage in STAGES


def test_failures_of_credentials_are_in_the_authenticate_stage() -> None:
    codes = [code for code, verdict in VERDICTS.items() if verdict is Verdict.CREDENTIALS]
    assert {stage_of(Failure(code=code)) for code in codes} == {"authenticate"}


def test_report_fails_if_any_result_is_a_failure() -> None:
    url = "https://mail.example.com/EWS"
    good = Report(
        servers=[ServerCheck(url, "svc")], mailboxes=[MailboxCheck("a", "own")], expansions={"g": 3}
    )
    assert not good.unreachable
    assert not good.refused
    good.attempts = (Attempt("ceo", Finding.REFUSED, DENIED),)
    assert not good.refused
    assert Report(servers=[ServerCheck(url, "svc", Failure(code="Http401"))]).unreachable
    assert Report(mailboxes=[MailboxCheck("a", "own", failure=DENIED)]).refused
    assert Report(expansions={"g": DENIED}).refused
    for finding in (Finding.REACHED, Finding.NOT_PROVED):
        assert Report(attempts=(Attempt("ceo", finding),)).refused
