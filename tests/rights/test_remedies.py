"""Every refusal has a cause and something that mends it."""

import pytest

from listener.ews.codes import VERDICTS, Failure, Verdict
from listener.rights.remedies import REMEDIES, remedy

REFUSALS = [
    code for code, verdict in VERDICTS.items() if code.startswith("Error") and verdict is Verdict.PARK
]


@pytest.mark.parametrize(
    "code", [*REFUSALS, "Http401", "Http403", "EwsDisabled", "TlsFailed", "ErrorServerBusy"]
)
def test_each_has_both(code: str) -> None:
    cause, mend = remedy(Failure(code=code))
    assert cause.endswith(".")
    assert mend


def test_it_is_told_for_this_mailbox_and_this_account() -> None:
    cause, mend = remedy(
        Failure(code="ErrorFolderNotFound"), mailbox="anna@example.org", account="svc@example.org"
    )
    assert "permission" in cause
    assert (
        mend
        == "Add-MailboxFolderPermission anna@example.org:\\FOLDER -User svc@example.org -AccessRights Reviewer"
    )


def test_only_codes_that_there_are_have_one() -> None:
    assert set(REMEDIES) - set(VERDICTS) <= {"ErrorItemNotFound"}
