"""Deadlines against a model that keeps them in a list."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from session_server.clock import Rota, Timer, Timers

moments = st.integers(0, 40).map(lambda n: n / 4)  # seconds from now


class Entry:
    """One timer of the model: it fires once at `when`, after all that were due earlier or were set before."""

    def __init__(self, name: int, when: float, order: int, period: float) -> None:
        self.name, self.when, self.order, self.period = name, when, order, period
        self.alive = True
        self.timer: Timer
        self.kills: list[Entry] = []  # what its firing cancels
        self.sets: list[float] = []  # what its firing sets, seconds from then


class TimersMachine(RuleBasedStateMachine):
    """The real timers and the model are asked to do the same; what fired, and in which order, must agree."""

    @initialize()
    def begin(self) -> None:
        self.now = 100.0
        self.alarm = float("inf")  # when the loop will run the timers again
        self.timers = Timers(self.wake)
        self.entries: list[Entry] = []
        self.fired: list[int] = []
        self.orders = 0
        self.running = False

    def wake(self, when: float) -> None:
        if not self.running:  # then the loop goes by what `run` returns
            self.alarm = min(self.alarm, when)

    def set(self, when: float, period: float = 0.0) -> Entry:
        self.orders += 1
        entry = Entry(len(self.entries), when, self.orders, period)
        self.entries.append(entry)
        entry.timer = self.timers.at(when, lambda now: self.fire(entry, now))
        return entry

    def fire(self, entry: Entry, now: float) -> None:
        assert now == self.now
        self.fired.append(entry.name)
        self.orders += 1
        if entry.period:
            entry.timer.when = entry.when = self.now + entry.period
            entry.order = self.orders
            self.timers.rearm(entry.timer, lambda now: self.fire(entry, now))
        else:
            entry.alive = False
        for other in entry.kills:
            other.alive = False
            other.timer.cancel()
        for seconds in entry.sets:
            self.set(self.now + seconds)

    @rule(seconds=moments, period=st.sampled_from([0.0, 0.0, 0.25, 1.0]))
    def at(self, seconds: float, period: float) -> None:
        self.set(self.now + seconds, period)

    @rule(count=st.integers(65, 100), seconds=moments)
    def many(self, count: int, seconds: float) -> None:
        """Enough of them that what is cancelled is worth being swept out."""
        for _ in range(count):
            self.set(self.now + seconds)

    @rule(data=st.data())
    @precondition(lambda self: self.entries)
    def cancel(self, data: Any) -> None:
        entry = data.draw(st.sampled_from(self.entries))
        entry.alive = False
        entry.timer.cancel()
        entry.timer.cancel()

    @rule()
    def cancel_all(self) -> None:
        for entry in self.entries:
            entry.alive = False
            entry.timer.cancel()

    @rule(data=st.data(), seconds=st.lists(moments, max_size=3), share=st.sampled_from([1, 2, 50]))
    @precondition(lambda self: any(entry.alive for entry in self.entries))
    def plot(self, data: Any, seconds: list[float], share: int) -> None:
        """When this one fires it cancels others, and sets new ones."""
        alive = [entry for entry in self.entries if entry.alive]
        plotter = data.draw(st.sampled_from(alive))
        plotter.kills = [entry for n, entry in enumerate(alive) if n % share == 0]
        plotter.sets = seconds

    @rule(seconds=moments)
    def run(self, seconds: float) -> None:
        self.now += seconds
        self.fired.clear()
        due = sorted((e for e in self.entries if e.alive and e.when <= self.now), key=lambda e: (e.when, e.order))
        expected = []
        dead: set[int] = set()
        for entry in due:
            if entry.name not in dead:
                expected.append(entry.name)
                dead |= {other.name for other in entry.kills}
        self.running = True
        again = self.timers.run(self.now)
        self.running = False
        self.alarm = float("inf") if again is None else again
        assert self.fired == expected

    @invariant()
    def nothing_is_lost(self) -> None:
        earliest = min((entry.when for entry in self.entries if entry.alive), default=float("inf"))
        assert self.alarm <= earliest, "the loop would sleep through a deadline"
        assert len(self.timers) == sum(entry.alive for entry in self.entries)
        assert len(self.timers._heap) <= max(64, 2 * len(self.timers)) + 66, "what is cancelled is swept out"


TestTimers = TimersMachine.TestCase
TestTimers.settings = settings(derandomize=True, deadline=None, max_examples=60, stateful_step_count=25)


def test_what_falls_due_together_fires_in_the_order_it_was_set() -> None:
    timers = Timers()
    fired: list[int] = []
    for n in range(20):
        timers.at(5.0, lambda now, n=n: fired.append(n))
    timers.run(5.0)
    assert fired == list(range(20))


def test_a_timer_set_for_now_while_timers_run_waits_for_the_next_run() -> None:
    """So no timer can keep the loop busy."""
    timers = Timers()
    fired: list[float] = []

    def again(now: float) -> None:
        fired.append(now)
        timers.at(now, again)

    timers.at(1.0, again)
    assert timers.run(1.0) == 1.0
    assert timers.run(1.0) == 1.0
    assert fired == [1.0, 1.0]


def test_many_cancelled_by_one_that_fires_take_nothing_with_them() -> None:
    """The heap is swept while it is being read."""
    timers = Timers()
    fired: list[str] = []
    many = [timers.at(50.0, lambda now: fired.append("cancelled")) for _ in range(100)]

    def sweep(now: float) -> None:
        fired.append("sweep")
        timers.at(now, lambda now: fired.append("set meanwhile"))
        for timer in many:
            timer.cancel()

    timers.at(1.0, sweep)
    timers.at(1.0, lambda now: fired.append("beside"))
    timers.at(2.0, lambda now: fired.append("later"))
    assert timers.run(1.0) == 1.0
    assert timers.run(1.5) == 2.0
    assert timers.run(60.0) is None
    assert fired == ["sweep", "beside", "set meanwhile", "later"]
    assert len(timers) == 0


def test_a_timer_that_raises_takes_no_other_with_it() -> None:
    """Our own fault is loud, but what else was due still comes."""
    timers = Timers()
    fired: list[str] = []

    def broken(now: float) -> None:
        raise RuntimeError("broken")

    timers.at(0.5, lambda now: timers.at(0.9, lambda now: fired.append("set in this run")) and None)
    timers.at(1.0, broken)
    timers.at(1.0, lambda now: fired.append("beside"))
    with pytest.raises(RuntimeError, match="broken"):
        timers.run(1.0)
    timers.run(1.0)
    assert sorted(fired) == ["beside", "set in this run"]


def test_a_timer_may_cancel_itself_while_it_fires() -> None:
    timers = Timers()
    fired: list[float] = []

    def beat(now: float) -> None:
        fired.append(now)
        timer.when += 1.0
        timers.rearm(timer, beat)
        if len(fired) == 3:
            timer.cancel()

    timer = timers.at(1.0, beat)
    for now in (1.0, 2.0, 3.0, 4.0):
        timers.run(now)
    assert fired == [1.0, 2.0, 3.0]
    assert len(timers) == 0


# --- the rota ---------------------------------------------------------------------------------------------------------


class RotaMachine(RuleBasedStateMachine):
    @initialize(delay=st.sampled_from([0.0, 1.0, 2.5]))
    def begin(self, delay: float) -> None:
        self.now = 100.0
        self.rota: Rota[str] = Rota(delay)
        self.model: list[tuple[float, str]] = []  # since when, key; in the order of coming

    @rule(key=st.sampled_from("abcd"))
    def add(self, key: str) -> None:
        self.model = [item for item in self.model if item[1] != key] + [(self.now, key)]
        self.rota.add(key, self.now)

    @rule(key=st.sampled_from("abcd"))
    def discard(self, key: str) -> None:
        self.model = [item for item in self.model if item[1] != key]
        self.rota.discard(key)

    @rule(seconds=moments)
    def due(self, seconds: float) -> None:
        self.now += seconds
        late = [key for since, key in self.model if self.now - since >= self.rota.delay]
        self.model = [item for item in self.model if item[1] not in late]
        assert list(self.rota.due(self.now)) == late

    @invariant()
    def counts(self) -> None:
        assert len(self.rota) == len(self.model)


TestRota = RotaMachine.TestCase
TestRota.settings = settings(derandomize=True, deadline=None, max_examples=50, stateful_step_count=20)


def test_the_rota_may_be_changed_while_it_is_read() -> None:
    rota: Rota[str] = Rota(10.0)
    for key in "abcd":
        rota.add(key, 0.0)
    seen = []
    for key in rota.due(10.0):
        seen.append(key)
        rota.discard("b")
        rota.add(key, 10.0)  # waits anew, and is not due again
    assert seen == ["a", "c", "d"]
    assert list(rota.due(20.0)) == ["a", "c", "d"]
