"""What must refuse the account is tried, on a virtual clock, against a server that is a few lines of script."""

from collections.abc import Mapping, Sequence

import httpx
import pytest
import structlog.testing
import trio
import trio.testing

from listener.ews.codes import Failure
from listener.ews.soap import acting_as
from listener.groups.affinity import Placement
from listener.rights.scope import Finding, Scope
from tests.ews.samples import refused, reply
from tests.exchange.test_client import access

URL = "https://mail.example/EWS/Exchange.asmx"
FOLDER = '<m:Folders><t:Folder><t:FolderId Id="i"/></t:Folder></m:Folders>'
REACHED = reply(
    "GetFolder",
    '<m:GetFolderResponseMessage ResponseClass="Success"><m:ResponseCode>NoError</m:ResponseCode>'
    f"{FOLDER}</m:GetFolderResponseMessage>",
)


class Server(httpx.AsyncBaseTransport):
    """`says` has the response code for each mailbox; without one it can be reached."""

    def __init__(self, **says: str) -> None:
        self.says = says
        self.asked: list[tuple[float, str]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        who = acting_as(await request.aread())
        assert who is not None
        self.asked.append((round(trio.current_time()), who.value))
        code = self.says.get(who.value)
        content = REACHED if code is None else refused("GetFolder", code)
        return httpx.Response(200, stream=httpx.ByteStream(content))


def scope(server: Server, *mailboxes: str, lost: Sequence[str] = (), interval: float = 86400.0) -> Scope:
    async def places(asked: Sequence[str]) -> Mapping[str, Placement | Failure]:
        return {m: Failure(code="InvalidUser") if m in lost else Placement(URL, "", m) for m in asked}

    return Scope(
        mailboxes=mailboxes,
        access=access(transport=server),
        version="Exchange2013_SP1",
        places=places,
        interval=interval,
    )


@pytest.mark.parametrize(
    ("code", "finding"),
    [
        (None, Finding.REACHED),
        ("ErrorImpersonateUserDenied", Finding.REFUSED),
        ("ErrorImpersonationDenied", Finding.REFUSED),
        ("ErrorAccessDenied", Finding.REFUSED),
        ("ErrorImpersonationFailed", Finding.NOT_PROVED),
        ("ErrorNonExistentMailbox", Finding.NOT_PROVED),
        ("ErrorInternalServerError", Finding.NOT_PROVED),
        ("ErrorNobodyHeardOf", Finding.NOT_PROVED),
    ],
)
async def test_what_an_answer_proves(
    code: str | None, finding: Finding, autojump_clock: trio.testing.MockClock
) -> None:
    server = Server(**({"ceo": code} if code else {}))
    (attempt,) = await scope(server, "ceo").prove()
    assert attempt.finding is finding


async def test_the_log_tells_of_each_that_is_not_refused_and_else_of_all(
    autojump_clock: trio.testing.MockClock,
) -> None:
    denied = "ErrorImpersonateUserDenied"
    with structlog.testing.capture_logs() as log:
        await scope(Server(ceo=denied, cfo=denied), "ceo", "cfo").prove()
        await scope(Server(ceo=denied), "ceo", "cfo", "cto", lost=["cto"]).prove()
    told = [(line["event"], line.get("mailbox")) for line in log if line["event"].startswith("scope.")]
    assert told[0] == ("scope.proved", None)
    assert sorted(told[1:]) == [("scope.not_proved", "cto"), ("scope.open", "cfo")]


async def test_it_is_tried_daily_and_sooner_while_nothing_is_proved(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server(ceo="ErrorInternalServerError")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scope(server, "ceo").watch)
        await trio.sleep(500)
        server.says["ceo"] = "ErrorImpersonateUserDenied"
        await trio.sleep(200_000)
        nursery.cancel_scope.cancel()
    assert [moment for moment, _ in server.asked] == [0, 60, 180, 420, 900, 87300, 173700]


async def test_nothing_is_tried_where_nothing_must_refuse(autojump_clock: trio.testing.MockClock) -> None:
    server = Server()
    await scope(server).watch()
    assert server.asked == []
