"""The table of verdicts."""

import pytest

from listener.ews import codes
from listener.ews.codes import VERDICTS, Failure, Verdict


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("ErrorServerBusy", Verdict.WAIT),
        ("ErrorExceededConnectionCount", Verdict.WAIT),
        ("Http429", Verdict.WAIT),
        ("ErrorInternalServerTransientError", Verdict.RETRY),
        ("ErrorNewEventStreamConnectionOpened", Verdict.RETRY),
        ("Http503", Verdict.RETRY),
        ("StreamSilent", Verdict.RETRY),
        ("ErrorSubscriptionNotFound", Verdict.RESUBSCRIBE),
        ("ErrorMissedNotificationEvents", Verdict.RESUBSCRIBE),
        ("ErrorProxyRequestNotAllowed", Verdict.REGROUP),
        ("Http404", Verdict.REGROUP),
        ("ErrorNonExistentMailbox", Verdict.SUSPEND),
        ("InvalidUser", Verdict.SUSPEND),
        ("Http401", Verdict.CREDENTIALS),
        ("ErrorInvalidSyncStateData", Verdict.RESYNC),
        ("ErrorSchemaValidation", Verdict.STOP),
        ("EwsDisabled", Verdict.STOP),
        ("ErrorOfAnotherDay", Verdict.RETRY),
    ],
)
def test_verdicts(code: str, verdict: Verdict) -> None:
    assert Failure(code=code).verdict is verdict


def test_no_code_has_two_verdicts() -> None:
    tables = (codes._EXCHANGE, codes._AUTODISCOVER, codes._SOAP, codes._HTTP, codes._ENTRA, codes._LISTENER)
    assert sum(len(names) for table in tables for names in table.values()) == len(VERDICTS)


def test_every_verdict_is_used() -> None:
    assert set(VERDICTS.values()) == set(Verdict)


def test_failure_as_text_has_code_and_reason() -> None:
    assert str(Failure(code="Http503", text="no")) == "Http503: no"
    assert str(Failure(code="Http503")) == "Http503"
