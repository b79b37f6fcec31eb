"""The independent client exchangelib works unchanged against the simulator, in its own process."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Simulate = Callable[..., tuple["subprocess.Popen[str]", dict[str, Any]]]

pytest.importorskip("exchangelib")

CLIENT = """
import json, sys, threading, urllib.request
from exchangelib import BASIC, IMPERSONATION, Account, Configuration, Credentials

info, address = json.loads(sys.argv[1]), sys.argv[2]
configuration = Configuration(
    service_endpoint=info["ews_url"], credentials=Credentials(info["user"], info["password"]), auth_type=BASIC
)
account = Account(address, config=configuration, autodiscover=False, access_type=IMPERSONATION)

def control(resource, body):
    url = info["control_url"] + "/" + resource
    with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=10) as reply:
        return json.load(reply)

def create_events(kind, count=1):
    return control("events", {"mailbox": address, "kind": kind, "count": count})["events"]
"""

STREAMING = """
subscription = account.inbox.subscribe_to_streaming()
threading.Timer(0.2, create_events, ["NewMailEvent"]).start()
kinds, items = [], []
for notification in account.inbox.get_streaming_events(subscription, connection_timeout=1):
    kinds += [type(event).__name__ for event in notification.events]
    items += [event.item_id for event in notification.events if event.item_id]
    if "NewMailEvent" in kinds:
        break
(mail,) = account.fetch([items[0]])
folders = sorted(folder.name for folder in account.msg_folder_root.children)
unsubscribed = account.inbox.unsubscribe(subscription)
print(json.dumps({
    "kinds": kinds,
    "subject": mail.subject,
    "folders": folders,
    "newest": [item.id for item in account.inbox.all().only("subject")] == [items[0].id],
    "unsubscribed": unsubscribed,
}))
account.protocol.close()
"""


SYNCING = """
from exchangelib import EWSDateTime, UTC
from exchangelib.errors import ErrorInvalidSyncStateData

def sync(folder, **options):
    return [(kind, getattr(change, "id", None) or change[0].id) for kind, change in folder.sync_items(**options)]

mails = [line["item_id"] for line in create_events("NewMailEvent", 5) if line["kind"] == "NewMailEvent"]
first = sync(account.inbox, max_changes_returned=2, only_fields=["subject"])
unchanged = sync(account.inbox)
started = EWSDateTime.now(tz=UTC)
fresh = create_events("NewMailEvent")[0]["item_id"]
moved, = [line for line in create_events("MovedEvent") if line["kind"] == "MovedEvent"]
second = sync(account.inbox)
bin = sync(account.trash)
since = account.inbox.filter(last_modified_time__gte=started.replace(microsecond=0)).order_by("-last_modified_time")

tree = [(kind, folder.name) for kind, folder in account.msg_folder_root.sync_hierarchy()]
unchanged_tree = list(account.msg_folder_root.sync_hierarchy())

control("faults", {"kind": "sync_state_lost", "mailbox": address})
try:
    refused = sync(account.inbox)
except ErrorInvalidSyncStateData as error:
    refused = type(error).__name__
account.inbox.item_sync_state = None
again = sync(account.inbox)
print(json.dumps({
    "first": first == [("create", id) for id in reversed(mails)],
    "unchanged": unchanged,
    "second": second == [("create", fresh)],
    "bin": bin == [("create", moved["item_id"])],
    "since": [item.id for item in since.only("subject")][0] == fresh,
    "tree": [name for kind, name in tree if kind == "create"],
    "unchanged_tree": unchanged_tree,
    "refused": refused,
    "again": sorted(id for _, id in again) == sorted([*mails, fresh]),
}))
account.protocol.close()
"""


DELEGATE = """
from exchangelib import DELEGATE
from exchangelib.errors import ErrorFolderNotFound, ErrorImpersonateUserDenied

delegated = Account(address, config=configuration, autodiscover=False, access_type=DELEGATE)

