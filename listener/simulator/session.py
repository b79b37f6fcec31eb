"""One request being served, and what the ids in it mean."""

from base64 import b64decode
from typing import NamedTuple

from lxml import etree

from listener.simulator.directory import Directory
from listener.simulator.mailstore import Folder, Item, Mailbox
from listener.simulator.replies import Failure
from listener.simulator.requests import Call, T


class Session(NamedTuple):
    """One request being served. `actor` is the mailbox that it acts as: the impersonated one, or the account's
    own; None when an account without a mailbox impersonates nobody."""

    call: Call
    account: str
    actor: Mailbox | None
    backend: str
    directory: Directory
    now: float

    @property
    def principal(self) -> str:
        """Whose rights count: of whom the account impersonates, else its own."""
        return self.actor.address if self.actor and self.call.impersonated is not None else self.account


class NoRight(Failure):
    """A folder of a mailbox that whoever asks has no rights to."""


def concerned(call: Call, actor: Mailbox | None, directory: Directory) -> Mailbox | None:
    """The mailbox that a request is about: whose folder or item it names first, else that of whoever asks."""
    element = next(call.element.iter(f"{T}DistinguishedFolderId", f"{T}FolderId", f"{T}ItemId"), None)
    if element is None:
        return actor
    try:
        own = element.tag == f"{T}DistinguishedFolderId"
        named = element.findtext(f"{T}Mailbox/{T}EmailAddress") if own else _guid(element.get("Id", ""))
    except Failure:
        named = None
    return directory.find(named or "") or actor


def find_folder(
    element: etree._Element, session: Session, *, looking: bool = False
) -> tuple[Mailbox, Folder]:
    """The folder of a `t:FolderId` or `t:DistinguishedFolderId`; `looking` is for its properties only, not for its
    items. Failure: there is none, or no right to it."""
    if element.tag == f"{T}DistinguishedFolderId":
        named = element.findtext(f"{T}Mailbox/{T}EmailAddress")
        mailbox = session.directory.find(named) if named else session.actor
        if mailbox is None:
            raise Failure("ErrorNonExistentMailbox" if named else "ErrorMissingEmailAddress")
        # "Handling delegation-related errors in EWS in Exchange": without a right to it, the folder is not found.
        name = element.get("Id", "")
        seen = session.directory.rights.may_see(session.principal, mailbox.address, name)
        code = "ErrorAccessDenied" if seen else "ErrorFolderNotFound"
        _check_access(mailbox, name, session, code, looking=looking)
        try:
            return mailbox, mailbox.distinguished(name)
        except KeyError:
            raise Failure("ErrorFolderNotFound") from None
    mailbox = _mailbox_of_id(element.get("Id", ""), session)
    folder = mailbox.folders.get(element.get("Id", ""))
    _check_access(mailbox, folder.distinguished if folder else None, session, looking=looking)
    if folder is None:
        raise Failure("ErrorItemNotFound")
    return mailbox, folder


def find_item(element: etree._Element, session: Session) -> tuple[Mailbox, Item]:
    """The item of a `t:ItemId`. Failure: there is none, or no right to it."""
    mailbox = _mailbox_of_id(element.get("Id", ""), session)
    item = mailbox.item(element.get("Id", ""))
    _check_access(mailbox, item.folder.distinguished if item else None, session)
    if item is None:
        raise Failure("ErrorItemNotFound")
    return mailbox, item


def _mailbox_of_id(id_: str, session: Session) -> Mailbox:
    mailbox = session.directory.find(_guid(id_))
    if mailbox is None:
        raise Failure("ErrorInvalidIdMalformed")
    return mailbox


def _guid(id_: str) -> str:
    return decode_id(id_)[4:40].decode("ascii", "replace")


def decode_id(id_: str) -> bytes:
    """What an id is made of. Failure: it is no base64."""
    try:
        return b64decode(id_, validate=True)
    except ValueError:
        raise Failure("ErrorInvalidIdMalformed") from None


def _check_access(
    mailbox: Mailbox,
    folder: str | None,
    session: Session,
    code: str = "ErrorAccessDenied",
    *,
    looking: bool = False,
) -> None:
    rights = session.directory.rights
    may = rights.may_see if looking else rights.may_read
    if mailbox is not session.actor and not may(session.principal, mailbox.address, folder):
        raise NoRight(code)
