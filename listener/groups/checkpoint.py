"""The checkpoint of groups, and which part of it a new process can use under the present configuration.

The rules:

1. A subscription is reused if it has the same account, discovery settings, EWS URL, access type and subscription spec
   (folders, event types, impersonated user). Otherwise the mailbox is subscribed again.
2. A mailbox that Autodiscover found is assumed to have the same placement. The group manager checks it later.
3. A subscription that is not reused is unsubscribed, if this account can do so.
4. An id that two mailboxes of one server have is used for neither: the server restarted between the two Subscribes,
   and which was later is not known. Groups and access types do not matter, because a server has one list of ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from listener.access import AccessKind
from listener.exchange.cookies import Cookie
from listener.groups.affinity import Group
from listener.groups.group import SavedSubscriptions
from listener.groups.ownership import server_of
from listener.placement import AffinityKey, Placement


class SubscriptionCheckpoint(msgspec.Struct, frozen=True, array_like=True):
    """A SubscriptionId, and the fingerprint of its subscription spec."""

    subscription: str
    spec: str


class GroupCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The stored state of one group.

    `members` has all its mailboxes, with None for one without a subscription. `owner` is the fingerprint of the
    account and the discovery settings.
    """

    name: str
    ews_url: str
    grouping_information: str
    access: AccessKind
    closed: bool
    anchor: str
    owner: str
    members: dict[str, SubscriptionCheckpoint | None]
    cookies: tuple[Cookie, ...]

    @property
    def affinity_key(self) -> AffinityKey:
        """What all mailboxes of the group had in common."""
        return self.ews_url, self.grouping_information, self.access


class LastSeen(msgspec.Struct, frozen=True, kw_only=True):
    """Moments of the checkpoint, in Unix seconds.

    - `groups`: when the stream of each group last worked.
    - `missing_since`: since when a mailbox may miss events, if that is earlier than the moment of its group. Such a
      mailbox has no stream, or an open gap.
    """

    groups: dict[str, float] = {}
    missing_since: dict[str, float] = {}


@dataclass(frozen=True, slots=True)
class RestoredGroup:
    """A group to start with. A group without mailboxes only unsubscribes."""

    group: Group
    saved: SavedSubscriptions
    cookies: tuple[Cookie, ...]


def restored(
    checkpoints: Iterable[GroupCheckpoint],
    placements: Mapping[str, Placement | None],
    *,
    kind_of: Callable[[str], AccessKind],
    owner: Callable[[str], str],
    spec: Callable[[str], str],
    size: int,
) -> list[RestoredGroup]:
    """Return the groups that can be restored.

    `placements` has all present mailboxes, with None for those without a configured placement. `kind_of` returns the
    access type of a mailbox, `owner` the owner fingerprint for an EWS URL, `spec` the spec fingerprint of a mailbox.
    `size` is the maximum number of mailboxes of a group.
    """
    checkpoints = sorted(checkpoints, key=lambda group: group.name)
    claims = Counter(
        (server_of(group.ews_url), entry.subscription)
        for group in checkpoints
        for entry in group.members.values()
        if entry
    )
    taken: set[str] = set()
    found = []
    for group in checkpoints:
        if group.owner != owner(group.ews_url):
            continue
        staying: list[str] = []
        subscriptions: dict[str, str] = {}
        abandoned: list[tuple[str, str]] = []
        for mailbox, entry in sorted(group.members.items()):
            stays = (
                mailbox not in taken
                and len(staying) < size
                and _has_same_placement(mailbox, group, placements)
                and kind_of(mailbox) == group.access
            )
            if stays:
                staying.append(mailbox)
            if entry is None or claims[server_of(group.ews_url), entry.subscription] > 1:
                continue
            if stays and entry.spec == spec(mailbox):
                subscriptions[mailbox] = entry.subscription
            else:
                abandoned.append((mailbox, entry.subscription))
        if group.closed and not subscriptions:
            staying = []  # without subscriptions, there is no reason for a group of their own
        taken.update(staying)
        if staying or abandoned:
            present = Group(
                name=group.name,
                ews_url=group.ews_url,
                grouping_information=group.grouping_information,
                mailboxes=tuple(staying),
                closed=group.closed,
                access=group.access,
            )
            saved = SavedSubscriptions(group.anchor, subscriptions, tuple(abandoned))
            found.append(RestoredGroup(present, saved, group.cookies))
    return found


def _has_same_placement(
    mailbox: str, group: GroupCheckpoint, placements: Mapping[str, Placement | None]
) -> bool:
    if mailbox not in placements:
        return False
    placement = placements[mailbox]
    return placement is None or placement[:2] == group.affinity_key[:2]


def last_seen(checkpoints: Iterable[GroupCheckpoint], moments: LastSeen, now: float) -> dict[str, float]:
    """Return since when each mailbox that ever had a stream may miss events, in Unix seconds."""
    found = dict(moments.missing_since)
    for group in checkpoints:
        moment = moments.groups.get(group.name)
        if moment is not None:
            for mailbox, entry in group.members.items():
                if entry is not None:
                    found.setdefault(mailbox, moment)
    # Moments in the future mean that the clock was set back, and say nothing.
    return {mailbox: moment if moment <= now else now - DAY for mailbox, moment in found.items()}


DAY = 86400.0
