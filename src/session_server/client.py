"""Join a room from Python: `async with session(url) as room`. One background task per room, which survives any number
of links; no thread, no global state.

From the bottom up: Ledger, Inbox, People and Clock (no I/O), WebSocketLink (one wire), and Room, which holds them
together. What travels is described in docs/reference/wire.md, how to use it in docs/how-to/python-client.md.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from ssl import SSLCertVerificationError, SSLContext
from types import TracebackType
from typing import Annotated, Any, Final, Literal, TypeVar, overload
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import msgspec
from msgspec import UNSET, DecodeError, Meta, Struct, UnsetType, ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from .protocol import (
    MAX_DATA,
    MAX_NAME,
    SUBPROTOCOL,
    Binary,
    Close,
    ProtocolError,
    check_type,
    encode_json,
    pack_binary,
    unpack_binary,
)

__all__ = [
    "AskRefused",
    "Link",
    "Message",
    "Person",
    "Room",
    "SendQueueFull",
    "SessionClosed",
    "full_jitter",
    "session",
]

OWN: Final = "session:"  # types of the library; never a peer's
EVENTS: Final = frozenset({"session:presence", "session:drop", "session:resume", "session:close", "session:error"})

KEPT_MESSAGES = 256  # reliable messages that the server may not have
KEPT_BYTES = 1024 * 1024
INBOX_MESSAGES = 1024  # messages that `async for` has not taken yet
INBOX_BYTES = 1024 * 1024
UNSENT_UNRELIABLE = 64  # messages; the newest win
MAX_HANDLING = 1024  # async handlers under way, above which nothing more is read
MAX_FRAME = 16 * 1024 * 1024  # bytes; a welcome names up to 200 people with 4 KiB of data each

HEARTBEAT = 5.0  # seconds between two pings
MISSED = 2  # heartbeats without a byte in return, after which a link is dead
PING_AGAIN = 1.0  # seconds; a ping is not answered while one is over the server's rate
COVER_TIMEOUT = 10.0  # seconds that a send waits for the server to say what it has
CLOSE_TIMEOUT = 2.0  # seconds for the server to close after `session:leave`, and for handlers of `session:close`
RETRY_FIRST = 0.25  # seconds, the upper end of the first delay
RETRY_MOST = 10.0  # seconds, the upper end of the later ones
BACKED_OFF = 2  # doublings before the first delay after 1013
SETTLED = 10.0  # seconds a link must have lived for the delays to begin anew
SLICE_MESSAGES = 60  # a backlog is sent in slices, at 120 messages/s: the server's default rate
SLICE_BYTES = 64 * 1024
SLICE_EVERY = 0.5  # seconds
LISTED = 200  # people; the server lists no more, it only counts them
SAMPLES = 8  # of the clock: 40 s of heartbeats
DRIFT = 1.0  # seconds; two samples that differ by more were not of the same clock

CERTIFICATE = 1015  # RFC 6455 §7.4.1: never on the wire
# After any other code the server has made up its mind (wire.md, Close codes). 1005, 1006 and 1014 are not sent by it:
# they are what we or a proxy say of a connection that just ended.
COMES_BACK: Final = frozenset({1001, 1005, 1006, 1012, 1013, 1014})
STATUS_COMES_BACK: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

log = logging.getLogger("session_server.client")

Frame = str | bytes  # of text; binary
Token = str | Callable[[], str | None | Awaitable[str | None]]
Count = Annotated[int, Meta(ge=0)]


# --- errors -----------------------------------------------------------------------------------------------------------


class SessionClosed(ConnectionError):
    """The room is over for this client. `code` is a close code (wire.md), or the HTTP status of an earlier refusal."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason or 'no reason given'} ({code})")
        self.code = code
        self.reason = reason

    @property
    def comes_back(self) -> bool:
        """Whether it is worth to connect again."""
        return self.code in (COMES_BACK if self.code >= 1000 else STATUS_COMES_BACK)


class SendQueueFull(ConnectionError):
    """Too many reliable messages wait for the connection."""


class AskRefused(Exception):
    """The room did not answer. `code` is one of those of `session:error` (wire.md), or `lost` if the seat was."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{reason or 'no reason given'} ({code})")
        self.code = code
        self.reason = reason


# --- values -----------------------------------------------------------------------------------------------------------


class Message(Struct, frozen=True):
    """One message of the room: `content` is JSON or bytes, `id` the sender's (0: the server), `reliable` as sent."""

    type: str
    content: Any = None
    id: int = 0
    reliable: bool = True


class Person(Struct, frozen=True):
    """One person; several clients (`ids`, the lowest is `id`) if they share a verified `user`. `user` and `handle` are
    verified or None, `name` and `data` what this one says of itself; `away` while the connection is lost."""

    id: int
    ids: tuple[int, ...] = ()
    user: str | None = None
    handle: str | None = None
    name: str | None = None
    data: Any = None
    away: bool = False


class Link(Struct, frozen=True):
    """A live wire. `rtt` in seconds, None until measured."""

    kind: str
    rtt: float | None = None


