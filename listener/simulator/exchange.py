"""Exchange without its sockets: requests in, replies out, the time given.

`handle(request, now)` answers one request; `publish(events)` tells of changes; `advance(now)` lets time pass. Now
is in Unix seconds throughout. What a stream writes, and when, is in subscriptions.Stream.
"""

import re
from collections import Counter
from collections.abc import Iterable
from functools import partial
from random import Random
from uuid import UUID

from lxml import etree

from listener.simulator import autodiscover, responses
from listener.simulator.auth.authenticator import Gate
from listener.simulator.directory import Directory
from listener.simulator.fault_effects import Conditions, Disasters, faulty_reply
from listener.simulator.fault_scheduler import Chaos
from listener.simulator.faults import HangUp, NoAnswer
from listener.simulator.frontend import COOKIE, Budgets, Route, override_cookie, route
from listener.simulator.http import HttpRequest, Reply, page
from listener.simulator.ledger import Ledger, Line
from listener.simulator.mailstore import KINDS, Event, Folder, Mailbox
from listener.simulator.operations import OPERATIONS, SYNC_OPERATIONS
from listener.simulator.requests import (
    STREAMING_VERSIONS,
    VERSIONS,
    Call,
    M,
    Malformed,
    NoRight,
    Session,
    T,
    concerned,
    find_folder,
    parse_call,
)
from listener.simulator.responses import Failure
from listener.simulator.settings import Settings
from listener.simulator.subscriptions import Stream, Subscription, Subscriptions

_EXPIRY_INTERVAL = 5.0
_ADDRESS = re.compile(rb"[^\s<>;,]+@[^\s<>;,]+")
_ABOUT_SUBSCRIPTIONS = ("GetStreamingEvents", "Unsubscribe")


