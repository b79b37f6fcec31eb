"""Load the configured handlers and bind their options, before any socket opens."""

import importlib
import inspect
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import Any, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import to_json

from listener.config.load import validate
from listener.config.model import Config, HandlerConfig
from listener.config.problems import Loc, describe, dotted
from listener.errors import ConfigError, Problem
from listener.filters import EventFilter
from listener.handler import HandlerContext, HandlerFactory
from listener.suggest import did_you_mean
from listener.text import describe as describe_error

ENTRY_POINT_GROUP = "listener.handlers"


@dataclass(frozen=True)
class LoadedHandler:
    """A handler that is ready to be opened. `accepts` is its filter.

    `open()` calls the factory with its options and returns the context manager. It raises what the factory raises.
    """

    name: str
    use: str
    open: Callable[[], HandlerContext]
    accepts: EventFilter


def load_all(path: Path) -> tuple[Config, list[LoadedHandler]]:
    """Return the configuration in the file and its handlers. Raises ConfigError with the problems of both."""
    config, handlers, problems = validate(path)
    loaded: list[LoadedHandler] = []
    try:
        loaded = load_handlers(handlers)
    except ConfigError as error:
        problems += error.problems
    if config is None or problems:
        raise ConfigError(problems)
    return config, loaded


def load_handlers(handlers: Mapping[str, HandlerConfig]) -> list[LoadedHandler]:
    """Return all handlers in the order of the configuration.

    Raises ConfigError with every problem: a handler or module that does not exist or cannot be imported; an option
    that is unknown, missing or of the wrong type.
    """
    loaded, problems = [], []
    for name, config in handlers.items():
        found: list[Problem] = []
        try:
            with _plugin_code():
                factory = _resolve(name, config.use, found)
                options = _bind(name, factory, config, found) if factory is not None else {}
        except _Failed as failed:
            # Not only an import can raise, but also an attribute, an annotation, a validator or a signature.
            text = f"{failed.what or f'cannot load {config.use}'}: {describe_error(failed.error)}"
            problems.append(Problem(dotted(("handlers", name, "use")), text))
            continue
        problems += found
        if factory is not None and not found:
            accepts = EventFilter(**config.filter.model_dump())
            loaded.append(LoadedHandler(name, config.use, partial(factory, **options), accepts))
    if problems:
        raise ConfigError(problems)
    return loaded


class _Failed(Exception):  # noqa: N818
    """A plugin's code raised `error`; `what` is the step that failed, if known."""

    def __init__(self, error: BaseException, what: str = "") -> None:
        super().__init__()
        self.error = error
        self.what = what


@contextmanager
def _plugin_code() -> Iterator[None]:
    """Convert any exception of a plugin's code to _Failed, including SystemExit and KeyboardInterrupt.

    The KeyboardInterrupt of a real SIGINT is raised unchanged.
    """
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.default_int_handler(number, frame)

    handles_sigint = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if handles_sigint:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except BaseException as error:
        if interrupted:
            raise KeyboardInterrupt from None
        if isinstance(error, _Failed):
            raise
        raise _Failed(error) from error
    finally:
        if handles_sigint and signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _resolve(name: str, use: str, problems: list[Problem]) -> HandlerFactory | None:
    where = dotted(("handlers", name, "use"))
    target = use
    if ":" not in use:
        targets = {point.name: set[str]() for point in entry_points(group=ENTRY_POINT_GROUP)}
        for point in entry_points(group=ENTRY_POINT_GROUP):
            targets[point.name].add(point.value)
        if use not in targets:
            problems.append(Problem(where, f'unknown handler "{use}"{did_you_mean(use, targets)}'))
            return None
        if len(targets[use]) > 1:
            choices = ", ".join(sorted(targets[use]))
            problems.append(
                Problem(where, f'several handlers are installed as "{use}"; use one of {choices}')
            )
            return None
        (target,) = targets[use]
    module_name, _, path = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:
        raise _Failed(error, f"cannot import {module_name}") from error
    factory: Any = module
    for part in path.split("."):
        if not hasattr(factory, part):
            public = [known for known in dir(factory) if not known.startswith("_")]
            hint = did_you_mean(part, public)
            problems.append(
                Problem(where, f'{module_name} has no "{path}"{hint if hint.endswith("?") else ""}')
            )
            return None
        factory = getattr(factory, part)
    if not callable(factory):
        problems.append(
            Problem(where, f"{target} is not callable; it must be a factory, see docs/HANDLERS.md")
        )
        return None
    return factory  # type: ignore[no-any-return]


def _bind(
    name: str, factory: HandlerFactory, config: HandlerConfig, problems: list[Problem]
) -> dict[str, object]:
    """Return the options as the factory's arguments, converted to the types of its annotations."""
    where = dotted(("handlers", name, "use"))
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        problems.append(Problem(where, f"cannot determine the arguments of {config.use}"))
        return {}
    named = {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    bound: dict[str, object] = {}
    for key, value in config.options.items():
        if key in named:
            bound[key] = _convert(("handlers", name, key), factory, named[key], config, problems)
        elif takes_any:
            bound[key] = value
        else:
            hint = did_you_mean(key, [*named, *HandlerConfig.model_fields])
            problems.append(
                Problem(dotted(("handlers", name, key)), f'unknown option of "{config.use}"{hint}')
            )
    for parameter in parameters:
        if parameter.name in HandlerConfig.model_fields and parameter.name in named:
            what = f'"{config.use}" must not have an option "{parameter.name}": the listener uses that key'
            problems.append(Problem(where, what))
        elif parameter.default is not parameter.empty or parameter.name in bound:
            continue
        elif parameter.name in named:
            key = dotted(("handlers", name, parameter.name))
            problems.append(Problem(key, f'is required by "{config.use}"'))
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            what = f'parameter "{parameter.name}" of "{config.use}" is positional-only; options are passed by name'
            problems.append(Problem(where, what))
    return bound


def _annotation(factory: HandlerFactory, parameter: inspect.Parameter) -> Any:
    """Return the evaluated annotation of one parameter. Other annotations may be impossible to evaluate."""
    if parameter.annotation is parameter.empty:
        return Any
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    names = vars(sys.modules[inspect.unwrap(factory).__module__])
    holder = type("_", (), {"__annotations__": {"it": parameter.annotation}})
    return get_type_hints(holder, names, include_extras=True)["it"]


def _convert(
    loc: Loc,
    factory: HandlerFactory,
    parameter: inspect.Parameter,
    config: HandlerConfig,
    problems: list[Problem],
) -> object:
    value = config.options[parameter.name]
    # Validated as JSON, because strict mode then accepts a string for a Path and a list for a tuple, but not a string
    # for a number.
    try:
        annotation = _annotation(factory, parameter)
        converted: object = TypeAdapter(annotation).validate_json(to_json(value), strict=True)
    except ValidationError as error:
        problems.extend(
            Problem(dotted((*loc, *_indexes(details["loc"]))), describe(details, []))
            for details in error.errors(include_url=False)
        )
        return None
    except (NameError, PydanticUserError):
        problems.append(
            Problem(dotted(loc), f"the type {parameter.annotation} of this option cannot be checked")
        )
        return None
    return _absolute(converted, config.directory)


def _indexes(loc: Loc) -> Loc:
    return tuple(part for part in loc if isinstance(part, int))


def _absolute(value: object, directory: Path) -> object:
    if isinstance(value, Path):
        return directory / value
    if isinstance(value, list | tuple):
        return type(value)(_absolute(item, directory) for item in value)
    return value
