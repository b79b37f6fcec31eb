"""A certificate with its key, from PEM files or PKCS#12."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class CertificateError(ValueError):
    """It cannot be used; the text says why, and holds nothing of the key."""


class KeyPair(NamedTuple):
    """Both in PEM. The key is not encrypted."""

    key: str
    certificate: str

    def __repr__(self) -> str:
        return "KeyPair('***')"


def load_key_pair(certificate: Path, key: Path | None = None, password: str | None = None) -> KeyPair:
    """PKCS#12 if the name ends in .pfx or .p12, else PEM; without `key`, the key is in the same file.

    Raises CertificateError.
    """
    from cryptography import x509  # takes long to import, and few have a certificate
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
        pkcs12,
    )

    secret = None if password is None else password.encode()
    path = certificate
    try:
        content = path.read_bytes()
        if path.suffix.lower() in (".pfx", ".p12"):
            private, public, _ = pkcs12.load_key_and_certificates(content, secret)
            if private is None or public is None:
                raise CertificateError(f"{path} must hold a certificate and its key")
        else:
            public = x509.load_pem_x509_certificate(content)
            path = key or path
            found = load_pem_private_key(content if key is None else key.read_bytes(), secret)
            if found.public_key() != public.public_key():
                raise CertificateError(f"the key in {path} is not that of the certificate in {certificate}")
            private = found
    except OSError as error:
        raise CertificateError(f"cannot read {error.filename}: {error.strerror}") from None
    except CertificateError:
        raise
    except (ValueError, TypeError) as error:  # what is no certificate, a password that is wrong or missing
        raise CertificateError(f"{path} cannot be read as a certificate with its key: {error}") from None
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return KeyPair(pem.decode(), public.public_bytes(Encoding.PEM).decode())
