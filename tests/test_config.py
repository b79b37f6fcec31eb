import os
import re
import tomllib
from base64 import b64encode
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates
from cryptography.x509 import load_pem_x509_certificate
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from listener import MailboxEvent, __version__
from listener.build import access_rules, mailbox_sources
from listener.config import (
    AccessOverride,
    Config,
    Delivery,
    HandlerConfig,
    HandlerFilter,
    Server,
    StaticGroup,
    load,
    parse,
    secrets,
    validate,
)
from listener.config.auth import KINDS, AnyAuth, CertificateError, OAuthAuth, load_key_pair
from listener.config.secrets import Secret, SecretError
from listener.config.values import (
    DISTINGUISHED_FOLDERS,
    format_duration,
    parse_duration,
    parse_folder_id,
    parse_initial,
)
from listener.errors import ConfigError
from listener.ews.soap import Impersonation
from listener.ews.subscription import FolderRef
from listener.filters import EventFilter

HERE = Path("/etc/ews-listener")
SECRET = "pl4nted-s3cret"
SECRET_KEYS = "password, password_file, password_env, password_credential and password_command"
MAILBOX_KEYS = "set addresses, file, distribution_groups or [[groups]]"

CLOUD = "https://ews.cloud.example/EWS/Exchange.asmx"
AT_THE_CLOUD = {"ews_url": CLOUD, "autodiscover": False}
APPLICATION = {"hosts": ["*.cloud.example"], "auth": {"kind": "oauth", "managed_identity": True}}
DELEGATE = {"addresses": ["a@b.c"], "access": "delegate", "folders": ["inbox"]}


def document(**sections: Any) -> dict[str, Any]:
    """Return a minimal valid document with some sections replaced; None removes a section."""
    least = {
        "exchange": {"ews_url": "https://mail.example.com/EWS/Exchange.asmx"},
        "auth": {"user": "svc@example.com", "password": SECRET},
        "mailboxes": {"addresses": ["alice@example.com"]},
        "handlers": {"log": {"use": "log"}},
    }
    return {key: value for key, value in (least | sections).items() if value is not None}


