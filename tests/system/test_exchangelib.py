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
subscription = account.inbox.subscribe_to_streaming()

def send():
    order = {"mailbox": address, "kind": "NewMailEvent"}
    urllib.request.urlopen(told["control_url"] + "/events", json.dumps(order).encode(), timeout=10).close()

threading.Timer(0.2, send).start()
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


def test_it_subscribes_streams_and_unsubscribes(simulate: Start, tmp_path: Path) -> None:
    _, told = simulate("--rate", "0", "--write-config", str(tmp_path / "listener.toml"))
    address = (tmp_path / "mailboxes.txt").read_text().split()[0]
    client = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(told), address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert client.returncode == 0, client.stderr
    answer = json.loads(client.stdout)
    assert answer["kinds"] == ["CreatedEvent", "NewMailEvent", "ModifiedEvent"]
    assert answer["subject"]
    assert answer["newest"] is True
    assert answer["unsubscribed"] is True
    assert {"Inbox", "Calendar", "Deleted Items", "Sent Items"} <= set(answer["folders"])
