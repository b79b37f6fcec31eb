"""Placement of a mailbox: the EWS URL and the group of servers that Autodiscover or the configuration names."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from listener.access import AccessKind

AffinityKey: TypeAlias = tuple[str, str, AccessKind]
"""What the mailboxes of a group have in common: EWS URL, GroupingInformation, kind of access."""


class Placement(NamedTuple):
    """The placement of one mailbox.

    `grouping_information` is Autodiscover's GroupingInformation. Mailboxes with the same EWS URL and the same value
    are served by the same back end, and can share a streaming connection.
    """

    ews_url: str
    grouping_information: str
    mailbox: str
    access: AccessKind = "impersonation"

    @property
    def affinity_key(self) -> AffinityKey:
        """Return what all mailboxes of a group have in common."""
        return self.ews_url, self.grouping_information, self.access
