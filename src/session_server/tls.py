"""The certificate of HTTPS and WSS: files that are loaded again once they change, or one of our own, made and kept."""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from .addresses import ELSEWHERE, source_to
from .config import Config, ConfigError, state_folder

VALID_FOR: Final = timedelta(days=365)  # Apple's systems refuse more than 398
RENEWED_BEFORE: Final = timedelta(days=30)  # before its end
KEPT_AS: Final = "localhost.pem"
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")

Stamp = tuple[int, int, int]  # of a file: inode, size, time of its last change in ns


class Certificate:
    """What handshakes use: `context` is for a listener, and each new connection gets the newest files that work."""

    def __init__(self, chain: Path, key: Path, log: Any) -> None:
        """PEM files; they may be one. Raises ConfigError."""
        self.chain, self.key = chain, key
        self._log = log
        self._stamps = self._look()
        self.context = self._newest = load(chain, key)
        # Loading into the context in use could leave it with the new chain and the old key. A fresh one is taken
        # whole or not at all; the callback comes with every ClientHello, also with those that name no server.
        self.context.sni_callback = self._choose

    def refresh(self) -> None:
        """To be called now and then: takes new files. Those that cannot be used are an error in the log, once."""
        stamps = self._look()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            self._newest = load(self.chain, self.key)
        except ConfigError as error:
            self._log.error("the new certificate cannot be used, the old one stays", error=str(error))
        else:
            self._log.info("the new certificate is in use", file=str(self.chain))

    def _choose(self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._newest

    def _look(self) -> tuple[Stamp | None, Stamp | None]:
        return stamp(self.chain), stamp(self.key)


def certificate(config: Config, log: Any) -> Certificate | None:
    """The one that the settings ask for; None without TLS. Raises ConfigError."""
    if config.tls == "self-signed":
        file = self_signed(state_folder(), names_of(config), datetime.now(UTC))
        return Certificate(file, file, log)
    if config.tls_cert and config.tls_key:
        return Certificate(Path(config.tls_cert), Path(config.tls_key), log)
    return None


def load(chain: Path, key: Path) -> ssl.SSLContext:
    """Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(chain, key, password="")  # an encrypted key is an error, not a question at the terminal
    except (OSError, ValueError) as error:
        raise ConfigError(f"certificate {chain} with key {key} cannot be used: {error}") from None
    return context


def stamp(file: Path) -> Stamp | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


# --- self-signed ------------------------------------------------------------------------------------------------------


def self_signed(folder: Path, names: frozenset[str], now: datetime) -> Path:
    """A file with key and certificate, readable by its owner alone, for these host names and addresses.

    Browsers remember the certificate that their user accepted, so it is made anew only near its end, or if a name is
    missing. Then it keeps the names it had: who moves between two networks is asked once in each. Raises ConfigError.
    """
    file = folder / KEPT_AS
    had = kept_names(file, now)
    if not names <= had:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as new:  # 0600; two servers may start at once
                new.write(make(sorted(names | had), now))
            os.replace(new.name, file)
        except OSError as error:
            raise ConfigError(
                f"--tls self-signed cannot keep its certificate in {folder}: {error.strerror}; set XDG_STATE_HOME"
            ) from None
    return file


def kept_names(file: Path, now: datetime) -> frozenset[str]:
    """The names that the kept certificate stands for; none if it cannot be used, or others could read its key."""
    try:
        if file.stat().st_mode & 0o077:
            return frozenset()
        load(file, file)
        kept = x509.load_pem_x509_certificate(file.read_bytes())
        names = kept.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ConfigError, ValueError, x509.ExtensionNotFound):
        return frozenset()
    if now > kept.not_valid_after_utc - RENEWED_BEFORE:
        return frozenset()
    return frozenset(str(name.value) for name in names)


def make(names: list[str], now: datetime) -> bytes:
    """A new key, and a certificate for it that is no authority: it can vouch for these names, and for nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())  # what each browser takes
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "session-server on this machine")])
    server = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH])
    public = key.public_key()
    made = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=subject, public_key=public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # a phone's clock may be behind
        .not_valid_after(now + VALID_FOR)
        .add_extension(x509.SubjectAlternativeName([general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(server, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + made.public_bytes(Encoding.PEM)


def general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def names_of(config: Config) -> frozenset[str]:
    """What the server may be called by: names of this machine, and its address where others can reach it."""
    machine = socket.gethostname().lower()
    names = {*LOOPBACK, machine, config.local_name, f"session.{config.local_name}"}
    if "." not in machine:
        names.add(f"{machine}.local")  # as its neighbours find it (RFC 6762)
    if config.public_url:
        names.add(urlsplit(config.public_url).hostname or "")
    if config.host in {"0.0.0.0", "::"} or (config.host is None and not config.development):
        names.add(source_to(ELSEWHERE[0]) or "")  # IPv4 alone: IPv6 ones change daily, and each asks for trust anew
    elif config.host:
        names.add(config.host)
    return frozenset(name for name in names if name and name.isascii())
