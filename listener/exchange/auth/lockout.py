"""Sees to it that an account is not locked by us, however many groups ask in its name.

The rules:

1. A server that took the credentials lately may be asked by all at once.
2. Else one request at a time tries, and the others wait for what comes of it: so a password that was changed during
   an outage is sent once, not once a group.
3. After MOST_TRIES refusals in a row nothing is asked of any server in the account's name, for a time that grows.
   What is refused before that may be a passing illness of the server: the second try comes soon, the third later.
4. All this outlives the process (memory.py), and ends where another password is configured.
5. Whoever is held back is told the refusal again, and how long it lasts.
6. Only who answers as Exchange has heard the credentials: the web site of a mail domain takes anybody.
7. A refusal may be about one mailbox only. Where the server has accepted the account for others, one of these
   is asked for at once (`confirm`), while all other requests wait. If that is accepted, the refusal concerns the
   mailbox, does not count as a try, and becomes MailboxRefused. If it is refused too, both count.


Refusals outlive the process: a daemon that is restarted over and over, or a check that is repeated, must not lock
the account either.

What is kept is how often and until when, by account, in a file of the state directory. A password that was changed
since may be tried at once, so its scrypt hash (RFC 7914) is kept beside it, salted, for comparison.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import structlog
import trio
from msgspec.structs import replace

from listener.errors import ExchangeError
from listener.ews.codes import Failure, Verdict
from listener.ews.soap import Impersonation
from listener.ews.urls import server_of
from listener.files import open_own

log = structlog.get_logger()

TRUST = 60.0
"""Seconds for which it counts that a server took the credentials."""
MAX_ATTEMPTS = 3
PAUSES = (0.0, 60.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0)
"""Seconds until the next try after so many refusals. Domains forget bad tries after 10 to 30 minutes, as a rule."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Whose mailbox a request is about: whom it impersonates, or whose folders it names, and by which X-AnchorMailbox
    it is routed."""

    impersonate: Impersonation | None = None
    owner: str | None = None
    anchor: str = ""

    @property
    def mailbox(self) -> str:
        """The mailbox as the request names it; empty for the account's own."""
        return self.owner or ("" if self.impersonate is None else self.impersonate.value)


Confirm = Callable[[Identity], Awaitable[None]]
"""Makes a request about a mailbox that the server has accepted the account for. Raises ExchangeError."""


