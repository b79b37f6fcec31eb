"""`ews-listener check`: is the configuration good, and does the account get in everywhere?"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from listener.cli.options import CONFIGURATION, REFUSED, UNREACHABLE, ConfigFile

if TYPE_CHECKING:
    from listener.config import Config
    from listener.errors import Problem
    from listener.preflight.check import Report


def check(
    config: ConfigFile,
    connect: Annotated[
        bool, typer.Option("--connect", help="Connect, and try whether the account gets into every mailbox.")
    ] = False,
    mailbox: Annotated[
        list[str] | None, typer.Option(help="With --connect: only this mailbox. May be given several times.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")] = False,
) -> None:
    """Check the configuration and the options of its handlers; with --connect, the servers and all mailboxes too.

    Ends with exit code 0 if all is well, 2 if the configuration is not good, 3 if a server cannot be reached or does
    not take the account, 4 if some mailboxes are refused, or reached though they must not be.
    """
    if mailbox and not connect:
        raise typer.BadParameter("goes with --connect", param_hint="--mailbox")
    from json import dumps

    from listener.errors import ConfigError, Problem
    from listener.plugins import load_all
    from listener.text import printable

    settings, report, problems = None, None, list[Problem]()
    try:
        settings, _ = load_all(config)
        if connect:
            report = _connect(settings, _addresses(mailbox or []), live=not json)
    except ConfigError as error:
        settings, problems = None, list(error.problems)
    doubts = _warnings(settings)
    if json:
        told = _report(settings) | {"problems": [problem._asdict() for problem in problems]}
        if doubts:
            told["warnings"] = [doubt._asdict() for doubt in doubts]
        if report is not None:
            from listener.cli.check_report import as_json

            told |= as_json(report)
        typer.echo(dumps(told))
    elif settings is not None:
        typer.echo("\n".join(map(printable, _summary(str(config), settings))))
        for doubt in doubts:
            typer.echo(f"warning: {printable(str(doubt))}", err=True)
        if report is not None:
            from listener.cli.check_report import show

            show(report)
    else:
        for problem in problems:
            typer.echo(f"error: {printable(str(problem))}", err=True)
    raise typer.Exit(_exit_code(report, good=not problems))


def _warnings(config: "Config | None") -> "list[Problem]":
    from listener.config.warnings import warnings

    return [] if config is None else warnings(config)


def _exit_code(report: "Report | None", *, good: bool) -> int:
    if not good:
        return CONFIGURATION
    if report is None:
        return 0
    return UNREACHABLE if report.unreachable else REFUSED if report.refused else 0


def _addresses(given: list[str]) -> list[str]:
    from listener.config.values import parse_address, parse_sid

    try:
        return [(parse_address if "@" in name else parse_sid)(name) for name in given]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--mailbox") from None


def _connect(config: "Config", only: list[str], *, live: bool) -> "Report":
    """Checks with a progress bar, if standard error is a terminal and a person reads along."""
    import sys
    from functools import partial

    import trio

    from listener import log
    from listener.cli.check_report import progress_bar
    from listener.preflight.check import check as preflight

    # What is found out stands in the report; lines about it would only be in the way.
    log.configure("error", config.log.format if config.log.format != "journal" else "json", audit=False)
    with progress_bar(shown=live and sys.stderr.isatty()) as progress:
        return trio.run(partial(preflight, config, only, progress))


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
    expanded = len(config.mailboxes.distribution_groups)
    members = f", and the members of {expanded} distribution group(s)" if expanded else ""
    lines = [f"{path} is good.", f"mailboxes: {len(config.all_mailboxes)}{groups}{members}"]
    for name, handler in config.handlers.items():
        wanted = handler.filter.model_dump(exclude_defaults=True)
        told = "; ".join(f"{key} {', '.join(values)}" for key, values in wanted.items()) or "every change"
        lines.append(f"handler {name} ({handler.use}): {told}")
    return lines
