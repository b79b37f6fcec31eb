"""Logging, and the catalog of event names in docs/LOGS.md."""

import ast
import functools
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from listener import log
from listener.config import Config
from listener.errors import ConfigError

ROOT = Path(__file__).parent.parent
SECRET = "pl4nted-s3cret"
METHODS = {"debug", "info", "warning", "error", "exception", "critical"}
LIBRARIES = ("httpx", "httpcore", "hypercorn", "msal", "spnego")
OPTIONS = {
    f"{section}.{key}"
    for section, field in Config.model_fields.items()
    for key in getattr(field.annotation, "model_fields", ())
}
NAME = re.compile(r"[a-z][a-z_]*(\.[a-z][a-z_]*)+")


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root, libraries = logging.getLogger(), [logging.getLogger(name) for name in LIBRARIES]
    before = [(logger, logger.level, list(logger.handlers)) for logger in (root, *libraries)]
    yield
    structlog.reset_defaults()
    logging.captureWarnings(False)
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def lines() -> Callable[[], list[dict[str, Any]]]:
    """Configure JSON logging at level info. Return a function that returns the lines since its last call."""
    stream = io.TextIOWrapper(buffer := io.BytesIO())
    log.configure("info", "auto", stream)

    def read() -> list[dict[str, Any]]:
        found = [json.loads(line) for line in buffer.getvalue().splitlines()]
        buffer.truncate(0)
        buffer.seek(0)
        assert not stream.closed  # this reference keeps the stream alive
        return found

    return read


def test_line_is_one_json_object(lines: Callable[[], list[dict[str, Any]]]) -> None:
    logger = structlog.get_logger()
    logger.debug("group.asleep")
    logger.info("group.started", group="a", mailboxes=3, wait=1.5, path=Path("/x"), none=None)
    (line,) = lines()
    assert list(line)[:3] == ["time", "level", "event"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info", "event": "group.started", "group": "a", "mailboxes": 3, "wait": 1.5,
        "path": "PosixPath('/x')", "none": None,
    }  # fmt: skip


def test_values_that_json_cannot_encode_are_logged(lines: Callable[[], list[dict[str, Any]]]) -> None:
    structlog.get_logger().info("a.b", text="\udc80", table={(1, 2): 3})
    structlog.get_logger().info("a.c", raw=b"bytes")
    (first, second) = lines()
    assert first["text"] == "\udc80"
    assert second["raw"] == "bytes"


def test_exceptions_are_text(lines: Callable[[], list[dict[str, Any]]]) -> None:
    try:
        raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])
    except ExceptionGroup:
        structlog.get_logger().exception("handler.failed", handler="a")
    (line,) = lines()
    assert line["level"] == "error"
    assert "ValueError: one" in line["exception"]
    assert "KeyError: 'two'" in line["exception"]


def test_secrets_are_masked_by_their_keys(lines: Callable[[], list[dict[str, Any]]]) -> None:
    structlog.get_logger().info(
        "a.b",
        password=SECRET,
        client_secret=SECRET,
        access_token=SecretStr(SECRET),
        headers={"Authorization": f"Basic {SECRET}", "X-AnchorMailbox": "a@b.c", "set-cookie": [SECRET]},
        raw_headers=[(b"Cookie", SECRET.encode()), (b"Host", b"h")],
        nested=[{"api_key": SECRET}],
        token_lifetime=20,
        holder=SecretStr(SECRET),
    )
    (line,) = lines()
    assert SECRET not in json.dumps(line)
    assert line["headers"] == {"Authorization": "***", "X-AnchorMailbox": "a@b.c", "set-cookie": "***"}
    assert line["raw_headers"] == [["Cookie", "***"], ["Host", "h"]]
    assert line["token_lifetime"] == 20


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Basic {}",
        "{{'authorization': 'Bearer {}', 'x': 1}}",
        "(b'Authorization', b'Negotiate {}')",
        "Cookie: X-BackEndOverrideCookie={}; path=/",
        "Set-Cookie: exchangecookie={}",
        "cannot reach http://user:{}@proxy:3128/",
    ],
)
@pytest.mark.parametrize("format_", ["json", "console"])
def test_credentials_in_texts_and_tracebacks_are_masked(text: str, format_: Any) -> None:
    log.configure("info", format_, stream := io.TextIOWrapper(buffer := io.BytesIO(), write_through=True))
    try:
        raise ValueError(text.format(SECRET))
    except ValueError as error:
        structlog.get_logger().exception("a.b", reason=str(error), reasons=[str(error)], error=error)
    stream.flush()
    output = buffer.getvalue().decode()
    assert "a.b" in output
    assert "***" in output
    assert SECRET not in output


