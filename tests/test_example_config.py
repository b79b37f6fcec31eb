"""config.example.toml and docs/CONFIGURATION.md match the model."""

import inspect
import re
import runpy
import tomllib
from collections import defaultdict
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import BaseModel

from listener import __version__
from listener.config import (
    AccessOverride,
    Config,
    Delivery,
    Exchange,
    HandlerConfig,
    HandlerFilter,
    Impersonation,
    Log,
    Mailboxes,
    Server,
    StaticGroup,
    Status,
    load,
    parse,
)
from listener.config.auth import KINDS
from listener.config.secrets import KEY_SUFFIXES, is_secret

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "config.example.toml"
ENVIRON = {"EWS_LISTENER_PASSWORD": "x"}
OPTION = re.compile(r"^#(?=\S)", re.MULTILINE)

SECTIONS: dict[str, type[BaseModel]] = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel)
}
WITHOUT_DEFAULT = {
    Exchange: {
        "ews_url",
        "autodiscover_url",
        "ca_file",
        "client_cert",
        "client_key",
        "client_key_password",
        "proxy",
        "proxy_user",
        "proxy_password",
    },
    Mailboxes: {"addresses", "file", "distribution_groups", "expand_as", "overrides"},
    Impersonation: {"must_deny"},
    Log: {"audit_file"},
    Status: {"socket", "listen", "token"},
}


@pytest.fixture
def everything() -> dict[str, Any]:
    """Return the example with all options set."""
    return tomllib.loads(OPTION.sub("", EXAMPLE.read_text()).replace("{version}", __version__))


def plain_names(shown: dict[str, Any]) -> dict[str, Any]:
    """Return the table with the keys of each secret replaced by the plain name."""
    key_of_secret = re.compile("(.+?)(?:" + "|".join(KEY_SUFFIXES[1:]) + ")")
    names = {
        key: found[1] for key in shown if (found := key_of_secret.fullmatch(key)) and is_secret(found[1])
    }
    return dict.fromkeys(names.values(), "x") | {key: shown[key] for key in shown if key not in names}


def test_example_is_valid() -> None:
    config = load(EXAMPLE, ENVIRON)
    assert config.handlers["log"].use == "log"
    assert config.mailboxes.addresses == ("alice@example.com", "bob@example.com")


def test_example_with_every_option_is_valid(everything: dict[str, Any], tmp_path: Path) -> None:
    authority = trustme.CA()
    own = authority.issue_cert("listener.example.com")
    for name, content in (
        ("company-ca.pem", authority.cert_pem.bytes()),
        ("listener.pem", b"".join(blob.bytes() for blob in own.cert_chain_pems)),
        ("listener.key", own.private_key_pem.bytes()),
        ("mailboxes.txt", b"x@b.c"),
        ("site-b.txt", b"y@b.c"),
        ("by-upn.txt", b"z@b.c"),
        ("listener-key-password.txt", b"x"),
        ("proxy-password.txt", b"x"),
        ("subsidiary.txt", b"x"),
        ("example-net.txt", b"x"),
        ("status-token.txt", b"x"),
        ("application.pem", b"".join(blob.bytes() for blob in own.cert_chain_pems)),
        ("application.key", own.private_key_pem.bytes()),
        ("application-key-password.txt", b"x"),
        ("application-secret.txt", b"x"),
        ("token", b"x"),
    ):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    everything["auth"] = plain_names(everything["auth"])
    application = everything["servers"][-1]["auth"]
    for key in (
        "client_secret_file",
        "federated_token_file",
        "certificate_password_file",
    ):  # only one credential is allowed
        del application[key]
    config = parse(everything, tmp_path, ENVIRON)
    plain = parse(tomllib.loads(EXAMPLE.read_text()), tmp_path, ENVIRON)
    for name in (
        "subscription",
        "affinity",
        "stream",
        "backoff",
        "delivery",
        "shutdown",
        "state_directory",
    ):
        assert getattr(config, name) == getattr(plain, name), name
    assert [group.name for group in config.groups] == ["site-a", ""]
    assert list(config.handlers) == ["log", "archive", "notify", "feed"]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_option_is_shown_with_its_default(everything: dict[str, Any], section: str) -> None:
    model, shown = SECTIONS[section], plain_names(everything[section])
    assert set(shown) == set(model.model_fields)
    optional = WITHOUT_DEFAULT.get(model, set())
    fields = model.model_fields
    assert not [key for key in optional if not fields[key].is_required() and fields[key].default]
    given = {key: value for key, value in shown.items() if key not in optional}
    assert model.model_validate(given) == model.model_validate({})


