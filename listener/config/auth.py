"""How the account proves who it is: one model a kind. docs/AUTHENTICATION.md tells which one a server wants."""

import re
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag

from listener.config.secrets import Secret
from listener.config.section import Section
from listener.config.values import ConfigPath, ExistingFile, Flag, HttpsUrl, Text


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


class OAuthAuth(Section):
    """Access tokens of Entra ID or AD FS, for an application that comes as itself."""

    kind: Literal["oauth"] = Field(description="OAuth 2.0, client credentials.")
    cloud: Literal["public", "us-government", "us-government-dod", "china"] = Field(
        "public", description="Whose Entra ID and Exchange Online: us-government is GCC High."
    )
    tenant: Text | None = Field(None, description="The directory: its id, or one of its domains.")
    authority: HttpsUrl | None = Field(
        None, description="In place of cloud and tenant, such as https://adfs.example.com/adfs for AD FS."
    )
    client_id: Text | None = Field(
        None, description="The application's id. With managed_identity, that of a user-assigned identity."
    )
    client_secret: Secret | None = Field(None, description="The application's secret.")
    certificate: ExistingFile | None = Field(
        None,
        description="Its certificate: PEM, or PKCS#12 if the name ends in .pfx or .p12. Better than a secret.",
    )
    certificate_key: ExistingFile | None = Field(
        None, description="The certificate's key (PEM), if it is not in the same file."
    )
    certificate_password: Secret | None = Field(None, description="What opens the key, if it is locked.")
    federated_token_file: ConfigPath | None = Field(
        None,
        description="A file with a token of another issuer that the application trusts: workload identity.",
    )
    managed_identity: Flag = Field(False, description="Azure vouches for the machine that this runs on.")
    scope: Text | None = Field(
        None, description="What tokens are asked for; by default, the cloud's Exchange Online with /.default."
    )


AnyAuth: TypeAlias = BasicAuth | NtlmAuth | NegotiateAuth | OAuthAuth
KINDS: Final[dict[str, type[Section]]] = {
    "basic": BasicAuth,
    "ntlm": NtlmAuth,
    "negotiate": NegotiateAuth,
    "oauth": OAuthAuth,
}
"""By `kind`; where none is given it is "basic"."""


def kind_of(value: Any) -> str:
    """Which of the models a table is meant for."""
    return str(value.get("kind", "basic") if isinstance(value, dict) else getattr(value, "kind", "basic"))


Auth: TypeAlias = Annotated[
    Annotated[BasicAuth, Tag("basic")]
    | Annotated[NtlmAuth, Tag("ntlm")]
    | Annotated[NegotiateAuth, Tag("negotiate")]
    | Annotated[OAuthAuth, Tag("oauth")],
    Discriminator(kind_of),
]
