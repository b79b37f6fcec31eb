"""What mostly causes a failure, and the cmdlet or the setting that mends it: as data, by code.

The cmdlets are those of the Exchange Management Shell; `SERVICE`, `MAILBOX` and `FOLDER` stand for what is meant.
Sources: "Configure impersonation", "Control access to EWS in Exchange", "Handling delegation-related errors in EWS in
Exchange", "Role Based Access Control for Applications in Exchange Online" (learn.microsoft.com).
"""

from typing import NamedTuple

from listener.ews.codes import UNKNOWN_TO_FRONT_END, Failure, Verdict


class Remedy(NamedTuple):
    """The likely cause, and what to do; either may be empty."""

    cause: str
    mend: str = ""


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
    "There is no such mailbox: a typing mistake, or it was removed.",
    "Get-Mailbox MAILBOX; correct [mailboxes]",
)
_NO_PERMISSION = Remedy(
    "The folder is not there, or the account has no permission on it.",
    "Add-MailboxFolderPermission MAILBOX:\\FOLDER -User SERVICE -AccessRights Reviewer",
)
_DELEGATE = Remedy(
    "The account may read there, but not subscribe: Exchange wants the rights of an owner for that.",
    "Add-MailboxPermission MAILBOX -User SERVICE -AccessRights FullAccess",
)
_MOVING = Remedy(
    "The mailbox is being moved, or lives elsewhere than Autodiscover says.", "Get-MoveRequest MAILBOX"
)
_CREDENTIALS = Remedy(
    "User or password is wrong, the account is locked or disabled, or the server wants another [auth] kind.",
    "Get-ADUser SERVICE -Properties LockedOut,Enabled; see [auth]; Get-WebServicesVirtualDirectory | "
    "Format-List *Authentication,ExtendedProtectionTokenChecking",
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
    "See [exchange] ews_url and proxy; a publishing rule must let /EWS/ pass without pre-authentication",
)
_VERSION = Remedy("The server does not understand what is asked.", "Try another [exchange] version")
_NETWORK = Remedy("Nobody answers there.", "See [exchange] ews_url, proxy and the firewall between")

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
    "NameNotResolved": Remedy("DNS does not know the host.", "Resolve-DnsName HOST; see [exchange] ews_url"),
    "TlsFailed": Remedy(
        "The certificate is not trusted, has expired, or is another host's.",
        "[exchange] ca_file for an authority of your own; Get-ExchangeCertificate | Format-List Subject,NotAfter,"
        "CertificateDomains,Services",
    ),
    "HandshakeRefused": Remedy(
        "User or password is wrong; or Extended Protection is in the way: a proxy or load balancer ends TLS with "
        "another certificate than the server's.",
        "Get-WebServicesVirtualDirectory | Format-List ExtendedProtectionTokenChecking; let both have the same "
        "certificate, or pass TLS through",
    ),
    "SchemeNotOffered": Remedy(
        "The server does not take this kind of authentication.",
        "[auth] kind; Get-WebServicesVirtualDirectory | Format-List *Authentication",
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
    "Http407": Remedy("The proxy wants credentials.", "[exchange] proxy_user and proxy_password"),
}

_BY_VERDICT: dict[Verdict, Remedy] = {
    Verdict.RETRY: Remedy(
        "The server, or a proxy before it, is ill.", "Wait, and check again; Test-ServiceHealth"
    ),
    Verdict.WAIT: _BUSY,
    Verdict.REGROUP: _MOVING,
    Verdict.CREDENTIALS: _CREDENTIALS,
    Verdict.STOP: _VERSION,
}


def remedy(failure: Failure, *, mailbox: str = "MAILBOX", account: str = "SERVICE") -> Remedy:
    """The likely cause of a failure and what mends it, for this mailbox and this account."""
    found = REMEDIES.get(failure.code) or _BY_VERDICT.get(failure.verdict, Remedy(""))
    return Remedy(found.cause, found.mend.replace("MAILBOX", mailbox).replace("SERVICE", account))
