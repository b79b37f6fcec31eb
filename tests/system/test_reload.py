"""A daemon that takes up another configuration while it runs."""

import signal
import socket
import time
from typing import Any

from tests.system.operating import command, socket_of, status
from tests.system.processes import Listen, Simulator, Start, handler, json_lines, until


def ages(there: Simulator) -> dict[str, float]:
    """When each group's stream was opened."""
    return {group["name"]: group["stream_opened"] for group in status(there)["groups"]}


def opened(there: Simulator) -> int:
    """How often a stream was asked for, as the simulator counts."""
    return sum(there.state()["requests"]["GetStreamingEvents"].values())


def test_mailboxes_come_and_go_and_the_groups_of_others_stream_on(simulator: Start, listen: Listen) -> None:
    there = simulator("--mailboxes", "12", "--backends", "3")
    everybody = there.mailboxes
    homes: dict[str, list[str]] = {}
    listen(there)
    there.until_streaming(12)
    before = until(lambda: (it := status(there))["streaming"] == 12 and it, "all in the status")
    until(lambda: len(there.state()["streams"]) == len(before["groups"]), "one stream for each group")
    for group in before["groups"]:
        homes[group["name"]] = [group["anchor"]]
    anchors = {group["anchor"] for group in before["groups"]}
    leaving = next(mailbox for mailbox in everybody if mailbox not in anchors)
    file = there.folder / "mailboxes.txt"

    file.write_text("\n".join(mailbox for mailbox in everybody if mailbox != leaving))
    streams, old = opened(there), ages(there)
    done = command(there, "reload")
    assert (done.returncode, done.stdout) == (0, "reloaded\n")
    until(lambda: there.state()["mailboxes_streaming"] == 11, "one mailbox less")
    until(lambda: status(there)["streaming"] == 11, "one less in the status")
    changed = {name for name, moment in ages(there).items() if moment != old[name]}
    assert len(changed) <= 1
    assert opened(there) - streams <= 1

    file.write_text("\n".join(everybody))
    streams, old = opened(there), ages(there)
    assert command(there, "reload").returncode == 0
    there.until_streaming(12)
    until(lambda: status(there)["streaming"] == 12, "all again")
    changed = {name for name, moment in ages(there).items() if moment != old[name]}
    assert len(changed) == 1
    assert opened(there) - streams == 1
    line = there.create_events(leaving)[0]
    until(lambda: any(e["subject"] == line["item_id"] for e in there.deliveries), "an event of who came back")


def test_handlers_filters_and_the_level_of_the_log_change(simulator: Start, listen: Listen) -> None:
    there = simulator()
    first, second = there.mailboxes[:2]
    daemon = listen(there)
    there.until_streaming(4)
    streams = opened(there)
    there.create_events(first)
    until(lambda: there.deliveries, "a delivery")
    there.append_config(handler("more", "file", 'path = "more.jsonl"', f'filter.mailboxes = ["{first}"]'))
    there.append_config('\n[log]\nlevel = "debug"\n')
    assert command(there, "reload").returncode == 0
    for mailbox in (first, second):
        there.create_events(mailbox)
    more = until(lambda: json_lines(there.folder / "more.jsonl"), "the new handler's line")
    assert {event["data"]["mailbox"] for event in more} == {first}

    there.replace_config(first, second)
    there.replace_config('use = "file"\npath = "more', 'use = "file"\ntimeout = 3\npath = "more')
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until_logged("listener.reloaded", count=2)
    there.create_events(second)
    until(
        lambda: json_lines(there.folder / "more.jsonl")[-1]["data"]["mailbox"] == second, "by the new filter"
    )
    assert opened(there) == streams
    assert daemon.logged("handler.started", handler="deliveries") == daemon.logged("handler.started")[:1]

    config = there.config.read_text()
    there.config.write_text(config[: config.index("[handlers.more]")])
    assert command(there, "reload").returncode == 0
    daemon.until_logged("handler.stopped", handler="more")
    made = {line.get("item_id") or line["folder_id"] for line in there.create_events(second)}
    until(lambda: made <= {event["subject"] for event in there.deliveries}, "the old handler goes on")
    assert [h["name"] for h in status(there)["handlers"]] == ["deliveries"]
    assert daemon.stop() == 0


def test_a_bad_configuration_changes_nothing_and_says_why(simulator: Start, listen: Listen) -> None:
    there = simulator()
    daemon = listen(there)
    there.until_streaming(4)
    good = there.config.read_text()
    mailboxes = (there.folder / "mailboxes.txt").read_text()
    bad: list[tuple[str, str]] = [
        (good + '\n[log]\nlevel = "loud"\n', "error: log.level: "),
        (good + handler("x", "no_such"), 'error: handlers.x.use: unknown handler "no_such"'),
        (good + handler("x", "file", 'path = "nowhere/there/x"'), "error: handlers.x: could not be opened: "),
        (good.replace("[mailboxes]", "[mailboxes"), ":"),
    ]
    for number, (text, told) in enumerate(bad, 1):
        (there.folder / "mailboxes.txt").write_text(mailboxes.splitlines()[0])
        there.config.write_text(text)
        done = command(there, "reload")
        assert done.returncode == 2
        assert told in done.stderr
        assert "Traceback" not in done.stderr
        if told != ":":  # else the command finds that out by itself
            daemon.until_logged("listener.reload_rejected", count=number)
    it = status(there) if there.config.write_text(good) else {}
    assert (it["mailboxes"], it["streaming"], it["reloads"]["refused"]) == (4, 4, 3)
    assert "handlers.x: could not be opened" in it["reloads"]["problems"][0]
    made = there.create_events(there.mailboxes[0])
    until(lambda: len(there.deliveries) == len(made), "events go on")


def test_a_reload_goes_on_when_nobody_waits_for_it(simulator: Start, listen: Listen, plugins: str) -> None:
    there = simulator()
    slow = handler("slow", "acme:open_slow", 'path = "slow.jsonl"', "seconds = 2")
    there.append_config(slow)
    daemon = listen(there, PYTHONPATH=plugins)
    there.until_streaming(4)
    made = there.create_events(there.mailboxes[0])
    until(lambda: len(there.deliveries) == len(made), "the deliveries to the other handler")
    there.replace_config("seconds = 2", "seconds = 0.01")
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(socket_of(there)))
        asking.sendall(b"POST /reload HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n")
        time.sleep(0.5)
    assert not daemon.logged("listener.reloaded")
    daemon.until_logged("listener.reloaded")
    until(lambda: len(json_lines(there.folder / "slow.jsonl")) >= len(made), "the deliveries to the new one")


def test_what_waits_for_the_next_start_is_told(simulator: Start, listen: Listen) -> None:
    there = simulator()
    listen(there)
    there.until_streaming(4)
    there.replace_config("[exchange]", '[exchange]\nuser_agent = "other/1"')
    done = command(there, "reload")
    assert done.returncode == 0
    assert "exchange.user_agent takes effect at the next start" in done.stdout
    told: dict[str, Any] = status(there)["reloads"]
    assert (told["done"], told["pending"]) == (1, ["exchange.user_agent"])
