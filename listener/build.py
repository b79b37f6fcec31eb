"""Builds the daemon's values and parts from the configuration. Opens nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import httpx

from listener.access import AccessRule, AccessRules
from listener.backoff import Backoff
from listener.config import AccessOverride, Config, Exchange, Mailboxes
from listener.config.mailbox_file import MailboxReader
from listener.delivery.delivery import DeliveryLimits
from listener.ews.events import EventKind
from listener.ews.soap import Impersonation
from listener.exchange.auth import accounts
from listener.exchange.client import Access
from listener.exchange.discovery import Autodiscover
from listener.exchange.distribution_groups import Expander
from listener.exchange.network import Network
from listener.exchange.throttle import Throttles
from listener.groups.member import Policy
from listener.groups.settings import ManagerSettings
from listener.groups.subscription_spec import SubscriptionSpec
from listener.journal import Retention
from listener.mailboxes import MailboxSource, Sources
from listener.placement import Placement


def access(config: Config) -> Access:
    """Return what every request needs, from [exchange] and [auth]."""
    exchange = config.exchange
    network = Network(tls=exchange.tls_context(), proxy=proxy(exchange))
    return Access(
        auth=accounts(config, network),
        throttles=Throttles(exchange.concurrency),
        user_agent=exchange.user_agent,
        tls=network.tls,
        proxy=network.proxy,
        connect_timeout=exchange.connect_timeout,
        request_timeout=exchange.request_timeout,
    )


def proxy(exchange: Exchange) -> httpx.Proxy | None:
    """Return the proxy of [exchange] with its credentials."""
    if exchange.proxy is None:
        return None
    user, password = exchange.proxy_user, exchange.proxy_password
    return httpx.Proxy(
        exchange.proxy.get_secret_value(), auth=(user, password.reveal()) if user and password else None
    )


def spec(config: Config) -> SubscriptionSpec:
    """Return the subscription spec, from [subscription], [affinity] and [stream]."""
    return SubscriptionSpec(
        version=config.exchange.version,
        access=access_rules(config),
        events=tuple(
            EventKind(f"{name.title().replace('_', '')}Event") for name in config.subscription.events
        ),
        impersonate_anchor_on_stream=config.affinity.impersonate_anchor_on_stream,
        window=round(config.stream.window / 60),
        silence=2 * config.stream.heartbeat,
        max_envelope=config.stream.max_envelope,
        subscribe_concurrency=config.affinity.subscribe_concurrency,
        # A placement is reused only if the same Autodiscover settings and allow-list accepted its EWS URL.
        discovery=f"{config.exchange.autodiscover_url} {config.exchange.ews_url} {_trusted(config)}",
    )


def _trusted(config: Config) -> str:
    hosts = [
        *config.exchange.autodiscover_hosts,
        *(host for server in config.servers for host in server.hosts),
    ]
    return " ".join(sorted(hosts))


def discovery(config: Config, access: Access) -> Autodiscover:
    """Return the Autodiscover client, from [exchange]."""
    exchange = config.exchange
    return Autodiscover(
        access,
        version=exchange.version,
        url=exchange.autodiscover_url,
        ews_url=exchange.ews_url,
        hosts=[*exchange.autodiscover_hosts, *(host for server in config.servers for host in server.hosts)],
        servers=[group.ews_url for group in config.groups if group.ews_url is not None],
    )


def expander(config: Config, access: Access, discovery: Autodiscover) -> Expander:
    """Return the expander of distribution groups, from [mailboxes] and [exchange]."""
    expand_as, by = config.mailboxes.expand_as, config.mailboxes.impersonate_by
    return Expander(
        access,
        discovery,
        version=config.exchange.version,
        ews_url=config.exchange.ews_url,
        expand_as=None if expand_as is None else Impersonation(by, expand_as),
    )


def mailbox_source(config: Config, expander: Expander, changed: Callable[[], None]) -> MailboxSource:
    """Return the mailbox source, from [mailboxes] and [[groups]]. It calls `changed` when its mailboxes change."""
    mailboxes = config.mailboxes
    return MailboxSource(
        sources=mailbox_sources(config),
        expand=expander.expand,
        changed=changed,
        refresh=mailboxes.refresh,
        max_drop=mailboxes.max_drop,
    )


def mailbox_sources(config: Config) -> Sources:
    """Return the lists, files and distribution groups that name mailboxes."""
    mailboxes = config.mailboxes
    in_file = set(mailboxes.in_file)
    return Sources(
        listed=tuple(mailbox for mailbox in config.all_mailboxes if mailbox not in in_file),
        file=mailboxes.file,
        in_file=mailboxes.in_file,
        groups=mailboxes.distribution_groups,
        never=frozenset(config.impersonation.must_deny),
        parse=MailboxReader(mailboxes.impersonate_by).addresses,
    )


def access_rules(config: Config) -> AccessRules:
    """Return the access rules of mailboxes, from [mailboxes], its overrides and [subscription]."""

    def rule(section: Mailboxes | AccessOverride) -> AccessRule:
        own = section.folders if isinstance(section, AccessOverride) else None
        folders = own or config.subscription.folders
        return AccessRule(section.access, section.impersonate_by, None if folders == "all" else folders)

    others = {mailbox: rule(other) for other in config.mailboxes.overrides for mailbox in other.addresses}
    return AccessRules(rule(config.mailboxes), others)


def policy(config: Config) -> Policy:
    """Return the retry policy of groups, from [backoff]."""
    backoff = config.backoff
    return Policy(
        backoff=Backoff(backoff.first, backoff.factor, backoff.cap),
        suspended=Backoff(backoff.suspended_first, backoff.factor, backoff.suspended_cap),
        flapping=Backoff(backoff.first, 2.0, min(backoff.cap, 15.0)),
    )


def manager_settings(config: Config) -> ManagerSettings:
    """Return what the group manager and its groups need, from [subscription], [affinity], [stream] and [backoff]."""
    return ManagerSettings(spec=spec(config), policy=policy(config), refresh=config.affinity.refresh)


def delivery_limits(config: Config, handler: str) -> DeliveryLimits:
    """Return the delivery limits of one handler, from [delivery] and [handlers.NAME]."""
    own = config.handlers.get(handler)
    delivery = config.delivery if own is None else own.delivery(config.delivery)
    retry = Backoff(first=delivery.retry_first, factor=2.0, cap=delivery.retry_cap)
    return DeliveryLimits(
        queue=delivery.queue,
        concurrency=delivery.concurrency,
        timeout=delivery.timeout,
        attempts=delivery.attempts,
        retry=retry,
    )


def retention(config: Config) -> Retention:
    """Return the limits of the journal's age and size, from [journal]."""
    return Retention(age=config.journal.age, size=config.journal.size)


def configured_placements(
    config: Config, mailboxes: Iterable[str]
) -> tuple[tuple[Placement, ...], tuple[str, ...]]:
    """Return the mailboxes with a configured placement, and those that Autodiscover must find."""
    ews_url = config.exchange.ews_url or ""
    configured = {
        mailbox: Placement(group.ews_url or ews_url, group.name, mailbox)
        for group in config.groups
        for mailbox in group.mailboxes
    }
    wanted = dict.fromkeys(mailboxes)
    known = tuple(placement for mailbox, placement in configured.items() if mailbox in wanted)
    rest = tuple(mailbox for mailbox in wanted if mailbox not in configured)
    if config.exchange.autodiscover:
        return known, rest
    return (*known, *(Placement(ews_url, "", mailbox) for mailbox in rest)), ()
