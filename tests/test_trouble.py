"""docs/TROUBLE.md lists every code and every verdict, and no other."""

import re
from pathlib import Path

from listener.ews.codes import VERDICTS, Verdict

PAGE = (Path(__file__).parent.parent / "docs" / "TROUBLE.md").read_text()


def test_the_page_lists_every_code_with_its_verdict() -> None:
    table = PAGE.partition("<!-- codes")[2].partition("<!-- end -->")[0]
    listed: dict[str, str] = {}
    for line in table.splitlines():
        if line.startswith("| `"):
            codes, verdict = line.split("|")[1:3]
            for code in re.findall(r"`(\w+)`", codes):
                assert code not in listed, f"{code} is twice in docs/TROUBLE.md"
                listed[code] = verdict.strip()
    assert listed == {code: str(verdict) for code, verdict in VERDICTS.items()}


def test_the_page_explains_every_verdict() -> None:
    rows = re.findall(r"^\| (\w+) \| ", PAGE.partition("## Codes")[0], re.MULTILINE)
    assert set(rows) - {"verdict"} == {str(verdict) for verdict in Verdict}
