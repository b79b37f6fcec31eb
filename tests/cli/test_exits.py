"""Mapping of errors to exit codes."""

import pytest

from listener.cli.exits import exit_on_errors
from listener.errors import ConfigError, ListenerError, OpeningError, Problem
from listener.journal import JournalDamagedError, JournalError

ONE = ConfigError([Problem("handlers.audit", "could not be opened")])
OTHER = ConfigError([Problem("auth.user", "is required"), Problem("mailboxes.file", "cannot read x")])


@pytest.mark.parametrize(
    ("error", "lines"),
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
def test_configuration_problems_are_printed_one_per_line(
    error: Exception, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, exit_on_errors():
        raise error
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", "".join(f"{line}\n" for line in lines))


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
def test_errors_that_a_restart_may_fix_exit_with_code_1(error: Exception, code: int) -> None:
    with pytest.raises(SystemExit) as caught, exit_on_errors():
        raise error
    assert caught.value.code == code


def test_other_exceptions_are_not_caught() -> None:
    with pytest.raises(ExceptionGroup) as caught, exit_on_errors():
        raise ExceptionGroup("", [ONE, ZeroDivisionError("a bug")])
    assert caught.group_contains(ZeroDivisionError)


def test_without_an_error_nothing_happens(capsys: pytest.CaptureFixture[str]) -> None:
    with exit_on_errors():
        pass
    assert capsys.readouterr() == ("", "")


def test_damaged_journal_exits_with_2_and_hides_consequential_errors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    damaged = JournalDamagedError("/x/journal.db is damaged: no (copy it)")
    with pytest.raises(SystemExit) as caught, exit_on_errors():
        raise ExceptionGroup(
            "", [JournalError("the journal is closed"), ExceptionGroup("", [damaged, damaged])]
        )
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: /x/journal.db is damaged: no (copy it)\n"
