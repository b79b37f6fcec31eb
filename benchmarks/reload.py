"""How long a reload takes that adds mailboxes, and what it asks of the server: real processes, real sockets.

`python benchmarks/reload.py [MAILBOXES [ADDED]]`, 2000 and 100 by default. The seconds of the reload are those of the
whole command `ews-listener reload`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from restart import LISTENER, Run, simulated


def main(mailboxes: int, added: int) -> None:
    """Prints what the reload took."""
    with tempfile.TemporaryDirectory() as name, simulated(Path(name), mailboxes + added) as there:
        directory = Path(name)
        addresses = (directory / "mailboxes.txt").read_text().splitlines()
        (directory / "mailboxes.txt").write_text("\n".join(addresses[:mailboxes]))
        run = Run(directory)
        run.until(lambda: there.state()["mailboxes_streaming"] == mailboxes)
        before = there.asked()
        (directory / "mailboxes.txt").write_text("\n".join(addresses))
        started_at = time.monotonic()
        config = str(directory / "config.toml")
        subprocess.run([*LISTENER, "reload", "--config", config], check=True, stdout=subprocess.DEVNULL)
        done = time.monotonic() - started_at
        run.until(lambda: there.state()["mailboxes_streaming"] == mailboxes + added)
        all_stream = time.monotonic() - started_at
        now = there.asked()
        print(f"{mailboxes} mailboxes in {len(there.state()['streams'])} groups, and {added} more:")
        print(f"  reload        {1000 * done:5.0f} ms    all streaming {1000 * all_stream:5.0f} ms")
        print("  " + ", ".join(f"{now.get(what, 0) - before.get(what, 0)} {what}" for what in ASKED))
        run.end()


ASKED = ("Subscribe", "GetStreamingEvents", "Autodiscover", "Unsubscribe")

if __name__ == "__main__":
    main(*([int(number) for number in sys.argv[1:]] or [2000, 100]))