def problems(directory: Path = HERE, environ: dict[str, str] | None = None, **sections: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(document(**sections), directory, environ or {})
    return [str(problem) for problem in caught.value.problems]


def good(directory: Path = HERE, environ: dict[str, str] | None = None, **sections: Any) -> Config:
    return parse(document(**sections), directory, environ or {})


def secret(auth: AnyAuth) -> Secret:
    """Return the password of an authentication method that has one."""
    assert not isinstance(auth, OAuthAuth)
    assert auth.password is not None
    return auth.password


def test_minimal_configuration_has_the_documented_defaults() -> None:
    config = good()
    assert config.state_directory == HERE / "state"
    assert config.stream.window == 1800
    assert config.backoff.suspended_cap == 3600
    assert config.affinity.group_size == 200
    assert config.subscription.folders == "all"
    assert len(config.subscription.events) == 7
    assert config.delivery == Delivery(queue=10_000, timeout=30, attempts=5, retry_first=1, retry_cap=60)


def test_all_problems_are_reported_in_the_order_of_the_file() -> None:
    found = problems(
        stat_directory="x",
        exchange={"vesion": 1, "ews_url": "http://mail.example.com/", "concurrency": 0},
        auth={"user": 5, "password": SECRET},
        stream={"window": "90s", "heartbeat": True},
        handlers={"a": {"use": "x", "attempts": 0, "filter": {"types": ["creatd"]}}, "b c": {}},
        backoff={"first": 10, "cap": 5},
    )
    assert found == [
        'exchange.vesion: unknown key, did you mean "version"?',
        "exchange.concurrency: must be at least 1",
        "auth.user: must be a string",
        "handlers.a.attempts: must be at least 1",
        'handlers.a.filter.types[0]: no event type matches "creatd", did you mean "created"?',
        'handlers."b c".use: is required',
        'stat_directory: unknown key, did you mean "state_directory"?',
        "stream.window: must be whole minutes from 1m to 30m, as Exchange requires",
        'stream.heartbeat: must be a number of seconds or a string such as "45s", "30m", "2h", "1d"',
        "backoff.cap: must not be less than first",
    ]


def test_renamed_key_is_rejected_with_its_new_name() -> None:
    assert problems(
        log={"sum_up": "1m"},
        impersonation={"must_refuse": ["a@b.c"], "if_not_refused": "warn"},
        backoff={"parked_first": 1, "parked_cap": 2, "sum_up": 3},
    ) == [
        "log.sum_up: was renamed to repeat_interval",
        "impersonation.must_refuse: was renamed to must_deny",
        "impersonation.if_not_refused: was renamed to if_not_denied",
        "backoff.parked_first: was renamed to suspended_first",
        "backoff.parked_cap: was renamed to suspended_cap",
        "backoff.sum_up: unknown key; known: cap, factor, first, suspended_cap, suspended_first",
    ]


def test_unknown_key_does_not_hide_other_problems_of_its_section() -> None:
    assert problems(exchange={"vesion": 1, "ews_url": "http://mail.example.com/"}) == [
        'exchange.vesion: unknown key, did you mean "version"?',
        "exchange.ews_url: must be https or a loopback address, because Basic authentication sends the password",
    ]


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"auth": None}, "auth: is required"),
        ({"handlers": None}, "handlers: is required"),
        ({"handlers": {}}, 'handlers: at least one handler is required, such as [handlers.log] with use = "log"'),
        ({"handlers": {"ä": {"use": "log"}}}, 'handlers."ä": a handler name consists of letters, digits, - and _'),
        ({"handlers": {"a": 1}}, "handlers.a: must be a table"),
        ({"stream": 1}, "stream: must be a table"),
        ({"groups": {"name": "x"}}, "groups: must be an array"),
        ({"groups": [1]}, "groups[0]: must be a table"),
        ({"mailboxes": None}, f"mailboxes: at least one mailbox is required: {MAILBOX_KEYS}"),
        ({"mailboxes": {"addresses": "a@b"}}, "mailboxes.addresses: must be an array"),
        ({"mailboxes": {"addresses": ["a@b.c", 1]}}, "mailboxes.addresses[1]: must be a string"),
        ({"exchange": {"autodiscover": False}}, "exchange.ews_url: is required when autodiscover = false"),
        ({"exchange": {"autodiscover": 1}}, "exchange.autodiscover: must be true or false"),
        ({"exchange": {"user_agent": "a\nb"}}, "exchange.user_agent: must be printable ASCII"),
        ({"exchange": {"ews_url": "mail.example.com"}}, "exchange.ews_url: must be a URL of the form https://host/path"),
        ({"exchange": {"ews_url": "https://h:99999/"}}, "exchange.ews_url: must be a URL of the form https://host/path"),
        ({"exchange": {"proxy": "proxy:3128"}}, "exchange.proxy: must be a URL of the form http://host:port"),
        (
            {"exchange": {"version": "Exchange2013_SP2"}},
            (
                'exchange.version: must be "Exchange2010_SP1", "Exchange2010_SP2", "Exchange2013", '
                '"Exchange2013_SP1" or "Exchange2016", did you mean "Exchange2013_SP1"?'
            ),
        ),
        (
            {"auth": {"user": "x", "password": "y", "kind": "ntml"}},
            'auth.kind: must be one of "basic", "ntlm", "negotiate", "oauth", did you mean "ntlm"?',
        ),
        ({"auth": {"kind": 7}}, 'auth.kind: must be one of "basic", "ntlm", "negotiate", "oauth"'),
        ({"auth": {"kind": "ntlm", "usr": "x", "password": "y", "user": "x"}},
         'auth.usr: unknown key, did you mean "user"?'),
        ({"auth": {"kind": "negotiate", "spn": "mail.example.com"}},
         "auth.spn: must have the form HTTP/mail.example.com"),
        ({"servers": [{"hosts": [], "auth": {"kind": "negotiate"}}]}, "servers[0].hosts: must not be empty"),
        ({"servers": [{"hosts": ["https://h/"], "auth": {"kind": "negotiate"}}]},
         'servers[0].hosts[0]: must be a hostname without https:// and path, or a glob such as "*.outlook.com"'),
        ({"servers": [{"hosts": ["h"], "auth": {"kind": "ntlm", "user": "x"}}]},
         f"servers[0].auth.password: is required: one of {SECRET_KEYS}"),
        ({"affinity": {"group_size": 201}}, "affinity.group_size: must be at most 200"),
        ({"affinity": {"group_size": "9"}}, "affinity.group_size: must be an integer"),
        ({"subscription": {"folders": "inbox"}}, 'subscription.folders: must be "all"'),
        (
            {"subscription": {"folders": ["inbx"]}},
            'subscription.folders[0]: unknown folder "inbx", did you mean "inbox"?',
        ),
        ({"subscription": {"folders": []}}, "subscription.folders: must not be empty"),
        (
            {"subscription": {"events": ["created", "created"]}},
            "subscription.events: must not contain duplicates",
        ),
        (
            {"subscription": {"events": ["newmail"]}},
            'subscription.events[0]: unknown event "newmail", did you mean "new_mail"?',
        ),
        ({"delivery": {"retry_cap": 0.5}}, "delivery.retry_cap: must not be less than retry_first"),
        ({"delivery": {"timeout": 0}}, "delivery.timeout: must be more than 0"),
        ({"backoff": {"suspended_cap": "10s"}}, "backoff.suspended_cap: must not be less than suspended_first"),
        ({"backoff": {"factor": float("inf")}}, "backoff.factor: must be a finite number"),
        (
            {"log": {"format": "jso"}},
            'log.format: must be "auto", "console", "json" or "journal", did you mean "json"?',
        ),
        (
            {"handlers": {"a": {"use": "x", "filter": {"mailbox": ["x"]}}}},
            'handlers.a.filter.mailbox: unknown key, did you mean "mailboxes"?',
        ),
        (
            {"handlers": {"a": {"use": "x", "filter": {"mailboxes": ["x"]}}}},
            'handlers.a.filter.mailboxes[0]: "x" is not a valid email address',
        ),
    ],
)  # fmt: skip
def test_problem_names_its_key(sections: dict[str, Any], problem: str) -> None:
    assert problems(**sections) == [problem]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080/EWS",
        "http://localhost/EWS",
        "http://[::1]:9/EWS",
        "https://mail.example.com/EWS",
    ],
)
def test_basic_authentication_is_allowed_for_https_and_loopback(url: str) -> None:
    assert good(exchange={"ews_url": url}).exchange.ews_url == url


@pytest.mark.parametrize(
    "url", ["http://mail.example.com/", "http://127.0.0.1.example.com/", "http://128.0.0.1/"]
)
@pytest.mark.parametrize("key", ["ews_url", "autodiscover_url"])
def test_basic_authentication_is_rejected_for_other_urls(url: str, key: str) -> None:
    (problem,) = problems(exchange={key: url})
    assert problem.startswith(f"exchange.{key}: must be https")


