"""Certificates, good and bad, of an authority that is made anew for each run."""

import ssl
from datetime import UTC, datetime

import trustme

from listener.simulator.faults import BadCertificate


class Certificates:
    """`ca_pem` is the authority that clients must trust."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._authority = trustme.CA()
        self._good = self._context(self._authority, host)

    @property
    def ca_pem(self) -> bytes:
        return self._authority.cert_pem.bytes()

    def context(self, fault: BadCertificate | None) -> ssl.SSLContext:
        """What the next connection is shown."""
        match fault.how if fault else None:
            case "expired":
                return self._context(self._authority, self._host, datetime(2020, 1, 1, tzinfo=UTC))
            case "other_host":
                return self._context(self._authority, "mail.fabrikam.example", alone=True)
            case "other_authority":
                return self._context(trustme.CA(), self._host)
        return self._good

    @staticmethod
    def _context(
        authority: trustme.CA, host: str, not_after: datetime | None = None, *, alone: bool = False
    ) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        names = [host] if alone else ["localhost", "127.0.0.1", *{host} - {"localhost", "127.0.0.1"}]
        authority.issue_cert(*names, not_after=not_after).configure_cert(context)
        return context
