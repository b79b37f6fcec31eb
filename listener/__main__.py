"""Entry point of `python -m listener`, which is the same as `ews-listener`."""

from listener.cli import main

main()
