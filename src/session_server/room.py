"""Who is in, who gets what. No sockets, no tasks, no clock.

`Room` is what authors subclass, `Client` what they are handed. `RoomCore` stands below both: it owns membership, ids,
links and outboxes, so that an author's instance can be replaced while people play.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any, ClassVar, Final, Protocol

from msgspec import UNSET, UnsetType

from .clock import Timer, Timers
from .config import Config
from .handlers import Handler, InvalidContent, Kind, Routes, read_any
from .limits import Allowance, Bucket, Meter
from .outbox import Stream, Write
from .presence import Person, Presence, PresenceDiff
from .protocol import (
    CLASSIC,
    V1_DIALECT,
    Ack,
    Answer,
    AnyMessage,
    Ask,
    Binary,
    Close,
    Dialect,
    Hello,
    Message,
    PieceError,
    Ping,
    ProtocolError,
    Refused,
    check_type,
    connected,
    decode_control,
    joined,
    left,
    message,
)
from .trust import Route

PRESENCE_GAP: Final = 0.05  # seconds between two presence diffs of a room
ASYNC_LIMIT: Final = 5.0  # seconds that an async handler may take
MAX_WAITING: Final = 1000  # calls that wait for it
MAX_NUMBERED: Final = 256  # types per client whose numbers are remembered
FAULTS_LOGGED: Final = 10  # tracebacks at once, then one per second: a broken on_tick must not fill a disk


class Link(Protocol):
    """A client's live wire, as a transport hands it in."""

    kind: str  # the transport's name
    dialect: Dialect
    address: str  # as seen through trusted proxies; for limits and the client itself, never for others
    local: str  # our own address that it came to

    @property
    def rtt(self) -> float | None:
        """Seconds, or None as long as nothing was measured."""

    @property
    def pack(self) -> Callable[[Any], bytes | None]:
        """How a message becomes bytes. The same function for all links of one kind and dialect."""

    @property
    def write(self) -> Write:
        """Takes bytes at once, without blocking or raising."""

    def close(self, code: int, reason: str) -> None:
        """Closes the wire; no callback follows."""


class SideLink(Link, Protocol):
    """A link for what may be lost, beside the reliable one. Its transport judges how far it is trusted."""

    @property
    def route(self) -> Route: ...
    def acked(self, received: int) -> None:
        """The client has received so many messages on it."""


@dataclass(frozen=True, slots=True)
class User:
    """A verified person: from a token that the server checked, or made by `on_auth`."""

    id: str
    handle: str | None = None
    data: Any = None


@dataclass(slots=True)
class Totals:
    """What happened since the start. `refused` counts by reason, a closed list of words."""

    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    joins: int = 0
    faults: int = 0
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Services:
    """What all rooms share. The callables are handed in by the floor above."""

    config: Config
    timers: Timers
    totals: Totals
    log: Any
    token: Callable[[], str]  # an unguessable string
    spawn: Callable[[Awaitable[Any], float, Callable[[Any, BaseException | None], None]], None]
    flush_later: Callable[[RoomCore], None]  # at the end of this tick
    emptied: Callable[[RoomCore, float], None]  # the last seat was given up
    offer: Callable[[Client], str | None]  # SDP that invites this client to a side link; None if there are none here
    answer: Callable[[Client, str], None]  # its answer. Raises ValueError
    hangup: Callable[[Client], None]  # its reliable link ended, and with it what was signalled there
    clock: Callable[[], float]  # for authors: an async handler goes on long after the call began that it answers
    now: float = 0.0  # seconds, monotonic: when the call under way began


