"""Map the errors of httpx and of the libraries below it to failures with the codes of docs/TROUBLE.md."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import h11
import httpcore
import httpx
import trio

from listener.ews.codes import NO_TLS, ONLY_TLS, ExchangeError, Failure
from listener.ews.xml import excerpt


@contextmanager
def mapped_errors(what: str = "", proxy: httpx.Proxy | None = None) -> Iterator[None]:
    """Raise ExchangeError in place of what httpx raises.

    `what` is put before the text, which names the host and port of the server, or of the `proxy` if that failed.
    """
    try:
        yield
    except LIBRARY_ERRORS as error:
        raise ExchangeError(Failure(code=_code(error), text=what + excerpt(_text(error, proxy)))) from error


LIBRARY_ERRORS: tuple[type[Exception], ...] = (
    httpx.HTTPError,
    httpx.InvalidURL,  # not an HTTPError
    httpx.StreamError,
    httpcore.ProtocolError,
    h11.ProtocolError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    ValueError,  # UnicodeError, idna.IDNAError and binascii.Error too
    ArithmeticError,
    OSError,  # ssl.SSLError too
)
"""What libraries raise for URLs, headers, certificates and bodies that they receive. Errors that indicate a bug, such
as TypeError and AssertionError, are not among them."""


def _code(error: Exception) -> str:
    match error:
        case httpx.ConnectTimeout():
            return "ConnectTimeout"
        case httpx.TimeoutException():
            return "ReadTimeout"
        case httpx.ConnectError() if _caused_by(error, socket.gaierror):
            return "NameNotResolved"
        case httpx.ConnectError() if _caused_by(error, ssl.SSLError):
            return "TlsFailed"
        case httpx.ProxyError() if str(error).startswith("407"):  # httpcore's text for a response to CONNECT
            return "Http407"
        case httpx.ConnectError() | httpx.ProxyError() | httpx.UnsupportedProtocol():
            return "ConnectFailed"
        case httpx.InvalidURL():
            return "InvalidUrl"
        case ssl.SSLError():
            return "TlsFailed"
        case ValueError() | ArithmeticError():
            return "UnexpectedReply"
        case httpx.RemoteProtocolError() if "incomplete" in str(error):  # h11's text
            return "StreamIncomplete"
        case _:
            return "ConnectionReset"


def _caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    return any(isinstance(cause, kind) for cause in _causes(error))


_NOT_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}
)
"""OpenSSL's reasons for bytes that are not a TLS record; the name depends on its version."""
_NOT_HTTP = "illegal request line"
"""h11's text for a response that begins with a control character, as a TLS alert does (RFC 8446 section 6)."""


def _text(error: BaseException, proxy: httpx.Proxy | None = None) -> str:
    """Return what failed and where. The first cause with a text is used: httpx's own text is often empty."""
    server, hostname = _server(error), "the hostname "
    text = next(filter(None, map(str, _causes(error))), type(error).__name__)
    if isinstance(error, httpx.ProxyError):
        return f"the proxy{'' if proxy is None else f' {_host_port(proxy.url)}'} says: {text}"
    if proxy is not None and isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        server, hostname = f"the proxy {_host_port(proxy.url)}", "the hostname of "
    for cause in _causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                return f"the server's certificate is not trusted: {cause.verify_message}"
            case ssl.SSLError() if cause.reason in _NOT_TLS:
                return f"TLS with {_server(error)} fails: {NO_TLS} ({cause.reason})"
            case ssl.SSLError():
                return f"TLS with {_server(error)} fails: {text}"
            case socket.gaierror():
                name, _, _ = server.rpartition(":")
                return f"{hostname}{name} cannot be resolved: {text}"
    if isinstance(error, httpx.ConnectTimeout):
        return f"{server} does not accept a connection in time"
    if isinstance(error, httpx.ConnectError):
        reasons = dict.fromkeys(filter(None, map(_errno_text, _leaves(error))))
        return f"{server} does not accept a connection: {', '.join(reasons) or text}"
    if _NOT_HTTP in text:
        return f"{server} does not answer in HTTP: {ONLY_TLS}"
    return text


def _server(error: BaseException) -> str:
    """Return the host and port of the request that failed."""
    request = getattr(error, "_request", None)  # the property `request` raises if there is none
    return "the server" if request is None else _host_port(request.url)


def _host_port(url: httpx.URL) -> str:
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{host}:{url.port or {'http': 80}.get(url.scheme, 443)}"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the causes, with the members of exception groups: a host may have several addresses."""
    for cause in _causes(error):
        if isinstance(cause, BaseExceptionGroup):
            yield from cause.exceptions
        else:
            yield cause


def _errno_text(error: BaseException) -> str | None:
    """Return the text of the operating system. The texts of trio repeat the address."""
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno is not None else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
