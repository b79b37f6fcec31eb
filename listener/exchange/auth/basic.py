"""Basic authentication (RFC 7617), with the credentials sent unasked: a 401 costs a round trip a request."""

import httpx


def basic(user: str, password: str) -> httpx.Auth:
    """Credentials for every request, UTF-8."""
    return httpx.BasicAuth(user, password)