class LockoutProtection:
    """Admits the requests of one account. What it admits is to be sent at once."""

    def __init__(self, account: str, secret: Callable[[], str | None] = lambda: None) -> None:
        self._account = account
        self._secret = secret
        self._memory: RefusalStore | None = None
        self._trusted: dict[str, float] = {}  # by host, until when
        self._refusals: dict[str, tuple[float, Failure]] = {}  # by host, until when and why
        self._attempts = 0
        self._level = 0
        self._probe: _Probe | None = None
        self._good: dict[
            str, dict[str, tuple[Identity, float]]
        ] = {}  # by host and mailbox: accepted, and asked when
        self._confirming = trio.Lock()

    @property
    def attempts(self) -> int:
        """Refusals since the credentials were last accepted."""
        return self._attempts

    def remember(self, memory: RefusalStore) -> None:
        """Goes on from what an earlier process left, and leaves it to a later one. Only passwords are remembered:
        nothing else is locked by trying."""
        self._memory = memory
        secret = self._secret()
        told = None if secret is None else memory.recall(self._account, secret)
        if told is not None:
            left = min(told.until - time.time(), PAUSES[-1])
            self._attempts, self._level = told.attempts, told.level
            self._refusals[EARLIER] = trio.current_time() + left, Failure(code=told.code, text=told.text)

    def _note(self, refusals: Refusals | None) -> None:
        secret = self._secret()
        if self._memory is not None and secret is not None:
            self._memory.note(self._account, secret, refusals)

    @asynccontextmanager
    async def asking(
        self, url: str, identity: Identity | None = None, confirm: Confirm | None = None
    ) -> AsyncIterator[None]:
        """Around each request. Raises ExchangeError instead of asking where that would be one refusal too many, and
        tells with a refusal how long to wait. `identity` and `confirm` are those of requests about a mailbox."""
        host = server_of(url)
        probe = await self._admit(host)
        asked = trio.current_time()
        try:
            yield
        except ExchangeError as error:
            failure = error.failure
            if failure.code in OF_MAILBOX and identity is not None and confirm is not None:
                if self._probe is None:
                    probe = self._probe = _Probe(host)  # the others wait for what comes of it
                if await self._is_about_mailbox(host, identity, asked, confirm):
                    raise ExchangeError(self._mailbox_refused(host, identity, failure)) from error
            if failure.verdict is Verdict.CREDENTIALS:
                raise ExchangeError(self._refused(host, failure)) from error
            if probe is not None and failure.code in UNREACHABLE:
                probe.failure = failure
            if failure.code.startswith("Error") and failure.status != UNAUTHORIZED:
                self._accepted(host, identity, asked)  # whoever is told so much has been let in
            raise
        else:
            self._accepted(host, identity, asked)
        finally:
            if probe is not None:
                self._probe = None
                probe.over.set()

    async def _is_about_mailbox(self, host: str, identity: Identity, asked: float, confirm: Confirm) -> bool:
        """Whether the server accepts the account for another mailbox, in a request made after this one."""
        self._trusted.pop(host, None)
        async with self._confirming:
            others = [
                good for good in self._good.get(host, {}).values() if good[0].mailbox != identity.mailbox
            ]
            if not others:
                return False
            other, when = max(others, key=lambda good: good[1])
            if when > asked:
                return True
            if self._attempts >= MAX_ATTEMPTS:
                return False
            again = trio.current_time()
            try:
                await confirm(other)
            except ExchangeError as error:
                failure = error.failure
                if failure.code in OF_MAILBOX:
                    self._good[host].pop(other.mailbox, None)
                    self._refused(host, failure)
                    return False
                if not failure.code.startswith("Error"):
                    return False  # nobody has said anything about the credentials
            self._accepted(host, other, again)
            return True

    def _mailbox_refused(self, host: str, identity: Identity, failure: Failure) -> Failure:
        log.warning(
            "auth.mailbox_refused",
            account=self._account,
            server=host,
            mailbox=identity.mailbox,
            code=failure.code,
            text=failure.text,
        )
        text = f"the server refuses {self._account} for this mailbox, and accepts it for others"
        return Failure(code="MailboxRefused", text=f"{text}: {failure}", status=failure.status)

    async def _admit(self, host: str) -> _Probe | None:
        """Waits for one's turn. The probe, if this request is one."""
        while True:
            self._hold_back(host)
            if self._trusted.get(host, 0.0) > trio.current_time():
                return None
            if self._probe is None:
                self._probe = _Probe(host)
                return self._probe
            before = self._probe
            await before.over.wait()
            if before.failure is not None and before.host == host:
                raise ExchangeError(before.failure)  # nobody was there a moment ago

    def _hold_back(self, host: str) -> None:
        account_wide = self._attempts >= MAX_ATTEMPTS
        held = (
            self._refusals.values()
            if account_wide
            else [self._refusals.get(each, NEVER) for each in (host, EARLIER)]
        )
        until, failure = max(held, key=lambda refusal: refusal[0], default=NEVER)
        remaining = until - trio.current_time()
        if remaining > 0:
            raise ExchangeError(replace(failure, wait=max(remaining, failure.wait or 0.0)))

    def _refused(self, host: str, failure: Failure) -> Failure:
        now = trio.current_time()
        self._trusted.pop(host, None)
        self._attempts += 1
        if self._refusals.get(host, NEVER)[0] <= now:  # else it was under way when another one was refused
            self._level += 1
        level = max(self._level, min(self._attempts, MAX_ATTEMPTS))
        pause = PAUSES[min(level, len(PAUSES)) - 1]
        self._refusals[host] = now + pause, failure
        self._note(Refusals(self._attempts, self._level, time.time() + pause, failure.code, failure.text))
        # Servers in trouble refuse once in a while what they take a moment later.
        tell = log.error if self._attempts >= MAX_ATTEMPTS else log.warning
        tell(
            "auth.refused",
            account=self._account,
            server=host,
            attempts=self._attempts,
            pause=pause,
            code=failure.code,
            text=failure.text,
        )
        return replace(failure, wait=max(pause, failure.wait or 0.0)) if pause else failure

    def _accepted(self, host: str, identity: Identity | None, asked: float) -> None:
        self._trusted[host] = trio.current_time() + TRUST
        if identity is not None:
            good = self._good.setdefault(host, {})
            good.pop(identity.mailbox, None)
            good[identity.mailbox] = identity, asked
            if len(good) > REMEMBERED:
                del good[next(iter(good))]
        if self._attempts:
            log.info("auth.accepted", account=self._account, server=host, attempts=self._attempts)
            self._attempts = self._level = 0
            self._note(None)
            self._refusals.clear()


