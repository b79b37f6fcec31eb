"""Autodiscover: SOAP GetUserSettings (MS-OXWSADISC) and POX (MS-OXDSCLI)."""

from collections.abc import Iterable
from xml.sax.saxutils import escape

from lxml import etree

from listener.simulator.directory import Directory, grouping
from listener.simulator.faults import AutodiscoverFailure
from listener.simulator.mailstore import Mailbox
from listener.simulator.requests import SOAP, MalformedRequest, parse_xml

_A = "http://schemas.microsoft.com/exchange/2010/Autodiscover"
_WSA = "http://www.w3.org/2005/08/addressing"
_XSI = "http://www.w3.org/2001/XMLSchema-instance"
_REQUEST_POX = "http://schemas.microsoft.com/exchange/autodiscover/outlook/requestschema/2006"
_ACTION = f"{_A}/Autodiscover/GetUserSettings"


def soap(
    body: bytes,
    directory: Directory,
    ews_url: str,
    most_users: int,
    failing: AutodiscoverFailure | None = None,
) -> bytes:
    """Return the response to POST autodiscover.svc. With `failing`, it reports that error code.

    Raises MalformedRequest if the body is not a GetUserSettings request.
    """
    root = parse_xml(body)
    request = root.find(f"{SOAP}Body/{{{_A}}}GetUserSettingsRequestMessage/{{{_A}}}Request")
    if request is None:
        raise MalformedRequest("The request has no GetUserSettingsRequestMessage.")
    action = root.findtext(f"{SOAP}Header/{{{_WSA}}}Action", "").strip()
    users = [
        element.text or "" for element in request.iterfind(f"{{{_A}}}Users/{{{_A}}}User/{{{_A}}}Mailbox")
    ]
    wanted = [
        element.text or "" for element in request.iterfind(f"{{{_A}}}RequestedSettings/{{{_A}}}Setting")
    ]
    if action != _ACTION:
        return _response("InvalidRequest", f"The action '{action}' is not known.", ())
    if root.find(f"{SOAP}Header/{{{_A}}}RequestedServerVersion") is None:
        return _response("InvalidRequest", "Missing RequestedServerVersion in the SOAP header.", ())
    if not users or not wanted:
        return _response("InvalidRequest", "At least one user and one setting must be requested.", ())
    if len(users) > most_users:
        return _response("InvalidRequest", f"At most {most_users} users can be asked for at once.", ())
    if failing and failing.code:
        if failing.level == "response":
            return _response(failing.code, "The request cannot be served now.", ())
        return _response("NoError", "", (_refused(failing.code, f"No answer for '{user}'") for user in users))
    return _response("NoError", "", (_user(user, wanted, directory, ews_url) for user in users))


def _settings(mailbox: Mailbox, directory: Directory, ews_url: str) -> dict[str, str]:
    return {
        "UserDisplayName": mailbox.name,
        "UserDN": f"/o=Contoso/ou=Exchange Administrative Group/cn=Recipients/cn={mailbox.guid.hex}",
        "UserDeploymentId": str(mailbox.guid),
        "AutoDiscoverSMTPAddress": mailbox.address,
        "InternalMailboxServer": directory.home(mailbox),
        "InternalEwsUrl": ews_url,
        "ExternalEwsUrl": ews_url,
        "EwsSupportedSchemas": "Exchange2007, Exchange2007_SP1, Exchange2010, Exchange2010_SP1, Exchange2010_SP2, "
        "Exchange2013, Exchange2013_SP1, Exchange2016",
        "GroupingInformation": grouping(directory.home(mailbox)),
    }


