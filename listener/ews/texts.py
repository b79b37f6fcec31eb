"""Bounds of the texts that a server chooses: codes, ids, labels and URLs.

Such texts are logged, shown, stored and compared. They are cut where they are parsed, so that nothing behind the
parsers has to think of it. Free text goes through `listener.ews.xml.excerpt`: 200 printable characters on one line.
"""

import re

CODE_LENGTH = 100
"""Characters of a response code. The longest in the schema has 56."""
ID_LENGTH = 4096
"""Characters of the id of an item, folder or subscription. Those of Exchange have a few hundred."""
URL_LENGTH = 2048
"""Characters of a URL."""
ADDRESS_LENGTH = 320
"""Characters of an email address (RFC 5321 section 4.5.3.1)."""


def code(said: str) -> str:
    """Return a response code: at most CODE_LENGTH of A-Z, a-z, 0-9, `_` and `.`; a run of others becomes one `_`."""
    return _OTHER.sub("_", said[:CODE_LENGTH])


def identifier(said: str | None) -> str | None:
    """Return an id as it is; None if there is none, or it is blank or longer than ID_LENGTH."""
    if not said or len(said) > ID_LENGTH or said.isspace():
        return None
    return said


_OTHER = re.compile(r"[^A-Za-z0-9_.]+")
