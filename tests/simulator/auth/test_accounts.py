import pytest

from listener.simulator.fault_effects import Conditions
from listener.simulator.faults import AccountLocked
from tests.simulator.auth.accounts import PASSWORD, USER, USERS, accounts


@pytest.mark.parametrize("name", USERS)
def test_find_by_each_name(name: str) -> None:
    assert accounts().find(name) == USER


@pytest.mark.parametrize("name", ["", "svc", "\\svc", "FABRIKAM\\svc", "svc@fabrikam.example", "CONTOSO\\"])
def test_unknown_names(name: str) -> None:
    assert accounts().find(name) is None


def test_consecutive_refusals_lock_the_account() -> None:
    people = accounts(lock_after=3)
    for _ in range(2):
        people.refuse(USER)
    people.admit(USER)
    for _ in range(2):
        people.refuse(USER)
    assert not people.is_locked(USER)
    people.refuse(USER)
    assert people.is_locked(USER)
    assert people.locked == [USER]
    assert people.password_matches(USER, PASSWORD)


def test_lockout_can_be_disabled() -> None:
    people = accounts(lock_after=0)
    for _ in range(100):
        people.refuse(USER)
    assert not people.is_locked(USER)


def test_fault_locks_all_accounts() -> None:
    conditions = Conditions()
    people = accounts(conditions)
    conditions.locked = fault = AccountLocked()
    assert people.is_locked(USER)
    conditions.clear(fault)
    assert not people.is_locked(USER)
