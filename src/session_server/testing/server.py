"""A server without sockets: the real `Rooms`, and a loop that turns as the server's does, on a clock of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from random import Random
from typing import Any

from ..config import Config
from ..engine.memory import MemoryEngine
from ..room import User
from ..rooms import RoomClasses, Rooms
from ..tasks import outcome
from .loop import VirtualLoop

__tracebackhide__ = True

UNLIMITED = {"message_rate": 0, "byte_rate": 0, "new_rooms_per_address": 0}  # scripts talk as fast as they like


class Log:
    """Keeps what was logged, with what the logger was bound to."""

    def __init__(self, entries: list[dict[str, Any]], **bound: Any) -> None:
        self.entries = entries
        self._bound = bound

    def bind(self, **more: Any) -> Log:
        return Log(self.entries, **self._bound, **more)

    def debug(self, event: str, *args: Any, **more: Any) -> None:
        """Is not kept."""

    def info(self, event: str, *args: Any, **more: Any) -> None:
        self.entries.append({"event": event % args if args else event, **self._bound, **more})

    warning = error = exception = critical = info


class MemoryServer:
    """`Rooms` that nobody reaches from outside. Nothing here sleeps, reads a clock or opens a socket."""

    def __init__(
        self,
        classes: RoomClasses,
        *,
        seed: int,
        verify: Callable[[str], User | None] = lambda token: None,
        claim: Callable[[str], int] | None = None,
        release: Callable[[str, int], None] = lambda slug, epoch: None,
        **settings: Any,
    ) -> None:
        """`settings` are those of `Config`; rates are off unless they are among them."""
        epochs = count(1)
        engine = MemoryEngine("n1", 0, self._raise)
        self.random = Random(seed)
        self.loop = VirtualLoop(self._rest)  # type: ignore[abstract]  # it does without sockets
        self.log = Log([])
        self.rooms = Rooms(
            Config(**(UNLIMITED | settings)),
            classes,
            log=self.log,
            clock=self.loop.time,
            token=lambda: f"{self.random.getrandbits(128):032x}",
            wake=self._wake,
            spawn=self._spawn,
            verify=verify,
            publish=engine.publish,
            subscribe=engine.subscribe,
            claim=claim or (lambda slug: next(epochs)),
            release=release,
        )
        self._due = self._turning = False
        self._alarm: asyncio.TimerHandle | None = None  # when the rooms want to run
        self._tasks: set[asyncio.Task[None]] = set()

    @staticmethod
    def _raise(error: Exception) -> None:
        raise error

    @property
    def now(self) -> float:
        """Seconds, on the clock that rooms see as `room.now`."""
        return self.loop.now

    def advance(self, seconds: float) -> None:
        """Time passes; all that is due happens at its own time."""
        self.loop.advance(seconds)

    def settle(self) -> None:
        """Whatever is due at this instant happens."""
        self.loop.settle()

    @contextmanager
    def tick(self) -> Iterator[None]:
        """What clients do inside belongs to one tick of the server's loop, as if it had come at once."""
        with self.loop.held():
            yield
        self.settle()

    # --- what the rooms ask for, as in server.Server ------------------------------------------------------------------

    def _rest(self) -> bool:
        """All that came at this instant was read: the rooms fire their timers, and write."""
        if not self._due:
            return False
        self._due, self._turning = False, True
        try:
            due = self.rooms.run(self.now)
        finally:
            self._turning = False
        if due is not None:
            self._wake(due)
        return True

    def _wake(self, when: float) -> None:
        """Who asks while the rooms run is told by what `run` returns."""
        if self._turning:
            return
        if when <= self.now:
            self._due = True
        elif self._alarm is None or when < self._alarm.when():
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = self.loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._alarm, self._due = None, True

    def _spawn(
        self, awaitable: Awaitable[Any], seconds: float, done: Callable[[Any, BaseException | None], None]
    ) -> None:
        async def run() -> None:
            ended = await outcome(awaitable, seconds)
            self.rooms.enter(self.now)
            done(*ended)

        task = asyncio.Task(run(), loop=self.loop)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()  # a fault of ours is loud
