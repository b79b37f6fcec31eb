"""Cookies as values, for the checkpoint: they route requests to the back end that holds the subscriptions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from http.cookiejar import Cookie as JarCookie
from http.cookiejar import CookieJar

import msgspec

MAX_COOKIES = 50
"""Cookies of one group: as many as browsers keep at least for a host (RFC 6265 section 6.1)."""
MAX_LENGTH = 16 * 1024
"""Characters of all cookies of one group. Most servers refuse longer headers."""
MAX_EXPIRES = 1 << 40
"""Unix time: the latest expiry of a cookie. A server can send one that no float and no journal can hold."""


class Cookie(msgspec.Struct, frozen=True, kw_only=True):
    """One cookie. `expires` is Unix time; None means a session cookie. The session outlives this process."""

    name: str
    value: str
    domain: str
    path: str
    secure: bool = False
    expires: float | None = None

    def __repr__(self) -> str:
        """Return a text without the value, which is a secret."""
        return f"Cookie({self.name}, {self.domain}{self.path})"


def read_cookies(jar: CookieJar) -> Iterator[Cookie]:
    """Yield the cookies of a jar. They are sorted, so that equal jars give equal cookies."""
    for cookie in sorted(jar, key=lambda c: (c.domain, c.path, c.name)):
        yield Cookie(
            name=cookie.name,
            value=cookie.value or "",
            domain=cookie.domain,
            path=cookie.path,
            secure=cookie.secure,
            expires=None if cookie.expires is None else float(min(cookie.expires, MAX_EXPIRES)),
        )


def add_cookies(jar: CookieJar, cookies: Iterable[Cookie]) -> None:
    """Add cookies to a jar. The jar drops expired ones when it is next used."""
    for cookie in cookies:
        jar.set_cookie(
            JarCookie(
                version=0,
                name=cookie.name,
                value=cookie.value,
                port=None,
                port_specified=False,
                domain=cookie.domain,
                domain_specified=cookie.domain.startswith("."),
                domain_initial_dot=cookie.domain.startswith("."),
                path=cookie.path,
                path_specified=True,
                secure=cookie.secure,
                expires=None if cookie.expires is None else int(cookie.expires),
                discard=cookie.expires is None,
                comment=None,
                comment_url=None,
                rest={},
            )
        )


def limit_cookies(jar: CookieJar) -> None:
    """Remove cookies beyond MAX_COOKIES and MAX_LENGTH: a server could set new ones with each response.

    The cookies that were added first stay, since a server that needs more than a browser would keep is not Exchange.
    """
    count = length = 0
    for cookie in list(jar):
        own = len(cookie.name) + len(cookie.value or "") + len(cookie.path)
        if count >= MAX_COOKIES or length + own > MAX_LENGTH:
            jar.clear(cookie.domain, cookie.path, cookie.name)
        else:
            count, length = count + 1, length + own
