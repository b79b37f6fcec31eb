from lxml import etree

from listener.simulator.directory import grouping
from listener.simulator.http import HttpRequest, Reply
from tests.simulator.client import Client

A = "http://schemas.microsoft.com/exchange/2010/Autodiscover"
N = {"a": A, "o": "http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a"}
ACTION = f"{A}/Autodiscover/GetUserSettings"


def soap(users: list[str], settings: list[str], *, action: str = ACTION) -> bytes:
    listed = "".join(f"<a:User><a:Mailbox>{user}</a:Mailbox></a:User>" for user in users)
    wanted = "".join(f"<a:Setting>{setting}</a:Setting>" for setting in settings)
    return (
        f'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" xmlns:a="{A}" '
        'xmlns:w="http://www.w3.org/2005/08/addressing"><s:Header>'
        f"<a:RequestedServerVersion>Exchange2013</a:RequestedServerVersion><w:Action>{action}</w:Action>"
        f"</s:Header><s:Body><a:GetUserSettingsRequestMessage><a:Request><a:Users>{listed}</a:Users>"
        f"<a:RequestedSettings>{wanted}</a:RequestedSettings></a:Request></a:GetUserSettingsRequestMessage>"
        "</s:Body></s:Envelope>"
    ).encode()


def pox(address: str) -> bytes:
    schema = "http://schemas.microsoft.com/exchange/autodiscover/outlook"
    return (
        f'<Autodiscover xmlns="{schema}/requestschema/2006"><Request><EMailAddress>{address}</EMailAddress>'
        f"<AcceptableResponseSchema>{schema}/responseschema/2006a</AcceptableResponseSchema></Request>"
        "</Autodiscover>"
    ).encode()


def ask(client: Client, body: bytes, path: str = "/autodiscover/autodiscover.svc") -> Reply:
    return client.exchange.handle(HttpRequest("POST", path, {}, body, client.settings.user), client.now)


def tree(reply: Reply) -> etree._Element:
    assert isinstance(reply.body, bytes)
    return etree.fromstring(reply.body)


def test_settings_of_several_users() -> None:
    client = Client()
    people = client.mailboxes[:3]
    users = [mailbox.address for mailbox in people]
    answers = tree(ask(client, soap(users, ["ExternalEwsUrl", "GroupingInformation"]))).iter(
        f"{{{A}}}UserResponse"
    )
    for mailbox, answer in zip(people, answers, strict=True):
        assert answer.findtext("a:ErrorCode", namespaces=N) == "NoError"
        names = [name.text for name in answer.iter(f"{{{A}}}Name")]
        values = [value.text for value in answer.iter(f"{{{A}}}Value")]
        assert dict(zip(names, values, strict=True)) == {
            "ExternalEwsUrl": "https://mail.contoso.example/EWS/Exchange.asmx",
            "GroupingInformation": grouping(client.exchange.directory.home(mailbox)),
        }


def test_unknown_user_and_unknown_setting() -> None:
    client = Client()
    answer = tree(
        ask(client, soap(["unknown@contoso.example", client.mailboxes[0].address], ["MobileMailboxPolicy"]))
    )
    codes = [code.text for code in answer.iter(f"{{{A}}}ErrorCode")]
    assert codes == ["NoError", "InvalidUser", "NoError", "SettingIsNotAvailable"]


def test_invalid_requests() -> None:
    client = Client()
    address = client.mailboxes[0].address
    for body in (
        soap([], ["ExternalEwsUrl"]),
        soap([address], []),
        soap([address] * 101, ["ExternalEwsUrl"]),
        soap([address], ["ExternalEwsUrl"], action="GetUserSettings"),
        soap([address], ["ExternalEwsUrl"]).replace(b"RequestedServerVersion", b"ServerVersion"),
    ):
        assert tree(ask(client, body)).findtext(".//a:Response/a:ErrorCode", namespaces=N) == "InvalidRequest"
    assert ask(client, b"<a>").status == 400
    assert ask(client, b"<a/>").status == 400


def test_pox() -> None:
    client = Client()
    alice = client.mailboxes[0]
    found = tree(ask(client, pox(alice.address), "/Autodiscover/Autodiscover.xml"))
    assert (
        found.findtext(".//o:Protocol/o:EwsUrl", namespaces=N)
        == "https://mail.contoso.example/EWS/Exchange.asmx"
    )
    expected = grouping(client.exchange.directory.home(alice))
    assert found.findtext(".//o:Protocol/o:GroupingInformation", namespaces=N) == expected
    unknown = tree(ask(client, pox("unknown@contoso.example"), "/autodiscover/autodiscover.xml"))
    assert unknown.findtext(".//{*}ErrorCode") == "500"
    assert ask(client, b"<a/>", "/autodiscover/autodiscover.xml").status == 400
    assert ask(client, b"<a/>", "/autodiscover/autodiscover.json").status == 404
