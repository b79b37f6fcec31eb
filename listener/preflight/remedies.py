"""The probable cause of each failure and the command or setting that fixes it, as data.

`remedy()` uses the first source that applies: the URL of the request, the text of the server or library (DIAGNOSES),
the code (REMEDIES), the verdict on the code. docs/TROUBLE.md shows REMEDIES; run `make reference` after a change.

Backticks mark commands and settings; `remedy()` removes them. The cmdlets are those of the Exchange Management Shell.
`SERVICE`, `MAILBOX`, `FOLDER`, `GROUP` and `HOST` are placeholders.
Sources: "Configure impersonation", "Control access to EWS in Exchange", "Handling delegation-related errors in EWS in
Exchange", "Role Based Access Control for Applications in Exchange Online" (learn.microsoft.com).
"""

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from listener.config.warnings import check_autodiscover_url, check_ews_url
from listener.ews.codes import NO_TLS, ONLY_TLS, UNKNOWN_TO_FRONT_END, VERDICTS, Failure, Verdict
from listener.ews.xml import excerpt


class Remedy(NamedTuple):
    """The probable cause and the fix. Either may be empty."""

    cause: str
    fix: str = ""


_SCOPE = Remedy(
    "The service account may not impersonate this mailbox: it has no role assignment, or the mailbox is outside its "
    "scope.",
    "1. find the assignment: `Get-ManagementRoleAssignment -Role ApplicationImpersonation -GetEffectiveUsers`; "
    '2. widen its scope (`Set-ManagementScope`), or run `New-ManagementScope "EWS listener" '
    "-RecipientRestrictionFilter {…}` and `New-ManagementRoleAssignment -Role ApplicationImpersonation -User SERVICE "
    '-CustomRecipientWriteScope "EWS listener"`; '
    "3. in Exchange Online, run `New-ManagementRoleAssignment -App … -Role 'Application EWS.AccessAsApp' "
    "-CustomResourceScope …`",
)
_NO_MAILBOX = Remedy(
    "The mailbox does not exist: the address is misspelled, the mailbox was removed, or the address is not its "
    "primary SMTP address.",
    "find the primary SMTP address: `Get-Mailbox MAILBOX | Format-List PrimarySmtpAddress,UserPrincipalName`; use it "
    'in `[mailboxes]`, or set `[mailboxes] impersonate_by` to "SmtpAddress", "PrincipalName" or "SID"',
)
_NO_PERMISSION = Remedy(
    "The folder does not exist, or the account has no permission on it.",
    "correct `[subscription] folders`, or grant permission: `Add-MailboxFolderPermission MAILBOX:\\FOLDER -User "
    "SERVICE -AccessRights Reviewer`",
)
_DELEGATE = Remedy(
    "The account may not subscribe to the folder. Its only permission is free/busy, which every user has on "
    "calendars; or it can read the folder, and Exchange requires an owner's rights for a subscription.",
    "grant permission: `Add-MailboxFolderPermission MAILBOX:\\FOLDER -User SERVICE -AccessRights Reviewer`; if that "
    "is not enough: `Add-MailboxPermission MAILBOX -User SERVICE -AccessRights FullAccess`",
)
_MOVING = Remedy(
    "The mailbox is being moved, or Autodiscover still returns its old server.",
    "wait for the end of the move: `Get-MoveRequest MAILBOX`",
)
_CREDENTIALS = Remedy(
    "The password is wrong or has expired; the username has a form that the server does not accept; or the account "
    "is locked or disabled. Servers give the same answer in all these cases.",
    "1. check `[auth] password` (or its file, variable or command) by signing in to Outlook on the web; 2. "
    "try the other form of `[auth] user`: `DOMAIN\\name` or `name@domain`; 3. run `Get-ADUser SERVICE -Properties "
    "LockedOut,Enabled,PasswordExpired`; 4. compare `[auth] kind` with `Get-WebServicesVirtualDirectory | "
    "Format-List *Authentication`",
)
_BUSY = Remedy(
    "The account exceeds its throttling policy.",
    "run `New-ThrottlingPolicy -EwsMaxConcurrency …` and `Set-ThrottlingPolicyAssociation SERVICE`; or reduce "
    "`[exchange] concurrency`",
)
_NOT_EWS = Remedy(
    "A proxy, a login page or a website answered instead of Exchange.",
    "check `[exchange] ews_url` and `[exchange] proxy`; switch form-based authentication off for EWS; publishing "
    "rules must pass /EWS/ without their own login page",
)
_UNREADABLE = Remedy(
    "The response cannot be read: it is not the requested XML, or it is too large. The limits are `[stream] "
    "max_envelope` on a stream, 2 MiB for Autodiscover, 8 MiB otherwise, and 300,000 tags and attributes.",
    "check `[exchange] ews_url` and `[exchange] proxy`; if the response is too large on a stream, raise `[stream] "
    "max_envelope`",
)
_NO_EWS = Remedy(
    "The server HOST has no EWS at this URL, or does not accept POST there.",
    "compare `[exchange] ews_url` with `Get-WebServicesVirtualDirectory | Format-List *Url`; a reverse proxy must "
    "pass /EWS/Exchange.asmx",
)
_MOVED_OR_NO_EWS = Remedy(
    "The server HOST has no EWS at this URL, or the mailbox has moved to another server.",
    "compare `[exchange] ews_url` with `Get-WebServicesVirtualDirectory | Format-List *Url`; a reverse proxy must "
    "pass /EWS/Exchange.asmx",
)
_VERSION = Remedy(
    "The server does not accept the request.",
    "try another `[exchange] version`; if the error stays, report it",
)
_NETWORK = Remedy(
    "No server answers at HOST, or a firewall drops the packets.",
    "check host and port of `[exchange] ews_url`, `[exchange] proxy`, and the firewalls",
)
_BROKEN = Remedy(
    "The connection to HOST broke.",
    "check proxies and firewalls on the route to HOST; if connections always break after the same time, raise the "
    "idle timeout of the proxy or load balancer above `[stream] heartbeat`",
)
_SILENT = Remedy(
    "HOST sent nothing in time: it is overloaded, a firewall dropped the connection, or a reverse proxy buffers "
    "responses.",
    "turn response buffering off for /EWS/Exchange.asmx (nginx: `proxy_buffering off;`); raise the idle timeout of "
    "proxies and load balancers above `[stream] heartbeat`; check the load of the server",
)
_TRANSIENT = Remedy(
    "The server, or a proxy in front of it, reports a temporary error.",
    "run the check again in some minutes; if the error stays, run `Test-ServiceHealth` and search the server's logs "
    "for MAILBOX",
)
_RENEWED = Remedy(
    "The server dropped the subscription: it restarted, failed over, or discarded events that were not read in time.",
    "no action is needed, the daemon subscribes again; report it if it repeats",
)
_RESYNC = Remedy(
    "The server does not accept the stored sync state of a folder.",
    "no action is needed, the daemon reads the folder again",
)
_IDENTITY = "The mailbox's identity does not match `[mailboxes] impersonate_by`: "
_CRASH_FIX = "report the traceback, which is in the log"

