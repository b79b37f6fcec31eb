"""What a group asks of Exchange for its mailboxes."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2s

from listener.access import AccessRules
from listener.ews.events import EventKind


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionSpec:
    """The subscription settings of all groups.

    - `window`: minutes that one GetStreamingEvents request lasts.
    - `silence`: seconds without a signal after which a stream has failed.
    - `max_envelope`: bytes.
    - `drain`: seconds that a replaced stream is read on. The server ends it by then, and no event in flight is lost.
    - `discovery`: the settings that placements depend on. A placement that was found with other settings is not
      trusted.
    """

    version: str
    access: AccessRules
    events: tuple[EventKind, ...]
    impersonate_anchor_on_stream: bool = True
    window: int = 30
    silence: float = 90.0
    max_envelope: int = 16 * 1024 * 1024
    subscribe_concurrency: int = 5
    unsubscribe_timeout: float = 5.0
    drain: float = 30.0
    discovery: str = ""

    def owner_fingerprint(self, account: str) -> str:
        """Return a fingerprint of the account and the discovery settings.

        A subscription is reused only under the same fingerprint.
        """
        return _fingerprint(account, self.discovery)

    def of(self, mailbox: str) -> str:
        """Return a fingerprint of a mailbox's access and event types. A subscription is reused only for the same."""
        return _fingerprint(self.access.of(mailbox), sorted(self.events))


def _fingerprint(*values: object) -> str:
    return blake2s(repr(values).encode(), digest_size=8).hexdigest()
