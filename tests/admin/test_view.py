"""Terminal view of the status."""

import io

import pytest
from rich.console import Console

from listener.admin.snapshot import ReloadStatus, Snapshot
from listener.admin.view import duration, render_status, size
from tests.admin.statuses import group, snapshot


def shown(it: Snapshot, previous: Snapshot | None = None, width: int = 180) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render_status(it, previous))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_main_values_are_shown() -> None:
    text = shown(snapshot())
    for word in ("1.2.3", "listening", "399/400", "up 1m 40s", "audit", "site/2", "199/200", "bob@x.example",
                 "ErrorAccessDenied", "mail.x.example requested a pause of 12s", "token x 50m 0s"):  # fmt: skip
        assert word in text


def test_warnings_are_shown_first() -> None:
    reloads = ReloadStatus(refused=1, problems=("log.level: must be",), pending=("exchange.proxy",))
    text = shown(snapshot(healthy=False, reloads=reloads))
    for warning in ("writer is stuck", "rejected: log.level: must be", "at the next start: exchange.proxy"):
        assert warning in text
        assert text.index(warning) < text.index("audit")


def test_more_streams_than_mailboxes_are_flagged() -> None:
    assert "2 mailboxes have two streams" in shown(snapshot(mailboxes=10, streaming=12))
    assert "two streams" not in shown(snapshot(mailboxes=10, streaming=10))


def test_groups_with_problems_come_first_and_rows_are_limited() -> None:
    groups = (*(group(f"site/{n:03}") for n in range(60)), group("site/999", streaming=1))
    text = shown(snapshot(groups=groups))
    assert text.index("site/999") < text.index("site/000")
    assert "41 more" in text


def test_event_rate() -> None:
    assert "(7/s)" in shown(snapshot(events=84, time=1010.0), snapshot())


def test_control_characters_are_escaped() -> None:
    assert "\x1b[2J" not in shown(snapshot())


def test_narrow_terminal_and_starting_daemon() -> None:
    shown(snapshot(), width=40)
    shown(
        snapshot(
            groups=(), handlers=(), journal=None, catch_up=None, servers=(), mailbox_problems=(), tokens=()
        )
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m 0s"), (3661, "1h 1m"), (200_000, "2d 7h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (2048, "2.0 KiB"), (5 << 30, "5.0 GiB"), (1 << 50, "1024.0 TiB")]
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text
