"""Which Host headers the status port answers: against DNS rebinding (pure).

A page in a browser on this machine may name a host of its own that it lets resolve to 127.0.0.1, and so read what the
port answers. The browser then sends that name as Host. Names that are nobody's but ours are answered, others are not.
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
    """Return a function of a Host header: whether it may be answered.

    `listen` is the HOST:PORT of the configuration, `allowed` are further names or globs of names. If all addresses of
    the machine are listened at, any address is allowed: no name leads to it, so nothing can be rebound.
    """
    here = host_of(listen)
    everywhere = here is None or (is_address(here) and ip_address(here.strip("[]")).is_unspecified)
    more = [_normal(pattern) for pattern in allowed]
    patterns = tuple(pattern for pattern in more if "*" in pattern or "?" in pattern)
    names = {*_LOCAL, *([here] if here else []), *more}

    def check(header: str | None) -> bool:
        host = None if header is None else host_of(header)
        if host is None:
            return False
        if host in names or any(fnmatchcase(host, pattern) for pattern in patterns):
            return True
        return everywhere and is_address(host)

    return check


def host_of(header: str) -> str | None:
    """Return the host of `host:port` in lower case, without a dot at the end; None if it is not of that form."""
    match = _HOST.fullmatch(header.strip().lower())
    return match[1].rstrip(".") or None if match else None


def _normal(pattern: str) -> str:
    """A configured name as host_of() gives it: the port, if somebody named it, does not count."""
    return f"[{pattern}]" if is_address(f"[{pattern}]") else host_of(pattern) or pattern


def is_address(host: str) -> bool:
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return False
    return host.startswith("[") == (":" in host)
