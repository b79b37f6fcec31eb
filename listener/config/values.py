"""Base class of the sections, and the types of single values: durations, addresses, URLs, paths, folder names."""

import math
import re
from base64 import b64decode
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo

from listener.ews import urls
from listener.ews.addresses import fold_address as fold_address
from listener.ews.addresses import parse_address as parse_address
from listener.ews.urls import UrlError, parse_proxy_url, parse_url
from listener.filters import EVENT_NAMES
from listener.suggest import did_you_mean

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"\s*([0-9]{1,12}(?:\.[0-9]+)?)\s*([smhd])\s*")
_SID = re.compile(r"S-1(?:-[0-9]+){1,15}")

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
"""`DistinguishedFolderIdNameType` of the EWS schema's types.xsd (the schema misspells one of the names)."""


class Section(BaseModel):
    """A frozen model that rejects unknown keys and keeps values out of its errors, because they may be secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)


@dataclass(frozen=True)
class Context:
    """Input of the validation: the absolute `directory` for relative paths, and the mailboxes of [mailboxes] file."""

    directory: Path
    in_file: tuple[str, ...] = ()


def parse_duration(value: object) -> float:
    """Return seconds for a number or a string such as `45s`, `30m`, `2h`, `1d`. Raises ValueError."""
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        return float(match[1]) * _UNITS[match[2]]
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    raise ValueError('must be a number of seconds or a string such as "45s", "30m", "2h", "1d"')


def parse_initial(value: object) -> float | datetime | None:
    """Return the start of a backfill: None for `none`, seconds for a duration, a datetime for a date or date-time.

    A date or date-time without an offset is UTC. Raises ValueError.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
        return None
    if isinstance(value, str):
        with suppress(ValueError):
            value = datetime.fromisoformat(value.strip())
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    try:
        return parse_duration(value) or None
    except ValueError:
        raise ValueError(
            'must be "none", a duration such as "7d", or a date or date-time such as 2026-03-01'
        ) from None


def format_duration(seconds: float) -> str:
    """Return the shortest text that `parse_duration` reads as these seconds."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % _UNITS[unit] == 0:
            return f"{seconds / _UNITS[unit]:.15g}{unit}"
    return f"{seconds:.15g}s"


def parse_sid(value: str) -> str:
    """Return a security identifier (MS-DTYP, `S-1-5-21-…`) in upper case. Raises ValueError."""
    sid = value.strip().upper()
    if not _SID.fullmatch(sid):
        raise ValueError(f'"{value}" is not a valid security identifier (S-1-5-21-…)')
    return sid


def is_loopback(url: str) -> bool:
    """Return whether the host of a URL, or of //HOST:PORT, is a loopback address."""
    return urls.is_loopback(urls.host_of(f"http:{url}" if url.startswith("//") else url))


def _positive(seconds: float) -> float:
    if seconds == 0:
        raise ValueError("must be more than 0")
    return seconds


def _window(seconds: float) -> float:
    if seconds % 60 or not 60 <= seconds <= 1800:
        raise ValueError("must be whole minutes from 1m to 30m, as Exchange requires")
    return seconds


def _url(value: str) -> str:
    try:
        return parse_url(value).text
    except UrlError:
        try:
            parse_proxy_url(value)
        except UrlError:
            raise ValueError(f"must be a URL of the form https://host/path{_with_scheme(value)}") from None
        raise ValueError("must not contain a user or a password; set them in [auth]") from None


def _with_scheme(value: str) -> str:
    """Return a suggestion for a URL without a scheme, else an empty text."""
    if "@" in value or not re.fullmatch(r"(/{0,2})[\w.-]+\.[\w-]+(:\d+)?/\S+", value):
        return ""
    return f', did you mean "https://{value.lstrip("/")}"?'


def _https(value: str) -> str:
    url = _url(value)
    if not url.startswith("https://"):
        raise ValueError("must be a URL of the form https://host/path")
    return url


