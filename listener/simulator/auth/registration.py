"""An application, as Entra ID knows it: its credentials, and what it may do."""

import hashlib
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from listener.simulator.settings import Settings


class Registration:
    """One application in one tenant. The certificate is made when it is first asked for, which takes a moment."""

    roles = ("full_access_as_app",)

    def __init__(self, settings: Settings) -> None:
        self.tenant = settings.tenant
        self.domain = settings.domain
        self.client_id = settings.client_id
        self.secret = settings.client_secret

    def is_tenant(self, name: str) -> bool:
        """Whether this names the tenant: its id, or one of its domains."""
        return name.lower() in (self.tenant, self.domain)

    @cached_property
    def key(self) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @cached_property
    def certificate(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ews-listener")])
        today = datetime.now(UTC)
        return (
            x509.CertificateBuilder(name, name, self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(today - timedelta(days=1))
            .not_valid_after(today + timedelta(days=365))
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        """Key and certificate in one file."""
        key = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return key + self.certificate.public_bytes(serialization.Encoding.PEM)

    def is_thumbprint(self, header: dict[str, object]) -> bool:
        """Whether a JWT's `x5t` or `x5t#S256` (RFC 7515) names the certificate."""
        der = self.certificate.public_bytes(serialization.Encoding.DER)
        if "x5t#S256" in header:
            return _thumbprint(header["x5t#S256"]) == _text(hashlib.sha256(der).digest())
        if "x5t" in header:
            return _thumbprint(header["x5t"]) == _text(hashlib.sha1(der, usedforsecurity=False).digest())
        return False


def _text(digest: bytes) -> str:
    return urlsafe_b64encode(digest).decode().rstrip("=")


def _thumbprint(value: object) -> str:
    return str(value).rstrip("=")  # some write the padding, which RFC 7515 leaves out