# The cmdlets for Entra ID are those of Microsoft Graph PowerShell.
_ENTRA: dict[str, Remedy] = {
    **dict.fromkeys(
        ("AADSTS70021", "AADSTS700211", "AADSTS700212", "AADSTS700213"),
        Remedy(
            "No federated identity credential of the application has the token's issuer, subject and audience.",
            "compare `Get-MgApplicationFederatedIdentityCredential`; add one with "
            "`New-MgApplicationFederatedIdentityCredential`",
        ),
    ),
    **dict.fromkeys(
        ("AADSTS700027", "AADSTS50013", "AADSTS50027"),
        Remedy(
            "The certificate is not registered for the application, or the private key does not match it.",
            'add it under "Certificates & secrets" of the registration (`Update-MgApplication -KeyCredentials …`); '
            "check `[auth] certificate`",
        ),
    ),
    **dict.fromkeys(
        ("AADSTS700016", "AADSTS7000112", "AADSTS7000229"),
        Remedy(
            "The tenant has no such application, or it is disabled, or an administrator has not consented to it.",
            "check `[auth] client_id`; `Get-MgServicePrincipal`; `New-MgServicePrincipalAppRoleAssignment`",
        ),
    ),
    **dict.fromkeys(
        ("AADSTS7000215", "AADSTS7000218"),
        Remedy(
            "The client secret is wrong or missing.",
            "set `[auth] client_secret` to the secret's value, not its ID",
        ),
    ),
    **dict.fromkeys(
        ("AADSTS90002", "AADSTS900023"),
        Remedy("The tenant does not exist in this cloud.", "check `[auth] tenant` and `[auth] cloud`"),
    ),
    **dict.fromkeys(
        ("AADSTS500011", "AADSTS1002012"),
        Remedy("The requested scope does not exist.", "check `[auth] scope` and `[auth] cloud`"),
    ),
    "AADSTS7000222": Remedy(
        "The client secret has expired.",
        'create one under "Certificates & secrets" (`Add-MgApplicationPassword`); set `[auth] client_secret`',
    ),
    "AADSTS700024": Remedy(
        "The assertion is not valid at this time: this machine's clock is wrong, or the federated token has expired.",
        "check `timedatectl` and NTP",
    ),
    "AADSTS50053": Remedy(
        "The account is locked after too many attempts with wrong credentials.", "wait, and correct `[auth]`"
    ),
    "AADSTS53003": Remedy(
        "A Conditional Access policy for workload identities blocks the application.",
        "run `Get-MgIdentityConditionalAccessPolicy`; allow the application, or the address of this machine",
    ),
    "TokenRefused": Remedy("Entra ID refuses a token, for the reason in the text.", "correct `[auth]`"),
    "SecretUnreadable": Remedy(
        "The certificate, token or secret that identifies the application cannot be read.",
        "check the file that the text names, its owner and its mode",
    ),
    "TokenEndpointFailed": Remedy(
        "The token endpoint returned neither a token nor a refusal, usually because a proxy answered or because of "
        "too many requests.",
        "check `[exchange] proxy`, `[auth] cloud` and `[auth] authority`",
    ),
}

