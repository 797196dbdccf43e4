"""The receiving half of an SCTP association: DATA in, whole messages out, and what a SACK says. No clock but `now`.

RFC 9260 §6.2 (acknowledgement), §6.5 to §6.7 (streams, order, gaps), §6.9 (fragments), RFC 3758 §3.6 (FORWARD TSN).
TSNs are unbounded integers here and 32 bits on the wire.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from operator import itemgetter
from struct import iter_unpack, unpack_from
from typing import Final

from .sctp_chunks import AT_ONCE, DATA_HEAD, FIRST, LAST, UNORDERED, sack, unwrap

WINDOW: Final = 1024 * 1024  # bytes that wait for their turn or their other fragments
HOLDING: Final = 256  # bytes of memory that each of these costs besides its payload
AHEAD: Final = 4096  # TSNs above the cumulative one that are taken
GAPS: Final = 64  # blocks in a SACK: what would need one more is not taken
LONGEST_SACK: Final = 16 + 4 * GAPS  # bytes of the chunk
STREAMS: Final = 1024
SACK_DELAY: Final = 0.02  # seconds; §6.2 allows 0.5

FIRST_OF: Final = itemgetter(0)


@dataclass(slots=True)
class Received:
    stream: int
    ppid: int
    payload: bytes


@dataclass(slots=True)
class Fragment:
    flags: int
    number: int
    message: Received  # this part of it
    end: int  # TSN of the other end of the run of fragments that it is an end of


class Receiver:
    """What one association receives."""

    __slots__ = (
        "_blocks", "_expected", "_forwarded", "_fragments", "_held", "_max_message", "_ordered", "_out", "_packets",
        "cumulative", "sack_at",
    )  # fmt: skip

    def __init__(self, first_tsn: int, max_message: int, out: Callable[[Received], None]) -> None:
        """`out` gets the messages; longer ones than `max_message` bytes are dropped."""
        self.cumulative = first_tsn - 1  # TSN up to which all came
        self.sack_at = inf  # when a SACK is due
        self._max_message = max_message
        self._out = out
        self._blocks: list[list[int]] = []  # first and last TSN of what came beyond a gap, rising
        self._packets = 0  # with data, since the last SACK
        self._fragments: dict[int, Fragment] = {}  # by TSN
        self._forwarded = self.cumulative  # TSN up to which the peer has given up what was missing
        self._ordered: dict[int, dict[int, Received]] = {}  # stream → number → message that waits for earlier ones
        self._expected: dict[int, int] = {}  # stream → number of the next ordered message
        self._held = 0  # bytes in both

    # --- acknowledgement (§6.2) ---------------------------------------------------------------------------------------

    def packet_ends(self, now: float) -> None:
        """A packet with data has been read: when is its SACK due?"""
        self._packets += 1
        if self._packets >= 2 or self._blocks:
            self.sack_at = now
        elif self.sack_at == inf:
            self.sack_at = now + SACK_DELAY

    def sack(self) -> bytes:
        self.sack_at, self._packets = inf, 0
        return sack(self.cumulative, max(0, WINDOW - self._held), self._blocks)

    def _note(self, tsn: int) -> bool:
        """Whether this TSN is new, and there is room to remember it."""
        blocks = self._blocks
        if tsn == self.cumulative + 1:
            if blocks:
                self._packets = 2  # a gap is filled, which is news
            self._advance(tsn)
            return True
        at = bisect_right(blocks, tsn, key=FIRST_OF)
        if tsn <= self.cumulative or (at and tsn <= blocks[at - 1][1]):
            self._packets = 2  # a duplicate: our SACK was lost, so it is repeated at once
            return False
        if tsn > self.cumulative + AHEAD:
            return False
        follows = at > 0 and blocks[at - 1][1] == tsn - 1
        precedes = at < len(blocks) and blocks[at][0] == tsn + 1
        if follows:
            blocks[at - 1][1] = blocks.pop(at)[1] if precedes else tsn
        elif precedes:
            blocks[at][0] = tsn
        elif len(blocks) < GAPS:
            blocks.insert(at, [tsn, tsn])
        else:
            return False
        return True

    def _advance(self, tsn: int) -> None:
        """All up to this TSN came or will not come."""
        blocks = self._blocks
        while blocks and blocks[0][0] <= tsn + 1:
            tsn = max(tsn, blocks.pop(0)[1])
        self.cumulative = tsn

    # --- data (§6.5, §6.9) --------------------------------------------------------------------------------------------

    def receive_data(self, packet: bytes, at: int, flags: int, size: int) -> None:
        """The chunk of `size` bytes at `at`. Raises ValueError. What is not taken comes again."""
        if size <= 16:
            raise ValueError(f"DATA of {size} bytes, expected at least 17")
        wire, stream, number, ppid = DATA_HEAD.unpack_from(packet, at + 4)
        tsn = unwrap(wire, self.cumulative)
        # What lets others go on their way must have room even if these have none left.
        room = WINDOW if tsn != self.cumulative + 1 else WINDOW + 2 * self._max_message
        if self._held + HOLDING + size > room or not self._note(tsn) or stream >= STREAMS:
            return
        if flags & AT_ONCE:
            self._packets = 2
        message = Received(stream, ppid, packet[at + 16 : at + size])
        if flags & (FIRST | LAST) == FIRST | LAST:
            self._deliver(flags, number, message)
        else:
            self._held += len(message.payload) + HOLDING
            self._join(tsn, Fragment(flags, number, message, tsn))
            self._forget_beheaded()

    def _join(self, tsn: int, fragment: Fragment) -> None:
        """Runs of neighbours grow together, each end knowing the other, until one is a whole message."""
        fragments = self._fragments
        fragments[tsn] = fragment
        first = last = tsn
        before, after = fragments.get(tsn - 1), fragments.get(tsn + 1)
        if before is not None and not before.flags & LAST and not fragment.flags & FIRST:
            first = before.end
        if after is not None and not after.flags & FIRST and not fragment.flags & LAST:
            last = after.end
        fragments[first].end, fragments[last].end = last, first
        start = fragments[first]
        if start.flags & FIRST and fragments[last].flags & LAST:
            payload = b"".join(self._forget(one) for one in range(first, last + 1))
            if len(payload) <= self._max_message:
                self._deliver(start.flags, start.number, Received(start.message.stream, start.message.ppid, payload))

    def _forget(self, tsn: int) -> bytes:
        """The payload of a fragment that is not held any more."""
        payload = self._fragments.pop(tsn).message.payload
        self._held -= len(payload) + HOLDING
        return payload

    def _deliver(self, flags: int, number: int, message: Received) -> None:
        if flags & UNORDERED:
            self._out(message)
            return
        expected = self._expected.get(message.stream, 0)
        if number == expected:
            self._out(message)
            self._release(message.stream, number + 1 & 0xFFFF)
        elif not (number - expected) & 0x8000:
            waiting = self._ordered.setdefault(message.stream, {})
            if number not in waiting:
                waiting[number] = message
                self._held += len(message.payload) + HOLDING

    def _release(self, stream: int, expected: int) -> None:
        """This number is the next of its stream: it may be here, with those that follow."""
        waiting = self._ordered.get(stream)
        while waiting and expected in waiting:
            self._out(self._unhold(waiting.pop(expected)))
            expected = expected + 1 & 0xFFFF
        if waiting is not None and not waiting:
            del self._ordered[stream]
        self._expected[stream] = expected

    def _unhold(self, message: Received) -> Received:
        self._held -= len(message.payload) + HOLDING
        return message

    # --- what does not come any more ----------------------------------------------------------------------------------

    def receive_forward(self, body: bytes, now: float) -> None:
        """RFC 3758 §3.6: the peer has given up what is missing."""
        if len(body) < 4:
            raise ValueError(f"FORWARD TSN of {4 + len(body)} bytes, expected at least 8")
        tsn = unwrap(unpack_from("!L", body)[0], self.cumulative)
        self.sack_at = now
        if not self.cumulative < tsn <= self.cumulative + AHEAD:
            return
        fragments = self._fragments
        passed = range(self._forwarded + 1, tsn + 1)  # none is held below
        for one in passed if len(passed) < len(fragments) else tuple(fragments):
            if one <= tsn and one in fragments:
                self._forget(one)
        self._forwarded = tsn
        self._forget_beheaded()
        self._advance(self._forwarded)
        for stream, number in iter_unpack("!HH", body[4 : len(body) & ~3]):
            self._skip(stream, number)

    def _forget_beheaded(self) -> None:
        """Fragments of which the beginning was given up: they may come even later than that is said."""
        after = self._forwarded + 1
        while after in self._fragments and not self._fragments[after].flags & FIRST:
            self._forget(after)
            self._forwarded, after = after, after + 1

    def _skip(self, stream: int, number: int) -> None:
        """Messages of a stream up to this number will not come; those that are here are delivered."""
        waiting, expected = self._ordered.get(stream, {}), self._expected.get(stream, 0)
        skipped = number - expected & 0xFFFF
        if stream >= STREAMS or skipped & 0x8000:
            return  # not ours, or long past
        steps: Sequence[int] = range(skipped + 1)
        if len(waiting) < len(steps):
            steps = sorted(step for step in (one - expected & 0xFFFF for one in waiting) if step <= skipped)
        for step in steps:
            message = waiting.pop(expected + step & 0xFFFF, None)
            if message is not None:
                self._out(self._unhold(message))
        self._release(stream, number + 1 & 0xFFFF)

    def reset(self, streams: tuple[int, ...]) -> None:
        """These streams begin anew; none named: all (RFC 6525 §5.2.2)."""
        for stream in streams or tuple(self._expected.keys() | self._ordered.keys()):
            self._expected.pop(stream, None)
            for message in self._ordered.pop(stream, {}).values():
                self._unhold(message)
