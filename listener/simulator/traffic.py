"""Simulated users: seeded random changes in the mailboxes, at a given rate.

The mix is that of an office: mostly email that arrives and is read, then filing and deleting, sometimes an
appointment or a new folder. Some mailboxes are much busier than others. The time and the random generator are
parameters, so the same seed and times make the same changes.
"""

from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import accumulate
from random import Random

from listener.simulator.directory import random_folder_name, random_person, random_subject
from listener.simulator.mailstore import Event, Item, Mailbox

ITEMS_KEPT = 60
"""A mailbox with more items deletes its oldest, like a retention policy."""
_FOLDERS_KEPT = 6


class Traffic:
    """Makes changes in `mailboxes` at about `rate` events per second in total.

    `wake` is called when the rate is set.
    """

    def __init__(self, mailboxes: Sequence[Mailbox], rate: float, rng: Random) -> None:
        self.rate = rate
        self.wake: Callable[[], None] = lambda: None
        self._mailboxes = mailboxes
        self._rng = rng
        self._events_due = 0.0
        self._last_call: float | None = None
        # A user's share of the traffic falls with its rank, as in most organizations.
        self._weights = list(accumulate(1 / (rank + 5) ** 0.5 for rank in range(len(mailboxes))))

    def due(self, now: float) -> list[Event]:
        """Make the changes since the last call, with time `now`, and return their events."""
        if self._last_call is not None:
            self._events_due += self.rate * (now - self._last_call)
        self._last_call = now
        events: list[Event] = []
        while self._events_due >= 1 and self._mailboxes:
            made = self._change(self._pick(), now)
            self._events_due -= len(made)
            events += made
        return events

    @property
    def interval(self) -> float:
        """Seconds to wait between two calls of `due`."""
        return min(max(1 / self.rate, 0.005), 1.0) if self.rate else 60.0

    def set_rate(self, rate: float) -> None:
        """Set the rate in events per second. Changes that were due are dropped."""
        self.rate = rate
        self._events_due = 0.0
        self._last_call = None
        self.wake()

    def _pick(self) -> Mailbox:
        index = bisect(self._weights, self._rng.random() * self._weights[-1])
        return self._mailboxes[min(index, len(self._mailboxes) - 1)]

    def _change(self, mailbox: Mailbox, now: float) -> list[Event]:
        if mailbox.item_count() > ITEMS_KEPT:
            return self._retention(mailbox, now)
        action = _ACTIONS[bisect(_CHANCES, self._rng.random() * _CHANCES[-1])]
        # An action without a suitable object becomes a new email.
        return action(mailbox, self._rng, now) or _receive_mail(mailbox, self._rng, now)

    def _retention(self, mailbox: Mailbox, now: float) -> list[Event]:
        fullest = max(mailbox.folders.values(), key=lambda folder: len(folder.items))
        return mailbox.purge(next(iter(fullest.items.values())), now)


def make(mailbox: Mailbox, kind: str, rng: Random, now: float) -> list[Event]:
    """Make one change whose events include exactly one of `kind` about an item.

    Objects that it needs are created first, and their events come first. Raises KeyError for an unknown kind.
    """
    return _MAKERS[kind](mailbox, rng, now)


# -- user actions --------------------------------------------------------------------------------------------


