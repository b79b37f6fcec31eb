"""Restore of checkpoints under the present configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from listener.access import AccessKind
from listener.exchange.cookies import Cookie
from listener.groups.affinity import duplicates, groups
from listener.groups.checkpoint import (
    DAY,
    GroupCheckpoint,
    LastSeen,
    RestoredGroup,
    SubscriptionCheckpoint,
    last_seen,
    restored,
)
from listener.groups.group import SavedSubscriptions
from listener.placement import Placement

EWS = "https://mail.example/EWS"
COOKIE = Cookie(name="X-BackEndOverrideCookie", value="BE1~1", domain="mail.example", path="/")


def saved(name: str = "DAG1/1", **fields: Any) -> GroupCheckpoint:
    """Return a checkpoint of ann, bob and cat; cat had no subscription."""
    group = GroupCheckpoint(
        name=name,
        ews_url=EWS,
        grouping_information="DAG1",
        access="impersonation",
        closed=False,
        anchor="ann",
        owner="us",
        members={
            "ann": SubscriptionCheckpoint("1", "all"),
            "bob": SubscriptionCheckpoint("2", "all"),
            "cat": None,
        },
        cookies=(COOKIE,),
    )
    return msgspec.structs.replace(group, **fields)


@dataclass
class Present:
    """The present configuration."""

    placements: Mapping[str, Placement | None] = field(
        default_factory=lambda: dict.fromkeys(("ann", "bob", "cat"))
    )
    kinds: dict[str, AccessKind] = field(default_factory=dict)
    owner: str = "us"
    specs: dict[str, str] = field(default_factory=dict)
    size: int = 200

    def restore(self, *groups: GroupCheckpoint) -> list[RestoredGroup]:
        return restored(
            groups,
            self.placements,
            kind_of=lambda mailbox: self.kinds.get(mailbox, "impersonation"),
            owner=lambda _url: self.owner,
            spec=lambda mailbox: self.specs.get(mailbox, "all"),
            size=self.size,
        )


def test_an_unchanged_configuration_restores_all() -> None:
    (one,) = Present().restore(saved())
    assert one.group.name == "DAG1/1"
    assert one.group.affinity_key == (EWS, "DAG1", "impersonation")
    assert one.group.mailboxes == ("ann", "bob", "cat")
    assert one.saved == SavedSubscriptions("ann", {"ann": "1", "bob": "2"})
    assert one.cookies == (COOKIE,)


def test_a_removed_mailbox_is_unsubscribed() -> None:
    (one,) = Present(placements={"bob": None}).restore(saved())
    assert one.group.mailboxes == ("bob",)
    assert one.saved == SavedSubscriptions("ann", {"bob": "2"}, (("ann", "1"),))


def test_a_group_without_present_mailboxes_is_restored_to_unsubscribe() -> None:
    (one,) = Present(placements={}).restore(saved())
    assert one.group.mailboxes == ()
    assert one.saved.abandoned == (("ann", "1"), ("bob", "2"))
    assert Present(placements={}).restore(saved(members={"cat": None})) == []


def test_a_mailbox_with_another_spec_stays_in_the_group_and_is_subscribed_again() -> None:
    (one,) = Present(specs={"ann": "inbox only"}).restore(saved())
    assert one.group.mailboxes == ("ann", "bob", "cat")
    assert one.saved == SavedSubscriptions("ann", {"bob": "2"}, (("ann", "1"),))


def test_another_account_restores_nothing() -> None:
    assert Present(owner="another").restore(saved()) == []


def test_a_configured_mailbox_stays_only_with_the_same_placement() -> None:
    here, there = Placement(EWS, "DAG1", "ann"), Placement(EWS, "DAG2", "bob")
    (one,) = Present(placements={"ann": here, "bob": there}).restore(saved())
    assert one.group.mailboxes == ("ann",)
    assert one.saved == SavedSubscriptions("ann", {"ann": "1"}, (("bob", "2"),))


def test_a_mailbox_with_another_access_type_leaves() -> None:
    (one,) = Present(kinds={"bob": "delegate"}).restore(saved())
    assert one.group.mailboxes == ("ann", "cat")
    assert one.saved.abandoned == (("bob", "2"),)


def test_a_group_above_the_present_size_is_reduced() -> None:
    (one,) = Present(size=1).restore(saved())
    assert one.group.mailboxes == ("ann",)
    assert one.saved == SavedSubscriptions("ann", {"ann": "1"}, (("bob", "2"),))


def test_no_mailbox_is_in_two_groups() -> None:
    first, second = Present().restore(
        saved(),
        saved(
            "DAG1/2",
            members={"bob": SubscriptionCheckpoint("9", "all"), "cat": SubscriptionCheckpoint("8", "all")},
        ),
    )
    assert first.group.mailboxes == ("ann", "bob", "cat")
    assert second.group.mailboxes == ()
    assert second.saved.abandoned == (("bob", "9"), ("cat", "8"))


def test_an_id_of_two_mailboxes_of_one_server_is_used_for_neither() -> None:
    one, two, elsewhere = Present(placements=dict.fromkeys(("ann", "bob", "dan", "eve"))).restore(
        saved(),
        saved("DAG1/2", members={"dan": SubscriptionCheckpoint("1", "all")}),
        saved(
            "DAG2/1", ews_url="https://other.example/EWS", members={"eve": SubscriptionCheckpoint("1", "all")}
        ),
    )
    assert one.saved == SavedSubscriptions("ann", {"bob": "2"})
    assert two.saved == SavedSubscriptions("ann", {})
    assert elsewhere.saved.subscriptions == {"eve": "1"}


def test_groups_and_access_types_do_not_matter_for_an_id_of_two_mailboxes() -> None:
    """A server has one list of ids: after its restart, a delegated mailbox got the id of the account's own one."""
    present = Present(placements=dict.fromkeys(("me", "dan")), kinds={"me": "own", "dan": "delegate"})
    mine, theirs = present.restore(
        saved("A/1", access="own", members={"me": SubscriptionCheckpoint("5", "all")}),
        saved(
            "B/1",
            grouping_information="B",
            access="delegate",
            members={"dan": SubscriptionCheckpoint("5", "all")},
        ),
    )
    assert (mine.saved.subscriptions, theirs.saved.subscriptions) == ({}, {})


