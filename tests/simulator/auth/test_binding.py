import hashlib
import ssl

import pytest
import trustme
from spnego.channel_bindings import GssChannelBindings

from listener.simulator.auth.windows import ChannelBinding, Protection, ntlm_hash, server_end_point


def der() -> bytes:
    issued = trustme.CA().issue_cert("mail.contoso.example")
    return ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())


def test_server_end_point_is_the_hash_of_the_certificate() -> None:
    certificate = der()
    assert server_end_point(certificate) == b"tls-server-end-point:" + hashlib.sha256(certificate).digest()


def test_ntlm_hash_equals_that_of_pyspnego() -> None:
    packed = GssChannelBindings(application_data=b"tls-server-end-point:abc").pack()
    assert ntlm_hash(b"tls-server-end-point:abc") == hashlib.md5(packed).digest()


@pytest.mark.parametrize(
    ("protection", "right", "wrong", "none"),
    [("off", True, True, True), ("allow", True, False, True), ("require", True, False, False)],
)
def test_protection_modes(protection: Protection, right: bool, wrong: bool, none: bool) -> None:
    certificate = der()
    binding = ChannelBinding(protection, certificate)
    assert binding.accepts(ntlm_hash(server_end_point(certificate))) is right
    assert binding.accepts(ntlm_hash(server_end_point(der()))) is wrong
    assert binding.accepts(None) is none
    assert binding.accepts(bytes(16)) is none


def test_no_binding_without_tls() -> None:
    assert not ChannelBinding("require", None).accepts(ntlm_hash(b"tls-server-end-point:abc"))
    assert not ChannelBinding("require", None).accepts(None)
    assert ChannelBinding("allow", None).accepts(None)
