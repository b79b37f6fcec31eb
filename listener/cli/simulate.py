"""`ews-listener simulate`: an Exchange server to try things on."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def simulate(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    hostname: Annotated[
        str, typer.Option(help="What the server is called in URLs and in its certificate.")
    ] = "127.0.0.1",
    mailboxes: Annotated[int, typer.Option(min=0, help="How many mailboxes there are.")] = 20,
    backends: Annotated[int, typer.Option(min=1, help="How many back ends they live on.")] = 3,
    rate: Annotated[float, typer.Option(min=0, help="Events a second, over all mailboxes.")] = 10.0,
    seed: Annotated[int, typer.Option(help="The same seed makes the same organisation and traffic.")] = 1,
    ledger: Annotated[
        Path | None, typer.Option(help="Write each change into this file, one JSON line each.")
    ] = None,
    person: Annotated[
        list[str] | None,
        typer.Option(
            help="The local part of one more mailbox, such as jürgen. It may be given several times."
        ),
    ] = None,
    tls: Annotated[
        bool, typer.Option("--tls", help="HTTPS, with a certificate authority of its own.")
    ] = False,
    auth: Annotated[
        Literal["basic", "ntlm", "negotiate", "oauth"],
        typer.Option(help="How clients prove who they are. oauth implies --tls."),
    ] = "basic",
    extended_protection: Annotated[
        Literal["off", "allow", "require"],
        typer.Option(help="Channel binding of NTLM and Kerberos; allow and require imply --tls."),
    ] = "off",
    keytab: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="The key of HTTP/host: Negotiate is Kerberos then, and NTLM only if the client prefers it.",
        ),
    ] = None,
    lock_after: Annotated[
        int, typer.Option(min=0, help="Refusals in a row that lock an account; 0 is never.")
    ] = 10,
    token_lifetime: Annotated[float, typer.Option(min=1, help="Seconds that a token of OAuth lives.")] = 3600,
    heartbeat: Annotated[
        float, typer.Option(min=0.1, help="Seconds between the heart-beats of a stream.")
    ] = 45.0,
    faults: Annotated[
        str, typer.Option(help="What goes wrong: none, light, heavy, or a TOML file of faults.")
    ] = "none",
    print_faults: Annotated[
        bool, typer.Option("--print-faults", help="Print those faults as TOML and end.")
    ] = False,
    one_user_per_stream: Annotated[
        bool,
        typer.Option(
            "--one-user-per-stream", help="Only who impersonates its mailbox may read a subscription."
        ),
    ] = False,
    counted_ids: Annotated[
        bool,
        typer.Option(
            "--counted-ids", help="Subscription ids are numbers that begin at 1 again after a restart."
        ),
    ] = False,
    duration: Annotated[
        float | None, typer.Option(min=0, help="End after so many seconds; otherwise run until interrupted.")
    ] = None,
    write_config: Annotated[
        Path | None,
        typer.Option(help="Write a configuration for `ews-listener run`, and the files it names beside it."),
    ] = None,
    until_stdin_closes: Annotated[bool, typer.Option("--until-stdin-closes", hidden=True)] = False,
) -> None:
    """Run a simulated Exchange server.

    The first line on standard output is one JSON object that says where it is and how to log in.
    """
    from listener.cli.extras import require_demo_extra
    from listener.simulator.faults import FaultError
    from listener.simulator.plans import load, to_toml

    try:
        plan = load(faults)
    except FaultError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    if print_faults:
        typer.echo(to_toml(plan), nl=False)
        return
    if keytab and auth != "negotiate":
        typer.echo("error: --keytab goes with --auth negotiate", err=True)
        raise typer.Exit(2)
    require_demo_extra("simulate")
    from listener.simulator.run import main
    from listener.simulator.settings import Rules, Settings

    settings = Settings(
        port=port,
        name=hostname,
        mailboxes=mailboxes,
        people=tuple(person or ()),
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
