"""Ways to servers for tests."""

import ssl
from collections.abc import Callable

import httpx

from listener.exchange.network import Network


def network(server: Callable[[httpx.Request], httpx.Response]) -> Network:
    """A network in which everything is answered by `server`."""
    return Network(tls=ssl.create_default_context(), transport=httpx.MockTransport(server))
