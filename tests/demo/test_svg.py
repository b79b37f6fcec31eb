"""docs/demo_svg.py, which draws the picture of the README, with less traffic than `make demo-svg`."""

import importlib.util
from pathlib import Path

from lxml import etree

from listener.demo.session import Plan

SCRIPT = Path(__file__).parent.parent.parent / "docs" / "demo_svg.py"


def test_the_picture_shows_the_running_demo(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("demo_svg", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(tmp_path / "demo.svg", Plan(mailboxes=12, rate=200, seed=1, duration=None), events=30)
    tree = etree.parse(tmp_path / "demo.svg")
    text = "".join(tree.getroot().itertext()).replace("\N{NO-BREAK SPACE}", " ")
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
    classes = {name.partition("-")[0] for name in tree.xpath("//@class") if name != "rich-terminal"}
    assert classes == {"demo"}