def test_words_about_secrets_are_not_masked(lines: Callable[[], list[dict[str, Any]]]) -> None:
    text = "Basic authentication was refused; see the cookie table at https://example.com/@x"
    structlog.get_logger().info("a.b", text=text)
    assert lines()[0]["text"] == text


def test_other_libraries_and_warnings_are_logged(lines: Callable[[], list[dict[str, Any]]]) -> None:
    logging.getLogger("httpx").info("HTTP Request: POST …")
    logging.getLogger("httpcore.connection").debug("connect_tcp.started")
    logging.getLogger("acme").warning("password is %s", "long")
    logging.getLogger("acme").log(35, "between the levels")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)  # again, because the test runner captures warnings itself
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    first, second, third = lines()
    assert (first["event"], first["logger"], first["message"]) == ("python.log", "acme", "password is long")
    assert (second["level"], second["message"]) == ("warning", "between the levels")
    assert third["event"] == "python.warning"
    assert "DeprecationWarning: old" in third["message"]


def test_exceptions_of_other_libraries(lines: Callable[[], list[dict[str, Any]]]) -> None:
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("acme").exception("went wrong")
    (line,) = lines()
    assert "ValueError: boom" in line["exception"]


def test_logging_can_be_configured_again(lines: Callable[[], list[dict[str, Any]]]) -> None:
    logger = structlog.get_logger()
    logger.info("a.b")
    stream = io.TextIOWrapper(buffer := io.BytesIO())
    log.configure("warning", "json", stream)
    logger.info("a.c")
    logging.getLogger("acme").warning("once")
    assert [line["event"] for line in lines()] == ["a.b"]
    assert buffer.getvalue().count(b"python.log") == 1
    stream.close()


def test_level_changes_for_bound_loggers(
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    bound = structlog.get_logger().bind(group="g")
    bound.debug("a.b")
    log.change("debug", 60.0)
    bound.debug("a.c")
    logging.getLogger("acme").debug("deep")
    log.change("error", 60.0)
    bound.warning("a.d")
    logging.getLogger("acme").warning("shallow")
    assert [(line["event"], line["level"]) for line in lines()] == [("a.c", "debug"), ("python.log", "debug")]


@pytest.mark.parametrize(("no_color", "colored"), [(None, True), ("1", False)])
def test_terminal_gets_text(monkeypatch: pytest.MonkeyPatch, no_color: str | None, colored: bool) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    stream = Terminal(buffer := io.BytesIO(), write_through=True)
    log.configure("info", "auto", stream)
    structlog.get_logger().info("group.started", group="a", password=SECRET)
    stream.flush()
    text = buffer.getvalue().decode()
    assert "group.started" in text
    assert SECRET not in text
    assert ("\x1b[" in text) is colored


@functools.cache
def logged() -> dict[str, set[str]]:
    """Return the names of log events in the source, with their locations.

    These are the first arguments of `….info("…")` and similar calls, and all other strings that look like an event:
    they start with the same word as one and are not the name of a module, a file or a configuration key.
    """
    files = {path: ast.parse(path.read_text()) for path in (ROOT / "listener").rglob("*.py")}
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    modules |= {module.removesuffix(".__init__") for module in modules}
    in_calls = {name for tree in files.values() for name in names_in_calls(tree)}
    subjects = {name.partition(".")[0] for name in in_calls}
    found: dict[str, set[str]] = {}
    for path, tree in files.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant):
                continue
            name = node.value
            if not isinstance(name, str) or not NAME.fullmatch(name) or name in modules:
                continue
            if name.endswith((".db", ".txt")) or name in OPTIONS:
                continue
            if name in in_calls or name.partition(".")[0] in subjects:
                found.setdefault(name, set()).add(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def names_in_calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            index = 0 if node.func.attr in METHODS else 1 if node.func.attr == "log" else len(node.args)
            for argument in node.args[index : index + 1]:
                if isinstance(argument, ast.Constant) and NAME.fullmatch(str(argument.value)):
                    yield str(argument.value)


def test_docs_list_exactly_the_existing_log_events() -> None:
    listed = re.findall(r"^\| `([a-z_.]+)` \|", (ROOT / "docs/LOGS.md").read_text(), re.MULTILINE)
    assert len(listed) == len(set(listed)), "docs/LOGS.md lists a name twice"
    found = logged()
    assert found, "no log event was found in the source: have the names of the logger methods changed?"
    unlisted = {name: sorted(found[name]) for name in sorted(found.keys() - set(listed))}
    assert not unlisted, f"logged, but not listed in docs/LOGS.md: {unlisted}"
    unknown = sorted(set(listed) - found.keys())
    assert not unknown, f"listed in docs/LOGS.md, but not logged in listener/: {unknown}"


def test_audit_file_is_appended_and_secrets_are_masked(tmp_path: Path) -> None:
    path = tmp_path / "new" / "audit.jsonl"
    for identity in ("anna", "ben"):
        with log.open_audit(path) as logger:
            logger.info("audit.identity_used", identity=identity, password=SECRET)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["level"], line["event"], line["identity"]) for line in lines] == [
        ("info", "audit.identity_used", "anna"),
        ("info", "audit.identity_used", "ben"),
    ]
    assert SECRET not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_audit_file_that_cannot_be_opened_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"log\.audit_file: cannot write"), log.open_audit(tmp_path):
        pass


