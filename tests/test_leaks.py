"""The plugin that searches for secrets: run tests that leak one, and check that it finds each."""

import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest

from listener.simulator.settings import Settings
from tests import leaks

ROOT = Path(__file__).parent.parent
SECRET = Settings().password
CHILD = "subprocess.run([sys.executable, '-c', 'import sys; print(sys.argv[1][::-1])', secret[::-1]], {})"
LEAKS = {
    "print": "print('password:', secret)",
    "log": "structlog.get_logger().info('x', user='svc', text=f'user:{secret}')",
    "warning": "sys.stderr.write(b64encode(f'svc:{secret}'.encode()).decode())",
    "child": CHILD.format("stdout=subprocess.PIPE, check=True"),
    "file": "(tmp_path / 'log.jsonl').write_text(secret)",
    "state": "(tmp_path / 'journal.db').write_bytes(b'x' + secret.encode())",
    "token": "print('Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.sig')",
    "none": "(tmp_path / 'listener.toml').write_text(secret); print('***')",
}


def test_secrets_are_found_in_every_output(tmp_path: Path) -> None:
    folder = tmp_path / "system"
    folder.mkdir()
    imports = (
        "import subprocess, sys, structlog\nfrom base64 import b64encode\n"
        "from listener.simulator.settings import Settings\n"
    )
    body = "".join(
        f"def test_{name}(tmp_path):\n    secret = Settings().password\n    {code}\n"
        for name, code in LEAKS.items()
    )
    (folder / "test_leaking.py").write_text(imports + body)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.leaks",
        "-p",
        "no:cacheprovider",
        "-rA",
        "-c",
    ]
    done = subprocess.run(
        [*command, "/dev/null", f"--rootdir={folder}", str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR ")]
    seen = {name for name in LEAKS if any(f"::test_{name}" in line for line in errors)}
    assert seen == set(LEAKS) - {"none"}
    leaks._found.clear()  # this process captured the output of the leaking tests too


@pytest.mark.parametrize("user", ["a", "ab", "abc", "svc-listener@contoso.example"])
def test_basic_auth_headers_are_found(user: str) -> None:
    assert leaks.leaks(b64encode(f"{user}:{SECRET}".encode()))
    assert not leaks.leaks(b64encode(f"{user}:something-else".encode()))
