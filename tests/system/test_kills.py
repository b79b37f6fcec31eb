"""`kill -9` at random moments, under load: after the last restart no handler has lost anything.

EWS_LISTENER_KILLS=50 is the full run. 500 events a second with a process for each are too much for two cores: the
`exec` handler is given a tenth of the mailboxes, and what it has no time for waits for it in the journal.
"""

import os
import signal
import time
from pathlib import Path
from random import Random

from tests.system.processes import Listen, Start, handler, json_lines, until
from tests.system.truth import judge

KILLS = int(os.environ.get("EWS_LISTENER_KILLS", "3"))
MAILBOXES = 40
RATE = 500


def test_after_the_last_restart_every_change_is_in_both_outputs(
    simulator: Start, listen: Listen, tmp_path: Path
) -> None:
    ledger, output, written = (tmp_path / name for name in ("ledger.jsonl", "deliveries.jsonl", "exec.jsonl"))
    there = simulator("--mailboxes", str(MAILBOXES), "--ledger", str(ledger))
    few = there.mailboxes[::10]
    there.append(
        handler("program", "exec", f'command = ["tee", "-a", "{written}"]', f"filter.mailboxes = {few}")
    )
    daemon = listen(there)
    there.streaming(MAILBOXES)
    there.rate(RATE)
    dice = Random(1)
    lives = []
    for _ in range(KILLS):
        lives.append(dice.uniform(0.2, 3.0))  # it may not even have opened its journal
        time.sleep(lives[-1])
        daemon.process.kill()
        assert daemon.wait() == -signal.SIGKILL
        assert not daemon.logged("handler.gave_up")
        daemon = listen(there)
    there.streaming(MAILBOXES)
    time.sleep(1)
    there.rate(0)
    begun = time.monotonic()

    def lost() -> dict[str, int]:
        return {
            "file": judge(ledger, output).lost,
            "exec": judge(ledger, written, few).lost,
        }

    def nothing_lost() -> bool:
        time.sleep(0.5)  # the judge needs the processor too
        return not any(lost().values())

    until(nothing_lost, "every change in both outputs", patience=300 + 6 * KILLS)
    took = time.monotonic() - begun
    assert daemon.end() == 0
    assert not daemon.logged("handler.gave_up")
    assert lost() == {"file": 0, "exec": 0}
    for mailbox in few:
        assert order(written, mailbox) == order(output, mailbox)
    print(
        f"{KILLS} kills after {min(lives):.1f} to {max(lives):.1f} s each; all there {took:.1f} s after the traffic; "
        f"file: {judge(ledger, output)}; exec: {judge(ledger, written, few)}"
    )


def order(output: Path, mailbox: str) -> list[object]:
    """The ids of a mailbox's events, each where it came first."""
    return list(dict.fromkeys(e["id"] for e in json_lines(output) if e["data"]["mailbox"] == mailbox))
