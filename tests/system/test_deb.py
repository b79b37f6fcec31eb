"""The Debian package on a test machine: install, start, upgrade, remove and purge.

`make test-deb` builds the package and sets $EWS_LISTENER_DEB; without that variable these tests are skipped.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machine import Machine, unavailable_reason
from tests.system.machine.service import Service, silent_simulator
from tests.system.processes import Simulator

DEB = os.environ.get("EWS_LISTENER_DEB", "")
NO_MACHINE = unavailable_reason() if DEB else "$EWS_LISTENER_DEB is not set: run `make test-deb`"
pytestmark = pytest.mark.skipif(bool(NO_MACHINE), reason=NO_MACHINE or "-")
DPKG = ("dpkg", "--no-triggers", "--force-unsafe-io", "--force-confdef")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the package as old.deb, and a copy with a higher version as new.deb."""
    folder = tmp_path_factory.mktemp("packages")
    shutil.copy(DEB, folder / "old.deb")
    tree = folder / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", DEB, tree], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(control.read_text().replace("\nVersion: ", "\nVersion: 9:"))
    subprocess.run(
        ["dpkg-deb", "-Znone", "--build", tree, folder / "new.deb"], check=True, stdout=subprocess.DEVNULL
    )
    shutil.rmtree(tree)
    return folder


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with silent_simulator(tmp_path_factory.mktemp("simulator")) as there:
        yield there


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory, packages: Path) -> Iterator[Machine]:
    with Machine.boot(tmp_path_factory.mktemp("machine"), {packages: "/packages"}) as machine:
        yield machine


@pytest.fixture
def machine(booted: Machine) -> Machine:
    """Return the machine with old.deb installed, whatever earlier tests did."""
    status = "${db:Status-Abbrev}${Version}"
    if not re.match(
        r"ii +(?!9:)", booted.output_of("dpkg-query", "--show", f"--showformat={status}", "ews-listener")
    ):
        booted.run("dpkg", "--no-triggers", "--purge", "ews-listener")
        booted.run(*DPKG, "--install", "/packages/old.deb")
    return booted


def test_installed_files_are_consistent(machine: Machine) -> None:
    assert machine.run("ews-listener", "--version").strip()
    assert machine.run("getent", "passwd", "ews-listener").startswith("ews-listener:x:")
    assert machine.run("systemd-analyze", "verify", "/lib/systemd/system/ews-listener.service") == ""
    assert "dead-letters retry" in machine.run("man", "ews-listener")
    warnings = machine.run("sh", "-c", "man --warnings --encoding=UTF-8 ews-listener 2>&1 >/dev/null")
    assert warnings == ""
    listed = machine.run("dpkg", "--listfiles", "ews-listener").split()
    assert "/etc/ews-listener/config.toml" in listed
    assert machine.run("dpkg", "--verify", "ews-listener") == ""
    version = int(machine.run("systemctl", "--version").split()[1])
    has_growing_delay = "/lib/systemd/system/ews-listener.service.d/growing-delay.conf" in listed
    assert has_growing_delay == (version >= 254)  # the package is built for the release of the build machine


@pytest.mark.parametrize("word", ["ru", "dead-letters re"])
def test_bash_completes(machine: Machine, word: str) -> None:
    script = f"""
        source /usr/share/bash-completion/completions/ews-listener
        COMP_WORDS=(ews-listener {word}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _ews_listener_completion ews-listener
        echo "${{COMPREPLY[@]}}"
    """
    assert machine.run("bash", "-c", script).split() == [{"ru": "run"}.get(word, "retry")]


def test_the_installation_does_not_start_the_service(machine: Machine) -> None:
    assert machine.output_of("systemctl", "is-enabled", "ews-listener.service").strip() == "disabled"
    assert machine.output_of("systemctl", "is-active", "ews-listener.service").strip() == "inactive"


def test_service_runs_through_upgrade_remove_and_purge(machine: Machine, simulator: Simulator) -> None:
    service = Service(machine, simulator)
    service.configure()
    machine.run("systemctl", "enable", "--now", service.unit)
    service.until_streaming()
    ledger = simulator.create_events(simulator.mailboxes[0], count=3)
    service.until_delivered(ledger)
    before = service.property_value("MainPID")
    account = machine.run("id", "-u", "ews-listener").strip()
    assert str(machine.path(f"/proc/{before}").stat().st_uid) == account

    configured = machine.path(service.config).read_text()
    machine.run(*DPKG, "--install", "/packages/new.deb")
    assert service.property_value("MainPID") not in (before, "0")
    assert machine.path(service.config).read_text() == configured
    service.until_streaming()
    ledger += simulator.create_events(simulator.mailboxes[0], count=3)
    service.until_delivered(ledger)

    running = machine.path(f"/proc/{service.property_value('MainPID')}")
    machine.run("dpkg", "--no-triggers", "--remove", "ews-listener")
    assert not running.exists()
    assert not machine.path("/opt/ews-listener").exists()
    assert service.state_file("journal.db").exists()
    assert machine.path(service.config).exists()

    machine.run("dpkg", "--no-triggers", "--purge", "ews-listener")
    assert not service.state_file("").exists()
    assert not machine.path(service.config).exists()
    assert machine.output_of("systemctl", "list-unit-files", "--legend=no", "ews-listener*") == ""