class Client:
    """One seat in one room: what an author holds of somebody who plays."""

    __slots__ = (
        "_behind", "_grace", "_link", "_meter", "_numbers", "_offset", "_rates", "_resume", "_resume_before", "_side",
        "_side_link", "_stream", "_taken", "_user",
        "beside", "core", "data", "id", "name", "was_refused",
    )  # fmt: skip

    def __init__(self, id: int, core: RoomCore, meter: Meter, user: User | None, name: str | None, data: Any) -> None:
        self.id = id
        self._user = user
        self.name = name  # what the client says of itself, like `data`: a label, no proof
        self.data = data
        self.was_refused = False  # by a rate, since its transport last looked
        self.beside = False  # the second wire of somebody who is here already (Dialect)
        self.core = core  # the room below the author's instance
        self._meter = meter
        self._link: Link | None = None
        self._side_link: SideLink | None = None
        self._stream: Stream[Client, Any] | None = None
        self._side: Stream[Client, Any] | None = None  # of the side link
        self._behind = False  # its buffer is full
        self._rates: dict[str, Bucket] | None = None  # by message type, where a handler has a rate
        self._offset = 0  # RoomCore.seq
        self._numbers: dict[str, int] | None = None
        self._taken = 0  # reliable messages received from this seat
        self._resume = self._resume_before = ""
        self._grace: Timer | None = None

    def _is_news(self, item: AnyMessage) -> bool:
        """What may be lost and carries a number is taken once, and not after a later one: it may have come on both
        links, and links overtake each other."""
        if isinstance(item.n, UnsetType):
            return True
        numbers = self.numbers()
        if item.n <= numbers.get(item.type, -1):
            return False
        numbers[item.type] = item.n
        return True

    def numbers(self) -> dict[str, int]:
        """The last number by type, of this client's messages that may be lost. Types are the clients' to invent, so
        there are at most MAX_NUMBERED."""
        if self._numbers is None:
            self._numbers = {}
        if len(self._numbers) > MAX_NUMBERED:
            del self._numbers[next(iter(self._numbers))]
        return self._numbers

    @property
    def room(self) -> Room:
        return self.core.instance

    @property
    def user(self) -> User | None:
        """Who this is, as `on_auth` said. Not to be set: presence knows people by it for as long as they are here."""
        return self._user

    @property
    def handle(self) -> str | None:
        return self._user.handle if self._user else None

    @property
    def user_id(self) -> str | None:
        return self._user.id if self._user else None

    @property
    def away(self) -> bool:
        """The link dropped; the seat is kept for `grace` seconds."""
        return self._link is None

    @property
    def links(self) -> tuple[Link, ...]:
        return tuple(link for link in (self._link, self._side_link) if link is not None)

    def send(self, type: str, content: Any = None, reliable: bool = True) -> None:
        """To this client alone. Raises TypeError if `content` is neither bytes nor JSON, ValueError on a bad type."""
        self.core.send(self, message(type, content, reliable=reliable))

    def send_raw(self, data: str | bytes) -> None:
        """One WebSocket frame, as it is; only in a room with `raw = True`."""
        self.core.send(self, data)

    def kick(self, reason: str = "kicked") -> None:
        """Closes with 4001 and gives the seat up. What was sent before still arrives."""
        self.core.expel(self, Close.KICKED, reason)

    def __repr__(self) -> str:
        return f"<Client {self.core.slug}#{self.id}>"


class Room:
    """Subclass it in a piece; one instance per slug. All hooks are optional and none overlaps another."""

    max_clients: ClassVar[int] = 0  # seats; 0 = as many as the server takes
    max_message: ClassVar[int] = 0  # bytes; 0 = the server's --message-size
    tick_rate: ClassVar[float] = 0.0  # Hz of on_tick; 0 = no tick
    flush_ms: ClassVar[float] = 0.0  # 0 = at the end of each tick of the loop; 4 to 8 save CPU in big busy rooms
    grace: ClassVar[float] = 5.0  # seconds a seat is kept after an unclean drop
    keep: ClassVar[tuple[str, ...]] = ()  # attributes that survive a reload
    relay: ClassVar[bool | tuple[str, ...]] = ()  # types passed to the others unread; `*` matches up to a colon
    server_only: ClassVar[tuple[str, ...]] = ()  # types that clients may not send
    raw: ClassVar[bool] = False  # on_raw gets every frame unparsed: for other protocols

    _core: RoomCore
    _elects_host: ClassVar[bool] = False

    @property
    def slug(self) -> str:
        return self._core.slug

    @property
    def clients(self) -> tuple[Client, ...]:
        """Everybody with a seat, dropped ones included."""
        return tuple(self._core.clients.values())

    @property
    def presence(self) -> list[Person]:
        return list(self._core.presence)

    @property
    def now(self) -> float:
        """Seconds on the server's monotonic clock, the same that clients see as `room.time`."""
        return self._core.services.clock()

    @property
    def log(self) -> Any:
        return self._core.log

    def broadcast(self, type: str, content: Any = None, exclude: Client | None = None, reliable: bool = True) -> None:
        """To all in the room but `exclude`. Raises as Client.send does."""
        self._core.broadcast(message(type, content, reliable=reliable), exclude)

    def after(self, seconds: float, call: Callable[[], Any]) -> Timer:
        """Calls once; `cancel()` on what is returned prevents it."""
        return self._core.after(seconds, call, repeat=False)

    def every(self, seconds: float, call: Callable[[], Any]) -> Timer:
        return self._core.after(seconds, call, repeat=True)

    def on_create(self) -> Any:
        """Before anyone is in."""

    def on_auth(self, token: str | None, data: Any) -> Any:
        """Somebody asks for a seat: return a User or None, or raise Refused("why"). May be async."""

    def on_join(self, client: Client) -> Any: ...
    def on_drop(self, client: Client) -> Any:
        """The link is gone, the seat is kept for `grace` seconds."""

    def on_resume(self, client: Client) -> Any: ...
    def on_leave(self, client: Client, reason: str) -> Any:
        """The seat is given up: `left`, `lost` (grace is over), `kicked` or `closed` (by a limit or the server)."""

    def on_message(self, client: Client, message: Message) -> Any:
        """Types that no handler names and `relay` does not pass on."""

    def on_raw(self, client: Client, data: str | bytes) -> Any: ...
    def on_tick(self, dt: float) -> Any:
        """Every 1/tick_rate seconds while somebody has a seat; `dt` is always that, missed ticks are skipped."""

    def on_reload(self, old: Any) -> Any: ...
    def on_dispose(self) -> Any: ...


