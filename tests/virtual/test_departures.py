"""What is deleted or moved away while a comparison waits for late events is not reported as there afterwards."""

from collections.abc import Callable

import pytest
import trio
import trio.testing

from listener.simulator.mailstore import Event, Folder, Item, Mailbox
from tests.virtual.history import phantoms
from tests.virtual.office import Office, ready, told
from tests.virtual.wire import clock

SENDER = "ben@example.org"


class Case:
    """A mailbox with a draft, an appointment and two folders, one in the other, that all was heard of."""

    def __init__(self, one: Office) -> None:
        self.one = one
        self.box: Mailbox = one.mailbox

    async def prepare(self) -> None:
        box = self.box
        self.drafts, self.calendar = box.distinguished("drafts"), box.distinguished("calendar")
        self.inbox, self.top = box.distinguished("inbox"), box.distinguished("msgfolderroot")
        await self.one.happen(box.save(self.drafts, "IPM.Note", "draft", clock()))
        await self.one.happen(box.save(self.calendar, "IPM.Appointment", "meeting", clock()))
        await self.one.happen(box.create_folder("outer", self.inbox, clock()))
        (self.outer,) = box.own_folders()
        await self.one.happen(box.create_folder("inner", self.outer, clock()))
        self.inner = box.own_folders()[-1]
        await self.one.happen(box.save(self.inner, "IPM.Note", "inside", clock()))
        await trio.sleep(400)
        self.one.catch_up.sweep()
        await self.one.settle()
        self.one.clear()

    def last(self, folder: Folder) -> Item:
        return self.box.latest(folder, 1)[0]

    def newest(self) -> Folder:
        return self.box.own_folders()[-1]


Change = Callable[[Case], list[Event]]

# What happens without a stream, and what a stream reports while the comparison waits.
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
async def test_nothing_is_reported_after_its_deletion(
    case: str, sweep: bool, autojump_clock: trio.testing.MockClock
) -> None:
    missed, heard = CASES[case]
    async with ready() as one:
        there = Case(one)
        await there.prepare()
        since = trio.current_time()
        events = missed(there)
        await one.keep(events)
        changed = {event.item_id or event.folder_id for event in events[:1]}
        if sweep:
            one.catch_up.sweep()
        else:
            one.gap(since)
        await trio.sleep(1)  # the comparison has its answers, and waits
        assert not one.recovered
        # Some servers report only the uppermost folder of those that were deleted.
        inner = there.inner.id if "whose parent" in case else None
        await one.happen(heard(there), lost=lambda event: inner is not None and event.folder_id == inner)
        await one.settle()
        assert phantoms(one) == []
        assert not changed & {event.subject for event in one.recovered}
        # Nor later.
        one.catch_up.sweep()
        await one.settle()
        assert phantoms(one) == []
        assert one.lost() == []


async def test_a_deletion_that_is_being_written_counts(autojump_clock: trio.testing.MockClock) -> None:
    """It is ahead in the journal, though note() comes when it is safe there."""
    async with ready() as one:
        since = trio.current_time()
        await one.keep(one.mailbox.deliver("mail", SENDER, clock()))
        (item,) = one.mailbox.latest(one.mailbox.distinguished("inbox"), 1)
        one.gap(since)
        await trio.sleep(1)
        gone = one.mailbox.purge(item, clock())
        one.lines += one.exchange.publish(gone)
        heard = [told(event) for event in gone]
        one.catch_up.announce(heard)
        await one.publish(heard)
        await trio.sleep(5)
        one.catch_up.note(heard)
        await one.settle()
        assert phantoms(one) == []
        assert item.id not in {event.subject for event in one.recovered}


async def test_an_item_that_comes_back_with_its_id_is_reported(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Exchange gives another id to what comes back; other servers may not."""
    async with ready() as one:
        box, drafts = one.mailbox, one.mailbox.distinguished("drafts")
        await one.happen(box.save(drafts, "IPM.Note", "draft", clock()))
        item = box.latest(drafts, 1)[0]
        await one.happen(box.purge(item, clock()))
        since = trio.current_time()
        drafts.deleted.pop(item.id)
        drafts.items[item.id] = item
        box._changed_item(item, clock())
        one.gap(since)
        await one.settle()
        assert ("item.created", item.id) in one.told
