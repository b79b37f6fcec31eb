"""Where the tests run, something else may run too: how long a thing took is no reason to fail."""

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

# Configurations and keys of tests are secret, as those of users must be.
os.umask(0o077)

# Where Kerberos is installed, a client of Negotiate looks for a ticket first. No test asks the network for one, or
# the realm of this machine; tests/system/kdc.py has a realm of its own.
os.environ["KRB5_CONFIG"] = str(Path(__file__).parent / "krb5.conf")


LONG = ("install", "deb", "kills", "demo", "outage", "loss", "day", "chaos", "hostile_servers", "log_volume")


@pytest.hookimpl(trylast=True)  # when the order has been made a random one
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that take longest: at the end no worker is to be busy with one alone."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


def pytest_collection_finish() -> None:
    """Spare each full garbage collection the look at all that was imported: a fifteenth of the time of the suite."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _isolated_logging() -> Iterator[None]:
    """Give each test a logging configuration of its own, whatever ran before it in this process.

    Lines go to the `sys.stdout` of the moment. Tracebacks are plain: structlog's default renders them with rich,
    which took most of the time of tests that make handlers fail.
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
