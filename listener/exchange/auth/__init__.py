"""How the account proves who it is: one small module a scheme, chosen by `[auth] kind`."""

import httpx

from listener.config import BasicAuth
from listener.exchange.auth.basic import basic


def build(auth: BasicAuth) -> httpx.Auth:
    """The scheme that the configuration names, ready for a client."""
    return basic(auth.user, auth.password.get_secret_value())


__all__ = ["build"]
