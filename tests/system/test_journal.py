"""What is in the journal outlives the process, and operators can ask about it."""

import json
import subprocess
import sys
from collections import Counter

from tests.system.processes import Listen, Listener, Simulator, Start, handler, json_lines, until


def command(there: Simulator, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "listener", *words, "--config", str(there.config)],
        capture_output=True,
        text=True,
        timeout=20,
    )


def asked(there: Simulator, *words: str) -> object:
    run = command(there, *words, "--json")
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_what_a_handler_had_no_time_for_comes_after_the_restart(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    there = simulator()
    slow = there.folder / "slow.jsonl"
    there.append(
        handler("slow", "acme:open_slow", f'path = "{slow}"', "seconds = 60") + "\n[shutdown]\ngrace = 0.2\n"
    )
    daemon = listen(there, PYTHONPATH=plugins)
    there.streaming(4)
    ledger = there.make(there.mailboxes[0], count=20)
    until(lambda: len(there.deliveries) == len(ledger), "all deliveries to the other handler")
    assert daemon.end() == 0
    assert daemon.logged("handler.stopped", handler="slow")[0]["behind"] == len(ledger)
    there.change("seconds = 60", "seconds = 0")
    again = listen(there, PYTHONPATH=plugins)
    until(lambda: len(json_lines(slow)) == len(ledger), "all deliveries to the slow handler")
    assert [event["id"] for event in json_lines(slow)] == [event["id"] for event in there.deliveries]
    assert again.end() == 0
    assert len(there.deliveries) == len(ledger)


def test_dead_letters_are_listed_shown_given_back_and_deleted_while_the_daemon_runs(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    there = simulator()
    there.append(handler("picky", "acme:open_picky", "attempts = 1"))
    there.append("\n[log]\nsum_up = 0\n")
    daemon = listen(there, PYTHONPATH=plugins)
    there.streaming(4)
    ledger = there.make(there.mailboxes[0])
    until(lambda: daemon.logged("handler.rejected", handler="picky"), "a rejected event")
    until(lambda: len(daemon.logged("handler.gave_up")) == len(ledger) - 1, "the others given up")
    letters = asked(there, "dead-letters", "list")
    assert isinstance(letters, list)
    assert len(letters) == len(ledger)
    (mail,) = (letter for letter in letters if letter["event"]["type"] == "exchange.item.new_mail")
    assert (mail["handler"], mail["reason"], mail["attempts"]) == ("picky", "no mail today", 1)
    assert mail["event"]["data"]["mailbox"] == there.mailboxes[0]
    (other, *_) = (letter for letter in letters if letter is not mail)
    shown = asked(there, "dead-letters", "show", str(other["number"]))
    assert isinstance(shown, dict)
    assert 'raise LookupError("no such customer")' in shown["traceback"]
    people = command(there, "dead-letters", "list", "--handler", "picky", "--limit", "1").stdout
    assert people.count("\n") == 1
    assert asked(there, "dead-letters", "discard", str(mail["number"])) == {"count": 1}
    assert asked(there, "dead-letters", "retry", str(other["number"])) == {"count": 1}
    until(lambda: len(daemon.logged("handler.gave_up")) == len(ledger), "given up once more")
    assert command(there, "dead-letters", "show", "999").returncode == 1
    assert "there is no dead letter 999" in command(there, "dead-letters", "show", "999").stderr
    assert daemon.end() == 0
    left = asked(there, "dead-letters", "list")  # the daemon does not run any more
    assert isinstance(left, list)
    assert len(left) == len(ledger) - 1


def test_a_handler_gets_again_what_was_journaled_lately(simulator: Start, listen: Listen) -> None:
    there = simulator()
    daemon = listen(there)
    there.streaming(4)
    first, second = there.make(there.mailboxes[0]), there.make(there.mailboxes[1])
    until(lambda: len(there.deliveries) == len(first) + len(second), "all deliveries")
    told = asked(there, "replay", "--handler", "deliveries", "--since", "1h", "--mailbox", there.mailboxes[1])
    assert told == {"count": len(second)}
    until(lambda: len(there.deliveries) == len(first) + 2 * len(second), "the replay")
    times = Counter(event["data"]["mailbox"] for event in there.deliveries)
    assert times == {there.mailboxes[0]: len(first), there.mailboxes[1]: 2 * len(second)}
    refused = command(there, "replay", "--handler", "nobody", "--since", "1h")
    assert refused.returncode == 1
    assert "nobody" in refused.stderr
    assert command(there, "replay", "--handler", "deliveries", "--since", "soon").returncode == 2
    assert daemon.end() == 0


def test_one_process_a_state_directory(simulator: Start, listen: Listen) -> None:
    there = simulator()
    first: Listener = listen(there)
    there.streaming(4)
    second = subprocess.run(
        [sys.executable, "-m", "listener", "run", "--config", str(there.config)],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert second.returncode == 2
    (error,) = (line for line in second.stderr.splitlines() if line.startswith("error:"))
    assert str(there.folder / "state") in error
    assert str(first.process.pid) in error
    assert first.end() == 0
