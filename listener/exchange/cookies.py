"""Cookies as values, which can be kept: they lead to the back end that has the subscriptions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from http.cookiejar import Cookie as JarCookie
from http.cookiejar import CookieJar

import msgspec


class Cookie(msgspec.Struct, frozen=True, kw_only=True):
    """One cookie. `expires` is Unix time; None: at the end of the session, which outlives this process."""

    name: str
    value: str
    domain: str
    path: str
    secure: bool = False
    expires: float | None = None

    def __repr__(self) -> str:
        """Without the value, which is a secret."""
        return f"Cookie({self.name}, {self.domain}{self.path})"


MOST = 50
"""Cookies that one jar keeps (RFC 6265 section 6.1)."""
LONGEST = 4096
"""Characters that a cookie's name and value may have together."""


def cookies_in(jar: CookieJar) -> Iterator[Cookie]:
    """What a jar holds, sorted, so that equal jars give equal cookies."""
    for cookie in sorted(jar, key=lambda c: (c.domain, c.path, c.name)):
        yield Cookie(
            name=cookie.name,
            value=cookie.value or "",
            domain=cookie.domain,
            path=cookie.path,
            secure=cookie.secure,
            # A server can name a time that no float and no journal holds.
            expires=None if cookie.expires is None else float(min(cookie.expires, FOREVER)),
        )


FOREVER = 1 << 40
"""Unix time that no cookie outlives."""


def put_into(jar: CookieJar, cookies: Iterable[Cookie]) -> None:
    """Adds cookies to a jar, which drops those that have expired when it is next used."""
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


def bound(jar: CookieJar) -> None:
    """Remove cookies beyond MOST_COOKIES and COOKIES_LENGTH: a server could set others with each answer.

    Those that were added first stay, since a server that needs more than a browser would keep is not Exchange.
    """
    count = length = 0
    for cookie in list(jar):
        own = len(cookie.name) + len(cookie.value or "") + len(cookie.path)
        if count >= MOST_COOKIES or length + own > COOKIES_LENGTH:
            jar.clear(cookie.domain, cookie.path, cookie.name)
        else:
            count, length = count + 1, length + own


MOST_COOKIES = 50
"""Cookies of one group, as many as browsers keep for a host at least (RFC 6265 section 6.1)."""
COOKIES_LENGTH = 16 * 1024
"""Characters of all cookies of one group. Longer headers are refused by most servers."""
