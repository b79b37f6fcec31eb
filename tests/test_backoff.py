from hypothesis import given
from hypothesis import strategies as st

from listener.backoff import Backoff


def test_waits_grow_to_the_cap() -> None:
    backoff = Backoff(first=1.0, factor=2.0, cap=60.0)
    assert [backoff.longest(n) for n in (1, 2, 3, 6, 7, 10_000)] == [1, 2, 4, 32, 60, 60]


@given(st.integers(1, 10**6), st.floats(0, 1), st.one_of(st.none(), st.floats(0, 1000)))
def test_jitter_is_full_and_never_undercuts_what_the_server_told(
    n: int, dice: float, told: float | None
) -> None:
    backoff = Backoff()
    wait = backoff.delay(n, dice, told)
    assert (told or 0) <= wait <= (told or 0) + backoff.longest(n)
    assert backoff.delay(n, 1.0) == backoff.longest(n)


def test_jitter_is_full_until_the_cap_and_half_from_there_on() -> None:
    backoff = Backoff(first=1.0, factor=2.0, cap=60.0)
    assert [backoff.delay(n, 0.0) for n in (1, 2, 6, 7, 8)] == [0, 0, 0, 30, 30]
