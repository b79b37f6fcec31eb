"""Load a TOML file: return a `Config`, or report all problems at once."""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from listener.config.mailbox_file import collect_mailboxes
from listener.config.model import Config, HandlerConfig
from listener.config.problems import Loc, Problems
from listener.config.rules import RULES
from listener.config.secrets import (
    NAMES,
    Secret,
    SecretError,
    SecretSource,
    list_keys,
    permission_problem,
    secret_keys,
)
from listener.config.values import Context
from listener.errors import ConfigError, Problem

Table = dict[str, Any]
_TOML_POSITION = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_PLACEHOLDERS: dict[str, Any] = {"auth": {"user": "-", "password": "-"}, "handlers": {}}


class ValidationResult(NamedTuple):
    """`config` is None if there are problems. `handlers` always has the handlers with valid sections."""

    config: Config | None
    handlers: Mapping[str, HandlerConfig]
    problems: list[Problem]


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Load a configuration file. Relative paths in it count from its directory.

    Raises ConfigError with every problem of the file itself, of its syntax (`where` is then `FILE:LINE:COLUMN`), of
    its keys and values (`where` is the dotted key) and of the files that it names (`mailboxes.txt:17`).
    """
    return _config_or_error(validate(path, environ))


def load_paths(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Load only the paths of the daemon's state and socket; the other sections may be invalid or missing.

    Raises ConfigError as `load` does, if these paths cannot be determined.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return load(path, environ)  # raises ConfigError with the reason
    paths = {key: document[key] for key in ("state_directory", "status") if key in document}
    secret = {key for name in NAMES["status"] for key in secret_keys(name)}
    if isinstance(status := paths.get("status"), dict):
        paths["status"] = {key: value for key, value in status.items() if key not in secret}
    try:
        return Config.model_validate(_PLACEHOLDERS | paths, context=Context(path.absolute().parent))
    except ValidationError:
        return load(path, environ)


def parse(document: dict[str, Any], directory: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Return the configuration of a parsed TOML document. Relative paths count from `directory`.

    Raises ConfigError with every problem.
    """
    return _config_or_error(_validate(document, directory.absolute(), environ))


def validate(path: Path, environ: Mapping[str, str] = os.environ) -> ValidationResult:
    """Load as `load` does, but return the problems, together with the valid handlers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problem = Problem(str(path), f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problem = Problem(f"{path}:{line}", "is not UTF-8 text")
    else:
        try:
            return _validate(tomllib.loads(text), path.absolute().parent, environ, permission_problem(path))
        except tomllib.TOMLDecodeError as error:
            problem = _syntax_problem(path, text, str(error))
    return ValidationResult(None, {}, [problem])


def _config_or_error(result: ValidationResult) -> Config:
    if result.config is None:
        raise ConfigError(result.problems)
    return result.config


def _validate(
    document: dict[str, Any], directory: Path, environ: Mapping[str, str], file_problem: str | None = None
) -> ValidationResult:
    document = deepcopy(document)
    problems = Problems(document)
    context = Context(directory, collect_mailboxes(document, directory, problems))
    _resolve_secrets(document, directory, environ, problems, file_problem)
    try:
        config = Config.model_validate(document, context=context)
    except ValidationError as error:
        valid = problems.add_errors(error.errors(include_url=False), Config)
        config = Config.model_validate(_PLACEHOLDERS | valid, context=context)
    invalid = frozenset(problems.invalid_sections)
    for rule in RULES:
        if invalid.isdisjoint(rule.sections):
            for loc, what in rule.find(config):
                problems.add(loc, what)
    return ValidationResult(None if problems else config, config.handlers, problems.in_file_order())


def _resolve_secrets(
    document: Table,
    directory: Path,
    environ: Mapping[str, str],
    problems: Problems,
    file_problem: str | None = None,
) -> None:
    """Replace the keys that set secrets by `Secret` values, in place.

    `file_problem` is what is wrong with the permissions of the configuration file.
    """
    for loc, table in _tables(document):
        for name in NAMES[loc[-1]]:
            given = [key for key in secret_keys(name) if key in table]
            if given == [name] and file_problem is not None:
                problems.add((*loc, name), f"is a secret, and the {file_problem}, or use {name}_file")
            if given:
                _resolve_secret(table, loc, name, given, SecretSource(directory, environ), problems)


def _tables(document: Table) -> Iterator[tuple[Loc, Table]]:
    """Yield every table of the document that may contain secrets."""
    servers = document.get("servers")
    tables: list[tuple[Loc, Any]] = [((name,), document.get(name)) for name in ("auth", "exchange", "status")]
    tables += [
        (("servers", index, "auth"), server.get("auth"))
        for index, server in enumerate(servers if isinstance(servers, list) else ())
        if isinstance(server, dict)
    ]
    yield from ((loc, table) for loc, table in tables if isinstance(table, dict))


def _resolve_secret(
    table: Table, loc: Loc, name: str, given: list[str], source: SecretSource, problems: Problems
) -> None:
    values = {key: table.pop(key) for key in given}
    table[name] = Secret("-")  # so that the model does not report the same problem again
    if len(given) > 1:
        problems.add((*loc, given[-1]), f"set only one of {list_keys(name)}")
        return
    ((key, value),) = values.items()
    if key == name:
        table[name] = value  # the model validates it
        return
    try:
        read = source.reader(key.removeprefix(name), value)
        table[name] = Secret(read(), read)
    except SecretError as error:
        problems.add((*loc, key), str(error))


def _syntax_problem(path: Path, text: str, message: str) -> Problem:
    """Return the problem with the position that `tomllib` has only in its message, as `FILE:LINE:COLUMN`."""
    position = _TOML_POSITION.search(message)
    if position is None:
        return Problem(str(path), message)
    end = text.count("\n") + 1, len(text) - text.rfind("\n")
    line, column = (position[1], position[2]) if position[1] else end
    return Problem(f"{path}:{line}:{column}", message[: position.start()])