class Exchange:
    """One organisation's servers. `requests` counts (operation, HTTP status); `base_url` is where clients reach
    them, without a slash at the end, and must be set before Autodiscover can answer. `chaos` makes faults.
    FaultError: `settings.faults` name what is not there."""

    def __init__(self, settings: Settings, ledger: Ledger, now: float) -> None:
        self.settings = settings
        self.directory = Directory(settings, now)
        self.subscriptions = Subscriptions(
            self.directory.backends, settings.limits, counted_ids=settings.rules.counted_ids
        )
        self.budgets = Budgets(settings.limits)
        self.ledger = ledger
        self.base_url = ""
        self.requests: Counter[tuple[str, int]] = Counter()
        self.streams: dict[Stream, None] = {}
        self._rng = Random(f"exchange {settings.seed}")
        self._expiry = now + _EXPIRY_INTERVAL
        self.conditions = Conditions()
        self.gate = Gate(settings, self.directory.accounts, self.conditions)
        rng = Random(f"faults {settings.seed}")
        disasters = Disasters(
            self.directory, self.subscriptions, self.streams, self.conditions, rng, tls=settings.tls
        )
        self.chaos = Chaos(self.directory, self.subscriptions, self.streams, disasters, ledger, rng)
        self.chaos.begin(settings.faults, now)

    def publish(self, events: Iterable[Event]) -> list[Line]:
        """Write changes into the ledger and queue them for whoever has subscribed."""
        lines = []
        for event in events:
            lines.append(self.ledger.enter(event))
            self.subscriptions.publish(event)
        if lines:
            self.ledger.flush()
        return lines

    def advance(self, now: float) -> None:
        """Let subscriptions die that nobody reads, and faults happen."""
        self.chaos.advance(now)
        if now >= self._expiry:
            self._expiry = now + _EXPIRY_INTERVAL
            self.subscriptions.expire(now)

    def handle(self, request: HttpRequest, now: float) -> Reply:
        """Answer one request of an authenticated account."""
        path = request.path.partition("?")[0].lower()
        if self.conditions.outage:
            name, reply = "-", self._outage()
        elif path == "/ews/exchange.asmx":
            name, reply = self._ews(request, now)
        elif path.startswith("/autodiscover/autodiscover."):
            name, reply = "Autodiscover", self._autodiscover(path, request, now)
        else:
            name, reply = "-", page(404, "Not Found")
        self.requests[name, reply.status] += 1
        return reply

    def _outage(self) -> Reply:
        reply = page(503, "Service Unavailable")
        if self.conditions.outage and self.conditions.outage.how != "503":
            reply.manner = HangUp(reset=True)
        return reply

    # -- Autodiscover ----------------------------------------------------------------------------------------

    def _autodiscover(self, path: str, request: HttpRequest, now: float) -> Reply:
        def concerned() -> list[str]:
            return [found.decode("utf-8", "replace").lower() for found in _ADDRESS.findall(request.body)]

        genuine = partial(self._discover, path, request)
        fault = self.chaos.strike("Autodiscover", concerned, now)
        if fault is None:
            return genuine()
        return faulty_reply(fault, "Autodiscover", [], self.settings.host, now, genuine)

    def _discover(self, path: str, request: HttpRequest) -> Reply:
        ews_url = f"{self.base_url}/EWS/Exchange.asmx"
        most = self.settings.limits.users_per_discovery
        failing = self.conditions.discovery
        if failing and (failing.code is None or not path.endswith(".svc")):
            return page(failing.status, "Autodiscover is not available")
        reply = page(404, "Not Found")
        try:
            if path == "/autodiscover/autodiscover.svc" and request.method == "POST":
                reply = Reply(200, autodiscover.soap(request.body, self.directory, ews_url, most, failing))
            elif path == "/autodiscover/autodiscover.xml" and request.method == "POST":
                reply = Reply(200, autodiscover.pox(request.body, self.directory, ews_url))
        except Malformed as error:
            reply = page(400, f"Bad Request: {error}")
        reply.headers += self._server_headers(self._rng.choice(self.directory.backends), request)
        reply.delay = self.settings.network.latency
        return reply

    # -- EWS -------------------------------------------------------------------------------------------------

    def _ews(self, request: HttpRequest, now: float) -> tuple[str, Reply]:
        if self.conditions.ews_disabled:
            reason = self.conditions.ews_disabled.reason
            return "-", page(403, "Forbidden", [("X-EWS-Policy-Reason", reason)])
        if request.method != "POST":
            return "-", page(405, "Method Not Allowed", [("Allow", "POST")])
        try:
            call = parse_call(request.body)
        except Malformed as error:
            failure = Failure("ErrorSchemaValidation", f"The request failed schema validation: {error}")
            return "-", self._fault(failure, request)
        genuine = partial(self._genuine, call, request, now)
        fault = self.chaos.strike(call.operation, partial(self._concerned, call), now)
        if fault is None:
            reply = genuine()
            if self.conditions.buffered and isinstance(reply.body, Stream):
                reply.manner = NoAnswer()
            return call.operation, reply
        host = self.settings.host
        return call.operation, faulty_reply(fault, call.operation, _stream_ids(call), host, now, genuine)

    def _genuine(self, call: Call, request: HttpRequest, now: float) -> Reply:
        try:
            return self._call(call, request, now)
        except Failure as refused:
            return self._fault(refused, request)

    def _fault(self, failure: Failure, request: HttpRequest) -> Reply:
        headers = self._server_headers(self._rng.choice(self.directory.backends), request)
        return Reply(500, responses.fault(failure), headers, delay=self.settings.network.latency)

    def _concerned(self, call: Call) -> list[str]:
        """The addresses of the mailboxes that a request is about."""
        ids = set(_stream_ids(call))
        if ids:
            return sorted({each.mailbox for each in self.subscriptions if each.id in ids})
        actor = self.directory.find(call.impersonated or "")
        mailbox = concerned(call, actor, self.directory)
        return [mailbox.address] if mailbox else []

    def _call(self, call: Call, request: HttpRequest, now: float) -> Reply:
        """Answer in the right place. Failure: a fault."""
        if call.version is not None and call.version not in VERSIONS:
            raise Failure("ErrorInvalidServerVersion")
        actor = self._actor(call, request)
        charged = actor.address if actor else request.account
        mailbox = concerned(call, actor, self.directory)
        home = None
        if call.operation not in _ABOUT_SUBSCRIPTIONS and mailbox:
            home = self.directory.home(mailbox)
        way = route(request, home, self.directory, self._rng)
        headers = self._server_headers(way.backend, request)
        network = self.settings.network
        delay = network.latency
        if actor and actor.address in self.directory.rights.without_ews:
            return page(403, "Forbidden", headers, delay=delay)
        if mailbox and mailbox is not actor and (gone := self.conditions.disabled.get(mailbox.address)):
            raise Failure(gone, fault=True)
        if way.backend in self.conditions.down:
            return page(503, "Service Unavailable", headers, delay=delay)
        if way.proxied:
            delay = self._rng.uniform(*network.proxied_latency)
            chance = self._rng.random()
            if chance < network.proxied_500:
                return page(500, "Runtime Error", headers, delay=delay)
            if chance < network.proxied_500 + network.proxied_503:
                return page(503, "Service Unavailable", headers, delay=delay)
        self._check_throttle(streaming=call.operation == "GetStreamingEvents")
        session = Session(call, request.account, actor, way.backend, self.directory, now)
        if call.operation == "GetStreamingEvents":
            return self._stream(session, charged, headers, delay)
        leave = self.budgets.enter(charged, syncs=call.operation in SYNC_OPERATIONS)
        try:
            body = self._answer(session, charged, way)
        except Failure as failure:
            if failure.fault:
                return Reply(500, responses.fault(failure), headers, delay=delay, finish=leave)
            content = responses.ERROR_CONTENT.get(call.operation, "")
            body = responses.response(call.operation, [responses.error(call.operation, failure, content)])
        else:
            if call.operation == "Subscribe" and way.affinity:
                cookie = f"{COOKIE}={override_cookie(way.backend)}; path=/; HttpOnly"
                headers.append(("Set-Cookie", cookie))
        return Reply(200, responses.envelope(body), headers, delay=delay, finish=leave)

    def _check_throttle(self, *, streaming: bool) -> None:
        """Failure: the account has too much under way."""
        throttled = self.conditions.throttled
        if throttled is None:
            return
        running = self.budgets.hanging if streaming else self.budgets.running
        most = throttled.connections if streaming else throttled.concurrency
        if most is not None and running >= most:
            values = {"BackOffMilliseconds": str(throttled.back_off_ms)}
            raise Failure("ErrorServerBusy", fault=True, values=values)

    def _actor(self, call: Call, request: HttpRequest) -> Mailbox | None:
        """Whose mailbox it is about. Failure: the impersonation is refused, or missing."""
        if call.impersonated is None:
            if request.app_only:
                # An application has no mailbox: it can act as somebody, or not at all.
                text = "An application needs the ExchangeImpersonation header."
                raise Failure("ErrorInvalidExchangeImpersonationHeaderData", text, fault=True)
            return self.directory.find(request.account)
        mailbox = self.directory.find(call.impersonated)
        if mailbox is None:
            raise Failure("ErrorNonExistentMailbox", fault=True)
        refusal = self.conditions.refusal(mailbox.address)
        if refusal:
            raise Failure(refusal, fault=True)
        if not self.directory.may_impersonate(request.account, mailbox):
            raise Failure("ErrorImpersonateUserDenied", fault=True)
        return mailbox

    def _answer(self, session: Session, charged: str, way: Route) -> str:
        operation = session.call.operation
        if operation == "Subscribe":
            return self._subscribe(session, charged, way)
        if operation == "Unsubscribe":
            return self._unsubscribe(session)
        if operation in OPERATIONS:
            return OPERATIONS[operation](session)
        raise Failure("ErrorInvalidRequest", fault=True)

    # -- subscriptions ---------------------------------------------------------------------------------------

    def _subscribe(self, session: Session, charged: str, way: Route) -> str:
        _check_version(session.call)
        request = session.call.element.find(f"{M}StreamingSubscriptionRequest")
        if request is None:
            raise Failure("ErrorInvalidSubscriptionRequest", "Only streaming subscriptions are offered here.")
        kinds = frozenset(element.text or "" for element in request.iterfind(f"{T}EventTypes/{T}EventType"))
        if not kinds or not kinds <= frozenset(KINDS):
            raise _invalid("EventTypes")
        folder_ids = request.findall(f"{T}FolderIds/*")
        everything = request.get("SubscribeToAllFolders", "false") in ("true", "1")
        if everything == bool(folder_ids):
            raise Failure("ErrorInvalidSubscriptionRequest")
        watched = [_watched(session, element) for element in folder_ids]
        mailboxes = [mailbox for mailbox, _ in watched]
        mailbox = mailboxes[0] if mailboxes else session.actor
        if any(other is not mailbox for other in mailboxes):
            raise Failure("ErrorInvalidSubscriptionRequest", "A subscription is to folders of one mailbox.")
        if mailbox is None:
            raise Failure("ErrorMissingEmailAddress")
        if moving := self.conditions.moving.get(mailbox.address):
            raise Failure(moving)
        folders = None if everything else frozenset(folder.id for _, folder in watched)
        made = self.subscriptions.add(
            way.backend, mailbox, session.account, charged, kinds, folders, session.now
        )
        message = responses.success("Subscribe", f"<m:SubscriptionId>{made.id}</m:SubscriptionId>")
        return responses.response("Subscribe", [message])

    def _unsubscribe(self, session: Session) -> str:
        id_ = session.call.element.findtext(f"{M}SubscriptionId") or ""
        found = self.subscriptions.find(session.backend, id_, session.account)
        self.subscriptions.remove(found, "ErrorSubscriptionUnsubscribed")
        return responses.response("Unsubscribe", [responses.success("Unsubscribe")])

    def _stream(self, session: Session, charged: str, headers: list[tuple[str, str]], delay: float) -> Reply:
        """The long answer to GetStreamingEvents. Failure: a fault."""
        _check_version(session.call)
        request = session.call.element
        ids = _stream_ids(session.call)
        minutes = request.findtext(f"{M}ConnectionTimeout") or ""
        if not minutes.isdecimal() or not 1 <= int(minutes) <= 30:
            raise _invalid("ConnectionTimeout")
        if not ids:
            raise _invalid("SubscriptionIds")
        if len(ids) > self.settings.limits.ids_per_stream:
            raise Failure("ErrorInvalidRequest", fault=True)
        leave = self.budgets.hang(charged)
        good: dict[str, Subscription] = {}
        failed: dict[str, list[str]] = {}
        for id_ in ids:
            try:
                found = self.subscriptions.find(session.backend, id_, session.account)
                if self.settings.rules.one_user_per_stream and found.charged != charged:
                    raise Failure("ErrorSubscriptionAccessDenied")
                good[id_] = found
            except Failure as failure:
                failed.setdefault(failure.code, []).append(id_)
        readable = () if failed and self.settings.wire.ends_after_bad_id else tuple(good.values())
        stream = Stream(
            session.backend,
            session.account,
            readable,
            session.now,
            window=int(minutes) * 60.0,
            heartbeat=self.settings.heartbeat,
            wire=self.settings.wire,
            rng=self._rng,
        )
        if failed:
            stream.refuse(failed)
        self.streams[stream] = None

        def finish() -> None:
            leave()
            self.streams.pop(stream, None)

        return Reply(200, stream, headers, delay=delay, finish=finish)

    # -- headers ---------------------------------------------------------------------------------------------

    def _server_headers(self, backend: str, request: HttpRequest) -> list[tuple[str, str]]:
        """What Exchange adds to every reply; `request` says what the client already has."""
        machine = backend.partition(".")[0].upper()
        asked = request.headers.get("client-request-id")
        headers = [
            ("Server", "Microsoft-IIS/10.0"),
            ("request-id", str(UUID(int=self._rng.getrandbits(128), version=4))),
            *([("client-request-id", asked)] if asked else []),
            ("X-CalculatedBETarget", backend),
            ("X-DiagInfo", machine),
            ("X-BEServer", machine),
            ("X-FEServer", "FE01"),
            ("X-AspNet-Version", "4.0.30319"),
            ("X-Powered-By", "ASP.NET"),
        ]
        if request.cookie("exchangecookie") is None:
            headers.append(
                ("Set-Cookie", f"exchangecookie={self._rng.getrandbits(128):032x}; path=/; HttpOnly")
            )
        headers.append(("Set-Cookie", f"X-BackEndCookie={override_cookie(backend)}; path=/EWS; HttpOnly"))
        return headers


def _stream_ids(call: Call) -> list[str]:
    return [element.text or "" for element in call.element.iterfind(f"{M}SubscriptionIds/{T}SubscriptionId")]


def _check_version(call: Call) -> None:
    if call.version not in STREAMING_VERSIONS:
        raise Failure(
            "ErrorInvalidRequest", "Streaming needs RequestServerVersion Exchange2010_SP1.", fault=True
        )


def _watched(session: Session, element: etree._Element) -> tuple[Mailbox, Folder]:
    """A folder that is subscribed to."""
    try:
        return find_folder(element, session)
    except NoRight:
        raise Failure("ErrorSubscriptionDelegateAccessNotSupported") from None


def _invalid(element: str) -> Failure:
    name = f"http://schemas.microsoft.com/exchange/services/2006/messages:{element}"
    return Failure(
        "ErrorSchemaValidation",
        f"The request failed schema validation: The '{name}' element is invalid.",
        fault=True,
    )
