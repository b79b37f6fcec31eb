"""`ews-listener demo`: the daemon against a simulated Exchange, in one command."""

from typing import Annotated, Literal

import typer


def demo(
    mailboxes: Annotated[
        int, typer.Option(min=1, help="How many mailboxes the simulated Exchange has.")
    ] = 300,
    rate: Annotated[float, typer.Option(min=0, help="Events a second, over all mailboxes.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed makes the same traffic.")] = 1,
    duration: Annotated[
        float | None, typer.Option(min=0, help="Seconds of traffic.", show_default="until Ctrl-C")
    ] = None,
    faults: Annotated[
        str,
        typer.Option(help="What the simulated Exchange suffers: none, light, heavy, or a file of faults."),
    ] = "none",
    auth: Annotated[
        Literal["basic", "ntlm", "negotiate", "oauth"],
        typer.Option(
            help="How the daemon proves who it is. ntlm and negotiate with channel binding, oauth with tokens that "
            "live for 20 seconds."
        ),
    ] = "basic",
    json: Annotated[bool, typer.Option("--json", help="End with the summary as one line of JSON.")] = False,
) -> None:
    """Run the daemon against a simulated Exchange, and hold what is delivered against what happened.

    Ends with exit code 0 only if nothing was lost.
    """
    import os
    import sys
    from functools import partial
    from pathlib import Path
    from tempfile import TemporaryDirectory

    import msgspec
    import trio

    from listener import log
    from listener.cli.exits import reported, signalled
    from listener.cli.extras import require_demo_extra
    from listener.demo.session import Plan, Session, orders
    from listener.demo.view import print_summary, shown

    require_demo_extra("demo")
    live = sys.stdout.isatty() and not json
    log.configure("warning" if live else "info", "auto", stream=sys.stderr, audit=not live)
    with TemporaryDirectory(prefix="ews-listener-demo-") as directory, reported():
        orders(faults)  # a mistake in it is told before anything starts
        plan = Plan(mailboxes=mailboxes, rate=rate, seed=seed, duration=duration, faults=faults, auth=auth)
        # There is no realm that could give tickets; and the one of this machine is not to be asked for any.
        # Without this, Kerberos asks the name server for one: five seconds where none answers.
        realms = Path(directory, "krb5.conf")
        realms.write_text("[libdefaults]\ndns_lookup_kdc = false\ndns_lookup_realm = false\n")
        os.environ["KRB5_CONFIG"] = str(realms)
        session = Session(plan, Path(directory))
        sys.setswitchinterval(0.0002)  # as `run` does
        trio.run(signalled, partial(shown, session) if live else session.run)
        summary = session.summary()
    if json:
        print(msgspec.json.encode(summary).decode(), flush=True)
    else:
        print_summary(summary)
    raise SystemExit(0 if summary["lost"] == 0 else 1)
