"""Variants of a reply: other prefixes, and unknown elements that a later version of the schema may add."""

import re
from collections.abc import Callable

from hypothesis import strategies as st
from lxml import etree

# Each child of these elements is an answer or a value, so that an unknown child would be counted, not ignored.
_COUNTED = ("Envelope", "Body", "ResponseMessages", "Items", "Folders")
_PREFIX = re.compile(r"(</?)([mt]):|xmlns:([mt])=")
_STRANGER = '<q:Surprise xmlns:q="urn:q" Id="x"><q:IsRead>true</q:IsRead>no</q:Surprise>'


def reprefixed(content: bytes, m: str, t: str) -> bytes:
    """Return the reply with these prefixes for messages and types; one of them may be empty."""
    names = {"m": m, "t": t}

    def rename(match: re.Match[str]) -> str:
        if match[3]:
            return f"xmlns:{names[match[3]]}=" if names[match[3]] else "xmlns="
        return f"{match[1]}{names[match[2]]}:" if names[match[2]] else match[1]

    return _PREFIX.sub(rename, content.decode()).encode()


def with_strangers(content: bytes, choose: Callable[[int], int]) -> bytes:
    """Return the reply with unknown elements inserted; `choose(n)` selects one of n."""
    root = etree.fromstring(content)
    places = [
        element
        for element in root.iter("{*}*")
        if (len(element) or not (element.text or "").strip())
        and etree.QName(element).localname not in _COUNTED
        and next(element.iterancestors("{*}ResponseMessages"), None) is not None
    ]
    for _ in range(choose(4)):
        place = places[choose(len(places))]
        place.insert(choose(len(place) + 1), etree.fromstring(_STRANGER))
    return etree.tostring(root)


@st.composite
def variants(draw: st.DrawFn, contents: st.SearchStrategy[tuple[bytes, object]]) -> tuple[bytes, object]:
    """Return a variant of a reply, with its value."""
    content, meaning = draw(contents)
    m, t = draw(
        st.sampled_from([("m", "t"), ("", "t"), ("m", ""), ("t", "m"), ("messages", "ns1"), ("q", "s2")])
    )
    content = with_strangers(content, lambda count: draw(st.integers(0, count - 1)))
    return reprefixed(content, m, t), meaning
