"""What the configuration takes from elsewhere before it is checked: lists of mailboxes, and secrets.

Both work on the TOML document as it was read, because a problem with an address is told by its own place. Values
of a wrong type are left as they are: the model refuses them.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from listener.config.problems import Loc, Problems, dotted
from listener.config.secrets import NAMES, Secret, SecretError, Source, listed, sources
from listener.config.values import parse_address, parse_sid

Table = dict[str, Any]
_COMMENT = re.compile(r"(^|\s)#.*")


def collect_mailboxes(document: Table, directory: Path, problems: Problems) -> tuple[str, ...]:
    """Puts all addresses, lower-cased, from lists and from files, in `mailboxes.addresses`, in `addresses` of its
    overrides and in `groups[n].mailboxes`. A repeat is a problem, except that [mailboxes] may name those of overrides
    and members of static groups. Returns those that stand in the file of [mailboxes]."""
    section = document.get("mailboxes")
    listed: Table = section if isinstance(section, dict) else {}
    normalise = _reader_of(listed)
    seen: dict[str, str] = {}
    in_file = _merge(listed, ("mailboxes",), "addresses", "file", directory, normalise, seen, problems)
    overrides = listed.get("overrides")
    overridden: dict[str, str] = {}
    for index, override in enumerate(overrides if isinstance(overrides, list) else ()):
        if isinstance(override, dict):
            place = ("mailboxes", "overrides", index)
            _merge(
                override, place, "addresses", "file", directory, _reader_of(override), overridden, problems
            )
    groups = document.get("groups")
    grouped: dict[str, str] = {}
    for index, group in enumerate(groups if isinstance(groups, list) else ()):
        if not isinstance(group, dict):
            continue
        loc = ("groups", index)
        if ("mailboxes" in group) == ("mailboxes_file" in group):
            problems.add(loc, "needs one of mailboxes and mailboxes_file, and not both")
        _merge(group, loc, "mailboxes", "mailboxes_file", directory, normalise, grouped, problems)
    return in_file


def _reader_of(table: Table) -> Callable[[str], str]:
    """What makes a name of what stands in a list of mailboxes."""
    return parse_sid if table.get("impersonate_by") == "SID" else parse_address


def parse_list(text: str, normalise: Callable[[str], str] = parse_address) -> tuple[str, ...]:
    """The addresses of a file of mailboxes. ValueError: the first line that has none, by its number."""
    found = []
    for line, entry in _entries(text):
        try:
            found.append(normalise(entry))
        except ValueError as error:
            raise ValueError(f"line {line}: {error}") from None
    return tuple(dict.fromkeys(found))


def _merge(
    table: Table,
    loc: Loc,
    list_key: str,
    file_key: str,
    directory: Path,
    normalise: Callable[[str], str],
    seen: dict[str, str],
    problems: Problems,
) -> tuple[str, ...]:
    """Puts the addresses of the list and of the file in the list; returns those of the file."""
    listed, file = table.get(list_key, []), table.get(file_key)
    if not (isinstance(listed, list) and all(isinstance(entry, str) for entry in listed)):
        return ()
    places = [
        ((*loc, list_key, index), dotted((*loc, list_key, index)), entry)
        for index, entry in enumerate(listed)
    ]
    if isinstance(file, str) and file:
        text = _read(directory / file, (*loc, file_key), problems)
        places += [((*loc, file_key, line), f"{file}:{line}", entry) for line, entry in _entries(text)]
    good, in_file = [], []
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
            if entry_loc[-2] == file_key:
                in_file.append(address)
    if good or list_key in table:
        table[list_key] = good
    return tuple(in_file)


def _entries(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if entry := _COMMENT.sub("", line).strip():
            yield number, entry


def resolve_secrets(
    document: Table,
    directory: Path,
    environ: Mapping[str, str],
    problems: Problems,
    exposed: str | None = None,
) -> None:
    """Puts a `Secret` in place of the keys that tell where it comes from, wherever the document may have one.

    `exposed` is what is wrong with a secret in the document itself.
    """
    for loc, table in _tables(document):
        for name in NAMES[loc[-1]]:
            given = [key for key in sources(name) if key in table]
            if given == [name] and exposed is not None:
                problems.add((*loc, name), f"is a secret, and {exposed}, or give {name}_file")
            if given:
                _resolve(table, loc, name, given, Source(directory, environ), problems)


def _tables(document: Table) -> Iterator[tuple[Loc, Table]]:
    """Every table of the document that may hold secrets."""
    servers = document.get("servers")
    places: list[tuple[Loc, Any]] = [((name,), document.get(name)) for name in ("auth", "exchange", "status")]
    places += [
        (("servers", index, "auth"), server.get("auth"))
        for index, server in enumerate(servers if isinstance(servers, list) else ())
        if isinstance(server, dict)
    ]
    yield from ((loc, table) for loc, table in places if isinstance(table, dict))


def _resolve(table: Table, loc: Loc, name: str, given: list[str], source: Source, problems: Problems) -> None:
    values = {key: table.pop(key) for key in given}
    table[name] = Secret("-")  # the model shall not report a second time what is wrong here
    if len(given) > 1:
        problems.add((*loc, given[-1]), f"one of {listed(name)} may be given, not several")
        return
    ((key, value),) = values.items()
    if key == name:
        table[name] = value  # the model says what is wrong with it
        return
    try:
        read = source.reader(key.removeprefix(name), value)
        table[name] = Secret(read(), read)
    except SecretError as error:
        problems.add((*loc, key), str(error))


def _read(path: Path, loc: Loc, problems: Problems) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problems.add(loc, f"cannot read {path}: {error.strerror}")
    except UnicodeDecodeError:
        problems.add(loc, f"{path} is not UTF-8 text")
    return ""
