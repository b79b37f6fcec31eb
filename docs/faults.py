"""Writes the table of docs/SIMULATOR.md from the kinds of faults: `python docs/faults.py`."""

from pathlib import Path

from listener.simulator.faults import (
    KINDS,
    AccessFault,
    Fault,
    OrganizationFault,
    RequestFault,
    StreamFault,
    about,
    parameters,
)

PAGE = Path(__file__).parent / "SIMULATOR.md"
BEGIN, END = "<!-- the tables: made by docs/faults.py -->\n", "<!-- end of the tables -->\n"
SORTS = {
    RequestFault: "Answers to requests",
    StreamFault: "Open streams",
    OrganizationFault: "The organisation",
    AccessFault: "Authentication and access",
}


def page(text: str) -> str:
    """The page with its tables made anew."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + tables() + END + rest.partition(END)[2]


def tables() -> str:
    parts = []
    for sort, title in SORTS.items():
        parts += [f"\n### {title}\n\n{about(sort)}\n\n| kind | parameters | what happens |\n|---|---|---|\n"]
        for name, kind in KINDS.items():
            if kind.__base__ is sort:
                own = [
                    written(each.name, kind) for each in parameters(kind) if each.name in kind.__annotations__
                ]
                parts.append(f"| `{name}` | {'; '.join(own)} | {about(kind)} |\n")
    return "".join(parts)


def written(name: str, kind: type[Fault]) -> str:
    """A parameter: what it may be, and its default in bold if it has one."""
    (found,) = (each for each in parameters(kind) if each.name == name)
    if found.required:
        return f"`{name}` {found.type}, required"
    default = "" if found.default is None else str(found.default).removesuffix(".0")
    if isinstance(found.default, bool):
        default = default.lower()
    choices = [f"**{choice}**" if choice == default else choice for choice in found.type.split(" | ")]
    told = f"`{name}` {' / '.join(choices)}"
    return told if default in ("", *found.type.split(" | ")) else f"{told}, **{default}**"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
