"""Random histories: user changes, a stream that loses events and has gaps, comparisons at any moment, failed
requests, SyncStates that the server loses."""

from collections.abc import Mapping, Sequence
from random import Random

import trio

from listener.ews.codes import Failure
from listener.simulator.traffic import Traffic
from tests.virtual.harness import CatchUpHarness
from tests.virtual.wire import clock


async def run_random_history(
    harness: CatchUpHarness,
    users: Traffic,
    rng: Random,
    *,
    seconds: int,
    loss_rates: Sequence[float],
    failures: Mapping[str, Sequence[str]],
    state_loss_rate: float = 0.0,
) -> None:
    """Run a random history.

    `loss_rates`: probabilities that a second's events are lost; one is chosen each second. `failures`: codes by
    operation. `state_loss_rate`: probability for each second that the server loses its SyncStates.
    """
    since: float | None = None
    for _ in range(seconds):
        await trio.sleep(1)
        loss_rate = rng.choice(loss_rates)
        # The events of one second come in one envelope, or are lost with it.
        streamed = since is None and rng.random() >= loss_rate
        await (harness.report if streamed else harness.hold_back)(users.due(clock()))
        what = rng.random()
        if what < 0.05 and since is None:
            since = trio.current_time()
        elif what < 0.2 and since is not None:
            harness.gap(since)
            since = None
        elif what < 0.25:
            harness.catch_up.sweep()
        elif what < 0.3:
            operation = rng.choice(list(failures))
            codes = failures[operation]
            code = codes[0] if len(codes) == 1 else rng.choice(codes)
            harness.failures.setdefault(operation, []).append(Failure(code=code))
        elif what < 0.3 + state_loss_rate:
            harness.mailbox.lose_sync_states(quietly=rng.random() < 0.5)
    if since is not None:
        harness.gap(since)


def reported_after_deletion(harness: CatchUpHarness) -> list[tuple[str, str | None]]:
    """Return things that were reported as created, modified or new mail after their deletion.

    A move to another id and the deletion of the folder count as a deletion.
    """
    gone: set[str | None] = set()
    found = []
    for event in harness.events:
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


def existing_ids(harness: CatchUpHarness) -> set[str]:
    """Return the ids of all items and folders that exist now."""
    folders = harness.mailbox.folders
    return {*folders, *(id_ for folder in folders.values() for id_ in folder.items)}


def reported_as_new(harness: CatchUpHarness, old: set[str]) -> list[tuple[str, str | None]]:
    """Return old things that were reported as created or new mail. `old`: ids from before the first subscription."""
    words = ("created", "new_mail")
    return [
        (event.type, event.subject)
        for event in harness.recovered
        if event.type.rpartition(".")[2] in words and event.subject in old
    ]
