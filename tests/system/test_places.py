"""Where mailboxes live: found in the ways that servers have, and found again when one moves."""

from tests.system.processes import Listen, Simulator, Start, until


def discovering(there: Simulator) -> dict[str, int]:
    """The answers of Autodiscover by status."""
    answers: dict[str, int] = there.state()["requests"].get("Autodiscover", {})
    return answers


def test_a_server_that_knows_no_soap_is_asked_by_pox(simulator: Start, listen: Listen) -> None:
    there = simulator("--mailboxes", "6")
    there.inject_fault(kind="http", operation="Autodiscover", status=404)
    daemon = listen(there)
    there.until_streaming(6)
    assert discovering(there) == {"404": 1, "200": 6}, "one request a mailbox"
    (found,) = daemon.logged("discovery.found")
    assert (found["mailboxes"], found["missing"]) == (6, 0)
    state = there.state()
    homes = {backend["name"]: backend["mailboxes"] for backend in state["backends"] if backend["mailboxes"]}
    assert {stream["backend"]: stream["ids"] for stream in state["streams"]} == homes, "POX told the groups"
    assert daemon.stop() == 0


def test_autodiscover_leads_on_to_another_url(simulator: Start, listen: Listen) -> None:
    there = simulator("--tls")
    url = there.info["autodiscover_url"]
    there.inject_fault(kind="http", operation="Autodiscover", status=302, location=url)
    daemon = listen(there)
    there.until_streaming(4)
    assert discovering(there) == {"302": 1, "200": 1}
    assert daemon.stop() == 0


def test_autodiscover_is_not_followed_to_plain_http(simulator: Start, listen: Listen) -> None:
    there = simulator()
    there.inject_fault(
        kind="http", operation="Autodiscover", status=302, location=there.info["autodiscover_url"]
    )
    there.replace_config("ews_url", "#ews_url")
    daemon = listen(there)
    failed = daemon.until_logged("discovery.failed", 4)
    assert {line["code"] for line in failed} == {"InsecureRedirect"}
    assert discovering(there) == {"302": 1}
    assert daemon.stop() == 0


def test_a_mailbox_that_moves_alone_joins_another_group(simulator: Start, listen: Listen) -> None:
    there = simulator("--mailboxes", "12", "--backends", "2")
    there.append_config("\n[backoff]\nfirst = 0.05\ncap = 0.2\n")
    daemon = listen(there)
    there.until_streaming(12)
    before = there.state()
    sizes = {backend["name"]: backend["mailboxes"] for backend in before["backends"]}
    there.inject_fault(kind="mailbox_move", mailbox=there.mailboxes[5])
    (moved,) = daemon.until_logged("mailbox.moved", mailbox=there.mailboxes[5])

    def settled() -> bool:
        state = there.state()
        homes = {backend["name"]: backend["mailboxes"] for backend in state["backends"]}
        return homes != sizes and {s["backend"]: s["ids"] for s in state["streams"]} == homes

    until(settled, "each stream with the mailboxes of its back end")
    assert there.state()["requests"]["Subscribe"]["200"] == 13, "nobody else is subscribed anew"
    assert moved["group"] != moved["to"]
    ledger = [line for mailbox in there.mailboxes for line in there.create_events(mailbox)]
    wanted = {line.get("item_id") or line["folder_id"] for line in ledger}
    until(lambda: wanted <= {event["subject"] for event in there.deliveries}, "events of all mailboxes")
    assert daemon.stop() == 0
