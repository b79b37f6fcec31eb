"""Mailbox files: one address per line, and tables exported from Exchange and spreadsheets."""

import csv
import io
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.config.mailbox_file import ADDRESS_COLUMNS, FileError, MailboxReader
from listener.config.values import parse_address
from listener.errors import ConfigError
from tests.test_config import good, problems

READER = MailboxReader("PrimarySmtpAddress")
PEOPLE = ("alice@example.com", "jürgen@bücher.example")
EXPORTS = {
    "Export-Csv": '#TYPE Selected.Microsoft.Exchange\r\n"Name","PrimarySmtpAddress"\r\n"Alice, A.","Alice@example.com"\r\n'  # noqa: E501
    '"Jürgen","Jürgen@bücher.example"\r\n',
    "semicolons": "DisplayName;WindowsEmailAddress;Office\nA;alice@example.com;1\nJ;jürgen@bücher.example;2\n",
    "tabs": "Display name\tEmail Address\nA\talice@example.com\nJ\tjürgen@bücher.example\n",
    "Excel": 'sep=;\r\n"E-Mail";Name\r\nalice@example.com;A\r\n"jürgen@bücher.example";J\r\n',
    "one column": '"EmailAddress"\n"alice@example.com"\n"jürgen@bücher.example"\n',
    "prefixes": "Name,EmailAddresses\nA,smtp:a@example.com SMTP:alice@example.com\nJ,SMTP:jürgen@bücher.example\n",
    "blank lines, comments, repeats": "\n# from the portal\nUserPrincipalName,x\n\nalice@example.com,1\n#bob@example.com,2\n"  # noqa: E501
    ",\njürgen@bücher.example,3\nALICE@example.com,4\n",
    "cells of several lines": 'Notes,Mail\n"two\nlines, and # no comment",alice@example.com\n"#1",jürgen@bücher.example\n',  # noqa: E501
    "several columns": "EmailAddress,UserPrincipalName,PrimarySmtpAddress\nx@y.z,u@y.z,alice@example.com\n"
    "x@y.z,u@y.z,jürgen@bücher.example\n",
    "two exports in one": 'Mail,Name\nalice@example.com,A\n"Mail","Name"\njürgen@bücher.example,J\n',
    "old Mac": "Mail,Name\ralice@example.com,A\rjürgen@bücher.example,J\r",
    "plain": "# people\nalice@example.com # the boss\n\n  jürgen@bücher.example\n",
    "plain, with quotes and prefixes": '"alice@example.com"\nSMTP:jürgen@bücher.example\n',
}
ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16-le": b"\xff\xfe",
    "utf-16-be": b"\xfe\xff",
    "utf-32-le": b"\xff\xfe\0\0",
    "utf-32-be": b"\0\0\xfe\xff",
}


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_exports_are_read(export: str, encoding: str) -> None:
    content = ENCODINGS[encoding] + EXPORTS[export].encode(encoding)
    assert READER.addresses(content) == PEOPLE


def test_configured_files_use_the_same_parser(tmp_path: Path) -> None:
    content = b"\xff\xfe" + EXPORTS["semicolons"].encode("utf-16-le")
    (tmp_path / "m.csv").write_bytes(content)
    config = good(tmp_path, mailboxes={"file": "m.csv"})
    assert config.mailboxes.in_file == config.mailboxes.addresses == PEOPLE
    (tmp_path / "g.csv").write_bytes(EXPORTS["Excel"].encode("utf-8-sig"))
    groups = [{"ews_url": "https://a.example.com/EWS/Exchange.asmx", "mailboxes_file": "g.csv"}]
    assert good(tmp_path, groups=groups).groups[0].mailboxes == PEOPLE


LABELS = st.text(st.characters(categories=["Ll", "Nd"]), min_size=1, max_size=8)
DOMAINS = st.text(st.sampled_from("abcxyz019äöüéжпочта"), min_size=1, max_size=8)  # IDNA forbids many letters
ADDRESSES = st.builds(
    lambda local, domain: unicodedata.normalize("NFC", f"{local}@{domain}.example".lower()), LABELS, DOMAINS
)
CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0#"), max_size=12)
NAMES = st.sampled_from(ADDRESS_COLUMNS)


@given(
    st.lists(st.tuples(CELLS, ADDRESSES, CELLS), min_size=1, unique_by=lambda row: row[1]),
    NAMES,
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(sorted(ENCODINGS)),
)
def test_any_table_of_the_csv_module_is_read(
    rows: list[tuple[str, str, str]], name: str, delimiter: str, quoting: int, end: str, encoding: str
) -> None:
    if quoting == csv.QUOTE_MINIMAL:  # the writer leaves some ends of lines without quotes
        rows = [(" ".join(one.split()), address, " ".join(two.split())) for one, address, two in rows]
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end)  # type: ignore[arg-type]
    writer.writerow(("Display name", name, "Notes"))
    writer.writerows(rows)
    content = ENCODINGS[encoding] + file.getvalue().encode(encoding)
    assert READER.addresses(content) == tuple(address for _, address, _ in rows)


