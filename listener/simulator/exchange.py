"""Exchange without sockets: request in, reply out; the time is a parameter.

`handle(request, now)` answers one request, `publish(events)` reports changes, `advance(now)` runs timers. `now` is in
Unix seconds. subscriptions.Stream defines what a stream writes, and when.
"""

import re
from collections import Counter
from collections.abc import Iterable
from functools import partial
from random import Random
from uuid import UUID

from lxml import etree

from listener.simulator import autodiscover, responses
from listener.simulator.auth.authenticator import Authenticator
from listener.simulator.directory import Directory
from listener.simulator.fault_effects import Conditions, OrganizationFaultMaker, faulty_reply
from listener.simulator.fault_scheduler import FaultScheduler
from listener.simulator.faults import HangUp, NoAnswer
from listener.simulator.frontend import COOKIE, Route, Throttle, override_cookie, route
from listener.simulator.http import HttpRequest, Reply, page
from listener.simulator.ledger import Ledger, Line
from listener.simulator.mailstore import KINDS, Event, Folder, Mailbox
from listener.simulator.operations import OPERATIONS, SYNC_OPERATIONS
from listener.simulator.requests import (
    STREAMING_VERSIONS,
    VERSIONS,
    AccessDenied,
    Call,
    M,
    MalformedRequest,
    RequestContext,
    T,
    find_folder,
    parse_call,
    target_mailbox,
)
from listener.simulator.responses import Failure
from listener.simulator.settings import Settings
from listener.simulator.subscriptions import Stream, Subscription, Subscriptions

_EXPIRY_INTERVAL = 5.0
_ADDRESS = re.compile(rb"[^\s<>;,]+@[^\s<>;,]+")
_ABOUT_SUBSCRIPTIONS = ("GetStreamingEvents", "Unsubscribe")


