import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from listener import MailboxEvent
from listener.handlers.file import open_file

EVENTS = [
    MailboxEvent(
        type="exchange.item.created", mailbox="a@b.c", time="2026-01-01T00:00:00Z", item_id=str(number)
    )
    for number in range(5)
]
LINES = [event.to_json() for event in EVENTS]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """As if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    action = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, action)


async def test_an_acknowledged_event_is_in_the_file(path: Path) -> None:
    async with open_file(path=path) as writer:
        for number, event in enumerate(EVENTS, 1):
            await writer.handle_batch([event])
            assert path.read_text().splitlines() == LINES[:number]
    assert path.stat().st_mode & 0o777 & ~0o640 == 0


async def test_an_acknowledged_event_is_on_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def sync(descriptor: int) -> None:
        target = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append(target.name if target.is_dir() else target.read_text())

    monkeypatch.setattr(os, "fdatasync", sync)
    monkeypatch.setattr(os, "fsync", sync)
    async with open_file(path=path) as writer:
        await writer.handle_batch(EVENTS[:2])
        text = "".join(f"{line}\n" for line in LINES[:2])
        assert synced == [text, path.parent.name]  # a new file's name is in its directory
        await writer.handle_batch(EVENTS[2:3])
        assert synced[2:] == [f"{text}{LINES[2]}\n"]
    async with open_file(path=path, sync=False) as writer:
        await writer.handle_batch(EVENTS[3:])
    assert len(synced) == 3
    assert path.read_text().splitlines() == LINES


async def test_a_disk_that_fails_to_sync_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    async with open_file(path=path) as writer:
        with monkeypatch.context() as broken, pytest.raises(OSError, match="Input/output error"):
            broken.setattr(os, "fdatasync", fail)
            await writer.handle_batch(EVENTS[:1])
        await writer.handle_batch(EVENTS[:1])
    assert path.read_text().splitlines() == [LINES[0], LINES[0]]


async def test_a_terminal_needs_no_disk() -> None:
    ours, theirs = os.openpty()
    async with open_file(path=Path(os.ttyname(theirs))) as writer:
        await writer.handle_batch(EVENTS[:1])
    assert os.read(ours, 4096).decode().rstrip() == LINES[0]
    os.close(ours)
    os.close(theirs)


async def test_it_appends(path: Path) -> None:
    path.write_text("before\n")
    async with open_file(path=path) as writer:
        await writer.handle_batch([EVENTS[0]])
    assert path.read_text() == f"before\n{LINES[0]}\n"


async def test_a_line_that_a_crash_cut_off_is_not_continued(path: Path) -> None:
    path.write_text('{"id": "half')
    async with open_file(path=path) as writer:
        await writer.handle_batch([EVENTS[0]])
        await writer.handle_batch([EVENTS[1]])
    assert path.read_text().splitlines() == ['{"id": "half', *LINES[:2]]


@pytest.mark.parametrize("removed", [True, False])
async def test_it_follows_rotation(path: Path, removed: bool) -> None:
    old = path.with_suffix(".1")
    async with open_file(path=path) as writer:
        before = len(os.listdir("/proc/self/fd"))
        await writer.handle_batch([EVENTS[0]])
        path.unlink() if removed else path.rename(old)
        await writer.handle_batch([EVENTS[1]])
        old.rename(path) if not removed else path.write_text("")
        await writer.handle_batch([EVENTS[2]])
        assert len(os.listdir("/proc/self/fd")) == before
    assert path.read_text().splitlines() == ([LINES[2]] if removed else [LINES[0], LINES[2]])


async def test_when_it_cannot_be_opened_anew_the_old_one_stays_and_the_error_is_raised(path: Path) -> None:
    async with open_file(path=path) as writer:
        await writer.handle_batch([EVENTS[0]])
        path.unlink()
        path.mkdir()
        for _ in range(2):
            with pytest.raises(IsADirectoryError):
                await writer.handle_batch([EVENTS[1]])
        path.rmdir()
        await writer.handle_batch([EVENTS[1]])
    assert path.read_text() == LINES[1] + "\n"


async def test_on_a_full_disk_it_raises_and_later_lines_stand_alone(path: Path) -> None:
    path.write_text("x" * 899 + "\n")
    async with open_file(path=path) as writer:
        with files_end_at(1000), pytest.raises(OSError, match="File too large"):
            await writer.handle_batch([EVENTS[0]])
        await writer.handle_batch([EVENTS[0]])
        await writer.handle_batch([EVENTS[1]])
    assert path.read_text().splitlines()[1:] == [LINES[0][:100], *LINES[:2]]


async def test_a_missing_directory_is_an_error_at_the_start(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        async with open_file(path=path / "no" / "x"):
            pytest.fail("it opened")
