import random

from hypothesis import given
from hypothesis import strategies as st

from listener.groups.affinity import Group, deduplicated, duplicates, groups, split_off, without
from listener.placement import Placement

URL = "https://mail.contoso.example/EWS/Exchange.asmx"


def test_same_url_and_grouping_information_is_one_group_with_the_first_address_as_anchor() -> None:
    found = groups(
        [
            Placement(URL, "DAG1", "zoe@contoso.example"),
            Placement(URL, "DAG2", "bob@contoso.example"),
            Placement(URL, "DAG1", "ann@contoso.example"),
            Placement("https://other.example/EWS/Exchange.asmx", "", "cat@contoso.example"),
        ]
    )
    assert [(g.name, g.ews_url, g.mailboxes) for g in found] == [
        ("DAG1/1", URL, ("ann@contoso.example", "zoe@contoso.example")),
        ("DAG2/1", URL, ("bob@contoso.example",)),
        ("other.example/1", "https://other.example/EWS/Exchange.asmx", ("cat@contoso.example",)),
    ]


def test_more_than_two_hundred_mailboxes_make_more_groups() -> None:
    found = groups(Placement(URL, "DAG1", f"user{n:03}@contoso.example") for n in range(401))
    assert [(g.name, len(g.mailboxes)) for g in found] == [("DAG1/1", 200), ("DAG1/2", 200), ("DAG1/3", 1)]
    assert found[1].mailboxes[0] == "user200@contoso.example"


def test_existing_groups_are_filled_before_new_ones_are_made() -> None:
    old = groups([Placement(URL, "DAG1", f"user{n}@contoso.example") for n in (1, 3)], size=3)
    new = groups([Placement(URL, "DAG1", f"user{n}@contoso.example") for n in (2, 4)], size=3, existing=old)
    assert [(g.name, [m[4] for m in g.mailboxes]) for g in new] == [
        ("DAG1/1", ["1", "2", "3"]),
        ("DAG1/2", ["4"]),
    ]


placements = st.lists(
    st.builds(
        Placement,
        st.sampled_from([URL, "https://b.example/ews"]),
        st.sampled_from(["", "A", "B"]),
        st.integers(0, 50).map("user{:02}@x.example".format),
    ),
    max_size=60,
)


@given(placements, st.integers(1, 200), st.randoms(use_true_random=False))
def test_every_mailbox_is_in_one_group_in_any_order(
    placements: list[Placement], size: int, rng: random.Random
) -> None:
    found = groups(placements, size)
    shuffled = rng.sample(placements, len(placements))
    assert groups(shuffled, size) == found
    assert sorted(m for g in found for m in g.mailboxes) == sorted({p.mailbox for p in placements})
    assert {(g.affinity_key, m) for g in found for m in g.mailboxes} <= {
        (p.affinity_key, p.mailbox) for p in placements
    }
    assert all(len(g.mailboxes) <= size and list(g.mailboxes) == sorted(g.mailboxes) for g in found)
    assert len({g.name for g in found}) == len(found)


@given(placements, placements, st.integers(1, 20))
def test_a_mailbox_that_is_assigned_again_is_in_one_group_only(
    before: list[Placement], after: list[Placement], size: int
) -> None:
    existing = groups(before, size)
    found = groups(after, size, existing)
    assert duplicates(found) == []
    homes = {m: g.affinity_key for g in found for m in g.mailboxes}
    assert homes.keys() == {p.mailbox for p in (*before, *after)}
    wanted: dict[str, set[object]] = {}
    for placement in after:
        wanted.setdefault(placement.mailbox, set()).add(placement.affinity_key)
    assert all(homes[mailbox] in placements for mailbox, placements in wanted.items())
    assert all(len(g.mailboxes) <= size for g in found)


def test_a_mailbox_that_is_assigned_again_with_the_same_placement_stays_in_its_group() -> None:
    """The first two groups are full. Mailboxes that were assigned again once got two more groups."""
    everybody = [Placement(URL, "SITE", f"user{n:03}@x.example") for n in range(150)]
    existing = groups(everybody, 50)
    assert groups(everybody, 50, existing) == existing


def test_a_mailbox_in_two_groups_is_removed_from_one() -> None:
    first, second = Group("A/1", URL, "A", ("ann", "bob")), Group("A/2", URL, "A", ("ann", "cat"))
    assert duplicates((first, second)) == ["ann"]
    assert [g.mailboxes for g in deduplicated((first, second), {})] == [("ann", "bob"), ("cat",)]
    assert [g.mailboxes for g in deduplicated((first, second), {"ann": second})] == [("bob",), ("ann", "cat")]


@given(
    placements,
    st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 50))), max_size=8),
    st.integers(1, 20),
)
def test_no_step_puts_a_mailbox_into_two_groups(
    placements: list[Placement], steps: list[tuple[bool, set[int]]], size: int
) -> None:
    found = groups(placements, size)
    for apart, numbers in steps:
        chosen = {f"user{n:02}@x.example" for n in numbers}
        if apart and found:
            of = found[0]
            if alone := chosen.intersection(of.mailboxes):
                found = split_off(found, of, alone)
        else:
            found = groups([p for p in placements if p.mailbox in chosen], size, without(found, chosen))
        assert duplicates(found) == []
        assert len({g.name for g in found}) == len(found)
        assert all(g.mailboxes for g in found)
