"""Lockout protection: limits attempts with refused credentials, so that the domain does not lock the account.

The rules:

1. A server that accepted the credentials within the last TRUSTED_FOR seconds may be asked by all groups at once.
2. Otherwise one request at a time probes the server, and the others wait for its result. So a password that changed
   during an outage is sent once, not once for each group.
3. After MAX_ATTEMPTS refusals in a row, no request of the account is sent to any server during a pause, which grows
   with each refusal. Fewer refusals may be a temporary fault of the server: the second attempt may follow at once,
   the third after a minute.
4. The state outlives the process (RefusalStore). A different password in the configuration resets it.
5. A request that is blocked fails with the last refusal, and with the remaining pause.
6. Only a response of Exchange itself proves that the credentials were accepted: a web site at the mail domain answers
   any request.
7. A refusal may concern one mailbox only. If the server has accepted the account for other mailboxes, one of these
   is requested at once (`confirm`), while all other requests wait. If that succeeds, the refusal concerns the
   mailbox: it does not count as an attempt, and becomes MailboxRefused. If it is refused too, both count.
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

from listener.ews.codes import ExchangeError, Failure, Verdict
from listener.ews.soap import Impersonation
from listener.ews.urls import server_of
from listener.files import open_own

log = structlog.get_logger()

TRUSTED_FOR = 60.0
"""Seconds for which a server is trusted after it accepted the credentials."""
MAX_ATTEMPTS = 3
PAUSES = (0.0, 60.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0)
"""Seconds until the next attempt, by the number of refusals. Domains usually reset their count of failed logons after
10 to 30 minutes."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The mailbox that a request is about: the one that it impersonates, or whose folders it names (`owner`).

    `anchor` is the X-AnchorMailbox that routes the request.
    """

    impersonate: Impersonation | None = None
    owner: str | None = None
    anchor: str = ""

    @property
    def mailbox(self) -> str:
        """The mailbox as the request names it; empty for the account's own."""
        return self.owner or ("" if self.impersonate is None else self.impersonate.value)


Confirm = Callable[[Identity], Awaitable[None]]
"""Makes a request about a mailbox for which the server has accepted the account. Raises ExchangeError."""