_MAILBOX: dict[str, Remedy] = {
    **dict.fromkeys(
        ("ErrorImpersonateUserDenied", "ErrorImpersonationDenied", "ErrorImpersonationFailed"), _SCOPE
    ),
    **dict.fromkeys(
        (
            "ErrorNonExistentMailbox",
            "ErrorInvalidSmtpAddress",
            "ErrorCannotFindUser",
            "InvalidUser",
            "InvalidDomain",
            "NotFederated",
            "Pox500",
        ),
        _NO_MAILBOX,
    ),
    **dict.fromkeys(("ErrorFolderNotFound", "ErrorItemNotFound", "ErrorSyncFolderNotFound"), _NO_PERMISSION),
    **dict.fromkeys(
        UNKNOWN_TO_FRONT_END,
        Remedy(
            "HTTP 404 with this X-CasErrorCode: Exchange's front end does not know the mailbox. It was removed, or "
            "the address is wrong.",
            "run `Get-Recipient MAILBOX`; correct `[mailboxes]`",
        ),
    ),
    "ErrorNonPrimarySmtpAddress": Remedy(
        f"{_IDENTITY}the address is not the primary SMTP address.",
        "configure the address from `Get-Mailbox MAILBOX | Format-List PrimarySmtpAddress`, or set "
        '`[mailboxes] impersonate_by = "SmtpAddress"`',
    ),
    "ErrorInvalidUserPrincipalName": Remedy(
        f"{_IDENTITY}no user has this user principal name.",
        "configure the name from `Get-User MAILBOX | Format-List UserPrincipalName`, or change `impersonate_by`",
    ),
    "ErrorInvalidUserSid": Remedy(
        f"{_IDENTITY}no user has this security identifier (SID).",
        "configure the SID from `Get-User MAILBOX | Format-List Sid`, or change `impersonate_by`",
    ),
    "ErrorInvalidExchangeImpersonationHeaderData": Remedy(
        "The ExchangeImpersonation header is missing, or Exchange does not accept it for this mailbox. An "
        "application must always impersonate.",
        'check `[mailboxes] access = "impersonation"` and `[mailboxes] impersonate_by`; run `Get-Mailbox MAILBOX`',
    ),
    "ErrorSubscriptionDelegateAccessNotSupported": _DELEGATE,
    "ErrorSubscriptionAccessDenied": Remedy(
        "Another account created the subscription, or the server allows only one mailbox per streaming connection.",
        "set `[affinity] group_size = 1`",
    ),
    "ErrorAccessDenied": Remedy(
        "The account does not have this permission, or EWS is switched off for the mailbox.",
        "run `Set-CASMailbox MAILBOX -EwsEnabled $true`; for delegate access: `Add-MailboxFolderPermission "
        "MAILBOX:\\FOLDER -User SERVICE -AccessRights Reviewer`",
    ),
    "ErrorMissingEmailAddress": Remedy(
        'The service account has no mailbox, so `access = "own"` cannot work.',
        "run `Enable-Mailbox SERVICE`, or change `[mailboxes] access`",
    ),
    "ErrorAccountDisabled": Remedy("The mailbox's user is disabled.", "run `Enable-ADAccount MAILBOX`"),
    "ErrorExceededSubscriptionCount": Remedy(
        "The mailbox has as many subscriptions as EWSMaxSubscriptions allows. Exchange removes unused ones within 30 "
        "minutes.",
        "wait, or run `New-ThrottlingPolicy -EwsMaxSubscriptions …`",
    ),
    "ErrorNameResolutionNoResults": Remedy(
        "The distribution group does not exist, or it is hidden from the address lists.",
        "run `Set-DistributionGroup GROUP -HiddenFromAddressListsEnabled $false`",
    ),
    "MailboxRefused": Remedy(
        "The server refuses the account for this mailbox and accepts the same credentials for other mailboxes.",
        "1. run `Get-Mailbox MAILBOX`; 2. run `Get-CASMailbox MAILBOX | Format-List EwsEnabled`; 3. run "
        "`Test-WebServicesConnectivity` on the mailbox's server",
    ),
    "SettingIsNotAvailable": Remedy(
        "Autodiscover returns no EWS URL for this mailbox.",
        "run `Get-WebServicesVirtualDirectory | Format-List *Url`; or set `[exchange] ews_url`",
    ),
    "InvalidUrl": Remedy(
        "A server returned a URL that cannot be used. The text has the URL and the server.",
        "run `Get-WebServicesVirtualDirectory | Format-List *Url`; or set `[exchange] ews_url`",
    ),
    "InsecureRedirect": Remedy(
        "Autodiscover redirects to a URL that is not https.", "set `[exchange] autodiscover_url`"
    ),
    "TooManyRedirects": Remedy(
        "Autodiscover redirects the address in a loop.",
        "run `Get-Recipient MAILBOX | Format-List ExternalEmailAddress,PrimarySmtpAddress`; set `[exchange] "
        "autodiscover_url`, or `[exchange] ews_url` with `autodiscover = false`",
    ),
    "UntrustedRedirect": Remedy(
        "A redirect, an SRV record or an EWS URL names a host that credentials are not sent to.",
        "if the host in the text is right, add it to `[exchange] autodiscover_hosts`",
    ),
    "InternalError": Remedy("An unexpected exception in ews-listener for this mailbox.", _CRASH_FIX),
}

