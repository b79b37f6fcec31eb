"""`ews-listener run`: the daemon."""

from listener.cli.options import ConfigFile


def run(config: ConfigFile) -> None:
    """Listen until told to stop.

    SIGINT and SIGTERM end it in order: streams end, handlers finish, exit 0. A second signal ends it at once.
    """
    import faulthandler
    import os
    import signal
    import sys
    from functools import partial

    import trio

    from listener import log
    from listener.admin.loop import watched_loop
    from listener.admin.notifier import Notifier
    from listener.cli.exits import reported, signalled
    from listener.daemon import open_daemon
    from listener.operations import Operations
    from listener.plugins import load_all

    # The watchdog of systemd ends what hangs by SIGABRT: the log then has where each thread stood.
    faulthandler.enable()
    # It asks for a reload, once there is something to reload; until then it must not end the daemon.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    notifier = Notifier.take(os.environ)
    with reported():
        settings, handlers = load_all(config)
        log.configure(settings.log.level, settings.log.format, repeat_interval=settings.log.repeat_interval)
        log.log_crashes()
        # Beside a busy loop, Python's own 5 ms would starve the thread that writes the journal.
        sys.setswitchinterval(0.0002)
        load = partial(load_all, config.absolute())

        async def listen(stop: trio.Event) -> None:
            with watched_loop():
                async with (
                    open_daemon(settings, handlers, notifier=notifier) as daemon,
                    Operations(daemon, load).at_hand(),
                ):
                    await daemon.run(stop)

        trio.run(signalled, listen)
