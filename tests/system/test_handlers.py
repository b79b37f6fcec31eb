"""The handlers that run programs, in the started daemon."""

import json
from pathlib import Path

from tests.system.processes import Listen, Simulator, Start, handler, json_lines, until

HASTE = "\n[delivery]\nretry_first = 0.05\n"

# One process an event. It rejects what is about the mailbox $2, and fails at everything else the first time.
ONE = """
[ "$EWS_MAILBOX" = "$2" ] && { echo "not that one" >&2; exit 65; }
[ -e "$1/$EWS_EVENT_ID" ] || { : > "$1/$EWS_EVENT_ID"; echo "once more, please" >&2; exit 1; }
cat >> "$1/one.jsonl"
"""

# One process for all. It dies once, with an event in hand.
ALL = """
while read -r line; do
    [ -e "$1/died" ] || { : > "$1/died"; exit 3; }
    printf '%s\\n' "$line" >> "$1/all.jsonl"
    echo ok
done
"""


def program(folder: Path, text: str, *arguments: str) -> str:
    """The option `command` of a handler that runs this shell script."""
    return f"command = {json.dumps(['sh', '-c', text, 'sh', str(folder), *arguments])}"


def ids(there: Simulator, name: str) -> list[str]:
    return [event["id"] for event in json_lines(there.folder / name)]


def test_exec_runs_a_program_for_each_event(simulator: Start, listen: Listen) -> None:
    there = simulator()
    good, bad = there.mailboxes[:2]
    there.append_config(handler("program", "exec", program(there.folder, ONE, bad)) + HASTE)
    daemon = listen(there)
    there.until_streaming(4)
    ledger = [*there.create_events(good, count=3), *there.create_events(bad)]
    until(lambda: len(there.deliveries) == len(ledger), "all deliveries to the other handler")
    wanted = [event for event in there.deliveries if event["data"]["mailbox"] == good]
    until(lambda: len(ids(there, "one.jsonl")) == len(wanted), "all events of the program")
    assert json_lines(there.folder / "one.jsonl") == wanted, "in their order, whole"
    (rejected, *_) = daemon.until_logged("handler.rejected", handler="program")
    assert (rejected["mailbox"], rejected["reason"]) == (bad, "not that one")
    (failed, *_) = daemon.logged("handler.failed", handler="program")
    assert failed["mailbox"] == good
    assert "CommandError: exit status 1: once more, please" in failed["exception"]
    assert daemon.stop() == 0
    (stopped,) = daemon.logged("handler.stopped", handler="program")
    assert (stopped["delivered"], stopped["dead_lettered"]) == (len(wanted), len(ledger) - len(wanted))


def test_exec_stream_feeds_one_program_and_starts_it_again(simulator: Start, listen: Listen) -> None:
    there = simulator()
    options = (program(there.folder, ALL), "acknowledge = true", "restart_first = 0.05")
    there.append_config(handler("program", "exec-stream", *options) + HASTE)
    daemon = listen(there)
    there.until_streaming(4)
    ledger = [line for mailbox in there.mailboxes for line in there.create_events(mailbox, count=5)]
    until(lambda: len(there.deliveries) == len(ledger), "all deliveries to the other handler")
    until(lambda: len(ids(there, "all.jsonl")) == len(ledger), "all events of the program")
    assert sorted(ids(there, "all.jsonl")) == sorted(event["id"] for event in there.deliveries)
    (ended,) = daemon.logged("handler.process_ended")
    assert ended["status"] == 3
    assert daemon.stop() == 0
    assert daemon.logged("handler.stopped", handler="program")[0]["delivered"] == len(ledger)
