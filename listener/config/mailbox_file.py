"""Read a file of mailboxes: one address a line, or a table as Exchange and spreadsheets export it.

A file is a table if its first line (after blank lines, comments, `#TYPE …` of Export-Csv and `sep=…` of spreadsheets)
names a column that is known to hold the address. The delimiter is a comma, a semicolon, a tab or `|`.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from typing import Final, NamedTuple

MOST_ERRORS: Final = 10
"""Errors of one file that are reported; the others are counted."""

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
"""Names of columns that hold an address; the first of them that the file has counts. Case, blanks and punctuation do
not count."""
NAME_COLUMNS: Final = ("UserPrincipalName", "UPN")
"""Those that are preferred where owners are named by user principal name."""
SID_COLUMNS: Final = ("SID", "ObjectSid", "SecurityIdentifier", "UserSid")
"""Those that hold a security identifier."""

_DELIMITERS: Final = (",", ";", "\t", "|")
_COMMENT = re.compile(r"(^|\s)#.*")
_SEPARATOR_LINE = re.compile(r"\s*\"?sep=(.)\"?\s*", re.IGNORECASE)
_PREFIX = re.compile(r"smtp:", re.IGNORECASE)
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark begins it
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAVE_AS_UTF8 = "save the file as UTF-8 (PowerShell: Export-Csv -Encoding utf8)"


class FileError(ValueError):
    """The file as a whole cannot be read. The text says why and what to do."""


class Line(NamedTuple):
    """What one line, or one row of a table, has: an address, or the reason why it has none."""

    number: int
    address: str = ""
    error: str = ""


class MailboxFile(NamedTuple):
    """All lines that are neither blank nor comments. In a table an address that repeats is left out."""

    lines: tuple[Line, ...]
    table: bool

    @property
    def addresses(self) -> tuple[str, ...]:
        """Each address once, in the order of the file."""
        return tuple(dict.fromkeys(line.address for line in self.lines if not line.error))

    @property
    def errors(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.error)


def read(
    content: bytes, parse: Callable[[str], str], columns: Sequence[str] = ADDRESS_COLUMNS
) -> MailboxFile:
    """Read the bytes of a file. `parse` makes an address of a text, or raises ValueError; `columns` are the names of
    the column with the address, the preferred ones first.

    Raises FileError if the encoding is not known, or a table cannot be split into rows.
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
    """The end of a list of errors of which `count` are not shown."""
    return f"and {count:,} more {line if count == 1 else lines}"


# --- bytes to text


def _decode(content: bytes) -> str:
    for mark, encoding in _BOMS:
        if content.startswith(mark):
            try:
                text = content[len(mark) :].decode(encoding)
            except UnicodeDecodeError:
                raise FileError(f"is damaged {encoding.upper()} text; {_SAVE_AS_UTF8}") from None
            break
    else:
        text = _without_mark(content)
    if "\0" in text:
        raise FileError(f"is not text: it has NUL characters; {_SAVE_AS_UTF8}")
    return text


def _without_mark(content: bytes) -> str:
    if b"\0" in content:
        raise FileError(f"has NUL bytes: UTF-16 without a byte order mark, or not text; {_SAVE_AS_UTF8}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        # Reading it as Windows-1252 would succeed with any bytes, and listen to addresses that nobody has.
        raise FileError(
            f"is not UTF-8 text (byte 0x{content[error.start]:02x} in line {line}); if it is Windows-1252 (ANSI), "
            f"{_SAVE_AS_UTF8}"
        ) from None


# --- one address a line


def _plain(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(StringIO(text, newline=""), 1):
        if value := _COMMENT.sub("", line).strip():
            yield number, _bare(value)


def _bare(value: str) -> str:
    """The address without quotes and prefix. `SMTP:` marks the primary one in Exchange's lists of addresses."""
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1].strip()
    return _PREFIX.sub("", value, count=1) if _PREFIX.match(value) else value


def _hint(value: str, text: str) -> str:
    """What to do about a line that looks like a row of a table."""
    if not any(delimiter in value for delimiter in _DELIMITERS):
        return ""
    known = ", ".join(ADDRESS_COLUMNS[:3])
    first = _first_line(text)
    if "@" in first:
        return f"; several values a line need a first line that names the columns, such as {known}"
    return f"; the first line names no column that is known to hold the address, such as {known}"


# --- a table


class _Header(NamedTuple):
    """The line with the names of columns."""

    number: int
    delimiter: str
    column: int
    name: str

    @classmethod
    def find(cls, text: str, columns: Sequence[str]) -> _Header | None:
        """The header of the text, None if it is no table."""
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
        """The address of each row, with the number of its first line."""
        for number, row in _rows(text, self.delimiter, strict=True):
            if number == self.number or not any(cell.strip() for cell in row):
                continue
            value = row[self.column].strip() if self.column < len(row) else ""
            if _plain_name(value) == _plain_name(self.name):
                continue  # the header again: two exports in one file
            if value:
                yield number, _primary(value)
            else:
                yield number, ValueError(f'nothing in column "{self.name}"')


def _primary(value: str) -> str:
    """The primary address of a cell that lists several: the one that is marked with capital letters."""
    several = re.split(r"[\s,;]+", value)
    marked = [each for each in several if each.startswith("SMTP:")]
    return _bare(marked[0] if len(several) > 1 and len(marked) == 1 else value)


def _rows(text: str, delimiter: str, *, strict: bool) -> Iterator[tuple[int, list[str]]]:
    """The rows with the numbers of their first lines; comments and `sep=…` between rows are left out. FileError: a
    quote is not closed, or something follows a closed one."""
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
            raise FileError(f"line {first}: is no row of a table with quotes: {error}") from None
        within = False
        yield first, row


def _first_line(text: str) -> str:
    lines = (line.strip() for line in StringIO(text, newline=""))
    return next((line for line in lines if line and not line.startswith("#")), "")


def _plain_name(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()
