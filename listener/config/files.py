"""What the configuration takes from elsewhere before it is checked: lists of mailboxes, and secrets.

Both work on the TOML document as it was read, because a problem with an address is told by its own place. Values
of a wrong type are left as they are: the model refuses them.
"""

import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from listener.config.problems import Loc, Problems, dotted
from listener.config.values import parse_address, parse_sid

Table = dict[str, Any]
_COMMENT = re.compile(r"(^|\s)#.*")


def collect_mailboxes(document: Table, directory: Path, problems: Problems) -> None:
    """Put all addresses, lower-cased, from lists and from files, in `mailboxes.addresses` and
    `groups[n].mailboxes`. A repeat is a problem, except that [mailboxes] may name members of static groups."""
    section = document.get("mailboxes")
    listed: Table = section if isinstance(section, dict) else {}
    normalise = parse_sid if listed.get("impersonate_by") == "SID" else parse_address
    seen: dict[str, str] = {}
    _merge(listed, ("mailboxes",), "addresses", "file", directory, normalise, seen, problems)
    groups = document.get("groups")
    grouped: dict[str, str] = {}
    for index, group in enumerate(groups if isinstance(groups, list) else ()):
        if not isinstance(group, dict):
            continue
        loc = ("groups", index)
        if ("mailboxes" in group) == ("mailboxes_file" in group):
            problems.add(loc, "needs one of mailboxes and mailboxes_file, and not both")
        _merge(group, loc, "mailboxes", "mailboxes_file", directory, normalise, grouped, problems)


def _merge(
    table: Table,
    loc: Loc,
    list_key: str,
    file_key: str,
    directory: Path,
    normalise: Callable[[str], str],
    seen: dict[str, str],
    problems: Problems,
) -> None:
    listed, file = table.get(list_key, []), table.get(file_key)
    if not (isinstance(listed, list) and all(isinstance(entry, str) for entry in listed)):
        return
    places = [
        ((*loc, list_key, index), dotted((*loc, list_key, index)), entry)
        for index, entry in enumerate(listed)
    ]
    if isinstance(file, str) and file:
        text = _read(directory / file, (*loc, file_key), problems)
        places += [((*loc, file_key, line), f"{file}:{line}", entry) for line, entry in _entries(text)]
    good = []
    for entry_loc, where, entry in places:
        try:
            address = normalise(entry)
        except ValueError as error:
            problems.add(entry_loc, str(error), where)
            continue
        if address in seen:
            problems.add(entry_loc, f'"{address}" stands already at {seen[address]}', where)
        else:
            seen[address] = where
            good.append(address)
    if good or list_key in table:
        table[list_key] = good


def _entries(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if entry := _COMMENT.sub("", line).strip():
            yield number, entry


def resolve_secret(
    table: Table, loc: Loc, key: str, directory: Path, environ: Mapping[str, str], problems: Problems
) -> None:
    """Put the secret that `key`, `key_file` or `key_env` tells in `table[key]`. Exactly one of them must be given.

    A file must not be open to other users. No problem's text holds anything of the secret.
    """
    file_key, env_key = f"{key}_file", f"{key}_env"
    given = [name for name in (key, file_key, env_key) if name in table]
    if len(given) != 1:
        fault = "is required" if not given else "may be given, not several"
        problems.add((*loc, given[-1] if given else key), f"one of {key}, {file_key} and {env_key} {fault}")
        table.setdefault(key, "")  # the model shall not report it once more
        return
    source, value = given[0], table[given[0]]
    if source == file_key and isinstance(value, str) and value:
        secret = _read_secret(directory / value, (*loc, file_key), problems)
    elif source == env_key and isinstance(value, str) and value:
        secret = environ.get(value, "")
        if value not in environ:
            problems.add((*loc, env_key), f"there is no environment variable {value}")
        elif not secret:
            problems.add((*loc, env_key), f"the environment variable {value} is empty")
    else:
        if value == "" and source == key:
            problems.add((*loc, key), "must not be empty")
        table.setdefault(key, "")
        return
    table[key] = secret


def _read_secret(path: Path, loc: Loc, problems: Problems) -> str:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        problems.add(loc, f"cannot read {path}: {error.strerror}")
        return ""
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        problems.add(loc, f"every user can get at {path} (its mode is {mode:04o}): chmod 0600 it")
        return ""
    before = len(problems)
    secret = _read(path, loc, problems).strip()
    if len(problems) == before and not (secret and secret.isprintable()):
        problems.add(loc, f"{path} must hold one line of text, the secret")
    return secret


def _read(path: Path, loc: Loc, problems: Problems) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problems.add(loc, f"cannot read {path}: {error.strerror}")
    except UnicodeDecodeError:
        problems.add(loc, f"{path} is not UTF-8 text")
    return ""
