"""Writes the tables of docs/CONFIGURATION.md from the model: `python docs/reference.py`."""

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from listener.config.auth import KINDS
from listener.config.mailboxes import AccessOverride, Mailboxes
from listener.config.model import Config, HandlerFilter
from listener.config.secrets import Secret, is_secret, sources
from listener.config.values import format_duration, parse_duration, parse_initial

PAGE = Path(__file__).parent / "CONFIGURATION.md"
BEGIN, END = "<!-- the tables: made by docs/reference.py -->\n", "<!-- end of the tables -->\n"


def page(text: str) -> str:
    """The page with its tables made anew."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + tables() + END + rest.partition(END)[2]


def tables() -> str:
    parts = [table("Top of the file", "", Config, only={"state_directory"})]
    for name, field in Config.model_fields.items():
        model = nested(field.annotation)
        title = {"groups": "[[groups]]", "servers": "[[servers]]", "handlers": "[handlers.NAME]"}.get(
            name, f"[{name}]"
        )
        if name == "auth":
            parts += [
                table(f'[auth] kind = "{kind}"', KINDS[kind].__doc__ or "", KINDS[kind]) for kind in KINDS
            ]
        elif model is not None:
            parts.append(table(title, (model.__doc__ or "").strip(), model))
        if model is Mailboxes:
            about = (AccessOverride.__doc__ or "").strip()
            parts.append(table("[[mailboxes.overrides]]", about, AccessOverride))
    parts.append(table("filter of a handler", (HandlerFilter.__doc__ or "").strip(), HandlerFilter))
    return "".join(parts)


def table(title: str, about: str, model: type[BaseModel], only: set[str] | None = None) -> str:
    lines = [f"\n### `{title}`" if "[" in title else f"\n### {title}", ""]
    lines += [about, ""] if about else []
    lines += ["| option | value | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if only is None or name in only:
            shown = " ".join(f"`{key}`" for key in sources(name)) if is_secret(name) else f"`{name}`"
            cells = (
                shown,
                kind(field),
                default(field, model, name),
                (field.description or "").replace("|", "\\|"),
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def is_duration(field: FieldInfo) -> bool:
    found = [
        *field.metadata,
        *(m for arm in get_args(field.annotation) for m in getattr(arm, "__metadata__", ())),
    ]
    return any(getattr(item, "func", None) is parse_duration for item in found)


def kind(field: FieldInfo) -> str:
    if any(getattr(item, "func", None) is parse_initial for item in field.metadata):
        return "`none`, duration, date or date-time"
    return "duration" if is_duration(field) else word_for(field.annotation)


def word_for(annotation: Any) -> str:
    if hasattr(annotation, "__metadata__"):
        return word_for(annotation.__origin__)
    if get_origin(annotation) in (types.UnionType, Union):
        return " or ".join(word_for(arm) for arm in get_args(annotation) if arm is not type(None))
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "list of texts"
    if nested(annotation) is not None:
        return "table"
    words = {Secret: "secret", bool: "`true`, `false`", int: "whole number", float: "number", Path: "path"}
    return words.get(annotation, "text")


def default(field: FieldInfo, model: type[BaseModel], name: str) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if name == "initial":
        return "`none`"
    if value is None or isinstance(value, BaseModel):
        return ""
    if is_duration(field):
        return f"`{format_duration(value)}`"
    if name == "user_agent":
        return "`ews-listener/` and the version"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "all" if name == "events" else ", ".join(f"`{item}`" for item in value)
    return f"`{value}`" if str(value) else ""


def nested(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arm in get_args(annotation) if (found := nested(arm))), None)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
