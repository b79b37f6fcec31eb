"""`ews-listener run`: the daemon."""

from listener.cli.options import ConfigFile


def run(config: ConfigFile) -> None:
    """Listen until told to stop.

    SIGINT and SIGTERM end it in order: unsubscribe, let handlers finish, exit 0. A second signal ends it at once.
    """
    import trio

    from listener import log
    from listener.cli.ending import reported, signalled
    from listener.daemon import Daemon
    from listener.plugins import load_all

    with reported():
        settings, handlers = load_all(config)
        log.configure(settings.log.level, settings.log.format)
        daemon = Daemon(settings, handlers)
        trio.run(signalled, daemon.run)
