"""Write the tables of docs/SIMULATOR.md from the kinds of faults: `python docs/faults.py`."""

from pathlib import Path

from listener.simulator.faults import (
    KINDS,
    AccessFault,
    OrganizationFault,
    Parameter,
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
    OrganizationFault: "The organization",
    AccessFault: "Authentication and access",
}


def page(text: str) -> str:
    """Return the page with new tables."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + tables() + END + rest.partition(END)[2]


def tables() -> str:
    parts = []
    for sort, title in SORTS.items():
        parts += [f"\n### {title}\n\n{about(sort)}\n\n| kind | parameters | what happens |\n|---|---|---|\n"]
        for name, kind in KINDS.items():
            if kind.__base__ is sort:
                own = [parameter_text(each) for each in parameters(kind) if each.name in kind.__annotations__]
                parts.append(f"| `{name}` | {'; '.join(own)} | {about(kind)} |\n")
    return "".join(parts)


def parameter_text(parameter: Parameter) -> str:
    """Return a parameter with its choices or its type, and its default in bold."""
    name = parameter.name
    if parameter.required:
        return f"`{name}` {parameter.type}, required"
    default = "" if parameter.default is None else str(parameter.default).removesuffix(".0")
    if isinstance(parameter.default, bool):
        default = default.lower()
    choices = parameter.type.split(" | ")
    if len(choices) == 1:
        return f"`{name}` **{default}**" if default else f"`{name}` {parameter.type}"
    return f"`{name}` {'/'.join(f'**{choice}**' if choice == default else choice for choice in choices)}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
