"""`make install` as it is done on a server: below a prefix, for this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def make(target: str, place: Path, **environment: str) -> None:
    done = subprocess.run(
        ["make", "--silent", target, f"PREFIX={place}/usr", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        env={**os.environ, "SYSCONFDIR": f"{place}/etc", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def units_with_a_growing_delay(place: Path) -> set[str]:
    return {
        path.parent.name.removesuffix(".d")
        for path in place.glob("usr/lib/systemd/system/*.d/growing-delay.conf")
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installed by a machine with a newer systemd, used a little, and installed again by one with an older."""
    place = tmp_path_factory.mktemp("place")
    make("install", place, SYSTEMD="254")
    assert units_with_a_growing_delay(place) == {"ews-listener.service", "ews-listener@.service"}
    make("install", place, SYSTEMD="252")
    return place


def test_the_delay_grows_where_systemd_can(place: Path) -> None:
    assert (
        units_with_a_growing_delay(place) == set()
    )  # it would only be warned of at every start of the machine
