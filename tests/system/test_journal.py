"""The journal survives restarts, and operator commands query and change it."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.system import forked
from tests.system.processes import Listen, Listener, Simulator, Start, handler, json_lines, until


def command(exchange: Simulator, *words: str) -> "subprocess.CompletedProcess[str]":
    return forked.run(
        [sys.executable, "-m", "listener", *words, "--config", str(exchange.config)],
        capture_output=True,
        text=True,
        timeout=20,
    )


def query(exchange: Simulator, *words: str) -> object:
    """Return the JSON output of an operator command."""
    run = command(exchange, *words, "--json")
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_undelivered_events_are_delivered_after_a_restart(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    exchange = simulator()
    slow = exchange.folder / "slow.jsonl"
    exchange.append_config(
        handler("slow", "acme:open_slow", f'path = "{slow}"', "seconds = 60") + "\n[shutdown]\ngrace = 0.2\n"
    )
    daemon = listen(exchange, PYTHONPATH=plugins)
    exchange.until_streaming(4)
    ledger = exchange.create_events(exchange.mailboxes[0], count=20)
    until(lambda: len(exchange.deliveries) == len(ledger), "all deliveries to the other handler")
    assert daemon.stop() == 0
    assert daemon.logged("handler.stopped", handler="slow")[0]["lag"] == len(ledger)
    exchange.replace_config("seconds = 60", "seconds = 0")
    restarted = listen(exchange, PYTHONPATH=plugins)
    until(lambda: len(json_lines(slow)) == len(ledger), "all deliveries to the slow handler")
    assert [event["id"] for event in json_lines(slow)] == [event["id"] for event in exchange.deliveries]
    assert restarted.stop() == 0
    assert len(exchange.deliveries) == len(ledger)


def test_dead_letters_are_listed_shown_requeued_and_discarded_while_the_daemon_runs(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    exchange = simulator()
    exchange.append_config(handler("picky", "acme:open_picky", "attempts = 1"))
    exchange.append_config("\n[log]\nrepeat_interval = 0\n")
    daemon = listen(exchange, PYTHONPATH=plugins)
    exchange.until_streaming(4)
    ledger = exchange.create_events(exchange.mailboxes[0])
    until(lambda: daemon.logged("handler.rejected", handler="picky"), "a rejected event")
    until(
        lambda: len(daemon.logged("handler.dead_lettered")) == len(ledger) - 1,
        "the other events dead-lettered",
    )
    letters = query(exchange, "dead-letters", "list")
    assert isinstance(letters, list)
    assert len(letters) == len(ledger)
    (mail,) = (letter for letter in letters if letter["event"]["type"] == "exchange.item.new_mail")
    assert (mail["handler"], mail["reason"], mail["attempts"]) == ("picky", "no mail today", 1)
    assert mail["event"]["data"]["mailbox"] == exchange.mailboxes[0]
    (other, *_) = (letter for letter in letters if letter is not mail)
    shown = query(exchange, "dead-letters", "show", str(other["number"]))
    assert isinstance(shown, dict)
    assert 'raise LookupError("no such customer")' in shown["traceback"]
    table = command(exchange, "dead-letters", "list", "--handler", "picky", "--limit", "1").stdout
    assert table.count("\n") == 1
    assert query(exchange, "dead-letters", "discard", str(mail["number"])) == {"count": 1}
    assert query(exchange, "dead-letters", "retry", str(other["number"])) == {"count": 1}
    until(
        lambda: len(daemon.logged("handler.dead_lettered")) == len(ledger),
        "the requeued event dead-lettered again",
    )
    assert command(exchange, "dead-letters", "show", "999").returncode == 1
    assert "there is no dead letter 999" in command(exchange, "dead-letters", "show", "999").stderr
    assert daemon.stop() == 0
    left = query(exchange, "dead-letters", "list")  # the daemon does not run any more
    assert isinstance(left, list)
    assert len(left) == len(ledger) - 1


def test_replay_redelivers_recent_events_to_a_handler(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    daemon = listen(exchange)
    exchange.until_streaming(4)
    first, second = (
        exchange.create_events(exchange.mailboxes[0]),
        exchange.create_events(exchange.mailboxes[1]),
    )
    until(lambda: len(exchange.deliveries) == len(first) + len(second), "all deliveries")
    result = query(
        exchange, "replay", "--handler", "deliveries", "--since", "1h", "--mailbox", exchange.mailboxes[1]
    )
    assert result == {"count": len(second)}
    until(lambda: len(exchange.deliveries) == len(first) + 2 * len(second), "the replay")
    times = Counter(event["data"]["mailbox"] for event in exchange.deliveries)
    assert times == {exchange.mailboxes[0]: len(first), exchange.mailboxes[1]: 2 * len(second)}
    failed = command(exchange, "replay", "--handler", "no_such", "--since", "1h")
    assert failed.returncode == 1
    assert "no_such" in failed.stderr
    assert command(exchange, "replay", "--handler", "deliveries", "--since", "soon").returncode == 2
    assert daemon.stop() == 0


def test_a_batch_handler_receives_batches_in_order_and_a_whole_batch_again_after_a_retry(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    exchange = simulator("--mailboxes", "1")
    loaded = exchange.folder / "loaded.jsonl"
    exchange.append_config(handler("loader", "acme:open_loader", f'path = "{loaded}"'))
    daemon = listen(exchange, PYTHONPATH=plugins)
    exchange.until_streaming(1)
    ledger = exchange.create_events(exchange.mailboxes[0], count=100)
    until(lambda: len(exchange.deliveries) == len(ledger), "all deliveries to the other handler")
    batches = until(
        lambda: found if sum(map(len, found := json_lines(loaded))) == len(ledger) else None, "all batches"
    )
    assert [id_ for batch in batches for id_ in batch] == [event["id"] for event in exchange.deliveries]
    assert max(map(len, batches)) == 50
    assert daemon.logged("handler.retry", handler="loader")[0]["batch"] == len(batches[1])
    assert daemon.stop() == 0


def test_a_full_journal_pauses_ingestion_and_loses_no_event(
    simulator: Start, listen: Listen, plugins: str
) -> None:
    exchange = simulator("--heartbeat", "0.5")
    slow = exchange.folder / "slow.jsonl"
    exchange.append_config(
        handler("slow", "acme:open_slow", f'path = "{slow}"', "seconds = 60", "attempts = 100")
        + f"\n[journal]\nsize = {1 << 20}\n\n[shutdown]\ngrace = 0.2\n"
    )
    daemon = listen(exchange, PYTHONPATH=plugins)
    exchange.until_streaming(4)
    made = 0

    def full() -> bool:
        nonlocal made
        made += len(exchange.create_events(exchange.mailboxes[made % 4], count=100))
        return bool(daemon.logged("journal.full"))

    until(full, "a full journal")
    (line,) = daemon.logged("journal.full")
    assert (line["slowest"], line["limit"]) == ("slow", 1 << 20)
    assert line["lag"] > 0
    exchange.until_streaming(4)  # ingestion is paused, but the streams stay open
    assert daemon.stop() == 0
    exchange.replace_config("seconds = 60", "seconds = 0")
    restarted = listen(exchange, PYTHONPATH=plugins)
    restarted.until_logged("journal.room")
    subjects = {event["subject"] for event in exchange.deliveries}
    until(
        lambda: {event["subject"] for event in json_lines(slow)} >= subjects,
        "all events that the full journal held back",
    )
    exchange.until_streaming(4)
    new = exchange.create_events(exchange.mailboxes[0])
    wanted = {line.get("item_id") or line.get("folder_id") for line in new}
    until(lambda: wanted <= {event["subject"] for event in json_lines(slow)}, "the events after the pause")
    assert restarted.stop() == 0


def test_a_damaged_journal_is_reported_and_not_modified(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    daemon = listen(exchange)
    exchange.until_streaming(4)
    exchange.create_events(exchange.mailboxes[0], count=100)
    assert daemon.stop() == 0
    journal = journal_of(exchange)
    with journal.open("r+b") as file:
        file.seek(100)
        file.write(os.urandom(8000))
    before = journal.read_bytes()
    second = listen(exchange)
    assert second.wait() == 2
    (line,) = second.log_file.read_text().splitlines()[-1:]
    assert str(journal) in line
    assert "damaged" in line or "malformed" in line
    assert journal.read_bytes() == before


@pytest.mark.parametrize("mode", ["sync", "signal", "off"])
def test_catch_up_after_a_kill_follows_the_configured_mode(
    simulator: Start, listen: Listen, mode: str
) -> None:
    exchange = simulator("--heartbeat", "0.5")
    exchange.append_config(f'filter.types = ["exchange.*"]\n\n[catch_up]\nmode = "{mode}"\n')
    daemon = listen(exchange)
    exchange.until_streaming(4)
    daemon.process.kill()
    daemon.wait()
    missed = {
        line["item_id"] for line in exchange.create_events(exchange.mailboxes[0]) if line.get("item_id")
    }
    for backend in exchange.state()["backends"]:
        # A restart discards the events that the server queued for the streams.
        exchange.inject_fault(kind="backend_restart", backend=backend["name"])
    restarted = listen(exchange)
    exchange.until_streaming(4)
    after = {line["item_id"] for line in exchange.create_events(exchange.mailboxes[0]) if line.get("item_id")}

    def reported() -> set[str]:
        return {
            event["subject"] for event in exchange.deliveries if event["type"].startswith("exchange.item.")
        }

    def gaps() -> set[str]:
        found = (event for event in exchange.deliveries if event["type"] == "exchange.listener.gap")
        return {event["data"]["mailbox"] for event in found}

    until(lambda: after <= reported(), "the events after the restart")
    if mode != "off":
        until(lambda: gaps() == set(exchange.mailboxes), "a gap event for each mailbox")
    if mode == "sync":
        until(lambda: missed <= reported(), "the missed events")
    assert restarted.stop() == 0
    if mode != "sync":
        assert not missed & reported()
        assert not {"SyncFolderItems", "FindFolder", "GetFolder"} & exchange.state()["requests"].keys()
    assert bool(gaps()) == (mode != "off")


def journal_of(exchange: Simulator) -> Path:
    (found,) = exchange.folder.rglob("journal.db")
    return found


def test_a_second_daemon_with_the_same_state_directory_exits(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    first: Listener = listen(exchange)
    exchange.until_streaming(4)
    second = forked.run(
        [sys.executable, "-m", "listener", "run", "--config", str(exchange.config)],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert second.returncode == 2
    (error,) = (line for line in second.stderr.splitlines() if line.startswith("error:"))
    assert str(exchange.folder / "state") in error
    assert str(first.process.pid) in error
    assert first.stop() == 0
