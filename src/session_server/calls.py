"""Runs the code of a piece: one call at a time, its faults caught, its timers and ticks. No tasks of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable
from typing import Any, Final

from msgspec.json import decode as decode_json

from .clock import Timer
from .handlers import Routes
from .limits import Bucket
from .outbox import Outbox, Problem, Seat
from .protocol import PieceError, Refused
from .services import Services

ASYNC_LIMIT: Final = 5.0  # seconds that an async handler may take
MAX_WAITING: Final = 1000  # calls that wait for it
FAULTS_LOGGED: Final = 10  # tracebacks at once, then one per second: a broken on_tick must not fill a disk


class TookTooLong(Exception):
    """An async handler did not end within ASYNC_LIMIT."""


class Subscription:
    """To a topic; `cancel()` may be called at any time, also twice."""

    __slots__ = ("_end", "live")

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end
        self.live = True

    def cancel(self) -> None:
        if self.live:
            self.live = False
            self._end()


Pending = set["Timer | Subscription"]  # what may still call an instance


@dataclass(slots=True)
class Call:
    """A call into the author's code: now, or after the async one that is under way."""

    target: str | Callable[..., Any]  # a method's name (found on the instance of that moment), or a callable
    args: tuple[Any, ...] = ()
    client: Seat | None = None  # who is told of a problem
    type: str | None = None
    ask: int | None = None
    then: Callable[[], None] | None = None  # if it went well