def test_audit_continues_in_a_new_file_after_a_rotation(tmp_path: Path) -> None:
    path, old = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    with log.open_audit(path) as logger:
        logger.info("audit.identity_used", identity="anna")
        path.rename(old)
        logger.info("audit.identity_used", identity="ben")
        path.unlink()
        path.touch(mode=0o640)
        logger.info("audit.identity_used", identity="cem")
    assert [json.loads(line)["identity"] for line in old.read_text().splitlines()] == ["anna"]
    assert [json.loads(line)["identity"] for line in path.read_text().splitlines()] == ["cem"]


def test_audit_line_after_an_incomplete_line_starts_on_a_new_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"identity": "ann')
    with log.open_audit(path) as logger:
        logger.info("audit.identity_used", identity="ben")
    torn, line = path.read_text().splitlines()
    assert (torn, json.loads(line)["identity"]) == ('{"identity": "ann', "ben")


def test_full_disk_raises_with_the_path_of_the_audit_file() -> None:
    with log.open_audit(Path("/dev/full")) as logger, pytest.raises(OSError, match="No space left") as caught:
        logger.info("audit.identity_used", identity="anna")
    assert caught.value.filename == "/dev/full"


def test_audit_is_logged_at_every_level(lines: Callable[[], list[dict[str, Any]]]) -> None:
    log.change("error", 60.0)
    with log.open_audit(None) as logger:
        logger.info("audit.identity_used", identity="anna")
        logger.info("a.b")
    assert [(line["event"], line["level"]) for line in lines()] == [("audit.identity_used", "info")]


def test_commands_can_disable_the_audit_in_the_log() -> None:
    stream = io.TextIOWrapper(buffer := io.BytesIO())
    log.configure("error", "json", stream, audit=False)
    with log.open_audit(None) as logger:
        logger.info("audit.identity_used", identity="anna")
    assert buffer.getvalue() == b""
    stream.close()


def test_authentication_libraries_are_not_logged_at_debug(lines: Callable[[], list[dict[str, Any]]]) -> None:
    log.change("debug", 0)
    for library in ("spnego._ntlm", "msal.application"):
        logging.getLogger(library).debug("token %s", "TlRMTVNTUAAD")
        logging.getLogger(library).warning("something")
    assert [line["message"] for line in lines()] == ["something"] * 2
