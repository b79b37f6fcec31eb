"""Map the errors of httpx, and of what it is built on, to failures with codes of our own (docs/TROUBLE.md)."""

from __future__ import annotations

import socket
import ssl
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import h11
import httpcore
import httpx
import trio

from listener.errors import ExchangeError
from listener.ews.codes import Failure
from listener.ews.xml import excerpt


@contextmanager
def mapped_errors(what: str = "") -> Iterator[None]:
    """Turns what httpx raises into ExchangeError. `what` was being done stands before its text."""
    try:
        yield
    except zlib.error as error:
        raise ExchangeError(Failure(code="NotSoap", text="compressed, and not well")) from error
    except FOREIGN as error:
        raise ExchangeError(Failure(code=_code(error), text=what + excerpt(_text(error)))) from error


FOREIGN: tuple[type[Exception], ...] = (
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
"""What libraries raise for URLs, headers, certificates and bodies of outside origin. Mistakes of our own, such as
TypeError and AssertionError, are not among them."""


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
        case httpx.ProxyError() if str(error).startswith("407"):  # httpcore's word for the answer to CONNECT
            return "Http407"
        case httpx.ConnectError() | httpx.ProxyError() | httpx.UnsupportedProtocol():
            return "ConnectFailed"
        case httpx.InvalidURL():
            return "InvalidUrl"
        case ssl.SSLError():
            return "TlsFailed"
        case ValueError() | ArithmeticError():
            return "UnexpectedReply"
        case httpx.RemoteProtocolError() if "incomplete" in str(error):  # h11's word for it
            return "StreamIncomplete"
        case _:
            return "ConnectionReset"


def _caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    return any(isinstance(cause, kind) for cause in _causes(error))


def _text(error: BaseException) -> str:
    """The first cause that says anything: httpx itself often does not."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the server's certificate is not trusted: {cause.verify_message}"
    said = next(filter(None, map(str, _causes(error))), type(error).__name__)
    return f"the proxy says: {said}" if isinstance(error, httpx.ProxyError) else said


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
