"""`ews-listener demo`: run the daemon against a simulated Exchange server."""

from typing import Annotated, Literal

import typer


def demo(
    mailboxes: Annotated[int, typer.Option(min=1, help="Number of simulated mailboxes.")] = 300,
    rate: Annotated[float, typer.Option(min=0, help="Events per second, over all mailboxes.")] = 200,
    seed: Annotated[int, typer.Option(help="Random seed. The same seed generates the same traffic.")] = 1,
    duration: Annotated[
        float | None, typer.Option(min=0, help="Seconds of traffic.", show_default="until Ctrl-C")
    ] = None,
    faults: Annotated[
        str,
        typer.Option(help="Faults of the simulated server: none, light, heavy, or a TOML file of faults."),
    ] = "none",
    auth: Annotated[
        Literal["basic", "ntlm", "negotiate", "oauth"],
        typer.Option(
            help="Authentication method. ntlm and negotiate use channel binding; oauth tokens expire after "
            "20 seconds."
        ),
    ] = "basic",
    json: Annotated[bool, typer.Option("--json", help="Print the summary as one line of JSON.")] = False,
) -> None:
    """Run the daemon against a simulated Exchange server and compare the delivered events with the changes made.

    Press Ctrl-C to stop. The summary reports whether any event was lost. The exit code is 0 only if none was lost.
    """
    import os
    import sys
    from functools import partial
    from pathlib import Path
    from tempfile import TemporaryDirectory

    import msgspec
    import trio

    from listener import log
    from listener.cli.exits import exit_on_errors, run_until_signal
    from listener.cli.extras import require_demo_extra
    from listener.demo.session import Plan, Session, fault_requests
    from listener.demo.view import print_summary, run_with_view

    require_demo_extra("demo")
    live = sys.stdout.isatty() and not json
    log.configure("warning" if live else "info", "auto", stream=sys.stderr, audit=not live)
    with TemporaryDirectory(prefix="ews-listener-demo-") as directory, exit_on_errors():
        fault_requests(faults)  # report an invalid value before anything starts
        plan = Plan(mailboxes=mailboxes, rate=rate, seed=seed, duration=duration, faults=faults, auth=auth)
        # The demo has no Kerberos realm, and must not request tickets from the realm of this machine.
        # Without this file, Kerberos looks for a realm in DNS: a delay of five seconds if no DNS server answers.
        realms = Path(directory, "krb5.conf")
        realms.write_text("[libdefaults]\ndns_lookup_kdc = false\ndns_lookup_realm = false\n")
        os.environ["KRB5_CONFIG"] = str(realms)
        session = Session(plan, Path(directory))
        sys.setswitchinterval(0.0002)  # as in `run`
        trio.run(run_until_signal, partial(run_with_view, session) if live else session.run)
        summary = session.summary()
    if json:
        print(msgspec.json.encode(summary).decode(), flush=True)
    else:
        print_summary(summary)
    raise SystemExit(0 if summary["lost"] == 0 else 1)
