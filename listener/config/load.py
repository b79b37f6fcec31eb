"""From a TOML file to a `Config`, or to everything that is wrong with it."""

import os
import re
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from listener.config.files import collect_mailboxes, resolve_secret
from listener.config.model import Config
from listener.config.problems import Problems
from listener.config.rules import RULES
from listener.config.values import Context
from listener.errors import ConfigError, Problem

_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_STAND_INS: dict[str, Any] = {"auth": {"user": "-", "password": "-"}, "handlers": {"-": {"use": "-"}}}


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration that stands in the file. Relative paths in it count from its directory.

    Raises ConfigError with every problem: the file itself, its syntax (`where` is then `FILE:LINE:COLUMN`), its
    keys and values (`where` is the dotted key), and the files it names (`mailboxes.txt:17`).
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError([Problem(str(path), f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError([Problem(f"{path}:{line}", "is not UTF-8 text")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax_problem(path, str(error))]) from None
    return parse(document, path.absolute().parent, environ)


def parse(document: dict[str, Any], directory: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration in a parsed TOML document; `directory` is what relative paths count from.

    Raises ConfigError with every problem.
    """
    document = deepcopy(document)
    problems = Problems(document)
    collect_mailboxes(document, directory, problems)
    if isinstance(auth := document.get("auth"), dict):
        resolve_secret(auth, ("auth",), "password", directory, environ, problems)
    context = Context(directory)
    try:
        config = Config.model_validate(document, context=context)
    except ValidationError as error:
        sound = problems.add_errors(error.errors(include_url=False), Config)
        config = Config.model_validate(_STAND_INS | sound, context=context)
    broken = frozenset(problems.broken)
    for rule in RULES:
        if broken.isdisjoint(rule.sections):
            for loc, what in rule.find(config):
                problems.add(loc, what)
    if problems:
        raise ConfigError(problems.in_order())
    return config


def _syntax_problem(path: Path, message: str) -> Problem:
    place = _TOML_PLACE.search(message)
    if place is None or place[1] is None:
        return Problem(str(path), message)
    return Problem(f"{path}:{place[1]}:{place[2]}", message[: place.start()])
