"""Valid and invalid certificates, from a certificate authority that is created for each run."""

import ssl
from datetime import UTC, datetime
from typing import NamedTuple

import trustme

from listener.simulator.faults import BadCertificate


class ServerCertificate(NamedTuple):
    """What a connection presents. `certificate` (DER) is the one that credentials must be bound to: the
    server's own."""

    context: ssl.SSLContext
    certificate: bytes


class Certificates:
    """Creates certificates. `ca_pem` is the authority that clients must trust."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._authority = trustme.CA()
        self._good = self._issue(self._authority, host)
        self._offloaded = self._issue(self._authority, host)

    @property
    def ca_pem(self) -> bytes:
        return self._authority.cert_pem.bytes()

    def present(self, fault: BadCertificate | None) -> ServerCertificate:
        """Return what the next connection presents."""
        match fault.how if fault else None:
            case "expired":
                return self._issue(self._authority, self._host, datetime(2020, 1, 1, tzinfo=UTC))
            case "other_host":
                return self._issue(self._authority, "mail.fabrikam.example", only_host=True)
            case "other_authority":
                return self._issue(trustme.CA(), self._host)
        return self._good

    def offloaded(self) -> ServerCertificate:
        """Return what the next connection presents while a load balancer terminates TLS."""
        return ServerCertificate(self._offloaded.context, self._good.certificate)

    @staticmethod
    def _issue(
        authority: trustme.CA, host: str, not_after: datetime | None = None, *, only_host: bool = False
    ) -> ServerCertificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        names = [host] if only_host else ["localhost", "127.0.0.1", *{host} - {"localhost", "127.0.0.1"}]
        issued = authority.issue_cert(*names, not_after=not_after)
        issued.configure_cert(context)
        return ServerCertificate(
            context, ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
        )
