"""docs/TROUBLE.md lists exactly the codes of listener/ews/codes.py."""

import re
from pathlib import Path

from listener.ews.codes import VERDICTS, Verdict

PAGE = (Path(__file__).parent.parent / "docs" / "TROUBLE.md").read_text()


def test_every_code_is_listed_with_its_verdict() -> None:
    table = PAGE.partition("<!-- codes")[2].partition("<!-- end of codes")[0]
    listed: dict[str, str] = {}
    for line in table.splitlines():
        if line.startswith("| `"):
            codes, verdict = line.split("|")[1:3]
            for code in re.findall(r"`(\w+)`", codes):
                assert code not in listed, f"{code} is listed twice in docs/TROUBLE.md"
                listed[code] = verdict.strip()
    assert listed == {code: str(verdict) for code, verdict in VERDICTS.items()}


def test_every_verdict_is_explained() -> None:
    rows = re.findall(r"^\| (\w+) \| ", PAGE.partition("## Codes")[0], re.MULTILINE)
    assert set(rows) - {"verdict"} == {str(verdict) for verdict in Verdict}
