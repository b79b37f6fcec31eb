"""Failure codes of requests to Exchange, and the verdict on each code, as data.

One table, VERDICTS, holds three kinds of codes:

- response codes of Exchange (MS-OXWSCDATA, ResponseCodeType), codes of Autodiscover (MS-OXWSADISC, ErrorCode;
  MS-OXDSCLI, ErrorCode, as `Pox` and the number), and fault codes of SOAP 1.1 section 4.4.1, which are used only
  if the response has no better code;
- `Http` and the status, if the response has no code in its body, or the X-CasErrorCode of a front end that does
  not know the mailbox;
- codes of Entra ID (AADSTS…), and codes that this program defines for network and library errors.

A code that is not in VERDICTS is treated as transient (RETRY) and logged once. The meaning and the fix of each
code are in listener/preflight/remedies.py; docs/TROUBLE.md is generated from both tables.
"""

from enum import StrEnum

import msgspec

from listener.errors import ListenerError

# Seconds. The upper bound for a wait that a server requests: an hour exceeds every throttling window, and a wrong
# clock of the server must not stop requests for days.
LONGEST_WAIT = 3600.0

ONLY_TLS = "the port probably speaks TLS only"
NO_TLS = "the port answers without TLS"
"""Fragments of failure texts that select a diagnosis in listener/preflight/remedies.py."""


class Verdict(StrEnum):
    """The reaction to a failure. `Failure.wait` is respected with every verdict."""

    RETRY = "retry"  # repeat the request after a backoff
    WAIT = "wait"  # send nothing for the time that the server requested
    RESUBSCRIBE = "resubscribe"  # the subscription is lost: subscribe again and run a catch-up
    REGROUP = "regroup"  # the mailbox moved: run Autodiscover, assign it to a group, subscribe again
    SUSPEND = "suspend"  # the mailbox cannot be subscribed now: log it once, retry with a growing delay
    CREDENTIALS = "credentials"  # get a new token once, then suspend and log
    RESYNC = "resync"  # the sync state is invalid: read the whole folder again
    STOP = "stop"  # an error in this program or its configuration: log it, retry rarely


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The failure of a request.

    `code` is a response code of Exchange (`ErrorServerBusy`), an HTTP status (`Http503`) or a code that this
    program defines (`ConnectTimeout`, `NotSoap`, …). `wait` is the pause that the server requested, in seconds.
    `subscription_ids` are those that the server named; if empty, all subscriptions of the request are affected.
    `location` is the target of a redirect.
    """

    code: str
    text: str = ""
    status: int | None = None
    wait: float | None = None
    subscription_ids: tuple[str, ...] = ()
    location: str | None = None

    @property
    def verdict(self) -> Verdict:
        return VERDICTS.get(self.code, Verdict.RETRY)

    def __str__(self) -> str:
        return f"{self.code}: {self.text}" if self.text else self.code


class ExchangeError(ListenerError):
    """A request to Exchange failed. `failure` has the reason."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(str(failure))


_EXCHANGE = {
    Verdict.WAIT: (
        "ErrorServerBusy",
        # Waiting is not enough: open fewer connections, or charge streams to mailboxes by impersonation.
        "ErrorExceededConnectionCount",
    ),
    Verdict.RETRY: (
        "ErrorInternalServerTransientError",
        "ErrorTimeoutExpired",
        "ErrorTooManyObjectsOpened",
        "ErrorInsufficientResources",
        "ErrorADUnavailable",
        "ErrorMailboxFailover",
        "ErrorInternalServerError",
        "ErrorConnectionFailed",
        "ErrorBatchProcessingStopped",
        # Another connection reads this subscription, and Exchange prefers the newer connection. The subscription
        # is still valid, so it is not renewed. The backoff keeps two daemons from closing each other's streams
        # in a loop.
        "ErrorNewEventStreamConnectionOpened",
    ),
    Verdict.RESUBSCRIBE: (
        "ErrorSubscriptionNotFound",
        "ErrorInvalidSubscription",
        "ErrorExpiredSubscription",
        "ErrorEventNotFound",
        "ErrorInvalidWatermark",
        "ErrorSubscriptionUnsubscribed",
        "ErrorProxiedSubscriptionCallFailure",
        "ErrorMissedNotificationEvents",
    ),
    Verdict.REGROUP: (
        "ErrorProxyRequestNotAllowed",
        "ErrorReadEventsFailed",
        "ErrorMailboxMoveInProgress",
        "ErrorMailboxStoreUnavailable",
        "ErrorCrossSiteRequest",
        "ErrorWrongServerVersion",
        "ErrorNoRespondingCASInDestinationSite",
        "ErrorProxyCallFailed",
    ),
    Verdict.SUSPEND: (
        "ErrorNonExistentMailbox",
        "ErrorInvalidSmtpAddress",
        "ErrorAccountDisabled",
        "ErrorCannotFindUser",
        "ErrorSubscriptionDelegateAccessNotSupported",
        "ErrorImpersonateUserDenied",
        "ErrorImpersonationDenied",
        "ErrorImpersonationFailed",
        "ErrorInvalidExchangeImpersonationHeaderData",  # also if an application omits the header
        "ErrorAccessDenied",
        "ErrorSubscriptionAccessDenied",
        "ErrorExceededSubscriptionCount",
        "ErrorSyncFolderNotFound",  # the same as ErrorFolderNotFound, from SyncFolderItems
        "ErrorFolderNotFound",  # also if the folder exists and the account has no permission on it
        "ErrorMissingEmailAddress",  # the account has no mailbox, and the request names none
        "ErrorNameResolutionNoResults",  # from ExpandDL
        # The identity in ExchangeImpersonation is not of the kind that its element names.
        "ErrorNonPrimarySmtpAddress",
        "ErrorInvalidUserPrincipalName",
        "ErrorInvalidUserSid",
    ),
    Verdict.RESYNC: ("ErrorInvalidSyncStateData",),
    Verdict.STOP: (
        "ErrorInvalidSubscriptionRequest",
        "ErrorSchemaValidation",
        "ErrorIncorrectSchemaVersion",
        "ErrorInvalidServerVersion",
    ),
}