def outcome(call):
    try:
        return call()
    except (ErrorFolderNotFound, ErrorImpersonateUserDenied) as error:
        return type(error).__name__

before = outcome(lambda: delegated.inbox.name)
control("rights", {"mailbox": address, "folders": ["*"]})
delegated = Account(address, config=configuration, autodiscover=False, access_type=DELEGATE)
subscription = delegated.inbox.subscribe_to_streaming()
threading.Timer(0.2, create_events, ["NewMailEvent"]).start()
kinds = []
for notification in delegated.inbox.get_streaming_events(subscription, connection_timeout=1):
    kinds += [type(event).__name__ for event in notification.events]
    if "NewMailEvent" in kinds:
        break
control("rights", {"mailbox": address, "in_scope": False})
print(json.dumps({
    "before": before,
    "mails": delegated.inbox.all().count() > 0,
    "kinds": kinds,
    "unsubscribed": delegated.inbox.unsubscribe(subscription),
    "out of scope": outcome(lambda: account.calendar.name),
}))
account.protocol.close()
"""

EXPANDING = """
from exchangelib.errors import ErrorNameResolutionNoResults

everyone = account.protocol.expand_dl("everyone@contoso.example")
team = account.protocol.expand_dl(everyone[0].email_address)
try:
    unknown = account.protocol.expand_dl("nobody@contoso.example")
except ErrorNameResolutionNoResults as error:
    unknown = type(error).__name__
print(json.dumps({
    "everyone": [member.mailbox_type for member in everyone],
    "team": sorted({member.mailbox_type for member in team}),
    "unknown": unknown,
}))
account.protocol.close()
"""


def run(program: str, simulate: Simulate, tmp_path: Path) -> dict[str, Any]:
    """Run a client program and return its parsed output."""
    _, info = simulate("--rate", "0", "--write-config", str(tmp_path / "listener.toml"))
    address = (tmp_path / "mailboxes.txt").read_text().split()[0]
    client = subprocess.run(
        [sys.executable, "-c", CLIENT + program, json.dumps(info), address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert client.returncode == 0, client.stderr
    output: dict[str, Any] = json.loads(client.stdout)
    return output


def test_subscribes_streams_and_unsubscribes(simulate: Simulate, tmp_path: Path) -> None:
    output = run(STREAMING, simulate, tmp_path)
    assert output["kinds"] == ["CreatedEvent", "NewMailEvent", "ModifiedEvent"]
    assert output["subject"]
    assert output["newest"] is True
    assert output["unsubscribed"] is True
    assert {"Inbox", "Calendar", "Deleted Items", "Sent Items"} <= set(output["folders"])


def test_reads_and_streams_as_a_delegate(simulate: Simulate, tmp_path: Path) -> None:
    output = run(DELEGATE, simulate, tmp_path)
    assert output == {
        "before": "ErrorFolderNotFound",
        "mails": True,
        "kinds": ["CreatedEvent", "NewMailEvent", "ModifiedEvent"],
        "unsubscribed": True,
        "out of scope": "ErrorImpersonateUserDenied",
    }


def test_expands_distribution_groups(simulate: Simulate, tmp_path: Path) -> None:
    output = run(EXPANDING, simulate, tmp_path)
    assert output == {
        "everyone": ["PublicDL", "PublicDL", "PublicDL", "Contact", "PublicFolder"],
        "team": ["Mailbox"],
        "unknown": "ErrorNameResolutionNoResults",
    }


def test_syncs(simulate: Simulate, tmp_path: Path) -> None:
    output = run(SYNCING, simulate, tmp_path)
    tree = output.pop("tree")
    assert {"Inbox", "Calendar", "Deleted Items", "Sent Items"} <= set(tree)
    assert output == {
        "first": True,
        "unchanged": [],
        "second": True,
        "bin": True,
        "since": True,
        "unchanged_tree": [],
        "refused": "ErrorInvalidSyncStateData",
        "again": True,
    }