_SERVER: dict[str, Remedy] = {
    **dict.fromkeys(("NotSoap", "Http301", "Http302", "Http303", "Http307", "Http308"), _NOT_EWS),
    **dict.fromkeys(("MalformedXml", "ForbiddenXml", "UnexpectedReply", "EnvelopeTooLarge"), _UNREADABLE),
    **dict.fromkeys(("ConnectFailed", "ConnectTimeout"), _NETWORK),
    **dict.fromkeys(("ConnectionReset", "StreamIncomplete"), _BROKEN),
    **dict.fromkeys(("ReadTimeout", "StreamSilent"), _SILENT),
    "Http404": _MOVED_OR_NO_EWS,
    "Http405": _NO_EWS,
    "ErrorExceededConnectionCount": Remedy(
        "The account has more streaming connections than its throttling policy allows.",
        "the daemon switches `[affinity] impersonate_anchor_on_stream` on, which charges each stream to its anchor "
        "mailbox; if the error stays, run `New-ThrottlingPolicy -EwsMaxConcurrency …` and "
        "`Set-ThrottlingPolicyAssociation SERVICE`",
    ),
    "ErrorNewEventStreamConnectionOpened": Remedy(
        "Another connection reads the same subscriptions.",
        "stop the second daemon with this account and a copy of this state",
    ),
    "GroupError": Remedy("An unexpected exception in ews-listener on a stream.", _CRASH_FIX),
    "NameNotResolved": Remedy(
        "DNS does not resolve the hostname.",
        "check the spelling of `[exchange] ews_url` and `[exchange] proxy`; run `Resolve-DnsName HOST`; check the "
        "DNS servers of this machine",
    ),
    "TlsFailed": Remedy(
        "The certificate of HOST is not trusted, has expired, or is for another hostname.",
        "set `[exchange] ca_file` to the certificate of your own authority; run `Get-ExchangeCertificate | "
        "Format-List Subject,NotAfter,CertificateDomains,Services`",
    ),
    "Http403": Remedy(
        "EWS is switched off for the mailbox, its EWS access rules do not allow this User-Agent, or a proxy forbids "
        "the request.",
        "1. show the settings: `Get-CASMailbox MAILBOX | Format-List Ews*`; 2. switch EWS on: `Set-CASMailbox "
        "MAILBOX -EwsEnabled $true`; 3. allow the User-Agent: `Set-CASMailbox MAILBOX -EwsAllowList "
        "@{Add='ews-listener*'}`, or change `[exchange] user_agent`",
    ),
    "Http407": Remedy(
        "The proxy requires credentials.", "set `[exchange] proxy_user` and `[exchange] proxy_password`"
    ),
    "Http413": Remedy(
        "The request is too large for the server or a proxy.", "reduce `[affinity] group_size`"
    ),
    "Http456": Remedy(
        "The account is blocked.",
        "run `Update-MgUser -UserId SERVICE -AccountEnabled:$true`; check its sign-in log",
    ),
    "Http457": Remedy(
        "The account must sign in interactively or with multi-factor authentication, which a service cannot do.",
        'exclude SERVICE from the Conditional Access policy, or use an application: `[auth] kind = "oauth"`',
    ),
    "EwsDisabled": Remedy(
        "EWS is switched off for the organization or for this application. The text has the X-EWS-Policy-Reason.",
        "run `Set-OrganizationConfig -EwsEnabled $true`, and allow the application: "
        "`Set-OrganizationConfig -EwsAllowList @{Add='ews-listener*'}`",
    ),
    "InsecureUrl": Remedy(
        "The password or token would be sent over plain HTTP to the URL in the text.",
        "use https:// in that URL",
    ),
    "SchemeNotOffered": Remedy(
        "The server does not offer the authentication method of `[auth] kind`.",
        "set `[auth] kind` to a method that the text names; run `Get-WebServicesVirtualDirectory | Format-List "
        "*Authentication`",
    ),
    "HandshakeRefused": Remedy(
        "Most probably the password is wrong or has expired, the username has a form that the server does not "
        "accept, or the account is locked. If all are right, a proxy or load balancer ends TLS with a certificate "
        "other than the server's, which Extended Protection detects; or, with Kerberos, the SPN is wrong.",
        "1. check `[auth] password` (or its file, variable or command) by signing in to Outlook on the web; 2. try "
        "the other form of `[auth] user`: `DOMAIN\\name` or `name@domain`; 3. run `Get-ADUser SERVICE -Properties "
        "LockedOut,Enabled,PasswordExpired`; 4. run `Get-WebServicesVirtualDirectory | Format-List "
        "ExtendedProtectionTokenChecking`: give proxy and server the same certificate, or pass TLS through; 5. with "
        "Kerberos, run `setspn -Q HTTP/HOST`",
    ),
    "HandshakeBroken": Remedy(
        "The connection ended during the authentication handshake. A proxy or load balancer that spreads a client's "
        "requests over several connections breaks NTLM and Negotiate.",
        "set the load balancer to source IP persistence and connection-based authentication, or pass TLS through",
    ),
    "KerberosFailed": Remedy(
        "This machine gets no Kerberos ticket for HOST, and no password for NTLM is configured. The text has the "
        "library's error.",
        "run `KRB5_TRACE=/dev/stderr kinit SERVICE` and `klist`; check /etc/krb5.conf; or set `[auth] password` to "
        "fall back to NTLM",
    ),
    "AccountLocked": Remedy(
        "The account is locked or disabled.", "run `Unlock-ADAccount SERVICE`; `Enable-ADAccount SERVICE`"
    ),
    "AccountUnknown": Remedy(
        "The domain does not know the account.", "run `Get-ADUser SERVICE`; correct `[auth] user`"
    ),
    "PasswordExpired": Remedy(
        "The password has expired, or must be changed.",
        "run `Set-ADAccountPassword SERVICE`; set `[auth] password`",
    ),
    "PasswordRefused": Remedy(
        "The domain controller reports that the password is wrong or the keytab is outdated.",
        "correct `[auth] password`, or create the keytab again",
    ),
    "ClockSkew": Remedy(
        "The clocks of this machine and of the domain differ by more than 5 minutes.",
        "check `timedatectl` and NTP",
    ),
}

