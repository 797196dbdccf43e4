"""What our own tests need beyond `session_server.testing`: several pieces at once, the server's side of a wire, and
side links under the hand of the test.

    play = Playing({"field": Field})
    ada, bob = play.join("field", name="ada"), play.join("field")
    ada.send("move", [1, 2])
    play.advance(0.1)
    assert bob.heard("snapshot") == [...]
"""

from __future__ import annotations

import asyncio
from asyncio import sleep
from collections.abc import Callable, Mapping
from typing import Any

from session_server.conditions import Conditions
from session_server.outbox import Pack
from session_server.protocol import V1_DIALECT, Close, Dialect, SessionError
from session_server.room import Client, Room, RoomCore
from session_server.testing.links import Pipe, Wire, frames, pack_v1
from session_server.testing.loop import START
from session_server.testing.player import NOTICED_AFTER, Heard
from session_server.testing.player import Player as PlayerOfAuthors
from session_server.testing.server import Log, MemoryServer
from session_server.trust import Route

__all__ = ["NOTICED_AFTER", "START", "Gate", "Log", "Pipe", "Player", "Playing", "Side", "sleep"]


class Gate(asyncio.Future[Any]):
    """Something to `await` in a handler, until the test opens it."""

    def open(self, value: Any = None) -> None:
        if not self.done():
            self.set_result(value)

    def fail(self, error: BaseException) -> None:
        if not self.done():
            self.set_exception(error)


class WatchedWire(Wire):
    """Keeps what was written, and has a buffer that can fill."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.written: list[bytes] = []  # one entry per write
        self.high_water: int | None = None  # bytes unsent, above which the room is told that this link is behind
        self.max_unsent: int | None = None  # bytes unsent, above which it is a slow consumer
        self.behind = False

    def write(self, data: bytes) -> None:
        """As an asyncio transport does: the room is told in the middle of the write that crosses the mark."""
        super().write(data)
        self.written.append(data)
        unsent = self.down.unsent
        if self.high_water is not None and unsent > self.high_water and not self.behind:
            self.congest(True)
        if self.max_unsent is not None and unsent > self.max_unsent and self.closed is None:
            client, self.client = self.client, None
            if client is not None:
                client.core.drop(client, self, clean=False)
            self.close(Close.FULL, f"slow consumer: {unsent} bytes unsent")

    def congest(self, behind: bool) -> None:
        self.behind = behind
        if self.client is not None:
            self.client.core.outbox.congested(self.client, behind)


class Player(PlayerOfAuthors):
    """One page, and the server's side of its wire."""

    _server: Playing
    wire: WatchedWire

    @property
    def play(self) -> Playing:
        return self._server

    @play.setter
    def play(self, other: Playing) -> None:
        """It comes back to another server."""
        self._server = other

    def _make_wire(self, dialect: Dialect, pack: Pack) -> Wire:
        return WatchedWire(self.play, self, self.slug, dialect, pack, self.address)

    @property
    def seat(self) -> Client | None:
        return self.client

    def ping(self) -> dict[str, Any]:
        self.send("session:ping", {"t": self.play.now})
        return dict(self.heard("session:pong")[-1])

    def resume(self) -> None:
        self.back()

    def congest(self, behind: bool = True) -> None:
        """The server's side of the wire is told that its buffer filled, or drained."""
        self.wire.congest(behind)
        self.play.settle()

    def stall(self) -> None:
        """Reads nothing any more."""
        self.wire.down.stalled = True

    def release(self) -> None:
        self.wire.down.release()
        if self.wire.behind and self.wire.closed is None:
            self.wire.congest(False)
        self.play.settle()


class Side:
    """A `SideLink` in memory. The test says how far it is trusted, and what was written is heard at once."""

    kind = "datachannel"
    dialect: Dialect = V1_DIALECT
    pack = staticmethod(pack_v1)
    local = ""
    rtt: float | None = None

    def __init__(self, player: Player, route: Route) -> None:
        assert player.seat is not None
        self.address = player.address
        self.route = route
        self.heard: list[Heard] = []
        self.closed = False
        self._player = player
        player.seat.core.outbox.attach(player.seat, self)
        player.play.settle()

    def write(self, data: bytes) -> None:
        assert not self.closed, "written after the close"
        self.heard += [self._player.read(frame) for frame in frames(data)]

    def close(self, code: int, reason: str) -> None:
        self.closed = True

    def trust(self, route: Route) -> None:
        """The transport has judged anew."""
        self.route = route
        assert self._player.seat is not None
        self._player.seat.core.outbox.rerouted(self._player.seat)
        self._player.play.settle()

    def detach(self) -> None:
        assert self._player.seat is not None
        self._player.seat.core.outbox.detach(self._player.seat, self)
        self._player.play.settle()

    def types(self) -> list[str]:
        return [heard.type for heard in self.heard]


class Classes:
    """Room classes by piece, from a dict; an exception in it is raised, as for code that cannot be loaded."""

    def __init__(self, table: Mapping[str, type[Room] | SessionError]) -> None:
        self._table = table

    def room_class(self, piece: str) -> type[Room] | None:
        found = self._table.get(piece)
        if isinstance(found, SessionError):
            raise found
        return found


class Playing(MemoryServer):
    """`pieces` is a dict of room classes by slug, or whatever has `room_class(piece)`; the rest is MemoryServer's."""

    def __init__(self, pieces: Any = (), *, seed: int = 0, **options: Any) -> None:
        self.players: list[Player] = []
        self._conditions = Conditions()
        classes = pieces if hasattr(pieces, "room_class") else Classes(dict(pieces))
        super().__init__(classes, seed=seed, **options)

    def join(
        self, slug: str = "field", name: str | None = None, *, data: Any = None, token: str | None = None,
        classic: bool = False, address: str = "192.0.2.1",
    ) -> Player:  # fmt: skip
        """A new page in a room. Raises LimitExceeded where a server would answer the upgrade with a status."""
        given = {"name": name, "data": data, "token": token}
        hello = {key: value for key, value in given.items() if value is not None}
        player = Player(self, slug, hello, classic=classic, address=address, conditions=self._conditions)
        self.players.append(player)
        return player

    def network(self, **conditions: float) -> None:
        """Of all, those who come later too."""
        self._conditions = Conditions(**conditions)
        for player in self.players:
            player.network(**conditions)

    def core(self, slug: str = "field") -> RoomCore:
        return self.rooms.rooms[slug]

    def room(self, slug: str = "field") -> Any:
        """The author's instance."""
        return self.core(slug).instance

    @property
    def refused(self) -> dict[str, int]:
        """Counters, by reason."""
        return dict(self.rooms.totals.refused)

    @property
    def faults(self) -> int:
        return self.rooms.totals.faults

    @property
    def now(self) -> float:
        return self.loop.now

    @now.setter
    def now(self, when: float) -> None:
        """The process has stood still until then; the loop does not see yet what is late."""
        self.loop.now = when

    def skip(self, seconds: float) -> None:
        """Time passes while the process stands still; then the loop sees what is late."""
        self.now += seconds
        self.settle()

    def soon(self, call: Callable[[], object]) -> None:
        self.loop.call_soon(call)
