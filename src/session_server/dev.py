"""`session-server dev`, alias `ac-session`: the same server with the comforts of development."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click
from watchfiles import awatch

from .addresses import own_addresses
from .config import ConfigError

if TYPE_CHECKING:
    from .server import Server

QUIET_FOR: Final = 30  # milliseconds without another edit, then what was saved is taken over
STUCK_AFTER: Final = 0.5  # seconds from Ctrl+C
STUCK_AGAIN: Final = 3.0  # seconds; longer than an end takes that goes well
LAN_NOTE: Final = (
    "Other devices reach it as plain http: rooms and UDP work, but browsers keep camera, microphone, sensors and\n"
    "clipboard for https. With --tls self-signed pages have them, after one warning on each device."
)


def develop(settings: dict[str, Any], folder: str | None, lan: bool) -> dict[str, Any]:
    """The settings of development: loopback only (or all addresses with `lan`), details visible, code channels open."""
    settings = settings | {"development": True}
    if folder is not None:
        settings["pieces"] = folder
    if lan and settings["host"] is None:
        settings["host"] = "0.0.0.0"
    settings["drain"] = min(settings["drain"], 1.0)
    settings["code_channels"] = settings["code_channels"] or "open"
    return settings


def announce(server: Server, url: str) -> None:
    """What is served, and where to look."""
    click.echo(f"session-server is ready on {url}")
    for slug, piece in sorted(server.pieces.table.items()):
        if piece.page is not None:
            click.echo(f"  {url}/{slug}")
    if server.config.host == "0.0.0.0":
        for address in own_addresses(server.config.host):
            elsewhere = f"{server.config.scheme}://{address}:{server.ports[0]}"
            click.echo(f"On this network: {elsewhere}")
            if sys.stdout.isatty() and sys.stdout.encoding.lower() == "utf-8":  # it is drawn with block elements
                import segno  # seldom needed, and slow to import

                segno.make(elsewhere).terminal(compact=True)
        if not server.config.tls_cert and not server.config.tls:
            click.echo(LAN_NOTE)
    click.echo("Stop with Ctrl+C.")
    insist(server)


def insist(server: Server) -> None:
    """Ctrl+C is heard by the loop, and ends also a piece that never comes back to it. Called while the server runs."""

    def asked(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, STUCK_AFTER, STUCK_AGAIN)

    def look(number: int, frame: FrameType | None) -> None:
        if server.stopping or frame is None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        else:
            server.log.error("stopped in the middle of", at=f"{frame.f_code.co_filename}:{frame.f_lineno}")
            raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, look)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, asked)


async def watch(server: Server) -> None:
    """Takes over what is saved in the folder of pieces, until it is cancelled."""
    assert server.pieces.folder is not None
    async for _ in awatch(server.pieces.folder, step=QUIET_FOR, rust_timeout=1000, yield_on_timeout=False):
        server.reload()


def create(name: str, folder: Path) -> list[Path]:
    """Writes a small piece that works, to start from. Raises ConfigError."""
    from .pieces import BUILT_IN, name_error  # seldom needed, and slow to import

    files = [folder / f"{name}.py", folder / f"{name}.html"]
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise ConfigError(f"{name!r} is no name for a piece, expected small letters, digits, - and _")
    if error := name_error(name, files[0]):
        raise ConfigError(error)
    if there := [str(file) for file in files if file.exists()]:
        raise ConfigError(f"{' and '.join(there)} is there already, choose another name")
    words = "".join(word.capitalize() for word in re.split("[-_]", name))
    for file, (old, new) in zip(files, (("class Piece", f"class {words}"), (">piece<", f">{name}<")), strict=True):
        text = Path(BUILT_IN, f"_piece{file.suffix}").read_text(encoding="utf-8")
        file.write_text(text.replace(old, new), encoding="utf-8")
    return files
