"""Summing up failures: rules, a model at random, and what comes out of the log."""

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
from listener.log.rate_limit import MOST, WINDOW, RateLimiter, kind_of

FAILED = {"event": "handler.failed", "handler": "audit", "code": "x"}


def test_the_first_is_told_and_the_others_are_counted() -> None:
    repeats = RateLimiter()
    assert [repeats.admits("warning", FAILED | {"id": n}, float(n)) for n in range(4)] == [
        True, False, False, False,
    ]  # fmt: skip
    assert repeats.due(WINDOW - 0.1) == []
    (summary,) = repeats.due(WINDOW)
    assert (summary.line["id"], summary.held_back, summary.seconds) == (3, 3, WINDOW)


def test_while_they_go_on_there_is_one_line_a_minute() -> None:
    repeats = RateLimiter()
    told = 0
    for second in range(600):
        told += repeats.admits("warning", FAILED, float(second))
        told += len(repeats.due(float(second)))
    assert told == 1 + 9


def test_after_a_quiet_minute_the_next_is_told_at_once() -> None:
    repeats = RateLimiter()
    assert repeats.admits("warning", FAILED, 0.0)
    assert repeats.due(WINDOW) == []
    assert repeats.admits("warning", FAILED, WINDOW + 1)


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("info", {"event": "group.started", "group": "a"}),
        ("warning", {"event": "mailbox.suspended", "group": "a", "code": "ErrorAccessDenied"}),
        ("error", {"event": "python.log", "message": "text"}),
        ("error", {"event": "scope.violation", "mailbox": "ceo@b.c"}),  # each name counts
        ("warning", {"event": "mailboxes.refresh_failed", "source": "all@b.c", "code": "ErrorServerBusy"}),
    ],
)
def test_what_is_never_held_back(method: str, line: dict[str, Any]) -> None:
    assert kind_of(method, line) is None
    repeats = RateLimiter()
    assert all(repeats.admits(method, line, 0.0) for _ in range(10))


@pytest.mark.parametrize(
    "other", [{"event": "handler.timeout"}, {"handler": "b"}, {"code": "y"}, {"group": "g"}]
)
def test_what_tells_lines_apart(other: dict[str, Any]) -> None:
    repeats = RateLimiter()
    assert repeats.admits("warning", FAILED, 0.0)
    assert repeats.admits("warning", FAILED | other, 0.0)


def test_what_was_raised_tells_lines_apart_where_there_is_no_code() -> None:
    line = {"event": "handler.failed", "handler": "audit"}
    repeats = RateLimiter()
    assert repeats.admits("warning", line | {"exc_info": ValueError("one")}, 0.0)
    assert repeats.admits("warning", line | {"exc_info": KeyError("two")}, 0.0)
    assert not repeats.admits("warning", line | {"exc_info": ValueError("three")}, 0.0)


def test_a_failure_that_comes_and_goes_tells_no_more_of_its_going() -> None:
    repeats, told = RateLimiter(), list[str]()
    for second in range(121):  # as a journal at its limit, whose handler lags
        for method, event in (("error", "journal.full"), ("info", "journal.room")):
            told += [event] * repeats.admits(method, {"event": event}, float(second))
        told += [summary.line["event"] for summary in repeats.due(float(second))]
    assert told == ["journal.full", "journal.room"] * 3


def test_what_came_last_is_told_last() -> None:
    repeats = RateLimiter()
    for event in ("journal.full", "journal.room", "journal.full", "journal.room", "journal.full"):
        repeats.admits("error", {"event": event}, 0.0)
    assert [summary.line["event"] for summary in repeats.due(WINDOW)] == ["journal.room", "journal.full"]


def test_what_is_kept_in_mind_is_bounded() -> None:
    repeats = RateLimiter()
    for n in range(MOST):
        assert repeats.admits("warning", FAILED | {"code": str(n)}, 0.0)
    for _ in range(3):
        assert repeats.admits("warning", FAILED | {"code": "one too many"}, 0.0)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 40)), max_size=200),
    st.floats(1, 30),
)
def test_every_line_is_told_or_counted_once(lines: list[tuple[str, float]], look_every: float) -> None:
    repeats, now, looked = RateLimiter(), 0.0, 0.0
    made, told, moments = Counter[str](), Counter[str](), dict[str, list[float]]()
    for code, pause in lines:
        now += pause
        if now - looked > look_every:
            looked = now
            for summary in repeats.due(now):
                told[summary.line["code"]] += summary.held_back
                moments.setdefault(summary.line["code"], []).append(now)
        made[code] += 1
        if repeats.admits("warning", FAILED | {"code": code}, now):
            told[code] += 1
            moments.setdefault(code, []).append(now)
    for summary in repeats.due(now, everything=True):
        told[summary.line["code"]] += summary.held_back
    assert told == made
    for code_moments in moments.values():
        assert all(b - a >= WINDOW - 1e-6 for a, b in pairwise(code_moments))


def test_with_no_window_every_line_is_told() -> None:
    repeats = RateLimiter(0.0)
    assert all(repeats.admits("warning", FAILED, 0.0) for _ in range(10))


# --- through the log


def test_the_summary_is_a_line_of_the_log_without_the_traceback() -> None:
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


def test_at_the_end_all_that_was_held_back_is_told() -> None:
    stream = io.TextIOWrapper(buffer := io.BytesIO())
    log.configure("info", "json", stream)
    for _ in range(3):
        structlog.get_logger().info("mailbox.refused", group="g", code="ErrorServerBusy")
    log.tell_repeated(everything=True)
    log.tell_repeated(everything=True)
    assert [json.loads(line).get("repeated") for line in buffer.getvalue().splitlines()] == [None, 2]
    stream.close()