class LockoutProtection:
    """Admits the requests of one account. Send an admitted request at once.

    `secret` returns the current password; None if the scheme has none that can lock the account.
    """

    def __init__(self, account: str, secret: Callable[[], str | None] = lambda: None) -> None:
        self._account = account
        self._secret = secret
        self._store: RefusalStore | None = None
        self._trusted: dict[str, float] = {}  # by host: until when
        self._refusals: dict[
            str, tuple[float, Failure]
        ] = {}  # by host: until when it blocks, and the refusal
        self._attempts = 0
        self._level = 0
        self._probe: _Probe | None = None
        # By host and mailbox: requests that the server accepted, and when they were sent.
        self._accepted_for: dict[str, dict[str, tuple[Identity, float]]] = {}
        self._confirming = trio.Lock()

    @property
    def attempts(self) -> int:
        """Refusals since the credentials were last accepted."""
        return self._attempts

    def persist(self, store: RefusalStore) -> None:
        """Load the refusals of an earlier process, and store new ones.

        Only for passwords: no other credentials lock an account.
        """
        self._store = store
        secret = self._secret()
        stored = None if secret is None else store.load(self._account, secret)
        if stored is not None:
            remaining = min(stored.until - time.time(), PAUSES[-1])
            self._attempts, self._level = stored.attempts, stored.level
            failure = Failure(code=stored.code, text=stored.text)
            self._refusals[EARLIER_PROCESS] = trio.current_time() + remaining, failure

    def _save(self, refusals: Refusals | None) -> None:
        secret = self._secret()
        if self._store is not None and secret is not None:
            self._store.save(self._account, secret, refusals)

    @asynccontextmanager
    async def request(
        self, url: str, identity: Identity | None = None, confirm: Confirm | None = None
    ) -> AsyncIterator[None]:
        """Wrap one request. Raises ExchangeError instead of sending it if it could be one refusal too many.

        A refusal gets the pause as its `wait`. Requests about a mailbox pass `identity` and `confirm`.
        """
        host = server_of(url)
        probe = await self._admit(host)
        sent_at = trio.current_time()
        try:
            yield
        except ExchangeError as error:
            failure = error.failure
            if failure.code in MAILBOX_REFUSAL_CODES and identity is not None and confirm is not None:
                if self._probe is None:
                    probe = self._probe = _Probe(host)  # the other requests wait for the result of confirm()
                if await self._concerns_mailbox(host, identity, sent_at, confirm):
                    raise ExchangeError(self._mailbox_refused(host, identity, failure)) from error
            if failure.verdict is Verdict.CREDENTIALS:
                raise ExchangeError(self._refused(host, failure)) from error
            if probe is not None and failure.code in UNREACHABLE:
                probe.failure = failure
            if failure.code.startswith("Error") and failure.status != UNAUTHORIZED:
                self._accepted(host, identity, sent_at)  # an EWS error code comes after authentication
            raise
        else:
            self._accepted(host, identity, sent_at)
        finally:
            if probe is not None:
                self._probe = None
                probe.done.set()

    async def _concerns_mailbox(
        self, host: str, identity: Identity, sent_at: float, confirm: Confirm
    ) -> bool:
        """Return whether the server accepts the account for another mailbox, in a request sent after this one."""
        self._trusted.pop(host, None)
        async with self._confirming:
            others = [
                accepted
                for accepted in self._accepted_for.get(host, {}).values()
                if accepted[0].mailbox != identity.mailbox
            ]
            if not others:
                return False
            other, accepted_at = max(others, key=lambda accepted: accepted[1])
            if accepted_at > sent_at:
                return True
            if self._attempts >= MAX_ATTEMPTS:
                return False
            confirm_sent_at = trio.current_time()
            try:
                await confirm(other)
            except ExchangeError as error:
                failure = error.failure
                if failure.code in MAILBOX_REFUSAL_CODES:
                    self._accepted_for[host].pop(other.mailbox, None)
                    self._refused(host, failure)
                    return False
                if not failure.code.startswith("Error"):
                    return False  # the response says nothing about the credentials
            self._accepted(host, other, confirm_sent_at)
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
        text = f"the server refuses {self._account} for this mailbox, but accepts it for other mailboxes"
        return Failure(code="MailboxRefused", text=f"{text}: {failure}", status=failure.status)

    async def _admit(self, host: str) -> _Probe | None:
        """Wait until the request may be sent. Return the probe if this request is one."""
        while True:
            self._raise_if_blocked(host)
            if self._trusted.get(host, 0.0) > trio.current_time():
                return None
            if self._probe is None:
                self._probe = _Probe(host)
                return self._probe
            probe = self._probe
            await probe.done.wait()
            if probe.failure is not None and probe.host == host:
                raise ExchangeError(probe.failure)  # the server was unreachable a moment ago

    def _raise_if_blocked(self, host: str) -> None:
        account_wide = self._attempts >= MAX_ATTEMPTS
        refusals = (
            self._refusals.values()
            if account_wide
            else [self._refusals.get(each, NO_REFUSAL) for each in (host, EARLIER_PROCESS)]
        )
        until, failure = max(refusals, key=lambda refusal: refusal[0], default=NO_REFUSAL)
        remaining = until - trio.current_time()
        if remaining > 0:
            raise ExchangeError(replace(failure, wait=max(remaining, failure.wait or 0.0)))

    def _refused(self, host: str, failure: Failure) -> Failure:
        now = trio.current_time()
        self._trusted.pop(host, None)
        self._attempts += 1
        if (
            self._refusals.get(host, NO_REFUSAL)[0] <= now
        ):  # else it was in flight when another one was refused
            self._level += 1
        level = max(self._level, min(self._attempts, MAX_ATTEMPTS))
        pause = PAUSES[min(level, len(PAUSES)) - 1]
        self._refusals[host] = now + pause, failure
        self._save(Refusals(self._attempts, self._level, time.time() + pause, failure.code, failure.text))
        # A faulty server sometimes refuses credentials that it accepts a moment later.
        write = log.error if self._attempts >= MAX_ATTEMPTS else log.warning
        write(
            "auth.refused",
            account=self._account,
            server=host,
            attempts=self._attempts,
            pause=pause,
            code=failure.code,
            text=failure.text,
        )
        return replace(failure, wait=max(pause, failure.wait or 0.0)) if pause else failure

    def _accepted(self, host: str, identity: Identity | None, sent_at: float) -> None:
        self._trusted[host] = trio.current_time() + TRUSTED_FOR
        if identity is not None:
            mailboxes = self._accepted_for.setdefault(host, {})
            mailboxes.pop(identity.mailbox, None)
            mailboxes[identity.mailbox] = identity, sent_at
            if len(mailboxes) > MAX_REMEMBERED_MAILBOXES:
                del mailboxes[next(iter(mailboxes))]
        if self._attempts:
            log.info("auth.accepted", account=self._account, server=host, attempts=self._attempts)
            self._attempts = self._level = 0
            self._save(None)
            self._refusals.clear()


