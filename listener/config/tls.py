"""How TLS is spoken: 1.2 and up, with verification, by the authorities and the certificate of [exchange]."""

import ssl
from pathlib import Path

from listener.config.secrets import Secret


def tls_context(
    ca_file: Path | None = None,
    client_cert: Path | None = None,
    client_key: Path | None = None,
    client_key_password: Secret | None = None,
) -> ssl.SSLContext:
    """Trusts `ca_file` (PEM) alone, else what the system trusts. OSError: a file cannot be read or used."""
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if client_cert is not None:
        # Without a function, OpenSSL would ask at the terminal for the password of a locked key.
        context.load_cert_chain(
            client_cert, client_key, lambda: client_key_password.reveal() if client_key_password else ""
        )
    return context
