"""A network in memory: what it loses, doubles, delays and thereby reorders, one seed decides; time is what it is told.

`Pair` joins two ends that speak as all of `rtc/` does: `receive(packet, now)`, `run(now)`, `transmit(now)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from math import inf
from random import Random

from session_server.rtc.sctp import Association, Event, Received

DELAY = 0.02  # seconds one way
TICK = 0.001  # seconds: no end is asked more often if nothing arrives


def bent(random: Random, seen: list[bytes]) -> bytes:
    """The chunks of a packet that somebody sent, or of none, with some bytes changed."""
    content = bytearray(random.choice(seen) if random.random() < 0.6 else random.randbytes(random.randrange(4, 60)))
    if random.random() < 0.4:  # a type that is known, and a length that fits, or not
        content[0] = random.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 130, 192))
        content[2:4] = (len(content) if random.random() < 0.7 else random.randrange(70)).to_bytes(2, "big")
    for _ in range(random.randrange(4)):
        content[random.randrange(len(content))] = random.randrange(256)
    return bytes(content)


class Network:
    """`loss` and `doubled` are shares; `delay` is in seconds one way, `jitter` what is added at most."""

    def __init__(
        self, seed: int = 0, loss: float = 0.0, doubled: float = 0.0, delay: float = DELAY, jitter: float = 0.0
    ) -> None:
        self.random = Random(seed)
        self.loss, self.doubled, self.delay, self.jitter = loss, doubled, delay, jitter
        self.passes: Callable[[str, bytes], bool] = lambda to, packet: True  # what a test loses by choice
        self.sent = 0
        self._under_way: list[tuple[float, int, str, bytes]] = []

    def send(self, to: str, packet: bytes, now: float) -> None:
        self.sent += 1
        if not self.passes(to, packet) or self.random.random() < self.loss:
            return
        for copy in range(1 + (self.random.random() < self.doubled)):
            arrival = now + self.delay + self.jitter * self.random.random()
            heappush(self._under_way, (arrival, 2 * self.sent + copy, to, packet))

    @property
    def next_arrival(self) -> float:
        return self._under_way[0][0] if self._under_way else inf

    def arrivals(self, now: float) -> Iterator[tuple[str, bytes]]:
        while self.next_arrival <= now:
            _, _, to, packet = heappop(self._under_way)
            yield to, packet


class Pair:
    """Two associations and the network between them."""

    def __init__(self, network: Network | None = None, max_message: int = 65536) -> None:
        self.network = network or Network()
        self.now = 0.0
        random = self.network.random.randbytes
        self.a = Association(random=random, max_message=max_message)
        self.b = Association(random=random, max_message=max_message)
        self.ends = {"a": self.a, "b": self.b}
        self.events: dict[str, list[Event]] = {"a": [], "b": []}
        self.times: dict[str, list[float]] = {"a": [], "b": []}  # when each of these came
        self.packets: dict[str, list[bytes]] = {"a": [], "b": []}  # sent by whom

    def run(self, duration: float) -> Pair:
        """Lets time pass, in seconds."""
        until = self.now + duration
        while True:
            for name in self.ends:
                self.step(name)
            deadline = min(end.next_deadline for end in self.ends.values())
            due = min(self.network.next_arrival, max(deadline, self.now + TICK))
            if due > until:
                self.now = until
                return self
            self.now = max(self.now, due)
            for name, packet in self.network.arrivals(self.now):
                self.ends[name].receive(packet, self.now)
            for end in self.ends.values():
                end.run(self.now)

    def step(self, name: str) -> None:
        """Sends what one has to send, and reads what it has to say."""
        for packet in self.ends[name].transmit(self.now):
            self.packets[name].append(packet)
            self.network.send("b" if name == "a" else "a", packet, self.now)
        new = self.ends[name].take_events()
        self.events[name] += new
        self.times[name] += [self.now] * len(new)

    def heard(self, name: str) -> list[bytes]:
        """The messages that one has got, in order."""
        return [event.payload for event in self.events[name] if isinstance(event, Received)]

    def forget(self) -> None:
        """What was said and sent so far."""
        for name in self.ends:
            for kept in (self.events[name], self.times[name], self.packets[name]):
                kept.clear()
