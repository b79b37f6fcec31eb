"""The probable cause of a failure, and the cmdlet or the setting that fixes it: as data.

What the server or a library said (DIAGNOSES) counts first, then the URL that was asked, then the code (REMEDIES), and
then the code's verdict. The cmdlets are those of the Exchange Management Shell; `SERVICE`, `MAILBOX`, `FOLDER` and
`HOST` stand for what is meant.
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
    """The likely cause, and what to do; either may be empty."""

    cause: str
    fix: str = ""


_SCOPE = Remedy(
    "The account may not impersonate this mailbox: it has no role assignment, or the mailbox is outside its scope.",
    "Get-ManagementRoleAssignment -Role ApplicationImpersonation -GetEffectiveUsers; then widen the scope "
    '(Set-ManagementScope), or New-ManagementScope "EWS listener" -RecipientRestrictionFilter {…} and '
    "New-ManagementRoleAssignment -Role ApplicationImpersonation -User SERVICE -CustomRecipientWriteScope "
    '"EWS listener". '
    "In Exchange Online: New-ManagementRoleAssignment -App … -Role 'Application EWS.AccessAsApp' "
    "-CustomResourceScope …",
)
_NO_MAILBOX = Remedy(
    "There is no such mailbox: a typing mistake, or it was removed; or the address is not its primary SMTP address.",
    "Get-Mailbox MAILBOX | Format-List PrimarySmtpAddress,UserPrincipalName; use the primary SMTP address in "
    '[mailboxes], or name owners in another way: impersonate_by = "SmtpAddress", "PrincipalName" or "SID"',
)
_NO_PERMISSION = Remedy(
    "The folder does not exist, or the account has no permission on it.",
    "Add-MailboxFolderPermission MAILBOX:\\FOLDER -User SERVICE -AccessRights Reviewer",
)
_DELEGATE = Remedy(
    "The account may not subscribe to the folder. It has no permission on it but free/busy, which everybody has on "
    "calendars; or it may read it, and Exchange requires the rights of an owner for a subscription.",
    "Add-MailboxFolderPermission MAILBOX:\\FOLDER -User SERVICE -AccessRights Reviewer; if that is not enough: "
    "Add-MailboxPermission MAILBOX -User SERVICE -AccessRights FullAccess",
)
_MOVING = Remedy(
    "The mailbox is being moved, or lives elsewhere than Autodiscover says.", "Get-MoveRequest MAILBOX"
)
_CREDENTIALS = Remedy(
    "The password is wrong or has expired; or the user name has another form than the server wants; or the account "
    "is locked or disabled.",
    "1. check [auth] password (or its file, variable or command) by signing in to Outlook on the web; 2. "
    "try the other "
    "form of [auth] user: DOMAIN\\name or name@domain; 3. Get-ADUser SERVICE -Properties LockedOut,Enabled,"
    "PasswordExpired; 4. compare [auth] kind with Get-WebServicesVirtualDirectory | Format-List *Authentication",
)
_BLOCKED = Remedy(
    "EWS is switched off for the organisation or for this application.",
    "Set-OrganizationConfig -EwsEnabled $true, and the application on the allow list: "
    "Set-OrganizationConfig -EwsAllowList @{Add='ews-listener*'}",
)
_BUSY = Remedy(
    "The account asks for more than its throttling policy allows.",
    "New-ThrottlingPolicy -EwsMaxConcurrency … and Set-ThrottlingPolicyAssociation SERVICE; or a smaller [exchange] "
    "concurrency",
)
_NOT_EWS = Remedy(
    "Something else than Exchange answered: a proxy, a login page or a website.",
    "check [exchange] ews_url and proxy; a publishing rule must pass /EWS/ on without a login page of its own",
)
_NO_EWS = Remedy(
    "The server HOST has no EWS at this URL, or takes no POST there.",
    "check [exchange] ews_url against Get-WebServicesVirtualDirectory | Format-List *Url; if a reverse proxy is in "
    "front, it must pass /EWS/Exchange.asmx on",
)
_VERSION = Remedy("The server does not accept the request.", "try another [exchange] version")
_NETWORK = Remedy(
    "No server answers at HOST.",
    "check host and port of [exchange] ews_url, [exchange] proxy, and the firewall in between",
)
_ILL = Remedy(
    "The server, or a proxy in front of it, reports a temporary error.",
    "run the check again in some minutes; if the error stays: Test-ServiceHealth, and the logs of the "
    "server for MAILBOX",
)
_RENEWED = Remedy(
    "The server dropped the subscription.",
    "nothing: the daemon subscribes again; report it if the check repeats it",
)

_FEDERATION = Remedy(
    "The federated token's issuer, subject or audience is not that of any federated identity of the application.",
    "Get-MgApplicationFederatedIdentityCredential; New-MgApplicationFederatedIdentityCredential",
)
_CERTIFICATE = Remedy(
    "The certificate is not registered for the application, or its key is another one.",
    'the registration\'s "Certificates & secrets" (Update-MgApplication -KeyCredentials …); see [auth] certificate',
)
_APPLICATION = Remedy(
    "The tenant knows no such application, or it is disabled, or was not consented to.",
    "see [auth] client_id; Get-MgServicePrincipal; New-MgServicePrincipalAppRoleAssignment",
)
_SECRET = Remedy("The client secret is wrong, or missing.", "see [auth] client_secret: the value, not the id")
_TENANT = Remedy("There is no such tenant, in this cloud.", "see [auth] tenant and cloud")
_AUDIENCE = Remedy("Tokens are asked for something that is not there.", "see [auth] scope and cloud")

# Of Entra ID (docs/TROUBLE.md); the application's cmdlets are those of Microsoft Graph PowerShell.
_ENTRA: dict[str, Remedy] = {
    **dict.fromkeys(("AADSTS70021", "AADSTS700211", "AADSTS700212", "AADSTS700213"), _FEDERATION),
    **dict.fromkeys(("AADSTS700027", "AADSTS50013", "AADSTS50027"), _CERTIFICATE),
    **dict.fromkeys(("AADSTS700016", "AADSTS7000112", "AADSTS7000229"), _APPLICATION),
    **dict.fromkeys(("AADSTS7000215", "AADSTS7000218"), _SECRET),
    **dict.fromkeys(("AADSTS90002", "AADSTS900023"), _TENANT),
    **dict.fromkeys(("AADSTS500011", "AADSTS1002012"), _AUDIENCE),
    "AADSTS7000222": Remedy(
        "The client secret has expired.", "Add-MgApplicationPassword; see [auth] client_secret"
    ),
    "AADSTS700024": Remedy(
        "An assertion is not within its time: our clock is off, or the federated token has expired.",
        "timedatectl; is NTP at work?",
    ),
    "AADSTS50053": Remedy("Locked, after too many tries with wrong credentials.", "wait, and see [auth]"),
    "AADSTS53003": Remedy(
        "A Conditional Access policy for workload identities keeps the application out.",
        "Get-MgIdentityConditionalAccessPolicy; admit the application, or the address that it comes from",
    ),
    "TokenRefused": Remedy("No token; the text says why.", "see [auth]"),
}

# Of single mailboxes and of where they live.
_MAILBOX: dict[str, Remedy] = {
    **dict.fromkeys(
        UNKNOWN_TO_FRONT_END,
        Remedy(
            "Exchange's front end does not know the mailbox: it was removed, or the address is wrong.",
            "Get-Recipient MAILBOX; correct [mailboxes]",
        ),
    ),
    "ErrorNonPrimarySmtpAddress": Remedy(
        "The address is not the mailbox's primary SMTP address, as impersonate_by says.",
        "Get-Mailbox MAILBOX | Format-List PrimarySmtpAddress; configure that address, or "
        '[mailboxes] impersonate_by = "SmtpAddress"',
    ),
    "ErrorInvalidUserPrincipalName": Remedy(
        "No user has this user principal name, as impersonate_by says.",
        "Get-User MAILBOX | Format-List UserPrincipalName; configure that name, or another impersonate_by",
    ),
    "ErrorInvalidUserSid": Remedy(
        "No user has this security identifier, as impersonate_by says.",
        "Get-User MAILBOX | Format-List Sid; configure that identifier, or another impersonate_by",
    ),
    "Http456": Remedy(
        "The account is blocked.",
        "Update-MgUser -UserId SERVICE -AccountEnabled:$true; see its sign-in log",
    ),
    "Http457": Remedy(
        "The account must sign in interactively or with multi-factor authentication, which a service cannot do.",
        'exclude SERVICE from the Conditional Access policy, or [auth] kind = "oauth" with an application',
    ),
    "MailboxRefused": Remedy(
        "The server refuses the account for this mailbox only. It accepts the same credentials for others.",
        "Get-Mailbox MAILBOX; Get-CASMailbox MAILBOX | Format-List EwsEnabled; Test-WebServicesConnectivity on the "
        "server that has it",
    ),
    "InvalidUrl": Remedy(
        "A server named a URL that cannot be used.",
        "Get-WebServicesVirtualDirectory | Format-List *Url; or [exchange] ews_url",
    ),
    "TooManyRedirects": Remedy(
        "Autodiscover redirects the address in a circle.",
        "Get-Recipient MAILBOX | Format-List ExternalEmailAddress,PrimarySmtpAddress; or [exchange] autodiscover_url",
    ),
    "UntrustedRedirect": Remedy(
        "Autodiscover names a host that credentials are not sent to.",
        "if the host is right, add it to [exchange] autodiscover_hosts",
    ),
}

REMEDIES: dict[str, Remedy] = _ENTRA | {
    **_MAILBOX,
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
    **dict.fromkeys(("ErrorServerBusy", "ErrorExceededConnectionCount", "Http429", "ServerBusy"), _BUSY),
    **dict.fromkeys(("NotSoap", "Http301", "Http302", "Http303", "Http307", "Http308"), _NOT_EWS),
    **dict.fromkeys(("MalformedXml", "ForbiddenXml", "UnexpectedReply", "EnvelopeTooLarge"), _NOT_EWS),
    **dict.fromkeys(("Http404", "Http405"), _NO_EWS),
    **dict.fromkeys(("ConnectFailed", "ConnectTimeout", "ConnectionReset", "ReadTimeout"), _NETWORK),
    "ErrorSubscriptionDelegateAccessNotSupported": _DELEGATE,
    "ErrorSubscriptionAccessDenied": Remedy(
        "The subscription was made by another account, or the server reads one owner's on a connection only.",
        "[affinity] group_size = 1",
    ),
    "ErrorAccessDenied": Remedy(
        "The account has no right to this, or EWS is switched off for the mailbox.",
        "Set-CASMailbox MAILBOX -EwsEnabled $true; with delegate access: Add-MailboxFolderPermission "
        "MAILBOX:\\FOLDER -User SERVICE -AccessRights Reviewer",
    ),
    "ErrorMissingEmailAddress": Remedy(
        'The account has no mailbox of its own, so access = "own" is not for it.',
        "Enable-Mailbox SERVICE, or another access",
    ),
    "ErrorAccountDisabled": Remedy("The owner's account is disabled.", "Enable-ADAccount MAILBOX"),
    "ErrorExceededSubscriptionCount": Remedy(
        "The mailbox has as many subscriptions as EWSMaxSubscriptions allows; those nobody reads die within half "
        "an hour.",
        "New-ThrottlingPolicy -EwsMaxSubscriptions …",
    ),
    "ErrorNameResolutionNoResults": Remedy(
        "There is no such distribution group, or it is hidden from the address lists.",
        "Set-DistributionGroup GROUP -HiddenFromAddressListsEnabled $false",
    ),
    "SettingIsNotAvailable": Remedy(
        "Autodiscover names no EWS URL for this mailbox.",
        "Get-WebServicesVirtualDirectory | Format-List *Url; or [exchange] ews_url",
    ),
    "InsecureRedirect": Remedy(
        "Autodiscover sends us to an address that is not https.", "[exchange] autodiscover_url"
    ),
    "Http403": Remedy(
        "EWS is switched off for the mailbox, its rules do not admit this User-Agent, or a proxy forbids it.",
        "Set-CASMailbox MAILBOX -EwsEnabled $true; Get-CASMailbox MAILBOX | Format-List Ews*; Set-CASMailbox MAILBOX "
        "-EwsAllowList @{Add='ews-listener*'}",
    ),
    "EwsDisabled": _BLOCKED,
    "NameNotResolved": Remedy(
        "DNS does not know the hostname.",
        "check the spelling of [exchange] ews_url (and proxy); Resolve-DnsName HOST; check the DNS servers "
        "of this machine",
    ),
    "TlsFailed": Remedy(
        "The certificate of HOST is not trusted, has expired, or is for another hostname.",
        "[exchange] ca_file with the certificate of your own authority; Get-ExchangeCertificate | Format-List "
        "Subject,NotAfter,CertificateDomains,Services",
    ),
    "HandshakeRefused": Remedy(
        "Most probably the password is wrong or has expired, or the user name has another form than the "
        "server wants, or "
        "the account is locked. If all of them are right: Extended Protection, where a proxy or load "
        "balancer ends TLS "
        "with another certificate than the server's.",
        "1. check [auth] password (or its file, variable or command) by signing in to Outlook on the web; 2. try the "
        "other form of [auth] user: DOMAIN\\name or name@domain; 3. Get-ADUser SERVICE -Properties LockedOut,Enabled,"
        "PasswordExpired; 4. Get-WebServicesVirtualDirectory | Format-List ExtendedProtectionTokenChecking: "
        "give proxy "
        "and server the same certificate, or pass TLS through",
    ),
    "HandshakeBroken": Remedy(
        "The connection ended in the middle of the handshake: a proxy or load balancer that spreads the "
        "requests of one "
        "client over several connections breaks NTLM and Kerberos.",
        "set the load balancer to source IP persistence and connection-based authentication, or pass TLS through",
    ),
    "KerberosFailed": Remedy(
        "This machine gets no Kerberos ticket for HOST.",
        "KRB5_TRACE=/dev/stderr kinit SERVICE; klist; check /etc/krb5.conf, or give [auth] password to fall "
        "back to NTLM",
    ),
    "InsecureUrl": Remedy(
        "The password or token would be sent over plain HTTP.", "use https:// in the URL that the text names"
    ),
    "ErrorInvalidExchangeImpersonationHeaderData": Remedy(
        "The server does not accept the ExchangeImpersonation header for this mailbox, or misses it.",
        'check [mailboxes] access = "impersonation" and impersonate_by; Get-Mailbox MAILBOX',
    ),
    "TooManyRedirects": Remedy(
        "Autodiscover redirects in circles.",
        "[exchange] autodiscover_url; or ews_url with autodiscover = false",
    ),
    "UntrustedRedirect": Remedy(
        "Autodiscover names a host that credentials are not sent to.",
        "if the host is right, add it to [exchange] autodiscover_hosts",
    ),
    "SecretUnreadable": Remedy(
        "The certificate, token or secret that identifies the application cannot be read.",
        "check the file that the text names, its owner and its mode",
    ),
    "TokenEndpointFailed": Remedy(
        "The token endpoint answered neither with a token nor with a refusal: a proxy's page, or too many requests.",
        "check [exchange] proxy, [auth] cloud and authority",
    ),
    "ErrorNewEventStreamConnectionOpened": Remedy(
        "Another connection reads the same subscriptions.", "stop the second listener with this account"
    ),
    "SchemeNotOffered": Remedy(
        "The server does not take this kind of authentication.",
        "set [auth] kind to one that the server offers (the line above names them); "
        "Get-WebServicesVirtualDirectory | "
        "Format-List *Authentication",
    ),
    "AccountLocked": Remedy(
        "The account is locked or disabled.", "Unlock-ADAccount SERVICE; Enable-ADAccount SERVICE"
    ),
    "AccountUnknown": Remedy("The domain does not know the account.", "Get-ADUser SERVICE; see [auth] user"),
    "PasswordExpired": Remedy(
        "The password has expired, or must be changed.", "Set-ADAccountPassword SERVICE; see [auth] password"
    ),
    "PasswordRefused": Remedy("The password is wrong.", "[auth] password"),
    "ClockSkew": Remedy(
        "Our clock and the domain's are more than 5 minutes apart.", "timedatectl; is NTP at work?"
    ),
    "Http407": Remedy("The proxy requires credentials.", "[exchange] proxy_user and proxy_password"),
    "Http413": Remedy(
        "The request is too large for the server or a proxy.", "a smaller [affinity] group_size"
    ),
}

_BY_VERDICT: dict[Verdict, Remedy] = {
    Verdict.RETRY: _ILL,
    Verdict.RESUBSCRIBE: _RENEWED,
    Verdict.WAIT: _BUSY,
    Verdict.REGROUP: _MOVING,
    Verdict.CREDENTIALS: _CREDENTIALS,
    Verdict.STOP: _VERSION,
}


_PLAIN = Remedy(
    "The port speaks TLS, and the URL says http://.",
    "use https:// in the URL, or the port where the server speaks plain HTTP",
)
_RESET_PLAIN = Remedy(
    "The connection was closed without an answer, and the URL says http://: a port that expects TLS does so.",
    "use https:// in the URL; else check what closes connections to HOST (firewall, proxy)",
)
_LOGIN = Remedy(
    "A login page answered instead of EWS: the URL is that of a website, or a proxy in front of the "
    "server has a login "
    "form of its own (form-based authentication).",
    "set [exchange] ews_url to https://HOST/EWS/Exchange.asmx; let the proxy pass /EWS/ on without its login page",
)
_NO_IMPERSONATION = Remedy(
    "The token is that of an application, which has no mailbox of its own: every request must impersonate a mailbox.",
    'set [mailboxes] access = "impersonation" (not "own" or "delegate"), in the overrides too, and expand_as for '
    "distribution groups",
)
_CLOCKS = Remedy(
    "The clock of this machine and that of the server or the domain differ by more than 5 minutes.",
    "compare timedatectl here with the server's clock; is NTP running on both?",
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
                "load "
                "balancer is in the way.",
                "check the port in the URL (443 if none is given); openssl s_client -connect HOST:PORT -servername "
                "HOST",
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
                "enable ECDHE ciphers of TLS 1.2 on HOST; openssl s_client -connect HOST:PORT -servername HOST",
            ),
        ),
        (
            r"^TlsFailed.*(CERTIFICATE_REQUIRED|BAD_CERTIFICATE|ALERT_UNKNOWN_CA|ALERT_CERTIFICATE)",
            Remedy(
                "HOST requires a client certificate, or refuses the one that it was given.",
                "[exchange] client_cert and client_key; or set SSL client certificates to Ignore for the EWS "
                "directory",
            ),
        ),
        (
            r"^TlsFailed.*UNRECOGNIZED_NAME",
            Remedy(
                "The server has no certificate for the hostname HOST.",
                "use the hostname that it is published with",
            ),
        ),
        (
            r"^\w+: the proxy\b.* says:",
            Remedy(
                "The proxy refuses to connect to HOST.",
                "allow HOST and its port in the rules of the proxy; check [exchange] proxy, proxy_user and "
                "proxy_password",
            ),
        ),
        (
            r"^\w+: (asking for a token: )?(the hostname of )?the proxy\b",
            Remedy(
                "The proxy cannot be reached.", "check host and port of [exchange] proxy, and its firewall"
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
                "admin "
                "consent, or in Exchange Online the role 'Application EWS.AccessAsApp'; check [auth] scope",
            ),
        ),
        (r"clock skew|our clock is|not yet valid.*ticket|ticket not yet valid", _CLOCKS),
        (
            r"certificate has expired",
            Remedy(
                "The certificate of HOST has expired, or the clock of this machine is wrong.",
                "renew it: Get-ExchangeCertificate | Format-List Subject,NotAfter,Services; compare timedatectl",
            ),
        ),
        (
            r"hostname mismatch|IP address mismatch|not valid for",
            Remedy(
                "The certificate is for another hostname than HOST.",
                "use a hostname of the certificate in [exchange] ews_url: Get-ExchangeCertificate | Format-List "
                "CertificateDomains",
            ),
        ),
        (
            r"unable to get local issuer|self.signed certificate|unable to get issuer",
            Remedy(
                "The authority that issued the certificate of HOST is not trusted by this machine, or the server "
                "sends "
                "no intermediate certificate.",
                "set [exchange] ca_file to the certificate (PEM) of the authority that the text names; the server "
                "must "
                "send its whole chain",
            ),
        ),
        (
            r"^KerberosFailed.*\bKDC\b",
            Remedy(
                "No domain controller (KDC) is found or answers for the realm.",
                "check realm and domain of [auth] user, DNS (Resolve-DnsName _kerberos._tcp.DOMAIN -Type SRV), "
                "/etc/krb5.conf, and port 88 of the domain controllers",
            ),
        ),
        (
            r"^KerberosFailed.*(not found in Kerberos database|S_PRINCIPAL_UNKNOWN)",
            Remedy(
                "The domain knows no service HTTP/HOST.",
                "setspn -Q HTTP/HOST; setspn -S HTTP/HOST and the account of the server; or [auth] spn",
            ),
        ),
        (
            r"^KerberosFailed.*(credentials? cache|no Kerberos credentials|no credentials|keytab)",
            Remedy(
                "There is no Kerberos ticket and no keytab for the account.",
                "kinit SERVICE, or KRB5_CLIENT_KTNAME with a keytab that the user of the service can read; or [auth] "
                "password",
            ),
        ),
        (
            r"Kerberos is not installed",
            Remedy("Kerberos support is not installed.", "pip install 'ews-listener[kerberos]'"),
        ),
    )
)
"""By what stands in the code and the text of a failure, whichever the code is."""

_LOGIN_PAGE = re.compile(r"logon|log on|log ?in\b|sign[- ]?in|anmeld|outlook|owa|/adfs/", re.IGNORECASE)
_FROM_A_PAGE = frozenset(
    {"NotSoap", "Http200", "Http301", "Http302", "Http303", "Http307", "Http308", "Http440"}
)
# What another service than EWS answers to a request of EWS.
_STRANGE = _FROM_A_PAGE | {
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
    """Return the probable cause of a failure and what fixes it, for this mailbox and this account.

    `url` is what was asked, if it is known; `autodiscover` says that it is no EWS endpoint.
    """
    words = {"MAILBOX": mailbox, "SERVICE": account, "HOST": _host(url) or "HOST"}
    words["GROUP"] = "GROUP" if mailbox == "MAILBOX" else mailbox
    found = (
        _of_the_url(failure, url, autodiscover=autodiscover)
        or _of_the_text(failure)
        or REMEDIES.get(failure.code)
    )
    if found is None and failure.code not in VERDICTS:
        return _unknown(failure)
    found = found or _BY_VERDICT.get(failure.verdict, _ILL)
    filled = [
        re.sub(r"\b(MAILBOX|SERVICE|HOST|GROUP)\b", lambda word: words[word[0]], part) for part in found
    ]
    return Remedy(*filled)


def _of_the_text(failure: Failure) -> Remedy | None:
    said = f"{failure.code}: {failure.text}"
    if failure.code in _FROM_A_PAGE and _LOGIN_PAGE.search(failure.text):
        return _LOGIN
    return next((remedy for pattern, remedy in DIAGNOSES if pattern.search(said)), None)


def _of_the_url(failure: Failure, url: str, *, autodiscover: bool) -> Remedy | None:
    """What the URL itself tells: it is none of the endpoint, or of the other scheme."""
    if not url or not (failure.code in _STRANGE or failure.code not in VERDICTS):
        return None
    doubt = (check_autodiscover_url if autodiscover else check_ews_url)(url)
    if doubt is not None:
        key = "autodiscover_url" if autodiscover else "ews_url"
        return Remedy(f"The URL is probably wrong: {doubt.reason}.", f"set {key} to {doubt.instead}")
    if failure.code in ("ConnectionReset", "StreamIncomplete") and url.lower().startswith("http:"):
        return _of_the_text(failure) or _RESET_PLAIN
    return None


def _unknown(failure: Failure) -> Remedy:
    """For a code that is not in any table: what is known of it is its name and the server's text."""
    said = f' The server said: "{excerpt(failure.text)}".' if failure.text else " The server gave no text."
    if failure.code.startswith("Http"):
        return Remedy(
            f"HTTP status {failure.code.removeprefix('Http')} is not known as an answer of EWS.{said}",
            "find out what answered: the server, or a proxy in front of it; look for the request in its log; check "
            "[exchange] ews_url and proxy",
        )
    return Remedy(
        f"The code {failure.code} is not known to this version of ews-listener.{said}",
        f"look for {failure.code} in the list of response codes of EWS (ResponseCode, learn.microsoft.com) "
        f"and in the EWS "
        "log of the server; try the same mailbox with another client; report the code and the text to the "
        "maintainers",
    )


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
