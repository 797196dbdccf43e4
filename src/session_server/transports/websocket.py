"""TCP bytes ↔ room messages, by RFC 6455.

The common frames (a complete text or binary message, a pong) are read by a few lines of our own, the fast lane. The
handshake and every other frame go to `websockets`, whose object lives only as long as it is needed: an idle connection
holds none (docs/decisions/0003).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from websockets.speedups import apply_mask

from ..clock import Rota
from ..config import Config
from ..limits import Tally, client_address, network
from ..protocol import (
    CLASSIC,
    V1_DIALECT,
    AnyMessage,
    Binary,
    ClassicMessage,
    Close,
    Dialect,
    Hello,
    LimitExceeded,
    ProtocolError,
    SessionError,
    decode_hello,
    encode_json,
    origin_allowed,
    slug_from_target,
    unpack_binary,
)
from ..rfc6455 import (
    BINARY,
    CLOSE,
    HEADERS,
    PING,
    PONG,
    TEXT,
    Opening,
    RareFrames,
    frame,
    frame_size,
    read_any,
    read_usual,
    refusal,
)
from ..room import Client, RoomCore
from ..rooms import Rooms
from ..stream import Write

HIGH_WATER: Final = 256 * 1024  # bytes unsent, above which what may be lost is shed
LOW_WATER: Final = 64 * 1024  # bytes unsent, below which it is sent again
MAX_UNSENT: Final = 1024 * 1024  # bytes unsent, above which a client is a slow consumer (or twice the largest message)
PING_EVERY: Final = 15.0  # seconds; no byte until the next one and the link is dead
FIRST_PING: Final = 3.0  # seconds after which a round trip is measured for the first time, the rush of a start over
JOIN_WITHIN: Final = 10.0  # seconds for `session:join`
CLOSE_WITHIN: Final = 5.0  # seconds for the peer's half of the closing handshake
FRAMES_AT_ONCE: Final = 250  # frames of one connection, then others have their turn
RARE_COST: Final = 8  # of a frame that goes to the library, in common ones
BREATH: Final = 0.1  # seconds in which nothing is read of a client that was over its rate
CHEAP: Final = 1024  # bytes; a rare frame smaller than that costs its sender as much as a message
EXCESS: Final = 64 * 1024  # bytes read from a peer after our close frame, in the hope of its own
UNLIMITED: Final = 1 << 62  # bytes
NON_MESSAGES: Final = 10  # of them and the peer is closed with 1003

FAST: Final = frozenset({TEXT, BINARY, PING, PONG})
PING_FRAME: Final = b"\x89\x00"
SHORT: Final = HEADERS[TEXT]  # header of a text frame by its length, below 126


def pack_classic(message: AnyMessage) -> bytes | None:
    # Most are another classic client's, and short: their way is written out, since every message passes here.
    payload = encode_json(message) if message.__class__ is ClassicMessage else CLASSIC.encode(message)
    if payload is None:
        return None
    return SHORT[len(payload)] + payload if len(payload) < 126 else frame(TEXT, payload)


def pack_v1(message: AnyMessage) -> bytes:
    return frame(BINARY if isinstance(message, Binary) else TEXT, V1_DIALECT.encode(message))


def pack_raw(data: str | bytes) -> bytes:
    return frame(TEXT, data.encode()) if isinstance(data, str) else frame(BINARY, data)


PACK: Final[dict[Dialect, Callable[[Any], bytes | None]]] = {CLASSIC: pack_classic, V1_DIALECT: pack_v1}


class Turned(Exception):
    """Not let in: an HTTP status and a line for whoever asked."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


