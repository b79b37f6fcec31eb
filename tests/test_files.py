"""The daemon's own files, in a directory where another user has placed links or FIFOs."""

import os
import socket
from pathlib import Path

import pytest

from listener import log
from listener.admin.server import unix_socket
from listener.errors import ConfigError
from listener.exchange.auth.lockout import Refusals, RefusalStore
from listener.files import open_own
from listener.journal.lock import lock_directory
from listener.journal.schema import open_database, open_existing

OTHER = 12345
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the daemon's user, which an attacker wants the daemon to overwrite."""
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    return path


@pytest.mark.parametrize("dangling", [False, True])
def test_lock_does_not_follow_links(state: Path, victim: Path, dangling: bool) -> None:
    target = state.parent / "new" if dangling else victim
    (state / "lock").symlink_to(target)
    with pytest.raises(ConfigError, match=r"lock: .*symbolic link"), lock_directory(state):
        pass
    assert victim.read_text() == "precious"
    assert not (state.parent / "new").exists()


def test_lock_must_be_a_regular_file(state: Path) -> None:
    os.mkfifo(state / "lock")
    with pytest.raises(ConfigError, match="not a regular file"), lock_directory(state):
        pass


@root
def test_lock_must_not_belong_to_another_user(state: Path) -> None:
    (state / "lock").touch()
    os.chown(state / "lock", OTHER, OTHER)
    with pytest.raises(ConfigError, match=f"another user .uid {OTHER}"), lock_directory(state):
        pass
    os.chown(state, OTHER, OTHER)  # root runs a command on the service's directory
    with lock_directory(state):
        pass


@pytest.mark.parametrize("name", ["journal.db", "journal.db-wal", "journal.db-shm", "journal.db-journal"])
def test_journal_does_not_follow_links(state: Path, victim: Path, name: str) -> None:
    if name != "journal.db":
        open_database(state).close()
        (state / name).unlink(missing_ok=True)
    (state / name).symlink_to(victim)
    for opening in (open_database, open_existing):
        with pytest.raises(ConfigError, match=r"symbolic link"):
            opening(state)
    assert victim.read_text() == "precious"


def test_state_directory_may_be_a_link(state: Path) -> None:
    link = state.parent / "link"
    link.symlink_to(state)
    with lock_directory(link):
        open_database(link).close()


@pytest.mark.parametrize("name", ["refusals.json", "refusals.new"])
def test_refusals_do_not_follow_links(state: Path, victim: Path, name: str) -> None:
    (state / name).symlink_to(victim)
    memory = RefusalStore(state / "refusals.json")
    refusals = Refusals(1, 1, 1.0, "c", "t")
    memory.save("a", "secret", refusals)
    assert victim.read_text() == "precious"
    assert RefusalStore(state / "refusals.json").load("a", "secret") == refusals
    assert (state / "refusals.json").stat().st_mode & 0o777 == 0o600


def test_refusals_fifo_does_not_block(state: Path) -> None:
    os.mkfifo(state / "refusals.json")
    assert RefusalStore(state / "refusals.json").load("a", "secret") is None


def test_socket_replaces_a_link_and_is_private(state: Path, victim: Path) -> None:
    for name in ("s.sock", "s.sock.new"):
        (state / name).symlink_to(victim)
    before = os.umask(0)
    try:
        with unix_socket(state / "s.sock"):
            assert (state / "s.sock").is_socket()
            assert (state / "s.sock").lstat().st_mode & 0o777 == 0o600
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(state / "s.sock"))
    finally:
        os.umask(before)
    assert victim.read_text() == "precious"
    assert victim.stat().st_mode & 0o777 != 0o000


def test_audit_log_follows_a_link_of_the_same_user(state: Path) -> None:
    (state / "audit").symlink_to(state.parent / "elsewhere")
    with log.open_audit(state / "audit") as logger:
        logger.info("audit.identity_used")
    assert (state.parent / "elsewhere").read_text().startswith("{")


@root
def test_audit_log_does_not_follow_links_of_another_user(state: Path, victim: Path) -> None:
    (state / "audit").symlink_to(victim)
    os.lchown(state / "audit", OTHER, OTHER)
    with pytest.raises(ConfigError, match="symbolic link of another user"), log.open_audit(state / "audit"):
        pass
    assert victim.read_text() == "precious"


def test_missing_file_raises_file_not_found(state: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_own(state / "no", os.O_RDONLY)
