"""Rules that concern several values. A rule declares the sections it reads, and runs if all of them are valid."""

import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from listener.config.auth import (
    AnyAuth,
    CertificateError,
    NegotiateAuth,
    OAuthAuth,
    load_key_pair,
    tls_context,
)
from listener.config.model import AccessOverride, Config, Mailboxes
from listener.config.problems import Loc
from listener.config.secrets import permission_problem
from listener.config.values import is_loopback
from listener.filters import is_glob, types_of
from listener.suggest import did_you_mean

Found: TypeAlias = Iterator[tuple[Loc, str]]
_HANDLER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

OAUTH_CREDENTIALS = ("client_secret", "certificate", "federated_token_file", "managed_identity")
SENT_CREDENTIALS = {
    "basic": "Basic authentication sends the password",
    "oauth": "OAuth sends the access token",
}
"""The credentials that each method would send over plain http."""


class Rule(NamedTuple):
    sections: frozenset[str]
    find: Callable[[Config], Found]


RULES: list[Rule] = []


def _rule(*sections: str) -> Callable[[Callable[[Config], Found]], Callable[[Config], Found]]:
    def register(find: Callable[[Config], Found]) -> Callable[[Config], Found]:
        RULES.append(Rule(frozenset(sections), find))
        return find

    return register


@_rule("mailboxes", "groups")
def _at_least_one_mailbox(config: Config) -> Found:
    if not config.all_mailboxes and not config.mailboxes.distribution_groups:
        yield (
            ("mailboxes",),
            "at least one mailbox is required: set addresses, file, distribution_groups or [[groups]]",
        )


@_rule("exchange", "mailboxes", "groups")
def _every_mailbox_has_a_url(config: Config) -> Found:
    exchange = config.exchange
    grouped = {address for group in config.groups for address in group.mailboxes}
    sought = set(config.all_mailboxes) - grouped or config.mailboxes.distribution_groups
    if not exchange.autodiscover and exchange.ews_url is None and sought:
        yield ("exchange", "ews_url"), "is required when autodiscover = false"
    for index, group in enumerate(config.groups):
        if group.ews_url is None and exchange.ews_url is None:
            yield ("groups", index, "ews_url"), "is required here or in [exchange]"
    with_sid = [rule.addresses for rule in _access_sections(config) if rule.impersonate_by == "SID"]
    if exchange.autodiscover and any(with_sid):
        yield ("exchange", "autodiscover"), 'must be false when impersonate_by = "SID"'


def _access_sections(config: Config) -> tuple[Mailboxes | AccessOverride, ...]:
    return (config.mailboxes, *config.mailboxes.overrides)


@_rule("mailboxes", "subscription")
def _delegate_access_requires_folders(config: Config) -> Found:
    loc: Loc = ("mailboxes", "access")
    for index, rule in enumerate(_access_sections(config), -1):
        own = rule.folders if isinstance(rule, AccessOverride) else None
        if index >= 0:
            loc = ("mailboxes", "overrides", index, "access")
        if rule.access == "delegate" and (own or config.subscription.folders) == "all":
            yield loc, "delegate access cannot subscribe to all folders; set folders"
        if rule.access != "impersonation" and "impersonate_by" in rule.model_fields_set:
            yield (*loc[:-1], "impersonate_by"), f'has no effect with access = "{rule.access}"; remove it'


@_rule("mailboxes")
def _overrides_are_not_empty(config: Config) -> Found:
    for index, other in enumerate(config.mailboxes.overrides):
        if not other.addresses:
            yield ("mailboxes", "overrides", index), "contains no mailbox; set addresses or file"


@_rule("mailboxes", "auth")
def _oauth_requires_impersonation(config: Config) -> Found:
    if config.auth.kind != "oauth":
        return
    loc: Loc = ("mailboxes", "access")
    for index, rule in enumerate(_access_sections(config), -1):
        if index >= 0:
            loc = ("mailboxes", "overrides", index, "access")
        if rule.access != "impersonation":
            yield (
                loc,
                'must be "impersonation" with [auth] kind = "oauth", because an application has no mailbox',
            )
    if config.mailboxes.distribution_groups and config.mailboxes.expand_as is None:
        yield (
            ("mailboxes", "expand_as"),
            'is required with [auth] kind = "oauth", to expand distribution groups',
        )


