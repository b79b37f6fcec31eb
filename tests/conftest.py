"""Configuration of all tests. No test fails because of its duration, since the machine may be busy."""

import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

from listener import log

pytest_plugins = ["tests.leaks"]

settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")

# Files of tests are private, because the daemon requires that of configurations and keys.
os.umask(0o077)

# A Negotiate client looks for a Kerberos ticket first if Kerberos is installed. No test may contact the network or
# this machine's realm for one; tests/system/kdc.py has its own realm.
os.environ["KRB5_CONFIG"] = str(Path(__file__).parent / "krb5.conf")


LONG = ("install", "deb", "kills", "demo", "outage", "loss", "day", "chaos", "hostile_servers", "log_volume")


@pytest.hookimpl(trylast=True)  # after a plugin that randomizes the order
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slowest modules, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


def pytest_collection_finish() -> None:
    """Exclude imported objects from garbage collection, which saves a fifteenth of the suite's time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _isolated_logging() -> Iterator[None]:
    """Give each test its own logging configuration, independent of earlier tests in this process.

    Lines go to the current `sys.stdout`. Tracebacks are plain: structlog's default renders them with rich, which took
    most of the time of tests with failing handlers.
    """
    manager = logging.Logger.manager.loggerDict
    loggers = [logging.getLogger(), *(each for each in manager.values() if isinstance(each, logging.Logger))]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    structlog.reset_defaults()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.StackInfoRenderer(),
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        cache_logger_on_first_use=False,
    )
    yield
    log.watch(None)
    logging.captureWarnings(False)
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
