"""What can go wrong with a request to Exchange, and what to do about it: as data.

Three sorts of names share one table, since what is to be done is all that a reader of it asks:

- Exchange's own response codes (MS-OXWSCDATA, ResponseCodeType), the codes of Autodiscover (MS-OXWSADISC,
  ErrorCode; MS-OXDSCLI, ErrorCode, as `Pox` and the number), and the fault codes of SOAP 1.1 section 4.4.1 where a
  server says nothing better;
- `Http` and the status, where a reply had no code in its body, or the X-CasErrorCode of a front end that does not
  know the mailbox;
- the codes of Entra ID (AADSTS…), and our own names for trouble on the way.

A code that is not in VERDICTS is treated as transient (RETRY), and is worth one line in the log.
"""

from enum import StrEnum

import msgspec

# Seconds. A server that says more is asked nevertheless: an hour is longer than any throttling window, and a wrong
# clock must not silence us for days.
LONGEST_WAIT = 3600.0

ONLY_TLS = "the port probably speaks TLS only"
NO_TLS = "the port answers without TLS"
"""Parts of the texts of failures, by which advice is chosen (listener/preflight/remedies.py)."""


class Verdict(StrEnum):
    """What is to be done about a failure. Whatever the verdict, a told `Failure.wait` is obeyed."""

    RETRY = "retry"  # the same again, after a back-off
    WAIT = "wait"  # the server said how long; send nothing meanwhile
    RESUBSCRIBE = "resubscribe"  # the subscription is gone: a new one, and catch up
    REGROUP = "regroup"  # the mailbox is elsewhere: discover, group and subscribe anew
    SUSPEND = "suspend"  # this mailbox cannot be listened to: look again slowly, tell the operator once
    CREDENTIALS = "credentials"  # a fresh token once, then suspend and tell
    RESYNC = "resync"  # the sync state is of no use: a full sync of that folder
    STOP = "stop"  # a fault in us or in the configuration: say so loudly, do not hammer


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request came to nothing.

    `code` is Exchange's response code (`ErrorServerBusy`), or `Http503`, or one of our own names for trouble on
    the way (`ConnectTimeout`, `ConnectionReset`, `NotSoap`, …). `wait` is in seconds: how long the server told us
    to wait. `subscription_ids` are those the server named; empty means all of the request. `location` is where a
    redirect leads.
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


_EXCHANGE = {
    Verdict.WAIT: (
        "ErrorServerBusy",
        # Besides waiting it asks for fewer connections, or for streams charged to the mailbox by impersonation.
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
        # Another connection reads this subscription now, and the newer one wins. The subscription lives on, so
        # there is nothing to renew; if the other reader is not ours, backing off keeps the two from a duel.
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
        "ErrorInvalidExchangeImpersonationHeaderData",  # also where an application sends no such header
        "ErrorAccessDenied",
        "ErrorSubscriptionAccessDenied",
        "ErrorExceededSubscriptionCount",
        "ErrorSyncFolderNotFound",  # as the next one, in a SyncFolderItems
        "ErrorFolderNotFound",  # also where there is no right to a folder that is there
        "ErrorMissingEmailAddress",  # the account has no mailbox, and the request names none
        "ErrorNameResolutionNoResults",  # of ExpandDL
        # The identity in ExchangeImpersonation is not of the kind that the request says.
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
    # Pox500: there is no such address.
    Verdict.SUSPEND: ("InvalidUser", "InvalidDomain", "NotFederated", "SettingIsNotAvailable", "Pox500"),
    # Pox600: the request was invalid; Pox601: nobody provides the schema that it asks for.
    Verdict.STOP: ("InvalidRequest", "InvalidSetting", "Pox600", "Pox601"),
}

UNKNOWN_TO_FRONT_END = (
    "UserNotFound",
    "MailboxGuidWithDomainNotFound",
    "MailboxExternalDirectoryObjectIdNotFound",
    "OrganizationMailboxNotFound",
    "DomainNotFound",
)
"""Values of X-CasErrorCode on a 404: the front end does not know the mailbox that the request is for."""

_SOAP = {
    Verdict.RETRY: ("Server", "SoapFault"),  # SoapFault: a fault that names no code at all
    Verdict.STOP: ("Client", "MustUnderstand", "VersionMismatch"),
}

_HTTP = {
    Verdict.RETRY: (
        "Http301",  # a redirect of EWS leads to an error page or a login page, not to another EWS
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
    # 456, 457: blocked, or an interactive sign-in is required.
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
        "TokenRefused",  # any other answer without a token
    ),
    Verdict.RETRY: (
        "SecretUnreadable",  # a file or a command did not tell what proves who we are
        "TokenEndpointFailed",  # it answered, but neither with a token nor with a refusal
    ),
}

_OURS = {
    Verdict.RETRY: (
        "ConnectFailed",
        "ConnectTimeout",
        "ConnectionReset",
        "GroupError",  # an unknown exception of our own on a stream (its log line has the traceback)
        "HandshakeBroken",  # the server did not go on in the middle of a handshake
        "KerberosFailed",  # there is no ticket to be had
        "EnvelopeTooLarge",  # an envelope outgrew the buffer
        "ForbiddenXml",  # a document type declaration, which SOAP 1.1 section 3 forbids
        "MalformedXml",
        "NameNotResolved",
        "NotSoap",  # something else than SOAP, mostly the HTML page of a proxy
        "ReadTimeout",
        "StreamIncomplete",  # the stream ended inside an envelope
        "StreamSilent",  # no heart-beat for twice its interval
        "TlsFailed",  # certificates are renewed without us: it is worth trying again
        "UnexpectedReply",  # well-formed SOAP that lacks what was asked for
    ),
    Verdict.SUSPEND: (
        "InsecureRedirect",  # Autodiscover sent us to an address that is not https
        "InternalError",  # an unknown exception of our own about one mailbox (its log line has the traceback)
        "InvalidUrl",  # a server named a URL that nothing can be made of
        "MailboxRefused",  # the credentials are refused for this mailbox, and accepted for others
        "TooManyRedirects",
        "UntrustedRedirect",  # a hint that anybody may have written leads to a strange host
    ),
    Verdict.CREDENTIALS: (
        "AccountLocked",
        "AccountUnknown",
        "ClockSkew",
        "HandshakeRefused",  # a 401 after a whole NTLM or Negotiate handshake
        "PasswordExpired",
        "PasswordRefused",
    ),
    Verdict.STOP: (
        "EwsDisabled",  # 403 with X-EWS-Policy-Reason
        "SchemeNotOffered",  # a 401 that asks for another scheme of authentication
        "InsecureUrl",  # a secret would be sent where others can read it
    ),
}

VERDICTS: dict[str, Verdict] = {
    code: verdict
    for table in (_EXCHANGE, _AUTODISCOVER, _SOAP, _HTTP, _ENTRA, _OURS)
    for verdict, codes in table.items()
    for code in codes
}


def crash(error: Exception, code: str = "InternalError") -> Failure:
    """Return the failure that stands for an unknown exception; only its type is told, its text may be secret."""
    return Failure(code=code, text=type(error).__name__)