@given(st.binary(max_size=300))
def test_any_bytes_give_addresses_or_errors(content: bytes) -> None:
    try:
        found = READER.file(content)
    except FileError:
        return
    assert all(bool(line.address) != bool(line.error) for line in found.lines)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("Name;E-Mail\nJürgen;j@b.c\n".encode("cp1252"), "is not UTF-8 text (byte 0xfc in line 2); if it is Windows-1252 (ANSI), save the file as UTF-8"),  # noqa: E501
        ("alice@example.com\n".encode("utf-16-le"), "contains NUL bytes: UTF-16 without a byte order mark, or not text"),  # noqa: E501
        (b"\xff\xfea", "is not valid UTF-16-LE text"),
        (b'Name,Mail\nA,a@b.c\n"B,b@b.c\nC,c@b.c\n', "line 3: invalid quotes: unexpected end of data"),
    ],
)  # fmt: skip
def test_unreadable_file_is_rejected_as_a_whole(tmp_path: Path, content: bytes, error: str) -> None:
    with pytest.raises(FileError) as caught:
        READER.file(content)
    assert str(caught.value).startswith(error)
    (tmp_path / "m.csv").write_bytes(content)
    (problem,) = problems(tmp_path, mailboxes={"file": "m.csv"})
    assert problem.startswith(f"mailboxes.file: {tmp_path}/m.csv {error}")


@pytest.mark.parametrize(
    ("content", "errors"),
    [
        (
            "Name,Mail\nA,a@b.c\nB,\nC\nD,nobody\n",
            [
                'm.txt:3: column "Mail" is empty',
                'm.txt:4: column "Mail" is empty',
                'm.txt:5: "nobody" is not a valid email address',
            ],
        ),
        (
            "alice@example.com,Alice\n",
            [
                (
                    'm.txt:1: "alice@example.com,Alice" is not a valid email address; a table needs '
                    "a first line with column names, such as PrimarySmtpAddress, WindowsEmailAddress, EmailAddress"
                )
            ],
        ),
        (
            "Alias;Office\n",
            [
                (
                    'm.txt:1: "Alias;Office" is not a valid email address; the first line has no known '
                    "address column, such as PrimarySmtpAddress, WindowsEmailAddress, EmailAddress"
                )
            ],
        ),
    ],
)
def test_each_invalid_line_is_reported_with_its_reason(
    tmp_path: Path, content: str, errors: list[str]
) -> None:
    (tmp_path / "m.txt").write_text(content)
    assert problems(tmp_path, mailboxes={"file": "m.txt"}) == errors


def test_at_most_ten_errors_and_a_count_are_reported(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text("".join(f"no. {n}\n" for n in range(3000)))
    found = problems(tmp_path, mailboxes={"file": "m.txt", "addresses": [f"no. {n}" for n in range(11)]})
    in_list = [problem for problem in found if problem.startswith("mailboxes.")]
    in_file = [problem for problem in found if problem.startswith("m.txt")]
    assert in_list[-1] == "mailboxes.addresses: and 1 more entry"
    assert in_file[-1] == "m.txt: and 2,990 more lines"
    assert (len(in_list), len(in_file), len(found)) == (11, 11, 22)
    with pytest.raises(ValueError, match=r"line 10: .*; and 2,990 more lines$") as caught:
        READER.addresses((tmp_path / "m.txt").read_bytes())
    assert str(caught.value).count("; line ") == 9


def test_impersonate_by_selects_the_column() -> None:
    table = b"PrimarySmtpAddress,UserPrincipalName,Sid\na@b.c,u@b.c,S-1-5-21-1-2-3-500\n"
    assert MailboxReader("PrincipalName").addresses(table) == ("u@b.c",)
    assert MailboxReader("SmtpAddress").addresses(table) == ("a@b.c",)
    assert MailboxReader("SID").addresses(table) == ("S-1-5-21-1-2-3-500",)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("Jürgen.Groß@Example.COM", "jürgen.groß@example.com"),
        ("ju\u0308rgen@example.com", "jürgen@example.com"),
        ("анна@пошта.example", "анна@пошта.example"),
        ("\u00a0a@b.c\u00a0", "a@b.c"),
        ("o'brien+x@b.c", "o'brien+x@b.c"),
        ("svc@domain_x.local", "svc@domain_x.local"),
    ],
)
def test_addresses_of_any_script_are_valid(given: str, address: str) -> None:
    assert parse_address(given) == address


@pytest.mark.parametrize(
    "wrong",
    ["a\u200b@b.c", "a\x07@b.c", "a\u00a0b@b.c", "a@b..c", "a@.c", "a@b.c.", "a@", "@b", "a b@c.d", "a@b@c",
     "a\ud800@b.c", "a@b.c\u202e", f"{'a' * 600}@b.c"],
)  # fmt: skip
def test_invalid_addresses_are_rejected(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"invisible character U|is not a valid email") as caught:
        parse_address(wrong)
    assert len(str(caught.value)) < 200


@given(st.text(max_size=40))
def test_parsed_address_is_parsed_to_itself(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert parse_address(address) == address


def test_invisible_characters_are_reported_with_their_number(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text("a\u200bb@example.com\n", encoding="utf-8")
    assert problems(tmp_path, mailboxes={"file": "m.txt"}) == [
        'm.txt:1: "a\\u200bb@example.com" has the invisible character U+200B (ZERO WIDTH SPACE): remove it'
    ]


def test_invalid_address_raises_config_error(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text("nobody\n")
    with pytest.raises(ConfigError):
        good(tmp_path, mailboxes={"file": "m.txt"})
