"""Check of the Host header on the TCP status port, against DNS rebinding (pure).

An attacker's web page can use a hostname that resolves to 127.0.0.1, to read the port from a browser on this machine.
The browser then sends that hostname in the Host header. Only names of this machine are allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from ipaddress import ip_address
from typing import Final

_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/?#\s]+)(?::\d{1,5})?", re.ASCII)
_LOCAL: Final = ("localhost", "127.0.0.1", "[::1]")


def host_check(listen: str, allowed: Sequence[str] = ()) -> Callable[[str | None], bool]:
    """Return a function that checks whether a Host header is allowed.

    `listen` is the configured HOST:PORT. `allowed` are additional names or globs. If `listen` is the unspecified
    address, any IP address is allowed: a request by address involves no name that could be rebound.
    """
    own = host_of(listen)
    unspecified = own is None or (is_address(own) and ip_address(own.strip("[]")).is_unspecified)
    extra = [_normalize(pattern) for pattern in allowed]
    patterns = tuple(pattern for pattern in extra if "*" in pattern or "?" in pattern)
    names = {*_LOCAL, *([own] if own else []), *extra}

    def check(header: str | None) -> bool:
        host = None if header is None else host_of(header)
        if host is None:
            return False
        if host in names or any(fnmatchcase(host, pattern) for pattern in patterns):
            return True
        return unspecified and is_address(host)

    return check


def host_of(header: str) -> str | None:
    """Return the host of `host:port` in lower case, without a trailing dot; None if the form is invalid."""
    match = _HOST.fullmatch(header.strip().lower())
    return match[1].rstrip(".") or None if match else None


def _normalize(pattern: str) -> str:
    """Return a configured name in the form of host_of(), without a port."""
    return f"[{pattern}]" if is_address(f"[{pattern}]") else host_of(pattern) or pattern


def is_address(host: str) -> bool:
    """Return whether this is an IPv4 address, or an IPv6 address in brackets."""
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return False
    return host.startswith("[") == (":" in host)