class TestMailboxes:
    def test_list_and_file_are_merged(self, tmp_path: Path) -> None:
        (tmp_path / "m.txt").write_text("\ufeff# comment\n\n Bob@Example.com  # comment\r\nc#d@example.com\n")
        config = good(tmp_path, mailboxes={"addresses": ["Alice@example.COM"], "file": "m.txt"})
        assert config.mailboxes.addresses == ("alice@example.com", "bob@example.com", "c#d@example.com")
        assert config.mailboxes.file == tmp_path / "m.txt"
        assert config.mailboxes.in_file == ("bob@example.com", "c#d@example.com")

    def test_file_is_read_once(self, tmp_path: Path) -> None:
        file = tmp_path / "m.txt"
        file.write_text("bob@example.com\n")
        config = good(
            tmp_path,
            mailboxes={"addresses": ["alice@example.com"], "file": "m.txt"},
            groups=[{"mailboxes": ["carol@example.com"]}],
        )
        file.write_text("eve@example.com\n")  # the configuration keeps what it read
        sources = mailbox_sources(config)
        assert sources.in_file == ("bob@example.com",)
        assert sources.listed == ("alice@example.com", "carol@example.com")

    def test_invalid_and_duplicate_addresses_are_reported_with_their_locations(self, tmp_path: Path) -> None:
        (tmp_path / "m.txt").write_text("x@example.com\n\nA@example.com\nfoo bar\nX@example.com\n")
        assert problems(
            tmp_path,
            mailboxes={"addresses": ["a@example.com", "nope", "a@EXAMPLE.com"], "file": "m.txt"},
        ) == [
            'mailboxes.addresses[1]: "nope" is not a valid email address',
            'mailboxes.addresses[2]: "a@example.com" is a duplicate of mailboxes.addresses[0]',
            'm.txt:3: "a@example.com" is a duplicate of mailboxes.addresses[0]',
            'm.txt:4: "foo bar" is not a valid email address',
            'm.txt:5: "x@example.com" is a duplicate of m.txt:1',
        ]

    @pytest.mark.parametrize("content", [None, b"\xff"])
    def test_unreadable_file(self, tmp_path: Path, content: bytes | None) -> None:
        if content is not None:
            (tmp_path / "m.txt").write_bytes(content)
        (problem,) = problems(tmp_path, mailboxes={"file": "m.txt"})
        missing = f"cannot read {tmp_path}/m.txt: No such file or directory"
        expected = missing if content is None else f"{tmp_path}/m.txt is not UTF-8 text (byte 0xff in line 1)"
        assert problem.startswith(f"mailboxes.file: {expected}")

    def test_static_groups_need_no_other_mailboxes(self, tmp_path: Path) -> None:
        (tmp_path / "b.txt").write_text("b@example.com\n")
        config = good(
            tmp_path,
            exchange={"autodiscover": False},
            mailboxes=None,
            groups=[
                {"ews_url": "https://a.example.com/", "name": "a", "mailboxes": ["A@example.com"]},
                {"ews_url": "https://b.example.com/", "mailboxes_file": "b.txt"},
            ],
        )
        assert [group.mailboxes for group in config.groups] == [("a@example.com",), ("b@example.com",)]
        assert config.all_mailboxes == ("a@example.com", "b@example.com")

    def test_group_member_may_be_listed_but_not_be_in_two_groups(self) -> None:
        def group(address: str) -> dict[str, Any]:
            return {"ews_url": "https://a.example.com/", "mailboxes": [address]}

        listed = {"addresses": ["a@example.com"]}
        assert good(mailboxes=listed, groups=[group("a@example.com")]).all_mailboxes == ("a@example.com",)
        assert problems(mailboxes=listed, groups=[group("a@example.com"), group("A@example.com")]) == [
            'groups[1].mailboxes[0]: "a@example.com" is a duplicate of groups[0].mailboxes[0]'
        ]

    def test_group_requires_members_and_a_url(self) -> None:
        assert problems(
            exchange=None, groups=[{"name": "x"}, {"mailboxes": ["b@example.com"], "nme": "y"}]
        ) == [
            "groups[0]: requires exactly one of mailboxes and mailboxes_file",
            'groups[1].nme: unknown key, did you mean "name"?',
        ]
        assert problems(exchange=None, groups=[{"mailboxes": ["b@example.com"]}]) == [
            "groups[0].ews_url: is required here or in [exchange]"
        ]

    def test_security_identifiers_as_mailboxes(self) -> None:
        sid = {"impersonate_by": "SID", "addresses": ["s-1-5-21-1-2-3-500"]}
        exchange = {"ews_url": "https://mail.example.com/", "autodiscover": False}
        assert good(exchange=exchange, mailboxes=sid).mailboxes.addresses == ("S-1-5-21-1-2-3-500",)
        assert problems(mailboxes=sid) == ['exchange.autodiscover: must be false when impersonate_by = "SID"']
        assert problems(exchange=exchange, mailboxes=sid | {"addresses": ["a@b.c"]}) == [
            'mailboxes.addresses[0]: "a@b.c" is not a valid security identifier (S-1-5-21-…)'
        ]


