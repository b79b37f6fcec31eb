"""Secrets, and where they come from: the configuration, a file, a variable, a systemd credential or a command.

Every secret of the configuration is a `Secret`, and `NAME` may be given in each of these ways: `NAME`, `NAME_file`,
`NAME_env`, `NAME_credential`, `NAME_command`. No text of a problem or an error holds anything of the secret.
"""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from listener.errors import ListenerError

SOURCES: Final = ("", "_file", "_env", "_credential", "_command")
"""What follows the name of a secret in the keys that tell it."""
COMMAND_PATIENCE: Final = 10.0
"""Seconds that a command may take."""
NAMES: Final[Mapping[int | str, tuple[str, ...]]] = {
    "auth": ("password", "client_secret", "certificate_password"),
    "exchange": ("proxy_password", "client_key_password"),
    "status": ("token",),
}
"""By the name of their table: the secrets that it may hold."""
_CREDENTIAL = re.compile(r"[A-Za-z0-9_.@:-]+")


class SecretError(ListenerError):
    """A secret cannot be had from where it should come."""


class Secret:
    """A secret text. `reveal()` is the only thing that shows it."""

    __slots__ = ("_read", "_text")

    def __init__(self, text: str, read: Callable[[], str] | None = None) -> None:
        self._text = text
        self._read = read

    def reveal(self) -> str:
        """The secret as it was last read."""
        return self._text

    def renew(self) -> bool:
        """Reads it again from where it came, and returns whether it has changed. Blocks: meant for a thread.

        Raises SecretError; the secret is then what it was.
        """
        before, self._text = self._text, self._text if self._read is None else self._read()
        return self._text != before

    def __repr__(self) -> str:
        return "Secret('***')"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            _secret, serialization=core_schema.plain_serializer_function_ser_schema(lambda _: "***")
        )


def _secret(value: object) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "must be a text")
    if not value:
        raise ValueError("must not be empty")
    return Secret(value)


def is_secret(name: str) -> bool:
    """Whether an option of this name is a secret."""
    return any(name in names for names in NAMES.values())


def sources(name: str) -> list[str]:
    """The keys that can tell the secret of this name."""
    return [name + source for source in SOURCES]


def listed(name: str) -> str:
    """Those keys for people."""
    *first, last = sources(name)
    return f"{', '.join(first)} and {last}"


class Source:
    """Where secrets come from: paths count from `directory`."""

    def __init__(self, directory: Path, environ: Mapping[str, str]) -> None:
        self._directory = directory
        self._environ = environ

    def reader(self, source: str, value: object) -> Callable[[], str]:
        """What reads the secret. It raises SecretError, as this does for a value of a wrong form."""
        if source == "_command":
            if not (isinstance(value, list) and value and all(isinstance(v, str) and v for v in value)):
                raise SecretError("must be a list of texts: the program and its arguments")
            return lambda: self._from_command(value)
        if not isinstance(value, str):
            raise SecretError("must be a path in quotes" if source == "_file" else "must be a text in quotes")
        if not value:
            raise SecretError("must not be empty")
        match source:
            case "_file":
                return lambda: _from_file(self._directory / value)
            case "_env":
                return lambda: self._from_environment(value)
        return lambda: self._from_credential(value)

    def _from_environment(self, name: str) -> str:
        secret = self._environ.get(name)
        if secret is None:
            raise SecretError(f"there is no environment variable {name}")
        if not secret:
            raise SecretError(f"the environment variable {name} is empty")
        return secret

    def _from_credential(self, name: str) -> str:
        """A file that systemd has made for this service (LoadCredential=, SetCredentialEncrypted= …)."""
        directory = self._environ.get("CREDENTIALS_DIRECTORY")
        if not _CREDENTIAL.fullmatch(name) or name in (".", ".."):
            raise SecretError("must be the name of a systemd credential, without any /")
        if not directory:
            raise SecretError(
                "there is no $CREDENTIALS_DIRECTORY: systemd sets it where the unit has LoadCredential="
            )
        return _from_file(Path(directory) / name)

    def _from_command(self, command: list[str]) -> str:
        program = command[0]
        found = self._directory / program if "/" in program else shutil.which(program)
        if found is None:
            raise SecretError(f"there is no program {program}")
        try:
            done = subprocess.run(
                [found, *command[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=COMMAND_PATIENCE,
                cwd=self._directory,
                env=dict(self._environ),
                check=False,
            )
        except OSError as error:
            raise SecretError(f"cannot run {program}: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise SecretError(f"{program} did not end within {COMMAND_PATIENCE:g} s") from None
        if done.returncode:
            raise SecretError(f"{program} ended with exit code {done.returncode}; what it said is not shown")
        return _one_line(done.stdout, program, "write")


def exposure(path: Path) -> str | None:
    """What is wrong with a file that holds a secret and that every user can get at. Raises OSError."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        return f"every user can get at {path} (its mode is {mode:04o}): chmod 0600 it"
    return None


def _from_file(path: Path) -> str:
    try:
        if (exposed := exposure(path)) is not None:
            raise SecretError(exposed)
        content = path.read_bytes()
    except OSError as error:
        raise SecretError(f"cannot read {path}: {error.strerror}") from None
    return _one_line(content, str(path), "hold")


def _one_line(content: bytes, where: str, verb: str) -> str:
    try:
        secret = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise SecretError(f"{where} is not UTF-8 text") from None
    if not (secret and secret.isprintable()):
        raise SecretError(f"{where} must {verb} one line of text, the secret")
    return secret
