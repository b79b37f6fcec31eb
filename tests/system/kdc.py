"""A Kerberos realm of its own, on a free loopback port, in a directory: MIT's krb5-kdc as Debian has it."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.system.processes import until

NAME = "CONTOSO.EXAMPLE"
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_TOOLS = ("krb5kdc", "kdb5_util", "kadmin.local", "kinit")


def missing() -> str:
    """What the machine lacks for a realm; empty if it lacks nothing."""
    absent = [tool for tool in _TOOLS if not shutil.which(tool, path=_PATH)]
    absent += [f"python's {package}" for package in ("gssapi", "krb5") if not find_spec(package)]
    return ", ".join(absent)


@dataclass(frozen=True)
class Realm:
    """What stands in `environment` leads libkrb5 here and nowhere else; there is no ticket until `kinit`."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "KRB5_CONFIG": str(self.folder / "krb5.conf"),
            "KRB5_KDC_PROFILE": str(self.folder / "kdc.conf"),
            "KRB5CCNAME": f"FILE:{self.folder / 'ccache'}",
            "KRB5_KTNAME": str(self.folder / "nothing.keytab"),
            "KRB5RCACHEDIR": str(self.folder),
        }

    def add(self, principal: str, password: str | None = None) -> Path:
        """A new principal, with this password or a random key; its keytab."""
        keytab = self.folder / f"{principal.replace('/', '-')}.keytab"
        self._run("kadmin.local", "addprinc", *(["-pw", password] if password else ["-randkey"]), principal)
        self._run("kadmin.local", "ktadd", "-k", str(keytab), "-norandkey", principal)
        return keytab

    def modify(self, principal: str, *changes: str) -> None:
        """As kadmin's modify_principal."""
        self._run("kadmin.local", "modprinc", *changes, principal)

    def kinit(self, principal: str, keytab: Path) -> None:
        """A ticket for the principal, in the credential cache."""
        self._run("kinit", "-k", "-t", str(keytab), principal)

    def tickets(self) -> str:
        """What klist tells of the credential cache."""
        return self._run("klist")

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment, "PATH": _PATH},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout


@contextmanager
def running_realm(folder: Path) -> Iterator[Realm]:
    """A realm that answers while this lasts."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    (folder / "krb5.conf").write_text(f"""\
[libdefaults]
    default_realm = {NAME}
    dns_lookup_kdc = false
    dns_lookup_realm = false
    dns_canonicalize_hostname = false
    rdns = false
    udp_preference_limit = 1
[realms]
    {NAME} = {{
        kdc = 127.0.0.1:{port}
    }}
[domain_realm]
    localhost = {NAME}
""")
    (folder / "kdc.conf").write_text(f"""\
[kdcdefaults]
    kdc_listen = ""
    kdc_tcp_listen = 127.0.0.1:{port}
[realms]
    {NAME} = {{
        database_name = {folder}/principal
        key_stash_file = {folder}/stash
        acl_file = {folder}/kadm5.acl
    }}
[logging]
    kdc = FILE:{folder}/kdc.log
    admin_server = FILE:{folder}/kadmin.log
    default = FILE:{folder}/krb5.log
""")
    realm = Realm(folder)
    realm._run("kdb5_util", "create", "-s", "-r", NAME, "-P", "master")
    kdc = subprocess.Popen(
        ["krb5kdc", "-n", "-P", str(folder / "kdc.pid")],
        env={**os.environ, **realm.environment, "PATH": _PATH},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: _answers(port), "a KDC")
        yield realm
    finally:
        kdc.terminate()
        kdc.wait(10)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