class WebSockets:
    """All WebSocket connections of a server: how many there may be, and which have been silent for too long."""

    def __init__(
        self, config: Config, rooms: Rooms, clock: Callable[[], float], log: Any, draining: Callable[[], bool]
    ) -> None:
        self.rooms = rooms
        self.clock = clock
        self.log = log
        self.connections: set[Connection] = set()
        self.joining: Rota[Connection] = Rota(JOIN_WITHIN)
        self.closing: Rota[Connection] = Rota(CLOSE_WITHIN)
        self._first_pings: Rota[Connection] = Rota(FIRST_PING)
        self._pings: Rota[Connection] = Rota(PING_EVERY)
        self._per_address = Tally(config.connections_per_address)
        self._max_clients = config.max_clients
        self._draining = draining
        self._origins, self._own_hosts = config.origins(), config.own_hosts()
        self._proxies = config.proxies()
        self._gone = asyncio.Event()  # set when the last connection has ended

    def upgrade(self, transport: asyncio.Transport, head: bytes, rest: bytes) -> None:
        """A request head that asks for a WebSocket: answered with 101, or with a status and a line of text."""
        opening = read_usual(head) or read_any(head)
        if opening.status != 101:
            self._turn_away(transport, opening)
            return
        try:
            slug, address = self._judge(opening, transport)
        except Turned as turned:
            self._turn_away(transport, refusal(turned.status, str(turned)))
            return
        dialect = V1_DIALECT if opening.subprotocol else CLASSIC
        connection = Connection(self, transport, slug, dialect, address, opening.answer)
        self.connections.add(connection)
        self._first_pings.add(connection, self.clock())
        transport.set_protocol(connection)
        connection.open(rest)

    def _judge(self, opening: Opening, transport: asyncio.Transport) -> tuple[str, str]:
        """The slug and the client's address. Raises Turned."""
        try:
            slug = slug_from_target(opening.target)
        except ValueError as error:
            raise Turned(400, str(error)) from None
        if slug is None:
            raise Turned(404, "no room here, expected /session/{slug}")
        if not origin_allowed(opening.origin, (opening.host, *self._own_hosts), self._origins):
            raise Turned(403, "this origin may not join")
        if self._draining():
            raise Turned(503, "the server is restarting")
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if isinstance(peer, tuple) else "unix"
        if opening.forwarded:
            address = client_address(address, opening.forwarded, self._proxies)
        try:
            self._admit(slug, address)
        except LimitExceeded as error:
            raise Turned(error.status, str(error)) from None
        return slug, address

    def _turn_away(self, transport: asyncio.Transport, opening: Opening) -> None:
        self.rooms.totals.refused[f"upgrade_{opening.status}"] += 1
        transport.write(opening.answer)
        transport.close()

    def _admit(self, slug: str, address: str) -> None:
        """May this address open one more WebSocket? Raises LimitExceeded."""
        refused = self.rooms.totals.refused
        if self._max_clients and len(self.connections) >= self._max_clients:
            refused["max_clients"] += 1
            raise LimitExceeded("max_clients", 503, f"{len(self.connections)} clients are connected, no more are taken")
        if not self._per_address.take(network(address)):
            refused["connections_per_address"] += 1
            raise LimitExceeded("connections_per_address", 429, "too many connections from this address")
        try:
            self.rooms.admit(slug, address, self.clock())
        except LimitExceeded:
            self._per_address.give_back(network(address))
            raise

    def enter(self) -> float:
        """Tells the rooms what time it is."""
        now = self.clock()
        self.rooms.enter(now)
        return now

    def forget(self, connection: Connection) -> None:
        if connection in self.connections:
            self.connections.remove(connection)
            self._per_address.give_back(network(connection.address))
            for rota in (self.joining, self.closing, self._first_pings, self._pings):
                rota.discard(connection)
            if not self.connections:
                self._gone.set()

    def sweep(self, now: float) -> None:
        """Once a second: who is late?"""
        refused = self.rooms.totals.refused
        for connection in self.joining.due(now):
            refused["join_timeout"] += 1
            connection.close(Close.POLICY, f"no session:join within {JOIN_WITHIN:g} s")
        for connection in self.closing.due(now):
            connection.abort()
        for connection in (*self._first_pings.due(now), *self._pings.due(now)):
            if connection.ping(now):
                self._pings.add(connection, now)
            else:
                refused["silent"] += 1
                connection.abort()

    async def drain(self, code: int, reason: str, seconds: float) -> None:
        """Closes all, in slices over at most `seconds`, so that they do not all come back in the same instant."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        waiting = list(self.connections)
        slices = max(1, int(seconds * 0.7 / 0.1))
        size = max(100, -(-len(waiting) // slices))
        while waiting and loop.time() < deadline:
            for connection in waiting[:size]:
                connection.expel(code, reason)
            del waiting[:size]
            await asyncio.sleep(0.1 if waiting else 0)
        self._gone.clear()
        if self.connections:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), deadline - loop.time())
        for connection in tuple(self.connections):
            connection.abort()


class Connection(asyncio.Protocol):
    """One WebSocket: a `room.Link` once its client has joined."""

    __slots__ = (
        "_alive", "_answer", "_buffer", "_closed", "_decode", "_excess", "_limit", "_most_unsent", "_need",
        "_non_messages", "_partial", "_ping_at", "_rare", "_server", "_slug", "_transport", "_turn", "_waits",
        "address", "client", "core", "dialect", "kind", "pack", "rtt", "write",
    )  # fmt: skip

    def __init__(
        self, server: WebSockets, transport: asyncio.Transport, slug: str, dialect: Dialect, address: str, answer: bytes
    ) -> None:
        self.kind = "websocket"
        self.dialect = dialect
        self.address = address
        self.rtt: float | None = None  # seconds
        self.pack = PACK[dialect]
        self._decode = dialect.decode
        self.write: Write = self._write_first
        self._answer = answer  # our 101
        self.client: Client | None = None
        self.core: RoomCore | None = None
        self._server = server
        self._transport = transport
        self._slug = slug
        self._limit = self._most_unsent = 0  # bytes
        self._buffer: bytearray | None = None  # an incomplete frame
        self._need = 0  # bytes it must have before another look at it is worth while
        self._rare: RareFrames | None = None
        self._waits = False  # for the outcome of a join
        self._turn = 0  # frames that may still be taken before others have their turn
        self._closed = False  # our close frame was sent, or the socket is gone
        self._excess = EXCESS
        self._partial: object = None  # what was incomplete at the last ping
        self._alive = True
        self._ping_at: float | None = None
        self._non_messages = 0

    @property
    def local(self) -> str:
        name = self._transport.get_extra_info("sockname")
        return str(name[0]) if isinstance(name, tuple) else ""

    def open(self, rest: bytes) -> None:
        """Classic clients and raw rooms join at once, a session.v1 client by its first message."""
        self._transport.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)
        try:
            room_class = self._server.rooms.class_of(self._slug)
        except SessionError as error:
            self._server.rooms.totals.refused["piece"] += 1
            self._limit = UNLIMITED  # there is no room to say one, and the client's close frame is still to be read
            self.close(error.code, "the code of this piece cannot be used")
            return
        size = room_class.max_message or self._server.rooms.config.message_size
        self._limit = size or UNLIMITED
        self._most_unsent = max(MAX_UNSENT, 2 * size)
        if room_class.raw:
            self.pack, self.dialect = pack_raw, CLASSIC
        if self.dialect is CLASSIC:
            self._join(Hello())
            if self._answer and (room_class.raw or self._waits):  # no greeting follows, or not yet
                self._write_first(b"")
        else:
            self._write_first(b"")
            self._server.joining.add(self, self._server.clock())
        if rest and not self._closed:
            self.data_received(rest)

    # --- bytes in -----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._alive = True
        if self._closed:
            self._excess -= len(data)
            if self._excess < 0:  # it was told to stop and goes on
                self.abort()
                return
        if self._buffer is not None:
            self._buffer += data
            if len(self._buffer) < self._need:
                return
            data, self._buffer = bytes(self._buffer), None
        try:
            if self._read_one(data):
                self._breathe()
            else:
                self._read(data)
        except Exception:  # a fault of ours: loud, and ends no more than this connection
            self._server.log.exception("fault in the server", room=self._slug)
            self._server.rooms.totals.faults += 1
            self.expel(Close.FAILED, "the server failed")

    def _read_one(self, data: bytes) -> bool:
        """Nearly every read brings one short text frame, whole: no need to look for borders. False: it is another."""
        size = len(data) - 6
        if (
            not 0 <= size <= self._limit
            or size > 125
            or data[0] != TEXT
            or data[1] != size + 128
            or self.core is None
            or self._rare is not None
        ):
            return False
        self._take(TEXT, apply_mask(data[6:], data[2:6]))
        return True

    def _read(self, data: bytes) -> None:
        """Takes what is there, but not so much that others wait long."""
        at, self._turn = 0, FRAMES_AT_ONCE
        while at < len(data):
            if self._closed and self._turn <= 0:  # it was told to stop; the rest of this is not worth reading
                return
            if self._waits or self._turn <= 0:  # on_auth has not spoken yet; others have a turn
                self._keep(data[at:], 0)
                break
            at = self._read_fast(data, at) if self._rare is None else self._read_rare(data, at)
        if not self._breathe() and self._turn <= 0 and not self._waits and not self._closed:
            self._hold(0.0)

    def _breathe(self) -> bool:
        """Of who is over its rate, nothing is read for a while."""
        if self.client is None or not self.client.was_refused:
            return False
        self.client.was_refused = False
        self._hold(BREATH)
        return True

    def _hold(self, seconds: float) -> None:
        """Reads nothing for a while; what comes stays in the kernel, and its sender feels it."""
        self._transport.pause_reading()
        self._server.rooms.timers.at(self._server.clock() + seconds, lambda now: self._go_on())

    def _go_on(self) -> None:
        if self._waits or self._transport.is_closing() or self._transport.is_reading():
            return
        self._transport.resume_reading()
        data, self._buffer, self._need = bytes(self._buffer or b""), None, 0
        self.data_received(data)

    def _read_fast(self, data: bytes, at: int) -> int:
        """Takes common frames from a border on; returns where a rare one begins, or the end.

        Client frames are masked: 2 bytes of header (4 from 126 bytes on), 4 of mask, the payload (RFC 6455 §5.2).
        """
        end = len(data)
        while at < end and not self._waits and not self._closed:
            second = data[at + 1] if end - at > 1 else 0x80
            if second < 0xFE:
                size, body = second - 0x80, at + 6
            elif second == 0xFE and end - at >= 4:
                size, body = data[at + 2] << 8 | data[at + 3], at + 8
            else:
                size, body = 126 if second == 0xFE else -1, at + 8
            most = self._limit if data[at] <= BINARY else 125  # control frames are short (§5.5)
            if data[at] not in FAST or not 0 <= size <= most or (size < 126) is (body == at + 8):
                self._rare = RareFrames(self._limit)
                return at
            stop = body + size
            if stop > end:
                self._keep(data[at:], stop - at if end - at > 3 else end - at + 1)
                return end
            self._take(data[at], apply_mask(data[body:stop], data[body - 4 : body]))
            at = stop
            self._turn -= 1
            if self._turn <= 0:
                break
        return at

    def _keep(self, data: bytes, need: int) -> None:
        """An incomplete frame waits until it has `need` bytes."""
        self._buffer = bytearray(data)
        self._need = need

    def _read_rare(self, data: bytes, at: int) -> int:
        """Gives one frame, or the part of it that is there, to the library; returns where the next begins, or the end.

        Back to the fast lane at the first border at which no fragmented message is open.
        """
        rare = self._rare
        assert rare is not None
        if rare.left == 0:
            if data[at] == CLOSE and not self._closed:  # may interrupt a message (§5.4); the library says 1002 to that
                rare = self._rare = RareFrames(self._limit)
            try:
                size = frame_size(data[at : at + 14])
            except ProtocolError as error:
                self._refuse(error.code, str(error))
                return len(data)
            if size is None:
                self._keep(data[at:], len(data) - at + 1)
                return len(data)
            rare.left = size
            if size < CHEAP and data[at] not in (TEXT, BINARY) and self.core is not None and self.client is not None:
                # small fragments and control frames add up
                self.core.inbox.admits(self.client, size, self._server.clock())
        self._turn -= RARE_COST
        chunk = data[at : at + rare.left]
        for first, payload in rare.feed(chunk):
            if not self._closed:
                self._take(first, payload)
        self._after_rare(rare)
        if rare.left == 0 and rare.done and not self._closed:
            self._rare = None
        return at + len(chunk)

    def _after_rare(self, rare: RareFrames) -> None:
        """Sends what the library answers, and sees whether the connection ended by it."""
        was_closed = self._closed
        if not rare.open and self.core is not None:
            self.core.outbox.flush(self._server.enter())  # what the room sent before stands before the close
        for data in rare.protocol.data_to_send():
            if data and not was_closed:  # afterwards it could only be pongs
                self.write(data)
        if rare.open:
            return
        if not self._closed:  # the peer closed, or broke the protocol
            if rare.protocol.close_rcvd is None and rare.protocol.close_sent is not None:
                self._server.rooms.totals.refused[f"closed_{rare.protocol.close_sent.code}"] += 1
            self._closed = True
            self._server.closing.add(self, self._server.enter())
            self._drop(clean=True)
        if rare.protocol.close_rcvd is not None:  # both halves are done: the server ends the TCP connection (§7.1.1)
            self._transport.close()

    # --- messages -----------------------------------------------------------------------------------------------------

    def _take(self, first: int, payload: bytes) -> None:
        """One complete message, ping or pong."""
        client, core = self.client, self.core
        try:
            if first > BINARY:
                self._take_control(first, payload)
            elif core is None or client is None:
                self._take_hello(first, payload)
            elif self.pack is not pack_raw:
                item = self._decode(payload.decode()) if first == TEXT else self._decode_binary(payload)
                core.inbox.receive(client, item, len(payload), self._server.clock())
            else:
                data = payload.decode() if first == TEXT else payload
                core.inbox.receive_raw(client, data, len(payload), self._server.clock())
        except ProtocolError as error:
            self._not_a_message(error)
        except UnicodeDecodeError:  # unchecked, it would make all others close
            self._refuse(Close.BAD_TEXT, "text is not UTF-8")

    def _take_control(self, first: int, payload: bytes) -> None:
        """A ping is answered, a pong noted; both count against the rate, but for the pong that we asked for."""
        if first == PONG and self._ping_at is not None:
            self.rtt, self._ping_at = self._server.clock() - self._ping_at, None
            return
        core, client = self.core, self.client
        if core is None or client is None:
            self._not_a_message(ProtocolError(Close.NOT_MESSAGES, "ping or pong before session:join"))
        elif core.inbox.admits(client, len(payload), self._server.clock()) and first == PING:
            self.write(frame(PONG, payload))

    def _decode_binary(self, payload: bytes) -> AnyMessage:
        """Raises ProtocolError."""
        if self.dialect is V1_DIALECT:
            return unpack_binary(payload)
        try:
            return self._decode(payload.decode())  # classic reads binary as text (wire.md §4.1)
        except UnicodeDecodeError as error:
            raise ProtocolError(Close.NOT_MESSAGES, f"not a message: {error}") from None

    def _take_hello(self, first: int, payload: bytes) -> None:
        try:
            hello = decode_hello(self._decode(payload.decode()) if first == TEXT else self._decode_binary(payload))
        except ProtocolError as error:
            self._refuse(Close.POLICY, str(error))
            return
        self._server.joining.discard(self)
        self._join(hello)

    def _join(self, hello: Hello) -> None:
        self._waits = True
        self._server.rooms.join(self._slug, self, hello, self._server.clock(), self._joined)
        if self._waits:
            self._transport.pause_reading()  # an async on_auth: what comes meanwhile stays in the kernel

    def _joined(self, client: Client | None, error: SessionError | None) -> None:
        """The outcome of a join."""
        self._waits = False
        if client is None:
            if not self._closed and error is not None:
                self.close(error.code, str(error))
            return
        if self._closed:  # gone while on_auth thought about it
            client.core.drop(client, self, clean=False)
            return
        self.client, self.core = client, client.core
        self._go_on()

    def _not_a_message(self, error: ProtocolError) -> None:
        self._server.rooms.totals.refused["non_message"] += 1
        self._non_messages += 1
        if self._non_messages >= NON_MESSAGES:
            self._refuse(Close.NOT_MESSAGES, f"{NON_MESSAGES} non-messages, the last: {error}")
        elif self.core is not None and self.client is not None:
            self.core.inbox.complain(self.client, "malformed", str(error))

    # --- the end ------------------------------------------------------------------------------------------------------

    def _refuse(self, code: int, reason: str) -> None:
        """The peer's fault: counted, closed, and its seat is given up."""
        self._server.rooms.totals.refused[f"closed_{code}"] += 1
        self.expel(code, reason)

    def expel(self, code: int, reason: str) -> None:
        """Closes, and gives the seat up."""
        if self.core is not None and self.client is not None and not self._closed:
            self._server.enter()
            self.core.expel(self.client, code, reason)
        self.close(code, reason)

    def close(self, code: int, reason: str) -> None:
        """Sends a close frame and waits a little for the peer's. The room is not told."""
        if self._closed:
            return
        self._closed = True
        self.client = self.core = None
        rare = self._rare = self._rare or RareFrames(self._limit)
        if rare.open:  # else the library has said goodbye already
            # RFC 6455 §5.5: a control frame carries at most 125 bytes, two of them the code
            rare.protocol.send_close(code, reason.encode(errors="replace")[:120].decode(errors="ignore"))
            for data in rare.protocol.data_to_send():
                self.write(data)
        self._server.closing.add(self, self._server.clock())
        if not self._transport.is_reading():
            self._transport.resume_reading()

    def reroute(self, way: Callable[[asyncio.Transport], asyncio.Transport]) -> None:
        """All that is read and written takes another way from now on: a bad network, in development."""
        self._transport = way(self._transport)
        if self.write not in (self._write_first, self._write_behind):
            self.write = self._transport.write

    def abort(self) -> None:
        """Ends the TCP connection without another word; `connection_lost` follows."""
        self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._closed = True
        self._drop(clean=False)
        self._server.forget(self)

    def _drop(self, clean: bool) -> None:
        client, core = self.client, self.core
        self.client = self.core = None
        if client is not None and core is not None:
            self._server.enter()
            core.drop(client, self, clean)

    def ping(self, now: float) -> bool:
        """False if no byte came since the last one, or the same message has been arriving ever since: cut."""
        partial = self._buffer if self._rare is None else self._rare
        if not self._alive or (partial is not None and partial is self._partial):
            return False
        self._alive, self._partial = False, partial
        if not self._closed:
            self._ping_at = now
            self.write(PING_FRAME)
        return True

    def _write_first(self, data: bytes) -> None:
        """The 101 leaves with the first message: a system call less per connection, and that is a third of it."""
        self.write = self._transport.write
        self._transport.write(self._answer + data)
        self._answer = b""
        if self.core is not None and self.client is not None:
            self.core.outbox.rewire(self.client)

    # --- back-pressure ------------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """More than HIGH_WATER is unsent: from now on each write is looked at, and what may be lost is shed."""
        self.write = self._write_behind
        if self.core is not None and self.client is not None:
            self.core.outbox.congested(self.client, True)
        self._check_unsent()

    def resume_writing(self) -> None:
        self.write = self._transport.write
        if self.core is not None and self.client is not None:
            self.core.outbox.congested(self.client, False)

    def _write_behind(self, data: bytes) -> None:
        self._transport.write(data)
        self._check_unsent()

    def _check_unsent(self) -> None:
        unsent = self._transport.get_write_buffer_size()
        if unsent > self._most_unsent and not self._closed:
            self._server.rooms.totals.refused["slow_consumer"] += 1
            self._drop(clean=False)  # it may come back for its seat
            self.close(Close.FULL, f"slow consumer: {unsent} bytes unsent")
