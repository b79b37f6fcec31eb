"""`ews-listener run`: run the daemon."""

from listener.cli.options import ConfigFile


def run(config: ConfigFile) -> None:
    """Run the daemon.

    SIGINT or SIGTERM stops it in order: streams end, handlers finish, exit code 0. A second signal kills it at once.
    SIGHUP reloads the configuration.
    """
    import faulthandler
    import os
    import signal
    import sys
    from functools import partial

    import trio

    from listener import log
    from listener.admin.loop_watchdog import watch_loop
    from listener.admin.notifier import Notifier
    from listener.cli.exits import exit_on_errors, run_until_signal
    from listener.daemon import open_daemon
    from listener.operations import Operations
    from listener.plugins import load_all

    # The watchdog of systemd aborts a hanging process with SIGABRT. The log then has the stack of each thread.
    faulthandler.enable()
    # SIGHUP requests a reload. Until the daemon can handle it, the signal must not kill the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    notifier = Notifier.take(os.environ)
    with exit_on_errors():
        settings, handlers = load_all(config)
        log.configure(settings.log.level, settings.log.format, repeat_interval=settings.log.repeat_interval)
        log.log_crashes()
        # With Python's default of 5 ms, a busy event loop would starve the thread that writes the journal.
        sys.setswitchinterval(0.0002)
        load = partial(load_all, config.absolute())

        async def listen(stop: trio.Event) -> None:
            with watch_loop():
                async with (
                    open_daemon(settings, handlers, notifier=notifier) as daemon,
                    Operations(daemon, load).at_hand(),
                ):
                    await daemon.run(stop)

        trio.run(run_until_signal, listen)