REMEDIES: dict[str, Remedy] = _MAILBOX | _SERVER | _ENTRA
"""Remedies by code. The codes that are missing here have the remedy of their verdict."""

_BY_VERDICT: dict[Verdict, Remedy] = {
    Verdict.RETRY: _TRANSIENT,
    Verdict.RESUBSCRIBE: _RENEWED,
    Verdict.WAIT: _BUSY,
    Verdict.REGROUP: _MOVING,
    Verdict.CREDENTIALS: _CREDENTIALS,
    Verdict.RESYNC: _RESYNC,
    Verdict.STOP: _VERSION,
}

_PLAIN = Remedy(
    "The port speaks TLS, and the URL says http://.",
    "use https:// in the URL, or the port on which the server speaks plain HTTP",
)
_RESET_PLAIN = Remedy(
    "The server closed the connection without a response, and the URL says http://. A port that expects TLS does so.",
    "use https:// in the URL; else check which firewall or proxy closes connections to HOST",
)
_LOGIN = Remedy(
    "A login page answered instead of EWS: the URL is that of a website, or a proxy in front of the server has its "
    "own login form (form-based authentication).",
    "set `[exchange] ews_url` to https://HOST/EWS/Exchange.asmx; let the proxy pass /EWS/ on without its login page",
)
_NO_IMPERSONATION = Remedy(
    "The token is that of an application, which has no mailbox of its own: every request must impersonate a mailbox.",
    'set `[mailboxes] access = "impersonation"` (not "own" or "delegate"), in the overrides too, and `expand_as` for '
    "distribution groups",
)
_CLOCKS = Remedy(
    "The clocks of this machine and of the server or the domain differ by more than 5 minutes.",
    "compare `timedatectl` on both machines; check that NTP runs on both",
)

