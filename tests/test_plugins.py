import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import pytest

from listener import BatchHandler, Handler, MailboxEvent, plugins
from listener.config.model import HandlerConfig
from listener.config.values import Context
from listener.errors import ConfigError

HERE = Path("/etc/ews-listener")
EVENT = MailboxEvent(type="exchange.item.created", mailbox="a@b.c", time="2026-01-01T00:00:00Z", item_id="i")


@asynccontextmanager
async def open_audit(
    *,
    path: Path,
    lines: int = 1,
    ratio: float = 0.5,
    strict: bool = False,
    words: list[str] | None = None,
    paths: list[Path] | None = None,
    mode: Literal["append", "replace"] = "append",
) -> AsyncIterator[Handler]:
    async def handle(event: MailboxEvent) -> None:
        SEEN.append((event, path, lines, ratio, strict, words, paths, mode))

    yield handle


SEEN: list[tuple[object, ...]] = []


def open_anything(**options: object) -> object:
    return options


def open_by_position(path: str, /) -> None: ...


def open_grasping(*, timeout: float = 1) -> None: ...


def open_unannotated(*, what) -> None: ...  # type: ignore[no-untyped-def]


def open_late(*, size: "int", other: "Missing" = None) -> "AsyncIterator[Missing]": ...  # type: ignore[name-defined, empty-body]  # noqa: F821


NOT_A_FACTORY = 5
OUTER = SimpleNamespace(inner=open_audit)


