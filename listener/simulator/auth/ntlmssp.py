"""What stands in an NTLM AUTHENTICATE message (MS-NLMP 2.2.1.3): who it is, and to which channel it is bound."""

import struct
from typing import NamedTuple

SIGNATURE = b"NTLMSSP\0"
_START = SIGNATURE + struct.pack("<I", 3)
_NT_RESPONSE, _DOMAIN, _USER, _FLAGS = 20, 28, 36, 60
_UNICODE = 1
_PAIRS = 44
"""Where the AV pairs begin in an NTLMv2 response: behind the proof and the head of the client's challenge."""
_END_OF_LIST, _CHANNEL_BINDINGS = 0, 10


class Authenticate(NamedTuple):
    """`binding` is the MD5 hash of the channel bindings, None if there is none."""

    user: str
    domain: str
    binding: bytes | None

    @property
    def name(self) -> str:
        return f"{self.domain}\\{self.user}" if self.domain else self.user


def find(token: bytes) -> Authenticate | None:
    """The AUTHENTICATE message in a token, bare or wrapped in SPNEGO; None if it holds none.

    ValueError: it is malformed.
    """
    at = token.find(_START)
    if at < 0:
        return None
    message = token[at:]
    try:
        (flags,) = struct.unpack_from("<I", message, _FLAGS)
        coding = "utf-16-le" if flags & _UNICODE else "ascii"
        response = _field(message, _NT_RESPONSE)
        user, domain = (_field(message, place).decode(coding) for place in (_USER, _DOMAIN))
        return Authenticate(user, domain, _binding(response))
    except struct.error as error:
        raise ValueError(str(error)) from None


def _field(message: bytes, place: int) -> bytes:
    length, _, offset = struct.unpack_from("<HHI", message, place)
    if offset + length > len(message):
        raise ValueError("a field reaches beyond the message")
    return message[offset : offset + length]


def _binding(response: bytes) -> bytes | None:
    at = _PAIRS
    while at < len(response):
        kind, length = struct.unpack_from("<HH", response, at)
        if kind == _END_OF_LIST:
            break
        if kind == _CHANNEL_BINDINGS:
            return response[at + 4 : at + 4 + length]
        at += 4 + length
    return None