DIAGNOSES: tuple[tuple[re.Pattern[str], Remedy], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), remedy)
    for pattern, remedy in (
        (
            re.escape(NO_TLS),
            Remedy(
                "The URL says https://, and the port does not speak TLS.",
                "use the port of https (443 if none is given), or http:// if the connection to HOST is safe without "
                "TLS",
            ),
        ),
        (
            r"^TlsFailed.*(UNEXPECTED_EOF|EOF occurred|reset by peer)",
            Remedy(
                "The connection was closed during the TLS handshake: the port does not speak TLS, or a firewall or "
                "load balancer closes the connection.",
                "check the port in the URL (443 if none is given); run `openssl s_client -connect HOST:PORT "
                "-servername HOST`",
            ),
        ),
        (
            r"^TlsFailed.*(UNSUPPORTED_PROTOCOL|PROTOCOL_VERSION|NO_PROTOCOLS|VERSION_TOO_LOW|UNSUPPORTED_SSL)",
            Remedy(
                "HOST and this machine have no TLS version in common: the server speaks only TLS 1.0 or 1.1.",
                "enable TLS 1.2 on HOST (SCHANNEL protocols in the registry), or on the proxy in front of it",
            ),
        ),
        (
            r"^TlsFailed.*(HANDSHAKE_FAILURE|NO_CIPHERS|NO_SHARED_CIPHER|DH_KEY_TOO_SMALL|EE_KEY_TOO_SMALL)",
            Remedy(
                "HOST and this machine have no cipher in common, or the server's key is too short.",
                "enable ECDHE ciphers of TLS 1.2 on HOST; run `openssl s_client -connect HOST:PORT -servername HOST`",
            ),
        ),
        (
            r"^TlsFailed.*(CERTIFICATE_REQUIRED|BAD_CERTIFICATE|ALERT_UNKNOWN_CA|ALERT_CERTIFICATE)",
            Remedy(
                "HOST requires a client certificate, or refuses the configured one.",
                "set `[exchange] client_cert` and `[exchange] client_key`; or set SSL client certificates to Ignore "
                "for the EWS directory",
            ),
        ),
        (
            r"^TlsFailed.*UNRECOGNIZED_NAME",
            Remedy(
                "The server has no certificate for the hostname HOST.",
                "use the hostname under which the server is published",
            ),
        ),
        (
            r"^\w+: the proxy\b.* says:",
            Remedy(
                "The proxy refuses to connect to HOST.",
                "allow HOST and its port in the rules of the proxy; check `[exchange] proxy`, `[exchange] "
                "proxy_user` and `[exchange] proxy_password`",
            ),
        ),
        (
            r"^\w+: (asking for a token: )?(the hostname of )?the proxy\b",
            Remedy(
                "The proxy cannot be reached.", "check host and port of `[exchange] proxy`, and its firewall"
            ),
        ),
        (
            (
                rf"{re.escape(ONLY_TLS)}|plain HTTP request was sent to HTTPS port|HTTP request to an HTTPS server"
                r"|plain HTTP to an SSL-enabled"
            ),
            _PLAIN,
        ),
        (
            (
                r"impersonat\w*[^.]*\b(must be present|is required|is missing|needed|needs|necessary)"
                r"|\b(needs|requires|without|missing)\b[^.]*impersonation"
            ),
            _NO_IMPERSONATION,
        ),
        (
            r"not enough scope|insufficient.?scope|access token .* new one too",
            Remedy(
                "The token is valid, but the application has no right to EWS.",
                "in Entra ID, grant the application permission full_access_as_app of Office 365 Exchange Online with "
                "admin consent, or in Exchange Online the role 'Application EWS.AccessAsApp'; check `[auth] scope`",
            ),
        ),
        (r"clock skew|our clock is|not yet valid.*ticket|ticket not yet valid", _CLOCKS),
        (
            r"certificate has expired",
            Remedy(
                "The certificate of HOST has expired, or the clock of this machine is wrong.",
                "renew it: `Get-ExchangeCertificate | Format-List Subject,NotAfter,Services`; check `timedatectl`",
            ),
        ),
        (
            r"hostname mismatch|IP address mismatch|not valid for",
            Remedy(
                "The certificate is for another hostname than HOST.",
                "use a hostname of the certificate in `[exchange] ews_url`: `Get-ExchangeCertificate | Format-List "
                "CertificateDomains`",
            ),
        ),
        (
            r"unable to get local issuer|self.signed certificate|unable to get issuer",
            Remedy(
                "This machine does not trust the authority that issued the certificate of HOST, or the server sends "
                "no intermediate certificate.",
                "set `[exchange] ca_file` to the certificate (PEM) of the authority that the text names; the server "
                "must send its whole chain",
            ),
        ),
        (
            r"^KerberosFailed.*\bKDC\b",
            Remedy(
                "No domain controller (KDC) of the realm was found, or none answers.",
                "check realm and domain of `[auth] user`, DNS (`Resolve-DnsName _kerberos._tcp.DOMAIN -Type SRV`), "
                "/etc/krb5.conf, and port 88 of the domain controllers",
            ),
        ),
        (
            r"^KerberosFailed.*(not found in Kerberos database|S_PRINCIPAL_UNKNOWN)",
            Remedy(
                "The domain knows no service HTTP/HOST.",
                "run `setspn -Q HTTP/HOST`; register it with `setspn -S HTTP/HOST` and the account of the server; or "
                "set `[auth] spn`",
            ),
        ),
        (
            r"^KerberosFailed.*(credentials? cache|no Kerberos credentials|no credentials|keytab)",
            Remedy(
                "There is no Kerberos ticket and no keytab for the account.",
                "run `kinit SERVICE`, or set `KRB5_CLIENT_KTNAME` to a keytab that the service's user can read; or "
                "set `[auth] password`",
            ),
        ),
        (
            r"Kerberos is not installed",
            Remedy("Kerberos support is not installed.", "run `pip install 'ews-listener[kerberos]'`"),
        ),
    )
)
"""Remedies by a pattern of `CODE: text`. They come before those by code."""