class _Probe:
    """A request that finds out for all others."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.over = trio.Event()
        self.failure: Failure | None = None


# In place of a host: what an earlier process was told.
EARLIER = ""
NEVER = (0.0, Failure(code=""))
UNAUTHORIZED = 401
# What a server may answer for one mailbox, though it takes the credentials for others.
OF_MAILBOX = frozenset({"Http401", "Http440", "Http456", "Http457", "HandshakeRefused"})
# Mailboxes of a server, the last ones accepted, of which one is asked for to confirm.
REMEMBERED = 8
# Nobody heard the credentials.
UNREACHABLE = frozenset({"ConnectFailed", "ConnectTimeout", "NameNotResolved", "TlsFailed"})


MOST = 1 << 20
"""Bytes of the file that are read."""
REFUSALS = "refusals.json"
"""The name of the file."""


class Refusals(msgspec.Struct, frozen=True):
    """Of one account: how many in a row, how far the pauses have grown, and until when (Unix seconds) nothing is
    asked, after a failure with this code and text."""

    attempts: int
    level: int
    until: float
    code: str
    text: str


class _Record(msgspec.Struct, frozen=True):
    salt: bytes
    proof: bytes
    refusals: Refusals


class RefusalStore:
    """The file at `path`. What cannot be read counts as nothing, and is told."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records = self._read()

    def recall(self, account: str, secret: str) -> Refusals | None:
        """What is known of the account, if it still comes with the same secret."""
        record = self._records.get(account)
        return record.refusals if record is not None and _proof(secret, record.salt) == record.proof else None

    def note(self, account: str, secret: str, refusals: Refusals | None) -> None:
        """Keeps them; None: the secret was taken."""
        if refusals is None:
            if self._records.pop(account, None) is None:
                return
        else:
            salt = os.urandom(16)
            self._records[account] = _Record(salt, _proof(secret, salt), refusals)
        beside = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            beside.unlink(missing_ok=True)
            # O_EXCL follows no link that somebody has placed there.
            with open(
                os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
            ) as file:
                file.write(msgspec.json.encode(self._records))
                if os.geteuid() == 0:  # a check as root must not keep the service from its own file
                    owner = self._path.parent.stat()
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            beside.replace(self._path)
        except OSError as error:
            log.warning("auth.refusals_not_saved", path=str(self._path), reason=error.strerror)

    def _read(self) -> dict[str, _Record]:
        try:
            with open(open_own(self._path, os.O_RDONLY), "rb") as file:
                return msgspec.json.decode(file.read(MOST), type=dict[str, _Record])
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            log.warning("auth.refusals_not_saved", path=str(self._path), reason=str(error))
            return {}


def _proof(secret: str, salt: bytes) -> bytes:
    return hashlib.scrypt(secret.encode(), salt=salt, n=1 << 14, r=8, p=1)
