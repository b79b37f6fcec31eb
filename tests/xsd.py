"""Validate request and response bodies against the published EWS schemas, if they are available.

They belong to Microsoft and are not distributed with this project. Set the environment variable EWS_SCHEMA_DIR to the
folder with `messages.xsd` and `types.xsd`. Without it, tests marked `@xsd_available` are skipped, and the summary
says so.
"""

import os
from functools import cache
from pathlib import Path

import pytest
from lxml import etree

FOLDER = Path(os.environ.get("EWS_SCHEMA_DIR", ""))

xsd_available = pytest.mark.skipif(
    not os.environ.get("EWS_SCHEMA_DIR") or not (FOLDER / "messages.xsd").is_file(),
    reason="no EWS schemas: set EWS_SCHEMA_DIR to the folder with messages.xsd",
)


def validate(element: etree._Element) -> None:
    """Validate a child of soap:Body (or of soap:Header). Raises AssertionError with all violations.

    Only global elements can be validated: `m:Subscribe`, `m:SubscribeResponse`, `t:RequestServerVersion`, …
    """
    schema = _schema()
    # In a separate document, because the schemas do not describe the surrounding elements.
    alone = etree.fromstring(etree.tostring(element, with_tail=False))
    if not schema.validate(alone):
        raise AssertionError(f"{schema.error_log}\n{etree.tostring(alone, pretty_print=True).decode()}")


@cache
def _schema() -> etree.XMLSchema:
    return etree.XMLSchema(etree.parse(FOLDER / "messages.xsd"))