_LOGIN_PAGE = re.compile(r"logon|log on|log ?in\b|sign[- ]?in|anmeld|outlook|owa|/adfs/", re.IGNORECASE)
_PAGE_CODES = frozenset(
    {"NotSoap", "Http200", "Http301", "Http302", "Http303", "Http307", "Http308", "Http440"}
)
# Codes that a service other than EWS can cause.
_NOT_EWS_CODES = _PAGE_CODES | {
    *(
        "Http400",
        "Http401",
        "Http403",
        "Http404",
        "Http405",
        "Http406",
        "Http411",
        "Http415",
        "Http500",
        "Http501",
    ),
    *("SchemeNotOffered", "HandshakeBroken", "MalformedXml", "ForbiddenXml", "UnexpectedReply", "SoapFault"),
    *(
        "Client",
        "Server",
        "MustUnderstand",
        "VersionMismatch",
        "ConnectionReset",
        "StreamIncomplete",
        "TlsFailed",
    ),
}


def remedy(
    failure: Failure,
    *,
    mailbox: str = "MAILBOX",
    account: str = "SERVICE",
    url: str = "",
    autodiscover: bool = False,
) -> Remedy:
    """Return the probable cause and the fix of a failure, as plain text for this mailbox and this account.

    `url` is the URL of the request, if it is known. `autodiscover` means that it is an Autodiscover endpoint.
    """
    words = {"MAILBOX": mailbox, "SERVICE": account, "HOST": _host(url) or "HOST"}
    words["GROUP"] = "GROUP" if mailbox == "MAILBOX" else mailbox
    found = _from_url(failure, url, autodiscover=autodiscover) or _from_text(failure)
    if found is None:
        if failure.code not in VERDICTS and failure.code not in REMEDIES:
            return _unknown(failure)
        found = remedy_by_code(failure.code)
    filled = [
        re.sub(r"\b(MAILBOX|SERVICE|HOST|GROUP)\b", lambda word: words[word[0]], part.replace("`", ""))
        for part in found
    ]
    return Remedy(*filled)