class TestAccess:
    def test_overrides_add_mailboxes(self, tmp_path: Path) -> None:
        (tmp_path / "shared.txt").write_text("Reception@Example.com\n")
        mailboxes = {
            "addresses": ["a@example.com", "b@example.com"],
            "overrides": [
                {"file": "shared.txt", "access": "delegate", "folders": ["inbox"]},
                {"addresses": ["B@example.com"], "impersonate_by": "PrincipalName"},
            ],
        }
        config = good(tmp_path, mailboxes=mailboxes)
        assert config.all_mailboxes == ("a@example.com", "b@example.com", "reception@example.com")
        rules = access_rules(config)
        assert rules.of("a@example.com").impersonate == Impersonation("PrimarySmtpAddress", "a@example.com")
        assert rules.of("b@example.com").impersonate == Impersonation("PrincipalName", "b@example.com")
        reception = rules.of("reception@example.com")
        assert (reception.kind, reception.impersonate) == ("delegate", None)
        assert reception.folders == (FolderRef("inbox", mailbox="reception@example.com"),)

    @pytest.mark.parametrize(
        ("mailboxes", "problem"),
        [
            (
                {"addresses": ["a@b.c"], "access": "delegate"},
                "mailboxes.access: delegate access cannot subscribe to all folders; set folders",
            ),
            (
                {"overrides": [{"addresses": ["a@b.c"], "access": "delegate"}]},
                "mailboxes.overrides[0].access: delegate access cannot subscribe to all folders; set folders",
            ),
            (
                {"addresses": ["a@b.c", "b@b.c"], "access": "own"},
                'mailboxes.access: "own" is limited to one mailbox, that of the account',
            ),
            (
                {"addresses": ["a@b.c"], "access": "own", "impersonate_by": "SmtpAddress"},
                'mailboxes.impersonate_by: has no effect with access = "own"; remove it',
            ),
            (
                {"addresses": ["a@b.c"], "overrides": [{"access": "own"}]},
                "mailboxes.overrides[0]: contains no mailbox; set addresses or file",
            ),
            (
                {"overrides": [{"addresses": ["a@b.c"]}, {"addresses": ["A@b.c"]}]},
                'mailboxes.overrides[1].addresses[0]: "a@b.c" is a duplicate of mailboxes.overrides[0].addresses[0]',
            ),
            (
                {"addresses": ["a@b.c"], "acces": "own"},
                'mailboxes.acces: unknown key, did you mean "access"?',
            ),
            ({"addresses": ["a@b.c"], "max_drop": 2}, "mailboxes.max_drop: must be at most 1"),
            (
                {"distribution_groups": ["sales"]},
                'mailboxes.distribution_groups[0]: "sales" is not a valid email address',
            ),
            (
                {"distribution_groups": ["sales@b.c"]},
                (
                    "mailboxes.distribution_groups: require [exchange] ews_url, or expand_as to find it with "
                    "Autodiscover"
                ),
            ),
        ],
    )
    def test_invalid_combinations(self, mailboxes: dict[str, Any], problem: str) -> None:
        assert problems(mailboxes=mailboxes, exchange=None) == [problem]

    def test_oauth_requires_impersonation(self) -> None:
        oauth = {"kind": "oauth", "tenant": "contoso.example", "client_id": "1", "client_secret": SECRET}
        mailboxes = {"addresses": ["a@b.c"], "access": "own", "distribution_groups": ["all@b.c"]}
        found = problems(auth=oauth, mailboxes=mailboxes)
        must = 'must be "impersonation" with [auth] kind = "oauth", because an application has no mailbox'
        assert f"mailboxes.access: {must}" in found
        required = 'is required with [auth] kind = "oauth", to expand distribution groups'
        assert f"mailboxes.expand_as: {required}" in found
        good(auth=oauth)

    @pytest.mark.parametrize(
        ("sections", "problem"),
        [
            (
                {"mailboxes": {"addresses": ["a@b.c"], "access": "own"}, "exchange": AT_THE_CLOUD},
                "mailboxes.access",
            ),
            (
                {"mailboxes": {"access": "delegate"}, "groups": [{"ews_url": CLOUD, "mailboxes": ["a@b.c"]}],
                 "subscription": {"folders": ["inbox"]}, "exchange": None},
                "mailboxes.access",
            ),
            (
                {"mailboxes": {"addresses": ["b@b.c"], "overrides": [DELEGATE]}, "exchange": AT_THE_CLOUD},
                "mailboxes.overrides[0].access",
            ),
            (
                {"mailboxes": {"addresses": ["b@b.c"], "overrides": [DELEGATE]}, "groups": [{"mailboxes": ["a@b.c"]}],
                 "exchange": {"ews_url": CLOUD}},
                "mailboxes.overrides[0].access",
            ),
        ],
    )  # fmt: skip
    def test_oauth_of_a_server_requires_impersonation(self, sections: dict[str, Any], problem: str) -> None:
        what = 'must be "impersonation" for a@b.c, whose server has kind = "oauth" in [[servers]]'
        found = problems(servers=[APPLICATION], **sections)
        assert found == [f"{problem}: {what}, because an application has no mailbox"]

    def test_access_is_not_checked_if_the_server_is_unknown(self) -> None:
        mailboxes = {"addresses": ["b@b.c"], "overrides": [DELEGATE]}
        good(servers=[APPLICATION], mailboxes=mailboxes, exchange=None)
        good(servers=[APPLICATION], mailboxes=mailboxes, groups=[{"ews_url": CLOUD, "mailboxes": ["c@b.c"]}])

    def test_oauth_of_a_server_requires_expand_as(self) -> None:
        found = problems(
            servers=[APPLICATION],
            mailboxes={"distribution_groups": ["all@b.c"]},
            exchange={"ews_url": CLOUD},
        )
        what = 'is required with kind = "oauth" in [[servers]] for [exchange] ews_url'
        assert found == [f"mailboxes.expand_as: {what}, to expand distribution groups"]

    def test_distribution_groups_alone_are_enough(self) -> None:
        groups = {"distribution_groups": ["Sales@example.com"]}
        exchange = {"ews_url": "https://mail.example.com/EWS/Exchange.asmx"}
        assert good(mailboxes=groups, exchange=exchange).mailboxes.distribution_groups == (
            "sales@example.com",
        )
        good(mailboxes=groups | {"expand_as": "a@example.com"}, exchange=None)


