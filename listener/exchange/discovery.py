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
from urllib.parse import urljoin, urlsplit

import structlog
import trio

from listener.errors import ExchangeError
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
from listener.ews.codes import Failure
from listener.ews.xml import excerpt
from listener.exchange.believed import Believed
from listener.exchange.body import AUTODISCOVER_LIMIT
from listener.exchange.client import Access, ExchangeClient
from listener.exchange.hints import Hints, Resolve
from listener.groups.affinity import Placement

log = structlog.get_logger()

T = TypeVar("T")

USERS_A_REQUEST = 100
MOST_REDIRECTS = 10


class Autodiscover:
    """Finds the places of mailboxes.

    `url` is asked instead of the hosts that follow from the mail domain. A mailbox that Autodiscover is not there
    for, or knows nothing of, is placed at `ews_url` if that is given. `hosts` are those outside of the mail domain
    that redirects and hints may lead to; `resolve` takes the place of DNS.
    """

    def __init__(
        self,
        access: Access,
        *,
        version: str,
        url: str | None = None,
        ews_url: str | None = None,
        hosts: Sequence[str] = (),
        resolve: Resolve | None = None,
    ) -> None:
        self._access = access
        self._version = version
        self._url = url
        self._ews_url = ews_url
        self._answering: dict[str, str] = {}  # by mail domain
        configured = [urlsplit(told).hostname or "" for told in (url, ews_url) if told]
        self._believed = Believed([*hosts, *configured])
        self._hints = Hints(access.network, access.user_agent, self._believed, resolve)

    async def discover(
        self, mailboxes: Sequence[str], /, *, fall_back: bool = True
    ) -> dict[str, Placement | Failure]:
        """The place of each mailbox, or why it has none. Raises nothing for what a server or a network does.

        Without `fall_back`, a mailbox that Autodiscover says nothing of has no place, even if there is an `ews_url`.
        """
        found: dict[str, Placement | Failure] = {}
        domains: defaultdict[str, list[str]] = defaultdict(list)
        for mailbox in mailboxes:
            domains[mailbox.rpartition("@")[2]].append(mailbox)

        async def one_batch(batch: Sequence[str]) -> None:
            for mailbox, answer in (await self._ask({mailbox: mailbox for mailbox in batch})).items():
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
            case UserSettings(internal_ews_url=url) if url:
                return Placement(url, answer.grouping_information or "", mailbox)
            case UserSettings():
                answer = Failure(code="SettingIsNotAvailable", text="Autodiscover names no EWS URL")
            case Redirect():
                answer = Failure(code="TooManyRedirects", text=f"over {MOST_REDIRECTS} redirects")
        if ews_url is not None and answer.code in NO_AUTODISCOVER | {"SettingIsNotAvailable"}:
            return Placement(ews_url, "", mailbox)
        return answer

    async def _ask(
        self, addresses: Mapping[str, str], url: str | None = None, hops: int = 0
    ) -> dict[str, Answer]:
        """Asks for mailboxes of one domain, each under the address that it is known by now."""
        domain = next(iter(addresses.values())).rpartition("@")[2]
        answers: dict[str, Answer] = {}
        try:
            told = await self._ask_somebody(url, domain, tuple(addresses.values()))
        except ExchangeError as error:
            return dict.fromkeys(addresses, error.failure)
        moved: defaultdict[tuple[str | None, str], dict[str, str]] = defaultdict(dict)
        for mailbox, address in addresses.items():
            answers[mailbox] = answer = told[address]
            if not isinstance(answer, Redirect) or hops >= MOST_REDIRECTS:
                continue
            known_by_now = answer.address or address
            place = known_by_now.rpartition("@")[2].lower()
            try:
                self._believed.check(
                    urlsplit(answer.url).hostname or "" if answer.url else place, domain, "Autodiscover"
                )
            except ExchangeError as error:
                answers[mailbox] = error.failure
            else:
                moved[answer.url, place][mailbox] = known_by_now
        for (target, _domain), together in moved.items():
            answers |= await self._ask(together, target, hops + 1)
        return answers

    async def _ask_somebody(
        self, url: str | None, domain: str, addresses: Sequence[str]
    ) -> Mapping[str, Answer]:
        """The answers of the first endpoint that gives any. Raises ExchangeError if none does."""
        errors: list[ExchangeError] = []  # one an endpoint
        answered_before: ExchangeError | None = None
        for look in self._places_to_ask(url, domain):
            candidate = None
            try:
                candidate = await look()
                if candidate is None:
                    continue
                answers = await self._ask_either_way(candidate, addresses)
            except ExchangeError as error:
                errors.append(error)
                if not _another_host_may_know(error.failure):
                    raise
                if candidate is not None and candidate == self._answering.get(domain):
                    answered_before = error
            else:
                if url is None:
                    self._answering[domain] = candidate
                return answers
        # The likeliest host comes last, but for the one that is known.
        if answered_before and _weight(answered_before.failure) == 2:
            raise answered_before
        raise max(reversed(errors), key=lambda error: _weight(error.failure))

    def _places_to_ask(self, url: str | None, domain: str) -> list[Callable[[], Awaitable[str | None]]]:
        """Ways to find the next endpoint, in order."""
        if told := url or self._url:
            return [partial(_known, told)]
        answering = self._answering.get(domain)
        urls = dict.fromkeys([*([answering] if answering else ()), *candidate_urls(domain)])
        hints = (self._hints.redirect, self._hints.service)
        return [*(partial(_known, each) for each in urls), *(partial(hint, domain) for hint in hints)]

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
        body = get_user_settings(addresses, version=self._version, to_url=url)
        return await self._post(
            url, body, addresses[0], lambda content: read_user_settings(content, addresses)
        )

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
            target = urljoin(url, target)
            if urlsplit(target).scheme != "https":
                raise ExchangeError(
                    Failure(code="InsecureRedirect", text=f"{url} redirects to {excerpt(target)}")
                )
            if (host := urlsplit(target).hostname or "") != urlsplit(url).hostname:
                self._believed.check(host, anchor.rpartition("@")[2], url)
            url = target
        raise ExchangeError(
            Failure(code="TooManyRedirects", text=f"over {MOST_REDIRECTS} redirects from {excerpt(url)}")
        )


async def _known(url: str) -> str:
    return url


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
