"""Each benchmark runs with small numbers. A test does not judge speed."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

FOLDER = Path(__file__).parent.parent / "benchmarks"
SMALL = {"SECONDS": 0.02, "GROUPS": 2, "ENVELOPES": 10, "LATE": 20, "SAVED": 1.0, "COUNT": 30, "TIMES": 2}


def load_with_small_numbers(path: Path) -> ModuleType:
    """Import the benchmark and reduce its constants."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in SMALL.keys() & vars(module).keys():
        setattr(module, name, SMALL[name])
    return module


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_benchmark(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    main: Any = load_with_small_numbers(path).main
    if path.stem == "stream":
        main()
    elif path.stem == "restart":
        main(8)
    elif path.stem == "reload":
        main(8, 2)
    elif path.stem == "stop":
        main(8, 50)
    else:
        trio.run(main, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert any(unit in line for unit in ("events/s", "mailboxes/s", " ms ", "streaming") for line in lines)
