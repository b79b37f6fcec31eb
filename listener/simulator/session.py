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


def find_folder(element: etree._Element, session: Session) -> tuple[Mailbox, Folder]:
    """The folder of a `t:FolderId` or `t:DistinguishedFolderId`. Failure: there is none, or no right to it."""
    if element.tag == f"{T}DistinguishedFolderId":
        named = element.findtext(f"{T}Mailbox/{T}EmailAddress")
        mailbox = session.directory.find(named) if named else session.actor
        if mailbox is None:
            raise Failure("ErrorNonExistentMailbox" if named else "ErrorMissingEmailAddress")
        _check_access(mailbox, session)
        try:
            return mailbox, mailbox.distinguished(element.get("Id", ""))
        except KeyError:
            raise Failure("ErrorFolderNotFound") from None
    mailbox = _mailbox_of_id(element.get("Id", ""), session)
    folder = mailbox.folders.get(element.get("Id", ""))
    if folder is None:
        raise Failure("ErrorItemNotFound")
    return mailbox, folder


def find_item(element: etree._Element, session: Session) -> tuple[Mailbox, Item]:
    """The item of a `t:ItemId`. Failure: there is none, or no right to it."""
    mailbox = _mailbox_of_id(element.get("Id", ""), session)
    item = mailbox.item(element.get("Id", ""))
    if item is None:
        raise Failure("ErrorItemNotFound")
    return mailbox, item


def _mailbox_of_id(id_: str, session: Session) -> Mailbox:
    mailbox = session.directory.find(decode_id(id_)[4:40].decode("ascii", "replace"))
    if mailbox is None:
        raise Failure("ErrorInvalidIdMalformed")
    _check_access(mailbox, session)
    return mailbox


def decode_id(id_: str) -> bytes:
    """What an id is made of. Failure: it is no base64."""
    try:
        return b64decode(id_, validate=True)
    except ValueError:
        raise Failure("ErrorInvalidIdMalformed") from None


def _check_access(mailbox: Mailbox, session: Session) -> None:
    if mailbox is not session.actor:
        raise Failure("ErrorAccessDenied")
