"""`python -m listener.simulator`: the same as `ews-listener simulate`."""

import typer

from listener.cli.simulate import simulate

typer.run(simulate)