class TestSecrets:
    def password(self, directory: Path, **auth: Any) -> str:
        environ = {"PASSWORD": SECRET}
        environ |= {"CREDENTIALS_DIRECTORY": str(directory), "PATH": os.environ["PATH"]}
        return secret(good(directory, environ, auth={"user": "svc"} | auth).auth).reveal()

    def test_each_source(self, tmp_path: Path) -> None:
        for name in ("password.txt", "svc"):
            (tmp_path / name).write_text(f"  {SECRET}\n")
            (tmp_path / name).chmod(0o600)
        (tmp_path / "ask").write_text(f"#!/bin/sh\ntest $PASSWORD = {SECRET} && echo $1{SECRET[2:]}\n")
        (tmp_path / "ask").chmod(0o700)
        assert self.password(tmp_path, password=SECRET) == SECRET
        assert self.password(tmp_path, password_file="password.txt") == SECRET
        assert self.password(tmp_path, password_env="PASSWORD") == SECRET
        assert self.password(tmp_path, password_credential="svc") == SECRET
        assert self.password(tmp_path, password_command=["./ask", SECRET[:2]]) == SECRET
        assert self.password(tmp_path, password_command=["cat", "password.txt"]) == SECRET

    @pytest.mark.parametrize(
        ("auth", "problem"),
        [
            ({}, f"auth.password: is required: one of {SECRET_KEYS}"),
            (
                {"password": SECRET, "password_env": "PASSWORD"},
                f"auth.password_env: set only one of {SECRET_KEYS}",
            ),
            ({"password": ""}, "auth.password: must not be empty"),
            ({"password": 5}, "auth.password: must be a string"),
            ({"password_env": "NOPE"}, "auth.password_env: environment variable NOPE is not set"),
            ({"password_env": "EMPTY"}, "auth.password_env: environment variable EMPTY is empty"),
            ({"password_env": ""}, "auth.password_env: must not be empty"),
            ({"password_env": 5}, "auth.password_env: must be a string"),
            ({"password_file": 5}, "auth.password_file: must be a path (string)"),
            (
                {"password_file": "no.txt"},
                "auth.password_file: cannot read {}/no.txt: No such file or directory",
            ),
            (
                {"password_file": "open.txt"},
                "auth.password_file: file is world-readable (mode 0644); run: chmod 600 {}/open.txt",
            ),
            (
                {"password_file": "two.txt"},
                "auth.password_file: {}/two.txt must contain exactly one line of text: the secret",
            ),
            ({"password_file": "bytes.txt"}, "auth.password_file: {}/bytes.txt is not UTF-8 text"),
            (
                {"password_credential": "none"},
                "auth.password_credential: cannot read {}/none: No such file or directory",
            ),
            (
                {"password_credential": "../x"},
                "auth.password_credential: must be the name of a systemd credential, without /",
            ),
            (
                {"password_command": "cat x"},
                "auth.password_command: must be an array of strings: the program and its arguments",
            ),
            ({"password_command": ["no-such"]}, "auth.password_command: program not found: no-such"),
            (
                {"password_command": ["./no-such"]},
                "auth.password_command: cannot run ./no-such: No such file or directory",
            ),
            (
                {"password_command": ["sh", "-c", f"echo {SECRET} >&2; exit 3"]},
                "auth.password_command: sh failed with exit code 3; its output is not shown",
            ),
            (
                {"password_command": ["true"]},
                "auth.password_command: true must write exactly one line of text: the secret",
            ),
            ({"password_comand": ["true"], "password": SECRET},
             'auth.password_comand: unknown key, did you mean "password_command"?'),
        ],
    )  # fmt: skip
    def test_invalid_secrets(self, tmp_path: Path, auth: dict[str, Any], problem: str) -> None:
        for name, content, mode in (
            ("open.txt", SECRET.encode(), 0o644),
            ("two.txt", f"{SECRET}\n{SECRET}".encode(), 0o600),
            ("bytes.txt", SECRET.encode() + b"\xff", 0o600),
        ):
            (tmp_path / name).write_bytes(content)
            (tmp_path / name).chmod(mode)
        environ = {
            "PASSWORD": SECRET,
            "EMPTY": "",
            "CREDENTIALS_DIRECTORY": str(tmp_path),
            "PATH": os.environ["PATH"],
        }
        found = problems(tmp_path, environ, auth={"user": "svc"} | auth)
        assert found == [problem.format(tmp_path)]

    def test_credential_requires_systemd(self) -> None:
        (problem,) = problems(auth={"user": "svc", "password_credential": "x"})
        assert problem == (
            "auth.password_credential: $CREDENTIALS_DIRECTORY is not set; systemd sets it for a unit with "
            "LoadCredential="
        )

    def test_command_timeout(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(secrets, "COMMAND_TIMEOUT", 0.05)
        assert problems(tmp_path, {}, auth={"user": "svc", "password_command": ["sleep", "9"]}) == [
            "auth.password_command: sleep did not finish within 0.05 s"
        ]

    def test_renew_reads_the_source_again(self, tmp_path: Path) -> None:
        file = tmp_path / "password.txt"
        file.write_text("old")
        file.chmod(0o600)
        password = secret(good(tmp_path, auth={"user": "svc", "password_file": "password.txt"}).auth)
        assert not password.renew()
        file.write_text("new")
        assert (password.reveal(), password.renew(), password.reveal()) == ("old", True, "new")
        file.unlink()
        with pytest.raises(SecretError, match="No such file"):
            password.renew()
        assert password.reveal() == "new"
        assert not Secret("fixed").renew()

    def test_secrets_of_other_servers(self, tmp_path: Path) -> None:
        ntlm = {"kind": "ntlm", "user": "X\\svc", "password_env": "PASSWORD"}
        config = good(
            tmp_path,
            {"PASSWORD": "other"},
            servers=[
                {"hosts": ["a.example.org"], "auth": ntlm},
                {"hosts": ["*.Example.org"], "auth": {"kind": "negotiate"}},
            ],
        )
        assert config.auth_for("https://A.example.org:444/EWS/Exchange.asmx") == config.servers[0].auth
        assert config.auth_for("https://b.example.org/").kind == "negotiate"
        assert config.auth_for("https://example.org/") == config.auth
        assert secret(config.servers[0].auth) == Secret("other")

    @pytest.mark.parametrize(
        ("auth", "problem"),
        [
            ({},
             "auth: requires exactly one of client_secret, certificate, federated_token_file and managed_identity"),
            ({"client_secret": "s", "managed_identity": True},
             ("auth.managed_identity: requires exactly one of client_secret, certificate, federated_token_file and "
              "managed_identity")),
            ({"client_secret": "s", "client_id": None}, "auth.client_id: is required"),
            ({"client_secret": "s", "tenant": None}, "auth.tenant: is required without authority"),
            ({"client_secret": "s", "authority": "https://a/adfs/"},
             "auth.scope: is required with AD FS: the identifier of Exchange with /.default"),
            ({"client_secret": "s", "authority": "http://a/t"},
             "auth.authority: must be a URL of the form https://host/path"),
            ({"client_secret": "s", "certificate_password": "x"},
             "auth.certificate_password: requires certificate"),
            ({"client_secret": "s", "cloud": "germany"},
             'auth.cloud: must be "public", "us-government", "us-government-dod" or "china"'),
            ({"certificate": "no.pem"}, "auth.certificate: file not found: {}/no.pem"),
            ({"certificate": "own.pem", "certificate_key": "other.pem"},
             "auth.certificate: the key in {}/other.pem does not match the certificate in {}/own.pem"),
        ],
    )  # fmt: skip
    def test_oauth_credentials(self, tmp_path: Path, auth: dict[str, Any], problem: str) -> None:
        authority = trustme.CA()
        for name in ("own.pem", "other.pem"):
            authority.issue_cert("x.example").private_key_and_cert_chain_pem.write_to_path(
                str(tmp_path / name)
            )
        base = {"kind": "oauth", "tenant": "contoso.example", "client_id": "1"}
        chosen = {key: value for key, value in (base | auth).items() if value is not None}
        assert problems(tmp_path, auth=chosen) == [problem.format(tmp_path, tmp_path)]

    def test_oauth_certificates(self, tmp_path: Path) -> None:
        own = trustme.CA().issue_cert("x.example")
        own.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "own.pem"))
        pair = load_key_pair(tmp_path / "own.pem")
        key = load_pem_private_key(pair.key.encode(), None)
        assert isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey)
        sealed = BestAvailableEncryption(SECRET.encode())
        certificate = load_pem_x509_certificate(pair.certificate.encode())
        (tmp_path / "own.pfx").write_bytes(
            serialize_key_and_certificates(b"x", key, certificate, None, sealed)
        )
        (tmp_path / "own.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealed))
        assert load_key_pair(tmp_path / "own.pfx", None, SECRET).certificate == pair.certificate
        assert load_key_pair(tmp_path / "own.pem", tmp_path / "own.key", SECRET) == pair
        for path, other in (("own.pfx", None), ("own.pem", "own.key")):
            for password in ("wrong", None):
                with pytest.raises(CertificateError, match="cannot be read as a certificate with its key"):
                    load_key_pair(tmp_path / path, None if other is None else tmp_path / other, password)
        assert "BEGIN" not in repr(pair)

    def test_proxy_credentials(self) -> None:
        from listener.build import proxy

        exchange = {"proxy": "http://proxy.example.com:3128", "proxy_user": "u", "proxy_password": SECRET}
        built = proxy(good(exchange=exchange).exchange)
        assert built is not None
        assert built.raw_auth == (b"u", SECRET.encode())
        assert SECRET not in repr(built)

    def test_errors_and_reprs_do_not_contain_secrets(self) -> None:
        proxy = f"http://user:{SECRET}@proxy.example.com:3128"
        config = good(exchange={"proxy": proxy})
        assert config.exchange.proxy is not None
        assert config.exchange.proxy.get_secret_value() == proxy
        texts = [repr(config), str(config), repr(config.auth), config.model_dump_json()]
        texts += problems(
            exchange={"proxy": f"ftp://user:{SECRET}@h"}, auth={"usr": "x", "password": [SECRET]}
        )
        texts += problems(
            exchange={"ews_url": f"https://user:{SECRET}@h/"}, auth={"user": "x", "pasword": SECRET}
        )
        assert not [text for text in texts if SECRET in text]


class TestHandlers:
    def test_common_keys_are_separate_from_the_options_of_the_factory(self) -> None:
        section = {
            "use": "acme:open", "timeout": "2m", "path": "x", "options": 1, "filter": {"mailboxes": ["*@B.c"]},
        }  # fmt: skip
        handler = good(handlers={"audit": section}).handlers["audit"]
        assert handler.options == {"path": "x", "options": 1}
        assert handler.filter.mailboxes == ("*@b.c",)
        assert handler.directory == HERE
        assert handler.delivery(Delivery(attempts=7)) == Delivery(attempts=7, timeout=120)

    def test_valid_handlers_are_returned_despite_other_problems(self, tmp_path: Path) -> None:
        (tmp_path / "config.toml").write_text(
            '[handlers.a]\nuse = "x"\nqueue = 0\npath = "p"\n[handlers.b]\npath = "q"\n[handlers.c]\nuse = "y"\n'
        )
        result = validate(tmp_path / "config.toml")
        assert result.config is None
        assert {name: dict(handler.options) for name, handler in result.handlers.items()} == {
            "a": {"path": "p"},
            "c": {},
        }


class TestFile:
    def test_paths_count_from_the_directory_of_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc" / "m.txt").write_text("a@example.com")
        (tmp_path / "etc" / "c.toml").write_text(
            'state_directory = "../var"\nauth = {user = "u", password = "p"}\nmailboxes.file = "m.txt"\n'
            'handlers.log.use = "log"\n'
        )
        monkeypatch.chdir(tmp_path)
        config = load(Path("etc/c.toml"))
        assert config.state_directory == tmp_path / "etc" / "../var"
        assert config.mailboxes.addresses == ("a@example.com",)

    @pytest.mark.parametrize(
        ("content", "place", "what"),
        [
            (b"[exchange]\nx = = 1\n", ":2:5", "Invalid value"),
            (b'x = "\xe4"\n', ":1", "is not UTF-8 text"),
            (b"a = 1\nb = {x", ":2:7", "Expected '=' after a key in a key/value pair"),
        ],
    )
    def test_syntax_errors_have_a_position(
        self, tmp_path: Path, content: bytes, place: str, what: str
    ) -> None:
        path = tmp_path / "c.toml"
        path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert str(caught.value) == f"{path}{place}: {what}"

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file or directory"):
            load(tmp_path / "none.toml")

    def test_certificates_must_be_valid_files(self, tmp_path: Path) -> None:
        (problem,) = problems(tmp_path, exchange={"ca_file": "ca.pem"})
        assert problem == f"exchange.ca_file: file not found: {tmp_path}/ca.pem"
        (tmp_path / "ca.pem").touch()
        (problem,) = problems(tmp_path, exchange={"ca_file": "ca.pem"})
        assert problem.startswith(f"exchange.ca_file: {tmp_path}/ca.pem cannot be used: ")
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        assert good(tmp_path, exchange={"ca_file": "ca.pem"}).exchange.ca_file == tmp_path / "ca.pem"
        own = {"ca_file": "ca.pem", "client_cert": "own.pem"}
        authority.issue_cert("svc.example").private_key_and_cert_chain_pem.write_to_path(
            str(tmp_path / "own.pem")
        )
        good(tmp_path, exchange=own).exchange.tls_context()
        (problem,) = problems(tmp_path, exchange=own | {"client_key": "ca.pem"})
        assert problem.startswith(f"exchange.client_cert: {tmp_path}/own.pem cannot be used: ")

    @pytest.mark.parametrize(
        ("exchange", "problem"),
        [
            ({"proxy_user": "u", "proxy_password": "p"}, "exchange.proxy_user: requires proxy"),
            (
                {"proxy": "http://h:1", "proxy_user": "u"},
                "exchange.proxy_user: requires proxy_password",
            ),
            (
                {"proxy": "http://h:1", "proxy_password": "u"},
                "exchange.proxy_password: requires proxy_user",
            ),
            ({"client_key_password": "u"}, "exchange.client_key_password: requires client_cert"),
        ],
    )
    def test_keys_that_require_others(self, exchange: dict[str, Any], problem: str) -> None:
        assert problems(exchange={"ews_url": "https://h/"} | exchange) == [problem]


class TestDurations:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("45s", 45),
            ("1.5m", 90),
            ("30m", 1800),
            ("2h", 7200),
            ("1d", 86400),
            (" 3 s ", 3),
            (7, 7),
            (0.25, 0.25),
        ],
    )
    def test_valid_durations(self, text: object, seconds: float) -> None:
        assert parse_duration(text) == seconds

    @pytest.mark.parametrize(
        "text", ["", "5", "-5s", "5w", "1h30m", True, None, -1, float("nan"), float("inf"), [5]]
    )
    def test_invalid_durations(self, text: object) -> None:
        with pytest.raises(ValueError, match="must be a number of seconds"):
            parse_duration(text)

    @given(st.integers(0, 10**6))
    def test_formatted_duration_is_parsed(self, seconds: int) -> None:
        text = format_duration(seconds)
        assert "e" not in text
        assert parse_duration(text) == seconds


VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["5s", "all", "a@b.c"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
KEYS = sorted(
    {key for field in Config.model_fields.values() for key in getattr(field.annotation, "model_fields", {})}
    | set(Config.model_fields)
    | {"ews_url", "mailboxes_file", "use", "filter", "types"}
)
SECTIONS = st.dictionaries(
    st.sampled_from(KEYS), VALUES | st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3), max_size=3
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(Config.model_fields)),
        VALUES | SECTIONS | st.lists(SECTIONS, max_size=2),
        max_size=4,
    )
)
def test_any_document_is_loaded_or_raises_config_error(sections: dict[str, Any]) -> None:
    with suppress(ConfigError):  # any other exception is a failure
        parse(document(**sections), HERE, {})


def test_configuration_is_frozen() -> None:
    config = good()
    with pytest.raises(ValueError, match="frozen"):
        config.log.level = "debug"  # type: ignore[misc]


class TestFilePermissions:
    def load(self, path: Path, text: str) -> list[str]:
        path.write_text(text + REST)
        try:
            load(path, {})
        except ConfigError as error:
            return [str(problem) for problem in error.problems]
        return []

    @pytest.mark.parametrize(
        ("mode", "access"), [(0o644, "readable"), (0o602, "writable"), (0o640, ""), (0o600, "")]
    )
    def test_password_in_the_configuration_file(self, tmp_path: Path, mode: int, access: str) -> None:
        path = tmp_path / "config.toml"
        path.touch()
        path.chmod(mode)
        text = '[auth]\nkind = "basic"\nuser = "svc"\npassword = "Pw-inline-1"\n'
        problems = self.load(path, text)
        if access:
            (problem,) = problems
            assert problem == (
                f"auth.password: is a secret, and the file is world-{access} (mode {mode:04o}); "
                f"run: chmod 600 {path}, or use password_file"
            )
        else:
            assert problems == []
        (tmp_path / "password").write_text("Pw-elsewhere-1")
        assert self.load(path, text.replace('password = "Pw-inline-1"', 'password_file = "password"')) == []

    @pytest.mark.parametrize("separate", [False, True])
    def test_private_keys(self, tmp_path: Path, *, separate: bool) -> None:
        authority = trustme.CA().issue_cert("listener.example")
        (tmp_path / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in authority.cert_chain_pems))
        key = tmp_path / ("key.pem" if separate else "cert.pem")
        with key.open("ab") as file:
            file.write(authority.private_key_pem.bytes())
        text = (
            '[auth]\nkind = "oauth"\ntenant = "contoso.example"\nclient_id = "x"\ncertificate = "cert.pem"\n'
            + ('certificate_key = "key.pem"\n' if separate else "")
            + '[exchange]\nclient_cert = "cert.pem"\n'
            + ('client_key = "key.pem"\n' if separate else "")
        )
        assert self.load(tmp_path / "config.toml", text) == []
        (tmp_path / "cert.pem").chmod(0o644)
        key.chmod(0o644)
        suffix = "key" if separate else "cert"
        problem = f"file is world-readable (mode 0644); run: chmod 600 {key}"
        assert self.load(tmp_path / "config.toml", text) == [
            f"auth.certificate{'_key' if separate else ''}: {problem}",
            f"exchange.client_{suffix}: {problem}",
        ]


