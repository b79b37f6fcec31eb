"""Mailbox lists and mailbox files: one address per line, or a table exported from Exchange or a spreadsheet.

A file is a table if its first line (after blank lines, comments, `#TYPE …` of Export-Csv and `sep=…` of spreadsheets)
has the name of a known address column. The delimiter is a comma, a semicolon, a tab or `|`.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Final, NamedTuple

from listener.config.problems import Loc, Problems, dotted
from listener.config.values import parse_address, parse_sid

MAX_REPORTED_ERRORS: Final = 10
"""Errors reported for one list or file. Further errors are counted."""

ADDRESS_COLUMNS: Final = (
    "PrimarySmtpAddress",
    "WindowsEmailAddress",
    "EmailAddress",
    "Email Address",
    "E-mail Address",
    "E-Mail-Adresse",
    "E-Mail",
    "Mail",
    "SmtpAddress",
    "PrimaryEmail",
    "EmailAddresses",
    "ProxyAddresses",
    "UserPrincipalName",
    "UPN",
    "Mailbox",
    "Address",
)
"""Names of address columns, in order of preference. Case, blanks and punctuation are ignored."""
NAME_COLUMNS: Final = ("UserPrincipalName", "UPN")
"""Columns that are preferred with impersonate_by = "PrincipalName"."""
SID_COLUMNS: Final = ("SID", "ObjectSid", "SecurityIdentifier", "UserSid")
"""Names of columns with a security identifier."""

Table = dict[str, Any]
_DELIMITERS: Final = (",", ";", "\t", "|")
_COMMENT = re.compile(r"(^|\s)#.*")
_SEPARATOR_LINE = re.compile(r"\s*\"?sep=(.)\"?\s*", re.IGNORECASE)
_PREFIX = re.compile(r"smtp:", re.IGNORECASE)
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is a prefix of it
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAVE_AS_UTF8 = "save the file as UTF-8 (PowerShell: Export-Csv -Encoding utf8)"


class FileError(ValueError):
    """The file as a whole cannot be read. The text gives the reason and the remedy."""


class Line(NamedTuple):
    """The address on one line or table row, or the reason why there is none."""

    number: int
    address: str = ""
    error: str = ""


class MailboxFile(NamedTuple):
    """All lines except blank ones and comments. In a table, repeated addresses are left out."""

    lines: tuple[Line, ...]
    table: bool

    @property
    def addresses(self) -> tuple[str, ...]:
        """The distinct addresses, in the order of the file."""
        return tuple(dict.fromkeys(line.address for line in self.lines if not line.error))

    @property
    def errors(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.error)


def read(
    content: bytes, parse: Callable[[str], str], columns: Sequence[str] = ADDRESS_COLUMNS
) -> MailboxFile:
    """Read the bytes of a file.

    `parse` converts a text to an address, or raises ValueError. `columns` are the names of the address column in
    order of preference. Raises FileError if the encoding is unknown or a table cannot be split into rows.
    """
    text = _decode(content)
    header = _Header.find(text, columns)
    found: list[Line] = []
    seen: set[str] = set()
    for number, value in _plain(text) if header is None else header.cells(text):
        if isinstance(value, ValueError):
            found.append(Line(number, error=str(value)))
            continue
        try:
            address = parse(value)
        except ValueError as error:
            hint = _hint(value, text) if header is None else ""
            found.append(Line(number, error=f"{error}{hint}"))
            continue
        if header is None or address not in seen:
            seen.add(address)
            found.append(Line(number, address))
    return MailboxFile(tuple(found), table=header is not None)


def more_errors(count: int, line: str = "line", lines: str = "lines") -> str:
    """Return the last entry of an error list from which `count` errors are omitted."""
    return f"and {count:,} more {line if count == 1 else lines}"


# --- bytes to text


def _decode(content: bytes) -> str:
    for mark, encoding in _BOMS:
        if content.startswith(mark):
            try:
                text = content[len(mark) :].decode(encoding)
            except UnicodeDecodeError:
                raise FileError(f"is not valid {encoding.upper()} text; {_SAVE_AS_UTF8}") from None
            break
    else:
        text = _without_mark(content)
    if "\0" in text:
        raise FileError(f"is not text: it contains NUL characters; {_SAVE_AS_UTF8}")
    return text


def _without_mark(content: bytes) -> str:
    if b"\0" in content:
        raise FileError(f"contains NUL bytes: UTF-16 without a byte order mark, or not text; {_SAVE_AS_UTF8}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        # Any bytes are valid Windows-1252, so guessing it could subscribe to addresses that do not exist.
        raise FileError(
            f"is not UTF-8 text (byte 0x{content[error.start]:02x} in line {line}); if it is Windows-1252 (ANSI), "
            f"{_SAVE_AS_UTF8}"
        ) from None


# --- one address per line


def _plain(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(StringIO(text, newline=""), 1):
        if value := _COMMENT.sub("", line).strip():
            yield number, _bare(value)


def _bare(value: str) -> str:
    """Return the address without quotes and prefix. `SMTP:` marks the primary one in Exchange's address lists."""
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1].strip()
    return _PREFIX.sub("", value, count=1) if _PREFIX.match(value) else value


