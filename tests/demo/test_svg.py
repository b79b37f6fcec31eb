"""docs/demo_svg.py, which draws the picture of the README, with less traffic than `make demo-svg`."""

import os
import subprocess
import sys
from pathlib import Path

from lxml import etree

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "docs" / "demo_svg.py"


def test_the_picture_shows_the_running_demo(tmp_path: Path) -> None:
    file = tmp_path / "demo.svg"
    subprocess.run(
        [sys.executable, SCRIPT, file, "12", "30"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=120,
    )
    elements = list(etree.parse(file).getroot().iter("{*}*"))
    text = "".join(element.text or "" for element in elements).replace("\N{NO-BREAK SPACE}", " ")
    for shown in (
        "ews-listener demo",
        "12/12",
        "EX01-SITE1/1",
        "streaming",
        "exchange.item.",
        "latest events",
    ):
        assert shown in text
    # A fixed prefix: a diff of two pictures has no line that only the name of a style changed.
    classes = {name for element in elements if (name := element.get("class"))}
    assert {name.partition("-")[0] for name in classes} == {"rich", "demo"}
