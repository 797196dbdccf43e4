"""Sockets on the port, and whose it is if it is taken: one's own stale development server makes room, nobody else's
is ever touched."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

from .addresses import is_loopback
from .config import Config, ConfigError, state_folder

MAKES_ROOM_WITHIN: Final = 5.0  # seconds
LOOK_EVERY: Final = 0.05  # seconds


class PortInUse(ConfigError):
    """Another program has it."""


def bind(config: Config, type: int = socket.SOCK_STREAM) -> list[socket.socket]:
    """Bound sockets: both loopback addresses, both families, or the one address asked for. Raises ConfigError."""
    if config.host is None:
        hosts = ["127.0.0.1", "::1"] if config.development else ["0.0.0.0", "::"]
    else:
        hosts = [config.host]
    sockets: list[socket.socket] = []
    port = config.port
    for host in hosts:
        try:
            sockets.append(listen(host, port, type))
        except OSError as error:
            if sockets and error.errno in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                continue  # a machine without IPv6
            for bound in sockets:
                bound.close()
            raise unable(host, port, error) from None
        port = sockets[0].getsockname()[1]
    return sockets


def bind_udp(config: Config, port: int) -> list[socket.socket]:
    """UDP sockets on the addresses and the port number of TCP; on all addresses where TCP alone is left to a proxy on
    this machine, since no proxy passes UDP on. Raises ConfigError."""
    host = None if is_loopback(config.host) and is_public(config) else config.host
    return bind(replace(config, host=host, port=config.udp_port or port), socket.SOCK_DGRAM)


def is_public(config: Config) -> bool:
    url = config.public_url
    return not config.development and url is not None and not is_loopback(urlsplit(url).hostname)


def listen(host: str, port: int, type: int) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=type, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, kind)
    try:
        if type == socket.SOCK_STREAM:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def unable(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return PortInUse(f"--port {port} is in use by {holder_of(port)}; stop it, or let `--port 0` choose a free one")
    return ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}")


def holder_of(port: int) -> str:
    """For people: the program that listens there, as far as this user may know it."""
    import psutil  # seldom needed, and slow to import

    with suppress(psutil.Error, OSError):
        for one in psutil.net_connections("inet"):
            if one.laddr and one.laddr.port == port and not one.raddr and one.pid:
                return f"{psutil.Process(one.pid).name()} (process {one.pid})"
    return "another program"


class RunFile:
    """Says which process of this user develops on a port; a lock on it proves that the process lives."""

    def __init__(self, port: int) -> None:
        """Raises ConfigError."""
        self._path = Path(state_folder(), f"ac-session-{port}")
        self._file: IO[str] | None = None

    def hold(self) -> None:
        """As long as this process lives."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = self._path.open("a+")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def holder(self) -> int | None:
        """The process that holds it, if one does."""
        try:
            with self._path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read())
        except (FileNotFoundError, ValueError):
            return None
        return None

    def ask_to_stop(self) -> bool:
        """Asks its holder; whether it has gone."""
        process = self.holder()
        if process is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
        for _ in range(int(MAKES_ROOM_WITHIN / LOOK_EVERY)):
            if self.holder() is None:
                return True
            time.sleep(LOOK_EVERY)
        return False


def claim(config: Config, say: Callable[[str], None]) -> tuple[list[socket.socket], RunFile | None]:
    """The sockets of a development server, and what must be kept as long as it runs. Raises ConfigError."""
    if config.port == 0:
        return bind(config), None
    run_file = RunFile(config.port)
    try:
        sockets = bind(config)
    except PortInUse:
        stale = run_file.holder()
        if stale is None:
            raise
        say(f"an ac-session of yours (process {stale}) is on port {config.port}: asking it to stop")
        if not run_file.ask_to_stop():
            raise
        sockets = bind(config)
    try:
        run_file.hold()
    except OSError as error:
        say(f"the next ac-session will not be able to replace this one: {error.strerror}")
    return sockets, run_file
