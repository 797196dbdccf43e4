"""At which addresses UDP is announced, and whether anybody outside can reach them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from .config import Config

RESOLVE_WITHIN: Final = 5.0  # seconds
ELSEWHERE: Final = ("198.51.100.1", "2001:db8::1")  # documentation (RFC 5737, RFC 3849): nothing is ever sent there

Resolve = Callable[[str], Awaitable[list[str]]]


async def resolve(host: str) -> list[str]:
    """Its addresses. Raises OSError or UnicodeError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    return [str(address[0]).partition("%")[0] for *_, address in found]


async def announced(config: Config, log: Any, resolve: Resolve = resolve) -> Sequence[str]:
    """`--announce-ip`, else what `--public-url` resolves to, else nothing: then it is where each request comes to."""
    if config.announce_ip or config.public_url is None or config.development:
        return config.announce_ip
    try:
        async with asyncio.timeout(RESOLVE_WITHIN):
            return list(dict.fromkeys(await resolve(urlsplit(config.public_url).hostname or "")))
    except (OSError, UnicodeError, TimeoutError) as error:
        log.warning("--public-url cannot be resolved, so it does not say where UDP is reached", error=str(error))
        return ()


def out_of_reach(config: Config, announced: Sequence[str]) -> Sequence[str]:
    """The addresses that a public server announces, if all of them are private."""
    if config.development or (config.public_url is None and is_loopback(config.host)):
        return ()
    addresses = announced or own_addresses(config.host)
    return () if any(ip_address(address).is_global for address in addresses) else addresses


def is_loopback(host: str | None) -> bool:
    if host is None:
        return False
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def own_addresses(host: str | None) -> list[str]:
    """Where requests from elsewhere come to: the address listened on, or, of all, those of the default route."""
    try:
        if host is not None and not ip_address(host).is_unspecified:
            return [host]
    except ValueError:  # a name
        return []
    family = ":" if host == "::" else "." if host == "0.0.0.0" else ""  # each listens for its own kind alone
    return [address for address in map(source_to, ELSEWHERE) if address is not None and family in address]


def source_to(target: str) -> str | None:
    """Our address on the way there, as the kernel chooses it; None without a route."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((target, 9))
            return str(sock.getsockname()[0])
    except OSError:
        return None