@_rule("mailboxes", "auth", "servers", "groups", "exchange")
def _oauth_servers_require_impersonation(config: Config) -> Found:
    """Checks the mailboxes whose server the configuration determines."""
    if config.auth.kind == "oauth":
        return  # _oauth_requires_impersonation checks all mailboxes
    mailboxes, ews_url = config.mailboxes, config.exchange.ews_url
    elsewhere = None if config.exchange.autodiscover else ews_url
    urls = {address: group.ews_url or ews_url for group in config.groups for address in group.mailboxes}
    overridden = {address for other in mailboxes.overrides for address in other.addresses}
    rest = tuple(address for address in config.all_mailboxes if address not in overridden)
    rules: list[tuple[Loc, str, tuple[str, ...]]] = [
        (("mailboxes",), mailboxes.access, (*rest, *mailboxes.distribution_groups))
    ]
    rules += [
        (("mailboxes", "overrides", index), other.access, other.addresses)
        for index, other in enumerate(mailboxes.overrides)
    ]
    for loc, access, addresses in rules:
        for address in addresses if access != "impersonation" else ():
            url = urls.get(address, elsewhere)
            if url is not None and config.auth_for(url).kind == "oauth":
                what = (
                    f'must be "impersonation" for {address}, whose server has kind = "oauth" in [[servers]]'
                )
                yield (*loc, "access"), f"{what}, because an application has no mailbox"
                break
    expansion_url = ews_url if mailboxes.distribution_groups and mailboxes.expand_as is None else None
    if expansion_url is not None and config.auth_for(expansion_url).kind == "oauth":
        what = 'is required with kind = "oauth" in [[servers]] for [exchange] ews_url'
        yield ("mailboxes", "expand_as"), f"{what}, to expand distribution groups"


@_rule("mailboxes", "groups")
def _own_access_has_one_mailbox(config: Config) -> Found:
    mailboxes = config.mailboxes
    overridden = {address for other in mailboxes.overrides for address in other.addresses}
    own: list[tuple[Loc, tuple[str, ...]]] = [
        (("mailboxes", "overrides", index), other.addresses)
        for index, other in enumerate(mailboxes.overrides)
        if other.access == "own"
    ]
    if mailboxes.access == "own":
        rest = tuple(address for address in config.all_mailboxes if address not in overridden)
        own.insert(0, (("mailboxes",), rest))
        if mailboxes.distribution_groups:
            yield ("mailboxes", "distribution_groups"), 'cannot be used with access = "own"'
    if sum(len(addresses) for _, addresses in own) > 1:
        yield (*own[-1][0], "access"), '"own" is limited to one mailbox, that of the account'


@_rule("mailboxes", "groups", "impersonation")
def _must_deny_mailboxes_are_not_subscribed(config: Config) -> Found:
    subscribed = set(config.all_mailboxes)
    for index, mailbox in enumerate(config.impersonation.must_deny):
        if mailbox in subscribed:
            yield (
                ("impersonation", "must_deny", index),
                f'"{mailbox}" is also a mailbox to subscribe to',
            )


@_rule("mailboxes", "exchange")
def _distribution_groups_can_be_expanded(config: Config) -> Found:
    mailboxes, exchange = config.mailboxes, config.exchange
    if not mailboxes.distribution_groups:
        return
    loc: Loc = ("mailboxes", "distribution_groups")
    if mailboxes.impersonate_by == "SID":
        yield loc, 'cannot be combined with impersonate_by = "SID": members have no security identifiers'
    if exchange.ews_url is None and not (exchange.autodiscover and mailboxes.expand_as):
        yield loc, "require [exchange] ews_url, or expand_as to find it with Autodiscover"


@_rule("exchange", "groups", "auth", "servers")
def _credentials_require_https(config: Config) -> Found:
    exchange = config.exchange
    urls: list[tuple[Loc, str | None]] = [
        (("exchange", "ews_url"), exchange.ews_url),
        (("exchange", "autodiscover_url"), exchange.autodiscover_url),
        *((("groups", index, "ews_url"), group.ews_url) for index, group in enumerate(config.groups)),
    ]
    for loc, url in urls:
        if url is None or url.lower().startswith("https:") or is_loopback(url):
            continue
        if shown := SENT_CREDENTIALS.get(config.auth_for(url).kind):
            yield loc, f"must be https or a loopback address, because {shown}"


@_rule("auth", "servers")
def _auth_keys_are_complete(config: Config) -> Found:
    every: list[tuple[Loc, AnyAuth]] = [(("auth",), config.auth)]
    every += [(("servers", index, "auth"), server.auth) for index, server in enumerate(config.servers)]
    for loc, auth in every:
        if isinstance(auth, OAuthAuth):
            yield from ((loc + tuple(filter(None, [key])), what) for key, what in _oauth_problems(auth))
        elif isinstance(auth, NegotiateAuth) and auth.password is not None and auth.user is None:
            yield (*loc, "password"), "requires user"


def _oauth_problems(auth: OAuthAuth) -> Iterator[tuple[str, str]]:
    """Yield the key of each problem, empty for the table as a whole, and the text."""
    given = [key for key in OAUTH_CREDENTIALS if getattr(auth, key)]
    if len(given) != 1:
        yield (
            given[-1] if given else "",
            f"requires exactly one of {', '.join(OAUTH_CREDENTIALS[:-1])} and {OAUTH_CREDENTIALS[-1]}",
        )
    if auth.client_id is None and not auth.managed_identity:
        yield "client_id", "is required"
    if auth.tenant is None and auth.authority is None and not auth.managed_identity:
        yield "tenant", "is required without authority"
    if auth.scope is None and auth.authority is not None and auth.authority.rstrip("/").endswith("/adfs"):
        yield "scope", "is required with AD FS: the identifier of Exchange with /.default"
    if auth.certificate is None:
        for key in ("certificate_key", "certificate_password"):
            if getattr(auth, key) is not None:
                yield key, "requires certificate"
    else:
        password = None if auth.certificate_password is None else auth.certificate_password.reveal()
        try:
            load_key_pair(auth.certificate, auth.certificate_key, password)
        except CertificateError as error:
            yield "certificate", str(error)


