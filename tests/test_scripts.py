"""The shell scripts are sound."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = [
    ".ci/run", "packaging/install", "packaging/deb/build", "packaging/deb/postinst", "packaging/deb/prerm",
    "packaging/deb/postrm", "tests/system/machine/boot.sh",
]  # fmt: skip


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    told = subprocess.run(["shellcheck", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout


def test_every_script_is_looked_at() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a clone with git")
    found = [
        name
        for name in listed.stdout.splitlines()
        if (ROOT / name).is_file()
        and (ROOT / name).read_bytes()[:20].startswith((b"#!/bin/", b"#!/usr/bin/env bash"))
    ]
    assert sorted(found) == sorted(SCRIPTS)
