"""The configuration: a typed, frozen model of one TOML file.

`load(path)` is the entry point. It reads the file and the files that it names (mailboxes, secrets), and returns a
`Config` or raises `ConfigError` with all problems. `model.py` describes the options, and docs/CONFIGURATION.md is
generated from it. The factories of handlers validate the options of handlers: see listener/plugins.py.
"""

from listener.config.auth import AnyAuth, BasicAuth, NegotiateAuth, NtlmAuth, OAuthAuth
from listener.config.load import load, parse, validate
from listener.config.model import (
    AccessOverride,
    Affinity,
    Backoff,
    CatchUp,
    Config,
    Delivery,
    Exchange,
    HandlerConfig,
    HandlerFilter,
    Impersonation,
    Journal,
    Log,
    Mailboxes,
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
    "load",
    "parse",
    "validate",
]
