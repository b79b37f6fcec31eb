"""Problems and their places, from pydantic's errors and from our own checks, in the order of the file."""

import inspect
import re
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from listener.config.auth import KINDS, kind_of
from listener.config.secrets import is_secret, listed, sources
from listener.errors import Problem
from listener.suggest import did_you_mean

Loc = tuple[int | str, ...]
"""The keys and list indexes that lead to a value."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_WORDING = {
    "missing": "is required",
    "too_short": "must not be empty",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "dict_type": "must be a table",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "bool_type": "must be true or false",
    "string_type": "must be a text in quotes",
    "path_type": "must be a path in quotes",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
}


class Problems:
    """Collects what is wrong with one document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._layout = deepcopy(document)
        self._found: list[tuple[Loc, Problem]] = []
        self.broken: set[str] = set()
        """The top-level keys whose values cannot be relied on."""

    def __len__(self) -> int:
        return len(self._found)

    def add(self, loc: Loc, what: str, where: str | None = None) -> None:
        """`where` is told instead of the dotted key, when the trouble lies in another file."""
        self._found.append((loc, Problem(where or dotted(loc), what)))
        self.broken.add(str(loc[0]))

    def add_errors(self, errors: Sequence[ErrorDetails], model: type[BaseModel]) -> dict[str, Any]:
        """Add pydantic's errors. Returns what is sound of the document: without unknown keys, without sections
        in which anything else is wrong; of a handler only the concerned key is missing, if it can be."""
        sound = deepcopy({key: value for key, value in self._document.items() if key not in self.broken})
        for error in errors:
            loc = self._real(error["loc"])
            if error["type"] == "union_tag_invalid":
                loc += ("kind",)
            if error["type"] == "too_short" and any(
                other["loc"][: len(error["loc"])] == error["loc"] != other["loc"] for other in errors
            ):
                continue  # it is empty because its members are wrong
            problem = Problem(dotted(loc), describe(error, known_keys(model, loc[:-1], self._document)))
            self._found.append((loc, problem))
            if error["type"] == "extra_forbidden":
                _drop(sound, loc)
            else:
                handler = loc[0] == "handlers"
                _drop(sound, loc[: 1 if not handler else 2 if loc[-1] == "use" else 3])
                self.broken.add(str(loc[0]))
        return sound

    def in_order(self) -> list[Problem]:
        """Each problem once, as the file has them; what is missing stands at the end of its table."""
        return list(dict.fromkeys(problem for _, problem in sorted(self._found, key=self._position)))

    def _position(self, found: tuple[Loc, Problem]) -> tuple[int, ...]:
        position: list[int] = []
        value: Any = self._layout
        for part in found[0]:
            if isinstance(value, dict):
                keys = list(value)
                position.append(keys.index(part) if part in keys else len(keys))
            else:
                position.append(part if isinstance(part, int) else 0)
            value = _at(value, (part,))
        return tuple(position)

    def _real(self, loc: Loc) -> Loc:
        """`loc` without the names that pydantic puts in for the members of a union."""
        real: list[int | str] = []
        value: Any = self._document
        for place, part in enumerate(loc, 1):
            last = place == len(loc)
            if isinstance(part, int) or (isinstance(value, dict) and (part in value or last)):
                real.append(part)
                value = _at(value, (part,))
        return tuple(real)


def _at(value: Any, loc: Loc) -> Any:
    """What stands at `loc` in a document, None if nothing does."""
    for part in loc:
        try:
            value = value[part]
        except (LookupError, TypeError):
            return None
    return value


def _drop(document: dict[str, Any], loc: Loc) -> None:
    table = _at(document, loc[:-1])
    if isinstance(table, dict):
        table.pop(loc[-1], None)


def dotted(loc: Loc) -> str:
    """`("mailboxes", "addresses", 3)` as `mailboxes.addresses[3]`; keys that TOML would quote are quoted."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE_KEY.fullmatch(part) else f'"{part}"')
    return text


RENAMED = {
    "sum_up": "repeat_interval",
    "must_refuse": "must_deny",
    "if_not_refused": "if_not_denied",
    "parked_first": "suspended_first",
    "parked_cap": "suspended_cap",
}
"""Keys of configurations that were written for versions before 0.1.0."""


def describe(error: ErrorDetails, known: list[str]) -> str:
    """Our own words for one of pydantic's errors. A value is shown only where it is one of a few fixed words."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden" and (new := RENAMED.get(str(error["loc"][-1]))) in known:
        return f"was renamed to {new}"
    if kind == "extra_forbidden":
        return "unknown key" + did_you_mean(str(error["loc"][-1]), known)
    if kind == "missing" and is_secret(str(error["loc"][-1])):
        return f"is required: one of {listed(str(error['loc'][-1]))}"
    if kind == "literal_error":
        expected = str(context["expected"]).replace("'", '"')
        hint = did_you_mean(str(error["input"]), re.findall(r'"([^"]+)"', expected))
        return f"must be {expected}{hint if hint.endswith('?') else ''}"
    if kind == "union_tag_invalid":
        expected = str(context["expected_tags"]).replace("'", '"')
        hint = did_you_mean(str(context["tag"]), re.findall(r'"([^"]+)"', expected))
        return f"must be one of {expected}{hint if hint.endswith('?') else ''}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "greater_than_equal":
        return f"must be at least {context['ge']:g}"
    if kind == "less_than_equal":
        return f"must be at most {context['le']:g}"
    return _WORDING.get(kind) or error["msg"].replace("Input should be", "must be")


def known_keys(model: type[BaseModel], loc: Loc, document: Any = None) -> list[str]:
    """The keys of the table at `loc` in a document of this model. Where one of several models is meant, the
    document tells which."""
    here: type[BaseModel] | None = model
    parts = iter(loc)
    for part in parts:
        document = _at(document, (part,))
        if isinstance(part, int):
            continue
        if here is None or part not in here.model_fields:
            return []
        annotation = here.model_fields[part].annotation
        here = KINDS.get(kind_of(document)) if part == "auth" else _model_in(annotation)
        if get_origin(annotation) is dict:
            document = _at(document, (next(parts, ""),))  # the key of the dict is the user's own
    if here is None:
        return []
    return [key for name in here.model_fields for key in (sources(name) if is_secret(name) else [name])]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if inspect.isclass(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    found = (_model_in(argument) for argument in get_args(annotation))
    return next((model for model in found if model is not None), None)
