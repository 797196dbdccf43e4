"""Tests of pieces: a room in memory, scripted clients, a clock that is told the time, and a network as bad as you like.

    from session_server.testing import RoomTest

    with RoomTest.piece("pieces/field.py", seed=7) as test:
        ada, bob = test.join("ada"), test.join("bob")
        bob.network(delay=0.1, jitter=0.05, loss=0.2)
        ada.send("move", [0.2, 0.7])
        test.advance(1)
        assert bob.last("snapshot")[str(ada.id)]["pos"] == [0.2, 0.7]

It needs no test framework: it raises what a test should fail with. How to use it: docs/how-to/test-a-piece.md.

From the outside in: `RoomTest` is here; `player` is a client, `links` are the wires between it and its room, `server`
is the real `Rooms` without a socket, `loop` is asyncio on the virtual clock.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from msgspec import Raw

from ..conditions import Conditions
from ..pieces import load_class
from ..protocol import Message, Refused, encode_json, piece_of
from ..room import Room, User
from .loop import START
from .player import Heard, Player, Reply
from .server import MemoryServer

__all__ = ["Heard", "Player", "Reply", "RoomTest"]

__tracebackhide__ = True

Faults = type[BaseException] | tuple[type[BaseException], ...]


class Classes:
    """Room classes by piece. Pieces that are not among them have no code."""

    def __init__(self, table: Mapping[str, type[Room]]) -> None:
        self.table = dict(table)

    def room_class(self, piece: str) -> type[Room] | None:
        return self.table.get(piece)


class RoomTest(MemoryServer):
    """One piece, played in memory. Nothing waits: an hour passes as fast as its messages are handled.

    Time passes only in `advance`. Everything else happens at the instant at which it is said, and each act of a player
    is one tick of the server's loop; `with test.tick():` puts several into one.

    A fault in the piece's code, an exception that is no Refused, is raised where it came about, with the piece's own
    traceback. The `with` block seeds Python's `random` for the piece; at its end the rooms are disposed of.
    """

    def __init__(
        self,
        room: type[Room] | Mapping[str, type[Room]],
        *,
        slug: str | None = None,
        seed: int = 0,
        users: Mapping[str, User] | None = None,
        expect_faults: Faults = (),
        **settings: Any,
    ) -> None:
        """`room`: the class, or several by piece if their rooms talk to each other; players join the first.

        `slug` is the room's, as in its URL, by default the name of the class in small letters. `seed` decides what the
        network loses and when: the same seed, the same run. `users`: who is proved by which token; any other is
        refused. Without it tokens are not checked, and `on_auth` gets them as they are. Exceptions of `expect_faults`
        are collected in `faults` instead of being raised, and there must be one by the end. `settings` are those of
        the server (docs/reference/settings.md), such as `message_size=1000`; its rates are off, those of `@on` are not.
        """
        table = room if isinstance(room, Mapping) else {piece_of(slug or room.__name__.lower()): room}
        self.slug = slug or next(iter(table))
        self.faults: list[BaseException] = []  # those that were expected
        self.players: list[Player] = []
        self._classes = Classes(table)
        self._expected = expect_faults
        self._conditions = Conditions()
        self._users = users
        self._seed = seed
        self._file: Path | None = None
        self._read = 0  # entries of the log
        self._counted = 0  # faults
        super().__init__(self._classes, seed=seed, verify=self._verify, **settings)

    @classmethod
    def piece(cls, file: str | Path, **options: Any) -> Self:
        """Of a piece's file, loaded as the server loads it. Raises PieceError, with the line that is wrong."""
        path = Path(file)
        room_class, _ = load_class(path.stem, path)
        test = cls({path.stem: room_class}, **options)
        test._file = path
        return test

    # --- players ------------------------------------------------------------------------------------------------------

    def join(
        self, name: str | None = None, *, data: Any = None, token: str | None = None, slug: str | None = None,
        udp: bool = True, classic: bool = False,
    ) -> Player:  # fmt: skip
        """A new client comes to the room, or to that of `slug`. `name` and `data` are what it says of itself, `token`
        proves who it is. With `udp` it has a data channel for what may be lost, as most browsers do; without, that goes
        by WebSocket too and is not lost. `classic` is a page that speaks the old dialect. One that is not let in is
        `closed`, with the reason."""
        given = {"name": name, "data": data, "token": token}
        hello = {key: value for key, value in given.items() if value is not None}
        player = Player(self, slug or self.slug, hello, udp=udp, classic=classic, conditions=self._conditions)
        self.players.append(player)
        return player

    def network(self, **conditions: float) -> None:
        """The network of all players, those who come later too; see Player.network."""
        self._conditions = Conditions(**conditions)
        for player in self.players:
            player.network(**conditions)

    def post(self, type: str, content: Any = None) -> None:
        """As somebody with the admin token does over HTTP. Raises Refused."""
        self.rooms.post(self.slug, Message(type, Raw(encode_json(content))), self.now)
        self.settle()

    # --- the room -----------------------------------------------------------------------------------------------------

    @property
    def room(self) -> Any:
        """The instance of the piece's class; there is one as soon as somebody has joined."""
        core = self.rooms.rooms.get(self.slug)
        assert core is not None, f"no room {self.slug!r} yet, it begins with the first join"
        return core.instance

    def reload(self, room_class: type[Room] | None = None) -> None:
        """The piece was edited while people play: a new instance takes over what `keep` names. Without an argument the
        file is read again."""
        piece = piece_of(self.slug)
        if room_class is None:
            assert self._file is not None, "reload() reads a file again: make the test by RoomTest.piece(file)"
            room_class, _ = load_class(self._file.stem, self._file)
        before = self._classes.table.get(piece, Room)
        self._classes.table[piece] = room_class

        def done(error: BaseException | None) -> None:
            if error is not None:
                self._classes.table[piece] = before
                self.loop.unheard.append(error)

        for core in self.rooms.of_piece(piece):
            self.rooms.swap(core, room_class, done)
        self.settle()

    def _verify(self, token: str) -> User | None:
        if self._users is None:
            return None
        if token not in self._users:
            raise Refused(f"no user has the token {token!r}")
        return self._users[token]

    # --- faults -------------------------------------------------------------------------------------------------------

    def _rest(self) -> bool:
        """After each instant, so that a test stops where it went wrong."""
        if super()._rest():
            return True
        self._check()
        return False

    def _check(self) -> None:
        """Raises the first fault that was not expected."""
        entries, self._read = self.log.entries[self._read :], len(self.log.entries)
        logged = [entry for entry in entries if "hook" in entry]
        found = [(entry["exc_info"], self._place(entry)) for entry in logged]
        found += [(error, "in a task or a reload") for error in self.loop.unheard]
        self.loop.unheard.clear()
        hidden = self.rooms.totals.faults - self._counted - len(logged)
        self._counted = self.rooms.totals.faults
        if hidden and not self._expected:
            found.append((AssertionError(f"{hidden} faults that were not logged, as there were so many"), "somewhere"))
        unexpected = [(error, place) for error, place in found if not isinstance(error, self._expected)]
        self.faults += [error for error, _ in found if isinstance(error, self._expected)]
        for error, place in unexpected:
            error.add_note(f"{place}, {self._moment()}")
        if unexpected:
            raise below(unexpected[0][0])

    def _place(self, entry: dict[str, Any]) -> str:
        client = f", client {entry['client']}" if entry.get("client") is not None else ""
        return f"in {entry['hook']}, room {entry['room']!r}{client}"

    def _moment(self) -> str:
        return f"after {self.now - START:g} s (seed {self._seed})"

    # --- the end ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._dice = random.getstate()
        random.seed(self._seed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:  # the test has failed already
            self._expected = BaseException
            if not hasattr(error, "__notes__"):
                error.add_note(self._moment())
        try:
            self.close()
        finally:
            random.setstate(self._dice)
        assert error is not None or self.faults or not self._expected, f"expected a fault of {self._expected}, saw none"

    def close(self) -> None:
        """Disposes of the rooms and ends async code that is under way. Raises faults that this brings to light."""
        for core in tuple(self.rooms):
            self.rooms.close(core)
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.settle()
        if self.loop.made_tasks:  # from Python 3.12 on a task that failed is part of a cycle
            gc.collect()
            self.settle()


def below(error: BaseException) -> BaseException:
    """With the part of its traceback that is the author's."""
    package = sys.modules[__name__.partition(".")[0]].__path__[0]
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(package):
        traceback = traceback.tb_next
    return error.with_traceback(traceback or error.__traceback__)
