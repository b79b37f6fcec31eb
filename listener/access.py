"""How a mailbox is got at: in whose name requests about it are made, and which of its folders are asked for.

Three kinds ("Impersonation and EWS in Exchange", "Delegate access and EWS in Exchange", learn.microsoft.com):

- `impersonation`: requests are made in the owner's name, who is told by SMTP address, UPN or SID;
- `delegate`: requests are made in the account's own name, and folders are named together with their owner. A
  permission on a folder works in the same way. All folders at once cannot be subscribed to like this: the request has
  no place for an owner;
- `own`: the account's own mailbox.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from listener.ews.soap import Impersonation, ImpersonationKind
from listener.ews.subscription import FolderRef

AccessKind: TypeAlias = Literal["impersonation", "delegate", "own"]


@dataclass(frozen=True, slots=True)
class MailboxAccess:
    """The way into one mailbox. `impersonate` is None where requests are made in the account's own name; `owner` is
    named with each folder if that is not the account; `folders` None means all."""

    kind: AccessKind
    impersonate: Impersonation | None
    owner: str | None
    folders: tuple[FolderRef, ...] | None

    def folder(self, name: str) -> FolderRef:
        """A folder of this mailbox, by its distinguished name."""
        return FolderRef(name, mailbox=self.owner)


@dataclass(frozen=True, slots=True)
class AccessRule:
    """How some mailboxes are got at; `folders` are distinguished names, None means all."""

    kind: AccessKind = "impersonation"
    impersonate_by: ImpersonationKind = "PrimarySmtpAddress"
    folders: tuple[str, ...] | None = None

    def of(self, mailbox: str) -> MailboxAccess:
        """The way into this mailbox."""
        owner = mailbox if self.kind == "delegate" else None
        return MailboxAccess(
            kind=self.kind,
            impersonate=Impersonation(self.impersonate_by, mailbox) if self.kind == "impersonation" else None,
            owner=owner,
            folders=None
            if self.folders is None
            else tuple(FolderRef(name, mailbox=owner) for name in self.folders),
        )


@dataclass(slots=True)
class AccessRules:
    """One rule for all mailboxes, and others for some. It may be changed while it is in use."""

    default: AccessRule = AccessRule()
    others: Mapping[str, AccessRule] = field(default_factory=dict)

    def of(self, mailbox: str) -> MailboxAccess:
        """The way into this mailbox."""
        return self.others.get(mailbox, self.default).of(mailbox)

    def kind_of(self, mailbox: str) -> AccessKind:
        """What kind of way it is."""
        return self.others.get(mailbox, self.default).kind
