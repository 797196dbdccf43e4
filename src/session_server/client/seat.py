"""A seat in a room, held over any number of links: joining, what comes in, drops, and the end."""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any
from urllib.parse import unquote, urlsplit

from msgspec import UNSET, UnsetType

from ..protocol import Ack, Answer, AnyMessage, Close
from ..trust import Route
from .handlers import Handlers
from .links import CLOSE_TIMEOUT, DataChannelLink, WebSocketLink
from .outbox import Outbox, Signal
from .state import Clock, Inbox, Kept, Newest, People
from .wire import (
    OWN,
    AskRefused,
    Control,
    Frame,
    Message,
    Pong,
    PresenceDiff,
    Problem,
    Reply,
    SessionClosed,
    Welcome,
    log,
    read_control,
    read_frame,
    read_message,
    write_frame,
)

HEARTBEAT = 5.0  # seconds between two pings
MISSED = 2  # heartbeats without a byte in return, after which a link is dead
RETRY_FIRST = 0.25  # seconds, the upper end of the first delay
RETRY_MOST = 10.0  # seconds, the upper end of the later ones
BACKED_OFF = 2  # doublings before the first delay after 1013
SIDE_WITHIN = 3.0  # seconds for a data channel to open
SIDE_AGAIN = 30.0  # seconds until the next attempt
SETTLED = 10.0  # seconds a link must have lived for the delays to begin anew

Token = str | Callable[[], str | None | Awaitable[str | None]]


def full_jitter(attempt: int) -> float:
    """Seconds to wait before the attempt with this number, from 0. Those dropped together do not come back together."""
    return random.random() * min(RETRY_MOST, RETRY_FIRST * 2.0 ** min(attempt, 16))


@dataclass(frozen=True, slots=True)
class How:
    """How to join, and to join again."""

    url: str
    hello: dict[str, Any]  # what one says of oneself
    token: Token | None
    open_timeout: float  # seconds
    ssl: SSLContext | None
    backoff: Callable[[int], float]


@dataclass(slots=True)
class Asked:
    answer: asyncio.Future[Any]
    kept: Kept