Handler = Callable[[Any, Message], Any]
HandlerT = TypeVar("HandlerT", bound=Handler)


# --- what the server says ---------------------------------------------------------------------------------------------


class Envelope(Struct):
    type: str
    content: Any = None
    id: int = 0
    reliable: bool = True


class Welcome(Struct):
    id: Annotated[int, Meta(ge=1)]
    room: str
    presence: list[Person] = []
    count: Count | None = None
    host: int | None = None
    resume: str | None = None
    epoch: Any = None
    seq: Count = 0
    time: float = 0.0
    received: Count = 0
    recovered: bool = False


class PresenceDiff(Struct):
    joins: list[Person] = []
    leaves: list[int] = []
    updates: list[Person] = []
    count: Count | None = None
    host: int | None | UnsetType = UNSET


class Problem(Struct):
    code: str
    reason: str = ""
    type: str | None = None


class Reply(Struct):
    ask: int
    content: Any = None
    error: Problem | None = None


class Pong(Struct):
    t: float
    time: float
    received: Count


CONTROLS: Final[dict[str, Any]] = {
    "session:welcome": Welcome,
    "session:presence": PresenceDiff,
    "session:reply": Reply,
    "session:error": Problem,
    "session:pong": Pong,
}
decode_envelope: Final = msgspec.json.Decoder(Envelope).decode


def read_frame(frame: Frame) -> Message | None:
    """None for what is no message: a bad one is passed over, whoever is to blame."""
    try:
        if isinstance(frame, str):
            envelope = decode_envelope(frame)
            return Message(envelope.type, envelope.content, envelope.id, envelope.reliable)
        found = unpack_binary(frame)
    except (DecodeError, RecursionError, ProtocolError) as error:
        log.debug("not a message: %s", error)
        return None
    # The library's own types travel as text only.
    return (
        None
        if found.type.startswith(OWN)
        else Message(found.type, found.content, found.id, found.reliable is not False)
    )


def read_control(message: Message) -> Any:
    """The content of a `session:*` message; None for what we do not know or cannot read."""
    shape = CONTROLS.get(message.type)
    if shape is None or message.id != 0:
        return None
    try:
        return msgspec.convert(message.content, shape)
    except ValidationError as error:
        log.debug("content of %r: %s", message.type, error)
        return None


