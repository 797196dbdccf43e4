"""What an author sees at the development page `/`, and may do there: pieces, rooms, clients and their links, what was
logged, and the state of one room. Bounded, whatever there is. Who may see it is not judged here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from itertools import islice
from math import isfinite
from typing import Any, Final

from msgspec import DecodeError, Struct
from msgspec.json import decode

from .conditioner import Conditioner
from .conditions import PRESETS
from .outbox import Link
from .pieces import Pieces
from .protocol import Close, piece_of
from .room import Client, RoomCore
from .rooms import Rooms

MAX_ROOMS = MAX_CLIENTS = 100  # listed, of rooms and of the clients of one
MAX_NODES: Final = 2000  # of a room's state, in all
MAX_ITEMS: Final = 100  # of one list or dict of it
MAX_DEPTH: Final = 8
MAX_TEXT: Final = 400  # characters of one of its texts
EXACT: Final = 2**53  # integers up to here are exact in a browser

Lines = Callable[[int], Any]  # what was logged after the line of this number
Node = list[Any]  # ["is", JSON], ["repr", text], or ["list" | "map", children, how many there are, type's name]


class Cut(Struct, forbid_unknown_fields=True, tag_field="do", tag="cut"):
    """Cuts a client's links, as a network does; it may come back."""

    room: str
    client: int


class Condition(Struct, forbid_unknown_fields=True, tag_field="do", tag="net"):
    """Gives a client, or all of a room, a bad network (conditions.read_net), or a good one."""

    room: str
    net: str
    client: int | None = None


Command = Cut | Condition  # the body of a POST of the page


class Desk:
    """All of the development page but its HTML."""

    def __init__(self, rooms: Rooms, pieces: Pieces, conditioner: Conditioner, lines: Lines, token: str) -> None:
        """`token` is another at each start: what the page sends with a command, since no other page can read it."""
        self._rooms = rooms
        self._pieces = pieces
        self._conditioner = conditioner
        self._lines = lines
        self.token = token

    def shown(self, after: int, slug: str | None) -> dict[str, Any]:
        """What the page asks for once a second: log lines after number `after`, and the state of the room `slug`."""
        core = self._rooms.rooms.get(slug) if slug is not None else None
        return {
            "token": self.token,
            "net": self._conditioner.net,
            "nets": list(PRESETS),
            "pieces": [
                {
                    "slug": piece.slug,
                    "page": piece.page is not None,
                    "code": piece.code is not None,
                    "version": piece.version,
                    "error": piece.error,
                    "rooms": len(self._rooms.of_piece(piece.slug)),
                }
                for piece in self._pieces.table.values()
            ],
            "rooms": [self._room(core) for core in islice(self._rooms, MAX_ROOMS)],
            "log": self._lines(after),
            "inspected": None if core is None else {"room": slug, "attributes": state_of(core)},
        }

    def _room(self, core: RoomCore) -> dict[str, Any]:
        kind, piece = core.room_class, self._pieces.table.get(piece_of(core.slug))
        return {
            "slug": core.slug,
            "code": kind.__name__,
            "version": 0 if piece is None or piece.code is None else piece.version,
            "tick_rate": kind.tick_rate,
            "max_clients": kind.max_clients,
            "count": len(core.clients),
            "host": core.host,
            "net": self._conditioner.rooms.get(core.slug, ""),
            "clients": [self._client(client) for client in islice(core.clients.values(), MAX_CLIENTS)],
        }

    @staticmethod
    def _client(client: Client) -> dict[str, Any]:
        return {
            "id": client.id,
            "name": client.name,
            "handle": client.handle,
            "away": client.away,
            "net": client.net or "",
            "links": [link_of(link) for link in client.links],
        }

    def obey(self, body: bytes, now: float) -> None:
        """Raises ValueError with a line for the page."""
        try:
            command = decode(body, type=Command)
        except DecodeError as error:
            raise ValueError(f"body is no command: {error}") from None
        self._rooms.enter(now)
        if isinstance(command, Cut):
            self._cut(self._found(command.room, command.client))
        elif command.client is None:
            self._conditioner.set_room(command.room, command.net)
        else:
            self._conditioner.set_client(self._found(command.room, command.client), command.net)

    def _found(self, slug: str, id: int) -> Client:
        core = self._rooms.rooms.get(slug)
        client = None if core is None else core.clients.get(id)
        if client is None:
            raise ValueError(f"nobody is client {id} of room {slug!r}")
        return client

    @staticmethod
    def _cut(client: Client) -> None:
        for link in client.links[:1]:
            client.core.drop(client, link, clean=False)
            link.close(Close.GOING_AWAY, "cut at the development page")


def link_of(link: Link) -> dict[str, Any]:
    """`rtt` in seconds, `loss` as a share of what we send."""
    return {
        "kind": link.kind,
        "dialect": link.dialect.name,
        "rtt": link.rtt,
        "loss": getattr(link, "loss", None),
        "route": getattr(getattr(link, "route", None), "value", None),
    }


# --- the state of a room ----------------------------------------------------------------------------------------------


def state_of(core: RoomCore) -> list[tuple[str, Node]]:
    """Name and portrait of each attribute of the author's instance."""
    painter = Painter()
    return [(name, painter.portray(value)) for name, value in vars(core.instance).items() if name != "_core"]


class Painter:
    """Shows values as far as they fit: JSON as it is, anything else by its `repr`."""

    def __init__(self) -> None:
        self._left = MAX_NODES

    def portray(self, value: Any, depth: int = 0) -> Node:
        self._left -= 1
        if isinstance(value, str) and len(value) <= MAX_TEXT:
            return ["is", value]
        if value is None or isinstance(value, bool) or is_number(value):
            return ["is", value]
        if isinstance(value, Mapping):
            return self._branch("map", value, ([brief(key), child] for key, child in value.items()), depth)
        if is_dataclass(value) and not isinstance(value, type):
            members = [field.name for field in fields(value) if hasattr(value, field.name)]
            return self._branch("map", members, ([name, getattr(value, name)] for name in members), depth, value)
        if isinstance(value, list | tuple | set | frozenset | deque):
            return self._branch("list", value, ([None, child] for child in value), depth)
        return ["repr", brief(value)]

    def _branch(self, kind: str, sized: Any, children: Iterable[list[Any]], depth: int, named: Any = None) -> Node:
        shown = []
        for key, child in islice(children, MAX_ITEMS):
            if self._left <= 0 or depth >= MAX_DEPTH:
                break
            shown.append([key, self.portray(child, depth + 1)])
        return [kind, shown, len(sized), type(sized if named is None else named).__name__]


def is_number(value: Any) -> bool:
    return (isinstance(value, int) and -EXACT < value < EXACT) or (isinstance(value, float) and isfinite(value))


def brief(value: Any) -> str:
    """As Python shows it; that is code of the author's, too."""
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else f"{value[:MAX_TEXT]}… ({len(value)} characters)"
    try:
        text = repr(value)
    except Exception as error:
        return f"<{type(value).__name__} whose repr fails: {type(error).__name__}>"
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
