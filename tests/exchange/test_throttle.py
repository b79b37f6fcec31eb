"""The throttle of one account and server, on a virtual clock."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import structlog.testing
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from listener.ews.codes import Failure
from listener.exchange.throttle import MAX_UNKNOWN_CODES, Throttle, Throttles


def busy(seconds: float | None, code: str = "ErrorServerBusy") -> Failure:
    return Failure(code=code, wait=seconds)


@dataclass
class Requests:
    """Requests of one second each through a throttle, and the time when each was admitted."""

    throttle: Throttle
    admitted: list[float] = field(default_factory=list)
    running: int = 0
    most: int = 0

    async def one(self, *, lasts: float = 1.0, failure: Failure | None = None) -> None:
        async with self.throttle:
            self.admitted.append(trio.current_time())
            self.running += 1
            self.most = max(self.most, self.running)
            await trio.sleep(lasts)
            self.running -= 1
            if failure is None:
                self.throttle.succeeded()
            else:
                self.throttle.failed(failure)

    async def many(self, count: int, *, lasts: float = 1.0, failure: Failure | None = None) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(count):

                async def one() -> None:
                    await self.one(lasts=lasts, failure=failure)

                nursery.start_soon(one)


async def succeed_for(throttle: Throttle, seconds: float) -> None:
    """Let time pass with a successful request each second."""
    for _ in range(round(seconds)):
        await trio.sleep(1)
        throttle.succeeded()


async def test_concurrent_requests_are_limited(autojump_clock: trio.testing.MockClock) -> None:
    requests = Requests(Throttle(10))
    await requests.many(35)
    assert requests.most == 10
    assert [requests.admitted.count(second) for second in sorted(set(requests.admitted))] == [10, 10, 10, 5]


async def test_a_pause_holds_all_requests(autojump_clock: trio.testing.MockClock) -> None:
    throttle = Throttle(10)
    requests = Requests(throttle)
    await requests.one(failure=busy(30))
    assert throttle.pause == 30
    started_at = trio.current_time()
    await requests.many(3)
    assert [moment - started_at for moment in requests.admitted[1:]] == [30, 30, 30]
    assert throttle.pause == 0


async def test_a_waiting_request_respects_a_pause_that_begins_meanwhile(
    autojump_clock: trio.testing.MockClock,
) -> None:
    requests = Requests(Throttle(2))
    started_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(lambda: requests.one(failure=busy(7)))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(4):
            nursery.start_soon(requests.one)
    assert [moment - started_at for moment in requests.admitted] == [0, 0, 8, 8, 9, 9]


async def test_an_extended_pause_lasts_to_its_new_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    throttle = Throttle(10)
    requests = Requests(throttle)
    started_at = trio.current_time()
    throttle.failed(busy(5))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(requests.one)
        await trio.sleep(3)
        throttle.failed(busy(9))  # of a request in flight
        await trio.sleep(1)
        throttle.failed(busy(2))  # a shorter pause does not shorten the current one
    assert [moment - started_at for moment in requests.admitted] == [12]


async def test_a_busy_server_halves_the_limit_down_to_two(autojump_clock: trio.testing.MockClock) -> None:
    throttle = Throttle(20)
    limits = []
    for _ in range(6):
        throttle.failed(busy(1))
        limits.append(throttle.limit)
        await trio.sleep(1)
    assert limits == [10, 5, 2, 2, 2, 2]


@pytest.mark.parametrize("most", [1, 2, 3])
async def test_a_small_limit_stays_as_configured(autojump_clock: trio.testing.MockClock, most: int) -> None:
    throttle = Throttle(most)
    throttle.failed(busy(1))
    assert throttle.limit == min(2, most)
    await trio.sleep(1)
    await succeed_for(throttle, 100)
    assert throttle.limit == most


async def test_requests_in_flight_halve_the_limit_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    throttle = Throttle(16)
    requests = Requests(throttle)
    with structlog.testing.capture_logs() as lines:
        await requests.many(16, failure=busy(10))
    assert throttle.limit == 8
    assert throttle.pause == 10
    assert [(line["event"], line["code"], line["seconds"], line["concurrency"]) for line in lines] == [
        ("exchange.busy", "ErrorServerBusy", 10, 8)
    ]


async def test_the_limit_rises_by_one_each_ten_seconds_up_to_the_configured_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    throttle = Throttle(6)
    throttle.failed(busy(4))
    await trio.sleep(4)
    limits = []
    for _ in range(6):
        await succeed_for(throttle, 9)
        before = throttle.limit
        await succeed_for(throttle, 1)
        limits.append((before, throttle.limit))
    assert limits == [(3, 4), (4, 5), (5, 6), (6, 6), (6, 6), (6, 6)]


async def test_only_a_successful_request_raises_the_limit(autojump_clock: trio.testing.MockClock) -> None:
    """Time without requests does not raise it, and one success raises it by one only."""
    throttle = Throttle(8)
    throttle.failed(busy(1))
    await trio.sleep(3600)
    assert throttle.limit == 4
    throttle.succeeded()
    assert throttle.limit == 5


async def test_without_a_pause_of_the_server_the_pause_doubles(
    autojump_clock: trio.testing.MockClock,
) -> None:
    throttle = Throttle(10)
    for wait in (0.0, None):
        pauses = []
        for _ in range(8):
            throttle.failed(busy(wait, "ErrorExceededConnectionCount"))
            pauses.append(throttle.pause)
            await trio.sleep(throttle.pause)
        assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
        throttle.succeeded()


async def test_other_failures_do_not_change_the_limit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    throttle = Throttle(10)
    for code in ("Http500", "ErrorNonExistentMailbox", "ConnectFailed", "ErrorOfAnotherDay"):
        throttle.failed(Failure(code=code))
    assert (throttle.limit, throttle.pause) == (10, 0)


async def test_a_cancelled_wait_takes_no_slot(autojump_clock: trio.testing.MockClock) -> None:
    throttle = Throttle(2)
    throttle.failed(busy(60))
    with trio.move_on_after(1):
        await Requests(throttle).many(5)
    requests = Requests(throttle)
    await requests.many(4)
    assert requests.most == 2
    assert len(requests.admitted) == 4


async def test_a_failed_request_releases_its_slot(autojump_clock: trio.testing.MockClock) -> None:
    throttle = Throttle(1)
    with pytest.raises(LookupError):
        async with throttle:
            raise LookupError
    requests = Requests(throttle)
    await requests.one()
    assert len(requests.admitted) == 1


async def test_each_server_has_its_own_throttle(autojump_clock: trio.testing.MockClock) -> None:
    throttles = Throttles(10)
    one, other = (
        throttles.of("https://one.example/EWS/Exchange.asmx"),
        throttles.of("https://other.example/EWS"),
    )
    one.failed(busy(30))
    assert throttles.of("https://one.example/autodiscover/autodiscover.svc") is one
    assert (other.limit, other.pause) == (10, 0)
    assert (throttles.limit, throttles.pause) == (5, 30)
    requests = Requests(other)
    started_at = trio.current_time()
    await requests.one()
    assert requests.admitted == [started_at]


# --- any sequence of requests

WAIT = st.one_of(st.none(), st.sampled_from([0.0, 0.5, 3.0, 30.0]))
ASK = st.tuples(
    st.sampled_from([0.0, 0.1, 1.0, 20.0]),  # seconds until the next request begins
    st.sampled_from([0.1, 1.0, 15.0]),  # seconds that the request takes
    st.one_of(st.just("ok"), st.just("Http503"), WAIT),
)


@settings(max_examples=150, deadline=None)
@given(most=st.integers(1, 12), asked=st.lists(ASK, max_size=40))
def test_any_sequence_of_requests_respects_limit_and_pause(
    most: int, asked: list[tuple[float, float, str | float | None]]
) -> None:
    admitted = 0

    async def run() -> None:
        throttle = Throttle(most)
        running = 0
        paused_until = -1.0

        def answer(of: str | float | None) -> None:
            nonlocal paused_until
            if of == "ok":
                before = throttle.limit
                throttle.succeeded()
                assert before <= throttle.limit <= before + 1
            elif isinstance(of, str):
                throttle.failed(Failure(code=of))
            else:
                throttle.failed(busy(of))
                paused_until = max(paused_until, trio.current_time() + (of or 0.0))
                assert throttle.pause > 0 or of == 0

        def ask(lasts: float, of: str | float | None) -> Callable[[], Awaitable[None]]:
            async def one() -> None:
                nonlocal running, admitted
                async with throttle:
                    running += 1
                    admitted += 1
                    assert running <= most
                    assert trio.current_time() >= paused_until
                    assert throttle.pause == 0
                    await trio.sleep(lasts)
                    running -= 1
                    answer(of)
                    assert min(2, most) <= throttle.limit <= most

            return one

        async with trio.open_nursery() as nursery:
            for pause, lasts, of in asked:
                await trio.sleep(pause)
                nursery.start_soon(ask(lasts, of))

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
    assert admitted == len(asked), "a request was never admitted"


async def test_the_number_of_remembered_unknown_codes_is_limited() -> None:
    throttle = Throttle(10)
    with structlog.testing.capture_logs() as logged:
        for number in range(10 * MAX_UNKNOWN_CODES):
            throttle.failed(Failure(code=f"ErrorNew{number}"))
            throttle.failed(Failure(code="ErrorNew1"))
    assert len(logged) == len(throttle._unknown_codes) == MAX_UNKNOWN_CODES
    assert set(throttle.answers) == {"other"}
