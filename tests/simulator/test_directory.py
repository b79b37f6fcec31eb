from collections import Counter

from listener.simulator.directory import Directory, grouping
from listener.simulator.settings import Settings


def test_thousands_of_unique_addresses() -> None:
    directory = Directory(Settings(mailboxes=10_000, backends=10), 0.0)
    assert len({mailbox.address for mailbox in directory}) == 10_000
    shares = Counter(directory.home(mailbox) for mailbox in directory)
    assert len(shares) == 10
    assert min(shares.values()) > 800


def test_same_seed_makes_the_same_organization() -> None:
    first, second, other = (Directory(Settings(seed=seed), 0.0) for seed in (1, 1, 2))
    assert first.homes == second.homes
    assert [m.guid for m in first] == [m.guid for m in second]
    assert [m.guid for m in first] != [m.guid for m in other]


def test_find_by_address_sid_and_guid() -> None:
    directory = Directory(Settings(), 0.0)
    mailbox = next(iter(directory))
    for name in (mailbox.address.upper(), directory.sid(mailbox).upper(), str(mailbox.guid)):
        assert directory.find(name) is mailbox
    assert directory.find("unknown@contoso.example") is None


def test_management_scope() -> None:
    settings = Settings()
    directory = Directory(settings, 0.0)
    outsider = directory.find(directory.outsider)
    assert outsider is not None
    assert outsider not in list(directory)
    assert not directory.may_impersonate(settings.user, outsider)
    assert all(directory.may_impersonate(settings.user, mailbox) for mailbox in directory)
    assert not directory.may_impersonate(outsider.address, next(iter(directory)))


def test_grouping_differs_between_back_ends() -> None:
    directory = Directory(Settings(backends=4), 0.0)
    assert len({grouping(backend) for backend in directory.backends}) == 4
