"""Problems of a configuration and their locations, from pydantic and from the rules, in the order of the file."""

import inspect
import re
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from listener.config.auth import KINDS, kind_of
from listener.config.secrets import is_secret, list_keys, secret_keys
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
    "tuple_type": "must be an array",
    "list_type": "must be an array",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "path_type": "must be a path (string)",
    "int_type": "must be an integer",
    "float_type": "must be a number",
}


class Problems:
    """Collects the problems of one document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._layout = deepcopy(document)
        self._found: list[tuple[Loc, Problem]] = []
        self.invalid_sections: set[str] = set()
        """The top-level keys with invalid values."""

    def __len__(self) -> int:
        return len(self._found)

    def add(self, loc: Loc, what: str, where: str | None = None) -> None:
        """Add a problem. `where` replaces the dotted key if the problem is in another file."""
        self._found.append((loc, Problem(where or dotted(loc), what)))
        self.invalid_sections.add(str(loc[0]))

    def add_errors(self, errors: Sequence[ErrorDetails], model: type[BaseModel]) -> dict[str, Any]:
        """Add pydantic's errors, and return the valid part of the document.

        It lacks unknown keys, and sections with other problems. A handler lacks only the invalid key, if possible.
        """
        valid = deepcopy(
            {key: value for key, value in self._document.items() if key not in self.invalid_sections}
        )
        for error in errors:
            loc = self._document_location(error["loc"])
            if error["type"] == "union_tag_invalid":
                loc += ("kind",)
            if error["type"] == "too_short" and any(
                other["loc"][: len(error["loc"])] == error["loc"] != other["loc"] for other in errors
            ):
                continue  # it is empty only because its members are invalid
            problem = Problem(dotted(loc), describe(error, known_keys(model, loc[:-1], self._document)))
            self._found.append((loc, problem))
            if error["type"] == "extra_forbidden":
                _drop(valid, loc)
            else:
                handler = loc[0] == "handlers"
                _drop(valid, loc[: 1 if not handler else 2 if loc[-1] == "use" else 3])
                self.invalid_sections.add(str(loc[0]))
        return valid

    def in_file_order(self) -> list[Problem]:
        """Return the distinct problems in the order of the file. Missing keys come last in their table."""
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

    def _document_location(self, loc: Loc) -> Loc:
        """Return `loc` without the names that pydantic inserts for the members of a union."""
        found: list[int | str] = []
        value: Any = self._document
        for depth, part in enumerate(loc, 1):
            last = depth == len(loc)
            if isinstance(part, int) or (isinstance(value, dict) and (part in value or last)):
                found.append(part)
                value = _at(value, (part,))
        return tuple(found)


def _at(value: Any, loc: Loc) -> Any:
    """Return the value at `loc` in a document, None if there is none."""
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
    """Return `mailboxes.addresses[3]` for `("mailboxes", "addresses", 3)`. Keys are quoted as in TOML."""
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
"""Keys of versions before 0.1.0, with their new names."""


def describe(error: ErrorDetails, known: list[str]) -> str:
    """Return the text for a pydantic error. It contains the value only if a few fixed words are allowed."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden" and (new := RENAMED.get(str(error["loc"][-1]))) in known:
        return f"was renamed to {new}"
    if kind == "extra_forbidden":
        return "unknown key" + did_you_mean(str(error["loc"][-1]), known)
    if kind == "missing" and is_secret(str(error["loc"][-1])):
        return f"is required: one of {list_keys(str(error['loc'][-1]))}"
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
    """Return the keys of the table at `loc`. The document selects the model where there are several."""
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
            document = _at(document, (next(parts, ""),))  # a key of the dict is chosen by the user
    if here is None:
        return []
    return [key for name in here.model_fields for key in (secret_keys(name) if is_secret(name) else [name])]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if inspect.isclass(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    found = (_model_in(argument) for argument in get_args(annotation))
    return next((model for model in found if model is not None), None)
