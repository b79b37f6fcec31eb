"""Access to a mailbox: the identity that requests use, and the folders that they name.

Three kinds ("Impersonation and EWS in Exchange", "Delegate access and EWS in Exchange", learn.microsoft.com):

- `impersonation`: requests act as the owner, identified by SMTP address, UPN or SID;
- `delegate`: requests act as the account itself, and name each folder with its owner. Folder permissions work in the
  same way. A subscription to all folders is impossible: that request has no element for an owner;
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
    """Access to one mailbox.

    `impersonate` is None if requests act as the account itself. `owner` is sent with each folder, and None if it is
    not needed. `folders` None means all folders.
    """

    kind: AccessKind
    impersonate: Impersonation | None
    owner: str | None
    folders: tuple[FolderRef, ...] | None

    def folder(self, name: str) -> FolderRef:
        """Return a folder of this mailbox by its distinguished name."""
        return FolderRef(name, mailbox=self.owner)


@dataclass(frozen=True, slots=True)
class AccessRule:
    """Access that several mailboxes have in common. `folders` are distinguished names; None means all folders."""

    kind: AccessKind = "impersonation"
    impersonate_by: ImpersonationKind = "PrimarySmtpAddress"
    folders: tuple[str, ...] | None = None

    def of(self, mailbox: str) -> MailboxAccess:
        """Return the access to this mailbox."""
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
    """The default rule, and rules of single mailboxes. They may change during use."""

    default: AccessRule = AccessRule()
    others: Mapping[str, AccessRule] = field(default_factory=dict)

    def of(self, mailbox: str) -> MailboxAccess:
        """Return the access to this mailbox."""
        return self.others.get(mailbox, self.default).of(mailbox)

    def kind_of(self, mailbox: str) -> AccessKind:
        """Return the kind of access to this mailbox."""
        return self.others.get(mailbox, self.default).kind
