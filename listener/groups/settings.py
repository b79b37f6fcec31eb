"""The settings of the group manager."""

from __future__ import annotations

from dataclasses import dataclass

from listener.backoff import Backoff
from listener.groups.member import Policy
from listener.groups.subscription_spec import SubscriptionSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerSettings:
    """The settings that a reload can change.

    `spec` and `policy` are for the groups. `refresh` is the interval in seconds in which Autodiscover is asked again
    about every mailbox.
    """

    spec: SubscriptionSpec
    policy: Policy
    refresh: float

    @property
    def retry(self) -> Backoff:
        """The backoff of the search for mailboxes whose failure is temporary."""
        return self.policy.backoff

    @property
    def suspended(self) -> Backoff:
        """The backoff of the search for all other mailboxes, and of crashed tasks."""
        return self.policy.suspended
