"""All that leaves, in the order in which it does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .links import WebSocketLink
from .state import Kept, Ledger
from .wire import Frame, SendQueueFull, SessionClosed, write_frame

UNSENT_UNRELIABLE = 64  # messages; the newest win
PING_AGAIN = 1.0  # seconds; a ping is not answered while one is over the server's rate
COVER_TIMEOUT = 10.0  # seconds that a send waits for the server to say what it has
SLICE_MESSAGES = 60  # a backlog is sent in slices, at 120 messages/s: the server's default rate
SLICE_BYTES = 64 * 1024
SLICE_EVERY = 0.5  # seconds


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


class Outbox:
    """What waits for the link, and what the link is told: reliable messages, kept until the server has them; unreliable
    ones; pings, which ask what it has; word of the side link; after all else the goodbye. It outlives its links."""

    def __init__(self, now: Callable[[], float], check_open: Callable[[], None]) -> None:
        """`now` in seconds, monotonic. `check_open` raises if the room is over."""
        self.ledger = Ledger()
        self.link: WebSocketLink | None = None  # that is written to; None while the connection is lost
        self.leaving = False
        self.changed = Signal()  # something was written or covered; the link or the room ended
        self._now = now
        self._check_open = check_open
        self._unreliable: deque[Frame] = deque(maxlen=UNSENT_UNRELIABLE)
        self._pinged: float | None = None  # `t` of the ping under way
        self._ping_due = False
        self._controls: dict[str, Frame] = {}  # type → the last of it
        self._said_goodbye = False  # on this link
        self._turn = asyncio.Lock()  # sends keep their order
        self._filled = Signal()  # there is something to write

    # What is to leave

    async def keep(self, frame: Frame) -> Kept:
        """Adds to what the server must get; waits for room while it is being covered. Raises SendQueueFull."""
        size = len(frame) if isinstance(frame, bytes) or frame.isascii() else len(frame.encode())
        async with self._turn:
            try:
                async with asyncio.timeout(COVER_TIMEOUT):
                    while self.ledger.full(size):
                        self._check_open()
                        if self.link is None:
                            raise SendQueueFull(f"{self.ledger} wait for the connection, no room for {size} bytes more")
                        await self._cover()
            except TimeoutError:
                raise SendQueueFull(f"{self.ledger} wait for the server, no room for {size} bytes more") from None
            self._check_open()
            kept = self.ledger.keep(frame, size)
            self._filled.notify()
            return kept

    async def _cover(self) -> None:
        """Asks the server how many it has, and waits for the answer, for a while."""
        self._ping_due = True
        if self._pinged is not None and self._now() - self._pinged >= PING_AGAIN:
            self._pinged = None
        self._filled.notify()
        with suppress(TimeoutError):
            async with asyncio.timeout(PING_AGAIN):
                await self.changed.wait()

    def add_unreliable(self, frame: Frame) -> None:
        """Sheds the oldest of too many."""
        self._unreliable.append(frame)
        self._filled.notify()

    def say(self, type: str, content: Any) -> None:
        """A control message, on this link or never; a newer one of its type takes its place."""
        self._controls[type] = write_frame(type, content)
        self._filled.notify()

    def leave(self) -> None:
        self.leaving = True
        self._filled.notify()

    def ping(self) -> None:
        """Asks anew, whether or not the last ping was answered."""
        self._pinged, self._ping_due = None, True
        self._filled.notify()

    def ponged(self, t: float, received: int) -> float | None:
        """The server has so many messages of ours. Returns the round trip in seconds, if our last ping is answered."""
        rtt = None
        if t == self._pinged:
            rtt = self._now() - t
            self._pinged = None
            self._filled.notify()
        self.ledger.cover(received)
        self.changed.notify()
        return rtt

    # The link

    def begin(self, link: WebSocketLink) -> None:
        self.link = link
        self._pinged = None
        self._said_goodbye = False

    def end(self) -> None:
        self.link = None
        self._unreliable.clear()
        self._controls.clear()
        self.changed.notify()

    async def write(self, link: WebSocketLink) -> None:
        """Until the goodbye, or the end of the link. What waited for it goes in slices, below the server's limits."""
        backlog = self.ledger.unsent
        messages, size = 0, 0  # of this slice
        with suppress(SessionClosed):  # the reader hears of it, too
            while not self._said_goodbye:
                backlog = min(backlog, self.ledger.unsent)
                waiting = backlog > 0 and (messages >= SLICE_MESSAGES or size >= SLICE_BYTES)
                frame, kept = self._next_control(), None
                if frame is None:
                    kept = None if waiting else self.ledger.next()
                    frame = self._next_uncounted(idle=not waiting) if kept is None else kept.frame
                if frame is not None:
                    await link.send(frame)
                    self.changed.notify()
                elif waiting:
                    await asyncio.sleep(SLICE_EVERY)
                    messages, size = 0, 0
                else:
                    await self._filled.wait()
                if kept is not None:
                    backlog, messages, size = backlog - 1, messages + 1, size + kept.size
                    self._ping_due = self._ping_due or self.ledger.half_full

    def _next_control(self) -> Frame | None:
        if self._ping_due and self._pinged is None:
            self._ping_due = False
            self._pinged = self._now()
            return write_frame("session:ping", {"t": self._pinged})
        return self._controls.pop(next(iter(self._controls))) if self._controls else None

    def _next_uncounted(self, idle: bool) -> Frame | None:
        """What is not counted: unreliable messages and, after all else, the goodbye."""
        if self._unreliable:
            return self._unreliable.popleft()
        if self.leaving and idle:
            self._said_goodbye = True
            return write_frame("session:leave")
        return None
