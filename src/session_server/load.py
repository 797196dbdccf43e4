"""The load tester: clients that talk to each other through a server, and how that went. All in one process, one loop.

Each message carries when it was to be sent, so its latency counts what it waited for on either side. The tester also
watches itself: when it cannot keep up, its figures are its own and not the server's, and it says so.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from secrets import token_hex
from typing import Any, Final

from .addresses import resolve
from .check import SCRATCH, Target, session_url
from .client import Message, Room, SessionClosed, session
from .findings import ms, shown

JOINING: Final = 32  # clients that join at the same time
JOIN_WITHIN: Final = 5.0  # seconds; a server that refuses is asked again meanwhile
UDP_WITHIN: Final = 3.0  # seconds that the clients are given to open data channels
LATEST: Final = 15.0  # seconds after the end in which clients that are behind may send the rest
STRAGGLERS: Final = 2.0  # seconds, after which what has not come is lost
WATCH_EVERY: Final = 0.05  # seconds between two looks at the tester's own loop
LATE: Final = 0.02  # seconds (99 % of the looks) from which the loop counts as the limit
BUSY: Final = 0.9  # share of a processor core, the same
REASONS: Final = 5  # that are told; the others are summed up
DISTINCT: Final = 100  # that are told apart: their words are the server's
SMALLEST: Final = 40  # bytes of content: a key and a time

# What is no test any more, at a host that is not this computer. Half of what a server takes by default from an address.
MOST_CLIENTS: Final = 32
MOST_DELIVERIES: Final = 5000.0  # per second
MOST_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    clients: int = 10
    rate: float = 10.0  # messages per second and client, of each kind
    rooms: int = 1
    seconds: float = 10.0
    size: int = 64  # bytes of content
    unreliable: bool = False  # as many again that may be lost

    def __post_init__(self) -> None:
        """Raises ValueError."""
        for name, least in (("clients", 1), ("rate", 0.01), ("rooms", 1), ("seconds", 0.1), ("size", SMALLEST)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} is {getattr(self, name)}, expected {least} or more")
        if self.clients < 2 * self.rooms:
            raise ValueError(f"{self.clients} clients in {self.rooms} rooms: expected two for each to hear one another")

    @property
    def deliveries(self) -> float:
        """Per second."""
        each, more = divmod(self.clients, self.rooms)
        pairs = more * (each + 1) * each + (self.rooms - more) * each * (each - 1)
        return pairs * self.rate * (2 if self.unreliable else 1)

    def excess(self) -> str | None:
        """Why somebody should have agreed to this, None if it is modest."""
        rows = (
            (self.clients, MOST_CLIENTS, "clients"),
            (self.deliveries, MOST_DELIVERIES, "deliveries per second"),
            (self.seconds, MOST_SECONDS, "seconds"),
        )
        for seen, most, what in rows:
            if seen > most:
                return f"{seen:,.0f} {what}, expected at most {most:,.0f}"
        return None


class Latencies:
    """Seconds, in steps of 2 %: as exact as is needed, and the same size however many there are."""

    STEP: Final = math.log(1.02)
    LEAST: Final = 1e-6

    def __init__(self) -> None:
        self.count = 0
        self.worst = 0.0
        self._steps: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        self.count += 1
        self.worst = max(self.worst, seconds)
        self._steps[int(math.log(max(seconds, self.LEAST) / self.LEAST) / self.STEP)] += 1

    def percentile(self, share: float) -> float:
        """The latency that so large a share of all stays below; 0.0 if there are none."""
        wanted, seen = share * self.count, 0
        for step in sorted(self._steps):
            seen += self._steps[step]
            if seen >= wanted:
                return min(self.LEAST * math.exp((step + 1) * self.STEP), self.worst)
        return self.worst


@dataclass(slots=True)
class Kind:
    """What became of the messages of one kind."""

    sent: int = 0
    expected: int = 0  # deliveries
    latencies: Latencies = field(default_factory=Latencies)

    @property
    def lost(self) -> int:
        return max(0, self.expected - self.latencies.count)


@dataclass(slots=True)
class Outcome:
    plan: Plan
    seconds: float = 0.0  # in which messages were sent
    joins: Latencies = field(default_factory=Latencies)
    refused: Counter[str] = field(default_factory=Counter)  # why → how many clients
    errors: Counter[str] = field(default_factory=Counter)  # the same, after they had joined
    reliable: Kind = field(default_factory=Kind)
    unreliable: Kind = field(default_factory=Kind)
    by_udp: int = 0  # clients that sent by UDP at the end
    loop: Latencies = field(default_factory=Latencies)  # how late our own loop was
    busy: float = 0.0  # share of a processor core that we used

    @property
    def is_good(self) -> bool:
        """All were in, and nothing was lost that must not be."""
        return not (self.refused or self.errors or self.reliable.lost) and self.joins.count == self.plan.clients

    @property
    def own_limit(self) -> str | None:
        """What of the tester was at its limit."""
        late = self.loop.percentile(0.99)
        if self.busy >= BUSY:
            return f"it used {100 * self.busy:.0f} % of a processor core, and has no more"
        if late >= LATE:
            return f"its own loop was late by {ms(late)} (99 %)"
        return None


class Load:
    """One run."""

    def __init__(self, target: Target, plan: Plan) -> None:
        self.outcome = Outcome(plan)
        self._plan = plan
        self._key = token_hex(4)  # tells our messages from others' in a room that is not our own
        self._urls = [session_url(target.base, slug) for slug in rooms_of(target.slug or SCRATCH + self._key, plan)]
        self._filler = "x" * (plan.size - SMALLEST)
        self._members: Counter[str] = Counter()  # URL → clients that have joined
        self._rooms: set[Room] = set()
        self._entering = asyncio.Semaphore(JOINING)
        self._entered = asyncio.Semaphore(0)
        self._began = 0.0  # when all were in
        self._start = asyncio.Event()
        self._talking = 0  # clients that have not sent all of theirs
        self._over = asyncio.Event()
        self._came = asyncio.Event()

    async def run(self, progress: Callable[[str], None], every: float = 1.0) -> Outcome:
        """`progress` is told a line now and then. Raises nothing that the server or the network did."""
        async with asyncio.TaskGroup() as group:
            watchers = [group.create_task(self._watch()), group.create_task(self._report(progress, every))]
            clients = [group.create_task(self._client(number)) for number in range(self._plan.clients)]
            for _ in clients:
                await self._entered.acquire()
            if self._rooms:
                if self._plan.unreliable:
                    await self._until(lambda: all(len(room.links) > 1 for room in self._rooms), UDP_WITHIN)
                await self._measure()
            self._over.set()
            await asyncio.wait(clients)
            for watcher in watchers:
                watcher.cancel()
        return self.outcome

    async def _measure(self) -> None:
        outcome, plan = self.outcome, self._plan
        outcome.loop = Latencies()
        self._began, used = time.monotonic(), time.process_time()
        self._start.set()
        await asyncio.sleep(plan.seconds)
        await self._until(lambda: not self._talking, LATEST)
        outcome.seconds = time.monotonic() - self._began
        outcome.busy = (time.process_time() - used) / outcome.seconds
        outcome.by_udp = sum(any(link.kind == "datachannel" and link.active for link in r.links) for r in self._rooms)
        await self._until(lambda: not outcome.reliable.lost and not outcome.unreliable.lost, STRAGGLERS)

    async def _until(self, true: Callable[[], bool], seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not true():
                    self._came.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(WATCH_EVERY):
                            await self._came.wait()

    # One client

    async def _client(self, number: int) -> None:
        url = self._urls[number % len(self._urls)]
        async with AsyncExitStack() as stack:
            try:
                async with self._entering:
                    began = time.monotonic()
                    room = await stack.enter_async_context(session(url, f"load {number}", open_timeout=JOIN_WITHIN))
            except OSError as error:  # SessionClosed is one
                tally(self.outcome.refused, reason_of(error, url))
                return
            finally:
                self._entered.release()
            self.outcome.joins.add(time.monotonic() - began)
            self._listen(room)
            self._rooms.add(room)
            self._members[url] += 1
            self._talking += 1
            try:
                try:
                    await self._talk(room, url, number)
                finally:
                    self._talking -= 1
                await self._over.wait()
            except OSError as error:  # SessionClosed and SendQueueFull are among them
                tally(self.outcome.errors, reason_of(error, url))
            finally:
                self._rooms.discard(room)

    def _listen(self, room: Room) -> None:
        def note(content: Any, message: Message) -> None:
            code, reason = content["code"], content["reason"]
            drop = message.type == "session:drop"
            tally(self.outcome.errors, f"connection lost ({code})" if drop else shown(f"{code}: {reason}"))

        room.on("load", self._hear)
        room.on("session:error", note)
        room.on("session:drop", note)

    def _hear(self, content: Any, message: Message) -> None:
        match content:
            case [self._key, float(when), _]:
                kind = self.outcome.reliable if message.reliable else self.outcome.unreliable
                kind.latencies.add(time.monotonic() - when)
                self._came.set()

    async def _talk(self, room: Room, url: str, number: int) -> None:
        """At its own moments of each period, so that not all talk at once."""
        plan, outcome = self._plan, self.outcome
        await self._start.wait()
        first = self._began + number / plan.clients / plan.rate
        for count in range(max(1, round(plan.seconds * plan.rate))):
            when = first + count / plan.rate
            await asyncio.sleep(when - time.monotonic())
            content = [self._key, when, self._filler]
            for kind in (outcome.reliable, outcome.unreliable)[: 1 + plan.unreliable]:
                await room.send("load", content, reliable=kind is outcome.reliable)
                kind.sent += 1
                kind.expected += self._members[url] - 1

    # The tester itself

    async def _watch(self) -> None:
        while True:
            due = time.monotonic() + WATCH_EVERY
            await asyncio.sleep(WATCH_EVERY)
            self.outcome.loop.add(max(0.0, time.monotonic() - due))

    async def _report(self, progress: Callable[[str], None], every: float) -> None:
        outcome, plan = self.outcome, self._plan
        before, looked = 0, time.monotonic()
        while True:
            await asyncio.sleep(every)
            now = time.monotonic()
            if not self._start.is_set():
                refused = f", {outcome.refused.total()} were not let in" if outcome.refused else ""
                progress(f"{outcome.joins.count} of {plan.clients} clients have joined{refused}")
            else:
                count = outcome.reliable.latencies.count + outcome.unreliable.latencies.count
                rate = (count - before) / (now - max(looked, self._began))
                middle = ms(outcome.reliable.latencies.percentile(0.5))
                told = f"{min(now - self._began, plan.seconds):.0f} of {plan.seconds:g} s, {len(self._rooms)} clients"
                progress(f"{told}: {rate:,.0f} deliveries/s, half of the reliable ones within {middle}")
                before = count
            looked = now


def tally(reasons: Counter[str], reason: str) -> None:
    reasons[reason if reason in reasons or len(reasons) < DISTINCT else "something else"] += 1


def reason_of(error: OSError, url: str) -> str:
    """Without the URL, so that the same reason is the same text for all."""
    reason = shown(str(error).rpartition(url)[2].lstrip(" :"))
    is_address = isinstance(error, SessionClosed) and error.code == 429
    return f"{reason}; for a test: --connections-per-address 0 --new-rooms-per-address 0" if is_address else reason


async def is_this_computer(target: Target) -> bool:
    """Whether its name leads nowhere else. Raises OSError, UnicodeError."""
    return all(ip_address(one).is_loopback for one in await resolve(str(target.parts.hostname)))


def rooms_of(slug: str, plan: Plan) -> list[str]:
    """One is the room itself; several are instances of its piece."""
    return [slug] if plan.rooms == 1 else [f"{slug}~{number}" for number in range(1, plan.rooms + 1)]


def table(outcome: Outcome) -> str:
    """For people."""
    joins, kinds = outcome.joins, [("reliable", outcome.reliable), ("unreliable", outcome.unreliable)]
    lines = [row("", "sent", "delivered", "per second", "p50", "p90", "p99", "worst", "lost")]
    told = [f"{outcome.plan.clients:,}", f"{joins.count:,}", ""]
    lines.append(row("joins", *told, *percentiles(joins), f"{outcome.plan.clients - joins.count:,}"))
    for name, kind in kinds[: 1 + outcome.plan.unreliable]:
        got = kind.latencies.count
        told = [f"{kind.sent:,}", f"{got:,}", f"{got / outcome.seconds if outcome.seconds else 0:,.0f}"]
        share = f" ({100 * kind.lost / kind.expected:.2f} %)" if kind.lost else ""
        lines.append(row(name, *told, *percentiles(kind.latencies), f"{kind.lost:,}{share}"))
    if outcome.plan.unreliable:
        lines.append(f"\nWhat may be lost went by UDP from {outcome.by_udp} of {joins.count} clients at the end.")
    for title, reasons in (("Not let in", outcome.refused), ("Errors", outcome.errors)):
        if reasons:
            lines += ["", f"{title}:", *(f"{count:>8,} × {why}" for why, count in reasons.most_common(REASONS))]
            if more := reasons.total() - sum(count for _, count in reasons.most_common(REASONS)):
                lines.append(f"{more:>8,} × something else")
    if outcome.own_limit:
        lines.append(f"\nThe tester itself was the limit: {outcome.own_limit}. The server may be faster than this.")
    return "\n".join(lines)


def row(name: str, *cells: str) -> str:
    return f"{name:<11}" + "".join(f"{cell:>11}" for cell in cells[:-1]) + f"   {cells[-1]}"


def percentiles(latencies: Latencies) -> list[str]:
    if not latencies.count:
        return ["–"] * 4
    return [*(ms(latencies.percentile(share)) for share in (0.5, 0.9, 0.99)), ms(latencies.worst)]
