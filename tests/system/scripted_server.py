"""HTTP servers in threads that record requests and send the responses that a test chooses."""

import re
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

AUTODISCOVER = "http://schemas.microsoft.com/exchange/2010/Autodiscover"


class Request(NamedTuple):
    """One request; header names in lower case."""

    path: str
    headers: dict[str, str]
    body: str


class Response(NamedTuple):
    """One response. Header values are sent unchanged, as Latin-1."""

    status: int
    body: str = ""
    headers: Sequence[tuple[str, str]] = ()


class ScriptedServer:
    """A plain HTTP server on a loopback address. `respond` is called for each request."""

    def __init__(self, respond: Callable[[Request], Response], host: str = "127.0.0.1") -> None:
        self.requests: list[Request] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.path, headers, self.rfile.read(length).decode())
                server.requests.append(request)
                response = respond(request)
                self.send_response(response.status)
                for name, value in response.headers:
                    self.send_header(name, value)
                if not any(name.lower() == "content-length" for name, _ in response.headers):
                    self.send_header("Content-Length", str(len(response.body.encode())))
                self.end_headers()
                self.wfile.write(response.body.encode())

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


def requested_mailboxes(request: Request) -> list[str]:
    """Return the mailboxes of a GetUserSettings request."""
    return re.findall(r"<a:Mailbox>([^<]*)</a:Mailbox>", request.body)


def settings_response(user_responses: str) -> Response:
    """Return the response to a GetUserSettings request, from its UserResponse elements."""
    return Response(
        200,
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
        f'<GetUserSettingsResponseMessage xmlns="{AUTODISCOVER}"><Response><ErrorCode>NoError</ErrorCode>'
        f"<UserResponses>{user_responses}</UserResponses></Response></GetUserSettingsResponseMessage></s:Body></s:Envelope>",
    )


def user_with_url(url: str) -> str:
    """Return the UserResponse of a mailbox with this EWS URL."""
    return (
        "<UserResponse><ErrorCode>NoError</ErrorCode><UserSettings><UserSetting><Name>ExternalEwsUrl</Name>"
        f"<Value>{url}</Value></UserSetting></UserSettings></UserResponse>"
    )


def user_redirect(code: str, target: str) -> str:
    """Return the UserResponse that redirects a mailbox; `code` is RedirectAddress or RedirectUrl."""
    return (
        f"<UserResponse><ErrorCode>{code}</ErrorCode><RedirectTarget>{target}</RedirectTarget></UserResponse>"
    )
