"""asyncio on a clock that moves only when it is told to. No sockets, no threads, no sleep: what would wait, is due."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import Context
from heapq import heappop, heappush
from itertools import count
from typing import Any, Final, TypeVar, TypeVarTuple

__tracebackhide__ = True  # pytest shows the test and the piece, not what lies between

START: Final = 1000.0  # seconds; a monotonic clock begins anywhere
MAX_TURNS: Final = 10_000  # at one instant: more, and something never comes to rest

Value = TypeVar("Value")
Args = TypeVarTuple("Args")


class VirtualLoop(asyncio.AbstractEventLoop):
    """What a piece's async code needs of an event loop, and `advance`. Equal deadlines keep their order: a run can be
    repeated. What needs the outside world, such as a socket, raises NotImplementedError."""

    def __init__(self, rest: Callable[[], bool]) -> None:
        """`rest()` is called when nothing else is due at this instant; it returns whether it had something to do."""
        self.now = START
        self.unheard: list[BaseException] = []  # raised in tasks for which nobody waited, known once they are collected
        self.made_tasks = False  # the author's code did
        self._rest = rest
        self._ready: deque[asyncio.Handle] = deque()
        self._later: list[tuple[float, int, asyncio.Handle]] = []
        self._order = count()
        self._held = 0

    # --- time ---------------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Time passes; all that is due happens at its own time."""
        if seconds < 0:
            raise ValueError(f"advance({seconds}): time does not run backwards")
        end = self.now + seconds
        self.settle()
        while self._later and self._later[0][0] <= end:
            self.now = max(self.now, self._later[0][0])
            self.settle()
        self.now = end

    def settle(self) -> None:
        """Turns until nothing more is due at this instant. Within a turn, and while held, it does nothing."""
        if self._held:
            return
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            with self.held():
                for _ in range(MAX_TURNS):
                    if not self._turn():
                        return
            raise AssertionError(f"not at rest after {MAX_TURNS} turns of the loop at {self.now - START:g} s")
        finally:
            asyncio._set_running_loop(outer)

    @contextmanager
    def held(self) -> Iterator[None]:
        """What becomes due waits for the first `settle` afterwards."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def _turn(self) -> bool:
        if self._later and self._later[0][0] <= self.now:
            handle = heappop(self._later)[2]
        elif self._ready:
            handle = self._ready.popleft()
        else:
            return self._rest()
        if not handle.cancelled():
            handle._run()
        return True

    # --- as asyncio asks for it ---------------------------------------------------------------------------------------

    def time(self) -> float:
        return self.now

    def call_soon(
        self, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(
        self, when: float, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heappush(self._later, (when, next(self._order), handle))
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Coroutine[Any, Any, Value] | Generator[Any, None, Value], **options: Any
    ) -> asyncio.Task[Value]:
        self.made_tasks = True
        return asyncio.Task(coro, loop=self, **options)

    def run_in_executor(self, executor: Any, func: Callable[[*Args], Value], *args: *Args) -> asyncio.Future[Value]:
        """At once, in this thread."""
        future: asyncio.Future[Value] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and "handle" in context:  # a callback: whoever advances the clock shall see it
            raise error
        if error is not None:
            self.unheard.append(error)

    def is_running(self) -> bool:
        return self._held > 0

    def is_closed(self) -> bool:
        return False

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Its entry stays until it is due."""
