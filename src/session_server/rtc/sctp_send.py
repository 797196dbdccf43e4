"""The sending half of an SCTP association: what waits, what is under way, and how much may be. No clock but `now`.

RFC 9260 §6.1 (transmission), §6.2.1 (SACK), §6.3 (timers), §7.2 (congestion control), RFC 3758 §3.5 (what is given up).
TSNs are unbounded integers here and 32 bits on the wire.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import inf
from struct import pack, unpack_from
from typing import Final

from .sctp_chunks import (
    AT_ONCE,
    DATA,
    FORWARD_TSN,
    MAX_PACKET,
    SACK_HEAD,
    TSN,
    Packets,
    chunk,
    unwrap,
)
from .sctp_messages import BEFORE, Bundle, Message, Once

BUFFER: Final = 1024 * 1024  # bytes that wait and may not be lost, above which `send` refuses
STALE: Final = 96 * 1024  # bytes behind the oldest that may be lost, above which it is shed: a long one, and some
MAX_OUTSTANDING: Final = 1024  # TSNs above the cumulative one
FIRST_WINDOW: Final = 10 * MAX_PACKET  # bytes (as TCP, RFC 6928)
LEAST_WINDOW: Final = 4 * MAX_PACKET  # bytes (§7.2.3)
MOST_WINDOW: Final = 256 * 1024  # bytes: 20 Mbit/s at a round trip of 100 ms
RTO_FIRST: Final = 0.4  # seconds; §15 says 1, and a player would notice it when a first packet is lost
RTO_ABOVE: Final = 0.22  # at least, above the round trip: browsers acknowledge a packet alone after 0.2; §15 says 1
RTO_MOST: Final = 2.0  # §15 says 60: a game that waited so long is over
MAX_RETRANSMITS: Final = 10  # in a row without an answer, then the peer is gone (§15, Association.Max.Retrans)
PAUSE: Final = 0.1  # seconds; what leaves after it asks for its SACK at once: else a browser waits 0.2 for a second one
MEASURE_EVERY: Final = 1.0  # seconds between two measurements of the round trip
REORDERED: Final = 3  # packets that may overtake one before it is taken for lost (§7.2.4)
MAX_SKIPPED: Final = 64  # streams in one FORWARD TSN

UNDER_WAY, DUE, ARRIVED, GIVEN_UP = range(4)  # states of a chunk that has a TSN


class Outgoing:
    """What has TSNs, until the peer has it or goes on without it: a chunk, or a bundle of them."""

    __slots__ = ("first", "fragment", "last", "left", "lost", "message", "size", "state")

    def __init__(
        self, message: Once, fragment: int, first: int, last: int, size: int, state: int = DUE, left: int = 0
    ) -> None:
        self.message = message
        self.fragment = fragment  # number of the chunk in it
        self.first, self.last = first, last  # TSNs
        self.size = size  # bytes on the wire
        self.state = state
        self.left = left  # number of the packet in which it left last
        self.lost = 0  # times


class Sender:
    """What one association sends."""

    __slots__ = (
        "_acked", "_due", "_flight", "_left_at", "_measure_at", "_numbers", "_outstanding", "_packets",
        "_partial_acked", "_peer_window", "_recover_until", "_reliable", "_reliable_size", "_rtt_variation", "_streak",
        "_streak_tsn", "_threshold", "_timed", "_tries", "_turn", "_unreliable", "_unreliable_size", "acked_at",
        "arrived", "deadline", "forward_due", "lost", "next_tsn", "rto", "rtt", "shed", "window",
    )  # fmt: skip

    def __init__(self, first_tsn: int, window: int) -> None:
        """`window`: bytes that the peer takes, at first."""
        self.next_tsn = first_tsn
        self.shed = 0  # messages that grew too old while they waited
        self.arrived = 0  # messages of those that are sent once
        self.lost = 0  # the same that were given up
        self.acked_at = -inf  # when something last arrived
        self.rtt = 0.0  # seconds, smoothed; 0: not measured
        self.rto = RTO_FIRST
        self.deadline = inf  # T3 (§6.3)
        self.forward_due = False
        self.window = FIRST_WINDOW  # of congestion, bytes
        self._acked = first_tsn - 1  # cumulative
        self._reliable: deque[Message] = deque()
        self._reliable_size = 0
        self._unreliable: deque[Once] = deque()
        self._unreliable_size = 0
        self._turn = False  # of the unreliable ones, if both wait
        self._outstanding: deque[Outgoing] = deque()  # by rising TSN, all from the cumulative one on
        # Bundles that left behind all of those, each in a packet of its own, and of which nothing is known yet: as
        # nearly all that is ever sent. Their TSNs and packets follow from their places (`_unfold`).
        self._streak: deque[Bundle] = deque()
        self._streak_tsn = first_tsn  # of the first of them, or else of what comes next
        self._due: deque[Outgoing] = deque()  # of them, what is to leave: for the first time, or again
        self._flight = 0  # bytes under way
        self._packets = 0  # with data, that have left
        self._left_at = -inf  # when the last one did
        self._numbers: dict[int, int] = {}  # stream → number of its next ordered message
        self._threshold = MOST_WINDOW  # of slow start
        self._partial_acked = 0
        self._recover_until = self._acked
        self._peer_window = window
        self._rtt_variation = 0.0
        self._timed: tuple[int, float] | None = None  # TSN whose round trip is measured, and when it left
        self._measure_at = -inf  # when the next one may be
        self._tries = 0  # time-outs in a row

    # --- what waits ---------------------------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        return bool(self._due or self._unreliable or self._reliable)

    @property
    def can_wait(self) -> bool:
        """Whether an acknowledgement may come, and no message waits for it."""
        return self._flight > 0 and not (self._due or self._unreliable or self._reliable)

    @property
    def is_timing(self) -> bool:
        """Whether the next acknowledgement may end a measurement of the round trip."""
        return self._timed is not None

    @property
    def buffered(self) -> int:
        """Bytes that wait to be sent or acknowledged."""
        due = sum(one.size for one in self._outstanding if one.state == DUE)
        return self._reliable_size + self._unreliable_size + self._flight + due

    def send(self, stream: int, ppid: int, payload: bytes, ordered: bool, retransmits: int | None) -> bool:
        """False: too much waits already. What may be lost is always taken."""
        if retransmits is None and self._reliable_size + len(payload) > BUFFER:
            return False
        message = Message(stream, ppid, payload, ordered, retransmits)
        if retransmits is None:
            self._reliable.append(message)
            self._reliable_size += message.size
        else:
            self.push((message,), message.size)
        return True

    def push(self, items: Sequence[Once], size: int) -> int:
        """Of those that may be lost, in all `size` bytes on the wire. The oldest make room; returns how many."""
        waiting, shed = self._unreliable, 0
        waiting.extend(items)
        self._unreliable_size += size
        while self._unreliable_size > STALE and self._unreliable_size - waiting[0].size > STALE:
            shed += self._pop_unreliable().count
        self.shed += shed
        return shed

    def forget(self, stream: int) -> None:
        """What waits on this stream will not be sent, and its numbers begin anew."""
        self._numbers.pop(stream, None)
        self._reliable = deque(one for one in self._reliable if one.stream != stream)
        self._reliable_size = sum(one.size for one in self._reliable)
        self._unreliable = deque(one for one in self._unreliable if one.stream != stream)
        self._unreliable_size = sum(one.size for one in self._unreliable)

    # --- what leaves (§6.1) -------------------------------------------------------------------------------------------

    def transmit(self, packets: Packets, now: float) -> None:
        """What may leave now, first what was lost."""
        if not self.waits:
            return
        self._unfold()
        window = self.window if self.window < self._peer_window else self._peer_window
        if not window and not self._flight:
            window = 1  # a closed window is probed
        left, most = None, self._acked + MAX_OUTSTANDING
        while self._flight < window:
            if self._due:
                left = self._leave(packets, self._due.popleft()) or left
            elif self.next_tsn > most:
                break
            elif self._unreliable and (self._turn or not self._reliable):
                item = self._pop_unreliable()
                if isinstance(item, Bundle):
                    packets.add(item.content(self.next_tsn))
                    left = self._number(item, self._packets + len(packets.done))
                else:
                    self._begin(item)
            elif self._reliable:
                self._begin(self._pop_reliable())
            else:
                break
        if left is not None:
            self._has_left(left, now)

    def send_at_once(self, item: Bundle, now: float) -> bytes | None:
        """The chunks of a bundle that may leave now, alone and before anything else; None: it must wait its turn."""
        flight, tsn = self._flight, self.next_tsn
        if self._unreliable or self._reliable or self._due or self.forward_due:
            return None
        if flight >= self.window or flight >= self._peer_window or tsn > self._acked + MAX_OUTSTANDING:
            return None
        self.next_tsn = tsn + item.count
        self._flight = flight + item.size
        self._streak.append(item)
        content = item.content(tsn)
        if now >= self._measure_at:
            self._time(tsn, now)
        if self.deadline == inf:
            self._arm(now)
        if now - self._left_at >= PAUSE:
            content = bytes((DATA, content[1] | AT_ONCE)) + content[2:]
        self._left_at = now
        return content

    def _unfold(self) -> None:
        """Each of the streak for itself, since what becomes of them may differ now."""
        for item in self._streak:
            self._outstanding.append(self._under_way(item, self._streak_tsn, self._packets))
            self._packets += 1
            self._streak_tsn += item.count
        self._streak.clear()

    def _under_way(self, item: Bundle, tsn: int, packet: int) -> Outgoing:
        return Outgoing(item, 0, tsn, tsn + item.count - 1, item.size, UNDER_WAY, packet)

    def _has_left(self, last: Outgoing, now: float) -> None:
        self._packets = last.left + 1
        self._left_at = now
        if now >= self._measure_at and not last.lost:
            self._time(last.first, now)
        if self.deadline == inf:
            self._arm(now)

    def _leave(self, packets: Packets, one: Outgoing) -> Outgoing | None:
        """One chunk, if it is still due."""
        if one.state != DUE:
            return None
        blank = one.message.blanks[one.fragment]
        packets.add(blank[:BEFORE] + TSN(one.first & 0xFFFFFFFF) + blank[BEFORE:])
        one.left = self._packets + len(packets.done)
        one.state = UNDER_WAY
        self._flight += one.size
        return one

    def _number(self, item: Bundle, packet: int) -> Outgoing:
        """A bundle takes its TSNs, in the packet of this number."""
        one = self._under_way(item, self.next_tsn, packet)
        self.next_tsn = self._streak_tsn = one.last + 1
        self._outstanding.append(one)
        self._flight += item.size
        return one

    def _pop_reliable(self) -> Message:
        message = self._reliable.popleft()
        self._reliable_size -= message.size
        self._turn = True
        return message

    def _pop_unreliable(self) -> Once:
        message = self._unreliable.popleft()
        self._unreliable_size -= message.size
        self._turn = False
        return message

    def _begin(self, message: Message) -> None:
        """It becomes due, its fragments with TSNs in a row (§6.9)."""
        if message.ordered:
            message.number = self._numbers.get(message.stream, 0)
            self._numbers[message.stream] = message.number + 1 & 0xFFFF
            message.blanks = message.fragments()
        for fragment, blank in enumerate(message.blanks):
            one = Outgoing(message, fragment, self.next_tsn, self.next_tsn, len(blank) + 4)
            self.next_tsn += 1
            self._outstanding.append(one)
            self._due.append(one)
        self._streak_tsn = self.next_tsn

    def forward(self) -> bytes:
        """FORWARD TSN: what was given up, up to the first that was not (RFC 3758 §3.5). What arrived is passed over
        but for fragments: the peer would drop them, and their message may still become whole."""
        self.forward_due = False
        last = self._acked
        skipped: dict[int, int] = {}  # stream → number of its last ordered message that is given up
        for one in self._outstanding:
            message = one.message
            is_fragment = one.state == ARRIVED and len(message.blanks) > 1
            if one.state < ARRIVED or is_fragment or len(skipped) == MAX_SKIPPED:
                break
            last = one.last
            if one.state == GIVEN_UP and isinstance(message, Message) and message.ordered:
                skipped[message.stream] = message.number
        return chunk(FORWARD_TSN, TSN(last & 0xFFFFFFFF) + b"".join(pack("!HH", *pair) for pair in skipped.items()))

    # --- what has arrived (§6.2.1) ------------------------------------------------------------------------------------

    def receive_sack(self, packet: bytes, at: int, size: int, now: float) -> None:
        """The chunk of `size` bytes at `at`; `now`: when it came. Raises ValueError."""
        if size < 16:
            raise ValueError(f"SACK of {size} bytes, expected at least 16")
        wire, window, gaps, _ = SACK_HEAD.unpack_from(packet, at + 4)
        if size < 16 + 4 * gaps:
            raise ValueError(f"SACK of {size} bytes with {gaps} gap blocks, expected at least {16 + 4 * gaps}")
        before = self._acked
        cumulative = unwrap(wire, before)
        if not before <= cumulative < self.next_tsn:
            return  # old, or of what was never sent
        # Of one that is read late nobody knows how much was under way when it came.
        full = self._flight + MAX_PACKET > self.window and now >= self._left_at
        if gaps:
            self._unfold()
        acked, newest = self._take_cumulative(cumulative)
        if gaps:
            acked_beyond, newest_beyond = self._take_gaps(unpack_from(f"!{2 * gaps}H", packet, at + 16))
            acked, newest = acked + acked_beyond, max(newest, newest_beyond)
        self._flight -= acked
        if acked:
            self.acked_at = now
        if self._timed is not None and self._has_arrived(self._timed[0]):
            self._measure(now - self._timed[1], now)
        if gaps and acked:
            self._miss(newest)
        self._peer_window = window
        if acked or not window:  # a closed window is an answer, too (§6.1, A)
            self._tries = 0
        if cumulative > before:
            if full and cumulative > self._recover_until:
                self._grow(acked)
            self._arm(max(now, self._left_at))  # it may be read after others have left: they have their whole time
        outstanding = self._outstanding
        if outstanding and outstanding[0].state == GIVEN_UP:
            self.forward_due = True

    def _take_cumulative(self, cumulative: int) -> tuple[int, int]:
        """All up to this TSN came: how many bytes of which that is news, and the newest packet that brought such."""
        acked, newest, outstanding = 0, -1, self._outstanding
        while outstanding and outstanding[0].last <= cumulative:
            one = outstanding.popleft()
            if one.state == UNDER_WAY:
                acked += one.size
                self._count_arrival(one)
                if one.left > newest:
                    newest = one.left
            one.state = ARRIVED
        self._acked = cumulative
        return acked + self._take_streak(cumulative + 1, self._flight - acked), newest

    def _take_streak(self, after: int, flight: int) -> int:
        """All of the streak below this TSN came: how many bytes. Counted from the nearer end: what is under way is
        `flight` bytes, and if nothing is beside the streak, it is all of that."""
        streak, first, acked = self._streak, self._streak_tsn, 0
        if self._outstanding or after - first < self.next_tsn - after:
            while streak and first + streak[0].count <= after:
                item = streak.popleft()
                first += item.count
                acked += item.size
        else:
            first, acked, self._streak = self.next_tsn, flight, deque()
            while first > after:
                item = streak.pop()
                first -= item.count
                acked -= item.size
                self._streak.appendleft(item)
        self.arrived += first - self._streak_tsn
        self._streak_tsn = first
        return acked

    def _take_gaps(self, blocks: tuple[int, ...]) -> tuple[int, int]:
        """The same for what came beyond a gap: pairs of first and last, counted from the cumulative TSN."""
        acked, newest, block = 0, -1, 0
        for one in self._outstanding:
            while block < len(blocks) and self._acked + blocks[block + 1] < one.last:
                block += 2
            if block == len(blocks):
                break
            if self._acked + blocks[block] <= one.first and one.state < ARRIVED:
                if one.state == UNDER_WAY:
                    acked += one.size
                    self._count_arrival(one)
                    newest = max(newest, one.left)
                one.state = ARRIVED
        return acked, newest

    def _has_arrived(self, tsn: int) -> bool:
        return tsn <= self._acked or any(one.first == tsn and one.state == ARRIVED for one in self._outstanding)

    def _count_arrival(self, one: Outgoing) -> None:
        message = one.message
        if message.retransmits == 0 and one.fragment == 0:  # a long one counts with its first part
            self.arrived += message.count

    def _miss(self, newest: int) -> None:
        """What left three packets before this one is lost (§7.2.4). The window is halved once per round trip.

        Counted in packets, as RFC 9002 §6.1.1 does, and not in SACKs: one may tell of many packets. In the order in
        which they left, not by TSN: what left for the second time is not judged by what came of the first.
        """
        lost = [one for one in self._outstanding if one.state == UNDER_WAY and one.left + REORDERED <= newest]
        self._lose(lost)
        if lost and self._acked >= self._recover_until:
            self._recover_until = self.next_tsn - 1
            self._threshold = self.window = max(self.window // 2, LEAST_WINDOW)
            self._partial_acked = 0

    def _lose(self, lost: list[Outgoing]) -> None:
        """They left and did not arrive: they leave again, before all others, or are given up."""
        again = []
        for one in lost:
            if one.state != UNDER_WAY:  # given up with another fragment
                continue
            self._flight -= one.size
            self._forget_time(one)  # whether the first or the second was acknowledged could not be told (§6.3.1, C5)
            limit = one.message.retransmits
            one.lost += 1
            if limit is None or one.lost <= limit:
                one.state = DUE
                again.append(one)
            else:
                one.state = GIVEN_UP
                self.lost += one.message.count if limit == 0 else 0
                self._give_up_rest(one)
        self._due.extendleft(reversed(again))

    def _give_up_rest(self, lost: Outgoing) -> None:
        """The other fragments of a message that cannot be whole any more, arrived or not (RFC 3758 §3.5)."""
        start = lost.first - lost.fragment
        for one in self._outstanding if len(lost.message.blanks) > 1 else ():
            if start <= one.first < start + len(lost.message.blanks):
                self._flight -= one.size if one.state == UNDER_WAY else 0
                self._forget_time(one)
                one.state = GIVEN_UP

    def _grow(self, acked: int) -> None:
        """Slow start, then congestion avoidance (§7.2.1, §7.2.2)."""
        if self.window <= self._threshold:
            self.window = min(self.window + min(acked, MAX_PACKET), MOST_WINDOW)
            return
        self._partial_acked += acked
        if self._partial_acked >= self.window:
            self._partial_acked -= self.window
            self.window = min(self.window + MAX_PACKET, MOST_WINDOW)

    def _time(self, tsn: int, now: float) -> None:
        """A measurement begins."""
        self._timed, self._measure_at = (tsn, now), inf

    def _forget_time(self, one: Outgoing) -> None:
        if self._timed is not None and self._timed[0] == one.first:
            self._timed, self._measure_at = None, -inf

    def _measure(self, rtt: float, now: float) -> None:
        """§6.3.1."""
        self._timed, self._measure_at = None, now + MEASURE_EVERY
        if not self.rtt:
            self.rtt, self._rtt_variation = rtt, rtt / 2
        else:
            self._rtt_variation += (abs(self.rtt - rtt) - self._rtt_variation) / 4
            self.rtt += (rtt - self.rtt) / 8
        self.rto = min(self.rtt + max(4 * self._rtt_variation, RTO_ABOVE), RTO_MOST)

    def run(self, now: float) -> bool:
        """§6.3.3: if nothing was acknowledged for too long, all is lost that is under way. False: the peer is gone."""
        if now < self.deadline:
            return True
        self._unfold()
        self._tries += 1
        self._threshold = max(self.window // 2, LEAST_WINDOW)
        self.window = MAX_PACKET
        self._partial_acked = 0
        self._lose([one for one in self._outstanding if one.state == UNDER_WAY])
        self.forward_due |= self._outstanding[0].state == GIVEN_UP
        self._arm(now)
        return self._tries <= MAX_RETRANSMITS

    def _arm(self, now: float) -> None:
        """Waits twice as long after each time-out (§6.3.3, E2), until something arrives: then the path is there again,
        and what was sent twice cannot be measured (§6.3.1, C5), so to wait for a measurement might take long."""
        if not self._outstanding and not self._streak:
            self.deadline = inf
        else:
            self.deadline = now + (min(self.rto * 2**self._tries, RTO_MOST) if self._tries else self.rto)
