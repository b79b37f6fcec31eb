"""The daemon gets in by each scheme, through the real processes; and what it says when it may not."""

from collections.abc import Callable

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
