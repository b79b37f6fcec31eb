"""The disk of the journal fills up while the daemon runs, and then has space again (a small tmpfs)."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.ledger import compare_with_ledger
from tests.system.processes import Listen, Listener, Simulator, Start, until

SIZE = 8 << 20
PAUSE = 3.0  # seconds; several times the silence after which a stream counts as dead


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of a few megabytes as the state directory."""
    if os.geteuid():
        pytest.skip("only root may mount a file system")
    state = tmp_path / "state"
    state.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(state)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system: {mounted.stderr.strip()}")
    yield state
    subprocess.run(["umount", "--lazy", str(state)], check=True)


def fill(disk: Path) -> Path:
    """Create and return a file that takes all free space."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue  # ENOSPC
    return ballast


def write_error(exchange: Simulator, daemon: Listener) -> dict[str, object]:
    """Create events until the free space inside the database files is used up; return the logged error."""

    def write_failures() -> list[dict[str, object]]:
        exchange.create_events(exchange.mailboxes[0], count=50)
        return daemon.logged("journal.write_failed")

    return until(write_failures, "a line about the full disk")[0]


def test_full_disk_pauses_ingestion_and_loses_nothing(
    simulator: Start, listen: Listen, disk: Path, tmp_path: Path
) -> None:
    ledger, output = tmp_path / "ledger.jsonl", tmp_path / "deliveries.jsonl"
    exchange = simulator("--heartbeat", "0.5", "--ledger", str(ledger))
    daemon = listen(exchange)
    exchange.until_streaming(4)
    first = exchange.create_events(exchange.mailboxes[0])
    until(lambda: len(exchange.deliveries) == len(first), "all deliveries before")

    ballast = fill(disk)
    line = write_error(exchange, daemon)
    assert line["level"] == "error"
    assert "full" in str(line["reason"])
    assert line["free"] == 0
    assert line["path"] == str(disk / "journal.db")
    before = len(exchange.deliveries)
    for mailbox in exchange.mailboxes:
        exchange.create_events(mailbox, count=20)
    end = time.monotonic() + PAUSE
    while time.monotonic() < end:
        assert len(exchange.deliveries) == before, "delivered without having been journaled"
        time.sleep(0.1)
    exchange.until_streaming(4)
    assert not daemon.logged("journal.recovered")

    ballast.unlink()
    daemon.until_logged("journal.recovered")
    until(lambda: compare_with_ledger(ledger, output).lost == 0, "every event")
    verdict = compare_with_ledger(ledger, output)
    assert (verdict.lost, verdict.unseen, verdict.duplicates) == (0, 0, 0)
    assert verdict.delivered == verdict.generated
    # Ingestion only paused: the daemon did not re-subscribe and did not treat any stream as dead.
    assert exchange.state()["requests"]["Subscribe"] == {"200": 4}
    assert not daemon.logged("group.backoff")
    assert len(daemon.logged("journal.write_failed")) == 1
    assert daemon.stop() == 0


def test_read_only_disk_is_reported_at_start(simulator: Start, listen: Listen, disk: Path) -> None:
    exchange = simulator()
    first = listen(exchange)
    exchange.until_streaming(4)
    exchange.create_events(exchange.mailboxes[0])
    assert first.stop() == 0
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    refused = listen(exchange)
    assert refused.wait() == 2
    last = refused.log_file.read_text().splitlines()[-1]
    assert str(disk) in last
    assert "Read-only file system" in last or "readonly" in last
    subprocess.run(["mount", "-o", f"remount,rw,size={SIZE}", str(disk)], check=True)
    again = listen(exchange)
    exchange.until_streaming(4)
    assert again.stop() == 0
    assert not again.logged("journal.write_failed")
