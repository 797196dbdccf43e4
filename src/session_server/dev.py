"""`session-server dev`: the same server with the comforts of development."""

from __future__ import annotations

from typing import Any, Final

import click
from watchfiles import awatch

from .server import Server

QUIET_FOR: Final = 30  # milliseconds without another edit, then what was saved is taken over


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
    click.echo("Stop with Ctrl+C.")


async def watch(server: Server) -> None:
    """Takes over what is saved in the folder of pieces, until it is cancelled."""
    assert server.pieces.folder is not None
    async for _ in awatch(server.pieces.folder, step=QUIET_FOR, rust_timeout=1000, yield_on_timeout=False):
        server.reload()
