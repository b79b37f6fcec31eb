"""From a TOML file to a `Config`, or to everything that is wrong with it."""

import os
import re
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from listener.config.files import collect_mailboxes, resolve_secrets
from listener.config.model import Config, HandlerConfig
from listener.config.problems import Problems
from listener.config.rules import RULES
from listener.config.secrets import NAMES, exposure, sources
from listener.config.values import Context
from listener.errors import ConfigError, Problem

_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_STAND_INS: dict[str, Any] = {"auth": {"user": "-", "password": "-"}, "handlers": {}}


class Examined(NamedTuple):
    """`config` is None if there are problems. `handlers` are those whose sections are sound, even then."""

    config: Config | None
    handlers: Mapping[str, HandlerConfig]
    problems: list[Problem]


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration that stands in the file. Relative paths in it count from its directory.

    Raises ConfigError with every problem: the file itself, its syntax (`where` is then `FILE:LINE:COLUMN`), its
    keys and values (`where` is the dotted key), and the files it names (`mailboxes.txt:17`).
    """
    return _config_or_error(examine(path, environ))


def load_whereabouts(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """As `load`, but only what tells where the daemon's state and socket are counts: the rest may be wrong, or
    not there."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return load(path, environ)  # which tells what is wrong
    told = {key: document[key] for key in ("state_directory", "status") if key in document}
    secret = {key for name in NAMES["status"] for key in sources(name)}
    if isinstance(status := told.get("status"), dict):
        told["status"] = {key: value for key, value in status.items() if key not in secret}
    try:
        return Config.model_validate(_STAND_INS | told, context=Context(path.absolute().parent))
    except ValidationError:
        return load(path, environ)


def parse(document: dict[str, Any], directory: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration in a parsed TOML document; `directory` is what relative paths count from.

    Raises ConfigError with every problem.
    """
    return _config_or_error(_examine(document, directory.absolute(), environ))


def examine(path: Path, environ: Mapping[str, str] = os.environ) -> Examined:
    """As `load`, but the problems are returned beside what is sound."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problem = Problem(str(path), f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problem = Problem(f"{path}:{line}", "is not UTF-8 text")
    else:
        try:
            return _examine(tomllib.loads(text), path.absolute().parent, environ, exposure(path))
        except tomllib.TOMLDecodeError as error:
            problem = _syntax_problem(path, text, str(error))
    return Examined(None, {}, [problem])


def _config_or_error(examined: Examined) -> Config:
    if examined.config is None:
        raise ConfigError(examined.problems)
    return examined.config


def _examine(
    document: dict[str, Any], directory: Path, environ: Mapping[str, str], exposed: str | None = None
) -> Examined:
    document = deepcopy(document)
    problems = Problems(document)
    context = Context(directory, collect_mailboxes(document, directory, problems))
    resolve_secrets(document, directory, environ, problems, exposed)
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
    return Examined(None if problems else config, config.handlers, problems.in_order())


def _syntax_problem(path: Path, text: str, message: str) -> Problem:
    """The place, which `tomllib` tells only inside its message, as `FILE:LINE:COLUMN`."""
    place = _TOML_PLACE.search(message)
    if place is None:
        return Problem(str(path), message)
    end = text.count("\n") + 1, len(text) - text.rfind("\n")
    line, column = (place[1], place[2]) if place[1] else end
    return Problem(f"{path}:{line}:{column}", message[: place.start()])
