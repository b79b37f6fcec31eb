"""`ews-listener check`: is the configuration good?"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from listener.cli.options import CONFIGURATION, ConfigFile

if TYPE_CHECKING:
    from listener.config import Config


def check(
    config: ConfigFile,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")] = False,
) -> None:
    """Check the configuration and the options of its handlers, without connecting to anything.

    Every problem is printed, one a line. Ends with exit code 0 if there is none, else with 2.
    """
    from json import dumps

    from listener.errors import ConfigError, Problem
    from listener.plugins import load_all

    settings, problems = None, list[Problem]()
    try:
        settings, _ = load_all(config)
    except ConfigError as error:
        problems = list(error.problems)
    if json:
        typer.echo(dumps(_report(settings) | {"problems": [problem._asdict() for problem in problems]}))
    elif settings is not None:
        typer.echo("\n".join(_summary(str(config), settings)))
    else:
        for problem in problems:
            typer.echo(f"error: {problem}", err=True)
    raise typer.Exit(CONFIGURATION if problems else 0)


def _report(config: "Config | None") -> dict[str, Any]:
    if config is None:
        return {"ok": False, "mailboxes": None, "static_groups": None, "handlers": []}
    return {
        "ok": True,
        "mailboxes": len(config.all_mailboxes),
        "static_groups": len(config.groups),
        "handlers": [
            {"name": name, "use": handler.use, "filter": handler.filter.model_dump()}
            for name, handler in config.handlers.items()
        ],
    }


def _summary(path: str, config: "Config") -> list[str]:
    grouped = sum(len(group.mailboxes) for group in config.groups)
    groups = f", {grouped} of them in {len(config.groups)} static group(s)" if config.groups else ""
    lines = [f"{path} is good.", f"mailboxes: {len(config.all_mailboxes)}{groups}"]
    for name, handler in config.handlers.items():
        wanted = handler.filter.model_dump(exclude_defaults=True)
        told = "; ".join(f"{key} {', '.join(values)}" for key, values in wanted.items()) or "every change"
        lines.append(f"handler {name} ({handler.use}): {told}")
    return lines
