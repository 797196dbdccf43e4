"""Who is in a room. No sockets, no tasks, no clock.

`Room` is what authors subclass, `Client` what they are handed. `RoomCore` stands below both: it owns seats, ids and
links, so that an author's instance can be replaced while people play. What clients say goes through its inbox, what
they are sent through its outbox, and the author's code is run by its calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

from .calls import Calls, Subscription
from .clock import Timer
from .config import Config
from .handlers import Routes, read_any
from .inbox import Inbox
from .limits import Allowance, Meter
from .outbox import Link, Outbox, Seat
from .presence import Person, Presence, PresenceDiff
from .protocol import (
    CLASSIC,
    EMPTY,
    V1_DIALECT,
    AnyMessage,
    Close,
    Hello,
    Message,
    Refused,
    connected,
    encode_json,
    joined,
    left,
    message,
)
from .services import Services
from .succession import Succession

PRESENCE_GAP: Final = 0.05  # seconds between two presence diffs of a room


@dataclass(frozen=True, slots=True)
class User:
    """A verified person: from a token that the server checked, or made by `on_auth`."""

    id: str
    handle: str | None = None
    data: Any = None


class Client(Seat):
    """One seat in one room: what an author holds of somebody who plays."""

    __slots__ = ("_grace", "_user", "beside", "core", "data", "lingers", "name", "net")

    def __init__(self, id: int, core: RoomCore, meter: Meter, user: User | None, name: str | None, data: Any) -> None:
        super().__init__(id, meter)
        self.name = name  # what the client says of itself, like `data`: a label, no proof
        self.data = data
        self.lingers = False  # its room shows it longer than it is here: set in on_leave, classic pages see no `left`
        self.beside = False  # the second wire of somebody who is here already (Dialect)
        self.net: str | None = None  # its bad network, in development (conditioner.py)
        self.core = core  # the room below the author's instance
        self._user = user
        self._grace: Timer | None = None

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

    def send(
        self, type: str, content: Any = None, reliable: bool = True, *, id: int | str | None = 0,
        extra: Mapping[str, Any] = EMPTY,
    ) -> None:  # fmt: skip
        """To this client alone. `id` says whom it is from: a client's id, or 0 for the server. For classic pages it may
        be a tag, or None for no `id`, and `extra` has keys beside the envelope. Raises TypeError if `content` is
        neither bytes nor JSON, ValueError on a bad type."""
        self.core.outbox.send(self, message(type, content, id, reliable, extra))

    def send_raw(self, data: str | bytes) -> None:
        """One WebSocket frame, as it is; only in a room with `raw = True`."""
        self.core.outbox.send(self, data)

    def kick(self, reason: str = "kicked") -> None:
        """Closes with 4001 and gives the seat up. What was sent before still arrives."""
        self.core.expel(self, Close.KICKED, reason)

    def identify(self, user: User) -> None:
        """It has proved who it is after it came in."""
        self.core.introduce(self, user, self.name, self.data)

    def introduce(self, name: str | None, data: Any = None) -> None:
        """What presence shows of it from now on, beside what was proved: labels."""
        self.core.introduce(self, self._user, name, data)

    def __repr__(self) -> str:
        return f"<Client {self.core.slug}#{self.id}>"


class Room:
    """Subclass it in a piece; one instance per slug. All hooks are optional; none overlaps another, but for
    an async `on_auth`, whose caller is not in yet."""

    max_clients: ClassVar[int] = 0  # seats; 0 = as many as the server takes
    max_message: ClassVar[int] = 0  # bytes; 0 = the server's --message-size
    tick_rate: ClassVar[float] = 0.0  # Hz of on_tick; 0 = no tick
    flush_ms: ClassVar[float] = 0.0  # 0 = at the end of each tick of the loop; 4 to 8 save CPU in big busy rooms
    grace: ClassVar[float] = 5.0  # seconds a seat is kept after an unclean drop
    keep: ClassVar[tuple[str, ...]] = ()  # attributes that survive a reload
    relay: ClassVar[bool | tuple[str, ...]] = ()  # types passed to the others unread; `*` matches up to a colon
    others: ClassVar[tuple[str, ...]] = ("1v1:move", "squash:move")  # of them, those that a classic sender has not back
    elects_host: ClassVar[bool] = False  # the client longest here is the host
    server_only: ClassVar[tuple[str, ...]] = ()  # types that clients may not send
    raw: ClassVar[bool] = False  # on_raw gets every frame unparsed: for other protocols

    _core: RoomCore

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

    @property
    def config(self) -> Config:
        """The server's settings."""
        return self._core.services.config

    def broadcast(
        self, type: str, content: Any = None, exclude: Client | None = None, reliable: bool = True, *,
        to: Iterable[Client] | None = None, id: int | str | None = 0, extra: Mapping[str, Any] = EMPTY,
    ) -> None:  # fmt: skip
        """To all in the room, or to those of a group, but never to `exclude`. The rest is as with Client.send."""
        item = message(type, content, id, reliable, extra)
        if to is None:
            self._core.outbox.broadcast(item, exclude)
        else:
            self._core.outbox.multicast(item, to, exclude)

    def verify(self, token: str) -> User | None:
        """Whose token this is. None if the server checks no tokens. Raises Refused if it is bad."""
        user: User | None = self._core.services.verify(token)
        return user

    def publish(self, topic: str, content: Any = None) -> None:
        """To all rooms of the server that have subscribed to a topic, this one included; each hears it in a later turn
        of its own. Raises TypeError if `content` is not JSON."""
        self._core.services.publish(topic, encode_json(content))

    def subscribe(self, topic: str, call: Callable[[Any], Any]) -> Subscription:
        """Calls with the content of each publication; `cancel()` on what is returned ends that, as the room's end
        does. Who may publish is up to the rooms of this server: there is no telling which it was."""
        return self._core.calls.subscribe(topic, call)

    def after(self, seconds: float, call: Callable[[], Any]) -> Timer:
        """Calls once; `cancel()` on what is returned prevents it."""
        return self._core.calls.after(seconds, call, repeat=False)

    def every(self, seconds: float, call: Callable[[], Any]) -> Timer:
        return self._core.calls.after(seconds, call, repeat=True)

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

    def on_post(self, message: Message) -> Any:
        """What somebody with the admin token has posted to `/session/{slug}/messages`. Without this hook all are
        told."""

    def on_raw(self, client: Client, data: str | bytes) -> Any: ...
    def on_tick(self, dt: float) -> Any:
        """Every 1/tick_rate seconds while somebody has a seat; `dt` is always that, missed ticks are skipped."""

    def on_reload(self, old: dict[str, Any]) -> Any:
        """This instance takes over while people play, after its `on_create`. `old`: the attributes of the one before;
        those that `keep` names are set already. If it raises, the old one goes on."""

    def on_dispose(self) -> Any: ...