class Exchange:
    """The servers of one organization.

    `requests` counts (operation, HTTP status). Set `base_url` (the URL for clients, without a trailing slash)
    before Autodiscover is used. `fault_scheduler` makes faults. Raises FaultError if `settings.faults` name
    an unknown mailbox or back end.
    """

    def __init__(self, settings: Settings, ledger: Ledger, now: float) -> None:
        self.settings = settings
        self.directory = Directory(settings, now)
        self.subscriptions = Subscriptions(
            self.directory.backends, settings.limits, counted_ids=settings.rules.counted_ids
        )
        self.throttle = Throttle(settings.limits)
        self.ledger = ledger
        self.base_url = ""
        self.requests: Counter[tuple[str, int]] = Counter()
        self.streams: dict[Stream, None] = {}
        self._rng = Random(f"exchange {settings.seed}")
        self._expiry = now + _EXPIRY_INTERVAL
        self.conditions = Conditions()
        self.authenticator = Authenticator(settings, self.directory.accounts, self.conditions)
        rng = Random(f"faults {settings.seed}")
        fault_maker = OrganizationFaultMaker(
            self.directory, self.subscriptions, self.streams, self.conditions, rng, tls=settings.tls
        )
        self.fault_scheduler = FaultScheduler(
            self.directory, self.subscriptions, self.streams, fault_maker, ledger, rng
        )
        self.fault_scheduler.start_plan(settings.faults, now)

    def publish(self, events: Iterable[Event]) -> list[Line]:
        """Write changes to the ledger and queue them for subscriptions. Return their ledger lines."""
        lines = []
        for event in events:
            lines.append(self.ledger.record(event))
            self.subscriptions.publish(event)
        if lines:
            self.ledger.flush()
        return lines

    def advance(self, now: float) -> None:
        """Make the faults that are due and expire subscriptions without a reader."""
        self.fault_scheduler.advance(now)
        if now >= self._expiry:
            self._expiry = now + _EXPIRY_INTERVAL
            self.subscriptions.expire(now)

    def handle(self, request: HttpRequest, now: float) -> Reply:
        """Return the reply to one request of an authenticated account."""
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
            reply.fault = HangUp(reset=True)
        return reply

    # -- Autodiscover ----------------------------------------------------------------------------------------

    def _autodiscover(self, path: str, request: HttpRequest, now: float) -> Reply:
        def addresses() -> list[str]:
            return [found.decode("utf-8", "replace").lower() for found in _ADDRESS.findall(request.body)]

        respond = partial(self._discover, path, request)
        fault = self.fault_scheduler.match_request("Autodiscover", addresses, now)
        if fault is None:
            return respond()
        return faulty_reply(fault, "Autodiscover", [], self.settings.host, now, respond)

    def _discover(self, path: str, request: HttpRequest) -> Reply:
        ews_url = f"{self.base_url}/EWS/Exchange.asmx"
        limit = self.settings.limits.users_per_discovery
        failing = self.conditions.discovery
        if failing and (failing.code is None or not path.endswith(".svc")):
            return page(failing.status, "Autodiscover is not available")
        reply = page(404, "Not Found")
        try:
            if path == "/autodiscover/autodiscover.svc" and request.method == "POST":
                reply = Reply(200, autodiscover.soap(request.body, self.directory, ews_url, limit, failing))
            elif path == "/autodiscover/autodiscover.xml" and request.method == "POST":
                reply = Reply(200, autodiscover.pox(request.body, self.directory, ews_url))
        except MalformedRequest as error:
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
        except MalformedRequest as error:
            failure = Failure("ErrorSchemaValidation", f"The request failed schema validation: {error}")
            return "-", self._fault(failure, request)
        respond = partial(self._respond, call, request, now)
        fault = self.fault_scheduler.match_request(
            call.operation, partial(self._affected_mailboxes, call), now
        )
        if fault is None:
            reply = respond()
            if self.conditions.buffered and isinstance(reply.body, Stream):
                reply.fault = NoAnswer()
            return call.operation, reply
        host = self.settings.host
        return call.operation, faulty_reply(fault, call.operation, _stream_ids(call), host, now, respond)

    def _respond(self, call: Call, request: HttpRequest, now: float) -> Reply:
        try:
            return self._call(call, request, now)
        except Failure as refused:
            return self._fault(refused, request)

    def _fault(self, failure: Failure, request: HttpRequest) -> Reply:
        headers = self._server_headers(self._rng.choice(self.directory.backends), request)
        return Reply(500, responses.fault(failure), headers, delay=self.settings.network.latency)

    def _affected_mailboxes(self, call: Call) -> list[str]:
        """Return the addresses of the mailboxes that a request is about."""
        ids = set(_stream_ids(call))
        if ids:
            return sorted({each.mailbox for each in self.subscriptions if each.id in ids})
        actor = self.directory.find(call.impersonated or "")
        mailbox = target_mailbox(call, actor, self.directory)
        return [mailbox.address] if mailbox else []

    def _call(self, call: Call, request: HttpRequest, now: float) -> Reply:
        """Route the request and return its reply. Raises Failure for a SOAP fault."""
        if call.version is not None and call.version not in VERSIONS:
            raise Failure("ErrorInvalidServerVersion")
        actor = self._actor(call, request)
        budget_owner = actor.address if actor else request.account
        mailbox = target_mailbox(call, actor, self.directory)
        home = None
        if call.operation not in _ABOUT_SUBSCRIPTIONS and mailbox:
            home = self.directory.home(mailbox)
        target_route = route(request, home, self.directory, self._rng)
        headers = self._server_headers(target_route.backend, request)
        network = self.settings.network
        delay = network.latency
        if actor and actor.address in self.directory.rights.without_ews:
            return page(403, "Forbidden", headers, delay=delay)
        if mailbox and mailbox is not actor and (code := self.conditions.disabled.get(mailbox.address)):
            raise Failure(code, fault=True)
        if target_route.backend in self.conditions.down:
            return page(503, "Service Unavailable", headers, delay=delay)
        if target_route.proxied:
            delay = self._rng.uniform(*network.proxied_latency)
            chance = self._rng.random()
            if chance < network.proxied_500:
                return page(500, "Runtime Error", headers, delay=delay)
            if chance < network.proxied_500 + network.proxied_503:
                return page(503, "Service Unavailable", headers, delay=delay)
        self._check_throttle(streaming=call.operation == "GetStreamingEvents")
        context = RequestContext(call, request.account, actor, target_route.backend, self.directory, now)
        if call.operation == "GetStreamingEvents":
            return self._stream(context, budget_owner, headers, delay)
        release = self.throttle.start_request(budget_owner, is_sync=call.operation in SYNC_OPERATIONS)
        try:
            body = self._answer(context, budget_owner, target_route)
        except Failure as failure:
            if failure.fault:
                return Reply(500, responses.fault(failure), headers, delay=delay, finish=release)
            content = responses.ERROR_CONTENT.get(call.operation, "")
            body = responses.response(call.operation, [responses.error(call.operation, failure, content)])
        else:
            if call.operation == "Subscribe" and target_route.affinity:
                cookie = f"{COOKIE}={override_cookie(target_route.backend)}; path=/; HttpOnly"
                headers.append(("Set-Cookie", cookie))
        return Reply(200, responses.envelope(body), headers, delay=delay, finish=release)

    def _check_throttle(self, *, streaming: bool) -> None:
        """Raise Failure if the account has too many requests or streams in progress."""
        throttled = self.conditions.throttled
        if throttled is None:
            return
        running = self.throttle.hanging if streaming else self.throttle.running
        limit = throttled.connections if streaming else throttled.concurrency
        if limit is not None and running >= limit:
            values = {"BackOffMilliseconds": str(throttled.back_off_ms)}
            raise Failure("ErrorServerBusy", fault=True, values=values)

    def _actor(self, call: Call, request: HttpRequest) -> Mailbox | None:
        """Return the mailbox that the request acts as. Raises Failure if impersonation is denied or missing."""
        if call.impersonated is None:
            if request.app_only:
                # An application has no mailbox of its own, so it must impersonate one.
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

    def _answer(self, context: RequestContext, budget_owner: str, target_route: Route) -> str:
        operation = context.call.operation
        if operation == "Subscribe":
            return self._subscribe(context, budget_owner, target_route)
        if operation == "Unsubscribe":
            return self._unsubscribe(context)
        if operation in OPERATIONS:
            return OPERATIONS[operation](context)
        raise Failure("ErrorInvalidRequest", fault=True)

    # -- subscriptions ---------------------------------------------------------------------------------------

    def _subscribe(self, context: RequestContext, budget_owner: str, target_route: Route) -> str:
        _check_version(context.call)
        request = context.call.element.find(f"{M}StreamingSubscriptionRequest")
        if request is None:
            raise Failure("ErrorInvalidSubscriptionRequest", "Only streaming subscriptions are offered here.")
        kinds = frozenset(element.text or "" for element in request.iterfind(f"{T}EventTypes/{T}EventType"))
        if not kinds or not kinds <= frozenset(KINDS):
            raise _invalid("EventTypes")
        folder_ids = request.findall(f"{T}FolderIds/*")
        all_folders = request.get("SubscribeToAllFolders", "false") in ("true", "1")
        if all_folders == bool(folder_ids):
            raise Failure("ErrorInvalidSubscriptionRequest")
        subscribed_folders = [_subscribed_folder(context, element) for element in folder_ids]
        mailboxes = [mailbox for mailbox, _ in subscribed_folders]
        mailbox = mailboxes[0] if mailboxes else context.actor
        if any(other is not mailbox for other in mailboxes):
            raise Failure("ErrorInvalidSubscriptionRequest", "A subscription is to folders of one mailbox.")
        if mailbox is None:
            raise Failure("ErrorMissingEmailAddress")
        if moving := self.conditions.moving.get(mailbox.address):
            raise Failure(moving)
        folders = None if all_folders else frozenset(folder.id for _, folder in subscribed_folders)
        made = self.subscriptions.add(
            target_route.backend, mailbox, context.account, budget_owner, kinds, folders, context.now
        )
        message = responses.success("Subscribe", f"<m:SubscriptionId>{made.id}</m:SubscriptionId>")
        return responses.response("Subscribe", [message])

    def _unsubscribe(self, context: RequestContext) -> str:
        id_ = context.call.element.findtext(f"{M}SubscriptionId") or ""
        found = self.subscriptions.find(context.backend, id_, context.account)
        self.subscriptions.remove(found, "ErrorSubscriptionUnsubscribed")
        return responses.response("Unsubscribe", [responses.success("Unsubscribe")])

    def _stream(
        self, context: RequestContext, budget_owner: str, headers: list[tuple[str, str]], delay: float
    ) -> Reply:
        """Return the streaming reply to GetStreamingEvents. Raises Failure for a SOAP fault."""
        _check_version(context.call)
        request = context.call.element
        ids = _stream_ids(context.call)
        minutes = request.findtext(f"{M}ConnectionTimeout") or ""
        if not minutes.isdecimal() or not 1 <= int(minutes) <= 30:
            raise _invalid("ConnectionTimeout")
        if not ids:
            raise _invalid("SubscriptionIds")
        if len(ids) > self.settings.limits.ids_per_stream:
            raise Failure("ErrorInvalidRequest", fault=True)
        release = self.throttle.start_stream(budget_owner)
        readable_by_id: dict[str, Subscription] = {}
        failed: dict[str, list[str]] = {}
        for id_ in ids:
            try:
                found = self.subscriptions.find(context.backend, id_, context.account)
                if self.settings.rules.one_user_per_stream and found.budget_owner != budget_owner:
                    raise Failure("ErrorSubscriptionAccessDenied")
                readable_by_id[id_] = found
            except Failure as failure:
                failed.setdefault(failure.code, []).append(id_)
        readable = (
            () if failed and self.settings.stream_format.ends_after_bad_id else tuple(readable_by_id.values())
        )
        stream = Stream(
            context.backend,
            context.account,
            readable,
            context.now,
            window=int(minutes) * 60.0,
            heartbeat=self.settings.heartbeat,
            stream_format=self.settings.stream_format,
            rng=self._rng,
        )
        if failed:
            stream.report_failed_ids(failed)
        self.streams[stream] = None

        def finish() -> None:
            release()
            self.streams.pop(stream, None)

        return Reply(200, stream, headers, delay=delay, finish=finish)

    # -- headers ---------------------------------------------------------------------------------------------

    def _server_headers(self, backend: str, request: HttpRequest) -> list[tuple[str, str]]:
        """Return the headers that Exchange adds to every reply. `request` shows which cookies the client has."""
        machine = backend.partition(".")[0].upper()
        client_request_id = request.headers.get("client-request-id")
        headers = [
            ("Server", "Microsoft-IIS/10.0"),
            ("request-id", str(UUID(int=self._rng.getrandbits(128), version=4))),
            *([("client-request-id", client_request_id)] if client_request_id else []),
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


def _subscribed_folder(context: RequestContext, element: etree._Element) -> tuple[Mailbox, Folder]:
    """Return a folder of a Subscribe request. Raises Failure."""
    try:
        return find_folder(element, context)
    except AccessDenied:
        raise Failure("ErrorSubscriptionDelegateAccessNotSupported") from None


def _invalid(element: str) -> Failure:
    name = f"http://schemas.microsoft.com/exchange/services/2006/messages:{element}"
    return Failure(
        "ErrorSchemaValidation",
        f"The request failed schema validation: The '{name}' element is invalid.",
        fault=True,
    )
