"""`python -m listener` is `ews-listener`."""

from listener.cli import main

main()
