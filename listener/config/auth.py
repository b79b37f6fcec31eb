"""How the account proves who it is: one model a kind. docs/AUTHENTICATION.md tells which one a server wants."""

from typing import Literal, TypeAlias

from pydantic import Field

from listener.config.secrets import Secret
from listener.config.section import Section
from listener.config.values import Text


class BasicAuth(Section):
    """User name and password with every request (RFC 7617), over https only."""

    kind: Literal["basic"] = Field("basic", description="How to prove who we are.")
    user: Text = Field(
        description="The service account: name@domain or DOMAIN\\name, as the server wants it."
    )
    password: Secret = Field(description="Its password.")


AnyAuth: TypeAlias = BasicAuth
Auth: TypeAlias = BasicAuth
KINDS: dict[str, type[Section]] = {"basic": BasicAuth}
"""By `kind`; where none is given it is "basic"."""
