"""Who may do what: the scope of impersonation, delegates and folder permissions, and EWS itself.

An account that impersonates has the rights of whom it impersonates, and not its own. A delegate and somebody with a
permission on a folder are the same here: both name the folder with its owner ("Delegate access and EWS in Exchange",
learn.microsoft.com).

Every mailbox gives *Default*, which is everybody with an account, the right AvailabilityOnly on its calendar
("Get-MailboxFolderPermission", learn.microsoft.com): the folder itself can be seen, and free/busy times, but no item.
"""

from collections.abc import Iterable

EVERYTHING = "*"
CALENDARS = frozenset({"calendar"})
"""Folders on which *Default* has the right AvailabilityOnly."""


class Rights:
    """`impersonators` may impersonate everybody but those `out_of_scope`; `without_ews` are mailboxes whose owner
    has EWS switched off, `without_free_busy` those that give *Default* no right. All names are addresses in lower
    case."""

    def __init__(self, impersonators: Iterable[str], out_of_scope: Iterable[str]) -> None:
        self.impersonators = set(impersonators)
        self.out_of_scope = set(out_of_scope)
        self.without_ews: set[str] = set()
        self.without_free_busy: set[str] = set()
        self._folders: dict[tuple[str, str], frozenset[str]] = {}

    def may_impersonate(self, account: str, mailbox: str) -> bool:
        """Whether the mailbox is in the account's management scope."""
        return account in self.impersonators and mailbox not in self.out_of_scope

    def grant(self, account: str, mailbox: str, folders: Iterable[str]) -> None:
        """From now on the account may read these folders of the mailbox, by their distinguished ids, and no others;
        `*` is all of them."""
        self._folders[account, mailbox] = frozenset(folders)

    def may_read(self, account: str, mailbox: str, folder: str | None) -> bool:
        """Whether the account has a permission on a folder of another's mailbox, given its distinguished id."""
        granted = self._folders.get((account, mailbox), frozenset())
        return EVERYTHING in granted or folder in granted

    def may_see(self, account: str, mailbox: str, folder: str | None) -> bool:
        """Whether the account can see that the folder is there, and its properties."""
        free_busy = folder in CALENDARS and mailbox not in self.without_free_busy
        return free_busy or self.may_read(account, mailbox, folder)

    def told(self) -> dict[str, object]:
        """For the control interface."""
        return {
            "impersonators": sorted(self.impersonators),
            "out_of_scope": sorted(self.out_of_scope),
            "without_ews": sorted(self.without_ews),
            "without_free_busy": sorted(self.without_free_busy),
            "folders": [
                {"account": account, "mailbox": mailbox, "folders": sorted(folders)}
                for (account, mailbox), folders in sorted(self._folders.items())
                if folders
            ],
        }
