"""A history at random: users at work, a stream that loses events and has gaps, comparisons at any moment, requests
that fail, states that the server forgets."""

from collections.abc import Mapping, Sequence
from random import Random

import trio

from listener.ews.codes import Failure
from listener.simulator.traffic import Traffic
from tests.virtual.office import Office
from tests.virtual.wire import clock


async def happens(
    one: Office,
    users: Traffic,
    rng: Random,
    *,
    seconds: int,
    leaks: Sequence[float],
    failures: Mapping[str, Sequence[str]],
    forgetful: float = 0.0,
) -> None:
    """Lets it happen. `leaks`: how much of a stream may be lost, one of these each second; `failures`: what requests
    of each operation may fail with; `forgetful`: how likely the server forgets its states in a second."""
    since: float | None = None
    for _ in range(seconds):
        await trio.sleep(1)
        leak = rng.choice(leaks)
        # What happens within a second is told in one envelope, or lost with it.
        heard = since is None and rng.random() >= leak
        await (one.happen if heard else one.keep)(users.due(clock()))
        what = rng.random()
        if what < 0.05 and since is None:
            since = trio.current_time()
        elif what < 0.2 and since is not None:
            one.gap(since)
            since = None
        elif what < 0.25:
            one.catch_up.sweep()
        elif what < 0.3:
            operation = rng.choice(list(failures))
            codes = failures[operation]
            code = codes[0] if len(codes) == 1 else rng.choice(codes)
            one.fail.setdefault(operation, []).append(Failure(code=code))
        elif what < 0.3 + forgetful:
            one.mailbox.lose_sync_states(quietly=rng.random() < 0.5)
    if since is not None:
        one.gap(since)


def phantoms(one: Office) -> list[tuple[str, str | None]]:
    """What was reported as created, modified or new mail after its deletion, or its move to another id, was
    delivered, and what was reported in a folder after that folder's deletion was."""
    gone: set[str | None] = set()
    found = []
    for event in one.events:
        word = event.type.rpartition(".")[2]
        if word == "deleted":
            gone.add(event.subject)
        elif (
            event.recovered
            and word in ("created", "modified", "new_mail")
            and {event.subject, event.parent_folder_id} & gone
        ):
            found.append((event.type, event.subject))
        elif word == "moved" and event.item_id is not None:
            gone.add(event.old_item_id)
    return found


def things(one: Office) -> set[str]:
    """The ids of all items and folders that are there now."""
    folders = one.mailbox.folders
    return {*folders, *(id_ for folder in folders.values() for id_ in folder.items)}


def too_old(one: Office, old: set[str]) -> list[tuple[str, str | None]]:
    """What was reported as created or new mail though it had been there before the mailbox was listened to."""
    words = ("created", "new_mail")
    return [
        (event.type, event.subject)
        for event in one.recovered
        if event.type.rpartition(".")[2] in words and event.subject in old
    ]