class Seat:
    """One background task, `run`, which survives any number of links."""

    def __init__(self, how: How) -> None:
        self.id = 0  # none yet; another number after a resume that failed
        self.slug = unquote(urlsplit(how.url).path.removeprefix("/session/").strip("/")) or "lobby"
        self.host: int | None = None
        self.people = People()
        self.end: SessionClosed | None = None
        self.failure: SessionClosed | None = None  # of the last attempt to connect, or of this one what it lacks
        self.side: DataChannelLink | None = None  # an open one
        self.entered = asyncio.Event()  # the program is ready to hear
        self.arrived = Signal()  # the inbox has a message, or the room ended
        self.space = Signal()  # the inbox or an async handler has made room
        self.now = time.monotonic
        self.clock = Clock(self.now)
        self.inbox = Inbox()
        self.outbox = Outbox(self.now, self.check_open)
        self.handlers = Handlers(self.slug, self.space.notify)
        self.iterating = 0  # live iterators
        self._how = how
        self._resume: str | None = None  # token for the next resume
        self._epoch: Any = None
        self._heard = 0  # frames that came
        self._paused = False  # nothing is read, as the program does not keep up
        self._asks: dict[int, Asked] = {}
        self._last_ask = 0
        self._number = 0  # of our last message that may be lost
        self._is_numbered = False  # as there may be two links
        self._newest = Newest()

    def check_open(self) -> None:
        if self.end is not None:
            raise SessionClosed(self.end.code, self.end.reason)
        if not self.id:
            raise RuntimeError("the room is not joined yet, expected `async with session(...) as room`")

    # Connecting: run → _stay → _join, _live, and again after a drop

    async def run(self) -> None:
        try:
            await self._stay()
        except Exception as error:  # a fault of ours, or of the program's token()
            self.finish(SessionClosed(Close.FAILED, f"{type(error).__name__}: {error}"))
            raise

    async def _stay(self) -> None:
        attempt = 0
        patience = self._how.open_timeout
        while True:
            joined_at = None
            try:
                async with asyncio.timeout(patience):
                    link, welcome, rtt = await self._join()
            except TimeoutError:
                closed = SessionClosed(Close.ABNORMAL, f"no welcome from {self._how.url} within {patience:g} s")
            except SessionClosed as error:
                closed = error
            else:
                joined_at = self.now()
                closed = await self._live(link, welcome, rtt)
            if self.outbox.leaving:
                closed = SessionClosed(Close.NORMAL, "left")
            if not closed.comes_back:
                self.finish(closed)
                return
            if joined_at is not None:
                if self.now() - joined_at > SETTLED:
                    attempt = 0
                self.handlers.emit("session:drop", {"code": closed.code, "reason": closed.reason})
            if closed.code == Close.FULL:
                attempt = max(attempt, BACKED_OFF)
            self.failure = closed
            await asyncio.sleep(self._how.backoff(attempt))
            attempt += 1

    async def _join(self) -> tuple[WebSocketLink, Welcome, float]:
        """A link with its welcome, and how many seconds that took to come."""
        hello: dict[str, Any] = dict(self._how.hello)
        if (token := await self._proof()) is not None:
            hello["token"] = token
        if self._resume is not None:
            hello |= {"resume": self._resume, "received": self.outbox.ledger.received}
        link = await WebSocketLink.open(self._how.url, self._how.ssl)
        if self.failure is None or self.failure.code == Close.ABNORMAL:  # a server's own word says more
            why = "connected, but no welcome came: does the room speak session.v1?"
            self.failure = SessionClosed(Close.ABNORMAL, why)
        try:
            sent_at = self.now()
            await link.send(write_frame("session:join", hello))
            while True:
                found = read_frame(await link.receive())
                control = None if found is None else read_control(found)
                if isinstance(control, Welcome):
                    return link, control, self.now() - sent_at
                if isinstance(control, Problem):
                    self._complain(control)
        except BaseException:
            await link.abort()
            raise

    async def _proof(self) -> str | None:
        token = self._how.token
        if token is None or isinstance(token, str):
            return token
        try:
            proof = token()
            proof = await proof if inspect.isawaitable(proof) else proof
            if not isinstance(proof, str | None):
                raise TypeError(f"token() is {proof!r}, expected a string or None")
            return proof
        except Exception as error:
            if not self.id:
                raise
            log.exception("token() failed and is called again (room %r)", self.slug)
            raise SessionClosed(Close.ABNORMAL, f"token() failed: {error}") from None

    async def _live(self, link: WebSocketLink, welcome: Welcome, rtt: float) -> SessionClosed:
        """A joined link, until it ends."""
        try:
            self.outbox.begin(link)
            self._take_seat(welcome, rtt)
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(self.outbox.write(link)), group.create_task(self._beat(link))]
                await self.entered.wait()
                if welcome.offer:
                    helpers.append(group.create_task(self._keep_side(welcome.offer)))
                closed = await self._read(link)
                for helper in helpers:
                    helper.cancel()
            return closed
        finally:
            self.outbox.end()
            await link.abort()

    def _take_seat(self, welcome: Welcome, rtt: float) -> None:
        is_first = self.id == 0
        ledger = self.outbox.ledger
        # The epoch too, as a restarted server counts its ids from 1 again. Nor can a seat have forgotten what it knew.
        same_seat = (
            self._resume is not None
            and (welcome.id, welcome.epoch) == (self.id, self._epoch)
            and ledger.could_be(welcome.received, welcome.seq)
        )
        if same_seat:
            ledger.resume(welcome.received, welcome.seq)
        else:
            self._refuse_lost_asks()
            ledger.restart(welcome.received, welcome.seq)
        self.id = welcome.id
        self.slug = self.handlers.slug = welcome.room
        self._is_numbered = bool(welcome.offer)
        self._newest.clear()
        self._resume = welcome.resume
        self._epoch = welcome.epoch
        self.clock.add(welcome.time, rtt)
        before = (self.people.count, self.host)
        self.host = welcome.host
        diff = self.people.replace(welcome.presence, welcome.count)
        self.outbox.changed.notify()
        if not is_first:
            self.handlers.emit("session:resume", {"recovered": same_seat and welcome.recovered})
            self._tell_presence(diff, before)

    async def _beat(self, link: WebSocketLink) -> None:
        """Pings. Counts those that got no byte in return, not seconds: a computer may have slept."""
        missed = 0
        while missed < MISSED:
            self.outbox.ping()
            heard = self._heard
            await asyncio.sleep(HEARTBEAT)
            missed = missed + 1 if self._heard == heard and not self._paused else 0
        await link.abort()

    # The side link. Whatever happens to it, the program notices nothing but a longer way

    async def _keep_side(self, offer: str) -> None:
        """As long as the link lives: tries to make one, uses it, and some time after its end tries again."""
        while True:
            try:
                await self._use_side(offer)
            except Exception as error:
                log.debug("no data channel (room %r): %r", self.slug, error)
            await asyncio.sleep(SIDE_AGAIN)

    async def _use_side(self, offer: str) -> None:
        side = DataChannelLink(offer, self.now, self._take_aside)
        try:
            async with asyncio.timeout(SIDE_WITHIN):
                await side.bind()
                self.outbox.say("session:answer", Answer(side.answer))
                await side.opened.wait()
            self.side = side
            await side.watch()
        finally:
            self.side = None
            side.close()

    @property
    def route(self) -> Route:
        """Where what may be lost is sent now."""
        return Route.RELIABLE if self.side is None else self.side.trust.route(self.now())

    def send_unreliable(self, type: str, content: Any) -> None:
        """To nobody while the connection is lost."""
        self._number += 1
        frame = write_frame(type, content, reliable=False, n=self._number if self._is_numbered else UNSET)
        route = self.route
        went_aside = self.side is not None and route is not Route.RELIABLE and self.side.send(frame)
        if self.outbox.link is not None and not (went_aside and route is Route.UNRELIABLE):
            self.outbox.add_unreliable(frame)

    def _take_aside(self, frame: Frame) -> None:
        """What came where things may be lost, and is lost if the program does not keep up."""
        found = read_frame(frame)
        if found is None or found.type.startswith(OWN) or self.handlers.busy:
            return
        found.reliable = False
        if self._is_news(found) and (message := read_message(found)) is not None:
            self.handlers.call(message)
            self.inbox.put(message, len(frame), wait=False)
            self.arrived.notify()

    def _is_news(self, found: AnyMessage) -> bool:
        number = UNSET if found.reliable is not False else found.n
        return isinstance(number, UnsetType) or self._newest.is_news(found.id, found.type, number)

    # What comes in

    async def _read(self, link: WebSocketLink) -> SessionClosed:
        """All that comes, in order, until the link ends."""
        while True:
            try:
                frame = await link.receive()
            except SessionClosed as closed:
                return closed
            self._heard += 1
            found = read_frame(frame)
            if found is None:
                continue
            if found.type.startswith(OWN):
                self._take_control(link, read_control(found))
                continue
            if found.reliable is not False:
                self.outbox.ledger.received += 1
            if self._is_news(found) and (message := read_message(found)) is not None:
                await self._deliver(message, len(frame))

    async def _deliver(self, message: Message, size: int) -> None:
        """Waits while the program does not keep up."""
        self.handlers.call(message)
        while not self.inbox.put(message, size, wait=self.iterating > 0 and not self.outbox.leaving):
            await self._pause()
        self.arrived.notify()
        while self.handlers.busy and not self.outbox.leaving:
            await self._pause()

    async def _pause(self) -> None:
        self._paused = True
        await self.space.wait()
        self._paused = False

    def _take_control(self, link: WebSocketLink, control: Control | None) -> None:
        match control:
            case PresenceDiff():
                before = (self.people.count, self.host)
                if not isinstance(control.host, UnsetType):
                    self.host = control.host
                diff = self.people.apply([*control.joins, *control.updates], control.leaves, control.count)
                self._tell_presence(diff, before)
            case Reply():
                self._take_reply(control)
            case Problem():
                self._complain(control)
            case Pong():
                rtt = self.outbox.ponged(control.t, control.received)
                if rtt is not None:
                    link.rtt = rtt
                    self.clock.add(control.time, rtt)
            case Ack() if self.side is not None:
                self.side.trust.rtt = link.rtt or 0.0
                self.side.trust.acked(control.received, self.now())

    def _tell_presence(self, diff: dict[str, Any], before: tuple[int, int | None]) -> None:
        if diff["joins"] or diff["leaves"] or diff["updates"] or before != (self.people.count, self.host):
            self.handlers.emit("session:presence", diff | {"host": self.host})

    def _complain(self, problem: Problem) -> None:
        code, reason, type = problem.code, problem.reason, problem.type
        if type == "session:answer":  # no data channel, then, which is no fault of the program
            log.debug("no data channel (room %r): %s", self.slug, reason)
            return
        if "session:error" not in self.handlers:
            log.warning("session:error %s: %s (type %r, room %r)", code, reason, type, self.slug)
        self.handlers.emit("session:error", {"code": code, "reason": reason, "type": type})

    # Questions

    async def ask(self, frame_of: Callable[[int], Frame]) -> Any:
        """Asks by a frame with a number of its own. Raises AskRefused, SendQueueFull, SessionClosed."""
        self._last_ask += 1
        ask = self._last_ask
        kept = await self.outbox.keep(frame_of(ask))
        answer = asyncio.get_running_loop().create_future()
        self._asks[ask] = Asked(answer, kept)
        try:
            return await answer
        finally:
            del self._asks[ask]
            self.outbox.ledger.withdraw(kept)  # nobody waits for it any more

    def _take_reply(self, reply: Reply) -> None:
        asked = self._asks.get(reply.ask)
        if asked is None or asked.answer.done():
            return
        if reply.error is None:
            asked.answer.set_result(reply.content)
        else:
            asked.answer.set_exception(AskRefused(reply.error.code, reply.error.reason))

    def _refuse_lost_asks(self) -> None:
        """Those written on a seat that is gone; nobody will answer them."""
        for asked in self._asks.values():
            if asked.kept.sent and not asked.answer.done():
                asked.answer.set_exception(AskRefused("lost", "the seat was lost before an answer came"))

    # The end

    async def leave(self) -> None:
        """Says goodbye, after what was sent before, and waits for the server to close, for a while."""
        if self.outbox.link is not None and self.end is None:
            self.outbox.leave()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    while self.end is None:
                        await self.outbox.changed.wait()
        self.finish(SessionClosed(Close.NORMAL, "left"))

    def finish(self, closed: SessionClosed) -> None:
        """The end, whatever the state. Later calls change nothing."""
        if self.end is not None:
            return
        self.end = closed
        if self.outbox.ledger.unsent:
            log.warning("%d messages were never sent (room %r)", self.outbox.ledger.unsent, self.slug)
        for asked in self._asks.values():
            if not asked.answer.done():
                asked.answer.set_exception(SessionClosed(closed.code, closed.reason))
        if self.id:
            self.handlers.emit("session:close", {"code": closed.code, "reason": closed.reason})
        for signal in (self.outbox.changed, self.arrived, self.space):
            signal.notify()
