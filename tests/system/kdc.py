"""A private Kerberos realm in a directory, with MIT's krb5-kdc (Debian's package) on a free loopback port."""

import os
import shutil
import socket
import subprocess
from importlib.util import find_spec
from pathlib import Path

from tests.system.processes import until

NAME = "CONTOSO.EXAMPLE"
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_TOOLS = ("krb5kdc", "kdb5_util", "kadmin.local", "kinit")


def faketime() -> Path | None:
    """Return the path of libfaketime, which gives a process another clock; None if it is not installed."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)


def missing() -> str:
    """Return the missing programs and packages; empty if a realm can run here."""
    absent = [tool for tool in _TOOLS if not shutil.which(tool, path=_PATH)]
    absent += [f"python's {package}" for package in ("gssapi", "krb5") if not find_spec(package)]
    return ", ".join(absent)


class Realm:
    """A Kerberos realm. `environment` makes libkrb5 use only this realm. There is no ticket until `kinit`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            self._port = reserved.getsockname()[1]
        (folder / "krb5.conf").write_text(_CLIENT.format(realm=NAME, port=self._port))
        (folder / "kdc.conf").write_text(_SERVER.format(realm=NAME, port=self._port, folder=folder))
        self._run("kdb5_util", "create", "-s", "-r", NAME, "-P", "master")
        self._kdc: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            "KRB5_CONFIG": str(self.folder / "krb5.conf"),
            "KRB5_KDC_PROFILE": str(self.folder / "kdc.conf"),
            "KRB5CCNAME": f"FILE:{self.folder / 'ccache'}",
            "KRB5_KTNAME": str(self.folder / "nothing.keytab"),
            "KRB5RCACHEDIR": str(self.folder),
        }

    def start(self, offset: str = "") -> None:
        """Start the KDC. `offset` shifts its clock, in faketime's notation."""
        fake = {"LD_PRELOAD": str(faketime()), "FAKETIME": offset} if offset else {}
        self._kdc = subprocess.Popen(
            ["krb5kdc", "-n", "-P", str(self.folder / "kdc.pid")],
            env={**os.environ, **self.environment, **fake, "PATH": _PATH},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(self._is_listening, "a KDC")

    def stop(self) -> None:
        if self._kdc is not None:
            self._kdc.terminate()
            self._kdc.wait(10)

    def add(self, principal: str, password: str | None = None) -> Path:
        """Add a principal with this password or a random key, and return the path of its keytab."""
        keytab = self.folder / f"{principal.replace('/', '-')}.keytab"
        self._run("kadmin.local", "addprinc", *(["-pw", password] if password else ["-randkey"]), principal)
        self._run("kadmin.local", "ktadd", "-k", str(keytab), "-norandkey", principal)
        return keytab

    def modify(self, principal: str, *changes: str) -> None:
        """Run kadmin's modify_principal."""
        self._run("kadmin.local", "modprinc", *changes, principal)

    def kinit(self, principal: str, keytab: Path) -> None:
        """Get a ticket for the principal into the credential cache."""
        self._run("kinit", "-k", "-t", str(keytab), principal)

    def tickets(self) -> str:
        """Return the output of klist for the credential cache."""
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

    def _is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


_CLIENT = """\
[libdefaults]
    default_realm = {realm}
    dns_lookup_kdc = false
    dns_lookup_realm = false
    dns_canonicalize_hostname = false
    rdns = false
    udp_preference_limit = 1
[realms]
    {realm} = {{
        kdc = 127.0.0.1:{port}
    }}
[domain_realm]
    localhost = {realm}
"""
_SERVER = """\
[kdcdefaults]
    kdc_listen = ""
    kdc_tcp_listen = 127.0.0.1:{port}
[realms]
    {realm} = {{
        database_name = {folder}/principal
        key_stash_file = {folder}/stash
        acl_file = {folder}/kadm5.acl
        default_principal_flags = +preauth
    }}
[logging]
    kdc = FILE:{folder}/kdc.log
    admin_server = FILE:{folder}/kadmin.log
    default = FILE:{folder}/krb5.log
"""
