"""What Kerberos says when it fails. The codes are those of MIT's krb5.h and of RFC 4120 section 7.5.9."""

from __future__ import annotations

from collections.abc import Iterator

from spnego.exceptions import SpnegoError

from listener.ews.codes import Failure

ERRORS: tuple[type[Exception], ...] = (SpnegoError, OSError, ValueError)
try:
    from gssapi.exceptions import GSSError
    from krb5 import Krb5Error
except ImportError:  # the extra is not installed
    pass
else:
    ERRORS += (GSSError, Krb5Error)

_BASE = -1765328384  # ERROR_TABLE_BASE_krb5: the codes of RFC 4120 count from here

HOPELESS: dict[int, tuple[str, str]] = {
    6: ("AccountUnknown", "the domain knows no account {account}"),
    18: ("AccountLocked", "the account {account} is locked or disabled"),
    23: ("PasswordExpired", "the password of {account} has expired"),
    24: ("PasswordRefused", "the password of {account} is wrong"),
    31: ("PasswordRefused", "the password or the keytab of {account} is wrong"),
    37: ("ClockSkew", "the clock of this machine and that of the domain are more than 5 minutes apart"),
}
"""By the code of the protocol: ours, and what it means. Nothing else is tried after these."""


SERVERS_CLOCK = "the clock of the server and that of the domain are more than 5 minutes apart"
_NOT_YET_VALID, _SKEW = 33, 37


def clocks_differ(error: BaseException) -> bool:
    """Whether a server has refused a ticket because of the time."""
    return any(code - _BASE in (_NOT_YET_VALID, _SKEW) for code in _codes(error))


def kerberos_failure(error: BaseException, account: str) -> Failure | None:
    """What is known of the error, None where another mechanism may do better."""
    for code in _codes(error):
        if told := HOPELESS.get(code - _BASE):
            return Failure(code=told[0], text=told[1].format(account=account))
    return None


def reason(error: BaseException) -> str:
    """The words of the library, without its own wrapping."""
    return str(getattr(error, "base_error", None) or error)


def _codes(error: BaseException) -> Iterator[int]:
    """The minor codes of the error and of what it came from, as signed numbers of 32 bits."""
    seen: BaseException | None = error
    while seen is not None:
        for source in (seen, getattr(seen, "base_error", None)):
            for name in ("min_code", "err_code"):
                code = getattr(source, name, None)
                if isinstance(code, int):
                    yield code - (1 << 32) if code >= 1 << 31 else code
        seen = seen.__cause__ or seen.__context__