def test_a_closed_group_is_restored_only_with_subscriptions() -> None:
    (one,) = Present().restore(saved(closed=True))
    assert one.group.closed
    (two,) = Present(specs=dict.fromkeys(("ann", "bob"), "inbox")).restore(saved(closed=True))
    assert two.group.mailboxes == ()


def test_last_seen_of_mailboxes() -> None:
    moments = LastSeen(groups={"DAG1/1": 1000.0}, missing_since={"ann": 400.0, "dan": 300.0})
    # cat never had a stream; dan has no group.
    assert last_seen([saved()], moments, now=2000.0) == {"ann": 400.0, "bob": 1000.0, "dan": 300.0}
    assert last_seen([saved("DAG1/2")], LastSeen(), now=2000.0) == {}


def test_a_clock_that_was_set_back_gives_gaps_of_one_day() -> None:
    moments = LastSeen(groups={"DAG1/1": 1_000_000.0})
    assert last_seen([saved()], moments, now=996_400.0)["bob"] == 996_400.0 - DAY


def test_no_cookie_shows_its_value() -> None:
    assert "BE1" not in repr(saved())


@given(
    st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=5),
    st.dictionaries(st.integers(0, 30), st.sampled_from([None, "DAG1", "DAG2"])),
    st.integers(1, 8),
)
def test_after_a_restart_each_mailbox_is_in_one_group(
    members: list[list[int]], wanted: dict[int, str | None], size: int
) -> None:
    """Any checkpoint, and any present placements and group size."""
    placements = {
        f"user{n:02}": None if place is None else Placement(EWS, place, f"user{n:02}")
        for n, place in wanted.items()
    }
    records = [
        saved(
            f"DAG1/{number}",
            members={f"user{n:02}": SubscriptionCheckpoint(f"{number}.{n}", "all") for n in numbers},
        )
        for number, numbers in enumerate(members)
    ]
    found = Present(placements=placements, size=size).restore(*records)
    existing = tuple(one.group for one in found if one.group.mailboxes)
    homes = {m for group in existing for m in group.mailboxes}
    known = [place for place in placements.values() if place is not None]
    after = groups([place for place in known if place.mailbox not in homes], size, existing)
    assert duplicates(after) == []
    placed = {m: group.affinity_key[1] for group in after for m in group.mailboxes}
    assert {place.mailbox: place.grouping_information for place in known}.items() <= placed.items()
    assert placed.keys() <= placements.keys()
    assert all(len(group.mailboxes) <= size for group in after)
    assert groups(known, size, after) == after