@_rule("exchange")
def _exchange_keys_are_complete(config: Config) -> Found:
    exchange = config.exchange
    for key, needed in (
        ("client_key", "client_cert"),
        ("client_key_password", "client_cert"),
        ("proxy_user", "proxy"),
        ("proxy_user", "proxy_password"),
        ("proxy_password", "proxy_user"),
    ):
        if getattr(exchange, key) is not None and getattr(exchange, needed) is None:
            yield ("exchange", key), f"requires {needed}"
    for key in ("ca_file", "client_cert") if exchange.ca_file or exchange.client_cert else ():
        try:
            exchange.tls_context() if key == "client_cert" else tls_context(exchange.ca_file)
        except OSError as error:  # includes ssl.SSLError
            yield ("exchange", key), f"{getattr(exchange, key)} cannot be used: {error.strerror or error}"
            break


@_rule("auth", "exchange", "servers")
def _private_keys_are_protected(config: Config) -> Found:
    tables: list[tuple[Loc, Any, str, str]] = [
        (("exchange",), config.exchange, "client_cert", "client_key"),
        (("auth",), config.auth, "certificate", "certificate_key"),
    ]
    tables += [
        (("servers", index, "auth"), server.auth, "certificate", "certificate_key")
        for index, server in enumerate(config.servers)
    ]
    for loc, table, certificate, key in tables:
        name = key if getattr(table, key, None) is not None else certificate
        path = getattr(table, name, None)
        if path is not None and (problem := permission_problem(path)) is not None:
            yield (*loc, name), problem


@_rule("backoff")
def _backoff_caps(config: Config) -> Found:
    backoff = config.backoff
    if backoff.cap < backoff.first:
        yield ("backoff", "cap"), "must not be less than first"
    if backoff.suspended_cap < backoff.suspended_first:
        yield ("backoff", "suspended_cap"), "must not be less than suspended_first"


@_rule("delivery")
def _retry_cap(config: Config) -> Found:
    if config.delivery.retry_cap < config.delivery.retry_first:
        yield ("delivery", "retry_cap"), "must not be less than retry_first"


@_rule("handlers")
def _handler_names(config: Config) -> Found:
    if not config.handlers:
        yield ("handlers",), 'at least one handler is required, such as [handlers.log] with use = "log"'
    for name in config.handlers:
        if not _HANDLER_NAME.fullmatch(name):
            yield ("handlers", name), "a handler name consists of letters, digits, - and _"


@_rule("handlers", "subscription", "catch_up")
def _filter_types_can_match(config: Config) -> Found:
    """Reject types that are not subscribed to, or that catch-up does not report."""
    for name, handler in config.handlers.items():
        for index, pattern in enumerate(handler.filter.types):
            if all(map(partial(_is_never_reported, config), types_of(pattern))):
                loc: Loc = ("handlers", name, "filter", "types", index)
                if config.catch_up.mode == "off" and "listener" in types_of(pattern)[0]:
                    yield loc, f'no event matches "{pattern}" with [catch_up] mode = "off"'
                else:
                    subscribed = ", ".join(config.subscription.events)
                    yield (
                        loc,
                        f'no event matches "{pattern}": [subscription] events contains only {subscribed}',
                    )


def _is_never_reported(config: Config, type_: str) -> bool:
    _, about, kind = type_.split(".")
    if about == "listener":
        return kind in ("gap", "recovered") and config.catch_up.mode == "off"
    return kind not in config.subscription.events


@_rule("handlers", "mailboxes", "groups")
def _filter_mailboxes_are_known(config: Config) -> Found:
    mailboxes = config.mailboxes
    if mailboxes.file is None and not mailboxes.distribution_groups:  # otherwise a refresh may add others
        for loc, pattern, what in unmatched_mailboxes(config):
            if not is_glob(pattern) and what.endswith("?"):  # a typing error; other cases are warnings
                yield loc, what


def unmatched_mailboxes(config: Config) -> Iterator[tuple[Loc, str, str]]:
    """Yield the location, pattern and text of each filter value that matches none of the known mailboxes."""
    known = [mailbox.lower() for mailbox in config.all_mailboxes]
    for name, handler in config.handlers.items():
        for index, pattern in enumerate(handler.filter.mailboxes):
            if known and not any(fnmatchcase(mailbox, pattern) for mailbox in known):
                what = f'"{pattern}" matches no mailbox of the configuration{did_you_mean(pattern, known)}'
                yield ("handlers", name, "filter", "mailboxes", index), pattern, what


@_rule("status")
def _status_requires_token(config: Config) -> Found:
    listen = config.status.listen
    if listen is not None and config.status.token is None and not is_loopback(f"//{listen}"):
        yield (
            ("status", "listen"),
            "requires token, because other hosts can connect; set token or use a loopback address",
        )
