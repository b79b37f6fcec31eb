"""Secrets and their sources: the configuration, a file, a variable, a systemd credential or a command.

Every secret of the configuration is a `Secret`. The secret NAME is set by one of the keys `NAME`, `NAME_file`,
`NAME_env`, `NAME_credential` and `NAME_command`. No error text contains any part of a secret.
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

KEY_SUFFIXES: Final = ("", "_file", "_env", "_credential", "_command")
"""Suffixes of the keys that set a secret, one for each source."""
COMMAND_TIMEOUT: Final = 10.0
"""Seconds."""
NAMES: Final[Mapping[int | str, tuple[str, ...]]] = {
    "auth": ("password", "client_secret", "certificate_password"),
    "exchange": ("proxy_password", "client_key_password"),
    "status": ("token",),
}
"""The secrets of each table."""
_CREDENTIAL = re.compile(r"[A-Za-z0-9_.@:-]+")


class SecretError(ListenerError):
    """A secret cannot be read from its source."""


class Secret:
    """A secret text. Only `reveal()` returns it; `repr`, `str` and serialization do not show it."""

    __slots__ = ("_read", "_text")

    def __init__(self, text: str, read: Callable[[], str] | None = None) -> None:
        self._text = text
        self._read = read

    def reveal(self) -> str:
        """Return the secret as it was last read."""
        return self._text

    def renew(self) -> bool:
        """Read the secret again from its source, and return whether it changed. Blocks: call it in a thread.

        Raises SecretError; the secret then keeps its value.
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
        raise PydanticCustomError("string_type", "must be a string")
    if not value:
        raise ValueError("must not be empty")
    return Secret(value)


def is_secret(name: str) -> bool:
    """Return whether an option of this name is a secret."""
    return any(name in names for names in NAMES.values())


def secret_keys(name: str) -> list[str]:
    """Return the keys that can set the secret of this name."""
    return [name + suffix for suffix in KEY_SUFFIXES]


def list_keys(name: str) -> str:
    """Return the keys that can set the secret, as a list for an error text."""
    *first, last = secret_keys(name)
    return f"{', '.join(first)} and {last}"


class SecretSource:
    """Reads secrets. Relative paths count from `directory`."""

    def __init__(self, directory: Path, environ: Mapping[str, str]) -> None:
        self._directory = directory
        self._environ = environ

    def reader(self, suffix: str, value: object) -> Callable[[], str]:
        """Return a function that reads the secret. Both raise SecretError; this one if `value` is invalid."""
        if suffix == "_command":
            if not (isinstance(value, list) and value and all(isinstance(v, str) and v for v in value)):
                raise SecretError("must be an array of strings: the program and its arguments")
            return lambda: self._from_command(value)
        if not isinstance(value, str):
            raise SecretError("must be a path (string)" if suffix == "_file" else "must be a string")
        if not value:
            raise SecretError("must not be empty")
        match suffix:
            case "_file":
                return lambda: _from_file(self._directory / value)
            case "_env":
                return lambda: self._from_environment(value)
        return lambda: self._from_credential(value)

    def _from_environment(self, name: str) -> str:
        secret = self._environ.get(name)
        if secret is None:
            raise SecretError(f"environment variable {name} is not set")
        if not secret:
            raise SecretError(f"environment variable {name} is empty")
        return secret

    def _from_credential(self, name: str) -> str:
        """Read a file that systemd provides to this service (LoadCredential=, SetCredentialEncrypted=, …)."""
        directory = self._environ.get("CREDENTIALS_DIRECTORY")
        if not _CREDENTIAL.fullmatch(name) or name in (".", ".."):
            raise SecretError("must be the name of a systemd credential, without /")
        if not directory:
            raise SecretError(
                "$CREDENTIALS_DIRECTORY is not set; systemd sets it for a unit with LoadCredential="
            )
        return _from_file(Path(directory) / name)

    def _from_command(self, command: list[str]) -> str:
        program = command[0]
        found = self._directory / program if "/" in program else shutil.which(program)
        if found is None:
            raise SecretError(f"program not found: {program}")
        try:
            done = subprocess.run(
                [found, *command[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=COMMAND_TIMEOUT,
                cwd=self._directory,
                env=dict(self._environ),
                check=False,
            )
        except OSError as error:
            raise SecretError(f"cannot run {program}: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise SecretError(f"{program} did not finish within {COMMAND_TIMEOUT:g} s") from None
        if done.returncode:
            raise SecretError(f"{program} failed with exit code {done.returncode}; its output is not shown")
        return _one_line(done.stdout, program, "write")


def permission_problem(path: Path) -> str | None:
    """Return what is wrong with the mode of a file that contains a secret, None if nothing. Raises OSError."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        access = "readable" if mode & stat.S_IROTH else "writable"
        return f"file is world-{access} (mode {mode:04o}); run: chmod 600 {path}"
    return None


def _from_file(path: Path) -> str:
    try:
        if (problem := permission_problem(path)) is not None:
            raise SecretError(problem)
        content = path.read_bytes()
    except OSError as error:
        raise SecretError(f"cannot read {path}: {error.strerror}") from None
    return _one_line(content, str(path), "contain")


def _one_line(content: bytes, where: str, verb: str) -> str:
    try:
        secret = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise SecretError(f"{where} is not UTF-8 text") from None
    if not (secret and secret.isprintable()):
        raise SecretError(f"{where} must {verb} exactly one line of text: the secret")
    return secret
