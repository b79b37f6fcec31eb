"""The many ways to write one reply: other prefixes, and elements that a later version of the schema may bring."""

import re
from collections.abc import Callable

from hypothesis import strategies as st
from lxml import etree

# In these, each child is an answer or a thing of its own; a stranger would not be passed over but counted.
_COUNTED = ("Envelope", "Body", "ResponseMessages", "Items", "Folders")
_PREFIX = re.compile(r"(</?)([mt]):|xmlns:([mt])=")
_STRANGER = '<q:Surprise xmlns:q="urn:q" Id="x"><q:IsRead>true</q:IsRead>no</q:Surprise>'


def reprefixed(content: bytes, m: str, t: str) -> bytes:
    """The reply with these prefixes for messages and types; one of them may be empty."""
    names = {"m": m, "t": t}

    def rename(match: re.Match[str]) -> str:
        if match[3]:
            return f"xmlns:{names[match[3]]}=" if names[match[3]] else "xmlns="
        return f"{match[1]}{names[match[2]]}:" if names[match[2]] else match[1]

    return _PREFIX.sub(rename, content.decode()).encode()


def with_strangers(content: bytes, choose: Callable[[int], int]) -> bytes:
    """The reply with unknown elements strewn in; `choose(n)` picks one of n."""
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
    """A reply, written in some way, with what it means."""
    content, meaning = draw(contents)
    m, t = draw(
        st.sampled_from([("m", "t"), ("", "t"), ("m", ""), ("t", "m"), ("messages", "ns1"), ("q", "s2")])
    )
    content = with_strangers(content, lambda count: draw(st.integers(0, count - 1)))
    return reprefixed(content, m, t), meaning
