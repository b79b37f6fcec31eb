from hypothesis import example, given
from hypothesis import strategies as st

from listener.backoff import Backoff


def test_delays_grow_to_the_cap() -> None:
    backoff = Backoff(first=1.0, factor=2.0, cap=60.0)
    assert [backoff.longest(n) for n in (1, 2, 3, 6, 7, 10_000)] == [1, 2, 4, 32, 60, 60]


BACKOFFS = st.builds(
    lambda first, factor, more: Backoff(first, factor, first + more),
    st.floats(0, 1000),
    st.floats(1, 10),
    st.floats(0, 10_000),
)


@given(BACKOFFS, st.integers(1, 10**6), st.floats(0, 1), st.one_of(st.none(), st.floats(0, 1000)))
@example(Backoff(first=0.1, factor=3.0, cap=0.7000000000000001), 9, 0.9999999999999999, 0.3)
def test_delay_is_never_shorter_than_retry_after(
    backoff: Backoff, n: int, jitter: float, retry_after: float | None
) -> None:
    wait = backoff.delay(n, jitter, retry_after)
    assert (retry_after or 0) <= wait <= (retry_after or 0) + backoff.longest(n)
    assert backoff.delay(n, 1.0) == backoff.longest(n)


def test_jitter_is_full_below_the_cap_and_half_at_the_cap() -> None:
    backoff = Backoff(first=1.0, factor=2.0, cap=60.0)
    assert [backoff.delay(n, 0.0) for n in (1, 2, 6, 7, 8)] == [0, 0, 0, 30, 30]
