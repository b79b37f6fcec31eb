"""A client that others wrote works against the simulator, unchanged: exchangelib, in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., tuple["subprocess.Popen[str]", dict[str, Any]]]

pytest.importorskip("exchangelib")

CLIENT = """
import json, sys, threading, urllib.request
from exchangelib import BASIC, IMPERSONATION, Account, Configuration, Credentials

told, address = json.loads(sys.argv[1]), sys.argv[2]
configuration = Configuration(
    service_endpoint=told["ews_url"], credentials=Credentials(told["user"], told["password"]), auth_type=BASIC
)
account = Account(address, config=configuration, autodiscover=False, access_type=IMPERSONATION)

def ask(what, order):
    url = told["control_url"] + "/" + what
    with urllib.request.urlopen(url, json.dumps(order).encode(), timeout=10) as reply:
        return json.load(reply)

def make(kind, count=1):
    return ask("events", {"mailbox": address, "kind": kind, "count": count})["events"]
"""

STREAMING = """
subscription = account.inbox.subscribe_to_streaming()
threading.Timer(0.2, make, ["NewMailEvent"]).start()
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


SYNCHRONISING = """
from exchangelib import EWSDateTime, UTC
from exchangelib.errors import ErrorInvalidSyncStateData

def sync(folder, **options):
    return [(kind, getattr(change, "id", None) or change[0].id) for kind, change in folder.sync_items(**options)]

mails = [line["item_id"] for line in make("NewMailEvent", 5) if line["kind"] == "NewMailEvent"]
first = sync(account.inbox, max_changes_returned=2, only_fields=["subject"])
quiet = sync(account.inbox)
started = EWSDateTime.now(tz=UTC)
fresh = make("NewMailEvent")[0]["item_id"]
moved, = [line for line in make("MovedEvent") if line["kind"] == "MovedEvent"]
second = sync(account.inbox)
bin = sync(account.trash)
since = account.inbox.filter(last_modified_time__gte=started.replace(microsecond=0)).order_by("-last_modified_time")

tree = [(kind, folder.name) for kind, folder in account.msg_folder_root.sync_hierarchy()]
still = list(account.msg_folder_root.sync_hierarchy())

ask("faults", {"kind": "sync_state_lost", "mailbox": address})
try:
    refused = sync(account.inbox)
except ErrorInvalidSyncStateData as error:
    refused = type(error).__name__
account.inbox.item_sync_state = None
again = sync(account.inbox)
print(json.dumps({
    "first": first == [("create", id) for id in reversed(mails)],
    "quiet": quiet,
    "second": second == [("create", fresh)],
    "bin": bin == [("create", moved["item_id"])],
    "since": [item.id for item in since.only("subject")][0] == fresh,
    "tree": [name for kind, name in tree if kind == "create"],
    "still": still,
    "refused": refused,
    "again": sorted(id for _, id in again) == sorted([*mails, fresh]),
}))
account.protocol.close()
"""


DELEGATE = """
from exchangelib import DELEGATE
from exchangelib.errors import ErrorFolderNotFound, ErrorImpersonateUserDenied

theirs = Account(address, config=configuration, autodiscover=False, access_type=DELEGATE)

def outcome(work):
    try:
        return work()
    except (ErrorFolderNotFound, ErrorImpersonateUserDenied) as error:
        return type(error).__name__

before = outcome(lambda: theirs.inbox.name)
ask("rights", {"mailbox": address, "folders": ["*"]})
theirs = Account(address, config=configuration, autodiscover=False, access_type=DELEGATE)
subscription = theirs.inbox.subscribe_to_streaming()
threading.Timer(0.2, make, ["NewMailEvent"]).start()
kinds = []
for notification in theirs.inbox.get_streaming_events(subscription, connection_timeout=1):
    kinds += [type(event).__name__ for event in notification.events]
    if "NewMailEvent" in kinds:
        break
ask("rights", {"mailbox": address, "in_scope": False})
print(json.dumps({
    "before": before,
    "mails": theirs.inbox.all().count() > 0,
    "kinds": kinds,
    "unsubscribed": theirs.inbox.unsubscribe(subscription),
    "out of scope": outcome(lambda: account.calendar.name),
}))
account.protocol.close()
"""

EXPANDING = """
from exchangelib.errors import ErrorNameResolutionNoResults

everyone = account.protocol.expand_dl("everyone@contoso.example")
team = account.protocol.expand_dl(everyone[0].email_address)
try:
    nobody = account.protocol.expand_dl("nobody@contoso.example")
except ErrorNameResolutionNoResults as error:
    nobody = type(error).__name__
print(json.dumps({
    "everyone": [member.mailbox_type for member in everyone],
    "team": sorted({member.mailbox_type for member in team}),
    "nobody": nobody,
}))
account.protocol.close()
"""


def run(program: str, simulate: Start, tmp_path: Path) -> dict[str, Any]:
    """What the client's program prints."""
    _, told = simulate("--rate", "0", "--write-config", str(tmp_path / "listener.toml"))
    address = (tmp_path / "mailboxes.txt").read_text().split()[0]
    client = subprocess.run(
        [sys.executable, "-c", CLIENT + program, json.dumps(told), address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert client.returncode == 0, client.stderr
    answer: dict[str, Any] = json.loads(client.stdout)
    return answer


def test_it_subscribes_streams_and_unsubscribes(simulate: Start, tmp_path: Path) -> None:
    answer = run(STREAMING, simulate, tmp_path)
    assert answer["kinds"] == ["CreatedEvent", "NewMailEvent", "ModifiedEvent"]
    assert answer["subject"]
    assert answer["newest"] is True
    assert answer["unsubscribed"] is True
    assert {"Inbox", "Calendar", "Deleted Items", "Sent Items"} <= set(answer["folders"])


def test_it_reads_and_streams_as_a_delegate(simulate: Start, tmp_path: Path) -> None:
    answer = run(DELEGATE, simulate, tmp_path)
    assert answer == {
        "before": "ErrorFolderNotFound",
        "mails": True,
        "kinds": ["CreatedEvent", "NewMailEvent", "ModifiedEvent"],
        "unsubscribed": True,
        "out of scope": "ErrorImpersonateUserDenied",
    }


def test_it_expands_distribution_groups(simulate: Start, tmp_path: Path) -> None:
    answer = run(EXPANDING, simulate, tmp_path)
    assert answer == {
        "everyone": ["PublicDL", "PublicDL", "PublicDL", "Contact", "PublicFolder"],
        "team": ["Mailbox"],
        "nobody": "ErrorNameResolutionNoResults",
    }


def test_it_synchronises(simulate: Start, tmp_path: Path) -> None:
    answer = run(SYNCHRONISING, simulate, tmp_path)
    tree = answer.pop("tree")
    assert {"Inbox", "Calendar", "Deleted Items", "Sent Items"} <= set(tree)
    assert answer == {
        "first": True,
        "quiet": [],
        "second": True,
        "bin": True,
        "since": True,
        "still": [],
        "refused": "ErrorInvalidSyncStateData",
        "again": True,
    }
