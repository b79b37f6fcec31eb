"""The stored offset of a handler."""

from hypothesis import given
from hypothesis import strategies as st

from listener.journal.progress import Progress


def test_cursor_is_below_the_first_unfinished_position() -> None:
    progress = Progress(10)
    progress.hand_out([11, 12, 15], 20)
    assert (progress.cursor, len(progress)) == (10, 3)
    progress.finish([12, 15])
    assert progress.cursor == 10
    progress.finish([11, 99])
    assert (progress.cursor, progress.unfinished) == (20, ())


def test_long_run_is_packed_compactly() -> None:
    progress = Progress(0)
    progress.hand_out(range(1, 10_001), 10_000)
    progress.finish([5000])
    assert len(progress.pack()) < 20


@given(st.sets(st.integers(1, 300)), st.sets(st.integers(1, 300)))
def test_packing_round_trip(given_out: set[int], finished: set[int]) -> None:
    progress = Progress(0)
    progress.hand_out(sorted(given_out), 300)
    progress.finish(finished)
    again = Progress.unpack(progress.upto, progress.pack())
    assert again.unfinished == tuple(sorted(given_out - finished))
    assert (again.upto, again.cursor) == (300, min(given_out - finished, default=301) - 1)
