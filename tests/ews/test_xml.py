"""Parsing of untrusted bytes."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listener.ews.codes import ExchangeError, Failure
from listener.ews.xml import MAX_MARKUP, excerpt, html_title, local_name, read


def failure(content: bytes) -> Failure:
    with pytest.raises(ExchangeError) as caught:
        read(content)
    return caught.value.failure


_BOMB = b'<!DOCTYPE l [<!ENTITY a "ha">' + b"".join(
    b'<!ENTITY a%d "&a%d;&a%d;">' % (n + 1, n, n) for n in range(30)
)


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE a><a/>",
        b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- c --><!DOCTYPE a><a/>',
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
        _BOMB + b"]><a>&a30;</a>",
        '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "x">]><a>&b;</a>'.encode("utf-16"),
    ],
)
def test_document_type_declaration_is_rejected(content: bytes) -> None:
    assert failure(content).code == "ForbiddenXml"


@pytest.mark.parametrize("content", [b"<a><![CDATA[<!DOCTYPE a>]]></a>", b"<a>&lt;!DOCTYPE a></a>"])
def test_document_type_declaration_in_a_text_is_allowed(content: bytes) -> None:
    assert read(content).text == "<!DOCTYPE a>"


@pytest.mark.parametrize("content", [b"<a>&b;</a>", b"<a>", b"<a></b>", b"<a/><a/>", b"<", b"<a>\xff</a>"])
def test_invalid_xml(content: bytes) -> None:
    assert failure(content).code == "MalformedXml"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "an empty reply"),
        (b" \r\n", "an empty reply"),
        (b"Service\n Unavailable\x1b[31m", "Service Unavailable\ufffd[31m"),
        (b"<!DOCTYPE html><html><title>Sign in</title>", "an HTML page: Sign in"),
        (b"\n<HTML><body>no</body></HTML>", "an HTML page without a title"),
        (b"x" * 1000, "x" * 199 + "…"),
    ],
)
def test_web_page_and_plain_text_are_reported(content: bytes, text: str) -> None:
    assert failure(content) == Failure(code="NotSoap", text=text)


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        (b"&#x0;", "\ufffd"),
        (b"&#0000;", "\ufffd"),
        (b"&#x1F;&#8;", "\ufffd\ufffd"),
        (b"&#xD800;&#xFFFE;&#x110000;", "\ufffd" * 3),
        (b"&#99999999999999999999;", "\ufffd"),
        (b"a\x00b\x0cc", "a\ufffdb\ufffdc"),
        (b"&#x0;&#x41;&#66;&#10;\t&amp;", "\ufffdAB\n\t&"),
    ],
)
def test_forbidden_characters_are_replaced(sent: bytes, got: str) -> None:
    assert read(b"<a>" + sent + b"</a>").text == got


def test_scrubbing_does_not_repair_other_errors() -> None:
    assert failure(b"<a>&#0;</b>").code == "MalformedXml"
    assert failure(b"<a>\x00&b;</a>").code == "MalformedXml"


def test_comments_and_processing_instructions_are_dropped() -> None:
    root = read(b"<?x?><a>1<!-- c -->2<?p i?><b/></a>")
    assert root.text == "12"
    assert [local_name(child) for child in root] == ["b"]


def test_declared_encodings() -> None:
    content = "<?xml version='1.0' encoding='{}'?><a>ä</a>"
    assert read(content.format("utf-16").encode("utf-16")).text == "ä"
    assert read(content.format("iso-8859-1").encode("iso-8859-1")).text == "ä"


@pytest.mark.parametrize(
    "piece", [b"<?", b"<!--", b" ", b"<title", b"<title>", b"<html><title>", b"<a>", b"&#"]
)
def test_cost_of_any_content_is_linear(piece: bytes) -> None:
    started_at = time.process_time()
    for content in (piece * 200_000, b"<html>" + piece * 200_000, b"<a>" + piece * 200_000):
        failure(content)
    assert time.process_time() - started_at < 5


def test_excerpt_is_one_short_printable_line() -> None:
    assert excerpt("a\r\n\tb\x1b\u202e") == "a b\ufffd\ufffd"
    assert excerpt("ä".encode() * 1000) == "ä" * 199 + "…"
    assert excerpt(b"") == ""


def test_only_a_web_page_has_a_title() -> None:
    assert html_title(b"<a><title>x</title></a>") is None
    assert html_title(b"<html><title> \n </title>") is None
    assert html_title(b"<html><title lang='de'>Anmeldung</title>") == "Anmeldung"


@settings(deadline=None)
@given(st.binary() | st.text("<>/!?&#x0;ab '\"=[]-DOCTYPEhtml").map(str.encode))
def test_any_bytes_are_parsed_or_rejected(content: bytes) -> None:
    try:
        read(content)
    except ExchangeError as error:
        refused = error.failure
    else:
        return
    assert refused.code in ("NotSoap", "MalformedXml", "ForbiddenXml")
    assert refused.text.isprintable()


@pytest.mark.parametrize(
    "content",
    [
        b"<a>" + b"<b/>" * MAX_MARKUP + b"</a>",
        b"<a>" + b"<b></b>" * (MAX_MARKUP // 2) + b"</a>",
        b"<a " + b" ".join(b"b%d=''" % n for n in range(MAX_MARKUP)) + b"/>",
        b"<a>" + b"<b c = '' d = ''/>" * (MAX_MARKUP // 3) + b"</a>",
        b"<a>" + b"<b xmlns='c'/>" * (MAX_MARKUP // 2) + b"</a>",
        ("<a>" + "<b/>" * MAX_MARKUP + "</a>").encode("utf-16"),
    ],
)
def test_document_with_too_many_elements_is_rejected_before_parsing(content: bytes) -> None:
    started_at = time.process_time()
    assert failure(content).code == "EnvelopeTooLarge"
    assert time.process_time() - started_at < 0.2


def test_document_with_many_elements_is_parsed() -> None:
    assert len(read(b"<a>" + b"<b/>" * (MAX_MARKUP - 10) + b"</a>")) == MAX_MARKUP - 10


def test_long_text_is_not_limited_by_the_element_count() -> None:
    assert len(read(b"<a>" + b"x" * 5_000_000 + b"</a>").text or "") == 5_000_000


@pytest.mark.parametrize(
    "encoding", ["utf-7", "UTF-7", "cp037", "ibm1047", "hz-gb-2312", "utf-16\nx", "x" * 99]
)
def test_encoding_that_hides_elements_is_rejected(encoding: str) -> None:
    content = f"<?xml version='1.0' encoding='{encoding}'?><a>+ADw-b/+AD4-</a>".encode()
    assert failure(content).code == "MalformedXml"


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "us-ascii", "iso-8859-1", "windows-1252", "utf-16"])
def test_common_encodings_are_parsed(encoding: str) -> None:
    content = f'<?xml version="1.0" encoding="{encoding}"?><a>b</a>'.encode(encoding)
    assert read(content).text == "b"


@pytest.mark.parametrize(
    "content",
    [
        b" " * 8_000_000 + b"<a/>",
        b"<!-- -->" * 1_000_000 + b"<a/>",
        b"<?b?>" * 1_000_000 + b"<a/>",
        b"<!--" * 2_000_000,
        b"<a>" + b"\0" * 8_000_000 + b"</a>",
        b"<a>" + b"&#0;" * 2_000_000 + b"</a>",
        b"<a>" + b"&#x41;" * 1_000_000 + b"\0</b>",
    ],
)
def test_adversarial_content_is_processed_quickly(content: bytes) -> None:
    started_at = time.process_time()
    assert failure(content).code in ("EnvelopeTooLarge", "NotSoap", "MalformedXml")
    assert time.process_time() - started_at < 1
