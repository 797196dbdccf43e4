"""The wires between a player and its room, with what a transport does at the server's end of them. In memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ..conditions import Path
from ..outbox import Pack
from ..protocol import (
    CLASSIC,
    V1_DIALECT,
    AnyMessage,
    Binary,
    Dialect,
    Hello,
    ProtocolError,
    SessionError,
    decode_hello,
    unpack_binary,
)
from ..room import Client
from ..trust import Route
from .loop import VirtualLoop
from .server import MemoryServer

__tracebackhide__ = True

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


# --- links ------------------------------------------------------------------------------------------------------------


class Page(Protocol):
    """What a link knows of the player at its other end."""

    up: Path  # to the server
    down: Path
    address: str
    client: Client | None  # the seat, as the server has it
    error: SessionError | None  # why there is none

    def take(self, data: Any) -> None:
        """Bytes of a write, or code and reason of the close."""

    def take_datagram(self, frame: str | bytes) -> None: ...


class Pipe:
    """One direction of a connection: what goes in comes out later, in order, or never."""

    def __init__(self, loop: VirtualLoop, path: Path, deliver: Callable[[Any], None]) -> None:
        self.cut = False
        self.stalled = False  # nobody reads at its end
        self._loop = loop
        self._path = path
        self._deliver = deliver
        self._inside: deque[tuple[float, Any, int]] = deque()  # when it may come out, what, bytes
        self._latest = 0.0

    @property
    def unsent(self) -> int:
        """Bytes that did not come out at once."""
        return sum(size for due, _, size in self._inside if self.stalled or due > self._loop.now)

    def put(self, item: Any, size: int) -> None:
        if self.cut:
            return
        due = self._latest = max(self._latest, self._path.reliable(size, self._loop.now))
        self._inside.append((due, item, size))
        self._loop.call_at(due, self._move)  # never within the call that wrote it

    def release(self) -> None:
        """Somebody reads again."""
        self.stalled = False
        for due, _, _ in self._inside:
            self._loop.call_at(due, self._move)

    def drop(self) -> None:
        self.cut = True
        self._inside.clear()

    def _move(self) -> None:
        """One item, so that what several pipes carry at one instant arrives in the order in which it was sent."""
        if self._inside and not self.stalled and self._inside[0][0] <= self._loop.now:
            self._deliver(self._inside.popleft()[1])


class Wire:
    """A `Link` for everything, as a WebSocket is one, and the transport's part behind it: frames to messages, faults to
    closes."""

    kind = "memory"
    local = ""
    rtt: float | None = None

    def __init__(self, server: MemoryServer, page: Page, slug: str, dialect: Dialect, pack: Pack, address: str) -> None:
        self.dialect = dialect
        self.address = address
        self.pack = pack
        self.client: Client | None = None
        self.closed: tuple[int, str] | None = None  # by the server
        self.down = Pipe(server.loop, page.down, page.take)
        self.up = Pipe(server.loop, page.up, self._take)
        self._server, self._page, self._slug = server, page, slug

    # towards the room, as a Link

    def write(self, data: bytes) -> None:
        assert self.closed is None, "written after the close"
        assert data, "an empty write"
        self.down.put(data, len(data))

    def close(self, code: int, reason: str) -> None:
        if self.closed is None:
            self.closed, self.client = (code, reason), None
            self.down.put((code, reason), 0)

    # what a transport does

    def open(self, hello: Hello) -> None:
        self._server.rooms.join(self._slug, self, hello, self._server.now, self._joined)

    def _joined(self, client: Client | None, error: SessionError | None) -> None:
        if client is None:
            assert error is not None
            self._page.error = error
            if not self.down.cut:
                self.close(error.code, str(error))
        elif self.closed is None and self.down.cut:  # gone while on_auth thought about it
            client.core.drop(client, self, clean=False)
        elif self.closed is None:
            self.client = self._page.client = client

    def _take(self, item: Any) -> None:
        """One frame of the client, or the end of its half."""
        now = self._server.now
        self._server.rooms.enter(now)
        client = self.client
        if isinstance(item, tuple):
            self.client = None
            if client is not None:
                client.core.drop(client, self, clean=True)
            return
        if client is not None:
            receive(client, item, self.dialect, self.pack is pack_raw, now)
        elif self.closed is None and self.pack is pack_v1:
            try:
                self.open(decode_hello(decoded(item, self.dialect)))
            except ProtocolError as error:
                self.close(error.code, str(error))

    def lost(self) -> None:
        """The connection ended without a word, and the server has noticed."""
        client, self.client = self.client, None
        self.up.drop()
        self.down.drop()
        if client is not None:
            self._server.rooms.enter(self._server.now)
            client.core.drop(client, self, clean=False)


class Side:
    """A `SideLink` for what may be lost, as a data channel is one: each message is a datagram. It is trusted always, so
    nothing that the network loses comes by the wire."""

    kind = "datachannel"
    dialect: Dialect = V1_DIALECT
    pack = staticmethod(pack_v1)
    local = ""
    rtt: float | None = None
    route = Route.UNRELIABLE

    def __init__(self, server: MemoryServer, page: Page, client: Client) -> None:
        self.address = page.address
        self.dead = False  # nothing gets through, but the server does not know
        self._server, self._page, self._client = server, page, client
        server.rooms.enter(server.now)
        client.core.outbox.attach(client, self)

    @property
    def live(self) -> bool:
        """It ends with the wire."""
        return not self.dead and self._client._side_link is self

    def write(self, data: bytes) -> None:
        for frame in frames(data):
            self._send(self._page.down, frame, self._page.take_datagram)

    def send(self, frame: str | bytes) -> None:
        """From the player."""
        self._send(self._page.up, frame, self._take)

    def _send(self, path: Path, frame: str | bytes, take: Callable[[str | bytes], None]) -> None:
        for due in path.datagram(size_of(frame), self._server.now):
            self._server.loop.call_at(due, self._arrive, take, frame)

    def _arrive(self, take: Callable[[str | bytes], None], frame: str | bytes) -> None:
        if self.live:
            take(frame)

    def _take(self, frame: str | bytes) -> None:
        receive(self._client, frame, V1_DIALECT, False, self._server.now)

    def close(self, code: int, reason: str) -> None:
        """Of the room: nothing comes any more, as it is not `live`."""


def receive(client: Client, frame: str | bytes, dialect: Dialect, raw: bool, now: float) -> None:
    """What a transport does with a frame of somebody who has a seat."""
    inbox = client.core.inbox
    try:
        if raw:
            inbox.receive_raw(client, frame, size_of(frame), now)
        else:
            inbox.receive(client, decoded(frame, dialect), size_of(frame), now)
    except ProtocolError as error:
        inbox.complain(client, "malformed", str(error))


def decoded(frame: str | bytes, dialect: Dialect) -> AnyMessage:
    """Raises ProtocolError."""
    if isinstance(frame, str):
        return dialect.decode(frame)
    return unpack_binary(frame) if dialect is V1_DIALECT else dialect.decode(frame.decode())


def size_of(frame: str | bytes) -> int:
    """In bytes."""
    return len(frame.encode() if isinstance(frame, str) else frame)
