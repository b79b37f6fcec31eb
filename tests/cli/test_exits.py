"""How errors become exit codes."""

import pytest

from listener.cli.exits import reported
from listener.errors import ConfigError, ListenerError, OpeningError, Problem
from listener.journal import JournalDamagedError, JournalError

ONE = ConfigError([Problem("handlers.audit", "could not be opened")])
OTHER = ConfigError([Problem("auth.user", "is required"), Problem("mailboxes.file", "cannot read x")])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ONE, ["error: handlers.audit: could not be opened"]),
        (OTHER, ["error: auth.user: is required", "error: mailboxes.file: cannot read x"]),
        (ExceptionGroup("", [ExceptionGroup("", [ONE])]), ["error: handlers.audit: could not be opened"]),
        (
            ExceptionGroup("", [ONE, ExceptionGroup("", [OTHER])]),
            [
                "error: handlers.audit: could not be opened",
                "error: auth.user: is required",
                "error: mailboxes.file: cannot read x",
            ],
        ),
    ],
    ids=["alone", "several problems", "from a nursery", "several errors"],
)  # fmt: skip
def test_what_is_wrong_with_the_configuration_is_told_line_by_line(
    error: Exception, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, reported():
        raise error
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", "".join(f"{line}\n" for line in told))


LATE = OpeningError([Problem("handlers.store", "could not be opened")])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LATE, 1),
        (ListenerError("damaged"), 1),
        (ExceptionGroup("", [LATE, ListenerError("damaged")]), 1),
        (ExceptionGroup("", [LATE, ONE]), 2),
    ],
)
def test_what_another_start_may_mend_has_a_code_of_its_own(error: Exception, code: int) -> None:
    with pytest.raises(SystemExit) as caught, reported():
        raise error
    assert caught.value.code == code


def test_what_is_no_such_error_is_not_swallowed() -> None:
    with pytest.raises(ExceptionGroup) as caught, reported():
        raise ExceptionGroup("", [ONE, ZeroDivisionError("a fault in us")])
    assert caught.group_contains(ZeroDivisionError)


def test_without_an_error_nothing_happens(capsys: pytest.CaptureFixture[str]) -> None:
    with reported():
        pass
    assert capsys.readouterr() == ("", "")


def test_a_damaged_journal_ends_with_2_and_nothing_that_only_follows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    damaged = JournalDamagedError("/x/journal.db is damaged: no (copy it)")
    with pytest.raises(SystemExit) as ended, reported():
        raise ExceptionGroup(
            "", [JournalError("the journal is closed"), ExceptionGroup("", [damaged, damaged])]
        )
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: /x/journal.db is damaged: no (copy it)\n"
