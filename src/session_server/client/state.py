"""What a client keeps account of: what the server may not have, what the program has not taken, who is here, what time
it is there. No I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..protocol import PEOPLE_LISTED
from .wire import Frame, Message, Person

KEPT_MESSAGES = 256  # reliable messages that the server may not have
KEPT_BYTES = 1024 * 1024
INBOX_MESSAGES = 1024  # messages that `async for` has not taken yet
INBOX_BYTES = 1024 * 1024
NUMBERED = 4096  # senders and types whose last number is remembered
SAMPLES = 8  # of the clock: 40 s of heartbeats
DRIFT = 1.0  # seconds; two samples that differ by more were not of the same clock


@dataclass(slots=True, eq=False)
class Kept:
    """One reliable message of ours, until the server is known to have it."""

    frame: Frame
    size: int  # bytes
    sent: bool = False  # on this seat's link
    withdrawn: bool = False  # nobody wants it any more


class Ledger:
    """What both sides of a seat count, so that after a drop neither has to guess (wire.md, Resume). No I/O.

    `received` counts the reliable messages that came. Ours have numbers from 1: the server has those up to `covered`,
    those up to `sent` were written; `_kept` begins with number `covered` + 1.
    """

    def __init__(self, messages: int = KEPT_MESSAGES, size: int = KEPT_BYTES) -> None:
        self.received = 0
        self.covered = 0
        self.sent = 0
        self._kept: deque[Kept] = deque()
        self._size = 0
        self._messages = messages
        self._bytes = size

    @property
    def uncovered(self) -> int:
        """Messages written, of which we do not know that the server has them."""
        return self.sent - self.covered

    @property
    def unsent(self) -> int:
        return len(self._kept) - self.uncovered

    @property
    def half_full(self) -> bool:
        """Time to ask the server how many it has, before there is no room for more."""
        return 2 * len(self._kept) > self._messages or 2 * self._size > self._bytes

    def __str__(self) -> str:
        return f"{len(self._kept)} messages ({self._size} bytes)"

    def full(self, size: int) -> bool:
        """Whether a message of `size` bytes has no room. One alone always has, whatever its size."""
        return bool(self._kept) and (len(self._kept) >= self._messages or self._size + size > self._bytes)

    def keep(self, frame: Frame, size: int) -> Kept:
        kept = Kept(frame, size)
        self._kept.append(kept)
        self._size += size
        return kept

    def next(self) -> Kept | None:
        """The next to be written; from now on the server may have it."""
        if not self.unsent:
            return None
        kept = self._kept[self.uncovered]
        kept.sent = True
        self.sent += 1
        return kept

    def cover(self, taken: int) -> None:
        """The server says that it took so many. A number that cannot be is passed over."""
        if taken <= self.sent:
            for _ in range(taken - self.covered):
                self._size -= self._kept.popleft().size
                self.covered += 1

    def withdraw(self, kept: Kept) -> None:
        """Never to be written, or written again. What was written keeps its number."""
        kept.withdrawn = True
        if not kept.sent and kept in self._kept:
            self._kept.remove(kept)
            self._size -= kept.size

    def could_be(self, taken: int, seq: int) -> bool:
        """Whether a server with these counts can be speaking of this seat."""
        return self.covered <= taken <= self.sent and self.received <= seq

    def resume(self, taken: int, seq: int) -> None:
        """The same seat on a new link: what the server did not take is to be written again."""
        self.cover(taken)
        self._begin([kept for kept in self._kept if not kept.withdrawn], taken, seq)

    def restart(self, taken: int, seq: int) -> None:
        """A new seat. What was written on the old one may have arrived and been acted on: written again it might arrive
        twice, which is worse than once lost, as `session:resume` tells of the loss."""
        self._begin([kept for kept in self._kept if not kept.sent], taken, seq)

    def _begin(self, waiting: list[Kept], taken: int, seq: int) -> None:
        for kept in waiting:
            kept.sent = False
        self._kept = deque(waiting)
        self._size = sum(kept.size for kept in waiting)
        self.covered = self.sent = taken
        self.received = seq


class Inbox:
    """Messages that `async for` has not taken yet. Sheds unreliable ones first, the oldest first."""

    def __init__(self, messages: int = INBOX_MESSAGES, size: int = INBOX_BYTES) -> None:
        self._queue: deque[tuple[Message, int]] = deque()
        self._size = 0
        self._unreliable = 0
        self._messages = messages
        self._bytes = size

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, message: Message, size: int, wait: bool) -> bool:
        """False if there is no room and, with `wait`, no reliable message may be shed: try again later."""
        while self._queue and (len(self._queue) >= self._messages or self._size + size > self._bytes):
            if self._unreliable:
                self._remove(next(i for i, (old, _) in enumerate(self._queue) if not old.reliable))
            elif not message.reliable:
                return True  # shed
            elif wait:
                return False
            else:
                self._remove(0)
        self._queue.append((message, size))
        self._size += size
        self._unreliable += not message.reliable
        return True

    def get(self) -> Message:
        message = self._queue[0][0]
        self._remove(0)
        return message

    def _remove(self, index: int) -> None:
        message, size = self._queue[index]
        del self._queue[index]
        self._size -= size
        self._unreliable -= not message.reliable


class Newest:
    """What may be lost and carries a number is heard once, and not after a later one: it may have come on both links,
    and links overtake each other (wire.md, Two links)."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, str], int] = {}  # sender, type → number

    def is_news(self, sender: int, type: str, number: int) -> bool:
        key = (sender, type)
        if number <= self._last.get(key, -1):
            return False
        self._last[key] = number
        if len(self._last) > NUMBERED:
            del self._last[next(iter(self._last))]
        return True

    def clear(self) -> None:
        """A new seat, or another server, counts from anew."""
        self._last.clear()


class People:
    """Who is in the room, as far as the server lists them."""

    def __init__(self) -> None:
        self._by_id: dict[int, Person] = {}
        self.count = 0

    def listed(self) -> list[Person]:
        return list(self._by_id.values())

    def replace(self, people: list[Person], count: int | None) -> dict[str, Any]:
        """The list of a welcome; returns what is different from before."""
        here = {person.id for person in people}
        return self.apply(people, [id for id in self._by_id if id not in here], count)

    def apply(self, people: list[Person], leaves: list[int], count: int | None) -> dict[str, Any]:
        """A diff; returns what of it is news."""
        known = self._by_id
        left = [id for id in leaves if known.pop(id, None) is not None]
        joins = [person for person in people if person.id not in known]
        updates = [person for person in people if person.id in known and known[person.id] != person]
        known.update((person.id, person) for person in people)
        self.count = len(known) if count is None else count
        if self.count > PEOPLE_LISTED:  # from here on the list would only grow old
            known.clear()
        return {"joins": joins, "leaves": left, "updates": updates, "count": self.count}


class Clock:
    """The server's clock, estimated from its `time` in answers: the quickest of the last answers is the most exact."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES)  # rtt, offset: seconds
        self._shown = float("-inf")

    def add(self, server_time: float, rtt: float) -> None:
        offset = server_time + rtt / 2 - self._now()
        # Either the server is another one, or our own clock stood still while the computer slept.
        if self._samples and abs(offset - min(self._samples)[1]) > (rtt + min(self._samples)[0]) / 2 + DRIFT:
            self._samples.clear()
            self._shown = float("-inf")
        self._samples.append((rtt, offset))

    @property
    def time(self) -> float:
        """Seconds; goes backwards only if the room moved to a server with another clock."""
        offset = min(self._samples)[1] if self._samples else 0.0
        self._shown = max(self._shown, self._now() + offset)
        return self._shown
