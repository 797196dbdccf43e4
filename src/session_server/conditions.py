"""What a bad network does to what is sent, one direction at a time. No clock, no sockets: `now` is an argument, and a
seed repeats a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Final

RETRANSMIT_AFTER: Final = 0.2  # seconds, the least of Linux (TCP_RTO_MIN); RFC 6298 §2.4 would have 1
MAX_RETRANSMITS: Final = 6  # then it arrives: a link that lets nothing through is cut, not lossy
MAX_QUEUE: Final = (
    1.0  # seconds that a datagram waits for its turn on a narrow link; one that would wait longer is lost
)


@dataclass(frozen=True, slots=True)
class Conditions:
    """Of one direction. Raises ValueError if one of them is impossible."""

    delay: float = 0.0  # seconds from one end to the other
    jitter: float = 0.0  # seconds: each datagram takes up to so much more or less, so they overtake each other
    loss: float = 0.0  # share of datagrams, 0 to 1
    duplicates: float = 0.0  # share of datagrams that arrive twice
    reorder: float = 0.0  # share of datagrams that arrive without a delay, and so before others
    bandwidth: float = 0.0  # bytes per second; 0 = any number

    def __post_init__(self) -> None:
        for name, most in (
            ("delay", 60),
            ("jitter", 60),
            ("loss", 1),
            ("duplicates", 1),
            ("reorder", 1),
            ("bandwidth", 1e12),
        ):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise ValueError(f"{name} is {value}, expected 0 to {most:g}")


@dataclass(frozen=True, slots=True)
class Net:
    """Both directions of a client's network. Who has the same seed, seat and messages has the same luck."""

    down: Conditions = Conditions()  # to the client
    up: Conditions = Conditions()
    seed: int = 0


def symmetric(**conditions: float) -> Net:
    return Net(Conditions(**conditions), Conditions(**conditions))


MBIT: Final = 125_000.0  # bytes
# `3g`, `4g` and `edge` are the figures of Loadero's network modes of these names; `train` has the loss, duplicates and
# reordering that Perfecto calls a very unstable network. `wifi` (a crowded one) and the rest of `train` are guesses.
PRESETS: Final = {
    "wifi": symmetric(delay=0.005, jitter=0.02, loss=0.01, bandwidth=5 * MBIT),
    "4g": Net(
        Conditions(delay=0.045, jitter=0.005, loss=0.002, bandwidth=100 * MBIT),
        Conditions(delay=0.045, jitter=0.015, loss=0.002, bandwidth=50 * MBIT),
    ),
    "3g": symmetric(delay=0.25, jitter=0.05, loss=0.005, bandwidth=1.2 * MBIT),
    "train": symmetric(delay=0.1, jitter=0.08, loss=0.05, duplicates=0.05, reorder=0.2, bandwidth=1.5 * MBIT),
    "edge": Net(
        Conditions(delay=0.65, jitter=0.1, loss=0.01, bandwidth=0.2 * MBIT),
        Conditions(delay=0.65, jitter=0.1, loss=0.01, bandwidth=0.26 * MBIT),
    ),
}
UNITS: Final = {  # as they are written: milliseconds, per cent, kbit per second
    "delay": 0.001, "jitter": 0.001, "loss": 0.01, "duplicates": 0.01, "reorder": 0.01, "bandwidth": 125.0,
}  # fmt: skip


def read_net(text: str) -> Net:
    """`3g`, `delay=100,loss=5` or `3g,loss=10,seed=7`; nothing, or `off`: a good network. Raises ValueError."""
    first, *others = text.split(",")
    net = PRESETS.get(first, Net())
    parts = others if first in PRESETS or first in {"", "off"} else [first, *others]
    changes: dict[str, float] = {}
    for part in parts:
        name, _, value = part.partition("=")
        if name not in {*UNITS, "seed"} or not value.replace(".", "", 1).isdecimal() or len(value) > 15:
            known = f"{', '.join(PRESETS)}, or {', '.join(UNITS)} and seed with a number, as delay=100,loss=5"
            raise ValueError(f"network is {text[:80]!r}, expected {known}")
        changes[name] = float(value)
    seed = int(changes.pop("seed", net.seed))
    read = {name: value * UNITS[name] for name, value in changes.items()}
    return Net(replace(net.down, **read), replace(net.up, **read), seed)


class Path:
    """One direction between two hosts, for all that goes there."""

    def __init__(self, conditions: Conditions, random: Random) -> None:
        self.conditions = conditions  # another value counts for what is sent from then on
        self._random = random
        self._free_at = 0.0  # when the narrowest place has let through what was sent before

    def datagram(self, size: int, now: float) -> list[float]:
        """When the copies of a datagram of `size` bytes arrive: none if it is lost."""
        left = self._leaves(size, now, MAX_QUEUE)
        if left is None or self._happens(self.conditions.loss):
            return []
        copies = 2 if self._happens(self.conditions.duplicates) else 1
        return [left if self._happens(self.conditions.reorder) else left + self._delay() for _ in range(copies)]

    def reliable(self, size: int, now: float) -> float:
        """When a write of `size` bytes has arrived. Nothing is lost; each loss costs a retransmission, twice as late as
        the one before. That a connection keeps the order is up to the caller."""
        left = self._leaves(size, now, None)
        assert left is not None, "it waits as long as it must"
        wait = RETRANSMIT_AFTER + 2 * self.conditions.delay
        for _ in range(MAX_RETRANSMITS):
            if not self._happens(self.conditions.loss):
                break
            left += wait
            wait *= 2
        return left + self._delay()

    def _leaves(self, size: int, now: float, patience: float | None) -> float | None:
        """When its last byte is through the narrowest place; None if it would have to wait longer than `patience`."""
        bandwidth = self.conditions.bandwidth
        if not bandwidth:
            return now
        begins = max(now, self._free_at)
        if patience is not None and begins - now > patience:
            return None
        self._free_at = begins + size / bandwidth
        return self._free_at

    def _delay(self) -> float:
        jitter = self.conditions.jitter
        if not jitter:
            return self.conditions.delay
        return max(0.0, self.conditions.delay + self._random.uniform(-jitter, jitter))

    def _happens(self, share: float) -> bool:
        return share > 0 and self._random.random() < share
