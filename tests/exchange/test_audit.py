"""Audit: identities are read from the bytes of requests."""

import errno
import io
import os

import structlog
from hypothesis import given
from hypothesis import strategies as st

from listener.access import AccessRule
from listener.ews.events import EventKind
from listener.ews.folders import get_folder
from listener.ews.soap import Impersonation, acting_as, owner_of_folders
from listener.ews.subscription import FolderRef, get_streaming_events, subscribe
from listener.exchange.client import Audit
from listener.log import open_audit

VERSION = "Exchange2013_SP1"
URL = "https://mail.example.com/EWS/Exchange.asmx"
NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
KINDS = st.sampled_from(["PrincipalName", "SID", "PrimarySmtpAddress", "SmtpAddress"])


@given(NAMES, KINDS)
def test_the_impersonated_mailbox_is_found(name: str, kind: str) -> None:
    impersonation = Impersonation(kind, name)  # type: ignore[arg-type]
    for request in (
        subscribe(version=VERSION, impersonate=impersonation, events=[EventKind.CREATED]),
        get_streaming_events(["a", "b"], minutes=30, version=VERSION, impersonate=impersonation),
    ):
        assert acting_as(request) == impersonation
        assert owner_of_folders(request) is None


@given(NAMES)
def test_the_owner_of_folders_is_found(name: str) -> None:
    request = get_folder([FolderRef("inbox", mailbox=name)], version=VERSION)
    assert (acting_as(request), owner_of_folders(request)) == (None, name)


def test_each_identity_is_logged_once_for_each_server_and_account() -> None:
    with structlog.testing.capture_logs() as log:
        audit = Audit()
        for access in (AccessRule(), AccessRule("delegate", folders=("inbox",)), AccessRule("own")):
            route = access.of("anna@example.com")
            request = subscribe(
                version=VERSION,
                impersonate=route.impersonate,
                events=[EventKind.CREATED],
                folders=route.folders,
            )
            for url in (URL, URL, URL.replace("mail", "other")):
                audit.record(request, url, "svc@example.com")
    assert {line["event"] for line in log} == {"audit.identity_used"}
    assert [(line["server"], line["access"], line["identity"], line["named_by"]) for line in log] == [
        (server, access, identity, named_by)
        for access, identity, named_by in (
            ("impersonation", "anna@example.com", "PrimarySmtpAddress"),
            ("delegate", "anna@example.com", "PrimarySmtpAddress"),
            ("own", "svc@example.com", "account"),
        )
        for server in ("mail.example.com", "other.example.com")
    ]
    assert {line["account"] for line in log} == {"svc@example.com"}


def test_without_a_file_the_audit_is_logged() -> None:
    with structlog.testing.capture_logs() as log, open_audit(None) as logger:
        Audit(logger).record(b"", URL, "svc@example.com")
    assert [line["access"] for line in log] == ["own"]
    assert not isinstance(logger, io.IOBase)


class FullDisk:
    """An audit logger on a disk that is full for the first `full` lines."""

    def __init__(self, *, full: int) -> None:
        self.full = full
        self.lines: list[object] = []

    def info(self, event: str, **fields: object) -> None:
        if self.full:
            self.full -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/var/log/audit.jsonl")
        self.lines.append(fields["identity"])


def test_a_failed_audit_line_is_logged_and_written_with_the_next_use() -> None:
    disk = FullDisk(full=2)
    audit = Audit(disk)
    with structlog.testing.capture_logs() as log:
        for _ in range(5):
            audit.record(b"", URL, "svc@example.com")
    assert disk.lines == ["svc@example.com"]
    assert [(line["event"], line["log_level"], line["path"], line["reason"]) for line in log] == [
        ("audit.not_written", "error", "/var/log/audit.jsonl", "No space left on device")
    ] * 2
