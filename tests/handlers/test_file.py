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
    """Limit the file size, which has the effect of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    action = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, action)


async def test_acknowledged_event_is_in_the_file(path: Path) -> None:
    async with open_file(path=path) as writer:
        for number, event in enumerate(EVENTS, 1):
            await writer.handle_batch([event])
            assert path.read_text().splitlines() == LINES[:number]
    assert path.stat().st_mode & 0o777 & ~0o640 == 0


async def test_acknowledged_event_is_synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def sync(descriptor: int) -> None:
        target = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append(target.name if target.is_dir() else target.read_text())

    monkeypatch.setattr(os, "fdatasync", sync)
    monkeypatch.setattr(os, "fsync", sync)
    async with open_file(path=path) as writer:
        await writer.handle_batch(EVENTS[:2])
        text = "".join(f"{line}\n" for line in LINES[:2])
        assert synced == [text, path.parent.name]  # the directory entry of a new file is synced too
        await writer.handle_batch(EVENTS[2:3])
        assert synced[2:] == [f"{text}{LINES[2]}\n"]
    async with open_file(path=path, sync=False) as writer:
        await writer.handle_batch(EVENTS[3:])
    assert len(synced) == 3
    assert path.read_text().splitlines() == LINES


async def test_failed_sync_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    async with open_file(path=path) as writer:
        with monkeypatch.context() as broken, pytest.raises(OSError, match="Input/output error"):
            broken.setattr(os, "fdatasync", fail)
            await writer.handle_batch(EVENTS[:1])
        await writer.handle_batch(EVENTS[:1])
    assert path.read_text().splitlines() == [LINES[0], LINES[0]]


async def test_terminal_that_cannot_sync_is_accepted() -> None:
    master, slave = os.openpty()
    async with open_file(path=Path(os.ttyname(slave))) as writer:
        await writer.handle_batch(EVENTS[:1])
    assert os.read(master, 4096).decode().rstrip() == LINES[0]
    os.close(master)
    os.close(slave)


async def test_existing_file_is_appended_to(path: Path) -> None:
    path.write_text("before\n")
    async with open_file(path=path) as writer:
        await writer.handle_batch([EVENTS[0]])
    assert path.read_text() == f"before\n{LINES[0]}\n"


async def test_incomplete_last_line_is_not_continued(path: Path) -> None:
    path.write_text('{"id": "half')
    async with open_file(path=path) as writer:
        await writer.handle_batch([EVENTS[0]])
        await writer.handle_batch([EVENTS[1]])
    assert path.read_text().splitlines() == ['{"id": "half', *LINES[:2]]


@pytest.mark.parametrize("removed", [True, False])
async def test_file_follows_rotation(path: Path, removed: bool) -> None:
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


async def test_failed_reopen_keeps_the_old_file_and_raises(path: Path) -> None:
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


async def test_full_disk_raises_and_later_lines_are_complete(path: Path) -> None:
    path.write_text("x" * 899 + "\n")
    async with open_file(path=path) as writer:
        with files_end_at(1000), pytest.raises(OSError, match="File too large"):
            await writer.handle_batch([EVENTS[0]])
        await writer.handle_batch([EVENTS[0]])
        await writer.handle_batch([EVENTS[1]])
    assert path.read_text().splitlines()[1:] == [LINES[0][:100], *LINES[:2]]


async def test_missing_directory_is_a_startup_error(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        async with open_file(path=path / "no" / "x"):
            pytest.fail("it opened")