_AUTODISCOVER = {
    Verdict.WAIT: ("ServerBusy",),
    Verdict.RETRY: ("InternalServerError",),
    # Pox500: the address does not exist.
    Verdict.SUSPEND: ("InvalidUser", "InvalidDomain", "NotFederated", "SettingIsNotAvailable", "Pox500"),
    # Pox600: the request is invalid; Pox601: no provider supports the requested schema.
    Verdict.STOP: ("InvalidRequest", "InvalidSetting", "Pox600", "Pox601"),
}

UNKNOWN_TO_FRONT_END = (
    "UserNotFound",
    "MailboxGuidWithDomainNotFound",
    "MailboxExternalDirectoryObjectIdNotFound",
    "OrganizationMailboxNotFound",
    "DomainNotFound",
)
"""Values of X-CasErrorCode in a 404 response: the front end does not know the mailbox of the request."""

_SOAP = {
    Verdict.RETRY: ("Server", "SoapFault"),  # SoapFault: a fault without a code
    Verdict.STOP: ("Client", "MustUnderstand", "VersionMismatch"),
}

_HTTP = {
    Verdict.RETRY: (
        "Http301",  # EWS redirects only to error pages and login pages, never to another EWS endpoint
        "Http302",
        "Http303",
        "Http307",
        "Http308",
        "Http408",
        "Http500",
        "Http502",
        "Http503",
        "Http504",
    ),
    Verdict.WAIT: ("Http429",),
    Verdict.REGROUP: ("Http404", "Http451"),
    Verdict.SUSPEND: ("Http403", *UNKNOWN_TO_FRONT_END),
    # 456: the account is blocked; 457: an interactive sign-in is required.
    Verdict.CREDENTIALS: ("Http401", "Http440", "Http456", "Http457"),
    Verdict.STOP: ("Http400", "Http405", "Http407", "Http413", "Http415"),
}

_ENTRA = {
    Verdict.CREDENTIALS: (
        "AADSTS50013",
        "AADSTS50027",
        "AADSTS50053",
        "AADSTS53003",
        "AADSTS70021",
        "AADSTS90002",
        "AADSTS500011",
        "AADSTS700016",
        "AADSTS700024",
        "AADSTS700027",
        "AADSTS700211",
        "AADSTS700212",
        "AADSTS700213",
        "AADSTS900023",
        "AADSTS1002012",
        "AADSTS7000112",
        "AADSTS7000215",
        "AADSTS7000218",
        "AADSTS7000222",
        "AADSTS7000229",
        "TokenRefused",  # any other response without a token
    ),
    Verdict.RETRY: (
        "SecretUnreadable",  # the file or command with the client's certificate, token or secret failed
        "TokenEndpointFailed",  # the response is neither a token nor a refusal
    ),
}

_LISTENER = {  # codes that this program defines
    Verdict.RETRY: (
        "ConnectFailed",
        "ConnectTimeout",
        "ConnectionReset",
        "GroupError",  # an unexpected exception on a stream; the log has the traceback
        "HandshakeBroken",  # the server stopped answering in the middle of an authentication handshake
        "KerberosFailed",  # no Kerberos ticket is available
        "EnvelopeTooLarge",  # an envelope exceeds the buffer
        "ForbiddenXml",  # a document type declaration, which SOAP 1.1 section 3 forbids
        "MalformedXml",
        "NameNotResolved",
        "NotSoap",  # not SOAP, usually an HTML page of a proxy
        "ReadTimeout",
        "StreamIncomplete",  # the stream ended inside an envelope
        "StreamSilent",  # no heartbeat for twice its interval
        "TlsFailed",  # a retry can succeed: administrators renew certificates without a restart here
        "UnexpectedReply",  # well-formed SOAP without the requested content
    ),
    Verdict.SUSPEND: (
        "InsecureRedirect",  # Autodiscover redirects to a URL that is not https
        "InternalError",  # an unexpected exception for one mailbox; the log has the traceback
        "InvalidUrl",  # a server returned a URL that cannot be parsed
        "MailboxRefused",  # the server refuses the credentials for this mailbox and accepts them for others
        "TooManyRedirects",
        "UntrustedRedirect",  # an unauthenticated redirect leads to a host that is not on the allow-list
    ),
    Verdict.CREDENTIALS: (
        "AccountLocked",
        "AccountUnknown",
        "ClockSkew",
        "HandshakeRefused",  # a 401 after a complete NTLM or Negotiate handshake
        "PasswordExpired",
        "PasswordRefused",
    ),
    Verdict.STOP: (
        "EwsDisabled",  # 403 with X-EWS-Policy-Reason
        "SchemeNotOffered",  # a 401 that offers only other authentication schemes
        "InsecureUrl",  # a secret would be sent over an unencrypted connection
    ),
}

VERDICTS: dict[str, Verdict] = {
    code: verdict
    for table in (_EXCHANGE, _AUTODISCOVER, _SOAP, _HTTP, _ENTRA, _LISTENER)
    for verdict, codes in table.items()
    for code in codes
}


def crash(error: Exception, code: str = "InternalError") -> Failure:
    """Return the failure for an unexpected exception, with its type only: the text may contain secrets."""
    return Failure(code=code, text=type(error).__name__)
