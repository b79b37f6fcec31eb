"""The systemd units are valid and hardened."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
UNITS = ROOT / "systemd"
MAX_EXPOSURE = 1.5
NAMES = ["ews-listener.service", "ews-listener@.service"]

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def installed(folder: Path, unit: str, *drop_ins: str) -> Path:
    """Write the unit into a new directory, with an existing command and these drop-ins."""
    text = (UNITS / unit).read_text().replace("/usr/bin/ews-listener", "/bin/true")
    name = unit.replace("@.", "@office.")
    (folder / f"{name}.d").mkdir(parents=True)
    for drop_in in drop_ins:
        shutil.copy(UNITS / "drop-ins" / drop_in, folder / f"{name}.d")
    (folder / name).write_text(text)
    return folder / name


def analyze(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)


def version() -> int:
    found = re.search(r"systemd (\d+)", analyze("--version").stdout)
    assert found is not None
    return int(found[1])


@needs_systemd
@pytest.mark.parametrize("unit", NAMES)
@pytest.mark.parametrize("drop_in", [None, "credentials.conf", "commands.conf", "growing-delay.conf"])
def test_systemd_accepts_the_unit(tmp_path: Path, unit: str, drop_in: str | None) -> None:
    path = installed(tmp_path, unit, *([drop_in] if drop_in else []))
    result = analyze("verify", "--man=no", str(path))
    lines = [line for line in result.stderr.splitlines() if str(tmp_path) in line or path.name in line]
    if drop_in == "growing-delay.conf" and version() < 254:
        unknown = re.findall(r"Unknown key (?:name )?'(\w+)'", result.stderr)
        assert sorted(unknown) == [
            "RestartMaxDelaySec",
            "RestartSteps",
        ]  # the reason why they are in a drop-in
        lines = [line for line in lines if "Unknown key" not in line]
    assert (result.returncode, lines) == (0, [])


@needs_systemd
@pytest.mark.parametrize("unit", NAMES)
def test_exposure_level_is_low(tmp_path: Path, unit: str) -> None:
    result = analyze("security", "--offline=true", "--no-pager", str(installed(tmp_path, unit)))
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", result.stdout)
    assert found is not None, result.stderr
    assert float(found[1]) <= MAX_EXPOSURE


def test_template_unit_matches_the_single_unit() -> None:
    single, template = ((UNITS / name).read_text() for name in NAMES)
    expected = single.replace("notifications)", "notifications), instance %i")
    expected = expected.replace("config.toml", "%i.toml")
    expected = re.sub(r"# The account of .*", "# An account of its own …", expected)
    expected = re.sub(
        r"^(User|StateDirectory|WorkingDirectory)=(\S+)$",
        r"\1=\2-%i",
        expected,
        flags=re.MULTILINE,
    )
    assert (
        re.sub(r"# Each instance has its own account, .*", "# An account of its own …", template) == expected
    )
