"""Deadlines on a heap. Time is an argument: seconds on a monotonic clock, read by whoever runs the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

Key = TypeVar("Key")


class Timer:
    """One deadline; `cancel()` may be called at any time, also twice."""

    __slots__ = ("_timers", "fire", "when")

    def __init__(self, when: float, fire: Callable[[float], None], timers: Timers) -> None:
        self.when = when
        self.fire: Callable[[float], None] | None = fire
        self._timers = timers

    @property
    def live(self) -> bool:
        return self.fire is not None

    def cancel(self) -> None:
        if self.fire is not None:
            self.fire = None
            self._timers.forget()


class Timers:
    """Calls what is due. `wake(when)` is told of a deadline earlier than all before, to re-arm the loop."""

    def __init__(self, wake: Callable[[float], None] = lambda when: None) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0  # breaks ties: equal deadlines fire in the order they were made
        self._live = 0  # timers that will fire; the heap also holds cancelled ones
        self._wake = wake

    def at(self, when: float, fire: Callable[[float], None]) -> Timer:
        """Calls `fire(now)` at `when` or soon after."""
        timer = Timer(when, fire, self)
        self._push(timer)
        return timer

    def _push(self, timer: Timer) -> None:
        self._count += 1
        self._live += 1
        if not self._heap or timer.when < self._heap[0][0]:
            self._wake(timer.when)
        heappush(self._heap, (timer.when, self._count, timer))

    def rearm(self, timer: Timer, fire: Callable[[float], None]) -> None:
        """The same timer once more, at its new `when`; for a timer that has just fired."""
        timer.fire = fire
        self._push(timer)

    def run(self, now: float) -> float | None:
        """Fires all that was due when the call began, in order; returns the next deadline.

        What a timer sets for `now` itself waits for the next run, so no timer can keep the loop busy.
        """
        heap = self._heap
        due = []
        while heap and heap[0][0] <= now:
            due.append(heappop(heap))
        due.reverse()
        try:
            while due:
                timer = due.pop()[2]
                fire, timer.fire = timer.fire, None
                if fire is not None:
                    self._live -= 1
                    fire(now)
        finally:  # after a fault of ours, the rest comes in the next run
            for entry in due:
                heappush(heap, entry)
        return self.due

    @property
    def due(self) -> float | None:
        """When `run` is next wanted."""
        return self._heap[0][0] if self._heap else None

    def forget(self) -> None:
        """A timer was cancelled: its entry stays until it is due, or until half of the heap is such entries."""
        self._live -= 1
        heap = self._heap
        if len(heap) - self._live > 64 and self._live * 2 < len(heap):
            heap[:] = [entry for entry in heap if entry[2].fire is not None]  # in place: `run` may be reading it
            heapify(heap)

    def __len__(self) -> int:
        return self._live


class Rota(Generic[Key]):
    """Keys that all wait equally long, so they fall due in the order in which they came: no heap, no timer each."""

    def __init__(self, delay: float) -> None:
        self.delay = delay  # seconds
        self._since: dict[Key, float] = {}

    def add(self, key: Key, now: float) -> None:
        """Begins to wait, anew if it waited already."""
        self._since.pop(key, None)
        self._since[key] = now

    def start(self, key: Key, now: float) -> None:
        """Begins to wait, unless it waits already."""
        self._since.setdefault(key, now)

    def discard(self, key: Key) -> None:
        self._since.pop(key, None)

    def due(self, now: float) -> Iterator[Key]:
        """Takes out what has waited long enough."""
        while self._since:
            key, since = next(iter(self._since.items()))
            if now - since < self.delay:
                return
            del self._since[key]
            yield key

    def __len__(self) -> int:
        return len(self._since)
