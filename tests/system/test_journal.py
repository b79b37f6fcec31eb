"""What is in the journal outlives the process, and operators can ask about it."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.system import forked
from tests.system.processes import Listen, Listener, Simulator, Start, handler, json_lines, until


def command(there: Simulator, *words: str) -> "subprocess.CompletedProcess[str]":
    return forked.run(
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
    there.append_config(
        handler("slow", "acme:open_slow", f'path = "{slow}"', "seconds = 60") + "\n[shutdown]\ngrace = 0.2\n"
    )
    daemon = listen(there, PYTHONPATH=plugins)
    there.until_streaming(4)
    ledger = there.create_events(there.mailboxes[0], count=20)
    until(lambda: len(there.deliveries) == len(ledger), "all deliveries to the other handler")
    assert daemon.stop() == 0
    assert daemon.logged("handler.stopped", handler="slow")[0]["lag"] == len(ledger)
    there.replace_config("seconds = 60", "seconds = 0")
    again = listen(there, PYTHONPATH=plugins)
    until(lambda: len(json_lines(slow)) == len(ledger), "all deliveries to the slow handler")
    assert [event["id"] for event in json_lines(slow)] == [event["id"] for event in there.deliveries]
    assert again.stop() == 0
    assert len(there.deliveries) == len(ledger)


def test_dead_letters_are_listed_shown_given_back_and_deleted_while_the_daemon_runs(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    there = simulator()
    there.append_config(handler("picky", "acme:open_picky", "attempts = 1"))
    there.append_config("\n[log]\nrepeat_interval = 0\n")
    daemon = listen(there, PYTHONPATH=plugins)
    there.until_streaming(4)
    ledger = there.create_events(there.mailboxes[0])
    until(lambda: daemon.logged("handler.rejected", handler="picky"), "a rejected event")
    until(lambda: len(daemon.logged("handler.dead_lettered")) == len(ledger) - 1, "the others given up")
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
    until(lambda: len(daemon.logged("handler.dead_lettered")) == len(ledger), "given up once more")
    assert command(there, "dead-letters", "show", "999").returncode == 1
    assert "there is no dead letter 999" in command(there, "dead-letters", "show", "999").stderr
    assert daemon.stop() == 0
    left = asked(there, "dead-letters", "list")  # the daemon does not run any more
    assert isinstance(left, list)
    assert len(left) == len(ledger) - 1


def test_a_handler_gets_again_what_was_journaled_lately(simulator: Start, listen: Listen) -> None:
    there = simulator()
    daemon = listen(there)
    there.until_streaming(4)
    first, second = there.create_events(there.mailboxes[0]), there.create_events(there.mailboxes[1])
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
    assert daemon.stop() == 0


def test_a_handler_of_batches_gets_them_in_order_and_all_again_after_a_retry(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    there = simulator("--mailboxes", "1")
    loaded = there.folder / "loaded.jsonl"
    there.append_config(handler("loader", "acme:open_loader", f'path = "{loaded}"'))
    daemon = listen(there, PYTHONPATH=plugins)
    there.until_streaming(1)
    ledger = there.create_events(there.mailboxes[0], count=100)
    until(lambda: len(there.deliveries) == len(ledger), "all deliveries to the other handler")
    batches = until(
        lambda: found if sum(map(len, found := json_lines(loaded))) == len(ledger) else None, "all batches"
    )
    assert [id_ for batch in batches for id_ in batch] == [event["id"] for event in there.deliveries]
    assert max(map(len, batches)) == 50
    assert daemon.logged("handler.retry", handler="loader")[0]["batch"] == len(batches[1])
    assert daemon.stop() == 0


def test_a_journal_that_is_full_of_what_a_handler_has_not_done_holds_the_streams_and_loses_nothing(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    there = simulator("--heartbeat", "0.5")
    slow = there.folder / "slow.jsonl"
    there.append_config(
        handler("slow", "acme:open_slow", f'path = "{slow}"', "seconds = 60", "attempts = 100")
        + f"\n[journal]\nsize = {1 << 20}\n\n[shutdown]\ngrace = 0.2\n"
    )
    daemon = listen(there, PYTHONPATH=plugins)
    there.until_streaming(4)
    made = 0

    def full() -> bool:
        nonlocal made
        made += len(there.create_events(there.mailboxes[made % 4], count=100))
        return bool(daemon.logged("journal.full"))

    until(full, "a full journal")
    (line,) = daemon.logged("journal.full")
    assert (line["slowest"], line["limit"]) == ("slow", 1 << 20)
    assert line["lag"] > 0
    there.until_streaming(4)  # it waits, and lives
    assert daemon.stop() == 0
    there.replace_config("seconds = 60", "seconds = 0")
    again = listen(there, PYTHONPATH=plugins)
    again.until_logged("journal.room")
    subjects = {event["subject"] for event in there.deliveries}
    until(lambda: {event["subject"] for event in json_lines(slow)} >= subjects, "all that was held")
    there.until_streaming(4)
    new = there.create_events(there.mailboxes[0])
    wanted = {line.get("item_id") or line.get("folder_id") for line in new}
    until(lambda: wanted <= {event["subject"] for event in json_lines(slow)}, "what comes after it")
    assert again.stop() == 0


def test_a_damaged_journal_is_named_and_left_as_it_is(simulator: Start, listen: Listen) -> None:
    there = simulator()
    daemon = listen(there)
    there.until_streaming(4)
    there.create_events(there.mailboxes[0], count=100)
    assert daemon.stop() == 0
    journal = journal_of(there)
    with journal.open("r+b") as file:
        file.seek(100)
        file.write(os.urandom(8000))
    before = journal.read_bytes()
    refused = listen(there)
    assert refused.wait() == 2
    (line,) = refused.log_file.read_text().splitlines()[-1:]
    assert str(journal) in line
    assert "damaged" in line or "malformed" in line
    assert journal.read_bytes() == before


@pytest.mark.parametrize("mode", ["sync", "signal", "off"])
def test_who_was_listened_to_when_the_daemon_was_killed_is_known_at_once(
    simulator: Start, listen: Listen, mode: str
) -> None:
    there = simulator("--heartbeat", "0.5")
    there.append_config(f'filter.types = ["exchange.*"]\n\n[catch_up]\nmode = "{mode}"\n')
    daemon = listen(there)
    there.until_streaming(4)
    daemon.process.kill()
    daemon.wait()
    missed = {line["item_id"] for line in there.create_events(there.mailboxes[0]) if line.get("item_id")}
    for backend in there.state()["backends"]:
        there.inject_fault(
            kind="backend_restart", backend=backend["name"]
        )  # what it held for the stream is gone
    again = listen(there)
    there.until_streaming(4)
    after = {line["item_id"] for line in there.create_events(there.mailboxes[0]) if line.get("item_id")}

    def told() -> set[str]:
        return {event["subject"] for event in there.deliveries if event["type"].startswith("exchange.item.")}

    def gaps() -> set[str]:
        own = (event for event in there.deliveries if event["type"] == "exchange.listener.gap")
        return {event["data"]["mailbox"] for event in own}

    until(lambda: after <= told(), "events after")
    if mode != "off":
        until(lambda: gaps() == set(there.mailboxes), "a gap of each mailbox")
    if mode == "sync":
        until(lambda: missed <= told(), "what was missed")
    assert again.stop() == 0
    if mode != "sync":
        assert not missed & told()
        assert not {"SyncFolderItems", "FindFolder", "GetFolder"} & there.state()["requests"].keys()
    assert bool(gaps()) == (mode != "off")


def journal_of(there: Simulator) -> Path:
    (found,) = there.folder.rglob("journal.db")
    return found


def test_one_process_a_state_directory(simulator: Start, listen: Listen) -> None:
    there = simulator()
    first: Listener = listen(there)
    there.until_streaming(4)
    second = forked.run(
        [sys.executable, "-m", "listener", "run", "--config", str(there.config)],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert second.returncode == 2
    (error,) = (line for line in second.stderr.splitlines() if line.startswith("error:"))
    assert str(there.folder / "state") in error
    assert str(first.process.pid) in error
    assert first.stop() == 0
