"""Autodiscover: the EWS URL of a mailbox, and the mailboxes with which it can share a stream.

SOAP (MS-OXWSADISC, GetUserSettings) queries many mailboxes at once; the older POX (MS-OXDSCLI) queries one.
A mailbox without GroupingInformation is valid: it is grouped by its URL alone.
"""

from collections.abc import Sequence
from typing import TypeAlias

import msgspec
from lxml import etree

from listener.ews.codes import ExchangeError, Failure
from listener.ews.soap import build, child, child_text, parse, serialize, text
from listener.ews.values import URL_LENGTH, response_code
from listener.ews.xml import excerpt, local_name, read

SETTINGS = ("ExternalEwsUrl", "InternalEwsUrl", "GroupingInformation")
SOAP_PATH = "/autodiscover/autodiscover.svc"
POX_PATH = "/autodiscover/autodiscover.xml"
ACTION = "http://schemas.microsoft.com/exchange/2010/Autodiscover/Autodiscover/GetUserSettings"
POX_REQUEST = "http://schemas.microsoft.com/exchange/autodiscover/outlook/requestschema/2006"
POX_RESPONSE = "http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a"


class UserSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a mailbox. Missing values are None, but at least one URL is set."""

    external_ews_url: str | None = None
    internal_ews_url: str | None = None
    grouping_information: str | None = None


class Redirect(msgspec.Struct, frozen=True, kw_only=True):
    """Query again for this `address`, or at this https `url`. Exactly one is set."""

    address: str | None = None
    url: str | None = None


Answer: TypeAlias = UserSettings | Redirect | Failure


def candidate_urls(mailbox_domain: str, path: str = SOAP_PATH) -> list[str]:
    """Return the https URLs to query for mailboxes of this domain, in this order."""
    domain = mailbox_domain.strip().rstrip(".").lower()
    return [f"https://{host}{path}" for host in (domain, f"autodiscover.{domain}")]


# --- SOAP


def get_user_settings(mailboxes: Sequence[str], *, version: str, to_url: str) -> bytes:
    """Return a GetUserSettings request for these addresses, to post to `to_url`. Raises ValueError without any."""
    if not mailboxes:
        raise ValueError("GetUserSettings requires a mailbox")
    header = build(
        "soap:Header",
        build("a:RequestedServerVersion", version),
        build("wsa:Action", ACTION),
        build("wsa:To", to_url),
    )
    request = build(
        "a:Request",
        build("a:Users", *(build("a:User", build("a:Mailbox", mailbox)) for mailbox in mailboxes)),
        build("a:RequestedSettings", *(build("a:Setting", name) for name in SETTINGS)),
    )
    body = build("soap:Body", build("a:GetUserSettingsRequestMessage", request))
    return serialize(build("soap:Envelope", header, body))


def read_user_settings(content: bytes, mailboxes: Sequence[str]) -> dict[str, Answer]:
    """Return the answer for each of the `mailboxes` of the request, in their order.

    Raises ExchangeError if the request as a whole failed.
    """
    reply = parse(content)
    response = child(reply, "Response")
    if response is None:
        raise _unexpected(f"{local_name(reply)} without a Response")
    if failure := _failure(response):
        raise ExchangeError(failure)
    users = child(response, "UserResponses")
    answers = [] if users is None else [_read_user(user) for user in users]
    if len(answers) != len(mailboxes):
        # Only the order relates the answers to the mailboxes.
        raise _unexpected(f"{len(answers)} answers for {len(mailboxes)} mailboxes")
    return dict(zip(mailboxes, answers, strict=True))


def _read_user(user: etree._Element) -> Answer:
    code = child_text(user, "ErrorCode")
    target = child_text(user, "RedirectTarget")
    if code in ("RedirectAddress", "RedirectUrl") and len(target) > URL_LENGTH:
        return Failure(code="UnexpectedReply", text=f"{code} of {len(target)} characters")
    if code == "RedirectAddress" and target:
        return Redirect(address=target)
    if code == "RedirectUrl" and target:
        return _redirect_to(target)
    if failure := _failure(user):
        return failure
    settings = child(user, "UserSettings")
    values = (
        {} if settings is None else {child_text(each, "Name"): child_text(each, "Value") for each in settings}
    )
    errors = child(user, "UserSettingErrors")
    failures = [] if errors is None else list(filter(None, map(_failure, errors)))
    return _settings(
        values.get("ExternalEwsUrl"),
        values.get("InternalEwsUrl"),
        values.get("GroupingInformation"),
        failures,
    )


def _failure(element: etree._Element) -> Failure | None:
    """Return the ErrorCode and ErrorMessage, which occur at three levels, as a failure; None if there is no error."""
    code = response_code(child_text(element, "ErrorCode"))
    if code in ("", "NoError"):
        return None
    return Failure(code=code, text=excerpt(child_text(element, "ErrorMessage")))


def _settings(
    external: str | None, internal: str | None, grouping: str | None, failures: Sequence[Failure] = ()
) -> UserSettings | Failure:
    if len(external or "") > URL_LENGTH or len(internal or "") > URL_LENGTH:
        return Failure(code="UnexpectedReply", text=f"an EWS URL of more than {URL_LENGTH} characters")
    if external or internal:
        return UserSettings(
            external_ews_url=external or None,
            internal_ews_url=internal or None,
            grouping_information=excerpt(grouping or "") or None,  # used as the name of a group
        )
    return next(
        iter(failures), Failure(code="SettingIsNotAvailable", text="Autodiscover returned no EWS URL")
    )


def _redirect_to(url: str) -> Redirect | Failure:
    if url.lower().startswith("https://"):
        return Redirect(url=url)
    return Failure(code="InsecureRedirect", text=f"Autodiscover redirects to {excerpt(url)}")


def _unexpected(what: str) -> ExchangeError:
    return ExchangeError(Failure(code="UnexpectedReply", text=excerpt(what)))


# --- POX


def pox_request(mailbox: str) -> bytes:
    """Return a POX request for one address, to post as `text/xml`."""
    root = etree.Element(f"{{{POX_REQUEST}}}Autodiscover", nsmap={None: POX_REQUEST})  # type: ignore[dict-item]  # stubs
    request = etree.SubElement(root, f"{{{POX_REQUEST}}}Request")
    etree.SubElement(request, f"{{{POX_REQUEST}}}EMailAddress").text = mailbox
    etree.SubElement(request, f"{{{POX_REQUEST}}}AcceptableResponseSchema").text = POX_RESPONSE
    return serialize(root)


def read_pox(content: bytes) -> UserSettings | Redirect:
    """Return the answer for the mailbox.

    Raises ExchangeError. For an Error element, the code is `Pox` and its number.
    """
    root = read(content)
    response = child(root, "Response") if local_name(root) == "Autodiscover" else None
    if response is None:
        raise _unexpected(
            f"an XML document with root element {local_name(root)} instead of an Autodiscover response"
        )
    for error in response.iter("{*}Error"):
        message = child_text(error, "Message") or child_text(error, "DebugData")
        raise ExchangeError(
            Failure(code=response_code(f"Pox{child_text(error, 'ErrorCode')}"), text=excerpt(message))
        )
    account = child(response, "Account")
    if account is None:
        raise _unexpected("an Autodiscover response without an Account")
    answer = _read_account(account)
    if isinstance(answer, Failure):
        raise ExchangeError(answer)
    return answer


def _read_account(account: etree._Element) -> Answer:
    for name in ("RedirectAddr", "RedirectUrl"):
        if len(target := child_text(account, name)) > URL_LENGTH:
            return Failure(code="UnexpectedReply", text=f"{name} of {len(target)} characters")
    if address := child_text(account, "RedirectAddr"):
        return Redirect(address=address)
    if url := child_text(account, "RedirectUrl"):
        return _redirect_to(url)
    urls: dict[str, str] = {}
    # EwsUrl is the EWS URL. ASUrl, of the availability service, is older and in practice the same.
    for name in ("EwsUrl", "ASUrl"):
        # This includes the protocols nested in those of type WEB, which have their own types EXPR and EXCH.
        for protocol in account.iter("{*}Protocol"):
            if url := child_text(protocol, name):
                urls.setdefault(child_text(protocol, "Type"), url)
    grouping = next(filter(None, map(text, account.iter("{*}GroupingInformation"))), None)
    # EXPR is for external clients, EXCH for internal ones, EXHTTP for both.
    external = next((urls[kind] for kind in ("EXPR", "EXHTTP", "WEB") if kind in urls), None)
    return _settings(external, urls.get("EXCH"), grouping)