def test_every_option_of_every_authentication_method_is_shown(everything: dict[str, Any]) -> None:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for table in (everything["auth"], *(server["auth"] for server in everything["servers"])):
        found[table["kind"]] |= set(plain_names(table))
    assert found == {kind: set(model.model_fields) for kind, model in KINDS.items()}


def test_every_option_of_groups_and_handlers_is_shown(everything: dict[str, Any]) -> None:
    assert {key for group in everything["groups"] for key in group} == set(StaticGroup.model_fields)
    assert {key for server in everything["servers"] for key in server} == set(Server.model_fields)
    overrides = everything["mailboxes"]["overrides"]
    assert {key for override in overrides for key in override} == set(AccessOverride.model_fields)
    log = everything["handlers"]["log"]
    assert set(HandlerConfig.model_fields) <= set(log)
    defaults = {name: list(field.default) for name, field in HandlerFilter.model_fields.items()}
    assert log["filter"] == defaults
    assert everything["state_directory"] == Config.model_fields["state_directory"].default.name
    common = Delivery()
    handler = parse({"handlers": {"log": log}, "auth": {"user": "u", "password": "p"},
                     "mailboxes": {"addresses": ["a@b.c"]}}, ROOT).handlers["log"]  # fmt: skip
    assert handler.delivery(common) == common


def test_example_has_exactly_the_sections_of_the_model(everything: dict[str, Any]) -> None:
    assert set(everything) == set(Config.model_fields)


BUILT_IN = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
    "listener.handlers"
]
FACTORIES = {name: EntryPoint(name, target, "").load() for name, target in BUILT_IN.items()}


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        pytest.param(name, parameter, id=f"{name}.{parameter.name}")
        for name, factory in FACTORIES.items()
        for parameter in inspect.signature(factory).parameters.values()
    ],
)
def test_every_option_of_a_built_in_handler_is_shown(
    everything: dict[str, Any], name: str, parameter: inspect.Parameter
) -> None:
    (section,) = (section for section in everything["handlers"].values() if section["use"] == name)
    assert parameter.name in section
    if parameter.default is not parameter.empty:
        assert section[parameter.name] == parameter.default
        default = str(parameter.default).lower()
    else:
        default = "required"
    row = re.compile(rf"\| `{name}` \| `{parameter.name}` \| .* \| `?{re.escape(default)}`? \|")
    assert row.search((ROOT / "docs/CONFIGURATION.md").read_text()), "docs/CONFIGURATION.md lacks this option"


def test_reference_page_is_current() -> None:
    reference = runpy.run_path(str(ROOT / "docs/reference.py"))
    text = (ROOT / "docs/CONFIGURATION.md").read_text()
    assert text == reference["page"](text), "run: python docs/reference.py"
    parts: list[type[BaseModel]] = [StaticGroup, Server, HandlerConfig, HandlerFilter]
    for model in (*SECTIONS.values(), *KINDS.values(), *parts):
        assert all(field.description for field in model.model_fields.values()), model


def test_minimal_example_of_the_page_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs/CONFIGURATION.md").read_text()
    (minimal,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "password.txt").write_text("x")
    (tmp_path / "password.txt").chmod(0o600)
    assert parse(tomllib.loads(minimal), tmp_path).all_mailboxes == ("alice@example.com",)


def test_each_built_in_handler_has_an_entry_point() -> None:
    modules = {f"listener.handlers.{path.stem}" for path in (ROOT / "listener/handlers").glob("[a-z]*.py")}
    assert modules == {target.partition(":")[0] for target in BUILT_IN.values()}