def _hint(value: str, text: str) -> str:
    """Return a hint for a line that looks like a table row, else an empty text."""
    if not any(delimiter in value for delimiter in _DELIMITERS):
        return ""
    known = ", ".join(ADDRESS_COLUMNS[:3])
    first = _first_line(text)
    if "@" in first:
        return f"; a table needs a first line with column names, such as {known}"
    return f"; the first line has no known address column, such as {known}"


# --- a table


class _Header(NamedTuple):
    """The line with the column names."""

    number: int
    delimiter: str
    column: int
    name: str

    @classmethod
    def find(cls, text: str, columns: Sequence[str]) -> _Header | None:
        """Return the header of the text, None if the text is not a table."""
        wanted = [_plain_name(name) for name in columns]
        best: tuple[int, _Header] | None = None
        for delimiter in _DELIMITERS:
            number, cells = next(_rows(text, delimiter, strict=False), (0, []))
            names = [_plain_name(cell) for cell in cells]
            found = next((name for name in wanted if name in names), None)
            if found is not None and (best is None or len(cells) > best[0]):
                at = names.index(found)
                best = len(cells), cls(number, delimiter, at, cells[at].strip())
        return best and best[1]

    def cells(self, text: str) -> Iterator[tuple[int, str | ValueError]]:
        """Yield the address of each row, with the number of the row's first line."""
        for number, row in _rows(text, self.delimiter, strict=True):
            if number == self.number or not any(cell.strip() for cell in row):
                continue
            value = row[self.column].strip() if self.column < len(row) else ""
            if _plain_name(value) == _plain_name(self.name):
                continue  # a repeated header: two exports in one file
            if value:
                yield number, _primary(value)
            else:
                yield number, ValueError(f'column "{self.name}" is empty')


def _primary(value: str) -> str:
    """Return the primary address of a cell with several addresses: the one with the prefix in capital letters."""
    several = re.split(r"[\s,;]+", value)
    marked = [each for each in several if each.startswith("SMTP:")]
    return _bare(marked[0] if len(several) > 1 and len(marked) == 1 else value)