def _user(user: str, wanted: Iterable[str], directory: Directory, ews_url: str) -> str:
    mailbox = directory.find(user)
    if mailbox is None:
        return _refused("InvalidUser", f"Invalid user: '{user}'")
    known = _settings(mailbox, directory, ews_url)
    errors, settings = [], []
    for name in wanted:
        if name in known:
            settings.append(
                f'<UserSetting i:type="StringSetting"><Name>{name}</Name>'
                f"<Value>{escape(known[name])}</Value></UserSetting>"
            )
        else:
            errors.append(
                "<UserSettingError><ErrorCode>SettingIsNotAvailable</ErrorCode>"
                f"<ErrorMessage>Setting is not available.</ErrorMessage>"
                f"<SettingName>{escape(name)}</SettingName></UserSettingError>"
            )
    return (
        "<UserResponse><ErrorCode>NoError</ErrorCode><ErrorMessage>No error.</ErrorMessage>"
        f'<RedirectTarget i:nil="true"/><UserSettingErrors>{"".join(errors)}</UserSettingErrors>'
        f"<UserSettings>{''.join(settings)}</UserSettings></UserResponse>"
    )


def _refused(code: str, message: str) -> str:
    return (
        f"<UserResponse><ErrorCode>{code}</ErrorCode><ErrorMessage>{escape(message)}</ErrorMessage>"
        '<RedirectTarget i:nil="true"/><UserSettingErrors/><UserSettings/></UserResponse>'
    )


def _response(code: str, message: str, users: Iterable[str]) -> bytes:
    return (
        f'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" xmlns:a="{_WSA}"><s:Header>'
        f'<a:Action s:mustUnderstand="1">{_ACTION}Response</a:Action>'
        f'<h:ServerVersionInfo xmlns:h="{_A}" xmlns:i="{_XSI}"><h:MajorVersion>15</h:MajorVersion>'
        "<h:MinorVersion>2</h:MinorVersion><h:MajorBuildNumber>2562</h:MajorBuildNumber>"
        "<h:MinorBuildNumber>17</h:MinorBuildNumber><h:Version>Exchange2015</h:Version></h:ServerVersionInfo>"
        f'</s:Header><s:Body><GetUserSettingsResponseMessage xmlns="{_A}"><Response xmlns:i="{_XSI}">'
        f"<ErrorCode>{code}</ErrorCode><ErrorMessage>{escape(message)}</ErrorMessage>"
        f"<UserResponses>{''.join(users)}</UserResponses></Response></GetUserSettingsResponseMessage>"
        "</s:Body></s:Envelope>"
    ).encode()


def pox(body: bytes, directory: Directory, ews_url: str) -> bytes:
    """Return the response to POST autodiscover.xml.

    Raises MalformedRequest if the body has no address.
    """
    root: etree._Element = parse_xml(body)
    address = root.findtext(f"{{{_REQUEST_POX}}}Request/{{{_REQUEST_POX}}}EMailAddress")
    if address is None:
        raise MalformedRequest("The request has no EMailAddress.")
    mailbox = directory.find(address)
    head = (
        '<?xml version="1.0" encoding="utf-8"?>'
        '<Autodiscover xmlns="http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006">'
    )
    if mailbox is None:
        return (
            f'{head}<Response><Error Time="00:00:00.0000000" Id="1"><ErrorCode>500</ErrorCode>'
            "<Message>The e-mail address cannot be found.</Message><DebugData/></Error></Response></Autodiscover>"
        ).encode()
    known = {name: escape(value) for name, value in _settings(mailbox, directory, ews_url).items()}

    def protocol(kind: str) -> str:
        return (
            f"<Protocol><Type>{kind}</Type><Server>{known['InternalMailboxServer']}</Server>"
            f"<ASUrl>{known['ExternalEwsUrl']}</ASUrl><EwsUrl>{known['ExternalEwsUrl']}</EwsUrl>"
            f"<GroupingInformation>{known['GroupingInformation']}</GroupingInformation></Protocol>"
        )

    return (
        f'{head}<Response xmlns="http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a">'
        f"<User><DisplayName>{known['UserDisplayName']}</DisplayName><LegacyDN>{known['UserDN']}</LegacyDN>"
        f"<AutoDiscoverSMTPAddress>{known['AutoDiscoverSMTPAddress']}</AutoDiscoverSMTPAddress>"
        f"<DeploymentId>{known['UserDeploymentId']}</DeploymentId></User><Account><AccountType>email</AccountType>"
        f"<Action>settings</Action>{protocol('EXCH')}{protocol('EXPR')}</Account></Response></Autodiscover>"
    ).encode()
