"""Parse untrusted bytes into an element tree.

- A document type declaration is rejected (SOAP 1.1 section 3). So no entity is declared or expanded, and nothing is
  fetched.
- libxml2 limits depth and text length (`huge_tree` stays off). The caller limits the size of the document.
- A document with more than MAX_MARKUP tags and attributes is rejected before it is parsed: its tree needs many times
  the memory of the document, and parsing it blocks all other tasks. To count them in the bytes, only encodings are
  accepted in which `<` and `=` are coded as in ASCII, and UTF-16.
- Exchange copies control characters from mails, as characters and as references (`&#x0;`). The result is not valid
  XML. Such a document is parsed a second time without them.
- Comments and processing instructions are dropped, so that all children are elements.
"""

import re

from lxml import etree

from listener.ews.codes import ExchangeError, Failure

_PARSER = etree.XMLParser(
    resolve_entities=False, no_network=True, collect_ids=False, remove_comments=True, remove_pis=True
)
MAX_MARKUP = 300_000
"""Tags and attributes of a document, counted as `<` and `=`. An envelope of 200 full notifications has 210,000."""
MAX_REPLACED = 100_000
"""Character references and control characters that are examined in a document that is not valid XML."""
MAX_PROLOG_BYTES = 65_536
"""Maximum number of bytes before the root element."""

_ENCODING = re.compile(
    rb"(?:\xef\xbb\xbf)?<\?xml\b[^>]{0,200}?\bencoding\s*=\s*[\"']([^\"'>]{0,100})", re.DOTALL
)
_KNOWN_ENCODING = re.compile(
    rb"utf-?8|us-ascii|ascii|utf-?16(le|be)?|iso-?8859-\d\d?|latin-?1|windows-125\d", re.IGNORECASE
)
_PROLOG = rb"(?:\xef\xbb\xbf)?(?:\s|<\?.*?\?>|<!--.*?-->)*+"
_MARKUP = re.compile(rb"[\xef\xbb\xbf\xfe\xff\s\0]*+<")
_DOCTYPE = re.compile(_PROLOG + rb"<!DOCTYPE", re.DOTALL)
_HARMLESS = re.compile(_PROLOG + rb"<(?!html\b)[^!\s]", re.DOTALL | re.IGNORECASE)
_HTML = re.compile(_PROLOG + rb"<(?:!DOCTYPE\s+)?html\b", re.DOTALL | re.IGNORECASE)
_TITLE = re.compile(rb"<title[^>]{0,200}>(.{0,1000}?)</title", re.DOTALL | re.IGNORECASE)
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|&#(?:x([0-9a-fA-F]+)|([0-9]+));")
_REPLACEMENT = b"&#xFFFD;"
_EXCERPT_LENGTH = 200


def read(content: bytes) -> etree._Element:
    """Return the root element of the document.

    Raises ExchangeError: `NotSoap` for an HTML page or without markup, `ForbiddenXml` for a document type
    declaration, `EnvelopeTooLarge` for too many tags, `MalformedXml` for other invalid content.
    """
    if not _HARMLESS.match(content, 0, MAX_PROLOG_BYTES):
        if _DOCTYPE.match(content, 0, MAX_PROLOG_BYTES) and not is_html(content):
            raise ExchangeError(forbidden())
        if is_html(content) or not _MARKUP.match(content, 0, MAX_PROLOG_BYTES):
            raise ExchangeError(not_soap(content))
    _check_markup(content)
    try:
        root = etree.fromstring(content, _PARSER)
    except etree.XMLSyntaxError as error:
        root = _read_scrubbed(content, error)
    # In an encoding such as UTF-16, the search in the bytes does not find the declaration.
    if root.getroottree().docinfo.internalDTD is not None:
        raise ExchangeError(forbidden())
    return root


def _check_markup(content: bytes) -> None:
    """Raise ExchangeError if the tree of this document would be too large, or if its size cannot be determined."""
    declared = _ENCODING.match(content)
    if declared is not None and not _KNOWN_ENCODING.fullmatch(declared[1]):
        text = f"an XML document in the encoding {excerpt(declared[1])}"
        raise ExchangeError(Failure(code="MalformedXml", text=text))
    # In UTF-16, zero bytes are part of characters. In other encodings, libxml2 continues after each one and is slow.
    is_wide = 0 in content[:2] or content[:2] in (b"\xff\xfe", b"\xfe\xff")
    if len(content) > MAX_REPLACED and not is_wide and content.count(0) > MAX_REPLACED:
        raise ExchangeError(Failure(code="MalformedXml", text=f"more than {MAX_REPLACED} zero bytes"))
    if len(content) > MAX_MARKUP and content.count(b"<") + content.count(b"=") > MAX_MARKUP:
        text = f"a document with more than {MAX_MARKUP} tags and attributes"
        raise ExchangeError(Failure(code="EnvelopeTooLarge", text=text))


def _read_scrubbed(content: bytes, error: etree.XMLSyntaxError) -> etree._Element:
    scrubbed, count = _CONTROL.subn(_scrub, content, MAX_REPLACED)
    if scrubbed != content and count < MAX_REPLACED:
        try:
            return etree.fromstring(scrubbed, _PARSER)
        except etree.XMLSyntaxError as again:
            error = again
    raise ExchangeError(Failure(code="MalformedXml", text=excerpt(error.msg or "not XML"))) from None


def _scrub(match: re.Match[bytes]) -> bytes:
    hexadecimal, decimal = match.groups()
    digits, base = (hexadecimal, 16) if hexadecimal else (decimal or b"0", 10)
    digits = digits.lstrip(b"0") or b"0"
    valid = len(digits) <= 7 and _is_character(int(digits, base))
    return match[0] if valid else _REPLACEMENT


def _is_character(code: int) -> bool:
    """Return whether XML allows this code point (XML 1.0, production 2)."""
    return (
        code in (9, 10, 13)
        or 0x20 <= code <= 0xD7FF
        or 0xE000 <= code <= 0xFFFD
        or 0x10000 <= code <= 0x10FFFF
    )


def is_html(content: bytes) -> bool:
    return _HTML.match(content, 0, MAX_PROLOG_BYTES) is not None


def not_soap(content: bytes) -> Failure:
    """Return the `NotSoap` failure for this content, with the title of the page or the beginning of the text."""
    if title := html_title(content):
        return Failure(code="NotSoap", text=f"an HTML page: {title}")
    if is_html(content):
        return Failure(code="NotSoap", text="an HTML page without a title")
    return Failure(code="NotSoap", text=excerpt(content) or "an empty reply")


def forbidden() -> Failure:
    return Failure(code="ForbiddenXml", text="a document type declaration, which SOAP forbids")


def html_title(content: bytes) -> str | None:
    """Return the title of an HTML page as an excerpt; None if the content is not HTML or has no title."""
    if is_html(content) and (match := _TITLE.search(content, 0, 16_384)):
        return excerpt(match[1]) or None
    return None


def excerpt(content: bytes | str) -> str:
    """Return the beginning of the content: at most 200 printable characters on one line."""
    if isinstance(content, bytes):
        content = content[: 4 * _EXCERPT_LENGTH].decode(errors="replace")
    line = " ".join(content[: 4 * _EXCERPT_LENGTH].split())
    line = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line
    )
    return line if len(line) <= _EXCERPT_LENGTH else line[: _EXCERPT_LENGTH - 1] + "…"


def local_name(element: etree._Element) -> str:
    """Return the name without its namespace."""
    tag = element.tag
    return tag[tag.rfind("}") + 1 :]
