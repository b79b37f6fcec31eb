from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where Kerberos is installed, a client of Negotiate looks for a ticket first, and should not ask the network."""
    file: Path = tmp_path_factory.mktemp("kerberos") / "krb5.conf"
    file.write_text("[libdefaults]\ndns_lookup_kdc = false\ndns_lookup_realm = false\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KRB5_CONFIG", str(file))
        yield
