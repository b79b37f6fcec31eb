"""Channel binding: ties a handshake to the TLS connection that it is made on (Extended Protection)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

_WEAK = (hashes.MD5, hashes.SHA1)


def end_point(stream: Any) -> bytes | None:
    """The `tls-server-end-point` of a connection of httpcore, None where it speaks no TLS."""
    tls = None if stream is None else stream.get_extra_info("ssl_object")
    certificate = None if tls is None else tls.getpeercert(binary_form=True)
    return None if certificate is None else of_certificate(certificate)


@lru_cache(maxsize=64)
def of_certificate(der: bytes) -> bytes:
    """RFC 5929 section 4.1: the certificate's hash, by the hash function of its signature; SHA-256 in place of MD5
    and SHA-1, and where the signature has no hash function of its own."""
    try:
        algorithm = x509.load_der_x509_certificate(der).signature_hash_algorithm
    except (
        UnsupportedAlgorithm,
        ValueError,
        x509.InvalidVersion,
    ):  # OpenSSL is less strict about certificates
        algorithm = None
    if algorithm is None or isinstance(algorithm, _WEAK):
        algorithm = hashes.SHA256()
    digest = hashes.Hash(algorithm)
    digest.update(der)
    return b"tls-server-end-point:" + digest.finalize()
