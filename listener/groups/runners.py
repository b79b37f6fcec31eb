"""All group runners, by the name of their group and by mailbox.

The group manager changes this index; catch-up and the operator's views read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import structlog

from listener.catchup.queries import MailboxRoute
from listener.ews.codes import Failure
from listener.groups.actions import Doubted
from listener.groups.affinity import Group
from listener.groups.runner import GroupRunner

log = structlog.get_logger()


@dataclass(slots=True)
class Runners:
    """`by_group` has each runner under its group's name, `groups` the group of each mailbox that has one."""

    by_group: dict[str, GroupRunner] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)

    def assign(self, groups: Iterable[Group]) -> None:
        """Replace the assignment of mailboxes to groups. A mailbox is in at most one group."""
        self.groups = {mailbox: group for group in groups for mailbox in group.mailboxes}

    def of(self, mailbox: str) -> GroupRunner | None:
        """Return the runner of the mailbox's group; None if the mailbox has no group yet."""
        group = self.groups.get(mailbox)
        return None if group is None else self.by_group.get(group.name)

    # --- requests of catch-up (listener.catchup.catchup.Routes)

    def route(self, mailbox: str) -> MailboxRoute | None:
        """Return how to send requests about a mailbox; None while it has no stream."""
        runner = self.of(mailbox)
        return None if runner is None else runner.route(mailbox)

    def route_without_stream(self, mailbox: str) -> MailboxRoute | None:
        """Return how to send requests about a mailbox, with or without a stream; None if it has no group."""
        runner = self.of(mailbox)
        return None if runner is None else runner.route_without_stream(mailbox)

    def renew(self, mailbox: str) -> None:
        """Replace a subscription that does not report events."""
        runner = self.of(mailbox)
        if runner is not None:
            log.warning("subscription.stalled", mailbox=mailbox, group=runner.group.name)
            runner.post(Doubted((mailbox,)))

    def check_access(self, mailbox: str, failure: Failure) -> None:
        """Test whether a mailbox can be read at all, because a comparison of it was denied."""
        runner = self.of(mailbox)
        if runner is not None:
            log.debug("mailbox.access_checked", mailbox=mailbox, group=runner.group.name, code=failure.code)
            runner.check_access(mailbox)