REST = """
[mailboxes]
addresses = ["a@x.example"]

[handlers.log]
use = "log"
"""


FOLDER_ID = "AAMkAGI2THVSAAEuAAAAAACZ/8h0vq1SSo9g2mWPDPmyAQ=="


class TestFiltersWithoutMatches:
    @staticmethod
    def filtered(handlers_filter: dict[str, Any], **sections: Any) -> list[str]:
        return problems(handlers={"a": {"use": "log", "filter": handlers_filter}}, **sections)

    @pytest.mark.parametrize(
        ("folder", "why"),
        [
            ("inbox", "is a folder name; to receive events of this folder only, use [subscription] folders = [\"inbox\"]"),  # noqa: E501
            ("Sent Items", "is a folder name; to receive events of this folder only, use [subscription] folders = [\"sentitems\"]"),  # noqa: E501
            ("inbxo", 'cannot be a folder id, did you mean "inbox"?'),
            ("/Inbox/**", 'is a pattern; the only supported pattern is "*"'),
            ("/Inbox/Projects/2026", "is a folder path"),
            ("/Inbox/ProjectsOfTheYear2026/X", "is a folder path"),
            ("Inbox\\Projects", "is a folder path"),
            ("My Projects", "is a folder name, a path, or an id with blanks or line breaks"),
            (f"{FOLDER_ID[:20]} {FOLDER_ID[20:]}", "is a folder name, a path, or an id with blanks or line breaks"),
            (FOLDER_ID.replace("/", "-"), 'is a Microsoft Graph id; for EWS, replace each "-" by "/" and each "_" by "+"'),  # noqa: E501
            ("Projekte", "cannot be a folder id"),
            ("AAMkAGI2", "cannot be a folder id"),
        ],
    )  # fmt: skip
    def test_folder_names_and_paths_are_rejected_with_a_hint(self, folder: str, why: str) -> None:
        (problem,) = self.filtered({"folders": ["*", folder]})
        assert problem == (
            f'handlers.a.filter.folders[1]: "{folder}" {why}. Use an EWS folder id, which differs in each '
            "mailbox: copy data.parent_folder_id from an event that a file handler wrote"
        )

    def test_folder_ids_are_accepted(self) -> None:
        config = good(handlers={"a": {"use": "log", "filter": {"folders": [f" {FOLDER_ID}\n"]}}})
        assert config.handlers["a"].filter.folders == (FOLDER_ID,)

    @given(st.binary(min_size=40, max_size=120))
    def test_any_base64_entry_id_is_accepted(self, entry: bytes) -> None:
        assume(entry[0] >> 2 != 0b111111)  # an entry id begins with flags
        folder = b64encode(entry).decode()
        assert parse_folder_id(folder) == folder

    def test_every_distinguished_name_is_rejected(self) -> None:
        for name in DISTINGUISHED_FOLDERS:
            with pytest.raises(ValueError, match="is a folder name"):
                parse_folder_id(name.title())

    @pytest.mark.parametrize(
        ("folder", "what"),
        [
            ("Sent Items", 'unknown folder "Sent Items", did you mean "sentitems"?'),
            (" inbox", 'unknown folder " inbox", did you mean "inbox"?'),
            ("/Inbox/Projects", '"/Inbox/Projects" is a folder path; use a distinguished folder name, such as inbox, calendar or sentitems'),  # noqa: E501
            (FOLDER_ID, f'"{FOLDER_ID}" is a folder id; use a distinguished folder name, such as inbox, calendar or sentitems'),  # noqa: E501
            ("Projekte 2026", 'unknown folder "Projekte 2026"; use a distinguished folder name, such as inbox, calendar or sentitems'),  # noqa: E501
        ],
    )  # fmt: skip
    def test_subscription_folders(self, folder: str, what: str) -> None:
        assert problems(subscription={"folders": [folder]}) == [f"subscription.folders[0]: {what}"]

    def test_types_that_are_not_subscribed(self) -> None:
        few = {"events": ["created", "new_mail"]}
        assert self.filtered({"types": ["created", "exchange.item.moved", "*_changed", "gap"]}, subscription=few) == [
            ('handlers.a.filter.types[1]: no event matches "exchange.item.moved": [subscription] events contains '
            "only created, new_mail"),
            'handlers.a.filter.types[2]: no event matches "*_changed": [subscription] events contains only created, new_mail',  # noqa: E501
        ]  # fmt: skip
        assert self.filtered({"types": ["exchange.listener.gap", "suspended"]}, catch_up={"mode": "off"}) == [
            'handlers.a.filter.types[0]: no event matches "exchange.listener.gap" with [catch_up] mode = "off"'
        ]

    def test_mailboxes_that_are_not_subscribed(self, tmp_path: Path) -> None:
        patterns = {"mailboxes": ["Alice@Example.com", "alcie@example.com", "*@example.org", "a*"]}
        assert self.filtered(patterns) == [
            (
                'handlers.a.filter.mailboxes[1]: "alcie@example.com" matches no mailbox of the configuration, did you mean '  # noqa: E501
                '"alice@example.com"?'
            ),
        ]
        # A refresh may add others from a file or a group.
        handlers = {"a": {"use": "log", "filter": patterns}}
        (tmp_path / "m.txt").write_text("alice@example.com\n")
        good(tmp_path, mailboxes={"file": "m.txt"}, handlers=handlers)
        good(mailboxes={"distribution_groups": ["sales@example.com"]}, handlers=handlers)

    def test_patterns_with_blanks(self) -> None:
        assert self.filtered({"mailboxes": ["*@exam ple.com"]}) == [
            'handlers.a.filter.mailboxes[0]: "*@exam ple.com" matches no address, because addresses have no blanks'
        ]

    def test_security_identifiers(self) -> None:
        sid = "S-1-5-21-1-2-3-500"
        config = good(
            exchange={"ews_url": "https://mail.example.com/EWS/Exchange.asmx", "autodiscover": False},
            mailboxes={"impersonate_by": "SID", "addresses": [sid]},
            handlers={"a": {"use": "log", "filter": {"mailboxes": [sid]}}},
        )
        event = MailboxEvent(
            type="exchange.item.created", mailbox=sid, time="2026-01-01T00:00:00Z", item_id="i"
        )
        assert EventFilter(**config.handlers["a"].filter.model_dump()).matches(event)


