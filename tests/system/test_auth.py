"""The daemon gets in by each scheme, through the real processes; and what it says when it may not."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from tests.system.processes import Listener, Simulator, json_lines, until

Start = Callable[..., Simulator]
Listen = Callable[..., Listener]


@pytest.mark.parametrize("kind", ["ntlm", "negotiate"])
def test_extended_protection_is_met(simulator: Start, listen: Listen, kind: str) -> None:
    there = simulator("--auth", kind, "--extended-protection", "require")
    daemon = listen(there)
    there.streaming(4)
    there.make(there.mailboxes[0])
    until(lambda: json_lines(there.folder / "deliveries.jsonl"), "the event")
    assert daemon.end() == 0
    assert not daemon.logged("auth.refused")


def test_tokens_that_end_soon_are_renewed_and_streams_go_on(simulator: Start, listen: Listen) -> None:
    there = simulator("--auth", "oauth", "--token-lifetime", "2")
    there.append('\n[catch_up]\ninterval = "1s"\n')
    there.append('\n[log]\nlevel = "debug"\n')
    daemon = listen(there)
    there.streaming(4)
    daemon.until_logged("auth.token_renewed", count=3)
    there.make(there.mailboxes[0])
    until(lambda: json_lines(there.folder / "deliveries.jsonl"), "the event")
    assert daemon.end() == 0
    assert not daemon.logged("auth.refused")
    assert not daemon.logged("stream.refused")


def test_a_wrong_secret_is_told_in_time(simulator: Start, listen: Listen) -> None:
    there = simulator("--auth", "oauth")
    there.change('client_secret = "', 'client_secret = "not-')
    there.change("[exchange]", "[exchange]\nautodiscover = false")
    daemon = listen(there)
    (started,) = daemon.until_logged("listener.started")
    refused = daemon.until_logged("auth.refused", code="AADSTS7000215")[0]
    assert refused["text"].endswith("is wrong: the secret's value is wanted, not its id")
    assert seconds_between(started, refused) < 5
    daemon.until_logged("mailbox.parked", code="AADSTS7000215")
    assert daemon.end() == 0
    assert max(line["tries"] for line in daemon.logged("auth.refused")) <= 3


def seconds_between(earlier: dict[str, Any], later: dict[str, Any]) -> float:
    return (datetime.fromisoformat(later["time"]) - datetime.fromisoformat(earlier["time"])).total_seconds()


def test_a_wrong_password_is_tried_once_a_try(simulator: Start, listen: Listen) -> None:
    there = simulator("--auth", "ntlm", "--extended-protection", "require", "--mailboxes", "12")
    there.change(there.told["password"], "Pw-wrong")
    there.change("[exchange]", "[exchange]\nautodiscover = false")
    daemon = listen(there)
    refused = daemon.until_logged("auth.refused", code="HandshakeRefused")
    assert "the password is wrong, or the account is locked" in refused[0]["text"]
    daemon.until_logged("auth.refused", tries=2)
    assert daemon.end() == 0
    assert max(line["tries"] for line in daemon.logged("auth.refused")) == 2
    assert "Pw-wrong" not in daemon.errors.read_text()
