"""Kinds of access to mailboxes."""

from listener.access import AccessRule, AccessRules
from listener.ews.soap import Impersonation
from listener.ews.subscription import FolderRef

ANNA, BEN = "anna@example.org", "ben@example.org"


def test_impersonation_has_the_owner_and_folders_have_none() -> None:
    access = AccessRule(impersonate_by="PrincipalName", folders=("inbox",)).of(ANNA)
    assert access.impersonate == Impersonation("PrincipalName", ANNA)
    assert access.folders == (FolderRef("inbox"),)
    assert access.folder("root") == FolderRef("root")


def test_delegate_does_not_impersonate_and_folders_have_the_owner() -> None:
    access = AccessRule("delegate", folders=("inbox", "calendar")).of(ANNA)
    assert access.impersonate is None
    assert access.folders == (FolderRef("inbox", mailbox=ANNA), FolderRef("calendar", mailbox=ANNA))
    assert access.folder("inbox") == access.folders[0]


def test_own_mailbox_needs_no_owner() -> None:
    access = AccessRule("own").of(ANNA)
    assert (access.impersonate, access.owner, access.folders) == (None, None, None)


def test_rules_of_single_mailboxes_may_change() -> None:
    rules = AccessRules(AccessRule(), {BEN: AccessRule("delegate", folders=("inbox",))})
    assert (rules.kind_of(ANNA), rules.kind_of(BEN)) == ("impersonation", "delegate")
    assert rules.of(BEN).owner == BEN
    rules.others = {}
    assert rules.of(BEN).kind == "impersonation"
