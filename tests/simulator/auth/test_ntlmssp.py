from contextlib import suppress

import pytest
import spnego
from hypothesis import given
from hypothesis import strategies as st
from spnego.channel_bindings import GssChannelBindings

from listener.simulator.auth.windows import (
    SIGNATURE,
    Authenticate,
    _password_file,
    find_authenticate,
    ntlm_hash,
)


def message(user: str, binding: bytes | None = None, protocol: str = "ntlm") -> bytes:
    """The last token of a client."""
    bindings = GssChannelBindings(application_data=binding) if binding else None
    client = spnego.client(user, "password", protocol=protocol, channel_bindings=bindings)
    with _password_file({}):
        server = spnego.server(protocol=protocol)
        token = client.step(server.step(client.step()))
    assert token is not None
    return token


@pytest.mark.parametrize("protocol", ["ntlm", "negotiate"])
def test_user_and_channel_binding(protocol: str) -> None:
    assert find_authenticate(message("CONTOSO\\jürgen", b"channel", protocol)) == Authenticate(
        "jürgen", "CONTOSO", ntlm_hash(b"channel")
    )


def test_account_name_forms() -> None:
    found = [find_authenticate(message(user)) for user in ("CONTOSO\\svc", "svc@contoso.example")]
    assert [each.name for each in found if each] == ["CONTOSO\\svc", "svc@contoso.example"]
    assert [each.binding for each in found if each] == [None, None]


def test_tokens_without_authenticate_message() -> None:
    assert find_authenticate(b"") is None
    assert find_authenticate(SIGNATURE + b"\x01\0\0\0") is None


@given(st.binary(max_size=200))
def test_malformed_messages(data: bytes) -> None:
    try:
        found = find_authenticate(SIGNATURE + b"\x03\0\0\0" + data)
    except ValueError:
        return
    assert isinstance(found, Authenticate)


@given(st.data())
def test_any_damaged_message_is_parsed_or_refused(data: st.DataObject) -> None:
    damaged = bytearray(GOOD)
    for place in data.draw(st.lists(st.integers(12, len(GOOD) - 1), max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        find_authenticate(bytes(damaged))


GOOD = message("CONTOSO\\svc", b"channel")
