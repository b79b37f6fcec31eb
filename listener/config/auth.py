"""Authentication methods, one model each, with the certificates of OAuth applications and of TLS clients.

docs/AUTHENTICATION.md describes which method a server requires.
"""

import re
import ssl
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag

from listener.config.secrets import Secret
from listener.config.values import ConfigPath, ExistingFile, Flag, HttpsUrl, Section, Text


def _spn(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z]+/[^/@\s]+", value):
        raise ValueError("must have the form HTTP/mail.example.com")
    return value


class BasicAuth(Section):
    """Sends username and password with every request (RFC 7617). Requires https."""

    kind: Literal["basic"] = Field("basic", description="Authentication method.")
    user: Text = Field(description="Service account: name@domain or DOMAIN\\name, as the server requires.")
    password: Secret = Field(description="Password of the service account.")


class NtlmAuth(Section):
    """Authenticates each connection with username and password, without sending the password."""

    kind: Literal["ntlm"] = Field(description="NTLM (MS-NLMP).")
    user: Text = Field(description="Service account: DOMAIN\\name or name@domain.")
    password: Secret = Field(description="Password of the service account.")


class NegotiateAuth(Section):
    """Kerberos. With a password, NTLM is the fallback."""

    kind: Literal["negotiate"] = Field(description="Negotiate (RFC 4559): Kerberos, else NTLM.")
    user: Text | None = Field(
        None, description="Service account: name@REALM. Default: the default Kerberos principal."
    )
    password: Secret | None = Field(
        None, description="Password. Without it, only Kerberos is used, with the ticket cache or a keytab."
    )
    spn: Annotated[str, AfterValidator(_spn)] | None = Field(
        None, description="SPN of the server, such as HTTP/mail.example.com. Default: from the URL's host."
    )


class OAuthAuth(Section):
    """Entra ID or AD FS access tokens with application permissions."""

    kind: Literal["oauth"] = Field(description="OAuth 2.0, client credentials.")
    cloud: Literal["public", "us-government", "us-government-dod", "china"] = Field(
        "public", description="Cloud of Entra ID and Exchange Online; us-government is GCC High."
    )
    tenant: Text | None = Field(None, description="Tenant id, or one of the tenant's domains.")
    authority: HttpsUrl | None = Field(
        None, description="Instead of cloud and tenant, such as https://adfs.example.com/adfs for AD FS."
    )
    client_id: Text | None = Field(
        None,
        description="Application (client) id. With managed_identity: id of a user-assigned identity.",
    )
    client_secret: Secret | None = Field(None, description="Client secret of the application.")
    certificate: ExistingFile | None = Field(
        None,
        description="Certificate of the application: PEM, or PKCS#12 (.pfx, .p12). Safer than a client secret.",
    )
    certificate_key: ExistingFile | None = Field(
        None, description="Private key (PEM), if it is not in the certificate's file."
    )
    certificate_password: Secret | None = Field(None, description="Password of an encrypted private key.")
    federated_token_file: ConfigPath | None = Field(
        None, description="File with a token of a trusted issuer (workload identity federation)."
    )
    managed_identity: Flag = Field(False, description="Use the Azure managed identity of this machine.")
    scope: Text | None = Field(
        None, description="Requested scope. Default: Exchange Online of the cloud with /.default."
    )


AnyAuth: TypeAlias = BasicAuth | NtlmAuth | NegotiateAuth | OAuthAuth
KINDS: Final[dict[str, type[Section]]] = {
    "basic": BasicAuth,
    "ntlm": NtlmAuth,
    "negotiate": NegotiateAuth,
    "oauth": OAuthAuth,
}
"""The models by `kind`. The default kind is "basic"."""


def kind_of(value: Any) -> str:
    """Return the `kind` of a table or of a model."""
    return str(value.get("kind", "basic") if isinstance(value, dict) else getattr(value, "kind", "basic"))


Auth: TypeAlias = Annotated[
    Annotated[BasicAuth, Tag("basic")]
    | Annotated[NtlmAuth, Tag("ntlm")]
    | Annotated[NegotiateAuth, Tag("negotiate")]
    | Annotated[OAuthAuth, Tag("oauth")],
    Discriminator(kind_of),
]


# --- certificates and TLS


class CertificateError(ValueError):
    """A certificate or its key cannot be used. The text gives the reason and contains no part of the key."""


class KeyPair(NamedTuple):
    """A private key, not encrypted, and its certificate, both in PEM."""

    key: str
    certificate: str

    def __repr__(self) -> str:
        return "KeyPair('***')"


def load_key_pair(certificate: Path, key: Path | None = None, password: str | None = None) -> KeyPair:
    """Read PKCS#12 if the name ends in .pfx or .p12, else PEM. Without `key`, the key is in the same file.

    Raises CertificateError.
    """
    from cryptography import x509  # slow to import, and only few configurations have a certificate
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
                raise CertificateError(f"{path} must contain a certificate and its key")
        else:
            public = x509.load_pem_x509_certificate(content)
            path = key or path
            found = load_pem_private_key(content if key is None else key.read_bytes(), secret)
            if found.public_key() != public.public_key():
                raise CertificateError(f"the key in {path} does not match the certificate in {certificate}")
            private = found
    except OSError as error:
        raise CertificateError(f"cannot read {error.filename}: {error.strerror}") from None
    except CertificateError:
        raise
    except (ValueError, TypeError) as error:  # not a certificate, or the password is wrong or missing
        raise CertificateError(f"{path} cannot be read as a certificate with its key: {error}") from None
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return KeyPair(pem.decode(), public.public_bytes(Encoding.PEM).decode())


def tls_context(
    ca_file: Path | None = None,
    client_cert: Path | None = None,
    client_key: Path | None = None,
    client_key_password: Secret | None = None,
) -> ssl.SSLContext:
    """Return a verifying context for TLS 1.2 and later, which trusts `ca_file` (PEM) or else the system's CAs.

    Raises OSError if a file cannot be read or used.
    """
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if client_cert is not None:
        # Without a function, OpenSSL would prompt for the password of an encrypted key on the terminal.
        context.load_cert_chain(
            client_cert, client_key, lambda: client_key_password.reveal() if client_key_password else ""
        )
    return context
