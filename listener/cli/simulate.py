"""`ews-listener simulate`: run a simulated Exchange server."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def simulate(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 selects a free port.")
    ] = 0,
    hostname: Annotated[str, typer.Option(help="Hostname in URLs and in the certificate.")] = "127.0.0.1",
    mailboxes: Annotated[int, typer.Option(min=0, help="Number of mailboxes.")] = 20,
    backends: Annotated[int, typer.Option(min=1, help="Number of back ends.")] = 3,
    rate: Annotated[float, typer.Option(min=0, help="Events per second in all mailboxes.")] = 10.0,
    seed: Annotated[
        int, typer.Option(help="Random seed. The same seed makes the same organization and traffic.")
    ] = 1,
    ledger: Annotated[
        Path | None, typer.Option(help="Write each change to this file, as one JSON line.")
    ] = None,
    person: Annotated[
        list[str] | None,
        typer.Option(help="Local part of an additional mailbox, such as jürgen. Repeatable."),
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Use HTTPS, with a new certificate authority.")] = False,
    auth: Annotated[
        Literal["basic", "ntlm", "negotiate", "oauth"],
        typer.Option(help="Authentication scheme. oauth implies --tls."),
    ] = "basic",
    extended_protection: Annotated[
        Literal["off", "allow", "require"],
        typer.Option(help="Channel binding for NTLM and Kerberos; allow and require imply --tls."),
    ] = "off",
    keytab: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Keytab of HTTP/host. Negotiate then uses Kerberos, and NTLM only if the client prefers it.",
        ),
    ] = None,
    lock_after: Annotated[
        int, typer.Option(min=0, help="Consecutive refused logins that lock an account; 0 means never.")
    ] = 10,
    token_lifetime: Annotated[
        float, typer.Option(min=1, help="Lifetime of an OAuth token in seconds.")
    ] = 3600,
    heartbeat: Annotated[float, typer.Option(min=0.1, help="Seconds between heartbeats of a stream.")] = 45.0,
    faults: Annotated[str, typer.Option(help="Faults to make: none, light, heavy, or a TOML file.")] = "none",
    print_faults: Annotated[
        bool, typer.Option("--print-faults", help="Print the faults as TOML and exit.")
    ] = False,
    one_user_per_stream: Annotated[
        bool,
        typer.Option(
            "--one-user-per-stream",
            help="Let an account read a subscription only if it impersonates its mailbox.",
        ),
    ] = False,
    counted_ids: Annotated[
        bool,
        typer.Option(
            "--counted-ids",
            help="Use numbers as subscription ids, which restart at 1 when a back end restarts.",
        ),
    ] = False,
    duration: Annotated[
        float | None,
        typer.Option(min=0, help="Stop after this many seconds; default: run until interrupted."),
    ] = None,
    write_config: Annotated[
        Path | None,
        typer.Option(
            help="Write a configuration for `ews-listener run`, and its files to the same directory."
        ),
    ] = None,
    until_stdin_closes: Annotated[bool, typer.Option("--until-stdin-closes", hidden=True)] = False,
) -> None:
    """Run a simulated Exchange server.

    The first line on standard output is a JSON object with its URLs and credentials.
    """
    from listener.cli.extras import require_demo_extra
    from listener.simulator.fault_plans import load, to_toml
    from listener.simulator.faults import FaultError

    try:
        plan = load(faults)
    except FaultError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    if print_faults:
        typer.echo(to_toml(plan), nl=False)
        return
    if keytab and auth != "negotiate":
        typer.echo("error: --keytab requires --auth negotiate", err=True)
        raise typer.Exit(2)
    require_demo_extra("simulate")
    from listener.simulator.run import main
    from listener.simulator.settings import Rules, Settings

    settings = Settings(
        port=port,
        name=hostname,
        mailboxes=mailboxes,
        extra_mailboxes=tuple(person or ()),
        backends=backends,
        rate=rate,
        seed=seed,
        ledger=ledger,
        tls=tls or auth == "oauth" or extended_protection != "off",
        auth=auth,
        extended_protection=extended_protection,
        keytab=keytab,
        lock_after=lock_after,
        token_lifetime=token_lifetime,
        heartbeat=heartbeat,
        faults=plan,
        rules=Rules(one_user_per_stream=one_user_per_stream, counted_ids=counted_ids),
    )
    try:
        main(
            settings,
            duration=duration,
            write_config=write_config,
            until_stdin_closes=until_stdin_closes,
        )
    except FaultError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        typer.echo(f"cannot run the simulator: {error}", err=True)
        raise typer.Exit(1) from None
