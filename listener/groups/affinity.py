"""Which mailboxes share one connection.

Mailboxes with the same EWS URL and the same GroupingInformation are served by the same back end, so their
subscriptions may hang on one GetStreamingEvents request. A group holds 200 at most; sorted by address, its first
mailbox is the anchor. Source: "Maintain affinity between a group of subscriptions and the Mailbox server in
Exchange", learn.microsoft.com.

A stream is opened in the name of the anchor, where that is impersonated, and in the account's own name elsewhere. So
mailboxes that are got at in different ways do not share one.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from listener.access import AccessKind
from listener.ews.urls import host_of
from listener.placement import Place, Placement

LARGEST_GROUP = 200


@dataclass(frozen=True, slots=True)
class Group:
    """Mailboxes that share one connection, sorted by address: the first is the anchor.

    `name` is what logs call the group: GroupingInformation (or the server's name where there is none) and a
    number. A group that is `closed` was set apart, and nobody joins it.
    """

    name: str
    ews_url: str
    grouping_information: str
    mailboxes: tuple[str, ...]
    closed: bool = False
    access: AccessKind = "impersonation"

    @property
    def place(self) -> Place:
        """What its mailboxes have in common."""
        return self.ews_url, self.grouping_information, self.access


def groups(
    placements: Iterable[Placement], size: int = LARGEST_GROUP, existing: Sequence[Group] = ()
) -> tuple[Group, ...]:
    """Sorts mailboxes into as few groups as `size` allows; the same input in any order gives the same groups.

    Those `existing` come first and keep their mailboxes; they are filled up before new ones are made. A mailbox
    that an existing group has at the same placement stays there; at another placement it leaves that group.
    """
    wanted = {placement.mailbox: placement for placement in sorted(set(placements), reverse=True)}
    homes = {mailbox: group.place for group in existing for mailbox in group.mailboxes}
    moved = [m for m, placement in wanted.items() if m in homes and homes[m] != placement.place]
    found = list(without(existing, moved) if moved else existing)
    placed = sorted(
        (placement for mailbox, placement in wanted.items() if homes.get(mailbox) != placement.place),
        key=lambda placement: (placement.place, placement.mailbox),
    )
    for place, members in groupby(placed, key=lambda placement: placement.place):
        mailboxes = [placement.mailbox for placement in members]
        for at, group in enumerate(found):
            if group.place == place and not group.closed:
                room = max(0, size - len(group.mailboxes))
                together = sorted({*group.mailboxes, *mailboxes[:room]})
                found[at] = replace(group, mailboxes=tuple(together))
                mailboxes = mailboxes[room:]
        for start in range(0, len(mailboxes), size):
            found.append(_new_group(place, mailboxes[start : start + size], found))
    return tuple(found)


def without(existing: Sequence[Group], mailboxes: Iterable[str]) -> tuple[Group, ...]:
    """The groups after these mailboxes have left; a group that nobody is left in is gone."""
    gone = set(mailboxes)
    left = (
        replace(group, mailboxes=tuple(m for m in group.mailboxes if m not in gone)) for group in existing
    )
    return tuple(group for group in left if group.mailboxes)


def duplicates(existing: Iterable[Group]) -> list[str]:
    """The mailboxes that more than one group has. There must be none: each would be subscribed twice."""
    counts = Counter(mailbox for group in existing for mailbox in group.mailboxes)
    return sorted(mailbox for mailbox, count in counts.items() if count > 1)


def deduplicated(existing: Sequence[Group], homes: Mapping[str, Group]) -> tuple[Group, ...]:
    """The groups with each mailbox in one only: the group that `homes` names for it, or the first that has it."""
    seen: set[str] = set()
    mine = {mailbox: group.name for mailbox, group in homes.items()}
    names = {(group.name, mailbox) for group in existing for mailbox in group.mailboxes}
    found = []
    for group in existing:
        staying = tuple(
            mailbox
            for mailbox in dict.fromkeys(group.mailboxes)
            if mailbox not in seen
            and (mine.get(mailbox, group.name) == group.name or (mine[mailbox], mailbox) not in names)
        )
        seen.update(staying)
        if staying:
            found.append(replace(group, mailboxes=staying))
    return tuple(found)


def separated(existing: Sequence[Group], group: Group, mailboxes: Iterable[str]) -> tuple[Group, ...]:
    """The groups after these mailboxes have left `group` for one of their own, which comes last."""
    alone = tuple(sorted(mailboxes))
    left = without(existing, alone)
    return (*left, _new_group(group.place, alone, existing, closed=True))


def _new_group(
    place: Place, mailboxes: Sequence[str], existing: Sequence[Group], *, closed: bool = False
) -> Group:
    url, information, access = place
    label = information or host_of(url) or url
    numbers = [int(number) for of, _, number in (g.name.rpartition("/") for g in existing) if of == label]
    name = f"{label}/{max(numbers, default=0) + 1}"
    return Group(name, url, information, tuple(mailboxes), closed, access)
