"""The types of single values: durations, addresses, URLs, paths, folder names."""

import math
import re
import unicodedata
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo

from listener.filters import EVENT_NAMES
from listener.suggest import did_you_mean

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*")
_ADDRESS = re.compile(r"[^\s@<>\"(),:;\\\[\]]+@[^\s@<>\"(),:;\\\[\]]+", re.ASCII)
LONGEST_ADDRESS: Final = 571
"""Characters that Exchange allows in an SMTP address ("Recipient attributes", learn.microsoft.com)."""
_SID = re.compile(r"S-1(?:-\d+){1,15}")

DISTINGUISHED_FOLDERS: Final = frozenset(
    """
    calendar contacts deleteditems drafts inbox journal notes outbox sentitems tasks msgfolderroot
    publicfoldersroot root junkemail searchfolders voicemail recoverableitemsroot recoverableitemsdeletions
    recoverableitemsversions recoverableitemspurges recoverableitemsdiscoveryholds archiveroot
    archivemsgfolderroot archivedeleteditems archiveinbox archiverecoverableitemsroot
    archiverecoverableitemsdeletions archiverecoverableitemsversions archiverecoverableitemspurges
    archiverecoverableitemsdiscoveryholds syncissues conflicts localfailures serverfailures recipientcache
    quickcontacts conversationhistory adminauditlogs todosearch mycontacts directory imcontactlist
    peopleconnect favorites mecontact personmetadata teamspaceactivity teamspacemessaging teamspaceworkitems
    scheduled orionnotes tagitems alltaggeditems externalcontacts teamchat teamchathistory yammerroot
    yammerinbound yammeroutbound yammerfeeds onedriveroot onedriverecylebin onedrivesystem onedrivevolume
    important starred archive
    """.split()  # noqa: SIM905
)
"""`DistinguishedFolderIdNameType` of the EWS schema's types.xsd (one of the names is misspelt there)."""


@dataclass(frozen=True)
class Context:
    """What validation needs to know of the world: relative paths count from `directory`, which is absolute; `in_file`
    are the mailboxes that stand in the file of [mailboxes]."""

    directory: Path
    in_file: tuple[str, ...] = ()


def parse_duration(value: object) -> float:
    """Seconds from a number or from a text such as `45s`, `30m`, `2h`, `1d`. Raises ValueError."""
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        return float(match[1]) * _UNITS[match[2]]
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    raise ValueError('must be a number of seconds, or a text such as "45s", "30m", "2h", "1d"')


