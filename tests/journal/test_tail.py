"""The newest events in memory."""

from hypothesis import given
from hypothesis import strategies as st

from listener.event import MailboxEvent
from listener.journal.tail import Tail

from .tools import events, items


def test_old_events_leave_the_tail() -> None:
    tail = Tail(capacity=8, end=100)
    for first in range(101, 141, 4):
        tail.extend(first, events(range(first, first + 4)), first + 3)
    assert tail.after(100, 50) is None
    assert tail.after(140, 50) == []
    assert items(tail.after(132, 3) or []) == [133, 134, 135]
    assert items(tail.after(134, 3) or []) == [135, 136, 137]


def test_events_of_other_processes_are_not_in_the_tail() -> None:
    tail = Tail(capacity=100, end=0)
    tail.extend(1, events([1, 2]), 2)
    tail.extend(5, events([5]), 5)  # another process wrote 3 and 4
    assert tail.after(2, 10) is None
    assert items(tail.after(4, 10) or []) == [5]
    tail.extend(6, [], 7)
    assert tail.after(5, 10) is None
    assert tail.after(7, 10) == []


@given(st.lists(st.integers(0, 5)), st.integers(1, 20), st.data())
def test_after_returns_all_later_entries_or_none(
    sizes: list[int], capacity: int, data: st.DataObject
) -> None:
    tail, written = Tail(capacity, 0), list[MailboxEvent]()
    for size in sizes:
        batch = events(range(len(written) + 1, len(written) + 1 + size))
        written += batch
        tail.extend(tail.end + 1, batch, len(written))
    position = data.draw(st.integers(0, len(written)))
    limit = data.draw(st.integers(1, 30))
    found = tail.after(position, limit)
    if found is None:
        assert position < len(written) - capacity
    else:
        assert items(found) == list(range(position + 1, min(len(written), position + limit) + 1))
        assert [entry.position for entry in found] == items(found)
