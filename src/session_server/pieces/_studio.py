"""Instruments of the lobby: MIDI that only those hear who asked for it, and devices that play the same code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from msgspec import DecodeError, Meta, Struct
from msgspec.json import decode

from session_server import Client, Refused, Room, on

RELAY: Final = "midi-relay"  # the tag of what comes from here
SEEN_FOR: Final = 20.0  # seconds until a silent source is forgotten
MAX_SOURCES: Final = 256  # in a room
MAX_SOURCES_OF_ONE: Final = 4  # per client

Shape = TypeVar("Shape", bound=Struct)
Label = Annotated[str, Meta(max_length=64)]


class Filter(Struct, rename="camel"):
    """Whose notes: of all, of a handle, of a machine."""

    all: bool = False
    handle: Label = ""
    machine_id: Label = ""


class Asked(Filter, rename="camel"):
    """The fields of a filter, bare or in `filter`."""

    filter: Filter | None = None


class Played(Struct, rename="camel"):
    """`notepat:midi:publish` and `:heartbeat`."""

    handle: Label = ""
    machine_id: Label = ""
    piece: Label = ""
    event: Label = ""
    note: float | None = None
    velocity: float | None = None
    channel: float | None = None
    ts: float | None = None  # milliseconds, by the player's own clock


@dataclass(slots=True)
class Source:
    """An instrument that was heard of."""

    client: int
    played: Played
    seen: float  # seconds


class Studio(Room):
    """`notepat:midi:*`, `daw:*`."""

    def on_create(self) -> Any:
        self.listeners: dict[int, tuple[Client, Filter]] = {}
        self.sources: dict[tuple[str, str], Source] = {}  # (handle, machine) → source, the latest last
        self.devices: dict[int, Client] = {}
        return super().on_create()

    def on_leave(self, client: Client, reason: str) -> Any:
        self.listeners.pop(client.id, None)
        self.devices.pop(client.id, None)
        for key in [key for key, source in self.sources.items() if source.client == client.id]:
            del self.sources[key]
        return super().on_leave(client, reason)

    @on("notepat:midi:subscribe", rate=5)
    def listen(self, client: Client, content: Asked | str) -> None:
        asked = opened(content, Asked)
        wanted = asked.filter or asked
        wanted = Filter(wanted.all, plain(wanted.handle), wanted.machine_id)
        self.listeners[client.id] = client, wanted
        told = {"all": wanted.all, "handle": wanted.handle, "machineId": wanted.machine_id}
        client.send("notepat:midi:subscribed", told, id=RELAY)
        self.list_sources(client)

    @on("notepat:midi:unsubscribe")
    def stop_listening(self, client: Client) -> None:
        self.listeners.pop(client.id, None)
        client.send("notepat:midi:unsubscribed", True, id=RELAY)

    @on("notepat:midi:sources", rate=5)
    def list_sources(self, client: Client) -> None:
        since = self.now - SEEN_FOR
        told = [
            {
                "handle": source.played.handle,
                "machineId": source.played.machine_id,
                "piece": source.played.piece,
                "lastSeen": source.played.ts,
                "lastEvent": source.played.event,
            }
            for source in self.sources.values()
            if source.seen >= since
        ]
        client.send("notepat:midi:sources", {"sources": told}, id=RELAY)

    @on("notepat:midi:heartbeat", rate=5)
    def beat(self, client: Client, content: Played | str) -> None:
        self._heard_of(client, opened(content, Played))

    @on("notepat:midi:publish")
    def play(self, client: Client, content: Played | str) -> None:
        played = opened(content, Played)
        self._heard_of(client, played)
        told = {
            "type": "notepat:midi",
            "event": played.event,
            "note": played.note,
            "velocity": played.velocity,
            "channel": played.channel,
            "handle": played.handle,
            "machineId": played.machine_id,
            "piece": played.piece,
            "ts": played.ts,
        }
        group = [one for one, wanted in self.listeners.values() if matches(wanted, played)]
        self.broadcast("notepat:midi", told, to=group, id=RELAY)

    def _heard_of(self, client: Client, played: Played) -> None:
        """Keeps the source in mind. A name that another client plays under is not taken from it."""
        played.handle = plain(played.handle)
        key = played.handle, played.machine_id
        known = self.sources.get(key)
        if known is not None and known.client != client.id and known.seen >= self.now - SEEN_FOR:
            return
        mine = [key for key, source in self.sources.items() if source.client == client.id]
        if known is None and len(mine) >= MAX_SOURCES_OF_ONE:
            del self.sources[mine[0]]
        self.sources.pop(key, None)
        self.sources[key] = Source(client.id, played, self.now)
        if len(self.sources) > MAX_SOURCES:
            del self.sources[next(iter(self.sources))]

    @on("daw:join")
    def join_daw(self, client: Client) -> None:
        self.devices[client.id] = client
        client.send("daw:joined", {"id": client.id}, id=None)

    @on("daw:code", rate=10)
    def play_code(self, client: Client, content: Any) -> None:
        extra = {"from": client.id}
        self.broadcast("daw:code", content, to=self.devices.values(), id=None, extra=extra)


def opened(content: Shape | str, shape: type[Shape]) -> Shape:
    """What comes by a data channel is JSON in a string (lib/udp.mjs). Raises Refused."""
    if not isinstance(content, str):
        return content
    try:
        return decode(content, type=shape)
    except (DecodeError, RecursionError) as error:
        raise Refused(f"content is a string, and in it {error}") from None


def plain(handle: str) -> str:
    return handle.removeprefix("@").lower()


def matches(wanted: Filter, played: Played) -> bool:
    if wanted.all:
        return True
    named = bool(wanted.handle or wanted.machine_id)
    return named and wanted.handle in ("", played.handle) and wanted.machine_id in ("", played.machine_id)
