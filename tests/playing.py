"""Plays rooms in memory: the real `Rooms` on a virtual clock, and players whose wires end in the test.

    play = Playing({"field": Field})
    ada, bob = play.join("field", name="ada"), play.join("field")
    ada.send("move", [1, 2])
    play.advance(0.1)
    assert bob.heard("snapshot") == [...]

Nothing here sleeps, reads a clock or opens a socket, and a seed repeats a run. Time passes only in `advance`. Every
other act of a player is one tick of a server's loop: it is handled, then each room writes what it brought.
`with play.tick():` puts several acts into one tick.

From the outside in: `Playing` is the loop, `Player` the page of one client (it speaks docs/reference/wire.md and knows
nothing of the server), `Wire` the link with its two directions (`Pipe`), and `Network` what befalls them: `delay` for
all wires, `stall`, `drop` and `vanish` for the wire of one player.
"""

from __future__ import annotations

import json
from asyncio import CancelledError
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any

from msgspec import UnsetType

from session_server import presence
from session_server.calls import TookTooLong
from session_server.config import Config
from session_server.engine.memory import MemoryEngine
from session_server.protocol import (
    CLASSIC,
    V1_DIALECT,
    AnyMessage,
    Binary,
    Close,
    Dialect,
    Hello,
    ProtocolError,
    SessionError,
    decode_hello,
    pack_binary,
    unpack_binary,
)
from session_server.room import Client, Room, RoomCore, User
from session_server.rooms import Rooms
from session_server.trust import Route

START = 1000.0  # seconds; a monotonic clock begins anywhere
NOTICED_AFTER = 30.0  # seconds until a server takes a silent link for dead
MAX_TURNS = 10_000  # of the loop at one instant: more, and something never comes to rest
MISSING: Any = object()


# --- frames on the wire: b"T" or b"B", 4 bytes of length, payload -----------------------------------------------------


def framed(kind: bytes, payload: bytes) -> bytes:
    return kind + len(payload).to_bytes(4, "big") + payload


def frames(data: bytes) -> Iterator[str | bytes]:
    at = 0
    while at < len(data):
        stop = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
        payload = data[at + 5 : stop]
        yield payload.decode() if data[at : at + 1] == b"T" else payload
        at = stop
    assert at == len(data), "a write ends within a frame"


def pack_classic(message: AnyMessage) -> bytes | None:
    payload = CLASSIC.encode(message)
    return None if payload is None else framed(b"T", payload)


def pack_v1(message: AnyMessage) -> bytes:
    return framed(b"B" if isinstance(message, Binary) else b"T", V1_DIALECT.encode(message))


def pack_raw(data: str | bytes) -> bytes:
    return framed(b"T", data.encode()) if isinstance(data, str) else framed(b"B", data)


# --- what the author's async code may wait for ------------------------------------------------------------------------


class Pause:
    """Something to `await` in a handler: until `seconds` have passed (`sleep`), or until the test opens it (`Gate`)."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self.wake: Callable[[], None] | None = None
        self._outcome: tuple[Any, BaseException | None] | None = None

    def open(self, value: Any = None) -> None:
        self._settle(value, None)

    def fail(self, error: BaseException) -> None:
        self._settle(None, error)

    def _settle(self, value: Any, error: BaseException | None) -> None:
        self._outcome = self._outcome or (value, error)
        if self.wake is not None:
            self.wake()

    @property
    def settled(self) -> bool:
        return self._outcome is not None

    def __await__(self) -> Generator[Pause, None, Any]:
        while self._outcome is None:
            yield self
        value, error = self._outcome
        if error is not None:
            raise error
        return value


Gate = Pause


def sleep(seconds: float) -> Pause:
    return Pause(seconds)


class Job:
    """An awaitable under way, as `spawn` was given it. As in the server, the rooms are told the time when it ends."""

    def __init__(self, play: Playing, awaitable: Awaitable[Any], seconds: float, done: Any) -> None:
        self._play = play
        self._steps = awaitable.__await__()
        self._done = done
        self._over = False
        self._late = False
        self._wakes = 0  # a wake-up is good for the pause it was meant for, not for the next
        play.at(play.now + seconds, self._time_out)

    def step(self, error: BaseException | None = None) -> None:
        if self._over:
            return
        self._wakes += 1
        try:
            pause = next(self._steps) if error is None else self._steps.throw(error)  # type: ignore[attr-defined]
        except StopIteration as end:
            self._end(end.value, None)
        except (Exception, CancelledError, SystemExit) as raised:
            self._end(None, TookTooLong() if self._late and isinstance(raised, CancelledError) else raised)
        else:
            assert isinstance(pause, Pause), f"a handler awaits {pause!r}; here it can await sleep() and Gate()"
            self._wait(pause, self._wakes)

    def _wait(self, pause: Pause, turn: int) -> None:
        def wake() -> None:
            if self._wakes == turn:
                self._play.soon(self.step)

        pause.wake = wake
        if pause.settled:
            wake()
        elif pause.seconds is not None:
            self._play.at(self._play.now + pause.seconds, pause.open)
            pause.seconds = None

    def _time_out(self) -> None:
        if not self._over:
            self._late = True
            self.step(CancelledError())

    def _end(self, value: Any, error: BaseException | None) -> None:
        self._over = True
        self._play.rooms.enter(self._play.now)
        self._done(value, error)


# --- the network ------------------------------------------------------------------------------------------------------


class Network:
    """Misfortunes of all wires. `delay` is seconds each way, drawn anew for each write; order is kept, as by TCP."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.delay = (0.0, 0.0)  # least and most

    def draw(self) -> float:
        return self.random.uniform(*self.delay) if self.delay[1] else 0.0


