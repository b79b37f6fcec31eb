import json
import os
import sys
from pathlib import Path

import pytest
import trio

from listener import MailboxEvent, Reject
from listener.handlers.exec import CommandError, open_exec
from listener.handlers.exec_stream import open_exec_stream

EVENT = MailboxEvent(type="exchange.item.created", mailbox="a@b.c", time="2026-01-01T00:00:00Z", item_id="I")


def program(text: str, *arguments: str) -> list[str]:
    return [sys.executable, "-S", "-c", text, *arguments]


async def test_event_is_on_standard_input_and_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EWS_SCHEMA_DIR", "EWS_LISTENER_DEB"):  # of this test process
        monkeypatch.delenv(name, raising=False)
    text = (
        "import json, os, sys; found = [sys.stdin.read(), {k: v for k, v in os.environ.items() if k[:4] == 'EWS_'}]\n"
        "open(sys.argv[1], 'w').write(json.dumps(found)); print('dropped')"
    )
    async with open_exec(command=program(text, str(tmp_path / "out"))) as handle:
        await handle(EVENT)
    line, environment = json.loads((tmp_path / "out").read_text())
    assert line == EVENT.to_json() + "\n"
    assert environment == {"EWS_EVENT_ID": EVENT.id, "EWS_EVENT_TYPE": EVENT.type, "EWS_MAILBOX": "a@b.c"}


async def test_failure_has_the_end_of_standard_error() -> None:
    text = "import sys; sys.stderr.write('x' * 100_000 + ' no more disk\\n'); sys.exit(3)"
    async with open_exec(command=program(text)) as handle:
        with pytest.raises(CommandError, match=r"^exit status 3: x+ no more disk$") as caught:
            await handle(EVENT)
    assert len(str(caught.value)) < 2100


async def test_killed_program_is_a_failure() -> None:
    async with open_exec(command=program("import os; os.kill(os.getpid(), 9)")) as handle:
        with pytest.raises(CommandError, match=r"^killed by signal 9$"):
            await handle(EVENT)


async def test_exit_status_65_rejects_the_event() -> None:
    async with open_exec(command=program("import sys; sys.exit('no such user' and 65)")) as handle:
        with pytest.raises(Reject, match="exit status 65"):
            await handle(EVENT)


async def test_program_need_not_read_its_input() -> None:
    big = MailboxEvent(type="exchange.item.created", mailbox="a@b.c", time="t", item_id="I" * 1_000_000)
    async with open_exec(command=["true"]) as handle:
        await handle(big)


async def test_cancelled_call_terminates_the_program(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    text = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(1000)"
    async with open_exec(command=program(text, str(fifo))) as handle, trio.open_nursery() as nursery:
        nursery.start_soon(handle, EVENT)
        pid = int(await trio.Path(fifo).read_text())
        os.kill(pid, 0)
        nursery.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_orphaned_child_does_not_delay_the_event(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Its child keeps standard error open. The handler waits one second for it, not forever."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with open_exec(command=["sh", "-c", 'cat "$0" & exit 0', str(fifo)]) as handle:
        await handle(EVENT)
    await trio.Path(fifo).write_text("now the child ends too")


@pytest.mark.parametrize(
    ("command", "message"),
    [([], "command is empty"), (["no-such-program"], "program not found: no-such-program")],
)
async def test_missing_program_is_a_startup_error(command: list[str], message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        async with open_exec(command=command):
            pytest.fail("it opened")


@pytest.fixture
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables of a daemon under systemd."""
    for name in ("EWS_LISTENER_PASSWORD", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "LISTEN_FDS", "LC_SECRET",
                 "WATCHDOG_PID", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "LD_PRELOAD_NOT"):  # fmt: skip
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("LC_TIME", "C")
    monkeypatch.setenv("TZ", "UTC")


SHOW = (
    "import json, os, sys; found = [dict(os.environ), os.listdir('/proc/self/fd')];"
    "open(sys.argv[1], 'w').write(json.dumps(found))"
)


@pytest.mark.usefixtures("_secrets")
@pytest.mark.parametrize("stream", [False, True])
async def test_program_gets_only_allowed_variables_and_no_descriptors(tmp_path: Path, stream: bool) -> None:
    out = tmp_path / "out"
    command = program(SHOW + "; print('ok', flush=True); sys.stdin.read()", str(out))
    own = {"API": "x", "LC_TIME": "POSIX"}
    kept = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(kept, True)
    try:
        if stream:
            async with open_exec_stream(command=command, acknowledge=True, environment=own) as handle:
                await handle(EVENT)
        else:
            async with open_exec(command=command, environment=own) as handle:
                await handle(EVENT)
    finally:
        os.close(kept)
    environment, descriptors = json.loads(out.read_text())
    environment = {name: value for name, value in environment.items() if not name.startswith("EWS_")}
    expected = {name for name in ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE")
                if name in os.environ}  # fmt: skip
    assert environment.keys() - {"LC_CTYPE"} == expected - {"LC_CTYPE"} | {"API", "LC_TIME", "TZ"}
    assert environment["LC_TIME"] == "POSIX"
    assert "s3cret" not in environment.values()
    assert len(descriptors) == 4, "0, 1, 2, and the descriptor of the listing itself"


@pytest.mark.parametrize("name", ["", "A=B", "A\0"])
async def test_invalid_variable_is_an_error_when_opening(name: str) -> None:
    with pytest.raises(ValueError, match="environment"):
        async with open_exec(command=["true"], environment={name: "x"}):
            pass
