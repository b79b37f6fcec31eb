"""The configuration: a typed, frozen model of one TOML file.

`load(path)` is the door: it reads the file and those it names (mailboxes, a password), and either returns a
`Config` or raises `ConfigError` with every problem at once. What the options mean stands beside them in
`model.py`, from which docs/CONFIGURATION.md is made. The options of handlers belong to their factories: see
listener/plugins.py.
"""

from listener.config.auth import AnyAuth, BasicAuth, NegotiateAuth, NtlmAuth, OAuthAuth
from listener.config.load import examine, load, parse
from listener.config.mailboxes import AccessOverride, Impersonation, Mailboxes
from listener.config.model import (
    Affinity,
    Backoff,
    CatchUp,
    Config,
    Delivery,
    Exchange,
    HandlerConfig,
    HandlerFilter,
    Journal,
    Log,
    Server,
    Shutdown,
    StaticGroup,
    Status,
    Stream,
    Subscription,
)

__all__ = [
    "AccessOverride",
    "Affinity",
    "AnyAuth",
    "Backoff",
    "BasicAuth",
    "CatchUp",
    "Config",
    "Delivery",
    "Exchange",
    "HandlerConfig",
    "HandlerFilter",
    "Impersonation",
    "Journal",
    "Log",
    "Mailboxes",
    "NegotiateAuth",
    "NtlmAuth",
    "OAuthAuth",
    "Server",
    "Shutdown",
    "StaticGroup",
    "Status",
    "Stream",
    "Subscription",
    "examine",
    "load",
    "parse",
]
