"""Extended Protection for Authentication: credentials that hold on one TLS channel only.

RFC 5929 section 4 (`tls-server-end-point`), RFC 2744 section 3.11 and MS-NLMP 2.2.2.1 (MsvAvChannelBindings); who
must bring what is in "Configure Windows Extended Protection in Exchange Server" (learn.microsoft.com).
"""

import hashlib
import struct
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes

Protection = Literal["off", "allow", "require"]
_WEAK = (hashes.MD5, hashes.SHA1)
_NONE = bytes(16)


def end_point(certificate: bytes) -> bytes:
    """What binds to the channel of a server with this certificate (DER)."""
    algorithm = x509.load_der_x509_certificate(certificate).signature_hash_algorithm
    if algorithm is None or isinstance(algorithm, _WEAK):
        algorithm = hashes.SHA256()
    return b"tls-server-end-point:" + hashlib.new(algorithm.name, certificate).digest()


class Binding:
    """What a connection's credentials must be bound to. `data` is None without TLS."""

    def __init__(self, protection: Protection, certificate: bytes | None) -> None:
        self.required = protection == "require"
        self.data = None if certificate is None or protection == "off" else end_point(certificate)
        self._checked = protection != "off"

    def fits(self, given: bytes | None) -> bool:
        """Whether NTLM credentials with this MD5 hash of the bindings may come in; none, or zeros, is no binding."""
        if not self._checked:
            return True
        if given in (None, _NONE):
            return not self.required
        return self.data is not None and given == ntlm_hash(self.data)


def ntlm_hash(data: bytes) -> bytes:
    """The hash of a gss_channel_bindings_struct that has no addresses."""
    return hashlib.md5(struct.pack("<5I", 0, 0, 0, 0, len(data)) + data, usedforsecurity=False).digest()