def text_frame(type: str, content: Any = None, **more: Any) -> str:
    """Raises TypeError if `content` is not JSON, ValueError if it is too deep or not Unicode."""
    envelope = {"type": type, **more} if content is None else {"type": type, "content": content, **more}
    try:
        return encode_json(envelope).decode()
    except TypeError as error:
        raise TypeError(f"content of {type!r} is neither bytes nor JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"content of {type!r} is nested too deeply") from None


def message_frame(type: str, content: Any, reliable: bool) -> Frame:
    if isinstance(content, bytes | bytearray | memoryview):
        return pack_binary(Binary(type, bytes(content), 0, UNSET if reliable else False))
    return text_frame(type, content) if reliable else text_frame(type, content, reliable=False)


def check_own_type(type: str) -> None:
    if not isinstance(type, str):
        raise TypeError(f"type is {type!r}, expected a string")
    check_type(type)
    if type.startswith(OWN):
        raise ValueError(f"type is {type!r}, expected none that begins with {OWN!r}")


def session_url(url: str) -> str:
    """http and https become ws and wss; what a path cannot hold is percent-encoded. Raises ValueError."""
    parts = urlsplit(url.strip())
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in {"ws", "wss"} or not parts.hostname:
        raise ValueError(f"url is {url!r}, expected https://host/session/slug (or http, ws, wss)")
    if parts.fragment:
        raise ValueError(f"url is {url!r}, expected none with a fragment: '#' in a slug is written %23")
    path = quote(re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", parts.path or "/"), safe="/%~:@!$&'()*+,;=")
    return urlunsplit((scheme, parts.netloc, path, parts.query, ""))


def full_jitter(attempt: int) -> float:
    """Seconds to wait before the attempt with this number, from 0. Those dropped together do not come back together."""
    return random.random() * min(RETRY_MOST, RETRY_FIRST * 2.0 ** min(attempt, 16))


# --- the parts --------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Kept:
    """One reliable message of ours, until the server is known to have it."""

    frame: Frame
    size: int  # bytes
    sent: bool = False  # on this seat's link
    withdrawn: bool = False  # nobody wants it any more


class Ledger:
    """What both sides of a seat count, so that after a drop neither has to guess (wire.md, Resume). No I/O.

    `received` counts the reliable messages that came. Ours have numbers from 1: the server has those up to `covered`,
    those up to `sent` were written; `_kept` begins with number `covered` + 1.
    """

    def __init__(self, messages: int = KEPT_MESSAGES, size: int = KEPT_BYTES) -> None:
        self.received = 0
        self.covered = 0
        self.sent = 0
        self._kept: deque[Kept] = deque()
        self._size = 0
        self._messages = messages
        self._bytes = size

    @property
    def uncovered(self) -> int:
        """Messages written, of which we do not know that the server has them."""
        return self.sent - self.covered

    @property
    def unsent(self) -> int:
        return len(self._kept) - self.uncovered

    @property
    def half_full(self) -> bool:
        """Time to ask the server how many it has, before there is no room for more."""
        return 2 * len(self._kept) > self._messages or 2 * self._size > self._bytes

    def __str__(self) -> str:
        return f"{len(self._kept)} messages ({self._size} bytes)"

    def full(self, size: int) -> bool:
        """Whether a message of `size` bytes has no room. One alone always has, whatever its size."""
        return bool(self._kept) and (len(self._kept) >= self._messages or self._size + size > self._bytes)

    def keep(self, frame: Frame, size: int) -> Kept:
        kept = Kept(frame, size)
        self._kept.append(kept)
        self._size += size
        return kept

    def next(self) -> Kept | None:
        """The next to be written; from now on the server may have it."""
        if not self.unsent:
            return None
        kept = self._kept[self.uncovered]
        kept.sent = True
        self.sent += 1
        return kept

    def cover(self, taken: int) -> None:
        """The server says that it took so many. A number that cannot be is passed over."""
        if taken <= self.sent:
            for _ in range(taken - self.covered):
                self._size -= self._kept.popleft().size
                self.covered += 1

    def withdraw(self, kept: Kept) -> None:
        """Never to be written, or written again. What was written keeps its number."""
        kept.withdrawn = True
        if not kept.sent and kept in self._kept:
            self._kept.remove(kept)
            self._size -= kept.size

    def could_be(self, taken: int, seq: int) -> bool:
        """Whether a server with these counts can be speaking of this seat."""
        return self.covered <= taken <= self.sent and self.received <= seq

    def resume(self, taken: int, seq: int) -> None:
        """The same seat on a new link: what the server did not take is to be written again."""
        self.cover(taken)
        self._begin([kept for kept in self._kept if not kept.withdrawn], taken, seq)

    def restart(self, taken: int, seq: int) -> None:
        """A new seat. What was written on the old one may have arrived and been acted on: written again it might arrive
        twice, which is worse than once lost, as `session:resume` tells of the loss."""
        self._begin([kept for kept in self._kept if not kept.sent], taken, seq)

    def _begin(self, waiting: list[Kept], taken: int, seq: int) -> None:
        for kept in waiting:
            kept.sent = False
        self._kept = deque(waiting)
        self._size = sum(kept.size for kept in waiting)
        self.covered = self.sent = taken
        self.received = seq


class Inbox:
    """Messages that `async for` has not taken yet. Sheds unreliable ones first, the oldest first."""

    def __init__(self, messages: int = INBOX_MESSAGES, size: int = INBOX_BYTES) -> None:
        self._queue: deque[tuple[Message, int]] = deque()
        self._size = 0
        self._unreliable = 0
        self._messages = messages
        self._bytes = size

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, message: Message, size: int, wait: bool) -> bool:
        """False if there is no room and, with `wait`, no reliable message may be shed: try again later."""
        while self._queue and (len(self._queue) >= self._messages or self._size + size > self._bytes):
            if self._unreliable:
                self._remove(next(i for i, (old, _) in enumerate(self._queue) if not old.reliable))
            elif not message.reliable:
                return True  # shed
            elif wait:
                return False
            else:
                self._remove(0)
        self._queue.append((message, size))
        self._size += size
        self._unreliable += not message.reliable
        return True

    def get(self) -> Message:
        message = self._queue[0][0]
        self._remove(0)
        return message

    def _remove(self, index: int) -> None:
        message, size = self._queue[index]
        del self._queue[index]
        self._size -= size
        self._unreliable -= not message.reliable


class People:
    """Who is in the room, as far as the server lists them."""

    def __init__(self) -> None:
        self._by_id: dict[int, Person] = {}
        self.count = 0

    def listed(self) -> list[Person]:
        return list(self._by_id.values())

    def replace(self, people: list[Person], count: int | None) -> dict[str, Any]:
        """The list of a welcome; returns what is different from before."""
        here = {person.id for person in people}
        return self.apply(people, [id for id in self._by_id if id not in here], count)

    def apply(self, people: list[Person], leaves: list[int], count: int | None) -> dict[str, Any]:
        """A diff; returns what of it is news."""
        known = self._by_id
        left = [id for id in leaves if known.pop(id, None) is not None]
        joins = [person for person in people if person.id not in known]
        updates = [person for person in people if person.id in known and known[person.id] != person]
        known.update((person.id, person) for person in people)
        self.count = len(known) if count is None else count
        if self.count > LISTED:  # from here on the list would only grow old
            known.clear()
        return {"joins": joins, "leaves": left, "updates": updates, "count": self.count}


class Clock:
    """The server's clock, estimated from its `time` in answers: the quickest of the last answers is the most exact."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES)  # rtt, offset: seconds
        self._shown = float("-inf")

    def add(self, server_time: float, rtt: float) -> None:
        offset = server_time + rtt / 2 - self._now()
        # Either the server is another one, or our own clock stood still while the computer slept.
        if self._samples and abs(offset - min(self._samples)[1]) > (rtt + min(self._samples)[0]) / 2 + DRIFT:
            self._samples.clear()
            self._shown = float("-inf")
        self._samples.append((rtt, offset))

    @property
    def time(self) -> float:
        """Seconds; goes backwards only if the room moved to a server with another clock."""
        offset = min(self._samples)[1] if self._samples else 0.0
        self._shown = max(self._shown, self._now() + offset)
        return self._shown


class Signal:
    """Wakes all who wait at that moment, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def notify(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)


class WebSocketLink:
    """One wire to the server. A data channel will be another class with the same names. All raise SessionClosed."""

    kind: Literal["websocket"] = "websocket"

    def __init__(self, connection: ClientConnection) -> None:
        self.rtt: float | None = None  # seconds
        self._connection = connection

    @classmethod
    async def open(cls, url: str, ssl: SSLContext | None) -> WebSocketLink:
        options: dict[str, Any] = {"ssl": ssl} if ssl is not None else {}
        try:
            connection = await connect(
                url,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                compression=None,  # the server has none
                open_timeout=None,  # the caller's
                ping_interval=None,  # ours carry counts and the clock
                close_timeout=CLOSE_TIMEOUT,
                max_size=MAX_FRAME,
                **options,
            )
        except InvalidStatus as error:
            text = (error.response.body or b"").decode(errors="replace")
            why = " ".join(text.split())[:200] or error.response.reason_phrase
            raise SessionClosed(error.response.status_code, f"{url} refuses: {why}") from None
        except SSLCertVerificationError as error:
            raise SessionClosed(
                CERTIFICATE, f"the certificate of {url} is not trusted: {error.verify_message}"
            ) from None
        except (OSError, EOFError, ValueError, WebSocketException) as error:  # ValueError: of a bad redirect
            raise SessionClosed(Close.ABNORMAL, f"{url} cannot be reached: {error}") from None
        link = cls(connection)
        if connection.subprotocol != SUBPROTOCOL:
            await link.abort()
            raise SessionClosed(Close.PROTOCOL, f"{url} is a WebSocket, but does not speak {SUBPROTOCOL}")
        return link

    async def send(self, frame: Frame) -> None:
        """Waits while the wire is congested."""
        try:
            await self._connection.send(frame)
        except ConnectionClosed as error:
            raise closed_by(error) from None

    async def receive(self) -> Frame:
        try:
            return await self._connection.recv()
        except ConnectionClosed as error:
            raise closed_by(error) from None

    async def abort(self) -> None:
        """Ends it without a close frame, which would give up the seat."""
        self._connection.transport.abort()
        await self._connection.wait_closed()


def closed_by(error: ConnectionClosed) -> SessionClosed:
    close = error.rcvd or error.sent  # ours, where we found something wrong
    if close is None:
        return SessionClosed(Close.ABNORMAL, "the connection was lost")
    return SessionClosed(close.code, close.reason)


# --- the room ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Asked:
    answer: asyncio.Future[Any]
    kept: Kept


def session(
    url: str,
    name: str | None = None,
    token: Token | None = None,
    data: Any = None,
    *,
    open_timeout: float = 10.0,
    ssl: SSLContext | None = None,
    backoff: Callable[[int], float] = full_jitter,
) -> Room:
    """The room at `url`, `https://host/session/slug`, to be joined with `async with`.

    `name` (at most 64 characters) and `data` (JSON of at most 4096 bytes) are what this client says of itself. `token`
    proves who it is to the room's `on_auth`; a callable, sync or async, is called at each connect, so that it can
    renew it. Joining is tried for `open_timeout` seconds; then, or when refused, it raises SessionClosed or another
    ConnectionError. `ssl` replaces the default TLS settings. `backoff` gives the seconds before the nth attempt of
    a row (from 0) to connect again.
    """
    return Room(url, name, token, data, open_timeout, ssl, backoff)


class Room:
    """A room that one has joined, or lost, or left. All of it belongs to one event loop."""

    def __init__(
        self,
        url: str,
        name: str | None,
        token: Token | None,
        data: Any,
        open_timeout: float,
        ssl: SSLContext | None,
        backoff: Callable[[int], float],
    ) -> None:
        if name is not None and len(name) > MAX_NAME:
            raise ValueError(f"name of {len(name)} characters, expected at most {MAX_NAME}")
        if (size := len(encode_json(data))) > MAX_DATA:
            raise ValueError(f"data of {size} bytes, expected at most {MAX_DATA}")
        self.url = session_url(url)
        self.id = 0  # none yet; another number after a resume that failed
        self.slug = unquote(urlsplit(self.url).path.removeprefix("/session/").strip("/")) or "lobby"
        self._hello = {key: value for key, value in (("name", name), ("data", data)) if value is not None}
        self._token = token
        self._open_timeout = open_timeout
        self._ssl = ssl
        self._backoff = backoff
        self._now = time.monotonic
        self._clock = Clock(self._now)
        self._people = People()
        self._ledger = Ledger()
        self._inbox = Inbox()
        self._handlers: dict[str, list[Handler]] = {}

        self._runner: asyncio.Task[None] | None = None
        self._handling: set[asyncio.Task[None]] = set()  # async handlers under way
        self._entered = asyncio.Event()  # the body of `async with` has begun
        self._end: SessionClosed | None = None
        self._leaving = False
        self._failure: SessionClosed | None = None  # of the last attempt to connect

        self._link: WebSocketLink | None = None
        self._resume: str | None = None  # token for the next resume
        self._epoch: Any = None
        self._host: int | None = None
        self._pinged: float | None = None  # `t` of the ping under way
        self._ping_due = False
        self._said_goodbye = False  # on this link
        self._heard = 0  # frames that came
        self._paused = False  # nothing is read, as the program does not keep up
        self._unreliable: deque[Frame] = deque(maxlen=UNSENT_UNRELIABLE)
        self._asks: dict[int, Asked] = {}
        self._last_ask = 0
        self._turn = asyncio.Lock()  # sends keep their order
        self._iterating = 0  # live iterators

        self._outgoing = Signal()  # there is something to write
        self._changed = Signal()  # something was written or covered; the link or the room ended
        self._arrived = Signal()  # the inbox has a message, or the room ended
        self._space = Signal()  # the inbox or an async handler has made room

    # What programs use

    @property
    def is_host(self) -> bool:
        """In a room without code: whether this client is the one that plays referee."""
        return self.id != 0 and self._host == self.id

    @property
    def time(self) -> float:
        """The server's clock in seconds. Monotonic: compare it with times in messages, not with a calendar."""
        return self._clock.time

    @property
    def presence(self) -> list[Person]:
        """The people here, oneself included. Empty beyond 200 people, where only `count` is known."""
        return self._people.listed()

    @property
    def count(self) -> int:
        return self._people.count

    @property
    def links(self) -> list[Link]:
        """The live wires to the server; none while the connection is lost."""
        return [] if self._link is None else [Link(self._link.kind, self._link.rtt)]

    @overload
    def on(self, type: str) -> Callable[[HandlerT], HandlerT]: ...
    @overload
    def on(self, type: str, fn: Handler) -> Callable[[], None]: ...

    def on(self, type: str, fn: Handler | None = None) -> Any:
        """Calls `fn(content, message)` for each message of this type, `"*"` for each of any type but `session:*`.

        Returns a callable that undoes it; without `fn` it is a decorator. A plain function runs at once, an async one
        as a task. An exception in it is logged and stops nothing else.
        """
        if type.startswith(OWN) and type not in EVENTS:
            raise ValueError(f"type is {type!r}, expected one of {', '.join(sorted(EVENTS))}")
        if fn is None:
            return lambda decorated: (self.on(type, decorated), decorated)[1]
        handlers = self._handlers.setdefault(type, [])
        handlers.append(fn)

        def off() -> None:
            if fn in handlers:
                handlers.remove(fn)

        return off

    async def send(self, type: str, content: Any = None, reliable: bool = True) -> None:
        """Sends a message to the room; `content` is JSON or bytes. Returns once it is written.

        A reliable message arrives, once and in order; while the connection is lost it waits in a queue of 256 messages
        or 1 MiB, beyond which SendQueueFull is raised. With `reliable=False` it may be lost: what is worth nothing
        later (a position) goes so. Raises SessionClosed after the end of the room.
        """
        check_own_type(type)
        frame = message_frame(type, content, reliable)
        self._check_open()
        if reliable:
            kept = await self._keep(frame)
            while self._link is not None and not kept.sent and self._end is None:
                await self._changed.wait()
        elif self._link is not None:
            self._unreliable.append(frame)
            self._outgoing.notify()
            await asyncio.sleep(0)  # a loop of such sends lets others run, too

    async def ask(self, type: str, content: Any = None, timeout: float = 10.0) -> Any:  # noqa: ASYNC109 (JS has it, too)
        """Asks the room's code and returns its answer.

        Raises AskRefused if the room refuses, TimeoutError if no answer came within `timeout` seconds.
        """
        check_own_type(type)
        if isinstance(content, bytes | bytearray | memoryview):
            raise TypeError(f"content of ask {type!r} is bytes, expected JSON")
        self._check_open()
        self._last_ask += 1
        ask = self._last_ask
        frame = text_frame(
            "session:ask", {"ask": ask, "type": type} | ({} if content is None else {"content": content})
        )
        kept = None
        try:
            async with asyncio.timeout(timeout):
                kept = await self._keep(frame)
                answer = asyncio.get_running_loop().create_future()
                self._asks[ask] = Asked(answer, kept)
                return await answer
        except TimeoutError:
            raise TimeoutError(f"no answer to {type!r} within {timeout:g} s") from None
        finally:
            self._asks.pop(ask, None)
            if kept is not None:
                self._ledger.withdraw(kept)  # nobody waits for it any more

    async def leave(self) -> None:
        """Gives up the seat at once. What was sent before still arrives. Leaving twice is once."""
        if self._runner is None:
            return
        if self._link is not None and self._end is None:
            self._leaving = True
            self._outgoing.notify()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    while self._end is None:
                        await self._changed.wait()
        self._finish(SessionClosed(Close.NORMAL, "left"))
        self._runner.cancel()
        await asyncio.wait([self._runner])

    def __aiter__(self) -> AsyncIterator[Message]:
        """Messages of the room, in order; `session:*` only through `on`.

        While an `async for` runs, at most 1024 messages or 1 MiB wait for it. Beyond that unreliable ones are shed;
        if that is not enough nothing more is read, answers to `ask` included, until the program catches up. While
        none runs the newest that fit are kept for the next. Ends when the room was left or closed with 1000; raises
        SessionClosed when it ended otherwise.
        """
        return Messages(self)

    async def __aenter__(self) -> Room:
        if self._runner is not None:
            raise RuntimeError("a session is joined once; call session() again for another")
        self._runner = asyncio.create_task(self._run(), name=f"session {self.slug}")
        try:
            async with asyncio.timeout(self._open_timeout):
                while not self.id and self._end is None:
                    await self._changed.wait()
        except TimeoutError:
            self._finish(SessionClosed(Close.ABNORMAL, "could not be joined"))
            await self._stop()
            raise self._not_joined() from None
        except BaseException:
            self._finish(SessionClosed(Close.NORMAL, "left"))
            await self._stop()
            raise
        if self._end is not None:
            await self._stop()
            self._check_open()
        # The last thing: whatever the body does before its first await is done before the first message is handled.
        self._entered.set()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.leave()
        finally:
            await self._stop()

    # The background task: _run → _stay → _join, _live, and again after a drop

    async def _run(self) -> None:
        try:
            await self._stay()
        except Exception as error:  # a fault of ours, or of the program's token()
            self._finish(SessionClosed(Close.FAILED, f"{type(error).__name__}: {error}"))
            raise

    async def _stay(self) -> None:
        attempt = 0
        while True:
            joined_at = None
            try:
                async with asyncio.timeout(self._open_timeout):
                    link, welcome, rtt = await self._join()
            except TimeoutError:
                closed = SessionClosed(Close.ABNORMAL, f"no welcome from {self.url} within {self._open_timeout:g} s")
            except SessionClosed as error:
                closed = error
            else:
                joined_at = self._now()
                closed = await self._live(link, welcome, rtt)
            if self._leaving:
                closed = SessionClosed(Close.NORMAL, "left")
            if not closed.comes_back:
                self._finish(closed)
                return
            if joined_at is not None:
                if self._now() - joined_at > SETTLED:
                    attempt = 0
                self._emit("session:drop", {"code": closed.code, "reason": closed.reason})
            if closed.code == Close.FULL:
                attempt = max(attempt, BACKED_OFF)
            self._failure = closed
            await asyncio.sleep(self._backoff(attempt))
            attempt += 1

    async def _join(self) -> tuple[WebSocketLink, Welcome, float]:
        """A link with its welcome, and how many seconds that took to come."""
        hello: dict[str, Any] = dict(self._hello)
        if (token := await self._proof()) is not None:
            hello["token"] = token
        if self._resume is not None:
            hello |= {"resume": self._resume, "received": self._ledger.received}
        link = await WebSocketLink.open(self.url, self._ssl)
        try:
            sent_at = self._now()
            await link.send(text_frame("session:join", hello))
            while True:
                message = read_frame(await link.receive())
                control = None if message is None else read_control(message)
                if isinstance(control, Welcome):
                    return link, control, self._now() - sent_at
                if isinstance(control, Problem):
                    self._complain(control)
        except BaseException:
            await link.abort()
            raise

    async def _proof(self) -> str | None:
        if self._token is None or isinstance(self._token, str):
            return self._token
        try:
            token = self._token()
            return await token if inspect.isawaitable(token) else token
        except Exception as error:
            if not self.id:
                raise
            log.exception("token() failed and is called again (room %r)", self.slug)
            raise SessionClosed(Close.ABNORMAL, f"token() failed: {error}") from None

    async def _live(self, link: WebSocketLink, welcome: Welcome, rtt: float) -> SessionClosed:
        """A joined link, until it ends."""
        try:
            self._link = link
            self._pinged = None
            self._said_goodbye = False
            self._take_seat(welcome, rtt)
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(self._write(link)), group.create_task(self._beat(link))]
                await self._entered.wait()
                closed = await self._read(link)
                for helper in helpers:
                    helper.cancel()
            return closed
        finally:
            self._link = None
            self._unreliable.clear()
            self._changed.notify()
            await link.abort()

    def _take_seat(self, welcome: Welcome, rtt: float) -> None:
        is_first = self.id == 0
        # The epoch too, as a restarted server counts its ids from 1 again. Nor can a seat have forgotten what it knew.
        same_seat = (
            self._resume is not None
            and (welcome.id, welcome.epoch) == (self.id, self._epoch)
            and self._ledger.could_be(welcome.received, welcome.seq)
        )
        if same_seat:
            self._ledger.resume(welcome.received, welcome.seq)
        else:
            self._refuse_lost_asks()
            self._ledger.restart(welcome.received, welcome.seq)
        self.id = welcome.id
        self.slug = welcome.room
        self._resume = welcome.resume
        self._epoch = welcome.epoch
        self._clock.add(welcome.time, rtt)
        before = (self.count, self._host)
        self._host = welcome.host
        diff = self._people.replace(welcome.presence, welcome.count)
        self._changed.notify()
        if not is_first:
            self._emit("session:resume", {"recovered": same_seat and welcome.recovered})
            self._tell_presence(diff, before)

    def _refuse_lost_asks(self) -> None:
        """Those written on a seat that is gone; nobody will answer them."""
        for asked in self._asks.values():
            if asked.kept.sent and not asked.answer.done():
                asked.answer.set_exception(AskRefused("lost", "the seat was lost before an answer came"))

    async def _write(self, link: WebSocketLink) -> None:
        """All that leaves, in order. What waited for the link goes in slices, below the server's limits."""
        backlog = self._ledger.unsent
        messages, size = 0, 0  # of this slice
        with suppress(SessionClosed):  # the reader hears of it, too
            while not self._said_goodbye:
                backlog = min(backlog, self._ledger.unsent)
                waiting = backlog > 0 and (messages >= SLICE_MESSAGES or size >= SLICE_BYTES)
                frame, kept = self._next_ping(), None
                if frame is None:
                    kept = None if waiting else self._ledger.next()
                    frame = self._next_other(idle=not waiting) if kept is None else kept.frame
                if frame is not None:
                    await link.send(frame)
                    self._changed.notify()
                elif waiting:
                    await asyncio.sleep(SLICE_EVERY)
                    messages, size = 0, 0
                else:
                    await self._outgoing.wait()
                if kept is not None:
                    backlog, messages, size = backlog - 1, messages + 1, size + kept.size
                    self._ping_due = self._ping_due or self._ledger.half_full

    def _next_ping(self) -> Frame | None:
        if not self._ping_due or self._pinged is not None:
            return None
        self._ping_due = False
        self._pinged = self._now()
        return text_frame("session:ping", {"t": self._pinged})

    def _next_other(self, idle: bool) -> Frame | None:
        """What is not counted: unreliable messages and, after all else, the goodbye."""
        if self._unreliable:
            return self._unreliable.popleft()
        if self._leaving and idle:
            self._said_goodbye = True
            return text_frame("session:leave")
        return None

    async def _beat(self, link: WebSocketLink) -> None:
        """Pings. Counts those that got no byte in return, not seconds: a computer may have slept."""
        missed = 0
        while missed < MISSED:
            self._pinged, self._ping_due = None, True
            self._outgoing.notify()
            heard = self._heard
            await asyncio.sleep(HEARTBEAT)
            missed = missed + 1 if self._heard == heard and not self._paused else 0
        await link.abort()

    async def _read(self, link: WebSocketLink) -> SessionClosed:
        """All that comes, in order, until the link ends."""
        while True:
            try:
                frame = await link.receive()
            except SessionClosed as closed:
                return closed
            self._heard += 1
            message = read_frame(frame)
            if message is None:
                continue
            if message.type.startswith(OWN):
                self._take_control(link, read_control(message))
                continue
            if message.reliable:
                self._ledger.received += 1
            self._call_handlers(message)
            while not self._inbox.put(message, len(frame), wait=self._iterating > 0 and not self._leaving):
                await self._pause()
            self._arrived.notify()
            while len(self._handling) >= MAX_HANDLING and not self._leaving:
                await self._pause()

    async def _pause(self) -> None:
        self._paused = True
        await self._space.wait()
        self._paused = False

    def _take_control(self, link: WebSocketLink, control: Any) -> None:
        if isinstance(control, PresenceDiff):
            before = (self.count, self._host)
            if not isinstance(control.host, UnsetType):
                self._host = control.host
            diff = self._people.apply([*control.joins, *control.updates], control.leaves, control.count)
            self._tell_presence(diff, before)
        elif isinstance(control, Reply):
            self._take_reply(control)
        elif isinstance(control, Problem):
            self._complain(control)
        elif isinstance(control, Pong):
            if control.t == self._pinged:
                link.rtt = self._now() - control.t
                self._clock.add(control.time, link.rtt)
                self._pinged = None
                self._outgoing.notify()
            self._ledger.cover(control.received)
            self._changed.notify()

    def _take_reply(self, reply: Reply) -> None:
        asked = self._asks.get(reply.ask)
        if asked is None or asked.answer.done():
            return
        if reply.error is None:
            asked.answer.set_result(reply.content)
        else:
            asked.answer.set_exception(AskRefused(reply.error.code, reply.error.reason))

    def _tell_presence(self, diff: dict[str, Any], before: tuple[int, int | None]) -> None:
        if diff["joins"] or diff["leaves"] or diff["updates"] or before != (self.count, self._host):
            self._emit("session:presence", diff | {"host": self._host})

    def _complain(self, problem: Problem) -> None:
        if not self._handlers.get("session:error"):
            log.warning(
                "session:error %s: %s (type %r, room %r)", problem.code, problem.reason, problem.type, self.slug
            )
        self._emit("session:error", {"code": problem.code, "reason": problem.reason, "type": problem.type})

    # Handlers

    def _emit(self, type: str, content: dict[str, Any]) -> None:
        self._call_handlers(Message(type, content))

    def _call_handlers(self, message: Message) -> None:
        handlers = self._handlers.get(message.type, [])
        if "*" in self._handlers and not message.type.startswith(OWN):
            handlers = handlers + self._handlers["*"]
        for fn in tuple(handlers):
            try:
                result = fn(message.content, message)
            except Exception:
                log.exception("handler of %r failed (room %r)", message.type, self.slug)
                continue
            if result is not None and inspect.isawaitable(result):
                task = asyncio.create_task(self._watch(message.type, result), name=message.type)
                self._handling.add(task)
                task.add_done_callback(self._handled)

    async def _watch(self, type: str, handler: Awaitable[Any]) -> None:
        try:
            await handler
        except Exception:
            log.exception("handler of %r failed (room %r)", type, self.slug)

    def _handled(self, task: asyncio.Task[None]) -> None:
        self._handling.discard(task)
        self._space.notify()

    # Sending and the end

    async def _keep(self, frame: Frame) -> Kept:
        """Adds to what the server must get; waits for room while it is being covered."""
        size = len(frame) if isinstance(frame, bytes) or frame.isascii() else len(frame.encode())
        async with self._turn:
            try:
                async with asyncio.timeout(COVER_TIMEOUT):
                    while self._ledger.full(size):
                        self._check_open()
                        if self._link is None:
                            raise SendQueueFull(
                                f"{self._ledger} wait for the connection, no room for {size} bytes more"
                            )
                        self._ping_due = True
                        if self._pinged is not None and self._now() - self._pinged >= PING_AGAIN:
                            self._pinged = None
                        self._outgoing.notify()
                        with suppress(TimeoutError):
                            async with asyncio.timeout(PING_AGAIN):
                                await self._changed.wait()
            except TimeoutError:
                raise SendQueueFull(f"{self._ledger} wait for the server, no room for {size} bytes more") from None
            self._check_open()
            kept = self._ledger.keep(frame, size)
            self._outgoing.notify()
            return kept

    async def _next_message(self) -> Message:
        while not self._inbox:
            if self._end is not None and self._end.code == Close.NORMAL:
                raise StopAsyncIteration
            self._check_open()
            await self._arrived.wait()
        message = self._inbox.get()
        self._space.notify()
        return message

    def _check_open(self) -> None:
        if self._end is not None:
            raise SessionClosed(self._end.code, self._end.reason)
        if not self.id:
            raise RuntimeError("the room is not joined yet, expected `async with session(...) as room`")

    def _finish(self, closed: SessionClosed) -> None:
        """The end, whatever the state. Later calls change nothing."""
        if self._end is not None:
            return
        self._end = closed
        if self._ledger.unsent:
            log.warning("%d messages were never sent (room %r)", self._ledger.unsent, self.slug)
        for asked in self._asks.values():
            if not asked.answer.done():
                asked.answer.set_exception(SessionClosed(closed.code, closed.reason))
        if self.id:
            self._emit("session:close", {"code": closed.code, "reason": closed.reason})
        for signal in (self._changed, self._arrived, self._space):
            signal.notify()

    def _not_joined(self) -> ConnectionError:
        """The first join took too long."""
        failure = self._failure
        why = "no answer" if failure is None else failure.reason
        text = f"could not join {self.url} within {self._open_timeout:g} s: {why}"
        if failure is None or failure.code == Close.ABNORMAL:
            return ConnectionError(text)
        return SessionClosed(failure.code, text)

    async def _stop(self) -> None:
        """Ends all tasks. Handlers of `session:close` may finish, for a while."""
        assert self._runner is not None
        self._runner.cancel()
        closing = {task for task in self._handling if task.get_name() == "session:close"}
        for task in self._handling - closing:
            task.cancel()
        try:
            if closing:
                await asyncio.wait(closing, timeout=CLOSE_TIMEOUT)
        finally:
            for task in self._handling:
                task.cancel()
            await asyncio.gather(self._runner, *self._handling, return_exceptions=True)
        if not self._runner.cancelled() and (error := self._runner.exception()):
            raise error


class Messages(AsyncIterator[Message]):
    """What `async for` holds. While one lives the room waits for it; several share the messages."""

    def __init__(self, room: Room) -> None:
        self._room = room
        room._iterating += 1

    async def __anext__(self) -> Message:
        return await self._room._next_message()

    def __del__(self) -> None:
        self._room._iterating -= 1
        self._room._space.notify()
