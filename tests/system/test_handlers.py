"""The handlers exec and exec-stream in a real daemon."""

import json
from pathlib import Path

from tests.system.processes import Listen, Simulator, Start, handler, json_lines, until

SHORT_RETRY = "\n[delivery]\nretry_first = 0.05\n"

# One process per event. It rejects events of the mailbox $2 and fails on the first attempt of all others.
PER_EVENT = """
[ "$EWS_MAILBOX" = "$2" ] && { echo "not that one" >&2; exit 65; }
[ -e "$1/$EWS_EVENT_ID" ] || { : > "$1/$EWS_EVENT_ID"; echo "try again" >&2; exit 1; }
cat >> "$1/one.jsonl"
"""

# One process for all events. It exits once without acknowledging its event.
STREAM = """
while read -r line; do
    [ -e "$1/died" ] || { : > "$1/died"; exit 3; }
    printf '%s\\n' "$line" >> "$1/all.jsonl"
    echo ok
done
"""


def program(folder: Path, text: str, *arguments: str) -> str:
    """Return the option `command` of a handler that runs this shell script."""
    return f"command = {json.dumps(['sh', '-c', text, 'sh', str(folder), *arguments])}"


def ids(exchange: Simulator, name: str) -> list[str]:
    return [event["id"] for event in json_lines(exchange.folder / name)]


def test_exec_runs_a_program_for_each_event(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    good, bad = exchange.mailboxes[:2]
    exchange.append_config(handler("program", "exec", program(exchange.folder, PER_EVENT, bad)) + SHORT_RETRY)
    daemon = listen(exchange)
    exchange.until_streaming(4)
    ledger = [*exchange.create_events(good, count=3), *exchange.create_events(bad)]
    until(lambda: len(exchange.deliveries) == len(ledger), "all deliveries to the other handler")
    wanted = [event for event in exchange.deliveries if event["data"]["mailbox"] == good]
    until(lambda: len(ids(exchange, "one.jsonl")) == len(wanted), "all events of the program")
    assert json_lines(exchange.folder / "one.jsonl") == wanted, "complete and in order"
    (rejected, *_) = daemon.until_logged("handler.rejected", handler="program")
    assert (rejected["mailbox"], rejected["reason"]) == (bad, "not that one")
    (failed, *_) = daemon.logged("handler.failed", handler="program")
    assert failed["mailbox"] == good
    assert "CommandError: exit status 1: try again" in failed["exception"]
    assert daemon.stop() == 0
    (stopped,) = daemon.logged("handler.stopped", handler="program")
    assert (stopped["delivered"], stopped["dead_lettered"]) == (len(wanted), len(ledger) - len(wanted))


def test_exec_stream_restarts_its_program(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    options = (program(exchange.folder, STREAM), "acknowledge = true", "restart_first = 0.05")
    exchange.append_config(handler("program", "exec-stream", *options) + SHORT_RETRY)
    daemon = listen(exchange)
    exchange.until_streaming(4)
    ledger = [line for mailbox in exchange.mailboxes for line in exchange.create_events(mailbox, count=5)]
    until(lambda: len(exchange.deliveries) == len(ledger), "all deliveries to the other handler")
    until(lambda: len(ids(exchange, "all.jsonl")) == len(ledger), "all events of the program")
    assert sorted(ids(exchange, "all.jsonl")) == sorted(event["id"] for event in exchange.deliveries)
    (ended,) = daemon.logged("handler.process_ended")
    assert ended["status"] == 3
    assert daemon.stop() == 0
    assert daemon.logged("handler.stopped", handler="program")[0]["delivered"] == len(ledger)