class Relay(Room):
    """A room without code: every type goes to the others, and the client longest here is the host."""

    relay = True
    _elects_host = True


class Problem:
    """Why a message was not handled: the content of `session:error`, or of a failed ask."""

    __slots__ = ("code", "reason")

    def __init__(self, code: str, reason: str) -> None:
        self.code, self.reason = code, reason


@dataclass(slots=True)
class Call:
    """A call into the author's code: now, or after the async one that is under way."""

    target: str | Callable[..., Any]  # a method's name (found on the instance of that moment), or a callable
    args: tuple[Any, ...] = ()
    client: Client | None = None  # who is told of a problem
    type: str | None = None
    ask: int | None = None


class RoomCore:
    """One room: its seats, their links, what they are sent, and the author's instance."""

    def __init__(self, slug: str, room_class: type[Room], routes: Routes, services: Services, epoch: int) -> None:
        self.slug = slug
        self.room_class = room_class
        self.services = services
        self.epoch = epoch
        self.log = services.log.bind(room=slug)
        self.clients: dict[int, Client] = {}  # seats by id
        self._beside = 0  # of them, second wires
        self.presence = Presence()
        self.routes = routes
        self.instance = room_class()
        self.instance._core = self
        self.host: int | None = None
        self.expiry: Timer | None = None  # disposal of an empty room
        self.resumable: dict[str, Client] = {}  # resume token → seat
        self._next_id = 1
        self._streams: list[Stream[Client, Any]] = []
        self._dirty = False
        self._flushed_at = float("-inf")
        self._flushing = False
        self._deferred: list[Callable[[], None]] = []  # what a write brought about: a full buffer, a slow consumer
        self._total = 0  # counted messages broadcast so far
        self._numbers: dict[str, int] = {}  # by type, of the room's own messages that may be lost
        self._presence_timer: Timer | None = None
        self._presence_at = float("-inf")
        self._told_host: int | None = None
        self._tick: Timer | None = None
        self._timers: set[Timer] = set()
        self._prune_at = 64  # cancelled ones are forgotten then
        self._busy = False  # an async handler is under way
        self._waiting: deque[Call] = deque()
        self._faults = Bucket(1, FAULTS_LOGGED)
        config = services.config
        largest = max(self.max_message, config.message_size) if self.max_message else math.inf
        burst = max(config.byte_burst, largest) if config.byte_burst else 4 * largest
        self._allowance = Allowance.of(config.message_rate, config.message_burst, config.byte_rate, burst)

    # --- seats --------------------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        return 0 < self.room_class.max_clients <= len(self.clients)

    @property
    def count(self) -> int:
        """Clients as classic pages are told: without the second wires."""
        return len(self.clients) - self._beside

    @property
    def max_message(self) -> int:
        return self.room_class.max_message or self.services.config.message_size

    def seat(self, link: Link, user: User | None, hello: Hello) -> Client:
        """A new client with a new id, greeted and announced."""
        client = Client(self._next_id, self, Meter(self._allowance), user, hello.name, hello.data)
        self._next_id += 1
        client._offset = -self._total
        client.beside = link.dialect.beside
        self.clients[client.id] = client
        self.services.totals.joins += 1
        if client.beside:
            self._beside += 1
        else:
            self.presence.add(client)
        self._connect(client, link)
        if not self.room_class.raw:
            self._greet(client, link, recovered=False)
            if not client.beside:
                self._announce(joined(client.id, self.count), client)
        self.hook("on_join", client)
        if self.clients and self._tick is None and self.room_class.tick_rate > 0 and "on_tick" in self.routes.overrides:
            self._schedule_tick(self.services.now + 1 / self.room_class.tick_rate)
        return client

    def resume(self, client: Client, link: Link, received: int) -> None:
        """The seat of a valid resume token, back on a new link; `received` is the client's count (wire.md, Resume)."""
        if client._link is not None:  # the server did not know yet that it was dead
            client._link.close(Close.GOING_AWAY, "resumed elsewhere")
            self._disconnect(client)
        if client._grace is not None:
            client._grace.cancel()
            client._grace = None
        recovered = received == self.seq(client)
        self._connect(client, link)
        self.presence.change(client)
        self._greet(client, link, recovered)
        self._presence_later()
        self.hook("on_resume", client)

    def drop(self, client: Client, link: Link, clean: bool) -> None:
        """The link ended. A clean end gives the seat up; after any other it is kept for `grace` seconds."""
        if self._flushing:
            self._deferred.append(lambda: self.drop(client, link, clean))
            return
        if client._link is not link:
            return
        grace = self.room_class.grace
        if clean or grace <= 0 or link.dialect is not V1_DIALECT:
            self.leave(client, "left" if clean else "lost")
            return
        self._disconnect(client)
        self.presence.change(client)
        self._presence_later()
        client._grace = self.services.timers.at(self.services.now + grace, lambda now: self._expire(client, now))
        self.hook("on_drop", client)

    def _expire(self, client: Client, now: float) -> None:
        self.services.now = now
        client._grace = None
        self.leave(client, "lost")

    def leave(self, client: Client, reason: str) -> None:
        """The seat is given up."""
        if self.clients.pop(client.id, None) is None:
            return
        self.resumable.pop(client._resume, None)
        self.resumable.pop(client._resume_before, None)
        if client._grace is not None:
            client._grace.cancel()
        self._disconnect(client)
        if client.beside:
            self._beside -= 1
        else:
            self.presence.remove(client)
            if not self.room_class.raw:
                self._announce(left(client.id, self.count), None)
        self.hook("on_leave", client, reason)
        if not self.clients:
            if self._tick is not None:
                self._tick.cancel()
                self._tick = None
            self.services.emptied(self, self.services.now)

    def expel(self, client: Client, code: int, reason: str) -> None:
        """Closes the link after what was sent before, and gives the seat up."""
        link = client._link
        if link is not None:
            self.flush(self.services.now)
            link.close(code, reason)
        self.leave(client, "kicked" if code == Close.KICKED else "closed")

    def congested(self, client: Client, behind: bool) -> None:
        """A link's buffer filled (what may be lost is shed for it now) or drained."""
        if self._flushing:
            self._deferred.append(lambda: self.congested(client, behind))
            return
        client._behind = behind
        self._place(client)

    def rewire(self, client: Client) -> None:
        """The link's `write` is another function now."""
        if client._stream is not None and client._link is not None:
            client._stream.members[client] = client._link.write

    def attach(self, client: Client, link: SideLink) -> None:
        """A second link for what may be lost. It is used as far as its `route` says."""
        if self._flushing:
            self._deferred.append(lambda: self.attach(client, link))
        elif client._link is not None:
            client._side_link = link
            self._place(client)

    def detach(self, client: Client, link: SideLink) -> None:
        if self._flushing:
            self._deferred.append(lambda: self.detach(client, link))
        elif client._side_link is link:
            client._side_link = None
            self._place(client)

    def rerouted(self, client: Client) -> None:
        """The `route` of a side link changed."""
        if self._flushing:
            self._deferred.append(lambda: self.rerouted(client))
        else:
            self._place(client)

    def _connect(self, client: Client, link: Link) -> None:
        client._link = link
        client._behind = False
        self._place(client)
        if self.room_class._elects_host and not client.beside and (self.host is None or client.id < self.host):
            self.host = client.id

    def _disconnect(self, client: Client) -> None:
        """A dropped client has no links; its side link belongs to the reliable one that signalled it."""
        client._link = client._side_link = None
        self.services.hangup(client)
        self._place(client)
        if client.id == self.host:
            self.host = min((id for id, one in self.clients.items() if not (one.away or one.beside)), default=None)

    def _place(self, client: Client) -> None:
        """Into the streams of those who are sent the same, by what this client's links can take now."""
        link, side = client._link, client._side_link
        if link is not None:
            self._write_out((client._stream, client._side))
        route = Route.RELIABLE if side is None else side.route
        unreliable = not client._behind and route is not Route.UNRELIABLE
        client._stream = self._move(client, client._stream, link, True, unreliable, client._behind)
        client._side = self._move(client, client._side, None if route is Route.RELIABLE else side, False, True, False)
        self._catch_up()

    def _move(
        self, client: Client, old: Stream[Client, Any] | None, link: Link | None, reliable: bool, unreliable: bool,
        behind: bool,
    ) -> Stream[Client, Any] | None:  # fmt: skip
        """From one stream to another; what is pending is written first, so order is kept."""
        if old is not None:
            old.remove(client)
            if not old.members:
                self._streams.remove(old)
        if link is None:
            return None
        for stream in self._streams:
            takes = (stream.reliable, stream.unreliable, stream.behind)
            if stream.pack is link.pack and takes == (reliable, unreliable, behind):
                break
        else:
            stream = Stream(link.pack, link.dialect, reliable, unreliable, behind)
            self._streams.append(stream)
        stream.add(client, link.write)
        return stream

    # --- greetings and presence ---------------------------------------------------------------------------------------

    def _greet(self, client: Client, link: Link, recovered: bool) -> None:
        if link.dialect is CLASSIC:
            self._control(client, connected(client.id, link.address, self.count))
        if link.dialect is not V1_DIALECT:
            return
        if not client._resume_before:  # the last that surely arrived stays good until the next surely has
            client._resume_before = client._resume
        else:
            self.resumable.pop(client._resume, None)
        client._resume = self.services.token()
        self.resumable[client._resume] = client
        content = {
            "id": client.id,
            "room": self.slug,
            "presence": self.presence.listed(),
            "count": len(self.presence),
            "host": self.host,
            "resume": client._resume,
            "grace": self.room_class.grace,
            "epoch": self.epoch,
            "seq": self.seq(client),
            "time": self.services.now,
            "received": client._taken,
            "recovered": recovered,
        }
        offer = self.services.offer(client)
        self._control(client, message("session:welcome", content if offer is None else content | {"offer": offer}))

    def _announce(self, news: AnyMessage, exclude: Client | None) -> None:
        """Classic clients are told at once, of each; the others by presence, once per tick."""
        for stream in self._streams:
            if stream.dialect is CLASSIC:
                stream.push(news, exclude)
                self._flush_later()
        self._presence_later()

    def _presence_later(self) -> None:
        if self._presence_timer is None and any(stream.dialect is V1_DIALECT for stream in self._streams):
            when = max(self.services.now, self._presence_at + PRESENCE_GAP)
            self._presence_timer = self.services.timers.at(when, self._tell_presence)

    def _tell_presence(self, now: float) -> None:
        self.services.now = self._presence_at = now
        self._presence_timer = None
        diff = self.presence.diff()
        if self.host != self._told_host:
            self._told_host = self.host
            diff = diff or PresenceDiff(count=len(self.presence))
            diff.host = self.host
        if diff is None:
            return
        news = message("session:presence", diff)
        for stream in self._streams:
            if stream.dialect is V1_DIALECT and stream.reliable:
                stream.push(news)
                self._flush_later()

    # --- out ----------------------------------------------------------------------------------------------------------

    def seq(self, client: Client) -> int:
        """Reliable messages addressed to this seat so far, dropped or not: all broadcasts, less those it was left out
        of, plus those to it alone."""
        return self._total + client._offset

    def broadcast(self, item: AnyMessage, exclude: Client | None = None) -> None:
        """To all but `exclude`, each on the links that take such a message now."""
        if item.reliable is not False:
            self._total += 1
            if exclude is not None:
                exclude._offset -= 1
            for stream in self._streams:
                if stream.reliable:
                    stream.push(item, exclude)
        else:
            self._number(item)
            for stream in self._streams:
                if stream.unreliable:
                    stream.push(item, exclude)
                elif stream.behind:
                    self.services.totals.refused["shed"] += len(stream.members)
        if not self._dirty:
            self._flush_later()

    def send(self, client: Client, item: AnyMessage | str | bytes) -> None:
        """To one; to nobody if it is away."""
        if isinstance(item, str | bytes) or item.reliable is not False:
            client._offset += 1
            self._insert(client._stream, client, item)
            return
        self._number(item)
        for stream in (client._stream, client._side):
            if stream is not None and stream.unreliable:
                self._insert(stream, client, item)
        if client._behind:
            self.services.totals.refused["shed"] += 1

    def _insert(self, stream: Stream[Client, Any] | None, client: Client, item: AnyMessage | str | bytes) -> None:
        if stream is not None:
            stream.insert(client, item)
            self._flush_later()

    def _number(self, item: AnyMessage) -> None:
        """What may be lost is numbered where somebody has two links."""
        if item.n is UNSET and any(not stream.reliable for stream in self._streams):
            sender = self.clients.get(item.id)
            numbers = self._numbers if sender is None else sender.numbers()
            item.n = numbers[item.type] = numbers.get(item.type, 0) + 1

    def _control(self, client: Client, item: AnyMessage) -> None:
        """To one client, outside of what it counts."""
        self._insert(client._stream, client, item)

    def _flush_later(self) -> None:
        if self._dirty:
            return
        self._dirty = True
        due = self._flushed_at + self.room_class.flush_ms / 1000
        if self.room_class.flush_ms and due > self.services.now:
            self.services.timers.at(due, self.flush)
        else:
            self.services.flush_later(self)

    def flush(self, now: float) -> None:
        """What this tick brought, one write per client."""
        self._dirty = False
        self._flushed_at = now
        self._write_out(self._streams)
        self._catch_up()

    def _write_out(self, streams: Iterable[Stream[Client, Any] | None]) -> None:
        """What a write brings about waits: it must not find a room half flushed, or a client half moved."""
        self._flushing = True
        try:
            for stream in streams:
                if stream is not None:
                    self._account(stream.flush())
        finally:
            self._flushing = False

    def _catch_up(self) -> None:
        while self._deferred and not self._flushing:
            self._deferred.pop(0)()

    def _account(self, written: tuple[int, int]) -> None:
        totals = self.services.totals
        totals.messages_out += written[0]
        totals.bytes_out += written[1]

    # --- in -----------------------------------------------------------------------------------------------------------

    def receive(self, client: Client, item: AnyMessage, size: int, now: float) -> None:
        """One message of a client, `size` bytes on the wire."""
        services = self.services
        services.now = now
        services.totals.messages_in += 1
        services.totals.bytes_in += size
        kind = self.routes.kind(item.type)
        if client._resume_before:  # it has the welcome with the new token
            self.resumable.pop(client._resume_before, None)
            client._resume_before = ""
        if item.reliable is not False:
            item.reliable = item.n = UNSET
            if kind is not Kind.CONTROL or item.type == "session:ask":
                client._taken += 1
        if not client._meter.take(now, size):
            self._over(client, item, now)
        elif item.reliable is False and not client._is_news(item):
            return
        elif kind is Kind.RELAYED:
            self._relay(client, item)
        elif kind is Kind.CONTROL and self._speaks_v1(client):
            self._receive_control(client, item)
        else:
            self._dispatch(client, item, kind, None)

    def _relay(self, client: Client, item: AnyMessage) -> None:
        item.id = client.id
        link = client._link
        to_all = link is not None and link.dialect is not V1_DIALECT and link.dialect.reaches_sender(item.type)
        self.broadcast(item, None if to_all else client)

    def _speaks_v1(self, client: Client) -> bool:
        return client._link is None or client._link.dialect is V1_DIALECT

    def _dispatch(self, client: Client, item: AnyMessage, kind: Kind, ask: int | None) -> None:
        """A message that is within its rate, and not merely relayed: handled or refused."""
        type = item.type
        if kind is Kind.HANDLED:
            self._handle(client, self.routes.handlers[type], item, ask)
        elif kind is Kind.OWNED or kind is Kind.CONTROL:
            self.services.totals.refused["server_owned"] += 1
        elif "on_message" in self.routes.overrides and kind is Kind.OTHER:
            self._pass_on(client, item, ask)
        else:
            self.services.totals.refused["unknown"] += 1
            self._answer(client, type, ask, None, Problem("unknown", f"room {self.slug!r} knows no type {type!r}"))

    def _handle(self, client: Client, handler: Handler, item: AnyMessage, ask: int | None) -> None:
        if handler.rate and not self._within(client, handler):
            self.services.totals.refused["type_rate"] += 1
            if item.reliable is not False:
                problem = Problem("rate", f"more than {handler.rate:g} {handler.type!r} per second")
                self._answer(client, handler.type, ask, None, problem)
            return
        args: tuple[Any, ...] = (client,)
        if handler.read is not None:
            try:
                args = (client, handler.read(item))
            except InvalidContent as error:
                self._invalid(client, handler.type, ask, error)
                return
            except Exception as error:  # a check of the author's own
                call = Call(handler.name, args, client, handler.type, ask)
                self._settle(call, None, self._problem(call, error))
                return
        self.call(Call(handler.name, args, client, handler.type, ask))

    def _within(self, client: Client, handler: Handler) -> bool:
        if client._rates is None:
            client._rates = {}
        bucket = client._rates.get(handler.type)
        if bucket is None:
            bucket = client._rates[handler.type] = Bucket(handler.rate, max(1.0, handler.rate))
        return bucket.take(self.services.now)

    def _pass_on(self, client: Client, item: AnyMessage, ask: int | None) -> None:
        try:
            content = read_any(item)
        except InvalidContent as error:
            self._invalid(client, item.type, ask, error)
            return
        reliable = item.reliable is not False
        plain = Message(item.type, content, client.id, UNSET if reliable else False)
        self.call(Call("on_message", (client, plain), client, item.type, ask))

    def _invalid(self, client: Client, type: str, ask: int | None, error: InvalidContent) -> None:
        self.services.totals.refused["invalid"] += 1
        reason = f"{error} (room {self.slug!r}, client {client.id})"
        self._answer(client, type, ask, None, Problem("invalid", reason))

    def _over(self, client: Client, item: AnyMessage, now: float) -> None:
        """Over a rate: what may be lost is shed, the rest refused with an error; after 10 s in a row, 1008."""
        self._refuse(client, now)
        if item.reliable is False or client._link is None:
            return
        config = self.services.config
        limit = f"{config.message_rate:g} messages and {config.byte_rate:g} bytes per second"
        problem = Problem("rate", f"over the rate, expected at most {limit}")
        if item.type == "session:ask" and isinstance(item, Message):
            with suppress(ProtocolError):
                self._answer(client, None, decode_control(item, Ask).ask, None, problem)
        elif not client._meter.tells(now):
            return
        elif item.type == "session:ping" and isinstance(item, Message) and self._speaks_v1(client):
            self._receive_control(client, item)  # it says what was received, and that is what a sender waits for
        else:
            self._answer(client, item.type, None, None, problem)

    def _refuse(self, client: Client, now: float) -> None:
        """One more refusal by rate."""
        self.services.now = now
        self.services.totals.refused["rate"] += 1
        client._meter.refuse(now)
        client.was_refused = True
        if client._meter.over_too_long(now):
            self.services.totals.refused["rate_closed"] += 1
            self.expel(client, Close.POLICY, "over the rate for 10 s")

    def _receive_control(self, client: Client, item: AnyMessage) -> None:
        """`session:*` of a session.v1 client. Raises ProtocolError on a content of the wrong shape."""
        if isinstance(item, Binary):
            self.services.totals.refused["server_owned"] += 1
        elif item.type == "session:ask":
            ask = decode_control(item, Ask)
            try:
                check_type(ask.type)
            except ValueError as error:
                raise ProtocolError(Close.NOT_MESSAGES, f"not a message: {error}") from None
            self._dispatch(client, Message(ask.type, ask.content), self.routes.kind(ask.type), ask.ask)
        elif item.type == "session:ping":
            ping = decode_control(item, Ping)
            content = {"t": ping.t, "time": self.services.now, "received": client._taken}
            self._control(client, message("session:pong", content))
        elif item.type == "session:ack":
            if client._side_link is not None:
                client._side_link.acked(decode_control(item, Ack).received)
        elif item.type == "session:answer":
            try:
                self.services.answer(client, decode_control(item, Answer).sdp)
            except ValueError as error:
                self.services.totals.refused["answer"] += 1
                self._answer(client, item.type, None, None, Problem("invalid", str(error)))
        elif item.type == "session:leave":
            link = client._link
            self.flush(self.services.now)
            if link is not None:
                link.close(Close.NORMAL, "")
            self.leave(client, "left")
        else:
            self.services.totals.refused["server_owned"] += 1

    def admits(self, client: Client, size: int, now: float) -> bool:
        """Something small that is no message (a ping): may the client afford it? Refusals count as for messages."""
        if client._meter.take(now, size):
            return True
        self._refuse(client, now)
        return False

    def receive_raw(self, client: Client, data: str | bytes, size: int, now: float) -> None:
        """One frame in a room with `raw = True`."""
        services = self.services
        services.now = now
        services.totals.messages_in += 1
        services.totals.bytes_in += size
        if self.admits(client, size, now):
            self.call(Call("on_raw", (client, data), client))

    def complain(self, client: Client, code: str, reason: str) -> None:
        """`session:error` about what could not even be read."""
        self._answer(client, None, None, None, Problem(code, reason))

    def acknowledge(self, client: Client, received: int) -> None:
        """Tells a client, on its reliable link, how many messages have come on its side link."""
        self._control(client, message("session:ack", {"received": received}))

    def _answer(self, client: Client, type: str | None, ask: int | None, value: Any, problem: Problem | None) -> None:
        """The reply to an ask, or `session:error`; classic clients know neither."""
        if client._link is None or client._link.dialect is not V1_DIALECT:
            return
        if ask is not None:
            told = {"ask": ask, "content": value} if problem is None else {"ask": ask, "error": spoken(problem)}
            self._control(client, message("session:reply", told))
        elif problem is not None:
            self._control(client, message("session:error", spoken(problem) | ({"type": type} if type else {})))

    # --- the author's code --------------------------------------------------------------------------------------------

    def create(self) -> None:
        """`on_create`, before anyone is in. Raises PieceError if it fails: there is no room then."""
        call = Call("on_create")
        try:
            value = self.instance.on_create()
        except (Exception, SystemExit) as error:
            raise PieceError(self._problem(call, error).reason) from error
        if value is not None and isawaitable(value):
            self._await(call, value)

    def hook(self, name: str, *args: Any) -> None:
        """Calls an optional hook, if the author wrote it."""
        if name in self.routes.overrides:
            self.call(Call(name, args))

    def call(self, call: Call) -> None:
        """Runs it, or lets it wait for the async handler under way: handlers of a room never overlap."""
        if self._busy:
            if len(self._waiting) < MAX_WAITING or call.client is None:
                self._waiting.append(call)
            else:
                self.services.totals.refused["busy"] += 1
                self._settle(call, None, Problem("busy", f"{MAX_WAITING} messages wait already"))
            return
        target = getattr(self.instance, call.target) if isinstance(call.target, str) else call.target
        try:
            value = target(*call.args)
        except (Exception, SystemExit) as error:
            self._settle(call, None, self._problem(call, error))
            return
        if value is not None and isawaitable(value):
            self._await(call, value)
        else:
            self._settle(call, value, None)

    def _await(self, call: Call, value: Awaitable[Any]) -> None:
        self._busy = True
        self.services.spawn(value, ASYNC_LIMIT, lambda value, error: self._finished(call, value, error))

    def _finished(self, call: Call, value: Any, error: BaseException | None) -> None:
        self._busy = False
        self._settle(call, value, None if error is None else self._problem(call, error))
        while self._waiting and not self._busy:
            self.call(self._waiting.popleft())

    def _settle(self, call: Call, value: Any, problem: Problem | None) -> None:
        if call.client is None or (problem is None and call.ask is None):
            return
        try:
            self._answer(call.client, call.type, call.ask, value, problem)
        except Exception as error:  # the handler returned what is not JSON
            self._answer(call.client, call.type, call.ask, None, self._problem(call, error))

    def _problem(self, call: Call, error: BaseException) -> Problem:
        """A refusal is the author's word to the client; all else is a fault, counted and logged, and told to nobody
        outside development."""
        if isinstance(error, Refused):
            return Problem("refused", str(error))
        services = self.services
        services.totals.faults += 1
        name = call.target if isinstance(call.target, str) else getattr(call.target, "__qualname__", repr(call.target))
        if self._faults.take(services.now):
            client = call.client.id if call.client else None
            self.log.error("fault in the code of a piece", hook=name, client=client, exc_info=error)
        if isinstance(error, TimeoutError):
            return Problem("timeout", f"took longer than {ASYNC_LIMIT:g} s")
        detail = f": {type(error).__name__}: {error}" if services.config.development else ""
        return Problem("failed", f"the code of the room failed{detail}")

    def after(self, seconds: float, call: Callable[[], Any], repeat: bool) -> Timer:
        timers = self.services.timers

        def fire(now: float) -> None:
            self.services.now = now
            if not repeat:
                self._timers.discard(timer)
                self.call(Call(call))
                return
            timer.when = next_beat(timer.when, seconds, now)
            timers.rearm(timer, fire)
            if not self._busy:  # one that would wait is one that was missed
                self.call(Call(call))

        if repeat and seconds <= 0:
            raise ValueError(f"every({seconds}) would never let go, expected more than 0 seconds")
        timer = timers.at(self.services.clock() + seconds, fire)
        if len(self._timers) >= self._prune_at:
            self._timers = {one for one in self._timers if one.fire is not None}
            self._prune_at = 2 * len(self._timers) + 64
        self._timers.add(timer)
        return timer

    def _schedule_tick(self, when: float) -> None:
        self._tick = self.services.timers.at(when, self._run_tick)

    def _run_tick(self, now: float) -> None:
        self.services.now = now
        dt = 1 / self.room_class.tick_rate
        assert self._tick is not None
        self._schedule_tick(next_beat(self._tick.when, dt, now))
        if not self._busy:
            self.call(Call("on_tick", (dt,)))

    def dispose(self) -> None:
        """The room ends; its timers with it."""
        self.hook("on_dispose")
        self.stop()

    def stop(self) -> None:
        for timer in (*self._timers, self._presence_timer, self._tick, self.expiry):
            if timer is not None:
                timer.cancel()
        self._timers.clear()


def next_beat(when: float, period: float, now: float) -> float:
    """The first of `when + n × period` that lies after `now`: what was missed is skipped, the beat is kept."""
    return when + period * max(1, (now - when) // period + 1)


def spoken(problem: Problem) -> dict[str, Any]:
    return {"code": problem.code, "reason": problem.reason}