def _rows(text: str, delimiter: str, *, strict: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows with the numbers of their first lines, without comments and `sep=…` lines between rows.

    Raises FileError if a quote is not closed, or is followed by something else than a delimiter.
    """
    number = first = 0
    within = False

    def lines() -> Iterator[str]:
        nonlocal number, first, within
        for line in StringIO(text, newline=""):
            number += 1
            if not within:
                first = number
                if line.startswith("#") or not line.strip() or _SEPARATOR_LINE.fullmatch(line):
                    continue
            within = True
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=strict, skipinitialspace=True)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if not strict:
                return
            raise FileError(f"line {first}: invalid quotes: {error}") from None
        within = False
        yield first, row


def _first_line(text: str) -> str:
    lines = (line.strip() for line in StringIO(text, newline=""))
    return next((line for line in lines if line and not line.startswith("#")), "")


def _plain_name(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


# --- lists and files of a configuration


def collect_mailboxes(document: Table, directory: Path, problems: Problems) -> tuple[str, ...]:
    """Normalize the address lists of a TOML document in place, with the addresses from their files.

    The lists are `mailboxes.addresses`, the `addresses` of its overrides and `groups[n].mailboxes`. Duplicates are
    problems, but [mailboxes] may repeat mailboxes of overrides and of static groups. Values of a wrong type are kept,
    because the model reports them. Returns the addresses from [mailboxes] file.
    """
    section = document.get("mailboxes")
    listed: Table = section if isinstance(section, dict) else {}
    reader = _reader_of(listed)
    seen: dict[str, str] = {}
    in_file = _merge(listed, ("mailboxes",), "addresses", "file", directory, reader, seen, problems)
    overrides = listed.get("overrides")
    overridden: dict[str, str] = {}
    for index, override in enumerate(overrides if isinstance(overrides, list) else ()):
        if isinstance(override, dict):
            override_loc = ("mailboxes", "overrides", index)
            _merge(
                override,
                override_loc,
                "addresses",
                "file",
                directory,
                _reader_of(override),
                overridden,
                problems,
            )
    groups = document.get("groups")
    grouped: dict[str, str] = {}
    for index, group in enumerate(groups if isinstance(groups, list) else ()):
        if not isinstance(group, dict):
            continue
        loc = ("groups", index)
        if ("mailboxes" in group) == ("mailboxes_file" in group):
            problems.add(loc, "requires exactly one of mailboxes and mailboxes_file")
        _merge(group, loc, "mailboxes", "mailboxes_file", directory, reader, grouped, problems)
    return in_file


def _reader_of(table: Table) -> MailboxReader:
    return MailboxReader(str(table.get("impersonate_by")))


class MailboxReader:
    """Parses mailbox identifiers according to `impersonate_by`: addresses or security identifiers."""

    def __init__(self, impersonate_by: str) -> None:
        by_sid = impersonate_by == "SID"
        self.parse = parse_sid if by_sid else parse_address
        self._columns = SID_COLUMNS if by_sid else ADDRESS_COLUMNS
        if impersonate_by == "PrincipalName":
            self._columns = (*NAME_COLUMNS, *self._columns)

    def file(self, content: bytes) -> MailboxFile:
        """Return the lines of the file, including invalid ones. Raises FileError."""
        return read(content, self.parse, self._columns)

    def addresses(self, content: bytes) -> tuple[str, ...]:
        """Return the distinct addresses in the file. Raises ValueError with the first errors."""
        found = self.file(content)
        if errors := found.errors:
            shown = [f"line {line.number}: {line.error}" for line in errors[:MAX_REPORTED_ERRORS]]
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
    """Set the list to the addresses of the list and of the file. Returns those of the file."""
    listed, file = table.get(list_key, []), table.get(file_key)
    if not (isinstance(listed, list) and all(isinstance(entry, str) for entry in listed)):
        return ()
    good: list[str] = []
    found = _Entries(seen, problems)
    for index, entry in enumerate(listed):
        entry_loc: Loc = (*loc, list_key, index)
        try:
            address = reader.parse(entry)
        except ValueError as error:
            found.reject(entry_loc, dotted(entry_loc), str(error))
        else:
            if found.add(entry_loc, dotted(entry_loc), address):
                good.append(address)
    found.report_omitted(dotted((*loc, list_key)), "entry", "entries")
    in_file = []
    if isinstance(file, str) and file:
        found = _Entries(seen, problems)
        for line in _read_lines(directory / file, (*loc, file_key), reader, problems):
            entry_loc, where = (*loc, file_key, line.number), f"{file}:{line.number}"
            if line.error:
                found.reject(entry_loc, where, line.error)
            elif found.add(entry_loc, where, line.address):
                in_file.append(line.address)
        found.report_omitted(file, "line", "lines")
    if good or in_file or list_key in table:
        table[list_key] = [*good, *in_file]
    return tuple(in_file)


class _Entries:
    """The entries of one list or file. Only the first errors are reported."""

    def __init__(self, seen: dict[str, str], problems: Problems) -> None:
        self._seen = seen
        self._problems = problems
        self._errors = 0
        self._last: Loc = ()

    def add(self, loc: Loc, where: str, address: str) -> bool:
        """Return whether the address is new. A duplicate is an error."""
        if address in self._seen:
            self.reject(loc, where, f'"{address}" is a duplicate of {self._seen[address]}')
            return False
        self._seen[address] = where
        return True

    def reject(self, loc: Loc, where: str, what: str) -> None:
        self._errors += 1
        self._last = loc
        if self._errors <= MAX_REPORTED_ERRORS:
            self._problems.add(loc, what, where)

    def report_omitted(self, where: str, entry: str, entries: str) -> None:
        if self._errors > MAX_REPORTED_ERRORS:
            what = more_errors(self._errors - MAX_REPORTED_ERRORS, entry, entries)
            self._problems.add(self._last, what, where)


def _read_lines(path: Path, loc: Loc, reader: MailboxReader, problems: Problems) -> tuple[Line, ...]:
    try:
        return reader.file(path.read_bytes()).lines
    except OSError as error:
        problems.add(loc, f"cannot read {path}: {error.strerror}")
    except FileError as error:
        problems.add(loc, f"{path} {error}")
    return ()
