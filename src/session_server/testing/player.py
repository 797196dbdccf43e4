"""A scripted client: what it hears, what it says, and what befalls its connection. It speaks docs/reference/wire.md and
knows nothing of the server, as a page does."""

from __future__ import annotations

import json
from collections import Counter, deque
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from msgspec import UnsetType

from ..conditions import Conditions, Path
from ..outbox import Pack
from ..protocol import (
    CLASSIC,
    PEOPLE_LISTED,
    V1_DIALECT,
    Binary,
    Close,
    Dialect,
    Hello,
    SessionError,
    pack_binary,
    unpack_binary,
)
from ..room import Client, Room
from .links import Side, Wire, frames, pack_classic, pack_raw, pack_v1, size_of
from .server import MemoryServer

__tracebackhide__ = True

NOTICED_AFTER: Final = 30.0  # seconds until a server takes a silent connection for dead
MISSING: Final[Any] = object()


@dataclass(slots=True)
class Heard:
    """One message as it came to a player."""

    type: str
    content: Any = None  # JSON values, or bytes of a binary message
    id: Any = None  # whom it is from: 0 is the room
    reliable: bool = True
    at: float = 0.0  # when, on the clock of `test.now`
    extra: dict[str, Any] = field(default_factory=dict)  # further keys of the envelope


class Reply:
    """What became of an `ask`."""

    def __init__(self, type: str = "") -> None:
        self.error: dict[str, str] | None = None  # `code` and `reason`, if it went wrong
        self._type = type
        self._value: Any = MISSING

    @property
    def done(self) -> bool:
        return self._value is not MISSING or self.error is not None

    @property
    def value(self) -> Any:
        """What the handler returned. Raises AssertionError if there is no such answer."""
        assert self.error is None, f"ask({self._type!r}) was answered with the error {self.error}"
        assert self.done, f"ask({self._type!r}) is not answered yet; does the clock have to advance?"
        return self._value

    def take(self, content: dict[str, Any]) -> None:
        """Content of a `session:reply`."""
        assert not self.done, f"ask({self._type!r}) was answered twice"
        self._value, self.error = content.get("content", MISSING), content.get("error")

    def __repr__(self) -> str:
        return f"<Reply to {self._type!r}: {(self.error or self._value) if self.done else 'not yet'}>"


