"""`session-server dev`: the same server with the comforts of development. Hot reload moves in here."""

from __future__ import annotations

from typing import Any

import click

from .server import Server


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
