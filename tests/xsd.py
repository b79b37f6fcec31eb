"""The published EWS schemas, when they are at hand: request and reply bodies are held against them.

They are Microsoft's and no part of this distribution. The environment variable EWS_SCHEMA_DIR names the folder that
holds `messages.xsd` and `types.xsd`. Without it, tests marked `@xsd_available` are skipped, and the summary says so.
"""

import os
from functools import cache
from pathlib import Path

import pytest
from lxml import etree

FOLDER = Path(os.environ.get("EWS_SCHEMA_DIR", ""))

xsd_available = pytest.mark.skipif(
    not os.environ.get("EWS_SCHEMA_DIR") or not (FOLDER / "messages.xsd").is_file(),
    reason="no EWS schemas: set EWS_SCHEMA_DIR to the folder that holds messages.xsd",
)


def validate(element: etree._Element) -> None:
    """Hold a child of soap:Body (or of soap:Header) against the schemas.

    AssertionError names all that is wrong. Only global elements can be held so: `m:Subscribe`,
    `m:SubscribeResponse`, `t:RequestServerVersion`, …
    """
    schema = _schema()
    # A document of its own: what stands around the element is none of the schema's business.
    alone = etree.fromstring(etree.tostring(element, with_tail=False))
    if not schema.validate(alone):
        raise AssertionError(f"{schema.error_log}\n{etree.tostring(alone, pretty_print=True).decode()}")


@cache
def _schema() -> etree.XMLSchema:
    return etree.XMLSchema(etree.parse(FOLDER / "messages.xsd"))
