"""How the account proves who it is: one model a kind. docs/AUTHENTICATION.md tells which one a server wants."""

import re
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag

from listener.config.secrets import Secret
from listener.config.section import Section
from listener.config.values import Text


def _spn(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z]+/[^/@\s]+", value):
        raise ValueError("must be of the form HTTP/mail.example.com")
    return value


class BasicAuth(Section):
    """User name and password with every request (RFC 7617), over https only."""

    kind: Literal["basic"] = Field("basic", description="How to prove who we are.")
    user: Text = Field(
        description="The service account: name@domain or DOMAIN\\name, as the server wants it."
    )
    password: Secret = Field(description="Its password.")


class NtlmAuth(Section):
    """User name and password, proved for each connection without sending them."""

    kind: Literal["ntlm"] = Field(description="NTLM (MS-NLMP).")
    user: Text = Field(description="The service account: DOMAIN\\name or name@domain.")
    password: Secret = Field(description="Its password.")


class NegotiateAuth(Section):
    """Kerberos, with NTLM as its fallback where there is a password."""

    kind: Literal["negotiate"] = Field(description="Negotiate (RFC 4559): Kerberos, else NTLM.")
    user: Text | None = Field(
        None, description="The service account: name@REALM. Without it, whoever Kerberos takes us for."
    )
    password: Secret | None = Field(
        None, description="Its password. Without it there is Kerberos only, by the ticket cache or a keytab."
    )
    spn: Annotated[str, AfterValidator(_spn)] | None = Field(
        None,
        description="The server's SPN, such as HTTP/mail.example.com, if it is not that of the URL's host.",
    )


AnyAuth: TypeAlias = BasicAuth | NtlmAuth | NegotiateAuth
KINDS: Final[dict[str, type[Section]]] = {"basic": BasicAuth, "ntlm": NtlmAuth, "negotiate": NegotiateAuth}
"""By `kind`; where none is given it is "basic"."""


def kind_of(value: Any) -> str:
    """Which of the models a table is meant for."""
    return str(value.get("kind", "basic") if isinstance(value, dict) else getattr(value, "kind", "basic"))


Auth: TypeAlias = Annotated[
    Annotated[BasicAuth, Tag("basic")]
    | Annotated[NtlmAuth, Tag("ntlm")]
    | Annotated[NegotiateAuth, Tag("negotiate")],
    Discriminator(kind_of),
]