class Calls:
    """The author's instance of one room, and all calls into it."""

    def __init__(
        self, instance: Any, routes: Routes, services: Services, log: Any, outbox: Outbox, ruined: Callable[[], None]
    ) -> None:
        """`ruined()`: an async `on_create` has failed, so there should be no room."""
        self.instance = instance
        self.routes = routes
        self._services = services
        self._log = log
        self._outbox = outbox
        self._ruined = ruined
        self.busy = False  # an async handler is under way
        self._waiting: deque[Call] = deque()
        self._successor: Callable[[], Any] | None = None  # takes over after the async handler under way
        self._faults = Bucket(1, FAULTS_LOGGED)
        self._tick: Timer | None = None
        self._timers: Pending = set()
        self._prune_at = 64  # cancelled ones are forgotten then

    def create(self) -> None:
        """`on_create`, before anyone is in. Raises PieceError if it fails: there is no room then."""
        call = Call("on_create")
        try:
            value = self.instance.on_create()
        except (Exception, SystemExit) as error:
            raise PieceError(self._problem(call, error).reason) from error
        if value is not None and isawaitable(value):
            self.busy = True
            self._services.spawn(value, ASYNC_LIMIT, lambda value, error: self._created(call, error))

    def _created(self, call: Call, error: BaseException | None) -> None:
        if error is None:
            self._finished(call, None, None)
        else:  # stays busy: no more code runs in a room that is not made
            self._problem(call, error)
            self._ruined()

    def hook(self, name: str, *args: Any) -> None:
        """Calls an optional hook, if the author wrote it."""
        if name in self.routes.overrides:
            self.call(Call(name, args))

    def call(self, call: Call) -> None:
        """Runs it, or lets it wait for the async handler under way: handlers of a room never overlap."""
        if self.busy:
            if len(self._waiting) < MAX_WAITING or call.client is None:
                self._waiting.append(call)
            else:
                self._services.totals.refused["busy"] += 1
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
        self.busy = True
        self._services.spawn(value, ASYNC_LIMIT, lambda value, error: self._finished(call, value, error))

    def _finished(self, call: Call, value: Any, error: BaseException | None) -> None:
        self.busy = False
        self._settle(call, value, None if error is None else self._problem(call, error))
        while (self._successor or self._waiting) and not self.busy:
            self.call(self._take_successor() if self._successor else self._waiting.popleft())

    # --- other code, while people play --------------------------------------------------------------------------------

    def after_this(self, call: Callable[[], Any]) -> None:
        """Between two calls: now, or as soon as the async handler under way has ended. Of several the last counts."""
        self._successor = call
        if not self.busy:
            self.call(self._take_successor())

    def _take_successor(self) -> Call:
        target, self._successor = self._successor, None
        assert target is not None
        return Call(target)

    def take_over(self, instance: Any, routes: Routes, timers: Pending) -> Pending:
        """Calls go to this instance from now on; returns the timers of the one before, which still run."""
        before, self._timers = self._timers, timers
        self.instance, self.routes = instance, routes
        return before

    def forget(self, timers: Pending) -> None:
        """These fire no more, and what they have brought about already is not called."""
        for timer in timers:
            timer.cancel()
        self._waiting = deque(call for call in self._waiting if isinstance(call.target, str))

    # --- what came of it ----------------------------------------------------------------------------------------------

    def _settle(self, call: Call, value: Any, problem: Problem | None) -> None:
        if call.then is not None and problem is None:
            call.then()
        if call.client is None or (problem is None and call.ask is None):
            return
        try:
            self._outbox.answer(call.client, call.type, call.ask, value, problem)
        except Exception as error:  # the handler returned what is not JSON
            self._outbox.answer(call.client, call.type, call.ask, None, self._problem(call, error))

    def fail(self, call: Call, error: BaseException) -> None:
        """A message could not even be handed to its handler."""
        self._settle(call, None, self._problem(call, error))

    def _problem(self, call: Call, error: BaseException) -> Problem:
        """A refusal is the author's word to the client; all else is a fault, and told to nobody outside development."""
        if isinstance(error, Refused):
            return Problem("refused", str(error))
        name = call.target if isinstance(call.target, str) else getattr(call.target, "__qualname__", repr(call.target))
        self.fault(name, error, call.client)
        if isinstance(error, TookTooLong):
            return Problem("timeout", f"took longer than {ASYNC_LIMIT:g} s")
        detail = f": {type(error).__name__}: {error}" if self._services.config.development else ""
        return Problem("failed", f"the code of the room failed{detail}")

    def fault(self, hook: str, error: BaseException, client: Seat | None = None) -> None:
        """Counted, and logged unless there are too many."""
        self._services.totals.faults += 1
        if self._faults.take(self._services.now):
            number = client.id if client else None
            self._log.error("fault in the code of a piece", hook=hook, client=number, exc_info=error)

    # --- topics and timers --------------------------------------------------------------------------------------------

    def subscribe(self, topic: str, call: Callable[[Any], Any]) -> Subscription:
        """`call(content)` in a turn of its own, as it may come out of a call of this very room."""
        services = self._services

        def deliver(data: bytes) -> None:
            services.timers.at(services.now, lambda now: told(decode_json(data), now))

        def told(content: Any, now: float) -> None:
            services.now = now
            if len(self._waiting) >= MAX_WAITING:
                services.totals.refused["busy"] += 1
            elif subscription.live:
                self.call(Call(call, (content,)))

        subscription = Subscription(services.subscribe(topic, deliver))
        self._keep(subscription)
        return subscription

    def _keep(self, one: Timer | Subscription) -> None:
        if len(self._timers) >= self._prune_at:
            self._timers = {one for one in self._timers if one.live}
            self._prune_at = 2 * len(self._timers) + 64
        self._timers.add(one)

    def after(self, seconds: float, call: Callable[[], Any], repeat: bool) -> Timer:
        timers = self._services.timers

        def fire(now: float) -> None:
            self._services.now = now
            if not repeat:
                self._timers.discard(timer)
                self.call(Call(call))
                return
            timer.when = next_beat(timer.when, seconds, now)
            timers.rearm(timer, fire)
            if not self.busy:  # one that would wait is one that was missed
                self.call(Call(call))

        if repeat and seconds <= 0:
            raise ValueError(f"every({seconds}) would never let go, expected more than 0 seconds")
        timer = timers.at(self._services.clock() + seconds, fire)
        self._keep(timer)
        return timer

    def start_ticks(self, rate: float) -> None:
        """`on_tick` from now on, if the author wrote it; `rate` in Hz, 0 = never."""
        if self._tick is None and rate > 0 and "on_tick" in self.routes.overrides:
            self._tick = self._services.timers.at(self._services.now + 1 / rate, partial(self._run_tick, 1 / rate))

    def stop_ticks(self) -> None:
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None

    def _run_tick(self, dt: float, now: float) -> None:
        self._services.now = now
        assert self._tick is not None
        again = partial(self._run_tick, dt)
        self._tick = self._services.timers.at(next_beat(self._tick.when, dt, now), again)
        if not self.busy:
            self.call(Call("on_tick", (dt,)))

    def stop(self) -> None:
        """No timer of the author's fires any more."""
        self.stop_ticks()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()


def next_beat(when: float, period: float, now: float) -> float:
    """The first of `when + n × period` that lies after `now`: what was missed is skipped, the beat is kept."""
    return when + period * max(1, (now - when) // period + 1)