class _Probe:
    """A request that tests the credentials while all other requests wait."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.done = trio.Event()
        self.failure: Failure | None = None


# In place of a host: the refusals of an earlier process.
EARLIER_PROCESS = ""
NO_REFUSAL = (0.0, Failure(code=""))
UNAUTHORIZED = 401
# Codes with which a server may refuse one mailbox, although it accepts the credentials for others.
MAILBOX_REFUSAL_CODES = frozenset({"Http401", "Http440", "Http456", "Http457", "HandshakeRefused"})
# Mailboxes of a server that were accepted last: candidates for confirm().
MAX_REMEMBERED_MAILBOXES = 8
# Failures before any credentials were sent.
UNREACHABLE = frozenset({"ConnectFailed", "ConnectTimeout", "NameNotResolved", "TlsFailed"})


# --- storage

REFUSALS = "refusals.json"
"""The name of the file in the state directory."""
MAX_FILE_SIZE = 1 << 20
"""Bytes of the file that are read."""


class Refusals(msgspec.Struct, frozen=True):
    """The refusals of one account: how many in a row, the level of the pauses, and the end of the pause (Unix
    seconds), with the code and text of the last failure."""

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
    """The refusals of all accounts, in the file at `path`. An unreadable file is logged and counts as empty.

    Refusals must outlive the process: a daemon in a restart loop, or a repeated check, could lock the account too. A
    changed password may be tried at once. To notice the change, the file holds a salted scrypt hash (RFC 7914) of the
    refused password.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records = self._read()

    def load(self, account: str, secret: str) -> Refusals | None:
        """Return the refusals of the account; None if there are none, or if its secret has changed."""
        record = self._records.get(account)
        return record.refusals if record is not None and _proof(secret, record.salt) == record.proof else None

    def save(self, account: str, secret: str, refusals: Refusals | None) -> None:
        """Store the refusals of the account; None deletes them, since the secret was accepted."""
        if refusals is None:
            if self._records.pop(account, None) is None:
                return
        else:
            salt = os.urandom(16)
            self._records[account] = _Record(salt, _proof(secret, salt), refusals)
        new_file = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new_file.unlink(missing_ok=True)
            # O_EXCL does not follow a link that another user may have placed there.
            descriptor = os.open(new_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(msgspec.json.encode(self._records))
                if (
                    os.geteuid() == 0
                ):  # after a check as root, the service must still be able to write its file
                    owner = self._path.parent.stat()
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            new_file.replace(self._path)
        except OSError as error:
            log.warning("auth.refusals_not_saved", path=str(self._path), reason=error.strerror)

    def _read(self) -> dict[str, _Record]:
        try:
            with open(open_own(self._path, os.O_RDONLY), "rb") as file:
                return msgspec.json.decode(file.read(MAX_FILE_SIZE), type=dict[str, _Record])
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            log.warning("auth.refusals_not_saved", path=str(self._path), reason=str(error))
            return {}


def _proof(secret: str, salt: bytes) -> bytes:
    return hashlib.scrypt(secret.encode(), salt=salt, n=1 << 14, r=8, p=1)
