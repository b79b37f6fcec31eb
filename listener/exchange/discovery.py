"""Autodiscover: asks where mailboxes live, SOAP first, POX where SOAP is not there.

The order in which hosts are tried (the mail domain, `autodiscover.` before it, then what hints.py finds), the
redirects and the error codes are those of "Autodiscover for Exchange", learn.microsoft.com. The endpoint that
answered is asked first the next time.
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

from listener.errors import ExchangeError
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
from listener.ews.codes import UNKNOWN_TO_FRONT_END, Failure
from listener.ews.urls import UrlError, host_of, join_url, parse_url
from listener.ews.xml import excerpt
from listener.exchange.body import AUTODISCOVER_LIMIT
from listener.exchange.client import Access, ExchangeClient
from listener.exchange.redirects import RedirectAllowList, RedirectDiscovery, Resolve, invalid
from listener.placement import Placement

log = structlog.get_logger()

T = TypeVar("T")

USERS_A_REQUEST = 100
MOST_REDIRECTS = 10


class Autodiscover:
    """Finds the places of mailboxes.

    `url` is asked instead of the hosts that follow from the mail domain. A mailbox that Autodiscover is not there
    for, or knows nothing of, is placed at `ews_url` if that is given. `hosts` are those outside of the mail domain
    that credentials may be sent to, and `servers` further EWS URLs of the configuration (believed.py); `resolve`
    takes the place of DNS.
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
        self._answering: dict[str, str] = {}  # by mail domain
        self._allow_list = RedirectAllowList(hosts, [*filter(None, (url, ews_url)), *servers])
        self._redirect_discovery = RedirectDiscovery(
            access.network, access.user_agent, self._allow_list, resolve
        )

    async def discover(
        self, mailboxes: Sequence[str], /, *, fall_back: bool = True
    ) -> dict[str, Placement | Failure]:
        """The place of each mailbox, or why it has none. Raises nothing for what a server or a network does.

        Without `fall_back`, a mailbox that Autodiscover says nothing of has no place, even if there is an `ews_url`.
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
            except (
                Exception
            ) as error:  # a fence: an answer that nobody foresaw must not end the others' discovery
                log.error("discovery.crashed", mailboxes=len(batch), exc_info=error)
                text = excerpt(f"the answer of Autodiscover: {type(error).__name__}: {error}")
                answers = dict.fromkeys(batch, Failure(code="UnexpectedReply", text=text))
            for mailbox, answer in answers.items():
                found[mailbox] = self._place(mailbox, answer, self._ews_url if fall_back else None)

        async with trio.open_nursery() as nursery:
            for members in domains.values():
                for start in range(0, len(members), USERS_A_REQUEST):
                    nursery.start_soon(one_batch, members[start : start + USERS_A_REQUEST])
        return found

    def _place(self, mailbox: str, answer: Answer, ews_url: str | None) -> Placement | Failure:
        match answer:
            case UserSettings(external_ews_url=url) if url:
                return Placement(url, answer.grouping_information or "", mailbox)
            case UserSettings():
                answer = Failure(code="SettingIsNotAvailable", text="Autodiscover names no EWS URL")
            case Redirect():
                answer = Failure(code="TooManyRedirects", text=f"over {MOST_REDIRECTS} redirects")
        if ews_url is not None and answer.code in NO_AUTODISCOVER | {"SettingIsNotAvailable"}:
            return Placement(ews_url, "", mailbox)
        return answer

    def _settled(self, answer: UserSettings, mailbox: str, domain: str, endpoint: str) -> Answer:
        """The settings with the EWS URL that credentials may be sent to in `external_ews_url`, else the failure."""
        failure: Failure | None = None
        for url in filter(None, (answer.external_ews_url, answer.internal_ews_url)):
            # `domain` is that of the address which the mailbox was redirected to.
            for each in dict.fromkeys((mail_domain(mailbox), domain)):
                try:
                    allow_list = self._allow_list.url(url, each, "Autodiscover")
                except ExchangeError as error:
                    failure = failure or _said_by(endpoint, mailbox, error.failure)
                else:
                    return UserSettings(
                        external_ews_url=allow_list.text, grouping_information=answer.grouping_information
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
        """Asks for mailboxes of one domain, each under the address that it is known by now.

        `trails` has the addresses and URLs that each mailbox was asked for at; endpoints in `skip` are not asked.
        """
        domain = mail_domain(next(iter(addresses.values())))
        before = trails or {}
        trails = {m: before.get(m, frozenset()) | {a.casefold()} for m, a in addresses.items()}
        try:
            told = await self._ask_somebody(url, domain, addresses, trails, skip)
        except ExchangeError as error:
            return dict.fromkeys(addresses, error.failure)
        answers: dict[str, Answer] = {}
        moved: defaultdict[tuple[str | None, str], dict[str, str]] = defaultdict(dict)
        for mailbox, (endpoint, answer) in told.items():
            answers[mailbox] = answer
            if isinstance(answer, UserSettings):
                answers[mailbox] = self._settled(answer, mailbox, domain, endpoint)
            if not isinstance(answer, Redirect) or hops >= MOST_REDIRECTS:
                continue
            try:
                target, address = self._target(answer, addresses[mailbox], domain)
            except ExchangeError as error:
                answers[mailbox] = _said_by(endpoint, mailbox, error.failure)
            else:
                trails[mailbox] |= {target} if target else frozenset()
                moved[target, mail_domain(address)][mailbox] = address
        for (target, _domain), together in moved.items():
            answers |= await self._ask(together, target, hops + 1, trails)
        if hops == 0 and url is None:
            # The endpoint that began a circle is not the right one either.
            circling = {
                mailbox: addresses[mailbox]
                for together in moved.values()
                for mailbox in together
                if _code(answers[mailbox]) == "TooManyRedirects"
            }
            if circling:
                tried = skip | {told[mailbox][0] for mailbox in circling}
                if self._answering.get(domain) in tried:
                    del self._answering[domain]
                others = await self._ask(circling, skip=tried)
                answers |= {m: answer for m, answer in others.items() if _code(answer) not in NO_AUTODISCOVER}
        return answers

    def _target(self, answer: Redirect, address: str, domain: str) -> tuple[str | None, str]:
        """The URL and the address to go on with. Raises ExchangeError."""
        if answer.url:
            return self._allow_list.redirect(answer.url, domain, "Autodiscover").text, address
        try:
            known_by_now = parse_address(answer.address or "")
        except AddressError as error:
            text = f"Autodiscover redirects to {excerpt(str(error))}"
            raise ExchangeError(Failure(code="ErrorInvalidSmtpAddress", text=text)) from None
        self._allow_list.check_domain(mail_domain(known_by_now), domain, "Autodiscover")
        return None, known_by_now

    async def _ask_somebody(
        self,
        url: str | None,
        domain: str,
        addresses: Mapping[str, str],
        trails: Mapping[str, frozenset[str]],
        skip: frozenset[str],
    ) -> Mapping[str, tuple[str, Answer]]:
        """The answers of the first endpoint that gives any, with that endpoint. Raises ExchangeError if none does.

        An endpoint that redirects a mailbox to what it was asked for already is not the right one for it: the next
        one is asked.
        """
        errors: list[ExchangeError] = []  # one an endpoint
        answered_before: ExchangeError | None = None
        answers: dict[str, tuple[str, Answer]] = {}
        circling: dict[str, tuple[str, Answer]] = {}
        pending = dict(addresses)
        for look in self._places_to_ask(url, domain):
            candidate = None
            try:
                candidate = await look()
                if candidate is None or candidate in skip:
                    continue
                told = await self._ask_either_way(candidate, tuple(dict.fromkeys(pending.values())))
            except ExchangeError as error:
                errors.append(error)
                if not _another_host_may_know(error.failure):
                    if circling:
                        break
                    raise
                if candidate is not None and candidate == self._answering.get(domain):
                    answered_before = error
                continue
            for mailbox, address in list(pending.items()):
                loop = _loop(told[address], address, candidate, trails[mailbox])
                if loop is not None:
                    circling[mailbox] = candidate, loop
                    continue
                answers[mailbox] = candidate, told[address]
                del pending[mailbox]
                if url is None:
                    self._answering[domain] = candidate
            if not pending:
                return answers
        if circling:
            return circling | answers
        # The likeliest host comes last, but for the one that is known.
        if answered_before and _weight(answered_before.failure) == 2:
            raise answered_before
        if not errors:
            raise ExchangeError(Failure(code="NameNotResolved", text=f"no other endpoint for {domain}"))
        raise max(reversed(errors), key=lambda error: _weight(error.failure))

    def _places_to_ask(self, url: str | None, domain: str) -> list[Callable[[], Awaitable[str | None]]]:
        """Ways to find the next endpoint, in order."""
        if told := url or self._url:
            return [partial(_known, told)]
        answering = self._answering.get(domain)
        urls = dict.fromkeys([*([answering] if answering else ()), *candidate_urls(domain)])
        redirect_discovery = (self._redirect_discovery.redirect, self._redirect_discovery.service)
        return [
            *(partial(_known, each) for each in urls),
            *(partial(hint, domain) for hint in redirect_discovery),
        ]

    async def _ask_either_way(self, url: str, addresses: Sequence[str]) -> Mapping[str, Answer]:
        ways = (self._pox, self._soap) if url.endswith(".xml") else (self._soap, self._pox)
        for ask in ways:
            try:
                return await ask(url, addresses)
            except ExchangeError as error:
                log.debug("discovery.endpoint_failed", url=url, code=error.failure.code)
                if error.failure.code not in NOT_THIS_WAY or ask is ways[-1]:
                    raise
        raise AssertionError("the last way returns or raises")

    async def _soap(self, url: str, addresses: Sequence[str]) -> Mapping[str, Answer]:
        asked, unknown = list(addresses), dict[str, Answer]()
        while True:
            body = get_user_settings(asked, version=self._version, to_url=url)
            try:
                told = await self._post(url, body, asked[0], partial(read_user_settings, mailboxes=asked))
            except ExchangeError as error:
                # It is said of the first mailbox, by which the request is routed.
                if error.failure.code not in UNKNOWN_TO_FRONT_END or len(addresses) == 1:
                    raise
                unknown[asked.pop(0)] = error.failure
                if not asked:
                    return unknown
            else:
                return told | unknown

    async def _pox(self, url: str, addresses: Sequence[str]) -> Mapping[str, Answer]:
        """One request a mailbox: POX knows no other way."""
        url = urljoin(url, POX_PATH)
        answers: dict[str, Answer] = {}
        errors: dict[str, ExchangeError] = {}
        for address in addresses:
            try:
                answers[address] = await self._post(url, pox_request(address), address, read_pox)
            except ExchangeError as error:
                if error.failure.code in NOT_THIS_WAY:
                    raise
                errors[address] = error
        if not answers:
            raise errors[addresses[-1]]
        return answers | {address: error.failure for address, error in errors.items()}

    async def _post(self, url: str, body: bytes, anchor: str, read: Callable[[bytes], T]) -> T:
        for _ in range(MOST_REDIRECTS + 1):
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
                raise ExchangeError(invalid(target, url, error)) from None
            url = self._allow_list.redirect(joined.text, mail_domain(anchor), url).text
        raise ExchangeError(
            Failure(code="TooManyRedirects", text=f"over {MOST_REDIRECTS} redirects from {excerpt(url)}")
        )


async def _known(url: str) -> str:
    return url


def _said_by(endpoint: str, mailbox: str, failure: Failure) -> Failure:
    return replace(failure, text=f"{failure.text} (named by {endpoint} for {mailbox})")


def _code(answer: Answer) -> str:
    return answer.code if isinstance(answer, Failure) else ""


def _loop(answer: Answer, address: str, endpoint: str, trail: frozenset[str]) -> Failure | None:
    """The failure of an endpoint that leads back to an address or a URL which was asked for already."""
    if not isinstance(answer, Redirect):
        return None
    if answer.url:
        target = host_of(answer.url) and parse_url(answer.url).text
        circle = target in trail or target == endpoint
    else:
        target = (answer.address or "").strip()
        circle = target.casefold() in trail
    text = f"{endpoint} redirects {address} to {excerpt(target)}, which was asked already"
    return Failure(code="TooManyRedirects", text=text) if circle else None


# The endpoint is there but does not speak this way, or it is not there at all.
NOT_THIS_WAY = frozenset(
    {"Http404", "Http405", "Http415", "Http500", "Http501", "NotSoap", "UnexpectedReply"}
)
# There is no Autodiscover at that host. Http500 may pass.
NO_AUTODISCOVER = NOT_THIS_WAY - {"Http500"} | {
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
# It does not let us in, or it ails.
NO_ANSWER = frozenset(
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


def _another_host_may_know(failure: Failure) -> bool:
    """At the mail domain itself there is often a website, which knows nothing of mail. Whatever Exchange itself
    says, and whatever is wrong with the account, is the same everywhere."""
    return failure.code in NO_AUTODISCOVER | NO_ANSWER or failure.code.startswith("Http")


def _weight(failure: Failure) -> int:
    """How much it tells of where Autodiscover is."""
    if failure.code not in NO_AUTODISCOVER:
        return 2
    return 0 if failure.code in NOT_THIS_WAY or failure.code == "NameNotResolved" else 1
