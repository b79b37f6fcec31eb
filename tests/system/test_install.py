"""What docs/INSTALLATION.md says of `make install` below a prefix, and of pipx: it is there, and it goes again."""

import gzip
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
UNITS = "usr/lib/systemd/system"


def run(*command: str | Path, **environment: str) -> str:
    """Its standard output. Skips where no package index can be had."""
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    if "No matching distribution" in done.stderr:
        pytest.skip("no package index")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make(target: str, place: Path, **environment: str) -> None:
    told = {"SYSCONFDIR": f"{place}/etc", **environment}
    run("make", "--silent", target, f"PREFIX={place}/usr", f"PYTHON={sys.executable}", **told)


def files(place: Path) -> set[str]:
    """All but what belongs to the environment."""
    found = {str(path.relative_to(place)) for path in place.rglob("*") if not path.is_dir()}
    return {name for name in found if not name.startswith("usr/lib/ews-listener/")}


def units_with_a_growing_delay(place: Path) -> set[str]:
    return {path.parent.name.removesuffix(".d") for path in place.glob(f"{UNITS}/*.d/growing-delay.conf")}


# Installed alone, it finds what it depends on among the tests' own packages.
ALONE = {"PIP_NO_DEPS": "1", "PIP_IGNORE_INSTALLED": "1", "PYTHONPATH": sysconfig.get_path("purelib")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ".")
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_make_install(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> None:
    """By a machine with a newer systemd; configured, and installed again by one with an older; and removed."""
    place = tmp_path_factory.mktemp("place")
    # The second time everything is built and installed.
    make("install", place, SYSTEMD="254", WHEEL=str(wheel), **ALONE)
    assert units_with_a_growing_delay(place) == {"ews-listener.service", "ews-listener@.service"}
    config = place / "etc/ews-listener/config.toml"
    config.write_text("# mine\n")
    (place / "usr/lib/ews-listener/lib/stale").touch()

    make("install", place, SYSTEMD="252")
    assert config.read_text() == "# mine\n"
    assert not (place / "usr/lib/ews-listener/lib/stale").exists()
    assert run(place / "usr/bin/ews-listener", "--version").strip()
    names_the_demo_extra(place)
    assert {
        "usr/bin/ews-listener",
        f"{UNITS}/ews-listener.service",
        f"{UNITS}/ews-listener@.service",
        "usr/lib/sysusers.d/ews-listener.conf",
        "usr/share/man/man1/ews-listener.1.gz",
        "usr/share/doc/ews-listener/docs/INSTALLATION.md",
        "usr/share/ews-listener/drop-ins/credentials.conf",
    } <= files(place)
    # An older systemd would warn of it at every start of the machine.
    assert units_with_a_growing_delay(place) == set()
    names_its_own_places(place)
    for shell in filter(shutil.which, SHELLS):
        completes(place, shell)

    (place / "usr/share/man/man1/other.1.gz").touch()
    make("uninstall", place)
    assert files(place) == {"etc/ews-listener/config.toml", "usr/share/man/man1/other.1.gz"}
    assert list(place.rglob("*ews-listener*")) == [config.parent]


def names_the_demo_extra(place: Path) -> None:
    """The daemon's environment has no simulator: packaging/install installs extras only if $EXTRAS names them."""
    demo = subprocess.run([place / "usr/bin/ews-listener", "demo"], capture_output=True, text=True)
    assert (demo.returncode, demo.stdout) == (2, "")
    assert "pip install 'ews-listener[demo]'" in demo.stderr


def names_its_own_places(place: Path) -> None:
    unit = place / UNITS / "ews-listener.service"
    command = f"{place}/usr/bin/ews-listener run --config {place}/etc/ews-listener/config.toml"
    assert f"ExecStart={command}\n" in unit.read_text()
    if shutil.which("systemd-analyze"):
        told = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
        assert [line for line in told.stderr.splitlines() if "ews-listener" in line] == []
    man = gzip.decompress((place / "usr/share/man/man1/ews-listener.1.gz").read_bytes()).decode()
    assert f"in {place}/usr/share/doc/" in man
    drop_in = place / "usr/share/ews-listener/drop-ins/credentials.conf"
    assert f"{place}/etc/ews-listener/password" in drop_in.read_text()


# Each prints what could stand where the cursor is, as its shell is told by our file.
SHELLS = {
    "bash": """
        source "$FILE"
        COMP_WORDS=(ews-listener $WORDS); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _ews_listener_completion ews-listener
        echo "${COMPREPLY[@]}"
    """,
    "zsh": """
        compdef() { : }
        _arguments() { print -r -- "$@" }
        source "$FILE"
        words=(ews-listener ${=WORDS}); CURRENT=$#words
        _ews_listener_completion
    """,
    "fish": 'source "$FILE"; complete --do-complete "ews-listener $WORDS"',
}
FILES = {
    "bash": "bash-completion/completions/ews-listener",
    "zsh": "zsh/site-functions/_ews-listener",
    "fish": "fish/vendor_completions.d/ews-listener.fish",
}


def completes(place: Path, shell: str) -> None:
    file = place / "usr/share" / FILES[shell]
    run(shell, "-n", file)
    quiet = {"bash": "--norc", "zsh": "-f", "fish": "--no-config"}[shell]
    path = f"{place}/usr/bin:{os.environ['PATH']}"
    for words, wanted, unwanted in (
        ("dead-letters re", "retry", "replay"),
        ("check --c", "--connect", "--json"),
    ):
        told = run(shell, quiet, "-c", SHELLS[shell], FILE=str(file), WORDS=words, PATH=path)
        assert (shell, wanted in told, unwanted in told) == (shell, True, False)


def test_as_pipx_installs_it(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> None:
    """A wheel, alone, in an environment of its own: the command, and nothing for the system."""
    environment = tmp_path_factory.mktemp("pipx") / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    pip = (
        sys.executable,
        "-m",
        "pip",
        "--python",
        environment / "bin/python",
        "install",
        "--quiet",
        "--no-compile",
    )
    run(*pip, "-c", "constraints.txt", wheel, **ALONE)
    command = environment / "bin/ews-listener"
    assert run(command, "--version", **ALONE).strip() in wheel.name
    assert "compdef" in run(command, _EWS_LISTENER_COMPLETE="source_zsh", **ALONE)
    assert not (environment / "share/ews-listener").exists()
    assert not list(environment.rglob("ews-listener.service"))
