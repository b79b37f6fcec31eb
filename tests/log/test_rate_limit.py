"""Rate limiting of repeated failures: rules, a randomized model, and the output of the log."""

import io
import json
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from listener import log
from listener.log.rate_limit import MAX_KEYS, WINDOW, RateLimiter, repeat_key

FAILED = {"event": "handler.failed", "handler": "audit", "code": "x"}


def test_first_line_is_logged_and_repeats_are_counted() -> None:
    limiter = RateLimiter()
    assert [limiter.allows("warning", FAILED | {"id": n}, float(n)) for n in range(4)] == [
        True, False, False, False,
    ]  # fmt: skip
    assert limiter.summaries(WINDOW - 0.1) == []
    (summary,) = limiter.summaries(WINDOW)
    assert (summary.line["id"], summary.suppressed, summary.seconds) == (3, 3, WINDOW)


def test_continuing_failure_is_logged_once_per_window() -> None:
    limiter = RateLimiter()
    logged = 0
    for second in range(600):
        logged += limiter.allows("warning", FAILED, float(second))
        logged += len(limiter.summaries(float(second)))
    assert logged == 1 + 9


def test_after_a_quiet_window_the_next_line_is_logged_at_once() -> None:
    limiter = RateLimiter()
    assert limiter.allows("warning", FAILED, 0.0)
    assert limiter.summaries(WINDOW) == []
    assert limiter.allows("warning", FAILED, WINDOW + 1)


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("info", {"event": "group.started", "group": "a"}),
        ("warning", {"event": "mailbox.suspended", "group": "a", "code": "ErrorAccessDenied"}),
        ("error", {"event": "python.log", "message": "text"}),
        ("error", {"event": "scope.violation", "mailbox": "ceo@b.c"}),  # each mailbox matters
        ("warning", {"event": "mailboxes.refresh_failed", "source": "all@b.c", "code": "ErrorServerBusy"}),
    ],
)
def test_lines_that_are_never_suppressed(method: str, line: dict[str, Any]) -> None:
    assert repeat_key(method, line) is None
    limiter = RateLimiter()
    assert all(limiter.allows(method, line, 0.0) for _ in range(10))


@pytest.mark.parametrize(
    "other", [{"event": "handler.timeout"}, {"handler": "b"}, {"code": "y"}, {"group": "g"}]
)
def test_fields_that_distinguish_failures(other: dict[str, Any]) -> None:
    limiter = RateLimiter()
    assert limiter.allows("warning", FAILED, 0.0)
    assert limiter.allows("warning", FAILED | other, 0.0)


def test_exception_type_distinguishes_failures_without_a_code() -> None:
    line = {"event": "handler.failed", "handler": "audit"}
    limiter = RateLimiter()
    assert limiter.allows("warning", line | {"exc_info": ValueError("one")}, 0.0)
    assert limiter.allows("warning", line | {"exc_info": KeyError("two")}, 0.0)
    assert not limiter.allows("warning", line | {"exc_info": ValueError("three")}, 0.0)


def test_recoveries_are_limited_like_their_failures() -> None:
    limiter, logged = RateLimiter(), list[str]()
    for second in range(121):  # like a full journal with a lagging handler
        for method, event in (("error", "journal.full"), ("info", "journal.room")):
            logged += [event] * limiter.allows(method, {"event": event}, float(second))
        logged += [summary.line["event"] for summary in limiter.summaries(float(second))]
    assert logged == ["journal.full", "journal.room"] * 3


def test_summaries_are_in_the_order_of_the_last_lines() -> None:
    limiter = RateLimiter()
    for event in ("journal.full", "journal.room", "journal.full", "journal.room", "journal.full"):
        limiter.allows("error", {"event": event}, 0.0)
    assert [summary.line["event"] for summary in limiter.summaries(WINDOW)] == [
        "journal.room",
        "journal.full",
    ]


def test_number_of_tracked_failures_is_limited() -> None:
    limiter = RateLimiter()
    for n in range(MAX_KEYS):
        assert limiter.allows("warning", FAILED | {"code": str(n)}, 0.0)
    for _ in range(3):
        assert limiter.allows("warning", FAILED | {"code": "one too many"}, 0.0)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 40)), max_size=200),
    st.floats(1, 30),
)
def test_each_line_is_logged_or_counted_once(lines: list[tuple[str, float]], interval: float) -> None:
    limiter, now, summarized_at = RateLimiter(), 0.0, 0.0
    made, logged, times = Counter[str](), Counter[str](), dict[str, list[float]]()
    for code, pause in lines:
        now += pause
        if now - summarized_at > interval:
            summarized_at = now
            for summary in limiter.summaries(now):
                logged[summary.line["code"]] += summary.suppressed
                times.setdefault(summary.line["code"], []).append(now)
        made[code] += 1
        if limiter.allows("warning", FAILED | {"code": code}, now):
            logged[code] += 1
            times.setdefault(code, []).append(now)
    for summary in limiter.summaries(now, everything=True):
        logged[summary.line["code"]] += summary.suppressed
    assert logged == made
    for code_times in times.values():
        assert all(b - a >= WINDOW - 1e-6 for a, b in pairwise(code_times))


def test_without_a_window_every_line_is_logged() -> None:
    limiter = RateLimiter(0.0)
    assert all(limiter.allows("warning", FAILED, 0.0) for _ in range(10))


# --- output of the log


def test_summary_is_logged_without_the_traceback() -> None:
    now = [0.0]
    stream = io.TextIOWrapper(buffer := io.BytesIO())
    log.configure("info", "json", stream, clock=lambda: now[0])
    for number in range(5):
        structlog.get_logger().warning("handler.failed", handler="a", id=number, exc_info=ValueError("boom"))
    now[0] = 61.0
    log.tell_repeated()
    first, second = (json.loads(line) for line in buffer.getvalue().splitlines())
    assert first["id"] == 0
    assert "boom" in first["exception"]
    assert second.items() >= {"level": "warning", "event": "handler.failed", "handler": "a", "id": 4}.items()
    assert (second["repeated"], second["within"]) == (4, 61.0)
    assert "exception" not in second
    stream.close()


def test_all_suppressed_lines_are_summarized_at_the_end() -> None:
    stream = io.TextIOWrapper(buffer := io.BytesIO())
    log.configure("info", "json", stream)
    for _ in range(3):
        structlog.get_logger().info("mailbox.refused", group="g", code="ErrorServerBusy")
    log.tell_repeated(everything=True)
    log.tell_repeated(everything=True)
    assert [json.loads(line).get("repeated") for line in buffer.getvalue().splitlines()] == [None, 2]
    stream.close()
