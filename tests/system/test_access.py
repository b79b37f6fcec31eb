"""Impersonation, delegate and own access, and distribution groups, with real processes."""

import signal
from collections.abc import Callable

from tests.system.processes import Listener, Recorder, Simulator, until

Listen = Callable[..., Listener]


def check_delivery(simulator: Simulator, mailbox: str, kind: str = "exchange.item.new_mail") -> None:
    """Create a mail and wait until its event is delivered."""
    ids = {line["item_id"] for line in simulator.create_events(mailbox) if line["kind"] == "NewMailEvent"}
    until(
        lambda: ids <= {event.get("subject") for event in simulator.deliveries if event["type"] == kind},
        f"the mail to {mailbox}: {ids}",
    )


def override(simulator: Simulator, mailbox: str, access: str, *lines: str) -> None:
    options = "\n".join(lines)
    simulator.append_config(
        f'\n[[mailboxes.overrides]]\naddresses = ["{mailbox}"]\naccess = "{access}"\n{options}\n'
    )


def test_delegate_streams_permitted_folders(
    simulator: Callable[..., Simulator], listen: Listen, record: Callable[[Simulator], Recorder]
) -> None:
    exchange = simulator("--backends", "1")
    recorder = record(exchange)
    delegated, *others = exchange.mailboxes
    exchange.set_rights(delegated, folders=["inbox"], in_scope=False)
    override(exchange, delegated, "delegate", 'folders = ["inbox"]')
    exchange.replace_config("[auth]", "autodiscover = false\n\n[auth]")
    exchange.replace_config(f"127.0.0.1:{exchange.port}/EWS", f"127.0.0.1:{recorder.port}/EWS")
    listener = listen(exchange)
    exchange.until_streaming(4)
    check_delivery(exchange, delegated)
    check_delivery(exchange, others[0])
    groups = {line["anchor"]: line["mailboxes"] for line in listener.logged("group.streaming")}
    assert groups == {delegated: 1, min(others): 3}
    (request,) = [r for r in recorder.requests if r.operation == "Subscribe" and delegated in r.body]
    assert "ExchangeImpersonation" not in request.body
    assert request.headers["x-anchormailbox"] == delegated
    assert not listener.logged("mailbox.suspended")


def test_delegate_catches_up_after_a_gap(simulator: Callable[..., Simulator], listen: Listen) -> None:
    exchange = simulator("--backends", "1")
    delegated = exchange.mailboxes[0]
    exchange.set_rights(delegated, folders=["inbox"], in_scope=False)
    exchange.replace_config('file = "mailboxes.txt"', f'addresses = ["{delegated}"]\naccess = "delegate"')
    exchange.append_config('\n[subscription]\nfolders = ["inbox"]\n')
    listen(exchange).until_logged("group.streaming")
    exchange.inject_fault(kind="backend_restart", seconds=1)
    check_delivery(exchange, delegated)
    assert any(event["data"].get("recovered") for event in exchange.deliveries)


def test_own_mailbox_streams(simulator: Callable[..., Simulator], listen: Listen) -> None:
    exchange = simulator()
    own_mailbox = exchange.mailboxes[0]
    exchange.replace_config('file = "mailboxes.txt"', f'addresses = ["{own_mailbox}"]\naccess = "own"')
    exchange.replace_config(f'user = "{exchange.info["user"]}"', f'user = "{own_mailbox}"')
    listen(exchange)
    exchange.until_streaming(1)
    check_delivery(exchange, own_mailbox)


def test_delegate_without_permission_is_suspended_until_granted(
    simulator: Callable[..., Simulator], listen: Listen
) -> None:
    exchange = simulator()
    delegated = exchange.mailboxes[0]
    override(exchange, delegated, "delegate", 'folders = ["inbox"]')
    exchange.append_config('\n[backoff]\nsuspended_first = "0.5s"\n')
    listener = listen(exchange)
    exchange.until_streaming(3)
    (line,) = listener.until_logged("mailbox.suspended", mailbox=delegated)
    assert line["code"] == "ErrorSubscriptionDelegateAccessNotSupported"
    exchange.set_rights(delegated, folders=["*"])
    listener.until_logged("mailbox.resumed", mailbox=delegated)
    exchange.until_streaming(4)


def test_distribution_group_changes_do_not_affect_other_mailboxes(
    simulator: Callable[..., Simulator], listen: Listen
) -> None:
    exchange = simulator("--mailboxes", "8")
    people = sorted(exchange.mailboxes)
    exchange.set_group(
        "team@contoso.example", [*people[:4], "everyone-else@contoso.example", "x@fabrikam.example"]
    )
    exchange.set_group("everyone-else@contoso.example", [*people[4:6], "team@contoso.example"])
    exchange.replace_config(
        'file = "mailboxes.txt"', 'distribution_groups = ["team@contoso.example"]\nrefresh = "0.3s"'
    )
    listener = listen(exchange)
    exchange.until_streaming(6)
    check_delivery(exchange, people[0])
    exchange.set_group("everyone-else@contoso.example", people[4:])
    exchange.until_streaming(8)
    check_delivery(exchange, people[7])
    # A member leaves: the daemon ends only its subscription.
    subscriptions = exchange.state()["requests"]["Subscribe"]["200"]
    exchange.set_group("team@contoso.example", [*people[1:4], "everyone-else@contoso.example"])
    until(lambda: exchange.state()["subscriptions"] == 7, "seven subscriptions")
    exchange.until_streaming(7)
    assert exchange.state()["requests"]["Subscribe"]["200"] == subscriptions
    # A group that was emptied by mistake does not remove its mailboxes.
    exchange.set_group("team@contoso.example", [])
    (line,) = listener.until_logged("mailboxes.refresh_rejected")[:1]
    assert (line["level"], line["mailboxes"], line["dropped"]) == ("error", 7, 7)
    exchange.until_streaming(7)
    # Nor does a restart while the group is empty.
    assert listener.stop() == 0
    listener = listen(exchange)
    listener.until_logged("listener.started")
    exchange.until_streaming(7)


def test_reload_applies_new_groups_and_access(simulator: Callable[..., Simulator], listen: Listen) -> None:
    exchange = simulator("--mailboxes", "6")
    people = sorted(exchange.mailboxes)
    exchange.set_group("one@contoso.example", people[:2])
    exchange.set_group("two@contoso.example", people[2:])
    exchange.replace_config('file = "mailboxes.txt"', 'distribution_groups = ["one@contoso.example"]')
    listener = listen(exchange)
    exchange.until_streaming(2)
    exchange.set_rights(people[0], folders=["inbox"], in_scope=False)
    exchange.replace_config('"one@contoso.example"]', '"one@contoso.example", "two@contoso.example"]')
    override(exchange, people[0], "delegate", 'folders = ["inbox"]')
    listener.process.send_signal(signal.SIGHUP)
    exchange.until_streaming(6)
    check_delivery(exchange, people[0])
    check_delivery(exchange, people[5])
    assert {line["code"] for line in listener.logged("mailbox.suspended")} <= {"ErrorImpersonateUserDenied"}