class Relay(Room):
    """A room without code: every type goes to the others, and the client longest here is the host."""

    relay = True
    elects_host = True


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
        self.host: int | None = None
        self.expiry: Timer | None = None  # disposal of an empty room
        self.resumable: dict[str, Client] = {}  # resume token → seat
        self.outbox = Outbox(services, self.clients, room_class.flush_ms / 1000)
        self.calls = Calls(self._instance_of(room_class), routes, services, self.log, self.outbox, ruined=self._ruin)
        self.inbox = Inbox(
            slug, services, self.outbox, self.calls,
            confirmed=self._confirm, leave=self._quit, expel=self.expel,
        )  # fmt: skip
        self._next_id = 1
        self._presence_timer: Timer | None = None
        self._presence_at = float("-inf")
        self._told_host: int | None = None
        self._allowance = self._allow()

    def _instance_of(self, room_class: type[Room]) -> Room:
        instance = room_class()
        instance._core = self
        return instance

    def _allow(self) -> Allowance:
        config = self.services.config
        largest = max(self.max_message, config.message_size) if self.max_message else math.inf
        burst = max(config.byte_burst, largest) if config.byte_burst else 4 * largest
        return Allowance.of(config.message_rate, config.message_burst, config.byte_rate, burst)

    @property
    def instance(self) -> Room:
        """The author's, of this moment."""
        room: Room = self.calls.instance
        return room

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
        self.outbox.count_from_here(client)
        client.beside = link.dialect.beside
        client.net = hello.net
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
        self.log.debug("joined", client=client.id, name=client.name, link=link.kind)
        self.calls.hook("on_join", client)
        if self.clients:
            self.calls.start_ticks(self.room_class.tick_rate)
        return client

    def readmit(self, client: Client) -> None:
        """A seat of another process (handover): without a link, for as long as after a drop."""
        self.clients[client.id] = client
        self.presence.add(client)
        for token in (client._resume_before, client._resume):
            if token:
                self.resumable[token] = client
        grace = self.room_class.grace if client._resume else 0.0  # a classic client cannot come back to its seat
        client._grace = self.services.timers.at(self.services.now + grace, lambda now: self._expire(client, now))
        self.calls.start_ticks(self.room_class.tick_rate)

    def resume(self, client: Client, link: Link, received: int) -> None:
        """The seat of a valid resume token, back on a new link; `received` is the client's count (wire.md, Resume)."""
        if client._link is not None:  # the server did not know yet that it was dead
            client._link.close(Close.GOING_AWAY, "resumed elsewhere")
            self._disconnect(client)
        if client._grace is not None:
            client._grace.cancel()
            client._grace = None
        recovered = received == self.outbox.seq(client)
        self._connect(client, link)
        self.presence.change(client)
        self._greet(client, link, recovered)
        self._presence_later()
        self.log.debug("resumed", client=client.id, recovered=recovered)
        self.calls.hook("on_resume", client)

    def drop(self, client: Client, link: Link, clean: bool) -> None:
        """The link ended. A clean end gives the seat up; after any other it is kept for `grace` seconds."""
        if self.outbox.postpone(lambda: self.drop(client, link, clean)) or client._link is not link:
            return
        grace = self.room_class.grace
        if clean or grace <= 0 or link.dialect is not V1_DIALECT:
            self.leave(client, "left" if clean else "lost")
            return
        self._disconnect(client)
        self.presence.change(client)
        self._presence_later()
        client._grace = self.services.timers.at(self.services.now + grace, lambda now: self._expire(client, now))
        self.log.debug("dropped", client=client.id, grace=grace)
        self.calls.hook("on_drop", client)

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
        self.log.debug("left", client=client.id, reason=reason)
        self.calls.hook("on_leave", client, reason)
        if not client.beside and not self.room_class.raw:
            self._farewell(client)
        if not self.clients:
            self.calls.stop_ticks()
            self.services.emptied(self, self.services.now)

    def introduce(self, client: Client, user: User | None, name: str | None, data: Any) -> None:
        """It is somebody else now, or says other things of itself."""
        here = self.clients.get(client.id) is client and not client.beside
        if here:
            self.presence.remove(client)
        client._user, client.name, client.data = user, name, data
        if here:
            self.presence.add(client)
            self._presence_later()

    def post(self, item: Message) -> None:
        """Of somebody with the admin token (Rooms.post). Raises Refused."""
        if self.room_class.raw:
            raise Refused(f"room {self.slug!r} has a protocol of its own, it is sent no messages")
        if "on_post" in self.calls.routes.overrides:
            self.calls.hook("on_post", Message(item.type, read_any(item), item.id))
        else:
            self.outbox.broadcast(message(item.type, item.content, item.id))

    def expel(self, client: Client, code: int, reason: str) -> None:
        """Closes the link after what was sent before, and gives the seat up."""
        link = client._link
        if link is not None:
            self.outbox.flush(self.services.now)
            link.close(code, reason)
        self.leave(client, "kicked" if code == Close.KICKED else "closed")

    def _quit(self, client: Client) -> None:
        """It said that it leaves."""
        link = client._link
        self.outbox.flush(self.services.now)
        if link is not None:
            link.close(Close.NORMAL, "")
        self.leave(client, "left")

    def _ruin(self) -> None:
        """There is no room, after all: its async `on_create` has failed."""
        for client in tuple(self.clients.values()):
            self.expel(client, Close.FAILED, "the code of the room failed")
        self.services.close(self)

    def _connect(self, client: Client, link: Link) -> None:
        client._link = link
        client._behind = False
        self.services.linked(client, link)
        self.outbox.place(client)
        if self.room_class.elects_host and not client.beside and (self.host is None or client.id < self.host):
            self.host = client.id

    def _disconnect(self, client: Client) -> None:
        """A dropped client has no links; its side link belongs to the reliable one that signalled it."""
        client._link = client._side_link = None
        self.services.hangup(client)
        self.outbox.place(client)
        if client.id == self.host:
            self.host = min((id for id, one in self.clients.items() if not (one.away or one.beside)), default=None)

    # --- greetings and presence ---------------------------------------------------------------------------------------

    def _greet(self, client: Client, link: Link, recovered: bool) -> None:
        if link.dialect is CLASSIC:
            self.outbox.control(client, connected(client.id, link.address, self.count))
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
            "seq": self.outbox.seq(client),
            "time": self.services.now,
            "received": client._taken,
            "recovered": recovered,
        }
        offer = self.services.offer(client)
        self.outbox.control(
            client, message("session:welcome", content if offer is None else content | {"offer": offer})
        )

    def _confirm(self, client: Client) -> None:
        """It has the welcome with the new token: the one before is not needed any more."""
        self.resumable.pop(client._resume_before, None)
        client._resume_before = ""

    def _announce(self, news: AnyMessage, exclude: Client | None) -> None:
        """Classic clients are told at once, of each; the others by presence, once per tick."""
        self.outbox.announce(CLASSIC, news, exclude)
        self._presence_later()

    def _farewell(self, client: Client) -> None:
        if client.lingers:
            self._presence_later()
        else:
            self._announce(left(client.id, self.count), None)

    def _presence_later(self) -> None:
        if self._presence_timer is None and self.outbox.speaks(V1_DIALECT):
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
        if diff is not None:
            self.outbox.announce(V1_DIALECT, message("session:presence", diff))

    # --- other code, while people play --------------------------------------------------------------------------------

    def swap(self, room_class: type[Room], routes: Routes, done: Callable[[BaseException | None], None]) -> None:
        """The author's code was edited. If the new fails, the room goes on with the old; `done` is told why, or None.

        Links that are there keep what was agreed when they came: the largest message, and `raw`."""
        make = partial(self._instance_of, room_class)

        def end(error: BaseException | None) -> None:
            if error is None:
                self._adopt(room_class)
            done(error)

        self.calls.after_this(Succession(self.calls, make, routes, room_class.keep, end).run)

    def _adopt(self, room_class: type[Room]) -> None:
        self.room_class = room_class
        self.outbox.flush_after = room_class.flush_ms / 1000
        self._allowance = self._allow()
        self.calls.stop_ticks()
        if self.clients:
            self.calls.start_ticks(room_class.tick_rate)

    # --- the end ------------------------------------------------------------------------------------------------------

    def dispose(self) -> None:
        """The room ends; its timers with it."""
        self.calls.hook("on_dispose")
        self.stop()

    def stop(self) -> None:
        self.calls.stop()
        for timer in (self._presence_timer, self.expiry):
            if timer is not None:
                timer.cancel()
