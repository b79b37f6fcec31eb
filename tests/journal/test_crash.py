"""A real process that is killed repeatedly while it writes."""

import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import trio.testing

from .tools import everything, items, opened

WORK = """
import os, sys, trio, pathlib, structlog
from listener.event import MailboxEvent
from listener.journal.sqlite import open_journal
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

def report(line):
    os.write(1, line.encode())

async def main(directory, start):
    async with open_journal(pathlib.Path(directory), memory=200) as journal:
        reader = await journal.reader("audit")
        async def group(number):
            mine = start + number * 1_000_000
            while True:
                batch = [
                    MailboxEvent(type="t", mailbox=f"user{number}", time="x", item_id=str(mine + n)) for n in range(7)
                ]
                await journal.append(batch)
                report(f"A {mine} {mine + 7}\\n")
                mine += 7
        async def handle():
            while True:
                entries = await reader.read(50)
                for entry in entries:
                    report(f"H {entry.event.item_id}\\n")
                reader.acknowledge(entry.position for entry in entries)
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(group, number)
            nursery.start_soon(handle)

trio.run(main, sys.argv[1], int(sys.argv[2]))
"""


async def test_sigkill_loses_no_event(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    directory, rng = tmp_path / "j", random.Random(7)
    async with opened(directory) as journal:
        await journal.reader("audit")
    appended: set[int] = set()
    handled: list[int] = []
    for run in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", WORK, str(directory), str((run + 1) * 100_000_000)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        threading.Timer(0.05 + rng.random() * 0.4, process.send_signal, [signal.SIGKILL]).start()
        output = first + process.stdout.read()
        process.wait()
        assert process.returncode == -signal.SIGKILL, process.stderr and process.stderr.read()
        process.stdout.close()
        assert process.stderr is not None
        process.stderr.close()
        for line in output.splitlines(keepends=True):
            match line.split():
                case ["A", first_, end] if line.endswith("\n"):
                    appended |= set(range(int(first_), int(end)))
                case ["H", number] if line.endswith("\n"):
                    handled.append(int(number))
    async with opened(directory) as journal:
        rest = items(await everything(await journal.reader("audit"), 10_000))
    assert len(appended) > 100
    assert appended <= set(handled) | set(rest)
    for group in {n // 1_000_000 for n in rest}:
        mine = [n for n in rest if n // 1_000_000 == group]
        assert mine == sorted(mine)
