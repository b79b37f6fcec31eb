"""Ways into mailboxes, as values."""

from listener.access import AccessRule, AccessRules
from listener.ews.soap import Impersonation
from listener.ews.subscription import FolderRef

ANNA, BEN = "anna@example.org", "ben@example.org"


def test_impersonation_names_the_owner_and_no_folder_does() -> None:
    way = AccessRule(impersonate_by="PrincipalName", folders=("inbox",)).of(ANNA)
    assert way.impersonate == Impersonation("PrincipalName", ANNA)
    assert way.folders == (FolderRef("inbox"),)
    assert way.folder("root") == FolderRef("root")


def test_a_delegate_impersonates_nobody_and_every_folder_names_its_owner() -> None:
    way = AccessRule("delegate", folders=("inbox", "calendar")).of(ANNA)
    assert way.impersonate is None
    assert way.folders == (FolderRef("inbox", mailbox=ANNA), FolderRef("calendar", mailbox=ANNA))
    assert way.folder("inbox") == way.folders[0]


def test_ones_own_mailbox_is_named_nowhere() -> None:
    way = AccessRule("own").of(ANNA)
    assert (way.impersonate, way.owner, way.folders) == (None, None, None)


def test_some_are_got_at_in_another_way_and_that_may_change() -> None:
    rules = AccessRules(AccessRule(), {BEN: AccessRule("delegate", folders=("inbox",))})
    assert (rules.kind_of(ANNA), rules.kind_of(BEN)) == ("impersonation", "delegate")
    assert rules.of(BEN).owner == BEN
    rules.others = {}
    assert rules.of(BEN).kind == "impersonation"
