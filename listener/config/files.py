"""What the configuration takes from elsewhere before it is checked: lists of mailboxes, and secrets.

Both work on the TOML document as it was read, because a problem with an address is told by its own place. Values
of a wrong type are left as they are: the model refuses them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from listener.config import mailbox_file
from listener.config.mailbox_file import MOST_ERRORS, FileError, MailboxFile, more_errors
from listener.config.problems import Loc, Problems, dotted
from listener.config.secrets import NAMES, Secret, SecretError, Source, listed, sources
from listener.config.values import parse_address, parse_sid

Table = dict[str, Any]


def collect_mailboxes(document: Table, directory: Path, problems: Problems) -> tuple[str, ...]:
    """Puts all addresses, lower-cased, from lists and from files, in `mailboxes.addresses`, in `addresses` of its
    overrides and in `groups[n].mailboxes`. A repeat is a problem, except that [mailboxes] may name those of overrides
    and members of static groups. Returns those that stand in the file of [mailboxes]."""
    section = document.get("mailboxes")
    listed: Table = section if isinstance(section, dict) else {}
    reader = _reader_of(listed)
    seen: dict[str, str] = {}
    in_file = _merge(listed, ("mailboxes",), "addresses", "file", directory, reader, seen, problems)
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
        _merge(group, loc, "mailboxes", "mailboxes_file", directory, reader, grouped, problems)
    return in_file


def _reader_of(table: Table) -> MailboxReader:
    return MailboxReader(str(table.get("impersonate_by")))


class MailboxReader:
    """Read names of mailboxes as `impersonate_by` has them: addresses, or security identifiers."""

    def __init__(self, impersonate_by: str) -> None:
        by_sid = impersonate_by == "SID"
        self.parse = parse_sid if by_sid else parse_address
        self._columns = mailbox_file.SID_COLUMNS if by_sid else mailbox_file.ADDRESS_COLUMNS
        if impersonate_by == "PrincipalName":
            self._columns = (*mailbox_file.NAME_COLUMNS, *self._columns)

    def file(self, content: bytes) -> MailboxFile:
        """Everything that the file has, errors included. Raises FileError."""
        return mailbox_file.read(content, self.parse, self._columns)

    def addresses(self, content: bytes) -> tuple[str, ...]:
        """The addresses in the file, each once. ValueError: the first errors by their lines, and how many more there
        are."""
        found = self.file(content)
        if errors := found.errors:
            shown = [f"line {line.number}: {line.error}" for line in errors[:MOST_ERRORS]]
            if more := len(errors) - len(shown):
                shown.append(more_errors(more))
            raise ValueError("; ".join(shown))
        return found.addresses


def _merge(
    table: Table,
    loc: Loc,
    list_key: str,
    file_key: str,
    directory: Path,
    reader: MailboxReader,
    seen: dict[str, str],
    problems: Problems,
) -> tuple[str, ...]:
    """Puts the addresses of the list and of the file in the list; returns those of the file."""
    listed, file = table.get(list_key, []), table.get(file_key)
    if not (isinstance(listed, list) and all(isinstance(entry, str) for entry in listed)):
        return ()
    good: list[str] = []
    found = _Entries(seen, problems)
    for index, entry in enumerate(listed):
        place: Loc = (*loc, list_key, index)
        try:
            address = reader.parse(entry)
        except ValueError as error:
            found.refuse(place, dotted(place), str(error))
        else:
            if found.take(place, dotted(place), address):
                good.append(address)
    found.count_the_rest(dotted((*loc, list_key)), "entry", "entries")
    in_file = []
    if isinstance(file, str) and file:
        found = _Entries(seen, problems)
        for line in _read(directory / file, (*loc, file_key), reader, problems):
            place, where = (*loc, file_key, line.number), f"{file}:{line.number}"
            if line.error:
                found.refuse(place, where, line.error)
            elif found.take(place, where, line.address):
                in_file.append(line.address)
        found.count_the_rest(file, "line", "lines")
    if good or in_file or list_key in table:
        table[list_key] = [*good, *in_file]
    return tuple(in_file)


class _Entries:
    """The entries of one list or file, of which only the first errors are reported."""

    def __init__(self, seen: dict[str, str], problems: Problems) -> None:
        self._seen = seen
        self._problems = problems
        self._errors = 0
        self._last: Loc = ()

    def take(self, loc: Loc, where: str, address: str) -> bool:
        """Whether the address is a new one; a repeat is an error."""
        if address in self._seen:
            self.refuse(loc, where, f'"{address}" stands already at {self._seen[address]}')
            return False
        self._seen[address] = where
        return True

    def refuse(self, loc: Loc, where: str, what: str) -> None:
        self._errors += 1
        self._last = loc
        if self._errors <= MOST_ERRORS:
            self._problems.add(loc, what, where)

    def count_the_rest(self, where: str, entry: str, entries: str) -> None:
        if self._errors > MOST_ERRORS:
            what = more_errors(self._errors - MOST_ERRORS, entry, entries)
            self._problems.add(self._last, what, where)


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


def _read(path: Path, loc: Loc, reader: MailboxReader, problems: Problems) -> tuple[mailbox_file.Line, ...]:
    try:
        return reader.file(path.read_bytes()).lines
    except OSError as error:
        problems.add(loc, f"cannot read {path}: {error.strerror}")
    except FileError as error:
        problems.add(loc, f"{path} {error}")
    return ()