def _receive_mail(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    return mailbox.deliver(random_subject(rng), _external_sender(rng), now)


def _read(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    unread = [item for item in mailbox.latest(mailbox.distinguished("inbox"), 8) if not item.read]
    return mailbox.mark(rng.choice(unread), now, read=True) if unread else []


def _unread_again(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    item = _recent_inbox_item(mailbox, rng)
    return mailbox.mark(item, now, read=False) if item else []


def _send(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    return mailbox.save(mailbox.distinguished("sentitems"), "IPM.Note", random_subject(rng), now)


def _draft(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    return mailbox.save(mailbox.distinguished("drafts"), "IPM.Note", random_subject(rng), now)


def _edit_item(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    item = _recent_inbox_item(mailbox, rng)
    return mailbox.edit(item, item.subject, now) if item else []


def _move_to_folder(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    item, folders = _recent_inbox_item(mailbox, rng), mailbox.own_folders()
    return mailbox.move(item, rng.choice(folders), now) if item and folders else []


def _copy(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    item, folders = _recent_inbox_item(mailbox, rng), mailbox.own_folders()
    return mailbox.copy(item, rng.choice(folders), now) if item and folders else []


def _delete(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    item = _recent_inbox_item(mailbox, rng)
    return mailbox.move(item, mailbox.distinguished("deleteditems"), now) if item else []


def _purge(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    deleted_items = mailbox.distinguished("deleteditems")
    return mailbox.purge(next(iter(deleted_items.items.values())), now) if deleted_items.items else []


def _new_appointment(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    return mailbox.save(mailbox.distinguished("calendar"), "IPM.Appointment", random_subject(rng), now)


def _receive_meeting_request(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    """A meeting request: the email, the tentative appointment, and the server's automatic update of it."""
    topic = random_subject(rng)
    mail = mailbox.deliver(topic, _external_sender(rng), now)
    calendar = mailbox.distinguished("calendar")
    entry = mailbox.save(calendar, "IPM.Appointment", topic, now)
    return [*mail, *entry, *mailbox.edit(mailbox.latest(calendar, 1)[0], topic, now)]


def _reschedule(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    planned = mailbox.latest(mailbox.distinguished("calendar"), 5)
    return mailbox.reschedule(rng.choice(planned), now) if planned else []


def _new_contact(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    return mailbox.save(mailbox.distinguished("contacts"), "IPM.Contact", random_person(rng), now)


def _new_folder(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    if len(mailbox.own_folders()) >= _FOLDERS_KEPT:
        return []
    parent = rng.choice(("inbox", "msgfolderroot"))
    return mailbox.create_folder(random_folder_name(rng), mailbox.distinguished(parent), now)


def _rename_folder(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    folders = mailbox.own_folders()
    return mailbox.rename_folder(rng.choice(folders), random_folder_name(rng), now) if folders else []


def _move_folder(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    folders = mailbox.own_folders()
    if not folders:
        return []
    folder = rng.choice(folders)
    inbox, top = mailbox.distinguished("inbox"), mailbox.distinguished("msgfolderroot")
    return mailbox.move_folder(folder, top if folder.parent is inbox else inbox, now)


def _delete_folder(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    deleted_items = mailbox.distinguished("deleteditems")
    deleted_folders = mailbox.children(deleted_items)
    if deleted_folders:
        return mailbox.purge_folder(deleted_folders[0], now)
    folders = mailbox.own_folders()
    return mailbox.move_folder(rng.choice(folders), deleted_items, now) if folders else []


def _external_sender(rng: Random) -> str:
    return random_person(rng).lower().replace(" ", ".") + "@fabrikam.example"


def _recent_inbox_item(mailbox: Mailbox, rng: Random) -> Item | None:
    """Return one of the newest messages in the inbox, or None."""
    items = mailbox.latest(mailbox.distinguished("inbox"), 8)
    return rng.choice(items) if items else None


_Action = Callable[[Mailbox, Random, float], list[Event]]
_MIX: tuple[tuple[float, _Action], ...] = (
    (34, _receive_mail),
    (22, _read),
    (2, _unread_again),
    (9, _send),
    (4, _draft),
    (4, _edit_item),
    (6, _move_to_folder),
    (1, _copy),
    (8, _delete),
    (4, _purge),
    (2, _new_appointment),
    (1, _receive_meeting_request),
    (1, _reschedule),
    (0.5, _new_contact),
    (1, _new_folder),
    (0.3, _rename_folder),
    (0.2, _move_folder),
    (0.2, _delete_folder),
)
_CHANCES = list(accumulate(chance for chance, _ in _MIX))
_ACTIONS = [action for _, action in _MIX]


# -- changes on demand ---------------------------------------------------------------------------------------


def _existing_draft(mailbox: Mailbox, rng: Random, now: float) -> tuple[Item, list[Event]]:
    """Return a draft and the events of its creation, if it was created."""
    drafts = mailbox.distinguished("drafts")
    events = [] if drafts.items else _draft(mailbox, rng, now)
    return mailbox.latest(drafts, 1)[0], events


def _make_moved(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    item, events = _existing_draft(mailbox, rng, now)
    return events + mailbox.move(item, mailbox.distinguished("deleteditems"), now)


def _make_copied(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    item, events = _existing_draft(mailbox, rng, now)
    return events + mailbox.copy(item, mailbox.distinguished("sentitems"), now)


def _make_deleted(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    item, events = _existing_draft(mailbox, rng, now)
    return events + mailbox.purge(item, now)


def _make_modified(mailbox: Mailbox, rng: Random, now: float) -> list[Event]:
    item, events = _existing_draft(mailbox, rng, now)
    return events + mailbox.edit(item, random_subject(rng), now)


_MAKERS: dict[str, _Action] = {
    "CopiedEvent": _make_copied,
    "CreatedEvent": _draft,
    "DeletedEvent": _make_deleted,
    "ModifiedEvent": _make_modified,
    "MovedEvent": _make_moved,
    "NewMailEvent": _receive_mail,
    "FreeBusyChangedEvent": _new_appointment,
}
