"""Snapshots for tests."""

from listener.admin.snapshot import (
    CatchUpStatus,
    GroupStatus,
    HandlerStatus,
    JournalStatus,
    MailboxProblem,
    ReloadStatus,
    ServerStatus,
    Snapshot,
    TokenStatus,
)


def group(name: str = "site/1", **changes: object) -> GroupStatus:
    values: dict[str, object] = {
        "name": name, "url": "https://mail.x.example/EWS/Exchange.asmx", "anchor": "ann@x.example",
        "state": "streaming", "since": 900.0, "mailboxes": 200, "subscribed": 200, "streaming": 200, "suspended": 0,
        "refused": 0, "events": 7, "failures": 0, "pause": 0.0, "stream_opened": 910.0,
    }  # fmt: skip
    return GroupStatus(**(values | changes))  # type: ignore[arg-type]


def snapshot(**changes: object) -> Snapshot:
    values: dict[str, object] = {
        "version": "1.2.3", "pid": 1, "time": 1000.0, "started": 900.0, "state": "listening", "healthy": True,
        "mailboxes": 400, "streaming": 399, "suspended": 1, "missing": 0, "refused": 0, "events": 14,
        "groups": (group(), group("site/2", streaming=199, suspended=1)),
        "handlers": (
            HandlerStatus(
                name="audit", state="running", lag=3, delivered=11, dead_lettered=1, failures=0, last_delivered=990.0
            ),
        ),
        "servers": (
            ServerStatus(host="mail.x.example", concurrency=5, most=10, pause=12.0, answers={"ok": 9, "Http503": 1}),
        ),
        "journal": JournalStatus(end=14, size=4096, limit=1 << 20, full=False, write_error=None, waiting=0),
        "catch_up": CatchUpStatus(mode="sync", gaps=400, open=2, recovered=5, missed=0, requests=77),
        "tokens": (TokenStatus(name="x", remaining=3000.0),),
        "reloads": ReloadStatus(done=1, refused=1, last=950.0),
        "mailbox_problems": (
            MailboxProblem(
                mailbox="bob@x.example", group="site/2", state="suspended", code="ErrorAccessDenied",
                text="no\x1b[2J", failures=3, retry=300.0,
            ),
        ),
    }  # fmt: skip
    return Snapshot(**(values | changes))  # type: ignore[arg-type]