def remedy_by_code(code: str) -> Remedy:
    """Return the remedy of a code, with backticks and placeholders."""
    return REMEDIES.get(code) or _BY_VERDICT.get(VERDICTS[code], _TRANSIENT)


def _from_text(failure: Failure) -> Remedy | None:
    described = f"{failure.code}: {failure.text}"
    if failure.code in _PAGE_CODES and _LOGIN_PAGE.search(failure.text):
        return _LOGIN
    return next((remedy for pattern, remedy in DIAGNOSES if pattern.search(described)), None)


def _from_url(failure: Failure, url: str, *, autodiscover: bool) -> Remedy | None:
    """Return the remedy for a URL that is not the endpoint or has the wrong scheme, else None."""
    if not url or not (failure.code in _NOT_EWS_CODES or failure.code not in VERDICTS):
        return None
    doubt = (check_autodiscover_url if autodiscover else check_ews_url)(url)
    if doubt is not None:
        key = "autodiscover_url" if autodiscover else "ews_url"
        return Remedy(f"The URL is probably wrong: {doubt.reason}.", f"set {key} to {doubt.instead}")
    if failure.code in ("ConnectionReset", "StreamIncomplete") and url.lower().startswith("http:"):
        return _from_text(failure) or _RESET_PLAIN
    return None


def _unknown(failure: Failure) -> Remedy:
    """Return the remedy for a code that is in no table: its name and the server's text."""
    said = f' The server said: "{excerpt(failure.text)}".' if failure.text else " The server gave no text."
    if failure.code.startswith("Http"):
        return Remedy(
            f"HTTP status {failure.code.removeprefix('Http')} is not known as a response of EWS.{said}",
            "find out whether the server or a proxy in front of it answered; look for the request in its log; check "
            "[exchange] ews_url and proxy",
        )
    return Remedy(
        f"The code {failure.code} is not known to this version of ews-listener.{said}",
        f"look for {failure.code} in the list of response codes of EWS (ResponseCode, learn.microsoft.com) and in "
        "the EWS log of the server; try the same mailbox with another client; report the code and the text to the "
        "maintainers",
    )


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