def format_duration(seconds: float) -> str:
    """The shortest text that `parse_duration` reads as these seconds."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % _UNITS[unit] == 0:
            return f"{seconds / _UNITS[unit]:.15g}{unit}"
    return f"{seconds:.15g}s"


def parse_address(value: str) -> str:
    """Return an SMTP address or user principal name in lower case and Unicode form NFC. Raises ValueError.

    The local part and the domain may have letters of any script (RFC 6531, RFC 5890).
    """
    address = fold_address(value)
    hidden = next((sign for sign in address if unicodedata.category(sign)[0] in "CZ" and sign != " "), None)
    if hidden is not None:
        shown = "".join(sign if sign.isprintable() else f"\\u{ord(sign):04x}" for sign in value.strip())
        name = unicodedata.name(hidden, "control character")
        raise ValueError(f'"{shown}" has the invisible character U+{ord(hidden):04X} ({name}): remove it')
    domain = address.rpartition("@")[2]
    if not _ADDRESS.fullmatch(address) or not all(domain.split(".")) or len(address) > LONGEST_ADDRESS:
        raise ValueError(f'"{_short(value)}" is no address of the form name@domain')
    return address


def fold_address(value: str) -> str:
    """The form in which addresses, and patterns of them, are compared."""
    return unicodedata.normalize("NFC", value.strip().lower())


def _short(value: str) -> str:
    return value if len(value) <= LONGEST_ADDRESS else f"{value[:40]}…"


def parse_sid(value: str) -> str:
    """A security identifier (MS-DTYP, `S-1-5-21-…`). Raises ValueError."""
    sid = value.strip().upper()
    if not _SID.fullmatch(sid):
        raise ValueError(f'"{value}" is no security identifier of the form S-1-5-21-…')
    return sid


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host) is not None


def _positive(seconds: float) -> float:
    if seconds == 0:
        raise ValueError("must be more than 0")
    return seconds


def _window(seconds: float) -> float:
    if seconds % 60 or not 60 <= seconds <= 1800:
        raise ValueError("must be whole minutes from 1m to 30m: Exchange takes no others")
    return seconds


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or re.search(r"\s", value):
        raise ValueError(f"must be a URL of the form https://host/path{_with_scheme(value)}")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user or a password: they belong in [auth]")
    return value


def _with_scheme(value: str) -> str:
    """What a URL without a scheme probably is meant to be."""
    if "@" in value or not re.fullmatch(r"(/{0,2})[\w.-]+\.[\w-]+(:\d+)?/\S+", value):
        return ""
    return f', did you mean "https://{value.lstrip("/")}"?'


def _https(value: str) -> str:
    if not _url(value).startswith("https://"):
        raise ValueError("must be a URL of the form https://host/path")
    return value


def _proxy(value: SecretStr) -> SecretStr:
    parts = urlsplit(value.get_secret_value())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL of the form http://host:port")
    return value


def _host_pattern(value: str) -> str:
    pattern = value.strip().lower()
    if not re.fullmatch(r"[a-z0-9*?.:-]+", pattern):
        raise ValueError('must be a host, without https:// and path, or a glob such as "*.outlook.com"')
    return pattern


def _host_port(value: str) -> str:
    try:
        parts = urlsplit(f"//{value}")
        good = parts.netloc == value and parts.hostname and parts.port and not parts.username
    except ValueError:
        good = False
    if not good:
        raise ValueError("must be of the form HOST:PORT, such as 127.0.0.1:9817")
    return value


def _header_text(value: str) -> str:
    if not (value.isascii() and value.isprintable() and value.strip()):
        raise ValueError("must be printable ASCII")
    return value


def _absolute(path: Path, info: ValidationInfo) -> Path:
    context: Context | None = info.context
    return (context.directory if context else Path.cwd()) / path


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return path


def _folder_name(value: str) -> str:
    name = value.lower()
    if name not in DISTINGUISHED_FOLDERS:
        hint = did_you_mean(value.replace(" ", ""), DISTINGUISHED_FOLDERS)
        accepted = "; accepted are distinguished folder names, such as inbox, calendar and sentitems"
        if _is_folder_id(value.strip()):
            raise ValueError(f'"{value[:80]}" is a folder id{accepted}')
        if re.search(r"[/\\*?]", value):
            raise ValueError(f'"{value[:80]}" is a folder path{accepted}')
        raise ValueError(f'there is no folder "{value[:80]}"{hint or accepted}')
    return name


SHORTEST_FOLDER_ID: Final = 16
"""Characters. Exchange's ids have 120: base64 of an entry id (MS-OXCDATA section 2.2) behind a mailbox's GUID."""


def parse_folder_id(value: str) -> str:
    """Return a folder id as EWS has it, or `*` for any. Raises ValueError for a name or a path."""
    text = value.strip()
    name = text.lower().replace(" ", "")
    if text == "*" or (name not in DISTINGUISHED_FOLDERS and _is_folder_id(text)):
        return text
    if name in DISTINGUISHED_FOLDERS:
        what = f'is a folder name; to receive events of this folder only, use [subscription] folders = ["{name}"]'
    elif any(sign in text for sign in "*?["):
        what = 'is a pattern; only "*" alone is one here'
    elif re.search(r"\s", text):
        what = "is a folder name or path, or an id with blanks or line breaks in it"
    elif text.startswith("/") or "\\" in text:
        what = "is a folder path"
    elif len(text) >= SHORTEST_FOLDER_ID and _is_folder_id(text.replace("-", "/").replace("_", "+")):
        what = 'is an id of Microsoft Graph; in that of EWS each "-" is a "/", and each "_" a "+"'
    else:
        what = f"cannot be a folder id{did_you_mean(text, DISTINGUISHED_FOLDERS)}"
    raise ValueError(
        f'"{text[:80]}" {what}. Accepted are folder ids of EWS, which differ in each mailbox: copy '
        "data.parent_folder_id from an event that a file handler wrote"
    )


def _is_folder_id(text: str) -> bool:
    word = text.isalpha() and len(text) < 2 * SHORTEST_FOLDER_ID
    if len(text) < SHORTEST_FOLDER_ID or word or text.startswith("/"):
        return False
    try:
        b64decode(text, validate=True)
    except ValueError:  # binascii.Error too
        return False
    return True


def _event_name(value: str) -> str:
    if value not in EVENT_NAMES:
        raise ValueError(f'there is no event "{value}"{did_you_mean(value, EVENT_NAMES)}')
    return value


def _no_repeats(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("must not name anything twice")
    return names


def _non_empty_text(value: Any) -> Any:
    if value == "":
        raise ValueError("must not be empty")
    return value


Text = Annotated[str, BeforeValidator(_non_empty_text)]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1)]
Duration = Annotated[float, BeforeValidator(parse_duration)]
PositiveDuration = Annotated[Duration, AfterValidator(_positive)]
Window = Annotated[Duration, AfterValidator(_window)]
Url = Annotated[str, AfterValidator(_url)]
HttpsUrl = Annotated[str, AfterValidator(_https)]
ProxyUrl = Annotated[SecretStr, AfterValidator(_proxy)]
HostPattern = Annotated[str, AfterValidator(_host_pattern)]
HostPort = Annotated[str, AfterValidator(_host_port)]
HeaderText = Annotated[str, AfterValidator(_header_text)]
ConfigPath = Annotated[Path, BeforeValidator(_non_empty_text), AfterValidator(_absolute)]
ExistingFile = Annotated[ConfigPath, AfterValidator(_existing)]
FolderName = Annotated[str, AfterValidator(_folder_name)]
FolderId = Annotated[str, BeforeValidator(_non_empty_text), AfterValidator(parse_folder_id)]
FolderNames = Annotated[tuple[FolderName, ...], Field(min_length=1), AfterValidator(_no_repeats)]
EventNames = Annotated[
    tuple[Annotated[str, AfterValidator(_event_name)], ...],
    Field(min_length=1),
    AfterValidator(_no_repeats),
]
