import os
import signal
import sys
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from listener import MailboxEvent, Reject, Retry
from listener.handlers.exec_stream import open_exec_stream

EVENTS = [
    MailboxEvent(
        type="exchange.item.created", mailbox="a@b.c", time="2026-01-01T00:00:00Z", item_id=str(number)
    )
    for number in range(5)
]
LINES = [event.to_json() for event in EVENTS]
ANSWERS = (
    "import sys\nfor line in sys.stdin:\n    open(sys.argv[1], 'a').write(line)\n    print({}, flush=True)\n"
)
ONCE = (
    "import sys\nopen(sys.argv[1], 'a').write(sys.stdin.readline())\n"
    "print('ok', flush=True)\nsys.stdin.readline()"
)


def program(text: str, *arguments: Path) -> list[str]:
    return [sys.executable, "-S", "-c", text, *map(str, arguments)]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


async def test_one_process_gets_one_line_per_event(out: Path) -> None:
    async with open_exec_stream(command=["sh", "-c", 'cat >> "$0"; echo end >> "$0"', str(out)]) as handle:
        for event in EVENTS:
            await handle(event)
    assert out.read_text().splitlines() == [*LINES, "end"]


async def test_answer_acknowledges_the_event(out: Path) -> None:
    async with open_exec_stream(command=program(ANSWERS.format("'ok'"), out), acknowledge=True) as handle:
        for number, event in enumerate(EVENTS, 1):
            await handle(event)
            assert out.read_text().splitlines() == LINES[:number]


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        ("retry later please", Retry, "later please"),
        ("reject", Reject, ""),
        ("reject not mine", Reject, "not mine"),
        ("hello", ValueError, "the process answered 'hello' instead of ok, retry or reject"),
    ],
)
async def test_other_answers(out: Path, answer: str, error: type[Exception], text: str) -> None:
    async with open_exec_stream(
        command=program(ANSWERS.format(repr(answer)), out), acknowledge=True
    ) as handle:
        for _ in range(2):
            with pytest.raises(error) as caught:
                await handle(EVENTS[0])
            assert str(caught.value) == text
    assert len(out.read_text().splitlines()) == 2


async def test_answer_without_a_line_end_is_rejected() -> None:
    text = "import sys\nwhile True: sys.stdout.write('x' * 1000)"
    async with open_exec_stream(command=program(text), acknowledge=True) as handle:
        with pytest.raises(ValueError, match="more than 65536 bytes without a line end"):
            await handle(EVENTS[0])


async def test_ended_process_is_restarted_with_growing_delay(
    out: Path, mock_clock: trio.testing.MockClock
) -> None:
    """The process answers once and dies during the second event."""
    with capture_logs() as log:
        async with open_exec_stream(
            command=program(ONCE, out), acknowledge=True, restart_first=1, restart_cap=3
        ) as handle:
            for event, wait in zip(EVENTS, [1.0, 2.0, 3.0, 3.0], strict=False):
                await handle(event)
                with pytest.raises(Retry, match="the process has ended") as caught:
                    await handle(EVENTS[4])
                assert (caught.value.after, caught.value.counts) == (None, True)
                with pytest.raises(Retry) as caught:
                    await handle(EVENTS[4])
                assert (caught.value.after, caught.value.counts) == (wait, False)
                mock_clock.jump(wait)
            await handle(EVENTS[4])
    assert out.read_text().splitlines() == LINES
    assert [line["restart_after"] for line in log] == [1.0, 2.0, 3.0, 3.0]
    assert {line["event"] for line in log} == {"handler.process_ended"}


async def test_process_that_ran_long_is_restarted_soon(out: Path, mock_clock: trio.testing.MockClock) -> None:
    with capture_logs() as log:
        async with open_exec_stream(command=program(ONCE, out), acknowledge=True) as handle:
            for _ in range(3):
                await handle(EVENTS[0])
                mock_clock.jump(100)
                for _ in range(2):
                    with pytest.raises(Retry):
                        await handle(EVENTS[1])
                mock_clock.jump(1)
    assert [line["restart_after"] for line in log] == [1.0, 1.0, 1.0]


async def test_cancelled_call_kills_the_process_so_that_answers_are_not_mixed_up(out: Path) -> None:
    os.mkfifo(out)
    text = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(1000)"
    async with open_exec_stream(command=program(text, out), acknowledge=True) as handle:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle, EVENTS[0])
            pid = int(await trio.Path(out).read_text())
            nursery.cancel_scope.cancel()
        with pytest.raises(Retry) as caught:
            await handle(EVENTS[0])
        assert caught.value.after is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_process_that_does_not_end_is_killed(
    out: Path, autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """The process ignores the end of its input and SIGTERM, so SIGKILL follows; 5 s after each step."""
    os.mkfifo(out)
    text = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(1000)"
    )
    async with open_exec_stream(command=program(text, out)) as handle:
        await handle(EVENTS[0])
        with open(out) as ready:
            pid = int(ready.read())
        start = trio.current_time()
    assert trio.current_time() - start == pytest.approx(10)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("command", "message"),
    [([], "command is empty"), (["no-such-program"], "program not found: no-such-program")],
)
async def test_missing_program_is_a_startup_error(command: list[str], message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        async with open_exec_stream(command=command):
            pytest.fail("it opened")


async def test_standard_error_is_logged_with_limits() -> None:
    text = (
        "import sys; sys.stdin.readline(); sys.stderr.write('first\\x1b[2J\\n' + 'x' * 1_000_000 + '\\n');"
        "sys.stderr.write('flood\\n' * 100_000); sys.stderr.flush(); print('ok', flush=True); sys.stdin.read()"
    )
    with capture_logs() as lines:
        async with open_exec_stream(command=[sys.executable, "-S", "-c", text], acknowledge=True) as handle:
            await handle(EVENTS[0])
    logged = [line for line in lines if line["event"] == "handler.process_stderr"]
    assert logged[0]["text"] == "first\x1b[2J"
    assert all(len(line["text"]) <= 4096 for line in logged)
    assert len(logged) < 400
