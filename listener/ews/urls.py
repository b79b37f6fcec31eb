"""Parse and validate untrusted URLs and hostnames.

URLs from a configuration, an Autodiscover response, a redirect or a DNS record pass this parser before they reach
an HTTP client. A valid result is ASCII, its host is a DNS name or an IP address, and the HTTP client parses it to
the same host.
"""

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

import idna

MAX_LENGTH = 4096
"""Characters of a URL."""
DEFAULT_PORTS = {"http": 80, "https": 443}


class UrlError(ValueError):
    """The text is not an absolute http or https URL, or not a hostname. The message gives the reason."""


class Url(NamedTuple):
    """An absolute URL without its fragment.

    `host` is in lower case, in IDNA's ASCII form and without a trailing dot. `path` includes the query.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        return self.scheme, self.host, self.port

    @property
    def netloc(self) -> str:
        """Host and port as in a URL, without the default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def text(self) -> str:
        """The URL in its normalized form."""
        return f"{self.scheme}://{self.netloc}{self.path}"


def parse_url(text: str) -> Url:
    """Return the parts of an absolute http or https URL without user information. Raises UrlError."""
    url, credentials = _parse(text)
    if credentials:
        raise UrlError("it contains a user or a password")
    return url


def parse_proxy_url(text: str) -> Url:
    """Parse a URL that may contain a user and a password. They are not part of the result. Raises UrlError."""
    return _parse(text)[0]


def join_url(base: str, reference: str) -> Url:
    """Return the target of a reference such as a Location header (RFC 3986 section 5). Raises UrlError."""
    _printable(reference)
    try:
        target = urljoin(base, reference)
    except ValueError as error:
        raise UrlError(str(error)) from None
    return parse_url(target)


def parse_host(text: str) -> str:
    """Return a hostname in lower case and IDNA's ASCII form, or an IP address. Raises UrlError.

    A trailing dot is removed.
    """
    if "[" in text or "]" in text or ":" in text:
        return _ip_6(text)
    host = text.lower()
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode("ascii").lower()
        except UnicodeError as error:  # includes idna.IDNAError
            raise UrlError(f"not a hostname: {error}") from None
    host = host.removesuffix(".")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, host.split("."))):
        raise UrlError("not a hostname")
    if "xn--" in host:
        # HTTP clients decode such a host; what IDNA forbids would raise there.
        try:
            idna.decode(host)
        except UnicodeError as error:
            raise UrlError(f"not a hostname: {error}") from None
    return host


def is_loopback(host: str) -> bool:
    """Whether the host, as parse_host() returns it, is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_ip_address(host: str) -> bool:
    """Return whether the host, as parse_host() returns it, is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def host_of(url: str) -> str:
    """Return the host of a URL; empty if the URL is not valid."""
    try:
        return parse_url(url).host
    except UrlError:
        return ""


def server_of(url: str) -> str:
    """Return host and port of a URL, which identify a server; the text itself if the URL is not valid."""
    try:
        return parse_url(url).netloc
    except UrlError:
        return url


def _parse(text: str) -> tuple[Url, bool]:
    if len(text) > MAX_LENGTH:
        raise UrlError(f"it is longer than {MAX_LENGTH} characters")
    _printable(text)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UrlError(str(error)) from None
    if parts.scheme not in DEFAULT_PORTS:
        raise UrlError("it is not an http or https URL")
    place = parts.netloc.rpartition("@")[2]
    if port == 0:
        raise UrlError("port 0 is not a port")
    name = place if place.endswith("]") else place.rpartition(":")[0] if ":" in place else place
    if not name:
        raise UrlError("it has no host")
    host = parse_host(name)
    path = quote(parts.path, safe=_PATH)
    if path and not path.startswith("/"):
        raise UrlError("its path does not begin with /")
    if parts.query:
        path = f"{path or '/'}?{quote(parts.query, safe=_PATH)}"
    url = Url(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], path)
    return url, "@" in parts.netloc


def _printable(text: str) -> None:
    # urlsplit() drops some of these silently, and HTTP clients interpret backslashes differently.
    if not text.isprintable() or " " in text or "\\" in text:
        raise UrlError("it contains a blank, a backslash or a control character")


def _ip_6(text: str) -> str:
    if not (text.startswith("[") and text.endswith("]")):
        raise UrlError("not a hostname")
    try:
        address = ipaddress.IPv6Address(text[1:-1])
    except ValueError as error:
        raise UrlError(str(error)) from None
    if address.scope_id is not None:
        raise UrlError("an IPv6 address with a zone")
    return str(address)


_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# Characters that need no encoding in a path or query (RFC 3986 section 3.3), and % of existing encodings.
_PATH = "/?:@!$&'()*+,;=%-._~"
