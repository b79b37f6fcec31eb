"""Autodiscover: finds the placement of mailboxes, by SOAP, or by POX where an endpoint has no SOAP.

The order of hosts (the mail domain, `autodiscover.` and the domain, then redirect discovery), the redirects and the
error codes follow "Autodiscover for Exchange", learn.microsoft.com. The endpoint that answered is tried first the
next time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar
from urllib.parse import urljoin

import structlog
import trio
from msgspec.structs import replace

from listener.ews.addresses import AddressError, mail_domain, parse_address
from listener.ews.autodiscover import (
    POX_PATH,
    Answer,
    Redirect,
    UserSettings,
    candidate_urls,
    get_user_settings,
    pox_request,
    read_pox,
    read_user_settings,
)
from listener.ews.codes import UNKNOWN_TO_FRONT_END, ExchangeError, Failure
from listener.ews.urls import UrlError, host_of, join_url, parse_url
from listener.ews.xml import excerpt
from listener.exchange.body import AUTODISCOVER_LIMIT
from listener.exchange.client import Access, ExchangeClient
from listener.exchange.redirects import RedirectAllowList, RedirectDiscovery, Resolve, invalid_url
from listener.placement import Placement

log = structlog.get_logger()

T = TypeVar("T")

MAX_USERS = 100
"""Mailboxes of one SOAP request."""
MAX_REDIRECTS = 10


class Autodiscover:
    """Finds the placement of mailboxes.

    `url` replaces the endpoints that follow from the mail domain. `ews_url` is the placement of mailboxes without
    Autodiscover, or without an EWS URL in it. `hosts` outside of the mail domain, and the further configured EWS URLs
    `servers`, are added to the allow-list for credentials (RedirectAllowList). `resolve` replaces DNS in tests.
    """

    def __init__(
        self,
        access: Access,
        *,
        version: str,
        url: str | None = None,
        ews_url: str | None = None,
        hosts: Sequence[str] = (),
        servers: Sequence[str] = (),
        resolve: Resolve | None = None,
    ) -> None:
        self._access = access
        self._version = version
        self._url = url
        self._ews_url = ews_url
        self._last_endpoints: dict[str, str] = {}  # by mail domain
        self._allow_list = RedirectAllowList(hosts, [*filter(None, (url, ews_url)), *servers])
        self._redirect_discovery = RedirectDiscovery(
            access.network, access.user_agent, self._allow_list, resolve
        )

    async def discover(
        self, mailboxes: Sequence[str], /, *, fall_back: bool = True
    ) -> dict[str, Placement | Failure]:
        """Return the placement of each mailbox, or its failure. Failures of servers and networks are never raised.

        Without `fall_back`, `ews_url` is not used for mailboxes that Autodiscover does not place.
        """
        found: dict[str, Placement | Failure] = {}
        domains: defaultdict[str, list[str]] = defaultdict(list)
        for mailbox in mailboxes:
            try:
                domains[mail_domain(mailbox)].append(mailbox)
            except AddressError as error:
                found[mailbox] = Failure(code="ErrorInvalidSmtpAddress", text=str(error))

        async def one_batch(batch: Sequence[str]) -> None:
            try:
                answers = await self._ask({mailbox: mailbox for mailbox in batch})
            except Exception as error:  # an unforeseen response must not stop discovery for the other domains
                log.error("discovery.crashed", mailboxes=len(batch), exc_info=error)
                text = excerpt(f"the response of Autodiscover: {type(error).__name__}: {error}")
                answers = dict.fromkeys(batch, Failure(code="UnexpectedReply", text=text))
            for mailbox, answer in answers.items():
                found[mailbox] = self._place(mailbox, answer, self._ews_url if fall_back else None)

        async with trio.open_nursery() as nursery:
            for members in domains.values():
                for start in range(0, len(members), MAX_USERS):
                    nursery.start_soon(one_batch, members[start : start + MAX_USERS])
        return found

    def _place(self, mailbox: str, answer: Answer, ews_url: str | None) -> Placement | Failure:
        match answer:
            case UserSettings(external_ews_url=url) if url:
                return Placement(url, answer.grouping_information or "", mailbox)
            case UserSettings():
                answer = Failure(code="SettingIsNotAvailable", text="Autodiscover returned no EWS URL")
            case Redirect():
                answer = Failure(code="TooManyRedirects", text=f"over {MAX_REDIRECTS} redirects")
        if ews_url is not None and answer.code in NO_AUTODISCOVER | {"SettingIsNotAvailable"}:
            return Placement(ews_url, "", mailbox)
        return answer

    def _with_allowed_url(self, answer: UserSettings, mailbox: str, domain: str, endpoint: str) -> Answer:
        """Return the settings with the first allowed EWS URL as `external_ews_url`, or the failure."""
        failure: Failure | None = None
        for url in filter(None, (answer.external_ews_url, answer.internal_ews_url)):
            # `domain` is the domain of the address that the mailbox was redirected to.
            for each in dict.fromkeys((mail_domain(mailbox), domain)):
                try:
                    allowed = self._allow_list.checked_url(url, each, "Autodiscover")
                except ExchangeError as error:
                    failure = failure or _attributed(endpoint, mailbox, error.failure)
                else:
                    return UserSettings(
                        external_ews_url=allowed.text, grouping_information=answer.grouping_information
                    )
        return failure or answer

    async def _ask(
        self,
        addresses: Mapping[str, str],
        url: str | None = None,
        hops: int = 0,
        trails: Mapping[str, frozenset[str]] | None = None,
        skip: frozenset[str] = frozenset(),
    ) -> dict[str, Answer]:
        """Request the settings of mailboxes of one domain. `addresses` has each mailbox's address after redirects.

        `trails` has the addresses and URLs that were already tried for each mailbox. Endpoints in `skip` are not
        tried.
        """
        domain = mail_domain(next(iter(addresses.values())))
        before = trails or {}
        trails = {m: before.get(m, frozenset()) | {a.casefold()} for m, a in addresses.items()}
        try:
            responses = await self._ask_endpoints(url, domain, addresses, trails, skip)
        except ExchangeError as error:
            return dict.fromkeys(addresses, error.failure)
        answers: dict[str, Answer] = {}
        moved: defaultdict[tuple[str | None, str], dict[str, str]] = defaultdict(dict)
        for mailbox, (endpoint, answer) in responses.items():
            answers[mailbox] = answer
            if isinstance(answer, UserSettings):
                answers[mailbox] = self._with_allowed_url(answer, mailbox, domain, endpoint)
            if not isinstance(answer, Redirect) or hops >= MAX_REDIRECTS:
                continue
            try:
                target, address = self._target(answer, addresses[mailbox], domain)
            except ExchangeError as error:
                answers[mailbox] = _attributed(endpoint, mailbox, error.failure)
            else:
                trails[mailbox] |= {target} if target else frozenset()
                moved[target, mail_domain(address)][mailbox] = address
        for (target, _domain), together in moved.items():
            answers |= await self._ask(together, target, hops + 1, trails)
        if hops == 0 and url is None:
            # The endpoint where a redirect loop began is wrong for the mailbox too: try the others.
            looping = {
                mailbox: addresses[mailbox]
                for together in moved.values()
                for mailbox in together
                if _code(answers[mailbox]) == "TooManyRedirects"
            }
            if looping:
                tried = skip | {responses[mailbox][0] for mailbox in looping}
                if self._last_endpoints.get(domain) in tried:
                    del self._last_endpoints[domain]
                others = await self._ask(looping, skip=tried)
                answers |= {m: answer for m, answer in others.items() if _code(answer) not in NO_AUTODISCOVER}
        return answers

    def _target(self, answer: Redirect, address: str, domain: str) -> tuple[str | None, str]:
        """Return the URL (None: that of the domain) and the address of a redirect. Raises ExchangeError."""
        if answer.url:
            return self._allow_list.checked_redirect(answer.url, domain, "Autodiscover").text, address
        try:
            new_address = parse_address(answer.address or "")
        except AddressError as error:
            text = f"Autodiscover redirects to {excerpt(str(error))}"
            raise ExchangeError(Failure(code="ErrorInvalidSmtpAddress", text=text)) from None
        self._allow_list.check_domain(mail_domain(new_address), domain, "Autodiscover")
        return None, new_address

    async def _ask_endpoints(
        self,
        url: str | None,
        domain: str,
        addresses: Mapping[str, str],
        trails: Mapping[str, frozenset[str]],
        skip: frozenset[str],
    ) -> Mapping[str, tuple[str, Answer]]:
        """Return each mailbox's answer with the endpoint that gave it. Raises ExchangeError if no endpoint answers.

        If an endpoint redirects a mailbox to an address or URL that was already tried, the next endpoint is asked.
        """
        errors: list[ExchangeError] = []  # one for each endpoint
        answered_before: ExchangeError | None = None
        answers: dict[str, tuple[str, Answer]] = {}
        looping: dict[str, tuple[str, Answer]] = {}
        pending = dict(addresses)
        for find in self._endpoints(url, domain):
            candidate = None
            try:
                candidate = await find()
                if candidate is None or candidate in skip:
                    continue
                results = await self._ask_endpoint(candidate, tuple(dict.fromkeys(pending.values())))
            except ExchangeError as error:
                errors.append(error)
                if not _may_try_next(error.failure):
                    if looping:
                        break
                    raise
                if candidate is not None and candidate == self._last_endpoints.get(domain):
                    answered_before = error
                continue
            for mailbox, address in list(pending.items()):
                loop = _loop(results[address], address, candidate, trails[mailbox])
                if loop is not None:
                    looping[mailbox] = candidate, loop
                    continue
                answers[mailbox] = candidate, results[address]
                del pending[mailbox]
                if url is None:
                    self._last_endpoints[domain] = candidate
            if not pending:
                return answers
        if looping:
            return looping | answers
        # Later endpoints are likelier, except for the one that answered before.
        if answered_before and _relevance(answered_before.failure) == 2:
            raise answered_before
        if not errors:
            raise ExchangeError(
                Failure(code="NameNotResolved", text=f"found no other Autodiscover endpoint for {domain}")
            )
        raise max(reversed(errors), key=lambda error: _relevance(error.failure))

    def _endpoints(self, url: str | None, domain: str) -> list[Callable[[], Awaitable[str | None]]]:
        """Return functions that find the next endpoint, in order."""
        if only := url or self._url:
            return [partial(_known, only)]
        last_endpoint = self._last_endpoints.get(domain)
        urls = dict.fromkeys([*([last_endpoint] if last_endpoint else ()), *candidate_urls(domain)])
        finders = (self._redirect_discovery.http_redirect, self._redirect_discovery.srv_redirect)
        return [
            *(partial(_known, each) for each in urls),
            *(partial(find, domain) for find in finders),
        ]

    async def _ask_endpoint(self, url: str, addresses: Sequence[str]) -> Mapping[str, Answer]:
        """Ask by the protocol that the URL suggests, then by the other. Raises ExchangeError of the last one."""
        protocols = (self._pox, self._soap) if url.endswith(".xml") else (self._soap, self._pox)
        for ask in protocols:
            try:
                return await ask(url, addresses)
            except ExchangeError as error:
                log.debug("discovery.endpoint_failed", url=url, code=error.failure.code)
                if error.failure.code not in WRONG_PROTOCOL or ask is protocols[-1]:
                    raise
        raise AssertionError("the last protocol returns or raises")

    async def _soap(self, url: str, addresses: Sequence[str]) -> Mapping[str, Answer]:
        asked, unknown = list(addresses), dict[str, Answer]()
        while True:
            body = get_user_settings(asked, version=self._version, to_url=url)
            try:
                settings = await self._post(url, body, asked[0], partial(read_user_settings, mailboxes=asked))
            except ExchangeError as error:
                # This error is about the first mailbox only, by which the request is routed.
                if error.failure.code not in UNKNOWN_TO_FRONT_END or len(addresses) == 1:
                    raise
                unknown[asked.pop(0)] = error.failure
                if not asked:
                    return unknown
            else:
                return settings | unknown

    async def _pox(self, url: str, addresses: Sequence[str]) -> Mapping[str, Answer]:
        """Send one request for each mailbox: POX has no batches."""
        url = urljoin(url, POX_PATH)
        answers: dict[str, Answer] = {}
        errors: dict[str, ExchangeError] = {}
        for address in addresses:
            try:
                answers[address] = await self._post(url, pox_request(address), address, read_pox)
            except ExchangeError as error:
                if error.failure.code in WRONG_PROTOCOL:
                    raise
                errors[address] = error
        if not answers:
            raise errors[addresses[-1]]
        return answers | {address: error.failure for address, error in errors.items()}

    async def _post(self, url: str, body: bytes, anchor: str, read: Callable[[bytes], T]) -> T:
        for _ in range(MAX_REDIRECTS + 1):
            async with ExchangeClient(url, self._access) as client:
                try:
                    return await client.call(
                        body, {"X-AnchorMailbox": anchor}, read, limit=AUTODISCOVER_LIMIT
                    )
                except ExchangeError as error:
                    target = error.failure.location
                    if target is None:
                        raise
            try:
                joined = join_url(url, target)
            except UrlError as error:
                raise ExchangeError(invalid_url(target, url, error)) from None
            url = self._allow_list.checked_redirect(joined.text, mail_domain(anchor), url).text
        raise ExchangeError(
            Failure(code="TooManyRedirects", text=f"over {MAX_REDIRECTS} redirects from {excerpt(url)}")
        )


async def _known(url: str) -> str:
    """Return the URL. Awaitable, as the functions of redirect discovery are."""
    return url


def _attributed(endpoint: str, mailbox: str, failure: Failure) -> Failure:
    return replace(failure, text=f"{failure.text} (named by {endpoint} for {mailbox})")


def _code(answer: Answer) -> str:
    return answer.code if isinstance(answer, Failure) else ""


def _loop(answer: Answer, address: str, endpoint: str, trail: frozenset[str]) -> Failure | None:
    """Return the failure of a redirect to an address or URL that was already tried; None for any other answer."""
    if not isinstance(answer, Redirect):
        return None
    if answer.url:
        target = host_of(answer.url) and parse_url(answer.url).text
        loops = target in trail or target == endpoint
    else:
        target = (answer.address or "").strip()
        loops = target.casefold() in trail
    text = f"{endpoint} redirects {address} to {excerpt(target)}, which was already tried"
    return Failure(code="TooManyRedirects", text=text) if loops else None


# The endpoint does not speak this protocol, or does not exist.
WRONG_PROTOCOL = frozenset(
    {"Http404", "Http405", "Http415", "Http500", "Http501", "NotSoap", "UnexpectedReply"}
)
# The host has no Autodiscover. Http500 may be temporary.
NO_AUTODISCOVER = WRONG_PROTOCOL - {"Http500"} | {
    "NameNotResolved",
    "ConnectFailed",
    "ConnectTimeout",
    "TlsFailed",
    "InsecureRedirect",
    "InvalidUrl",
    "UntrustedRedirect",
    "SchemeNotOffered",
    "ForbiddenXml",
    "MalformedXml",
    *(f"Http{status}" for status in (301, 302, 303, 307, 308, 400, 403, 410)),
}
# The host refuses authentication, or fails.
HOST_FAILED = frozenset(
    {
        "ConnectionReset",
        "HandshakeBroken",
        "HandshakeRefused",
        "KerberosFailed",
        "ReadTimeout",
        "StreamIncomplete",
        "TooManyRedirects",
    }
)


def _may_try_next(failure: Failure) -> bool:
    """Return whether another endpoint may succeed. The mail domain itself is often the host of a website only.

    Errors of Exchange itself, and of the account, are the same at every endpoint.
    """
    return failure.code in NO_AUTODISCOVER | HOST_FAILED or failure.code.startswith("Http")


def _relevance(failure: Failure) -> int:
    """Return how much a failure says about the location of Autodiscover: 0 nothing, 2 that it is at this host."""
    if failure.code not in NO_AUTODISCOVER:
        return 2
    return 0 if failure.code in WRONG_PROTOCOL or failure.code == "NameNotResolved" else 1
