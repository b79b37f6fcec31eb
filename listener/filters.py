"""Event filters: select the events for a handler (pure). Evaluated once per event and handler."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final

from listener.event import MailboxEvent
from listener.suggest import did_you_mean

EVENT_NAMES: Final = ("created", "modified", "deleted", "moved", "copied", "new_mail", "free_busy_changed")
"""Short names of the seven event types that an EWS subscription can request."""

EVENT_TYPES: Final = (
    *(f"exchange.item.{name}" for name in EVENT_NAMES),
    *(f"exchange.folder.{name}" for name in EVENT_NAMES if name != "new_mail"),
    *(f"exchange.listener.{name}" for name in ("gap", "recovered", "reset", "suspended", "resumed")),
)
"""Every CloudEvents type that a handler can receive. `exchange.listener.…` events report on the listener itself."""

EVERY_CHANGE: Final = ("exchange.item.*", "exchange.folder.*")
_ANY = "*"
_CACHED_MAILBOXES = 100_000


def check_type(pattern: str) -> str | None:
    """Return an error text if a pattern matches no event type, otherwise None."""
    if types_of(pattern):
        return None
    known = [*EVENT_TYPES, *sorted({name.rpartition(".")[2] for name in EVENT_TYPES})]
    return f'no event type matches "{pattern}"{did_you_mean(pattern, known)}'


def is_glob(pattern: str) -> bool:
    """Return whether a mailbox pattern is a glob and not a single address."""
    return any(sign in pattern for sign in "*?[")


def types_of(pattern: str) -> tuple[str, ...]:
    """Return the event types that a pattern matches."""
    return tuple(name for name in EVENT_TYPES if fnmatchcase(name, _full(pattern)))


class EventFilter:
    """A compiled filter: an event matches if its mailbox, its type and one of its folders each match a pattern.

    `mailboxes`: addresses or globs; case does not matter. `types`: CloudEvents types, globs of them, or short names
    (`created` matches every `exchange.*.created`). `folders`: exact folder ids, compared with the event's
    `parent_folder_id`, `old_parent_folder_id` and `folder_id`; `*` matches any folder.
    """

    __slots__ = ("_cache", "_folders", "_mailboxes", "_types")

    def __init__(
        self,
        *,
        mailboxes: Sequence[str] = (_ANY,),
        types: Sequence[str] = EVERY_CHANGE,
        folders: Sequence[str] = (_ANY,),
    ) -> None:
        self._mailboxes = None if _ANY in mailboxes else tuple(pattern.lower() for pattern in mailboxes)
        self._types = frozenset(name for pattern in types for name in types_of(pattern))
        self._folders = None if _ANY in folders else frozenset(folders)
        self._cache: dict[str, bool] = {}  # by mailbox: whether it matches `mailboxes`

    def matches(self, event: MailboxEvent) -> bool:
        if event.type not in self._types:
            return False
        if self._mailboxes is not None and not self._matches_mailbox(event.mailbox):
            return False
        return self._folders is None or not self._folders.isdisjoint(
            (event.parent_folder_id, event.old_parent_folder_id, event.folder_id)
        )

    def _matches_mailbox(self, mailbox: str) -> bool:
        cached = self._cache.get(mailbox)
        if cached is None:
            if len(self._cache) >= _CACHED_MAILBOXES:
                self._cache.clear()
            lowered = mailbox.lower()
            cached = any(fnmatchcase(lowered, pattern) for pattern in self._mailboxes or ())
            self._cache[mailbox] = cached
        return cached


def _full(pattern: str) -> str:
    return pattern if "." in pattern or _ANY in pattern else f"exchange.*.{pattern}"
