"""`ews-listener check`: validate the configuration and, with --connect, test the access to every mailbox."""

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
        bool, typer.Option("--connect", help="Connect to the servers and test the access to every mailbox.")
    ] = False,
    mailbox: Annotated[
        list[str] | None, typer.Option(help="With --connect: test only this mailbox. Repeatable.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Check the configuration and the handler options. With --connect, also test the servers and all mailboxes.

    Exit code 0: all checks passed.
    Exit code 2: the configuration is invalid.
    Exit code 3: a server cannot be reached or rejects the account.
    Exit code 4: access to a mailbox is denied, or a must_deny mailbox is accessible or not proved.
    """
    if mailbox and not connect:
        raise typer.BadParameter("requires --connect", param_hint="--mailbox")
    from json import dumps

    from listener.errors import ConfigError, Problem
    from listener.plugins import load_all
    from listener.text import printable

    settings, report, problems = None, None, list[Problem]()
    try:
        settings, _ = load_all(config)
        if connect:
            report = _connect(settings, _addresses(mailbox or []), interactive=not json)
    except ConfigError as error:
        settings, problems = None, list(error.problems)
    warnings = _warnings(settings)
    if json:
        result = _report(settings) | {"problems": [problem._asdict() for problem in problems]}
        if warnings:
            result["warnings"] = [warning._asdict() for warning in warnings]
        if report is not None:
            from listener.cli.check_report import as_json

            result |= as_json(report)
        typer.echo(dumps(result))
    elif settings is not None:
        typer.echo("\n".join(map(printable, _summary(str(config), settings))))
        for warning in warnings:
            typer.echo(f"warning: {printable(str(warning))}", err=True)
        if report is not None:
            from listener.cli.check_report import print_report

            print_report(report)
    else:
        for problem in problems:
            typer.echo(f"error: {printable(str(problem))}", err=True)
    raise typer.Exit(_exit_code(report, valid=not problems))


def _warnings(config: "Config | None") -> "list[Problem]":
    from listener.config.warnings import warnings

    return [] if config is None else warnings(config)


def _exit_code(report: "Report | None", *, valid: bool) -> int:
    if not valid:
        return CONFIGURATION
    if report is None:
        return 0
    return UNREACHABLE if report.unreachable else REFUSED if report.refused else 0


def _addresses(names: list[str]) -> list[str]:
    """Parse addresses and SIDs. Raises BadParameter."""
    from listener.config.values import parse_address, parse_sid

    try:
        return [(parse_address if "@" in name else parse_sid)(name) for name in names]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--mailbox") from None


def _connect(config: "Config", only: list[str], *, interactive: bool) -> "Report":
    """Run the preflight, with a progress bar if `interactive` and standard error is a terminal."""
    import sys
    from functools import partial

    import trio

    from listener import log
    from listener.cli.check_report import progress_bar
    from listener.preflight.check import check as preflight

    # The report has all results; log lines about them would only clutter the output.
    log.configure("error", config.log.format if config.log.format != "journal" else "json", audit=False)
    with progress_bar(shown=interactive and sys.stderr.isatty()) as progress:
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
    lines = [f"{path} is valid.", f"mailboxes: {len(config.all_mailboxes)}{groups}{members}"]
    for name, handler in config.handlers.items():
        filters = handler.filter.model_dump(exclude_defaults=True)
        text = "; ".join(f"{key} {', '.join(values)}" for key, values in filters.items()) or "all changes"
        lines.append(f"handler {name} ({handler.use}): {text}")
    return lines