def _proxy(value: SecretStr) -> SecretStr:
    try:
        parse_proxy_url(value.get_secret_value())
    except UrlError:  # not chained: its text may contain the password
        raise ValueError("must be a URL of the form http://host:port") from None
    return value


def _host_pattern(value: str) -> str:
    pattern = value.strip().lower()
    if not re.fullmatch(r"[a-z0-9*?.:-]+", pattern):
        raise ValueError('must be a hostname without https:// and path, or a glob such as "*.outlook.com"')
    return pattern


def _host_port(value: str) -> str:
    try:
        parts = parse_url(f"http://{value}")
    except UrlError:
        parts = None
    if parts is None or parts.path or not re.search(r":[0-9]+$", value):
        raise ValueError("must have the form HOST:PORT, such as 127.0.0.1:9817")
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
        raise ValueError(f"file not found: {path}")
    return path


def _folder_name(value: str) -> str:
    name = value.lower()
    if name not in DISTINGUISHED_FOLDERS:
        hint = did_you_mean(value.replace(" ", ""), DISTINGUISHED_FOLDERS)
        accepted = "; use a distinguished folder name, such as inbox, calendar or sentitems"
        if _is_folder_id(value.strip()):
            raise ValueError(f'"{value[:80]}" is a folder id{accepted}')
        if re.search(r"[/\\*?]", value):
            raise ValueError(f'"{value[:80]}" is a folder path{accepted}')
        raise ValueError(f'unknown folder "{value[:80]}"{hint or accepted}')
    return name


MIN_FOLDER_ID_LENGTH: Final = 16
"""Characters. Exchange's ids have 120: base64 of a mailbox GUID and an entry id (MS-OXCDATA section 2.2)."""


def parse_folder_id(value: str) -> str:
    """Return an EWS folder id, or `*` for any folder. Raises ValueError for a name or a path."""
    text = value.strip()
    name = text.lower().replace(" ", "")
    if text == "*" or (name not in DISTINGUISHED_FOLDERS and _is_folder_id(text)):
        return text
    if name in DISTINGUISHED_FOLDERS:
        what = f'is a folder name; to receive events of this folder only, use [subscription] folders = ["{name}"]'
    elif any(sign in text for sign in "*?["):
        what = 'is a pattern; the only supported pattern is "*"'
    elif re.search(r"\s", text):
        what = "is a folder name, a path, or an id with blanks or line breaks"
    elif text.startswith("/") or "\\" in text:
        what = "is a folder path"
    elif len(text) >= MIN_FOLDER_ID_LENGTH and _is_folder_id(text.replace("-", "/").replace("_", "+")):
        what = 'is a Microsoft Graph id; for EWS, replace each "-" by "/" and each "_" by "+"'
    else:
        what = f"cannot be a folder id{did_you_mean(text, DISTINGUISHED_FOLDERS)}"
    raise ValueError(
        f'"{text[:80]}" {what}. Use an EWS folder id, which differs in each mailbox: copy '
        "data.parent_folder_id from an event that a file handler wrote"
    )


def _is_folder_id(text: str) -> bool:
    word = text.isalpha() and len(text) < 2 * MIN_FOLDER_ID_LENGTH
    if len(text) < MIN_FOLDER_ID_LENGTH or word or text.startswith("/"):
        return False
    try:
        b64decode(text, validate=True)
    except ValueError:  # includes binascii.Error
        return False
    return True


def _event_name(value: str) -> str:
    if value not in EVENT_NAMES:
        raise ValueError(f'unknown event "{value}"{did_you_mean(value, EVENT_NAMES)}')
    return value


def _no_repeats(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("must not contain duplicates")
    return names


def _non_empty_text(value: Any) -> Any:
    if value == "":
        raise ValueError("must not be empty")
    return value


Text = Annotated[str, BeforeValidator(_non_empty_text)]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1)]
Initial = Annotated[float | datetime | None, BeforeValidator(parse_initial)]
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