class Player:
    """One client of one room. It keeps what it is told, counts, and comes back as a client should. What it does happens
    at once; what that brings about takes the time that its network takes."""

    def __init__(
        self,
        server: MemoryServer,
        slug: str,
        hello: dict[str, Any],
        *,
        classic: bool = False,
        udp: bool = False,
        address: str = "192.0.2.1",
        conditions: Conditions | None = None,
    ) -> None:
        """`hello`: content of its `session:join`. `classic`: a page that speaks the old dialect. `udp`: what may be
        lost goes by a link of its own, as it does by a data channel."""
        random = Random(server.random.getrandbits(64))  # its own: what others send changes nothing for it
        self.slug = slug
        self.classic = classic
        self.address = address
        self.hello = hello
        self.up, self.down = (Path(conditions or Conditions(), random) for _ in range(2))
        self.client: Client | None = None  # the seat, as the room has it
        self.error: SessionError | None = None  # why there is none
        self.closed: tuple[int, str] | None = None  # code and reason, once the server has ended the connection
        self.heard_all: list[Heard] = []  # every message, in order
        self.frames: list[str | bytes] = []  # of a raw room
        self.welcomes: list[dict[str, Any]] = []
        self.people: dict[int, dict[str, Any]] = {}  # by id: who is there, as presence tells it
        self.count = 0
        self.host: int | None = None
        self.counted = 0  # reliable messages received, session:* excepted
        self.resume_token: str | None = None
        self.side: Side | None = None
        self._server = server
        self._udp = udp
        self._sent = 0  # reliable messages and asks
        self._unconfirmed: deque[tuple[int, str | bytes]] = deque()
        self._held: list[str | bytes] = []  # until the welcome
        self._welcomed = False  # on this wire
        self._asks: dict[int, Reply] = {}
        self._numbers: dict[tuple[Any, str], int] = {}  # the last number by sender and type, of what may be lost
        self._own_numbers: dict[str, int] = {}
        self.wire = self._connect()

    def __repr__(self) -> str:
        heard = ", ".join(f"{type} × {times}" for type, times in Counter(self.types()).items())
        state = f"closed {self.closed}" if self.closed else f"heard {heard or 'nothing'}"
        return f"<{self.hello.get('name', 'somebody')} in {self.slug}: {state}>"

    # --- what happened ------------------------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        """Its number in the room."""
        if self.classic:
            return int(json.loads(self.only("connected").content)["id"])
        return int(self.welcome["id"])

    @property
    def room(self) -> Room:
        """The instance of the piece's class that it plays in."""
        assert self.client is not None, f"{self!r} has no seat"
        return self.client.room

    @property
    def welcome(self) -> dict[str, Any]:
        """Content of the last `session:welcome`."""
        assert self.welcomes, f"{self!r} was not welcomed; does the clock have to advance?"
        return self.welcomes[-1]

    @property
    def received(self) -> list[Heard]:
        """Messages of the room; the library's own (`session:*`) left out."""
        return [heard for heard in self.heard_all if not heard.type.startswith("session:")]

    def heard(self, type: str) -> list[Any]:
        """Contents of this type, in order."""
        return [heard.content for heard in self.heard_all if heard.type == type]

    def last(self, type: str) -> Any:
        """Content of the last message of this type. Raises AssertionError if there was none."""
        contents = self.heard(type)
        assert contents, f"no {type!r} came to {self!r}"
        return contents[-1]

    def only(self, type: str) -> Heard:
        """The one message of this type. Raises AssertionError if there were none or several."""
        found = [heard for heard in self.heard_all if heard.type == type]
        assert len(found) == 1, f"{len(found)} messages {type!r} came to {self!r}, expected 1"
        return found[0]

    def types(self) -> list[str]:
        return [heard.type for heard in self.heard_all]

    def forget(self) -> None:
        """Begins anew to keep what is heard."""
        self.heard_all.clear()
        self.frames.clear()

    @property
    def errors(self) -> list[str]:
        """Codes of `session:error`: why the room did not take a message."""
        return [content["code"] for content in self.heard("session:error")]

    # --- what it says, each in a tick of the server's loop ------------------------------------------------------------

    def send(self, type: str, content: Any = MISSING, reliable: bool = True, **extra: Any) -> None:
        """`content` is bytes or what JSON can say; `extra`: further keys of the envelope, as classic pages send."""
        if not reliable and self.side is not None and self.side.live:
            self._send_datagram(type, content, extra)
            return
        if isinstance(content, bytes):
            self._post(pack_binary(Binary(type, content, reliable=reliable)), reliable)
            return
        envelope = {"type": type, **extra} | ({} if content is MISSING else {"content": content})
        if not reliable:
            envelope["reliable"] = False
        self._post(json.dumps(envelope), reliable and not type.startswith("session:"))

    def ask(self, type: str, content: Any = MISSING) -> Reply:
        """A message that the room answers. The reply fills when the answer comes."""
        number = len(self._asks) + 1
        reply = self._asks[number] = Reply(type)
        asked = {"ask": number, "type": type} | ({} if content is MISSING else {"content": content})
        self._post(json.dumps({"type": "session:ask", "content": asked}), True)
        return reply

    def send_frame(self, data: str | bytes) -> None:
        """A frame as it is: for raw rooms, and for what is no message."""
        self.wire.up.put(data, size_of(data))
        self._server.settle()

    def leave(self) -> None:
        """Says that it goes: the room hears `left` at once."""
        self.send("session:leave")

    # --- what befalls it ----------------------------------------------------------------------------------------------

    def network(
        self, *, delay: float = 0.0, jitter: float = 0.0, loss: float = 0.0, duplicates: float = 0.0,
        bandwidth: float = 0.0,
    ) -> None:  # fmt: skip
        """Its network from now on, the same in both directions. `delay` is seconds each way, of which a message takes
        up to `jitter` more or less; `loss` and `duplicates` are shares of datagrams, from 0 to 1; `bandwidth` is bytes
        per second, 0 = any number. Without arguments it is perfect again. Reliable messages are never lost and keep
        their order: a loss makes them late. Raises ValueError."""
        self.up.conditions = self.down.conditions = Conditions(delay, jitter, loss, duplicates, bandwidth)

    def drop(self) -> None:
        """The connection is gone at once, and what was under way in it. The seat is kept for `grace` seconds."""
        self.wire.lost()
        self._server.settle()

    def vanish(self) -> None:
        """The connection is gone, but the server does not notice until it misses the answer to a ping: half-open."""
        self.wire.up.drop()
        self.wire.down.drop()
        if self.side is not None:
            self.side.dead = True
        self._server.loop.call_later(NOTICED_AFTER, self.wire.lost)

    def back(self) -> None:
        """Comes back on a new connection, as a client does by itself: to its seat, if that is kept."""
        self.vanish()
        self.closed = None
        self.wire = self._connect()
        self._server.settle()

    def close(self) -> None:
        """The page is closed: the room hears `left`, without a word from the client."""
        self.wire.up.put((Close.GOING_AWAY, ""), 0)
        self._server.settle()

    # --- the wire -----------------------------------------------------------------------------------------------------

    def _connect(self) -> Wire:
        """Raises LimitExceeded where a server would answer the upgrade with a status."""
        server = self._server
        server.rooms.admit(self.slug, self.address, server.now)
        dialect: Dialect = CLASSIC if self.classic else V1_DIALECT
        pack: Pack = pack_classic if self.classic else pack_v1
        unusable: SessionError | None = None
        try:
            if server.rooms.class_of(self.slug).raw:
                dialect, pack = CLASSIC, pack_raw
        except SessionError as error:
            unusable = error
        self._welcomed = False
        wire = self.wire = self._make_wire(dialect, pack)
        if unusable is not None:
            self.error = unusable
            wire.close(unusable.code, "the code of this piece cannot be used")
        elif dialect is CLASSIC:
            server.loop.call_soon(wire.open, Hello())
        else:
            hello = dict(self.hello)
            if self.resume_token is not None:
                hello |= {"resume": self.resume_token, "received": self.counted}
            wire.up.put(json.dumps({"type": "session:join", "content": hello}), 100)
        server.settle()
        return wire

    def _make_wire(self, dialect: Dialect, pack: Pack) -> Wire:
        return Wire(self._server, self, self.slug, dialect, pack, self.address)

    def _post(self, frame: str | bytes, counted: bool) -> None:
        classic = self.wire.dialect is CLASSIC
        if not (classic or self._welcomed):  # who sent before it knew what arrived would send twice
            if counted:
                self._held.append(frame)
            return
        if counted and not classic:
            self._sent += 1
            self._unconfirmed.append((self._sent, frame))
        self.wire.up.put(frame, size_of(frame))
        self._server.settle()

    def _send_datagram(self, type: str, content: Any, extra: dict[str, Any]) -> None:
        assert self.side is not None, "asked before"
        number = self._own_numbers[type] = self._own_numbers.get(type, 0) + 1
        if isinstance(content, bytes):
            self.side.send(pack_binary(Binary(type, content, reliable=False, n=number)))
        else:
            envelope = {"type": type, **extra, "reliable": False, "n": number}
            self.side.send(json.dumps(envelope | ({} if content is MISSING else {"content": content})))
        self._server.settle()

    def take(self, data: Any) -> None:
        """What comes off the wire: bytes of a write, or code and reason of the close."""
        if isinstance(data, tuple):
            self.closed = data
            return
        for frame in frames(data):
            if self.wire.pack is pack_raw:
                self.frames.append(frame)
            else:
                self._take(self.read(frame))

    def take_datagram(self, frame: str | bytes) -> None:
        self._take(self.read(frame))

    def read(self, frame: str | bytes) -> Heard:
        now = self._server.now
        if isinstance(frame, bytes):
            assert not self.classic, "classic clients are never sent binary"
            binary = unpack_binary(frame)
            extra = {} if isinstance(binary.n, UnsetType) else {"n": binary.n}
            return Heard(binary.type, binary.content, binary.id, binary.reliable is not False, now, extra)
        envelope = json.loads(frame)
        assert isinstance(envelope, dict) and isinstance(envelope["type"], str)
        known = {key: envelope.pop(key) for key in ("type", "content", "id") if key in envelope}
        reliable = True if self.classic else envelope.pop("reliable", True)
        return Heard(**known, reliable=reliable, at=now, extra=envelope)

    def _take(self, heard: Heard) -> None:
        if not heard.reliable and not self._is_news(heard):
            return
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
            reply = self._asks.get(heard.content["ask"])
            if reply is not None:  # else the test has written the ask by hand
                reply.take(heard.content)

    def _is_news(self, heard: Heard) -> bool:
        """Not a second copy, nor overtaken by a later one."""
        number = heard.extra.get("n")
        if number is None:
            return True
        before = self._numbers.get((heard.id, heard.type), 0)
        self._numbers[heard.id, heard.type] = max(number, before)
        return bool(number > before)

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
                self.wire.up.put(frame, size_of(frame))
        else:  # what another seat sent is gone with it
            self._sent = 0
            self._unconfirmed.clear()
            self._numbers.clear()  # another room counts anew
        self._welcomed = True
        if self._udp and self.wire.client is not None:
            self.side = Side(self._server, self, self.wire.client)
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
        if self.count > PEOPLE_LISTED:
            self.people.clear()
