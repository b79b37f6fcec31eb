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
    office = simulator("--backends", "1")
    recorder = record(office)
    delegated, *others = office.mailboxes
    office.set_rights(delegated, folders=["inbox"], in_scope=False)
    override(office, delegated, "delegate", 'folders = ["inbox"]')
    office.replace_config("[auth]", "autodiscover = false\n\n[auth]")
    office.replace_config(f"127.0.0.1:{office.port}/EWS", f"127.0.0.1:{recorder.port}/EWS")
    listener = listen(office)
    office.until_streaming(4)
    check_delivery(office, delegated)
    check_delivery(office, others[0])
    groups = {line["anchor"]: line["mailboxes"] for line in listener.logged("group.streaming")}
    assert groups == {delegated: 1, min(others): 3}
    (request,) = [r for r in recorder.requests if r.operation == "Subscribe" and delegated in r.body]
    assert "ExchangeImpersonation" not in request.body
    assert request.headers["x-anchormailbox"] == delegated
    assert not listener.logged("mailbox.suspended")


def test_delegate_catches_up_after_a_gap(simulator: Callable[..., Simulator], listen: Listen) -> None:
    office = simulator("--backends", "1")
    delegated = office.mailboxes[0]
    office.set_rights(delegated, folders=["inbox"], in_scope=False)
    office.replace_config('file = "mailboxes.txt"', f'addresses = ["{delegated}"]\naccess = "delegate"')
    office.append_config('\n[subscription]\nfolders = ["inbox"]\n')
    listen(office).until_logged("group.streaming")
    office.inject_fault(kind="backend_restart", seconds=1)
    check_delivery(office, delegated)
    assert any(event["data"].get("recovered") for event in office.deliveries)


def test_own_mailbox_streams(simulator: Callable[..., Simulator], listen: Listen) -> None:
    office = simulator()
    own_mailbox = office.mailboxes[0]
    office.replace_config('file = "mailboxes.txt"', f'addresses = ["{own_mailbox}"]\naccess = "own"')
    office.replace_config(f'user = "{office.info["user"]}"', f'user = "{own_mailbox}"')
    listen(office)
    office.until_streaming(1)
    check_delivery(office, own_mailbox)


def test_delegate_without_permission_is_suspended_until_granted(
    simulator: Callable[..., Simulator], listen: Listen
) -> None:
    office = simulator()
    delegated = office.mailboxes[0]
    override(office, delegated, "delegate", 'folders = ["inbox"]')
    office.append_config('\n[backoff]\nsuspended_first = "0.5s"\n')
    listener = listen(office)
    office.until_streaming(3)
    (line,) = listener.until_logged("mailbox.suspended", mailbox=delegated)
    assert line["code"] == "ErrorSubscriptionDelegateAccessNotSupported"
    office.set_rights(delegated, folders=["*"])
    listener.until_logged("mailbox.resumed", mailbox=delegated)
    office.until_streaming(4)


def test_distribution_group_changes_do_not_affect_other_mailboxes(
    simulator: Callable[..., Simulator], listen: Listen
) -> None:
    office = simulator("--mailboxes", "8")
    people = sorted(office.mailboxes)
    office.set_group(
        "team@contoso.example", [*people[:4], "everyone-else@contoso.example", "x@fabrikam.example"]
    )
    office.set_group("everyone-else@contoso.example", [*people[4:6], "team@contoso.example"])
    office.replace_config(
        'file = "mailboxes.txt"', 'distribution_groups = ["team@contoso.example"]\nrefresh = "0.3s"'
    )
    listener = listen(office)
    office.until_streaming(6)
    check_delivery(office, people[0])
    office.set_group("everyone-else@contoso.example", people[4:])
    office.until_streaming(8)
    check_delivery(office, people[7])
    # A member leaves: the daemon ends only its subscription.
    subscriptions = office.state()["requests"]["Subscribe"]["200"]
    office.set_group("team@contoso.example", [*people[1:4], "everyone-else@contoso.example"])
    until(lambda: office.state()["subscriptions"] == 7, "seven subscriptions")
    office.until_streaming(7)
    assert office.state()["requests"]["Subscribe"]["200"] == subscriptions
    # A group that was emptied by mistake does not remove its mailboxes.
    office.set_group("team@contoso.example", [])
    (line,) = listener.until_logged("mailboxes.refresh_rejected")[:1]
    assert (line["level"], line["mailboxes"], line["dropped"]) == ("error", 7, 7)
    office.until_streaming(7)
    # Nor does a restart while the group is empty.
    assert listener.stop() == 0
    listener = listen(office)
    listener.until_logged("listener.started")
    office.until_streaming(7)


def test_reload_applies_new_groups_and_access(simulator: Callable[..., Simulator], listen: Listen) -> None:
    office = simulator("--mailboxes", "6")
    people = sorted(office.mailboxes)
    office.set_group("one@contoso.example", people[:2])
    office.set_group("two@contoso.example", people[2:])
    office.replace_config('file = "mailboxes.txt"', 'distribution_groups = ["one@contoso.example"]')
    listener = listen(office)
    office.until_streaming(2)
    office.set_rights(people[0], folders=["inbox"], in_scope=False)
    office.replace_config('"one@contoso.example"]', '"one@contoso.example", "two@contoso.example"]')
    override(office, people[0], "delegate", 'folders = ["inbox"]')
    listener.process.send_signal(signal.SIGHUP)
    office.until_streaming(6)
    check_delivery(office, people[0])
    check_delivery(office, people[5])
    assert {line["code"] for line in listener.logged("mailbox.suspended")} <= {"ErrorImpersonateUserDenied"}