class Pipe:
    """One direction of a wire: what goes in comes out later, in order, or never."""

    def __init__(self, play: Playing, deliver: Callable[[Any], None]) -> None:
        self._play = play
        self._deliver = deliver
        self._inside: deque[tuple[float, Any, int]] = deque()  # when it may come out, what, bytes
        self._latest = 0.0
        self.stalled = False
        self.cut = False

    @property
    def unsent(self) -> int:
        """Bytes that did not come out at once."""
        now = self._play.now
        return sum(size for due, _, size in self._inside if self.stalled or due > now)

    def put(self, item: Any, size: int) -> None:
        if self.cut:
            return
        due = self._latest = max(self._latest, self._play.now + self._play.network.draw())
        self._inside.append((due, item, size))
        self._play.at(due, self._move)  # never within the call that wrote it

    def release(self) -> None:
        self.stalled = False
        for due, _, _ in self._inside:
            self._play.at(due, self._move)

    def drop(self) -> None:
        self.cut = True
        self._inside.clear()

    def _move(self) -> None:
        """One item, so that what several wires carry at one instant arrives in the order in which it was sent."""
        if self._inside and not self.stalled and self._inside[0][0] <= self._play.now:
            self._deliver(self._inside.popleft()[1])


class Wire:
    """A `room.Link` in memory, and the transport's part behind it: frames to messages, faults to closes."""

    def __init__(self, play: Playing, player: Player, slug: str, dialect: Dialect, pack: Any, address: str) -> None:
        self.kind = "memory"
        self.dialect = dialect
        self.address = address
        self.local = "192.0.2.100"
        self.rtt: float | None = None
        self.pack = pack
        self.client: Client | None = None
        self.closed: tuple[int, str] | None = None  # by the server
        self.down = Pipe(play, player.take)
        self.up = Pipe(play, self._take)
        self.written: list[bytes] = []  # one entry per write
        self.high_water: int | None = None  # bytes unsent, above which the room is told that this link is behind
        self.max_unsent: int | None = None  # bytes unsent, above which it is a slow consumer
        self.behind = False
        self._play, self._player, self._slug = play, player, slug

    # towards the room (as a room.Link)

    def write(self, data: bytes) -> None:
        assert self.closed is None, "written after the close"
        assert data, "an empty write"
        self.written.append(data)
        self.down.put(data, len(data))
        self._check_unsent()

    def close(self, code: int, reason: str) -> None:
        if self.closed is not None:
            return
        self.closed, self.client = (code, reason), None
        self.down.put((code, reason), 0)

    # what a transport does

    def open(self, hello: Hello) -> None:
        self._play.rooms.join(self._slug, self, hello, self._play.now, self._joined)

    def _joined(self, client: Client | None, error: SessionError | None) -> None:
        if client is None:
            assert error is not None
            self._player.error = error
            if self.closed is None and not self.down.cut:
                self.close(error.code, str(error))
        elif self.closed is None and self.down.cut:  # gone while on_auth thought about it
            client.core.drop(client, self, clean=False)
        elif self.closed is None:
            self.client = self._player.seat = client

    def _take(self, item: Any) -> None:
        """One frame of the client, or the end of its half."""
        play = self._play
        play.rooms.enter(play.now)
        client = self.client
        if isinstance(item, tuple):
            self.client = None
            if client is not None:
                client.core.drop(client, self, clean=True)
            return
        size = len(item.encode() if isinstance(item, str) else item)
        try:
            if client is None:
                if self.closed is None and self.dialect is V1_DIALECT and self.pack is pack_v1:
                    self.open(decode_hello(self._decode(item)))
            elif self.pack is pack_raw:
                client.core.inbox.receive_raw(client, item, size, play.now)
            else:
                client.core.inbox.receive(client, self._decode(item), size, play.now)
        except ProtocolError as error:
            if client is not None:
                client.core.inbox.complain(client, "malformed", str(error))
            else:
                self.close(error.code, str(error))

    def _decode(self, item: str | bytes) -> AnyMessage:
        if isinstance(item, str):
            return self.dialect.decode(item)
        return unpack_binary(item) if self.dialect is V1_DIALECT else self.dialect.decode(item.decode())

    def lost(self) -> None:
        """The connection ended without a word, and the server has noticed."""
        client, self.client = self.client, None
        self.up.drop()
        self.down.drop()
        if client is not None:
            self._play.rooms.enter(self._play.now)
            client.core.drop(client, self, clean=False)

    def congest(self, behind: bool) -> None:
        self.behind = behind
        if self.client is not None:
            self.client.core.outbox.congested(self.client, behind)

    def _check_unsent(self) -> None:
        """As an asyncio transport does: told in the middle of the write that crosses the mark."""
        unsent = self.down.unsent
        if self.high_water is not None and unsent > self.high_water and not self.behind:
            self.congest(True)
        if self.max_unsent is not None and unsent > self.max_unsent and self.closed is None:
            client, self.client = self.client, None
            if client is not None:
                client.core.drop(client, self, clean=False)
            self.close(Close.FULL, f"slow consumer: {unsent} bytes unsent")