@pytest.fixture(autouse=True)
def _acme(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Provide this module as a plugin named acme, and entry points without an installed distribution."""
    monkeypatch.setitem(sys.modules, "acme", sys.modules[__name__])
    points = [
        EntryPoint("file", "listener.handlers.file:open_file", plugins.ENTRY_POINT_GROUP),
        EntryPoint("file", "listener.handlers.file:open_file", plugins.ENTRY_POINT_GROUP),
        EntryPoint("twice", "acme:open_audit", plugins.ENTRY_POINT_GROUP),
        EntryPoint("twice", "acme:open_late", plugins.ENTRY_POINT_GROUP),
    ]

    def entry_points(*, group: str) -> list[EntryPoint]:
        return [point for point in points if point.group == group]

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    yield
    SEEN.clear()


def load(**handlers: dict[str, Any]) -> list[plugins.LoadedHandler]:
    context = Context(HERE)
    return plugins.load_handlers(
        {name: HandlerConfig.model_validate(options, context=context) for name, options in handlers.items()}
    )


def problems(**handlers: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(**handlers)
    return [str(problem) for problem in caught.value.problems]


async def test_options_are_converted_to_the_annotations() -> None:
    options = {
        "path": "audit.jsonl", "lines": 3, "ratio": 2, "strict": True, "words": ["a"],
        "paths": ["x", "/y"], "mode": "replace",
    }  # fmt: skip
    (handler,) = load(audit={"use": "acme:open_audit", **options})
    async with handler.open() as handle:
        assert not isinstance(handle, BatchHandler)
        await handle(EVENT)
    assert list(SEEN) == [
        (EVENT, HERE / "audit.jsonl", 3, 2.0, True, ["a"], [HERE / "x", Path("/y")], "replace"),
    ]
    assert (handler.name, handler.use) == ("audit", "acme:open_audit")


def test_filter_is_compiled() -> None:
    (handler,) = load(a={"use": "acme:open_anything", "filter": {"types": ["deleted"]}, "x": 1})
    assert not handler.accepts.matches(EVENT)
    assert handler.open() == {"x": 1}


def test_handler_is_found_by_entry_point() -> None:
    (handler,) = load(a={"use": "file", "path": "x"})
    assert handler.name == "a"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"pth": "x"}, 'handlers.a.pth: unknown option of "acme:open_audit", did you mean "path"?'),
        (
            {"path": "x", "tiemout": 5},
            'handlers.a.tiemout: unknown option of "acme:open_audit", did you mean "timeout"?',
        ),
        ({}, 'handlers.a.path: is required by "acme:open_audit"'),
        ({"path": 5}, "handlers.a.path: must be a string"),
        ({"path": "x", "lines": "3"}, "handlers.a.lines: must be an integer"),
        ({"path": "x", "lines": True}, "handlers.a.lines: must be an integer"),
        ({"path": "x", "ratio": "3"}, "handlers.a.ratio: must be a number"),
        ({"path": "x", "strict": 1}, "handlers.a.strict: must be true or false"),
        ({"path": "x", "words": "ab"}, "handlers.a.words: must be an array"),
        ({"path": "x", "words": ["a", 1]}, "handlers.a.words[1]: must be a string"),
        (
            {"path": "x", "mode": "apend"},
            'handlers.a.mode: must be "append" or "replace", did you mean "append"?',
        ),
    ],
)
def test_error_for_a_wrong_option_has_its_key(options: dict[str, Any], problem: str) -> None:
    assert problem in problems(a={"use": "acme:open_audit", **options})


@pytest.mark.parametrize(
    ("use", "problem"),
    [
        ("fil", 'unknown handler "fil", did you mean "file"?'),
        ("zzz", 'unknown handler "zzz"; known: file, twice'),
        (
            "twice",
            'several handlers are installed as "twice"; use one of acme:open_audit, acme:open_late',
        ),
        ("acme:open_adit", 'acme has no "open_adit", did you mean "open_audit"?'),
        ("acme:", 'acme has no ""'),
        (
            "acme:NOT_A_FACTORY",
            "acme:NOT_A_FACTORY is not callable; it must be a factory, see docs/HANDLERS.md",
        ),
        (
            "no_such_module.x:x",
            "cannot import no_such_module.x: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (":x", "cannot import : ValueError: Empty module name"),
        (
            "acme:open_by_position",
            'parameter "path" of "acme:open_by_position" is positional-only; options are passed by name',
        ),
        (
            "acme:open_grasping",
            '"acme:open_grasping" must not have an option "timeout": the listener uses that key',
        ),
        ("builtins:dict", "cannot determine the arguments of builtins:dict"),
    ],
)
def test_handler_that_cannot_be_loaded(use: str, problem: str) -> None:
    assert problems(a={"use": use}) == [f"handlers.a.use: {problem}"]


def test_error_for_a_failing_module_has_its_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme_broken.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert problems(a={"use": "acme_broken:open_x"}) == [
        "handlers.a.use: cannot import acme_broken: RuntimeError: no licence"
    ]


def test_nested_factory_without_annotations() -> None:
    deep, unannotated = load(
        a={"use": "acme:OUTER.inner", "path": "x"}, b={"use": "acme:open_unannotated", "what": [1]}
    )
    assert isinstance(deep.open, Callable)  # type: ignore[arg-type]
    assert unannotated.name == "b"


def test_string_annotations_are_evaluated_separately() -> None:
    assert len(load(a={"use": "acme:open_late", "size": 5})) == 1
    assert problems(a={"use": "acme:open_late", "size": "5", "other": 1}) == [
        "handlers.a.size: must be an integer",
        "handlers.a.other: the type Missing of this option cannot be checked",
    ]


def test_option_of_a_type_that_toml_cannot_express(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_odd(*, thing: ModuleType) -> None: ...

    monkeypatch.setattr(sys.modules[__name__], "open_odd", open_odd, raising=False)
    assert problems(a={"use": "acme:open_odd", "thing": 1}) == [
        f"handlers.a.thing: the type {ModuleType} of this option cannot be checked"
    ]


def test_problems_of_all_handlers_are_reported_together() -> None:
    assert problems(
        a={"use": "acme:open_audit", "pth": "x", "lines": "1"},
        b={"use": "acme:open_anything"},
        c={"use": "no_such_module:x"},
    ) == [
        'handlers.a.pth: unknown option of "acme:open_audit", did you mean "path"?',
        "handlers.a.lines: must be an integer",
        'handlers.a.path: is required by "acme:open_audit"',
        "handlers.c.use: cannot import no_such_module: ModuleNotFoundError: No module named 'no_such_module'",
    ]


def test_problems_of_file_and_handlers_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        'mailboxes.addresses = ["a@b.c"]\nstate_dir = "x"\n[auth]\nuser = "u"\npassword = "p"\n'
        '[handlers.a]\nuse = "acme:open_audit"\nqueue = 0\n'
    )
    with pytest.raises(ConfigError) as caught:
        plugins.load_all(tmp_path / "c.toml")
    assert [str(problem) for problem in caught.value.problems] == [
        'state_dir: unknown key, did you mean "state_directory"?',
        "handlers.a.queue: must be at least 1",
        'handlers.a.path: is required by "acme:open_audit"',
    ]


def test_valid_file_returns_configuration_and_handlers(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        'mailboxes.addresses = ["a@b.c"]\n[auth]\nuser = "u"\npassword = "p"\n'
        '[handlers.a]\nuse = "acme:open_anything"\npath = "x"\n'
    )
    config, (handler,) = plugins.load_all(tmp_path / "c.toml")
    assert config.all_mailboxes == ("a@b.c",)
    assert handler.open() == {"path": "x"}
