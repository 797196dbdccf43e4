"""All settings, in one frozen value. Flags, environment names and the settings page are made from it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from math import inf
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MAX_LOBBY_MESSAGE = 1024 * 1024  # bytes; the lobby's `code` messages carry whole sources

Network = IPv4Network | IPv6Network


class ConfigError(Exception):
    """A setting that cannot work. Its text is one line that names the flag, what was seen and what was expected."""


def setting(default: Any, meaning: str, **more: Any) -> Any:
    """A field with its help text; `more` is for the command line (`many`, `choices`, `secret`, `metavar`, `short`)."""
    return field(default=default, repr=not more.get("secret"), metadata={"help": meaning, **more})


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Each field is the flag `--its-name` and the variable `SESSION_SERVER_ITS_NAME`."""

    host: str | None = setting(None, "Address to listen on; all of this machine's, in development loopback only.")
    port: int = setting(8889, "Port for TCP and UDP; 0 chooses one and prints it.")
    udp_port: int | None = setting(None, "UDP port, only where it must differ from the TCP port.")
    pieces: str = setting("pieces", "Folder of pieces.", metavar="DIR")
    public_url: str | None = setting(None, "URL under which clients reach this server.", metavar="URL")
    local_name: str = setting("local.aesthetic.computer", "Development host whose sessions live at session.NAME.")
    announce_ip: tuple[str, ...] = setting(
        (),
        "Addresses to announce for UDP; else those of --public-url, else the one that a request came to.",
        many=True,
        metavar="IP",
    )
    trusted_proxy: tuple[str, ...] = setting(
        ("127.0.0.0/8", "::1/128"), "Proxies whose X-Forwarded-For and -Proto are believed.", many=True, metavar="CIDR"
    )
    tls_cert: str | None = setting(None, "Certificate chain, PEM; loaded again when it changes.", metavar="FILE")
    tls_key: str | None = setting(None, "Private key, PEM.", metavar="FILE")
    tls: str | None = setting(
        None, "`self-signed` makes and keeps a certificate for this machine.", choices=("self-signed",)
    )
    origin: tuple[str, ...] = setting(
        (), "Web origins that may join, beside the server's own host; `*` = any, `null` = pages without one.", many=True
    )
    auth_secret: str | None = setting(None, "Secret (HS256) that signs users' tokens.", secret=True)
    auth_jwks: str | None = setting(None, "File or URL with the public keys (JWKS) that sign users' tokens.")
    admin_token: str | None = setting(None, "Token that opens details and administration.", secret=True)
    drain: float = setting(10.0, "Seconds in which clients are let go when the server stops.")
    log_format: str = setting("text", "How log lines are written.", choices=("text", "json"))
    verbose: bool = setting(False, "Also log who joins, drops, resumes and leaves.", short="-v")
    isolate_classic: bool = setting(False, "Give classic pages a room per slug instead of the lobby.")
    code_channels: str | None = setting(
        None,
        "Who may push code to pages: `open` (anybody; development's default) or `token`.",
        choices=("open", "token"),
    )
    engine: str = setting("memory", "What joins nodes; only `memory` is built.")
    workers: int = setting(1, "Processes; only 1 is built.")

    message_size: int = setting(65536, "Largest message, bytes. A room class may set its own. 0 = no limit.")
    message_rate: float = setting(120.0, "Messages per second and client. 0 = no limit.")
    message_burst: float = setting(240.0, "Messages at once per client.")
    byte_rate: float = setting(262144.0, "Bytes per second and client. 0 = no limit.")
    byte_burst: float = setting(0.0, "Bytes at once per client. 0 = four times the largest message of the room.")
    connections_per_address: int = setting(64, "WebSockets per address (IPv4 address, IPv6 /64). 0 = no limit.")
    peers_per_address: int = setting(64, "Data channels per address. 0 = no limit.")
    max_clients: int = setting(20000, "WebSockets in all. 0 = no limit.")
    max_rooms: int = setting(10000, "Rooms in all. 0 = no limit.")
    new_rooms_per_address: int = setting(32, "Rooms that one address may open per minute. 0 = no limit.")

    development: bool = False  # not a flag: what `dev` is, and `serve` is not
    net: str = ""  # the bad network of all clients in development, as conditions.read_net reads it
    node: str = "n1"  # name of this process among others, once there are others

    def __post_init__(self) -> None:
        """Checks what can be checked without the outside. Raises ConfigError."""
        for flag, port in (("--port", self.port), ("--udp-port", self.udp_port or 0)):
            if not 0 <= port <= 65535:
                raise ConfigError(f"{flag} is {port}, expected 0 to 65535")
        for name in LIMITS:
            if not 0 <= getattr(self, name) < inf:
                least = "0 seconds" if name == "drain" else "0 (no limit)"
                raise ConfigError(f"{flag_of(name)} is {getattr(self, name)}, expected {least} or more")
        if self.message_rate and self.message_burst < 1:
            raise ConfigError(f"--message-burst is {self.message_burst}, expected at least 1 message")
        if self.byte_rate and 0 < self.byte_burst < max(self.message_size, MAX_LOBBY_MESSAGE):
            largest = max(self.message_size, MAX_LOBBY_MESSAGE)
            raise ConfigError(
                f"--byte-burst is {self.byte_burst:g}, expected at least {largest}, the largest message a room takes"
            )
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError("--tls-cert and --tls-key go together, only one of them was given")
        if self.tls and self.tls_cert:
            raise ConfigError("--tls and --tls-cert were both given, expected one of them")
        if self.engine != "memory":
            raise ConfigError(f"--engine {self.engine}: not yet, only `memory` is built")
        if self.workers != 1:
            raise ConfigError(f"--workers {self.workers}: not yet, only 1 is built")
        if self.auth_secret and self.auth_jwks:
            raise ConfigError("--auth-secret and --auth-jwks were both given, expected one of them")
        if self.public_url is not None and not origin_of(self.public_url):
            raise ConfigError(f"--public-url is {self.public_url!r}, expected https://HOST or http://HOST[:PORT]")
        for origin in self.origin:
            if origin not in {"*", "null"} and not origin_of(origin):
                raise ConfigError(f"--origin is {origin!r}, expected https://HOST[:PORT], * or null")
        object.__setattr__(self, "origin", tuple(o if o in {"*", "null"} else origin_of(o) for o in self.origin))
        for address in self.announce_ip:
            try:
                ip_address(address)
            except ValueError:
                raise ConfigError(f"--announce-ip is {address!r}, expected an address such as 192.0.2.1") from None
        self.proxies()

    @property
    def scheme(self) -> str:
        """What this server itself speaks; a proxy before it may speak another."""
        return "https" if self.tls or self.tls_cert else "http"

    def origins(self) -> tuple[str, ...]:
        """Web origins whose pages may join, beside the server's own: in development all, unless some are listed."""
        return ("*",) if self.development and not self.origin else self.origin

    def own_hosts(self) -> tuple[str, ...]:
        """The server's own hosts, beside the one that a request names."""
        return (urlsplit(self.public_url).netloc,) if self.public_url else ()

    def proxies(self) -> tuple[Network, ...]:
        """The networks of `trusted_proxy`. Raises ConfigError."""
        networks: list[Network] = []
        for text in self.trusted_proxy:
            try:
                networks.append(ip_network(text, strict=False))
            except ValueError:
                raise ConfigError(f"--trusted-proxy is {text!r}, expected a network such as 10.0.0.0/8") from None
        return tuple(networks)


def origin_of(url: str) -> str | None:
    """As browsers write it: lower case, without the scheme's own port; None if it is no origin."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path not in {"", "/"} or parts.query:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + ("" if port in {None, 80 if parts.scheme == "http" else 443} else f":{port}")


def state_folder() -> Path:
    """Of this user, as the XDG Base Directory Specification has it. Raises ConfigError."""
    try:
        base = Path(os.environ.get("XDG_STATE_HOME", ""))
        return (base if base.is_absolute() else Path.home() / ".local" / "state") / "session-server"
    except RuntimeError:
        raise ConfigError("this user has no home folder to keep state in; set XDG_STATE_HOME") from None


LIMITS = (
    "message_size", "message_rate", "message_burst", "byte_rate", "byte_burst", "connections_per_address",
    "peers_per_address", "max_clients", "max_rooms", "new_rooms_per_address", "drain",
)  # fmt: skip


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def flags() -> list[tuple[str, Any, Any, Any]]:
    """For the command line: name, type as written, default and metadata of each field that is a flag."""
    return [(f.name, f.type, f.default, f.metadata) for f in fields(Config) if f.metadata]
