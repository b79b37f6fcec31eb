"""Logging is configured per process. Each test restores the configuration."""

import logging
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in (None, "httpx", "httpcore")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    structlog.reset_defaults()
    logging.captureWarnings(False)
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
