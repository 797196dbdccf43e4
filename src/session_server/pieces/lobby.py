"""The lobby: the room of all who come without a slug. Every type is passed on."""

from session_server import Room


class Lobby(Room):
    """Minimal: relays by the classic policy. Worlds, code channels and presence of pages come with the full lobby."""

    max_message = 1024 * 1024  # bytes; `code` carries whole sources
    relay = True
    others = ("1v1:move", "squash:move", "world:*")
    server_only = ("world:*:list", "world:*:ghost", "world:*:kick", "world:*:slug")
    elects_host = True
