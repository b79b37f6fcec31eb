import random

from hypothesis import given
from hypothesis import strategies as st

from listener.groups.affinity import Placement, groups

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


def test_groups_that_exist_are_filled_up_before_new_ones_are_made() -> None:
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
def test_every_mailbox_has_its_place_once_whatever_the_order(
    places: list[Placement], size: int, dice: random.Random
) -> None:
    found = groups(places, size)
    shuffled = dice.sample(places, len(places))
    assert groups(shuffled, size) == found
    assert sorted((g.ews_url, m) for g in found for m in g.mailboxes) == sorted(
        (p.ews_url, p.mailbox) for p in set(places)
    )
    assert all(len(g.mailboxes) <= size and list(g.mailboxes) == sorted(g.mailboxes) for g in found)
    assert len({g.name for g in found}) == len(found)
