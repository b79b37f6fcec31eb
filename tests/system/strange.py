"""Servers that answer by script, as threads: what they are asked is noted, what they answer is up to the test."""

import re
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

AUTODISCOVER = "http://schemas.microsoft.com/exchange/2010/Autodiscover"


class Asked(NamedTuple):
    """One request; header names in lower case."""

    path: str
    headers: dict[str, str]
    body: str


class Told(NamedTuple):
    """One answer. Header values are sent as Latin-1, just as they are."""

    status: int
    body: str = ""
    headers: Sequence[tuple[str, str]] = ()


class Strange:
    """A plain http server at an address of this machine. `answer` is called for each request."""

    def __init__(self, answer: Callable[[Asked], Told], host: str = "127.0.0.1") -> None:
        self.asked: list[Asked] = []
        strange = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.path, headers, self.rfile.read(length).decode())
                strange.asked.append(asked)
                told = answer(asked)
                self.send_response(told.status)
                for name, value in told.headers:
                    self.send_header(name, value)
                if not any(name.lower() == "content-length" for name, _ in told.headers):
                    self.send_header("Content-Length", str(len(told.body.encode())))
                self.end_headers()
                self.wfile.write(told.body.encode())

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://{host}:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def users_of(asked: Asked) -> list[str]:
    """The mailboxes of a GetUserSettings request."""
    return re.findall(r"<a:Mailbox>([^<]*)</a:Mailbox>", asked.body)


def settings(users: str) -> Told:
    """The answer to a GetUserSettings request."""
    return Told(
        200,
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
        f'<GetUserSettingsResponseMessage xmlns="{AUTODISCOVER}"><Response><ErrorCode>NoError</ErrorCode>'
        f"<UserResponses>{users}</UserResponses></Response></GetUserSettingsResponseMessage></s:Body></s:Envelope>",
    )


def lives_at(url: str) -> str:
    """What is told of a mailbox with this EWS URL."""
    return (
        "<UserResponse><ErrorCode>NoError</ErrorCode><UserSettings><UserSetting><Name>ExternalEwsUrl</Name>"
        f"<Value>{url}</Value></UserSetting></UserSettings></UserResponse>"
    )


def redirected(code: str, target: str) -> str:
    """A redirect of a mailbox: RedirectAddress or RedirectUrl."""
    return (
        f"<UserResponse><ErrorCode>{code}</ErrorCode><RedirectTarget>{target}</RedirectTarget></UserResponse>"
    )
