"""deploy/Caddyfile at work before a server of a test, with a certificate of Caddy's own for localhost."""

from __future__ import annotations

import os
import random
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from serving import PATIENCE, Answer, Cut, Peer, read_answers, request, upgrade_head

DEPLOY = Path(__file__).parent.parent / "deploy"
CADDY = """{
    admin off
    skip_install_trust
    auto_https disable_redirects
    storage file_system %s
}
import %s
"""


class Proxy:
    """A running Caddy: how to speak to what is behind it."""

    def __init__(self, port: int, root: Path) -> None:
        self.port = port
        self.host = f"localhost:{port}"
        self.root = root

    def connect(self, source: str = "127.0.0.1", name: str = "localhost") -> ssl.SSLSocket:
        sock = socket.create_connection(("127.0.0.1", self.port), PATIENCE, (source, 0))
        return ssl.create_default_context(cafile=self.root).wrap_socket(sock, server_hostname=name)

    def ask(
        self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None, name: str = "localhost"
    ) -> Answer:
        with self.connect(name=name) as sock:
            sock.sendall(request(target, {"Host": f"{name}:{self.port}"} | dict(headers or {}), method))
            return read_answers(sock)[0]

    def join(self, path: str, source: str = "127.0.0.1", **headers: str) -> Peer:
        sock = self.connect(source)
        sock.sendall(upgrade_head(path, self.host, headers={n.replace("_", "-"): v for n, v in headers.items()}))
        return Peer(sock)


@contextmanager
def caddy(
    upstream: int, folder: Path, file: str = "Caddyfile", names: Sequence[str] = ("localhost",), **more: str
) -> Iterator[Proxy]:
    """A file of deploy/ at work, with certificates of Caddy's own for `names`. `more`: what else it asks for."""
    program = installed("caddy")
    port = free_port()
    (folder / "Caddyfile").write_text(CADDY % (folder, DEPLOY / file), encoding="utf-8")
    sites = ", ".join(f"https://{name}:{port}" for name in names)
    places = {"SITE": sites, "SITES": sites, "UPSTREAM": f"127.0.0.1:{upstream}", "HOME": str(folder)} | more
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [program, "run", "--config", "Caddyfile"], cwd=folder, env=os.environ | places, stdout=log, stderr=log
        )
    try:
        proxy = Proxy(port, folder / "pki" / "authorities" / "local" / "root.crt")
        for name in names:
            wait_for(proxy, name, process, folder / "log")
        yield proxy
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    """One that nobody has, for programs that are told theirs. From below those that the system gives to whoever asks
    for any (Linux: 32768 and up), else another test could be given it meanwhile."""
    while True:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_for(proxy: Proxy, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it passes a request on: it listens before its certificate is there."""
    deadline = time.monotonic() + 3 * PATIENCE
    while True:
        try:
            if proxy.ask("/health", name=name).status == 200:
                return
        except (OSError, Cut):
            pass
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def installed(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        package = {"nft": "nftables", "systemd-analyze": "systemd"}.get(program, program)
        pytest.skip(f"no {program} on PATH: its file in deploy/ is not tested; apt-get install {package}")
    return path