# --- start of the backfill

MARCH = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "initial"),
    [
        ("none", None),
        (" None ", None),
        (None, None),
        (0, None),
        ("0s", None),
        ("7d", 7 * 86400.0),
        (3600, 3600.0),
        ("2026-03-01", MARCH),
        (date(2026, 3, 1), MARCH),
        ("2026-03-01T00:00:00", MARCH),
        ("2026-03-01T01:00:00+01:00", MARCH),
        (datetime(2026, 3, 1), MARCH),
    ],
)
def test_backfill_start(value: object, initial: float | datetime | None) -> None:
    assert parse_initial(value) == initial


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.dates(), st.lists(st.integers())))
def test_any_backfill_start_is_parsed_or_rejected(value: object) -> None:
    try:
        found = parse_initial(value)
    except ValueError:
        return
    assert found is None or (found.tzinfo if isinstance(found, datetime) else found > 0)


# --- the reference page

PAGE = (Path(__file__).parent.parent / "docs/CONFIGURATION.md").read_text()
MODELS: dict[str, type[BaseModel]] = {
    **{f'[auth] kind = "{kind}"': model for kind, model in KINDS.items()},
    **{f"[{name}]": type(field.default) for name, field in Config.model_fields.items()
       if isinstance(field.default, BaseModel)},
    "[[servers]]": Server,
    "[[groups]]": StaticGroup,
    "[[mailboxes.overrides]]": AccessOverride,
    "[handlers.NAME]": HandlerConfig,
    "[handlers.NAME.filter]": HandlerFilter,
}  # fmt: skip


@pytest.mark.parametrize("heading", MODELS)
def test_reference_page_has_every_option_with_its_default(heading: str) -> None:
    section = PAGE.partition(f"### `{heading}`\n")[2].partition("\n### ")[0].partition("<!-- end")[0]
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]*) \|", section, re.MULTILINE)
    fields = MODELS[heading].model_fields
    assert [name for name, _ in rows] == list(fields)
    for name, cell in rows:
        field = fields[name]
        if field.is_required():
            assert cell == "required", name
        elif not cell:
            assert field.default in (None, (), "") or isinstance(field.default, BaseModel), name
        else:
            written = tomllib.loads(f"x = {cell.strip('`').replace('VERSION', __version__)}")["x"]
            adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]
            assert adapter.validate_python(written) == field.default, name


def test_reference_page_covers_every_section() -> None:
    assert set(re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)) == set(MODELS)
    tables = {re.match(r"\W*(\w+)", heading)[1] for heading in MODELS}  # type: ignore[index]
    assert tables | {"state_directory"} == set(Config.model_fields)
