"""Installation as docs/INSTALLATION.md describes it: `make install` with a prefix, `make uninstall`, and pipx."""

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
    """Return the standard output of the command. Skip the test if no package index is available."""
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    if "No matching distribution" in done.stderr:
        pytest.skip("no package index")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make(target: str, place: Path, **environment: str) -> None:
    variables = {"SYSCONFDIR": f"{place}/etc", **environment}
    run("make", "--silent", target, f"PREFIX={place}/usr", f"PYTHON={sys.executable}", **variables)


def files(place: Path) -> set[str]:
    """Return the installed files, without those of the virtual environment."""
    found = {str(path.relative_to(place)) for path in place.rglob("*") if not path.is_dir()}
    return {name for name in found if not name.startswith("usr/lib/ews-listener/")}


def units_with_growing_delay(place: Path) -> set[str]:
    return {path.parent.name.removesuffix(".d") for path in place.glob(f"{UNITS}/*.d/growing-delay.conf")}


# Install without dependencies: the program imports them from the tests' own environment.
WITHOUT_DEPENDENCIES = {
    "PIP_NO_DEPS": "1",
    "PIP_IGNORE_INSTALLED": "1",
    "PYTHONPATH": sysconfig.get_path("purelib"),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ".")
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_make_install_and_uninstall(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> None:
    """Install for a newer systemd, configure, install again for an older systemd, and uninstall."""
    place = tmp_path_factory.mktemp("place")
    # The second installation builds the wheel and installs all dependencies.
    make("install", place, SYSTEMD="254", WHEEL=str(wheel), **WITHOUT_DEPENDENCIES)
    assert units_with_growing_delay(place) == {"ews-listener.service", "ews-listener@.service"}
    config = place / "etc/ews-listener/config.toml"
    config.write_text("# mine\n")
    (place / "usr/lib/ews-listener/lib/stale").touch()

    make("install", place, SYSTEMD="252")
    assert config.read_text() == "# mine\n"
    assert not (place / "usr/lib/ews-listener/lib/stale").exists()
    assert run(place / "usr/bin/ews-listener", "--version").strip()
    check_that_demo_names_its_extra(place)
    assert {
        "usr/bin/ews-listener",
        f"{UNITS}/ews-listener.service",
        f"{UNITS}/ews-listener@.service",
        "usr/lib/sysusers.d/ews-listener.conf",
        "usr/share/man/man1/ews-listener.1.gz",
        "usr/share/doc/ews-listener/docs/INSTALLATION.md",
        "usr/share/ews-listener/drop-ins/credentials.conf",
    } <= files(place)
    # An older systemd would warn about its settings at every boot.
    assert units_with_growing_delay(place) == set()
    check_paths_in_installed_files(place)
    for shell in filter(shutil.which, SHELLS):
        check_completion(place, shell)

    (place / "usr/share/man/man1/other.1.gz").touch()
    make("uninstall", place)
    assert files(place) == {"etc/ews-listener/config.toml", "usr/share/man/man1/other.1.gz"}
    assert list(place.rglob("*ews-listener*")) == [config.parent]


def check_that_demo_names_its_extra(place: Path) -> None:
    """The daemon's environment has no simulator: packaging/install installs extras only if $EXTRAS names them."""
    demo = subprocess.run([place / "usr/bin/ews-listener", "demo"], capture_output=True, text=True)
    assert (demo.returncode, demo.stdout) == (2, "")
    assert "pip install 'ews-listener[demo]'" in demo.stderr


def check_paths_in_installed_files(place: Path) -> None:
    unit = place / UNITS / "ews-listener.service"
    command = f"{place}/usr/bin/ews-listener run --config {place}/etc/ews-listener/config.toml"
    assert f"ExecStart={command}\n" in unit.read_text()
    if shutil.which("systemd-analyze"):
        verified = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True
        )
        assert [line for line in verified.stderr.splitlines() if "ews-listener" in line] == []
    man = gzip.decompress((place / "usr/share/man/man1/ews-listener.1.gz").read_bytes()).decode()
    assert f"in {place}/usr/share/doc/" in man
    drop_in = place / "usr/share/ews-listener/drop-ins/credentials.conf"
    assert f"{place}/etc/ews-listener/password" in drop_in.read_text()


# Each script loads the installed completion file and prints the candidates for the word at the cursor.
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


def check_completion(place: Path, shell: str) -> None:
    file = place / "usr/share" / FILES[shell]
    run(shell, "-n", file)
    quiet = {"bash": "--norc", "zsh": "-f", "fish": "--no-config"}[shell]
    path = f"{place}/usr/bin:{os.environ['PATH']}"
    for words, wanted, unwanted in (
        ("dead-letters re", "retry", "replay"),
        ("check --c", "--connect", "--json"),
    ):
        candidates = run(shell, quiet, "-c", SHELLS[shell], FILE=str(file), WORDS=words, PATH=path)
        assert (shell, wanted in candidates, unwanted in candidates) == (shell, True, False)


def test_a_wheel_installs_only_the_command(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> None:
    """Install the wheel in its own environment, as pipx does: it contains no units and no files for the system."""
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
    run(*pip, "-c", "constraints.txt", wheel, **WITHOUT_DEPENDENCIES)
    command = environment / "bin/ews-listener"
    assert run(command, "--version", **WITHOUT_DEPENDENCIES).strip() in wheel.name
    assert "compdef" in run(command, _EWS_LISTENER_COMPLETE="source_zsh", **WITHOUT_DEPENDENCIES)
    assert not (environment / "share/ews-listener").exists()
    assert not list(environment.rglob("ews-listener.service"))
