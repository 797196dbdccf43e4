"""Rooms for multiplayer browser pieces: `from session_server import Client, Refused, Room, User, on`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calls import Subscription
    from .clock import Timer
    from .handlers import on
    from .protocol import Message, Refused
    from .room import Client, Room, User

__all__ = ["Client", "Message", "Refused", "Room", "Subscription", "Timer", "User", "on"]

_HOMES = {
    "Client": "room", "Message": "protocol", "Refused": "protocol", "Room": "room", "Subscription": "calls",
    "Timer": "clock", "User": "room", "on": "handlers",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Loads a name when it is asked for, so that `session_server.client` does not pull in the server."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
