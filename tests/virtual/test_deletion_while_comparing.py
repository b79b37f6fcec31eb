"""Things that are deleted or moved away during a comparison are not reported as created or modified afterwards."""

from collections.abc import Callable

import pytest
import trio
import trio.testing

from listener.simulator.mailstore import Event, Folder, Item, Mailbox
from tests.virtual.harness import CatchUpHarness, ready_harness, to_event
from tests.virtual.random_history import reported_after_deletion
from tests.virtual.wire import clock

SENDER = "ben@example.org"


class Scenario:
    """A mailbox with a draft, an appointment and two nested folders, all of them reported."""

    def __init__(self, harness: CatchUpHarness) -> None:
        self.harness = harness
        self.box: Mailbox = harness.mailbox

    async def prepare(self) -> None:
        box = self.box
        self.drafts, self.calendar = box.distinguished("drafts"), box.distinguished("calendar")
        self.inbox, self.top = box.distinguished("inbox"), box.distinguished("msgfolderroot")
        await self.harness.report(box.save(self.drafts, "IPM.Note", "draft", clock()))
        await self.harness.report(box.save(self.calendar, "IPM.Appointment", "meeting", clock()))
        await self.harness.report(box.create_folder("outer", self.inbox, clock()))
        (self.outer,) = box.own_folders()
        await self.harness.report(box.create_folder("inner", self.outer, clock()))
        self.inner = box.own_folders()[-1]
        await self.harness.report(box.save(self.inner, "IPM.Note", "inside", clock()))
        await trio.sleep(400)
        self.harness.catch_up.sweep()
        await self.harness.settle()
        self.harness.clear()

    def last(self, folder: Folder) -> Item:
        return self.box.latest(folder, 1)[0]

    def newest(self) -> Folder:
        return self.box.own_folders()[-1]


Change = Callable[[Scenario], list[Event]]

# A change that no stream reports, and one that the stream reports while the comparison waits for late events.
CASES: dict[str, tuple[Change, Change]] = {
    "mail, deleted": (
        lambda c: c.box.deliver("mail", SENDER, clock()),
        lambda c: c.box.purge(c.last(c.inbox), clock()),
    ),
    "mail, moved away": (
        lambda c: c.box.deliver("mail", SENDER, clock()),
        lambda c: c.box.move(c.last(c.inbox), c.drafts, clock()),
    ),
    "an edited draft, deleted": (
        lambda c: c.box.edit(c.last(c.drafts), "other", clock()),
        lambda c: c.box.purge(c.last(c.drafts), clock()),
    ),
    "a read flag, moved away": (
        lambda c: c.box.mark(c.last(c.drafts), clock(), read=False),
        lambda c: c.box.move(c.last(c.drafts), c.inbox, clock()),
    ),
    "an appointment, deleted": (
        lambda c: c.box.save(c.calendar, "IPM.Appointment", "new", clock()),
        lambda c: c.box.purge(c.last(c.calendar), clock()),
    ),
    "a changed appointment, deleted": (
        lambda c: c.box.reschedule(c.last(c.calendar), clock()),
        lambda c: c.box.purge(c.last(c.calendar), clock()),
    ),
    "a new folder, deleted": (
        lambda c: c.box.create_folder("new", c.inbox, clock()),
        lambda c: c.box.purge_folder(c.newest(), clock()),
    ),
    "a renamed folder, deleted": (
        lambda c: c.box.rename_folder(c.inner, "other", clock()),
        lambda c: c.box.purge_folder(c.inner, clock()),
    ),
    "a moved folder, deleted": (
        lambda c: c.box.move_folder(c.inner, c.top, clock()),
        lambda c: c.box.purge_folder(c.inner, clock()),
    ),
    "an item in a folder that is deleted": (
        lambda c: c.box.save(c.inner, "IPM.Note", "new", clock()),
        lambda c: c.box.purge_folder(c.inner, clock()),
    ),
    "an item in a folder whose parent is deleted": (
        lambda c: c.box.save(c.inner, "IPM.Note", "new", clock()),
        lambda c: c.box.purge_folder(c.outer, clock()),
    ),
    "a new folder with an item, deleted": (
        lambda c: [
            *c.box.create_folder("new", c.inbox, clock()),
            *c.box.save(c.newest(), "IPM.Note", "new", clock()),
        ],
        lambda c: c.box.purge_folder(c.newest(), clock()),
    ),
}


@pytest.mark.parametrize("sweep", [False, True])
@pytest.mark.parametrize("case", CASES)
async def test_deleted_things_are_not_reported_as_created_or_modified(
    case: str, sweep: bool, autojump_clock: trio.testing.MockClock
) -> None:
    missed, streamed = CASES[case]
    async with ready_harness() as harness:
        scenario = Scenario(harness)
        await scenario.prepare()
        since = trio.current_time()
        events = missed(scenario)
        await harness.hold_back(events)
        changed = {event.item_id or event.folder_id for event in events[:1]}
        if sweep:
            harness.catch_up.sweep()
        else:
            harness.gap(since)
        await trio.sleep(1)  # the comparison has its answers and waits for late events
        assert not harness.recovered
        # Some servers report only the top folder of a deleted tree.
        inner = scenario.inner.id if "whose parent" in case else None
        await harness.report(
            streamed(scenario), withheld=lambda event: inner is not None and event.folder_id == inner
        )
        await harness.settle()
        assert reported_after_deletion(harness) == []
        assert not changed & {event.subject for event in harness.recovered}
        # A later comparison does not report it either.
        harness.catch_up.sweep()
        await harness.settle()
        assert reported_after_deletion(harness) == []
        assert harness.lost() == []


async def test_deletion_that_is_still_being_journaled_counts(autojump_clock: trio.testing.MockClock) -> None:
    """It precedes the comparison's events in the journal, although note() is called only when it is durable."""
    async with ready_harness() as harness:
        since = trio.current_time()
        await harness.hold_back(harness.mailbox.deliver("mail", SENDER, clock()))
        (item,) = harness.mailbox.latest(harness.mailbox.distinguished("inbox"), 1)
        harness.gap(since)
        await trio.sleep(1)
        gone = harness.mailbox.purge(item, clock())
        harness.lines += harness.exchange.publish(gone)
        streamed = [to_event(event) for event in gone]
        harness.catch_up.announce(streamed)
        await harness.publish(streamed)
        await trio.sleep(5)
        harness.catch_up.note(streamed)
        await harness.settle()
        assert reported_after_deletion(harness) == []
        assert item.id not in {event.subject for event in harness.recovered}


async def test_item_that_returns_with_its_id_is_reported(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Exchange gives a restored item another id. Other servers may not."""
    async with ready_harness() as harness:
        box, drafts = harness.mailbox, harness.mailbox.distinguished("drafts")
        await harness.report(box.save(drafts, "IPM.Note", "draft", clock()))
        item = box.latest(drafts, 1)[0]
        await harness.report(box.purge(item, clock()))
        since = trio.current_time()
        drafts.deleted.pop(item.id)
        drafts.items[item.id] = item
        box._changed_item(item, clock())
        harness.gap(since)
        await harness.settle()
        assert ("item.created", item.id) in harness.recovered_changes
