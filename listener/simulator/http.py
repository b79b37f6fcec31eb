"""One HTTP request and its reply."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from listener.simulator.faults import Fault
from listener.simulator.subscriptions import Stream


class HttpRequest(NamedTuple):
    """An authenticated request.

    `headers` has lower-case names. `account` made the request. `app_only`: an application authenticated as
    itself, without a user.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    account: str
    app_only: bool = False

    def cookie(self, name: str) -> str | None:
        """Return the value of a cookie, without quotes."""
        for pair in self.headers.get("cookie", "").split(";"):
            key, _, value = pair.strip().partition("=")
            if key == name:
                return value.strip('"')
        return None


class Reply:
    """An HTTP reply. `body` is complete, or a stream that is open until it ends.

    `delay` is the processing time in seconds. `finish` must be called once, when the last byte is sent or the
    client has disconnected: it releases the request's throttling budget. `fault` is a fault that the
    connection applies to the reply (faults.py).
    """

    def __init__(
        self,
        status: int,
        body: bytes | Stream,
        headers: Iterable[tuple[str, str]] = (),
        *,
        content_type: str = "text/xml; charset=utf-8",
        delay: float = 0.0,
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        self.status = status
        self.body = body
        self.headers = [("Cache-Control", "private"), ("Content-Type", content_type), *headers]
        self.delay = delay
        self.finish = finish
        self.fault: Fault | None = None


def page(status: int, title: str, headers: Iterable[tuple[str, str]] = (), *, delay: float = 0.0) -> Reply:
    """Return an HTML page like those that IIS sends for its own errors."""
    html = (
        '<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 4.01//EN" "http://www.w3.org/TR/html4/strict.dtd">\r\n'
        f"<HTML><HEAD><TITLE>{title}</TITLE></HEAD><BODY><h2>{title}</h2><hr><p>HTTP Error {status}. {title}.</p>"
        "</BODY></HTML>\r\n"
    )
    return Reply(status, html.encode(), headers, content_type="text/html; charset=us-ascii", delay=delay)