def pack_side(message: AnyMessage) -> bytes:
    return pack_v1(message)


class Side:
    """A `room.SideLink` in memory, for what may be lost. The test says how far it is trusted."""

    def __init__(self, player: Player, route: Route) -> None:
        assert player.seat is not None
        self.kind = "datachannel"
        self.dialect: Dialect = V1_DIALECT
        self.pack = pack_side
        self.address = player.address
        self.rtt: float | None = None
        self.route = route
        self.acks: list[int] = []
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

    def acked(self, received: int) -> None:
        self.acks.append(received)

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


# --- players ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Heard:
    """One message as it came to a player."""

    type: str
    content: Any = None  # JSON values, or bytes of a binary frame
    id: Any = None
    reliable: bool = True
    at: float = 0.0  # when
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Reply:
    """What became of an ask."""

    value: Any = MISSING
    error: dict[str, str] | None = None

    @property
    def done(self) -> bool:
        return self.value is not MISSING or self.error is not None


class Player:
    """One page: keeps what it was told, counts, and resumes as docs/reference/wire.md says a client should."""

    def __init__(self, play: Playing, slug: str, hello: dict[str, Any], classic: bool, address: str) -> None:
        self.play = play
        self.slug = slug
        self.hello = hello  # content of its session:join
        self.classic = classic
        self.address = address
        self.seat: Client | None = None  # the server's side, for tests of the server
        self.error: SessionError | None = None  # why there is no seat
        self.closed: tuple[int, str] | None = None  # close code and reason
        self.heard_all: list[Heard] = []  # every message, in order
        self.frames: list[str | bytes] = []  # of a raw room
        self.welcomes: list[dict[str, Any]] = []
        self.people: dict[int, dict[str, Any]] = {}  # by id: what the welcome and the diffs add up to
        self.count = 0
        self.host: int | None = None
        self.counted = 0  # reliable messages received, session:* excepted
        self.resume_token: str | None = None
        self._sent = 0  # reliable messages and asks
        self._unconfirmed: deque[tuple[int, str | bytes]] = deque()
        self._held: list[str | bytes] = []  # until the welcome
        self._welcomed = False  # on this wire
        self._asks: dict[int, Reply] = {}
        self.wire = self._connect()

    # what happened

    @property
    def id(self) -> int:
        """Of the last seat."""
        if self.classic:
            return int(json.loads(self.only("connected").content)["id"])
        return int(self.welcomes[-1]["id"])

    @property
    def welcome(self) -> dict[str, Any]:
        return self.welcomes[-1]

    @property
    def received(self) -> list[Heard]:
        """Messages of the room; the library's own (`session:*`) left out."""
        return [heard for heard in self.heard_all if not heard.type.startswith("session:")]

    def heard(self, type: str) -> list[Any]:
        """Contents of this type, in order."""
        return [heard.content for heard in self.heard_all if heard.type == type]

    def types(self) -> list[str]:
        return [heard.type for heard in self.heard_all]

    def only(self, type: str) -> Heard:
        """The one message of this type."""
        [found] = [heard for heard in self.heard_all if heard.type == type]
        return found

    def forget(self) -> None:
        """Begins anew to keep what is heard."""
        self.heard_all.clear()
        self.frames.clear()

    @property
    def errors(self) -> list[str]:
        """Codes of session:error."""
        return [content["code"] for content in self.heard("session:error")]

    # acts, each a tick of the loop

    def send(self, type: str, content: Any = MISSING, reliable: bool = True, **extra: Any) -> None:
        if isinstance(content, bytes):
            self._post(pack_binary(Binary(type, content, reliable=reliable)), reliable)
            return
        envelope: dict[str, Any] = {"type": type, **extra}
        if content is not MISSING:
            envelope["content"] = content
        if not reliable:
            envelope["reliable"] = False
        self._post(json.dumps(envelope), reliable and not type.startswith("session:"))

    def ask(self, type: str, content: Any = MISSING) -> Reply:
        number = len(self._asks) + 1
        reply = self._asks[number] = Reply()
        asked = {"ask": number, "type": type} | ({} if content is MISSING else {"content": content})
        self._post(json.dumps({"type": "session:ask", "content": asked}), True)
        return reply

    def ping(self) -> dict[str, Any]:
        self.send("session:ping", {"t": self.play.now})
        return dict(self.heard("session:pong")[-1])

    def send_frame(self, data: str | bytes) -> None:
        """A frame as it is: for raw rooms, and for what is no message."""
        self.wire.up.put(data, len(data))
        self.play.settle()

    def leave(self) -> None:
        self.send("session:leave")

    def close(self) -> None:
        """A clean close."""
        self.wire.up.put((Close.GOING_AWAY, ""), 0)
        self.play.settle()

    def drop(self) -> None:
        """The connection is gone at once, and what was under way in it."""
        self.wire.lost()
        self.play.settle()

    def vanish(self) -> None:
        """The connection is gone, but the server does not notice until it misses the answer to a ping: half-open."""
        self.wire.up.drop()
        self.wire.down.drop()
        self.play.at(self.play.now + NOTICED_AFTER, self.wire.lost)

    def resume(self) -> None:
        """Comes back on a new wire with its resume token; the old one is let go without a word."""
        self.vanish()
        self.closed = None
        self.wire = self._connect()
        self.play.settle()

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

    def _post(self, frame: str | bytes, counted: bool) -> None:
        if not counted or self.wire.dialect is CLASSIC:
            self.wire.up.put(frame, len(frame))
        elif not self._welcomed:  # who sent before it knew what arrived would send twice
            self._held.append(frame)
        else:
            self._sent += 1
            self._unconfirmed.append((self._sent, frame))
            self.wire.up.put(frame, len(frame))
        self.play.settle()

    # the wire

    def _connect(self) -> Wire:
        play = self.play
        play.rooms.admit(self.slug, self.address, play.now)
        dialect, pack = (CLASSIC, pack_classic) if self.classic else (V1_DIALECT, pack_v1)
        unusable: SessionError | None = None
        try:
            if play.rooms.class_of(self.slug).raw:
                dialect, pack = CLASSIC, pack_raw
        except SessionError as error:
            unusable = error
        self._welcomed = False
        wire = self.wire = Wire(play, self, self.slug, dialect, pack, self.address)
        if unusable is not None:
            self.error = unusable
            wire.close(unusable.code, "the code of this piece cannot be used")
        elif dialect is CLASSIC:
            play.soon(lambda: wire.open(Hello()))
        else:
            hello = dict(self.hello)
            if self.resume_token is not None:
                hello |= {"resume": self.resume_token, "received": self.counted}
            wire.up.put(json.dumps({"type": "session:join", "content": hello}), 100)
        play.settle()
        return wire

    def take(self, data: Any) -> None:
        """What comes off the wire."""
        if isinstance(data, tuple):
            self.closed = data
            return
        for frame in frames(data):
            if self.wire.pack is pack_raw:
                self.frames.append(frame)
            else:
                self._take_frame(frame)

    def read(self, frame: str | bytes) -> Heard:
        if isinstance(frame, bytes):
            assert not self.classic, "classic clients are never sent binary"
            binary = unpack_binary(frame)
            extra = {} if isinstance(binary.n, UnsetType) else {"n": binary.n}
            return Heard(binary.type, binary.content, binary.id, binary.reliable is not False, self.play.now, extra)
        envelope = json.loads(frame)
        assert isinstance(envelope, dict) and isinstance(envelope["type"], str)
        known = {key: envelope.pop(key) for key in ("type", "content", "id") if key in envelope}
        reliable = True if self.classic else envelope.pop("reliable", True)
        return Heard(**known, reliable=reliable, at=self.play.now, extra=envelope)

    def _take_frame(self, frame: str | bytes) -> None:
        heard = self.read(frame)
        self.heard_all.append(heard)
        if self.classic:
            return
        if not heard.type.startswith("session:"):
            self.counted += heard.reliable
        elif heard.type == "session:welcome":
            self._take_welcome(heard.content)
        elif heard.type == "session:presence":
            self._take_presence(heard.content)
        elif heard.type == "session:pong":
            self._confirm(heard.content["received"])
        elif heard.type == "session:reply":
            reply = self._asks[heard.content["ask"]]
            assert not reply.done, "answered twice"
            reply.value, reply.error = heard.content.get("content", MISSING), heard.content.get("error")

    def _take_welcome(self, content: dict[str, Any]) -> None:
        # A room that was disposed of and opened again counts its ids from 1, in another epoch.
        same_seat = bool(self.welcomes) and all(self.welcome[key] == content[key] for key in ("epoch", "id"))
        self.welcomes.append(content)
        self.resume_token = content["resume"]
        self.counted = content["seq"]
        self.people = {person["id"]: person for person in content["presence"]}
        self.count, self.host = content["count"], content["host"]
        if same_seat:
            self._confirm(content["received"])
            for _, frame in self._unconfirmed:  # it never arrived: once more
                self.wire.up.put(frame, len(frame))
        else:  # what another seat sent is gone with it
            self._sent = 0
            self._unconfirmed.clear()
        self._welcomed = True
        held, self._held = self._held, []
        for frame in held:
            self._post(frame, True)

    def _confirm(self, received: int) -> None:
        while self._unconfirmed and self._unconfirmed[0][0] <= received:
            self._unconfirmed.popleft()

    def _take_presence(self, diff: dict[str, Any]) -> None:
        for id in diff.get("leaves", ()):
            self.people.pop(id, None)
        for person in (*diff.get("joins", ()), *diff.get("updates", ())):
            self.people[person["id"]] = person
        self.count = diff.get("count", self.count)
        self.host = diff.get("host", self.host)
        if self.count > presence.PEOPLE_LISTED:
            self.people.clear()


