"""Placement of mailboxes: discovery by each Autodiscover protocol, and rediscovery after a move."""

from tests.system.processes import Listen, Simulator, Start, until


def autodiscover_answers(exchange: Simulator) -> dict[str, int]:
    """Return the number of Autodiscover answers by HTTP status."""
    answers: dict[str, int] = exchange.state()["requests"].get("Autodiscover", {})
    return answers


def test_pox_is_used_if_the_server_has_no_soap_autodiscover(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--mailboxes", "6")
    exchange.inject_fault(kind="http", operation="Autodiscover", status=404)
    daemon = listen(exchange)
    exchange.until_streaming(6)
    assert autodiscover_answers(exchange) == {"404": 1, "200": 6}, "one request per mailbox"
    (found,) = daemon.logged("discovery.found")
    assert (found["mailboxes"], found["missing"]) == (6, 0)
    state = exchange.state()
    placed = {backend["name"]: backend["mailboxes"] for backend in state["backends"] if backend["mailboxes"]}
    assert {stream["backend"]: stream["ids"] for stream in state["streams"]} == placed, (
        "POX returned the groups"
    )
    assert daemon.stop() == 0


def test_an_autodiscover_redirect_is_followed(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--tls")
    url = exchange.info["autodiscover_url"]
    exchange.inject_fault(kind="http", operation="Autodiscover", status=302, location=url)
    daemon = listen(exchange)
    exchange.until_streaming(4)
    assert autodiscover_answers(exchange) == {"302": 1, "200": 1}
    assert daemon.stop() == 0


def test_an_autodiscover_redirect_to_plain_http_is_not_followed(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    exchange.inject_fault(
        kind="http", operation="Autodiscover", status=302, location=exchange.info["autodiscover_url"]
    )
    exchange.replace_config("ews_url", "#ews_url")
    daemon = listen(exchange)
    failed = daemon.until_logged("discovery.failed", 4)
    assert {line["code"] for line in failed} == {"InsecureRedirect"}
    assert autodiscover_answers(exchange) == {"302": 1}
    assert daemon.stop() == 0


def test_a_single_moved_mailbox_joins_another_group(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--mailboxes", "12", "--backends", "2")
    exchange.append_config("\n[backoff]\nfirst = 0.05\ncap = 0.2\n")
    daemon = listen(exchange)
    exchange.until_streaming(12)
    before = exchange.state()
    sizes = {backend["name"]: backend["mailboxes"] for backend in before["backends"]}
    exchange.inject_fault(kind="mailbox_move", mailbox=exchange.mailboxes[5])
    (moved,) = daemon.until_logged("mailbox.moved", mailbox=exchange.mailboxes[5])

    def settled() -> bool:
        state = exchange.state()
        placed = {backend["name"]: backend["mailboxes"] for backend in state["backends"]}
        return placed != sizes and {s["backend"]: s["ids"] for s in state["streams"]} == placed

    until(settled, "every stream has the mailboxes of its back end")
    assert exchange.state()["requests"]["Subscribe"]["200"] == 13, "no other mailbox is subscribed again"
    assert moved["group"] != moved["to"]
    ledger = [line for mailbox in exchange.mailboxes for line in exchange.create_events(mailbox)]
    expected = {line.get("item_id") or line["folder_id"] for line in ledger}
    until(lambda: expected <= {event["subject"] for event in exchange.deliveries}, "events of all mailboxes")
    assert daemon.stop() == 0
