"""`tls-server-end-point` of certificates with each sort of signature (RFC 5929 section 4.1)."""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from listener.exchange.auth.binding import end_point, of_certificate

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


def certificate(key: object, algorithm: hashes.HashAlgorithm | None, **how: object) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.example.com")])
    now = datetime(2026, 1, 1, tzinfo=UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())  # type: ignore[attr-defined]
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )
    return builder.sign(key, algorithm, **how).public_bytes(Encoding.DER)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("der", "name"),
    [
        (certificate(RSA, hashes.SHA256()), "sha256"),
        (certificate(RSA, hashes.SHA384()), "sha384"),
        (certificate(EC, hashes.SHA512()), "sha512"),
        (certificate(ed25519.Ed25519PrivateKey.generate(), None), "sha256"),
    ],
)
def test_the_hash_is_that_of_the_signature(der: bytes, name: str) -> None:
    assert of_certificate(der) == b"tls-server-end-point:" + hashlib.new(name, der).digest()


def test_sha_1_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    der = certificate(RSA, hashes.SHA256())
    oid = bytes.fromhex("06092a864886f70d0101")
    weak = der.replace(oid + b"\x0b", oid + b"\x05")  # sha1WithRSAEncryption: libraries no longer sign so
    assert weak != der
    assert of_certificate(weak) == b"tls-server-end-point:" + hashlib.sha256(weak).digest()


def test_without_tls_there_is_none() -> None:
    class Plain:
        def get_extra_info(self, name: str) -> None:
            return None

    assert end_point(Plain()) is None
    assert end_point(None) is None


def test_a_certificate_that_cannot_be_parsed_is_bound_by_sha_256() -> None:
    """OpenSSL accepts some that the parser does not."""
    assert (
        of_certificate(b"no certificate")
        == b"tls-server-end-point:" + hashlib.sha256(b"no certificate").digest()
    )
