"""All rooms of a process: which exist, who may open one, who is let in. No sockets, no tasks; `now` is an argument."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from inspect import isawaitable
from typing import Any, Final, Protocol

from msgspec import UNSET

from .calls import ASYNC_LIMIT, FAULTS_LOGGED
from .clock import Timers
from .config import Config
from .handlers import Routes
from .limits import Bucket, Buckets, network
from .outbox import Link, Outbox
from .posts import EVERYBODY
from .protocol import (
    LOBBY,
    Close,
    Hello,
    LimitExceeded,
    Message,
    PieceError,
    Refused,
    RoomFull,
    SessionError,
    encode_json,
    piece_of,
)
from .room import Client, Relay, Room, RoomCore, User
from .services import Services, Totals

WRITES_AT_ONCE: Final = 64  # then the loop reads again before the next room's turn: half the latency, same batches
EMPTY_FOR: Final = 60.0  # seconds an empty room is kept

Outcome = Callable[["Client | None", "SessionError | None"], None]  # told once: the seat, or why there is none
Verdict = Callable[["RoomCore | None", "User | None", "SessionError | None"], None]  # told once: the room, and as whom


class RoomClasses(Protocol):
    """Where the classes of rooms come from (the pieces folder)."""

    def room_class(self, piece: str) -> type[Room] | None:
        """None: no code, a Relay. Raises PieceError if there is code but it cannot be used."""


class Rooms:
    """Opens rooms when the first client comes, seats clients, disposes of rooms that stay empty."""

    def __init__(
        self,
        config: Config,
        classes: RoomClasses,
        *,
        log: Any,
        clock: Callable[[], float],
        token: Callable[[], str],
        wake: Callable[[float], None],
        spawn: Callable[[Awaitable[Any], float, Callable[[Any, BaseException | None], None]], None],
        verify: Callable[[str], User | None] = lambda token: None,
        publish: Callable[[str, bytes], None] = lambda topic, data: None,
        subscribe: Callable[[str, Callable[[bytes], None]], Callable[[], None]] = lambda topic, deliver: lambda: None,
        offer: Callable[[Client], str | None] = lambda client: None,
        answer: Callable[[Client, str], None] = lambda client, sdp: None,
        hangup: Callable[[Client], None] = lambda client: None,
        claim: Callable[[str], int] = lambda slug: 1,
        release: Callable[[str, int], None] = lambda slug, epoch: None,
        linked: Callable[[Client, Link], None] = lambda client, link: None,
    ) -> None:
        """`clock()` is the time for authors, `token()` gives an unguessable string. `wake(when)` asks for a call of run
        at `when`, or at the end of this tick if that has passed. `spawn(awaitable, seconds, done)` runs it and calls
        `done(value, error)`. `verify` returns the user of a token, or raises Refused. `publish` and
        `subscribe` join rooms by topics, `offer`, `answer` and `hangup` signal side links (see Services). `claim`
        returns the epoch in which this node owns a slug, `release` says that the room is gone. `linked` is told of each
        link of a client, before anything is sent on it."""
        self.config = config
        self.timers = Timers(wake)
        self.totals = Totals()
        self.rooms: dict[str, RoomCore] = {}
        self._empty: dict[str, RoomCore] = {}  # in the order in which they emptied
        self._classes = classes
        self._wake = wake
        self._verify, self._claim, self._release = verify, claim, release
        self._openings = Buckets(config.new_rooms_per_address / 60, config.new_rooms_per_address)
        self._routes: dict[type[Room], Routes] = {}
        self._dirty: deque[Outbox] = deque()
        self._broken = Bucket(1, FAULTS_LOGGED)  # tracebacks of rooms that could not be made
        self._services = Services(
            config,
            self.timers,
            self.totals,
            log,
            token,
            spawn,
            self._flush_later,
            self._emptied,
            self.close,
            offer,
            answer,
            hangup,
            verify,
            publish,
            subscribe,
            clock,
            linked,
        )

    # --- the loop -----------------------------------------------------------------------------------------------------

    def enter(self, now: float) -> None:
        """It is `now`, for calls that do not say so themselves."""
        self._services.now = now

    def run(self, now: float) -> float | None:
        """Fires what is due, then writes what this tick brought. Returns when it wants to run again."""
        self._services.now = now
        self.timers.run(now)
        dirty, writes = self._dirty, 0
        for _ in range(len(dirty)):
            outbox = dirty.popleft()
            outbox.flush(now)
            writes += len(outbox.seats)
            if writes >= WRITES_AT_ONCE:
                break
        return now if dirty else self.timers.due  # a flush can set timers too

    def _flush_later(self, outbox: Outbox) -> None:
        if not self._dirty:
            self._wake(0.0)
        self._dirty.append(outbox)

    # --- opening and closing rooms ------------------------------------------------------------------------------------

    def admit(self, slug: str, address: str, now: float) -> None:
        """May this address come to this room? Asked before the upgrade. Raises LimitExceeded (429 or 503)."""
        if slug in self.rooms:
            return
        if self.config.max_rooms and len(self.rooms) >= self.config.max_rooms and not self._empty:
            raise self._over("max_rooms", 503, f"{len(self.rooms)} rooms are open, no more are opened")
        if not self._openings.take(network(address), now):
            most = self.config.new_rooms_per_address
            raise self._over("new_rooms_per_address", 429, f"too many new rooms, at most {most} per minute")

    def _over(self, limit: str, status: int, reason: str) -> LimitExceeded:
        self.totals.refused[limit] += 1
        return LimitExceeded(limit, status, reason)

    def class_of(self, slug: str) -> type[Room]:
        """A room without code is a lobby of its own where classic pages get a room per slug. Raises PieceError."""
        found = self._classes.room_class(piece_of(slug))
        if found is None and self.config.isolate_classic:
            found = self._classes.room_class(LOBBY)
        return found or Relay

    def _open(self, slug: str) -> RoomCore:
        """The room of this slug, made if there is none. Raises LimitExceeded or PieceError."""
        core = self.rooms.get(slug)
        if core is not None:
            return core
        room_class = self.class_of(slug)
        if self.config.max_rooms and len(self.rooms) >= self.config.max_rooms:
            if not self._empty:
                raise self._over("max_rooms", 503, f"{len(self.rooms)} rooms are open, no more are opened")
            self.close(next(iter(self._empty.values())))
        epoch = self._claim(slug)
        try:
            core = self._make(slug, room_class, epoch)
        except PieceError:
            self._release(slug, epoch)
            raise
        self.rooms[slug] = core
        self._emptied(core, self._services.now)
        return core

    def restore(self, slug: str, epoch: int) -> RoomCore:
        """A room that another process of this node owned, and in its epoch still does. Raises PieceError."""
        core = self.rooms[slug] = self._make(slug, self.class_of(slug), epoch)
        return core

    def _make(self, slug: str, room_class: type[Room], epoch: int) -> RoomCore:
        """Raises PieceError."""
        try:
            core = RoomCore(slug, room_class, self._routes_of(room_class), self._services, epoch)
        except (Exception, SystemExit) as error:
            self.totals.faults += 1
            if self._broken.take(self._services.now):
                log = self._services.log.bind(room=slug)
                log.error("fault in the code of a piece", hook="__init__", exc_info=error)
            raise PieceError("the code of the room failed") from error
        try:
            core.calls.create()
        except PieceError:
            core.stop()
            raise
        return core

    def _routes_of(self, room_class: type[Room]) -> Routes:
        if room_class not in self._routes:
            self._routes[room_class] = Routes(room_class, Room)
        return self._routes[room_class]

    def _emptied(self, core: RoomCore, now: float) -> None:
        self._empty[core.slug] = core
        core.expiry = self.timers.at(now + EMPTY_FOR, lambda now: self.close(core))

    def close(self, core: RoomCore) -> None:
        """Disposes of a room."""
        if self.rooms.pop(core.slug, None) is not None:
            self._empty.pop(core.slug, None)
            core.dispose()
            self._release(core.slug, core.epoch)

    def of_piece(self, piece: str) -> list[RoomCore]:
        return [core for core in self.rooms.values() if piece_of(core.slug) == piece]

    def swap(self, core: RoomCore, room_class: type[Room], done: Callable[[BaseException | None], None]) -> None:
        """Other code for a room that is there; see RoomCore.swap. Raises PieceError."""
        core.swap(room_class, self._routes_of(room_class), done)

    def forget_class(self, room_class: type[Room]) -> None:
        """It will not be asked for again."""
        self._routes.pop(room_class, None)

    def post(self, slug: str, item: Message, now: float) -> None:
        """A message of somebody with the admin token, to a room that is made if there is none. Raises SessionError."""
        self.enter(now)
        self._open(slug).post(item)

    def tell_everybody(self, item: Message, now: float) -> None:
        """By a topic, to the rooms that listen to it: type, content, id."""
        self.enter(now)
        sender = None if item.id is UNSET else item.id
        self._services.publish(EVERYBODY, encode_json({"type": item.type, "content": item.content, "id": sender}))

    # --- letting clients in -------------------------------------------------------------------------------------------

    def join(self, slug: str, link: Link, hello: Hello, now: float, outcome: Outcome) -> None:
        """Seats a client, or resumes its seat; tells `outcome` at once, or later if `on_auth` is async."""
        core = self.rooms.get(slug)
        back = core.resumable.get(hello.resume) if core is not None and hello.resume else None
        if core is not None and back is not None:
            self._services.now = now
            core.resume(back, link, hello.received)
            outcome(back, None)
            return

        def judged(core: RoomCore | None, user: User | None, error: SessionError | None) -> None:
            outcome(None if core is None else self._seat(core, link, user, hello), error)

        self.ask(slug, hello, now, judged)

    def ask(self, slug: str, hello: Hello, now: float, verdict: Verdict) -> None:
        """Would this client be let in, and as whom? Tells `verdict` at once, or later if `on_auth` is async."""
        self._services.now = now
        try:
            core = self._open(slug)
            self._check_full(core)
            user = self._verify(hello.token) if hello.token else None
            found = core.instance.on_auth(hello.token, hello.data)
        except SessionError as error:
            verdict(None, None, self._counted(error))
            return
        except (Exception, SystemExit) as error:
            verdict(None, None, self._auth_fault(core, error))
            return
        if found is not None and isawaitable(found):
            self._services.spawn(
                found, ASYNC_LIMIT, lambda value, error: self._found(core, value or user, error, verdict)
            )
        else:
            self._approve(core, found or user, verdict)

    def _found(self, core: RoomCore, user: Any, error: BaseException | None, verdict: Verdict) -> None:
        """An async `on_auth` has ended. Meanwhile the room may have filled, or been disposed of."""
        try:
            if error is not None:
                raise error
            core = self._open(core.slug)
            self._check_full(core)
        except SessionError as reason:
            verdict(None, None, self._counted(reason))
        except (Exception, SystemExit) as fault:
            verdict(None, None, self._auth_fault(core, fault))
        else:
            self._approve(core, user, verdict)

    def _approve(self, core: RoomCore, user: Any, verdict: Verdict) -> None:
        if user is None or isinstance(user, User):
            verdict(core, user, None)
        else:
            fault = TypeError(f"on_auth returned {user!r}, expected a User or None")
            verdict(None, None, self._auth_fault(core, fault))

    def _seat(self, core: RoomCore, link: Link, user: User | None, hello: Hello) -> Client:
        if self._empty.pop(core.slug, None) is not None and core.expiry is not None:
            core.expiry.cancel()
        return core.seat(link, user, hello)

    def _check_full(self, core: RoomCore) -> None:
        if core.full:
            raise RoomFull(
                f"room {core.slug!r} is full: {len(core.clients)} of {core.room_class.max_clients} seats are taken"
            )

    def _auth_fault(self, core: RoomCore, error: BaseException) -> SessionError:
        core.calls.fault("on_auth", error)
        return PieceError("the code of the room failed")

    def _counted(self, error: SessionError) -> SessionError:
        """Counts why somebody was not let in, under a word from a closed list."""
        if isinstance(error, Refused):
            self.totals.refused["auth"] += 1
        elif isinstance(error, RoomFull):
            self.totals.refused["room_full"] += 1
        elif error.code == Close.FAILED:
            self.totals.refused["piece"] += 1
        return error

    # --- for pages and metrics ----------------------------------------------------------------------------------------

    @property
    def clients(self) -> int:
        return sum(len(core.clients) for core in self.rooms.values())

    def __iter__(self) -> Iterator[RoomCore]:
        return iter(self.rooms.values())