# --- the loop ---------------------------------------------------------------------------------------------------------


class Log:
    """Keeps what was logged, with what the logger was bound to."""

    def __init__(self, entries: list[dict[str, Any]], **bound: Any) -> None:
        self.entries = entries
        self._bound = bound

    def bind(self, **more: Any) -> Log:
        return Log(self.entries, **self._bound, **more)

    def _keep(self, event: str, **more: Any) -> None:
        self.entries.append({"event": event, **self._bound, **more})

    info = warning = error = exception = _keep

    def debug(self, event: str, **more: Any) -> None:
        """Not kept: what a run logs is what is worth a look."""


class Classes:
    """Room classes by piece, from a dict; an exception in it is raised, as for code that cannot be loaded."""

    def __init__(self, table: Mapping[str, type[Room] | SessionError]) -> None:
        self._table = table

    def room_class(self, piece: str) -> type[Room] | None:
        found = self._table.get(piece)
        if isinstance(found, SessionError):
            raise found
        return found


class Playing:
    """A server without sockets: `Rooms`, and a loop that turns as `server.Server` does, on a clock of its own.

    `pieces` is a dict of room classes by slug, or whatever has `room_class(piece)`; `settings` are those of `Config`.
    Rates are off unless a test sets them: a test's players talk as fast as they like.
    """

    def __init__(
        self,
        pieces: Any = (),
        *,
        seed: int = 0,
        verify: Callable[[str], User | None] = lambda token: None,
        claim: Callable[[str], int] | None = None,
        release: Callable[[str, int], None] = lambda slug, epoch: None,
        **settings: Any,
    ) -> None:
        epochs = count(1)
        engine = MemoryEngine("n1", 0, self._raise)
        self.now = START
        self.random = Random(seed)
        self.network = Network(self.random)
        self.players: list[Player] = []
        self.log = Log([])
        settings = {"message_rate": 0, "byte_rate": 0, "new_rooms_per_address": 0} | settings
        self.rooms = Rooms(
            Config(**settings),
            pieces if hasattr(pieces, "room_class") else Classes(dict(pieces)),
            log=self.log,
            clock=lambda: self.now,
            token=lambda: f"{self.random.getrandbits(128):032x}",
            wake=self._wake,
            spawn=lambda awaitable, seconds, done: self.soon(Job(self, awaitable, seconds, done).step),
            verify=verify,
            publish=engine.publish,
            subscribe=engine.subscribe,
            claim=claim or (lambda slug: next(epochs)),
            release=release,
        )
        self._alarm: float | None = None  # when the rooms want to run
        self._due_now = self._running = False
        self._settling = 0
        self._ready: deque[Callable[[], object]] = deque()
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._order = count()

    @staticmethod
    def _raise(error: Exception) -> None:
        raise error

    # --- acts ---------------------------------------------------------------------------------------------------------

    def join(
        self, slug: str = "field", name: str | None = None, *, data: Any = None, token: str | None = None,
        classic: bool = False, address: str = "192.0.2.1",
    ) -> Player:  # fmt: skip
        """A new page in a room. Raises LimitExceeded where a server would answer the upgrade with a status."""
        given = {"name": name, "data": data, "token": token}
        hello = {key: value for key, value in given.items() if value is not None}
        player = Player(self, slug, hello, classic, address)
        self.players.append(player)
        return player

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

    @contextmanager
    def tick(self) -> Iterator[None]:
        """What players do inside belongs to one tick of the loop."""
        self._settling += 1
        try:
            yield
        finally:
            self._settling -= 1
        self.settle()

    # --- time ---------------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Time passes; all that is due happens at its own time."""
        end = self.now + seconds
        self.settle()
        while (when := self._next()) is not None and when <= end:
            self.now = max(self.now, when)
            self.settle()
        self.now = end

    def skip(self, seconds: float) -> None:
        """Time passes while the process stands still; then the loop sees what is late."""
        self.now += seconds
        self.settle()

    def settle(self) -> None:
        """Turns the loop until nothing more is due at this instant."""
        if self._settling:
            return
        self._settling += 1
        try:
            for _ in range(MAX_TURNS):
                if not self._once():
                    return
            raise AssertionError(f"not at rest after {MAX_TURNS} turns of the loop at {self.now}")
        finally:
            self._settling -= 1

    def soon(self, call: Callable[[], object]) -> None:
        self._ready.append(call)

    def at(self, when: float, call: Callable[[], object]) -> None:
        heappush(self._later, (when, next(self._order), call))

    def _next(self) -> float | None:
        times = [when for when in (self._alarm, self._later[0][0] if self._later else None) if when is not None]
        return min(times, default=None)

    def _once(self) -> bool:
        """One turn of the loop; False if there was nothing to do."""
        if self._later and self._later[0][0] <= self.now:
            heappop(self._later)[2]()
            return True
        if self._ready:
            self._ready.popleft()()
            return True
        if self._alarm is not None and self._alarm <= self.now:
            self._alarm, self._due_now = None, True
        if self._due_now:
            self._turn()
            return True
        return False

    def _wake(self, when: float) -> None:
        """As the server does it: whoever asks while the rooms run is told by what `run` returns."""
        if self._running:
            return
        if when <= self.now:
            self._due_now = True
        elif self._alarm is None or when < self._alarm:
            self._alarm = when

    def _turn(self) -> None:
        self._due_now, self._running = False, True
        try:
            due = self.rooms.run(self.now)
        finally:
            self._running = False
        if due is not None:
            self._wake(due)
