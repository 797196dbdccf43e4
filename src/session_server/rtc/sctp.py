"""SCTP above DTLS, for one peer: packets and `now` in, packets and events out. Knows no addresses and no channels.

RFC 9260 (SCTP; sections named § alone), RFC 3758 (what may be lost), RFC 6525 (stream reset), RFC 8831 §5 (what WebRTC
uses of them: one path, no multihoming). TSNs are unbounded integers here and 32 bits on the wire.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from struct import Struct, pack, unpack_from
from typing import Final

import google_crc32c

assert google_crc32c.implementation == "c", "google-crc32c without its C part is a hundred times slower"

MAX_PACKET: Final = 1160  # bytes: with DTLS 1,197 in a datagram
MAX_CHUNK: Final = MAX_PACKET - 28  # bytes of payload in one DATA chunk: packet header 12, chunk header 16
PORT: Final = 5000
RECEIVE_WINDOW: Final = 1024 * 1024  # bytes that wait for their turn or their other fragments
SEND_BUFFER: Final = 1024 * 1024  # bytes not acknowledged, above which `send` refuses
STALE: Final = 64 * 1024  # bytes that wait to be sent, above which what may be lost is refused
AHEAD: Final = 4096  # TSNs above the cumulative one that are taken
GAPS: Final = 64  # blocks in a SACK
STREAMS: Final = 1024
COOKIE_LIFE: Final = 60.0  # seconds (§15)
RTO_FIRST: Final = 0.4  # seconds; §15 says 1, and a player would notice it when a first packet is lost
RTO_LEAST: Final = 0.2  # §15 says 1; a game that waits a second has lost it, and TCP waits as little
RTO_MOST: Final = 2.0  # §15 says 60: a game that waited so long is over
MAX_RETRANSMITS: Final = 10  # in a row without an answer, then the peer is gone (§15, Association.Max.Retrans)
SACK_DELAY: Final = 0.02  # seconds; §6.2 allows 0.5
FIRST_WINDOW: Final = 10 * MAX_PACKET  # bytes (as TCP, RFC 6928)
LEAST_WINDOW: Final = 4 * MAX_PACKET  # bytes (§7.2.3)

STATE_COOKIE, SUPPORTED, PARTIAL = 7, 0x8008, 0xC000  # parameters (§3.3.3, RFC 5061 §4.2.7, RFC 3758 §3.1)
OUTGOING_RESET, INCOMING_RESET, RESET_ANSWER = 13, 14, 16  # parameters of RE-CONFIG (RFC 6525 §4)
FIRST, LAST, UNORDERED = 2, 1, 4  # flags of DATA (§3.3.1)

HEADER: Final = Struct("!HHLL")  # ports, verification tag, checksum (§3.1)
CHUNK: Final = Struct("!BBH")  # type, flags, length (§3.2)
TSN: Final = Struct("!L").pack
DATA_TAIL: Final = Struct("!HHL").pack  # stream, sequence number, payload protocol identifier
DATA_HEAD: Final = Struct("!BBHLHHL")
INIT_BODY: Final = Struct("!LLHHL")  # tag, window, outbound and inbound streams, first TSN (§3.3.2)
COOKIE: Final = Struct("!LLLLLd")  # both tags, both first TSNs, the peer's window, when


class Type(IntEnum):
    """Of chunks (§3.2, RFC 6525 §3.1, RFC 3758 §3.2)."""

    DATA = 0
    INIT = 1
    INIT_ACK = 2
    SACK = 3
    HEARTBEAT = 4
    HEARTBEAT_ACK = 5
    ABORT = 6
    SHUTDOWN = 7
    SHUTDOWN_ACK = 8
    ERROR = 9
    COOKIE_ECHO = 10
    COOKIE_ACK = 11
    SHUTDOWN_COMPLETE = 14
    RE_CONFIG = 130
    FORWARD_TSN = 192


Tail = tuple[bytes, bytes, int]  # a DATA chunk without its TSN: what stands before it, what after, bytes in all


@dataclass(frozen=True, slots=True)
class Established:
    """Messages can be sent."""


@dataclass(frozen=True, slots=True)
class Received:
    stream: int
    ppid: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The peer has closed its side of these streams; none named: of all."""

    streams: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Probed:
    """The nonce of the last `probe` has come back."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The last event, exactly once."""

    reason: str


Event = Established | Received | StreamReset | Probed | Closed


def chunk_tail(stream: int, ppid: int, payload: bytes) -> Tail:
    """A message that may be lost, in one chunk, ready for `Association.push` of any number of peers."""
    return data_chunk(FIRST | LAST | UNORDERED, stream, 0, ppid, payload)


def data_chunk(flags: int, stream: int, number: int, ppid: int, payload: bytes) -> Tail:
    size = 16 + len(payload)
    rest = DATA_TAIL(stream, number, ppid) + payload + bytes(-size % 4)
    return CHUNK.pack(Type.DATA, flags, size), rest, 8 + len(rest)


def chunk(type: int, body: bytes = b"", flags: int = 0) -> bytes:
    return CHUNK.pack(type, flags, 4 + len(body)) + body + bytes(-len(body) % 4)


def parameter(type: int, body: bytes) -> bytes:
    return pack("!HH", type, 4 + len(body)) + body + bytes(-len(body) % 4)


def parameters(data: bytes, at: int) -> dict[int, bytes]:
    """By type; of several of one type the first. Raises ValueError."""
    found: dict[int, bytes] = {}
    while at + 4 <= len(data):
        type, size = unpack_from("!HH", data, at)
        if size < 4 or at + size > len(data):
            raise ValueError(f"parameter of {size} bytes, expected 4 to {len(data) - at}")
        found.setdefault(type, data[at + 4 : at + size])
        at += size + -size % 4
    return found


class Outgoing:
    """A DATA chunk of ours until it is acknowledged or given up."""

    __slots__ = ("acked", "given_up", "group", "limit", "missed", "queued", "sends", "stream", "tail", "tsn")

    def __init__(self, tail: Tail, limit: int | None, group: int, stream: tuple[int, int] | None) -> None:
        self.tail = tail
        self.limit = limit  # retransmissions; None: as many as it takes
        self.group = group  # number of the message: its fragments are given up together
        self.stream = stream  # and sequence number, if ordered
        self.tsn = 0
        self.sends = 0
        self.queued = False  # to be sent again
        self.missed = 0  # SACKs that told of a later one
        self.acked = False
        self.given_up = False


class Association:
    """One association. `receive` never raises on what a peer sends; what is bad is counted in `ignored`."""

    def __init__(
        self, *, client: bool, random: Callable[[int], bytes], max_packet: int = MAX_PACKET, max_message: int = 65536
    ) -> None:
        self._random = random
        self._client = client
        self._max_packet = max_packet
        self._max_message = max_message
        self._secret = random(32)  # signs cookies
        self._events: list[Event] = []
        self._state = "closed"  # waiting (for INIT ACK), echoed (the cookie), established, shutdown, ended
        self.ignored = 0
        self._tag = self._number() or 1  # ours: what the peer must write
        self._peer_tag = 0
        self._control: list[bytes] = []  # chunks that wait for the next packet
        self._ready: list[bytes] = []  # whole packets
        self._timer: float | None = None  # of INIT, COOKIE ECHO, SHUTDOWN: T1 and T2
        self._pending = b""  # the chunk that it repeats
        self._tries = 0
        # out
        self._next_tsn = self._number()
        self._acked_tsn = self._next_tsn - 1  # cumulative
        self._waiting: deque[Outgoing] = deque()
        self._waiting_size = 0
        self._sent: deque[Outgoing] = deque()  # by rising TSN, from the cumulative one on
        self._resend: deque[Outgoing] = deque()
        self._flight = 0  # bytes sent, not acknowledged and not taken for lost
        self._group = 0
        self._numbers: dict[int, int] = {}  # stream → sequence number of its next ordered message
        self._cwnd = FIRST_WINDOW
        self._ssthresh = RECEIVE_WINDOW
        self._partial_acked = 0
        self._recover_until = self._acked_tsn
        self._peer_window = RECEIVE_WINDOW
        self._t3: float | None = None
        self._rto = RTO_FIRST
        self.rtt = 0.0  # smoothed; 0: not measured
        self._rtt_variation = 0.0
        self._timed: tuple[int, float] | None = None  # TSN whose round trip is measured, and when it left
        self._forward = False  # FORWARD TSN is due
        # in
        self._cumulative = 0
        self._beyond: set[int] = set()
        self._fragments: dict[int, tuple[int, int, int, int, bytes]] = {}  # TSN → flags, stream, number, ppid, payload
        self._ordered: dict[int, dict[int, Received]] = {}  # stream → number → message that waits for earlier ones
        self._expected: dict[int, int] = {}  # stream → number of the next ordered message
        self._held = 0  # bytes in both
        self._sack_at: float | None = None
        self._packets = 0  # with data, since the last SACK
        # streams
        self._reset_number = self._next_tsn
        self._reset: tuple[float, bytes] | None = None  # when to repeat it, and the chunk
        self._resets: list[int] = []  # streams still to be reset
        self._peer_reset = -1  # number of the peer's last request
        self._nonce = b""

    def _number(self) -> int:
        return int.from_bytes(self._random(4), "big")

    # --- for the layer above ------------------------------------------------------------------------------------------

    @property
    def established(self) -> bool:
        return self._state == "established"

    @property
    def buffered(self) -> int:
        """Bytes that wait to be sent or acknowledged."""
        return self._waiting_size + sum(one.tail[2] for one in self._sent if not one.acked)

    def connect(self, now: float) -> None:
        """Begins as the client."""
        body = INIT_BODY.pack(self._tag, RECEIVE_WINDOW, STREAMS, STREAMS, self._next_tsn & 0xFFFFFFFF) + OURS
        self._state = "waiting"
        self._start_timer(chunk(Type.INIT, body), now)

    def send(
        self, stream: int, ppid: int, payload: bytes, now: float, *, ordered: bool = True,
        max_retransmits: int | None = None,
    ) -> bool:  # fmt: skip
        """False if it cannot be taken: too long, too much waits, or there is no association any more."""
        size = len(payload)
        if self._state in {"ended", "shutdown"} or size > self._max_message or not payload:
            return False
        if self._waiting_size + size > (SEND_BUFFER if max_retransmits is None else STALE):
            return False
        number, key = 0, None
        if ordered:
            number = self._numbers.get(stream, 0)
            self._numbers[stream] = (number + 1) & 0xFFFF
            key = (stream, number)
        self._group += 1
        step = self._max_packet - 28
        for at in range(0, size, step):
            flags = (0 if ordered else UNORDERED) | (FIRST if at == 0 else 0) | (LAST if at + step >= size else 0)
            tail = data_chunk(flags, stream, number, ppid, payload[at : at + step])
            self._waiting.append(Outgoing(tail, max_retransmits, self._group, key))
            self._waiting_size += tail[2]
        return True

    def push(self, tail: Tail, now: float) -> bool:
        """A message of `chunk_tail`: sent once, or never."""
        if self._waiting_size + tail[2] > STALE or self._state != "established":
            return False
        self._group += 1
        self._waiting.append(Outgoing(tail, 0, self._group, None))
        self._waiting_size += tail[2]
        return True

    def reset_stream(self, stream: int, now: float) -> None:
        """Closes our side of a stream (RFC 6525 §5.1.2)."""
        self._resets.append(stream)
        self._request_reset(now)

    def probe(self, now: float) -> bytes | None:
        """A packet with a HEARTBEAT: whoever sends its nonce back has received it (§8.3)."""
        if self._state != "established":
            return None
        self._nonce = self._random(16)
        return self._packet([chunk(Type.HEARTBEAT, parameter(1, self._nonce))])

    def shutdown(self, now: float) -> None:
        """Ends politely; what waits is not sent any more."""
        if self._state == "established":
            self._state = "shutdown"
            self._start_timer(chunk(Type.SHUTDOWN, TSN(self._cumulative & 0xFFFFFFFF)), now)

    def abort(self, reason: str) -> None:
        """Ends at once; the next `transmit` says so."""
        if self._state not in {"closed", "ended"}:
            cause = reason.encode()[:100]
            self._control = [chunk(Type.ABORT, pack("!HH", 12, 4 + len(cause)) + cause)]  # user-initiated (§3.3.10.12)
            self._end(reason)

    def take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    # --- packets out --------------------------------------------------------------------------------------------------

    def transmit(self, now: float) -> list[bytes]:
        """What is due: control chunks, a SACK, DATA as far as both windows allow; as few packets as hold them."""
        packets, self._ready = self._ready, []
        parts: list[bytes] = []
        room = whole = self._max_packet - 12
        for one in self._due_control(now):
            if len(one) > room and parts:
                packets.append(self._packet(parts))
                parts, room = [], whole
            parts.append(one)
            room -= len(one)
        if self._state == "established":
            for data in self._due_data():
                head, rest, size = data.tail
                if size > room and parts:
                    packets.append(self._packet(parts))
                    parts, room = [], whole
                parts += (head, TSN(data.tsn & 0xFFFFFFFF), rest)
                room -= size
                data.sends += 1
                if data.sends == 1 and self._timed is None:
                    self._timed = (data.tsn, now)
        if parts:
            packets.append(self._packet(parts))
        if self._sent and self._t3 is None:
            self._t3 = now + self._rto
        return packets

    def _due_control(self, now: float) -> list[bytes]:
        due, self._control = self._control, []
        if self._state == "established":
            late = self._sack_at
            if late is not None and (
                late <= now or self._waiting or self._resend or due
            ):  # with others it costs nothing
                due.append(self._sack())
            if self._forward:
                due.append(self._forward_tsn())
        return due

    def _packet(self, chunks: list[bytes], tag: int | None = None) -> bytes:
        """The checksum is over the packet with zeros in its place, and little endian (§6.8, appendix A)."""
        head = HEADER.pack(PORT, PORT, self._peer_tag if tag is None else tag, 0)
        packet = head + b"".join(chunks)
        checksum: int = google_crc32c.value(packet)
        return packet[:8] + checksum.to_bytes(4, "little") + packet[12:]

    def _due_data(self) -> list[Outgoing]:
        """The chunks that may leave now (§6.1): first those sent before, then new ones."""
        due: list[Outgoing] = []
        window = min(self._cwnd, self._peer_window) or (0 if self._flight else 1)  # a closed window is probed
        resend, waiting = self._resend, self._waiting
        while resend and self._flight < window:
            one = resend.popleft()
            one.queued = False
            if not one.acked and not one.given_up:
                self._flight += one.tail[2]
                due.append(one)
        while waiting and self._flight < window:
            one = waiting.popleft()
            size = one.tail[2]
            self._waiting_size -= size
            one.tsn = self._next_tsn
            self._next_tsn += 1
            self._flight += size
            self._sent.append(one)
            due.append(one)
        return due

    def _sack(self) -> bytes:
        """§3.3.4."""
        self._sack_at, self._packets = None, 0
        gaps: list[tuple[int, int]] = []
        for tsn in sorted(self._beyond):
            offset = tsn - self._cumulative
            if gaps and gaps[-1][1] == offset - 1:
                gaps[-1] = (gaps[-1][0], offset)
            elif len(gaps) < GAPS:
                gaps.append((offset, offset))
        window = max(0, RECEIVE_WINDOW - self._held)
        body = pack("!LLHH", self._cumulative & 0xFFFFFFFF, window, len(gaps), 0)
        return chunk(Type.SACK, body + b"".join(pack("!HH", *gap) for gap in gaps))

    def _forward_tsn(self) -> bytes:
        """RFC 3758 §3.2: what was given up, up to the first chunk that was not."""
        self._forward = False
        last, streams = self._acked_tsn, {}
        for one in self._sent:
            if not (one.given_up or one.acked):
                break
            last = one.tsn
            if one.given_up and one.stream is not None:
                streams[one.stream[0]] = one.stream[1]
        body = b"".join(pack("!HH", *pair) for pair in streams.items())
        return chunk(Type.FORWARD_TSN, TSN(last & 0xFFFFFFFF) + body)

    # --- time ---------------------------------------------------------------------------------------------------------

    @property
    def next_deadline(self) -> float | None:
        times = [self._timer, self._t3, self._sack_at, self._reset[0] if self._reset else None]
        return min((time for time in times if time is not None), default=None)

    def run(self, now: float) -> None:
        """All that is due; `transmit` sends it."""
        if self._timer is not None and now >= self._timer:
            self._repeat(now)
        if self._t3 is not None and now >= self._t3:
            self._time_out(now)
        if self._reset is not None and now >= self._reset[0]:
            self._reset = (now + self._rto, self._reset[1])
            self._control.append(self._reset[1])

    def _start_timer(self, pending: bytes, now: float) -> None:
        self._pending, self._tries = pending, 0
        self._timer = now + self._rto
        self._control.append(pending)

    def _repeat(self, now: float) -> None:
        self._tries += 1
        if self._tries > MAX_RETRANSMITS:
            self._end("the peer does not answer")
            return
        self._control.append(self._pending)
        self._timer = now + min(self._rto * 2**self._tries, RTO_MOST)

    def _time_out(self, now: float) -> None:
        """§6.3.3: nothing was acknowledged for a while. What may be lost is given up, the rest sent again."""
        self._t3 = None
        if not self._sent:
            return
        self._tries += 1
        if self._tries > MAX_RETRANSMITS:
            self._end("the peer does not acknowledge")
            return
        self._ssthresh = max(self._cwnd // 2, LEAST_WINDOW)
        self._cwnd = self._max_packet
        self._partial_acked = 0
        self._rto = min(self._rto * 2, RTO_MOST)
        self._timed = None
        for one in tuple(self._sent):
            if not one.acked and not one.given_up and not one.queued:
                self._lose(one)
        self._forward = self._forward or (bool(self._sent) and self._sent[0].given_up)
        self._t3 = now + self._rto

    def _lose(self, one: Outgoing) -> None:
        """It left and did not arrive."""
        self._flight -= one.tail[2]
        one.missed = 0
        if one.limit is None or one.sends <= one.limit:
            one.queued = True
            self._resend.append(one)
            return
        one.given_up = True
        if one.tail[0][1] & 3 != 3:
            self._give_up_message(one.group)

    def _give_up_message(self, group: int) -> None:
        """Of a message that cannot be whole any more nothing is sent again, and the rest not at all (RFC 3758 §3.5)."""
        for one in self._sent:
            if one.group == group and not one.acked and not one.given_up:
                if not one.queued:
                    self._flight -= one.tail[2]
                one.given_up = True
        while self._waiting and self._waiting[0].group == group:
            rest = self._waiting.popleft()
            self._waiting_size -= rest.tail[2]
            rest.tsn, self._next_tsn, rest.given_up = self._next_tsn, self._next_tsn + 1, True
            self._sent.append(rest)

    # --- packets in ---------------------------------------------------------------------------------------------------

    def receive(self, packet: bytes, now: float) -> None:
        if len(packet) < 16 or self._state == "ended":
            self.ignored += 1
            return
        source, target, tag, checksum = HEADER.unpack_from(packet)
        zeroed = packet[:8] + b"\0\0\0\0" + packet[12:]
        if google_crc32c.value(zeroed) != int.from_bytes(packet[8:12], "little") or target != PORT or source != PORT:
            self.ignored += 1
            return
        try:
            self._receive_chunks(packet, tag, now)
        except ValueError:
            self.ignored += 1

    def _receive_chunks(self, packet: bytes, tag: int, now: float) -> None:
        at, end, has_data = 12, len(packet), False
        while at + 4 <= end and self._state != "ended":
            type, flags, size = CHUNK.unpack_from(packet, at)
            if size < 4 or at + size > end:
                raise ValueError(f"chunk of {size} bytes, expected 4 to {end - at}")
            if not self._is_mine(type, flags, tag, alone=at == 12 and at + size + -size % 4 >= end):
                raise ValueError("wrong verification tag")
            if type == Type.DATA:
                self._receive_data(packet, at, flags, size, now)
                has_data = True
            elif not self._receive_control(type, flags, packet[at + 4 : at + size], now):
                return
            at += size + -size % 4
        if has_data:
            self._packets += 1
            soon = self._packets >= 2 or self._beyond
            self._sack_at = now if soon else (self._sack_at if self._sack_at is not None else now + SACK_DELAY)

    def _is_mine(self, type: int, flags: int, tag: int, alone: bool) -> bool:
        """§8.5 and §8.5.1."""
        if type == Type.INIT:
            return tag == 0 and alone
        if type in {Type.ABORT, Type.SHUTDOWN_COMPLETE} and flags & 1:
            return tag == self._peer_tag
        return tag == self._tag

    def _receive_control(self, type: int, flags: int, body: bytes, now: float) -> bool:
        """False: the rest of the packet is not read (§3.2)."""
        match type:
            case Type.SACK:
                self._receive_sack(body, now)
            case Type.FORWARD_TSN:
                self._receive_forward(body)
            case Type.INIT:
                self._receive_init(body, now)
            case Type.INIT_ACK:
                self._receive_init_ack(body, now)
            case Type.COOKIE_ECHO:
                self._receive_cookie(body, now)
            case Type.COOKIE_ACK:
                if self._state == "echoed":
                    self._establish()
            case Type.HEARTBEAT:
                self._control.append(chunk(Type.HEARTBEAT_ACK, body))
            case Type.HEARTBEAT_ACK:
                nonce = parameters(body, 0).get(1, b"")
                if self._nonce and hmac.compare_digest(nonce, self._nonce):
                    self._nonce = b""
                    self._events.append(Probed())
            case Type.RE_CONFIG:
                self._receive_reset(body, now)
            case Type.ABORT:
                self._end("aborted by the peer")
            case Type.SHUTDOWN:
                self._control.append(chunk(Type.SHUTDOWN_ACK))
                self._end("shut down by the peer")
            case Type.SHUTDOWN_ACK:
                self._control.append(chunk(Type.SHUTDOWN_COMPLETE))
                self._end("shut down")
            case Type.SHUTDOWN_COMPLETE:
                self._end("shut down")
            case Type.ERROR:
                pass  # an ERROR tells of something that the peer goes on without
            case _:
                self.ignored += 1
                return bool(type & 0x80)
        return True

    # --- the handshake (§5) -------------------------------------------------------------------------------------------

    def _receive_init(self, body: bytes, now: float) -> None:
        """Answered without keeping anything: all is in the cookie (§5.1.3)."""
        if len(body) < INIT_BODY.size:
            raise ValueError(f"INIT of {len(body)} bytes, expected at least {INIT_BODY.size}")
        tag, window, outbound, inbound, tsn = INIT_BODY.unpack_from(body)
        if not tag or not outbound or not inbound:
            raise ValueError("INIT without a tag or streams")
        state = COOKIE.pack(self._tag, tag, self._next_tsn & 0xFFFFFFFF, tsn, window, now)
        cookie = state + hmac.digest(self._secret, state, sha256)
        ours = INIT_BODY.pack(self._tag, RECEIVE_WINDOW, STREAMS, STREAMS, self._next_tsn & 0xFFFFFFFF)
        answer = chunk(Type.INIT_ACK, ours + parameter(STATE_COOKIE, cookie) + OURS)
        self._ready = [self._packet([answer], tag)]  # with the tag of the question; a later question replaces it

    def _receive_init_ack(self, body: bytes, now: float) -> None:
        if self._state != "waiting" or len(body) < INIT_BODY.size:
            return
        tag, window, _, _, tsn = INIT_BODY.unpack_from(body)
        cookie = parameters(body, INIT_BODY.size).get(STATE_COOKIE)
        if not tag or cookie is None:
            raise ValueError("INIT ACK without a tag or a cookie")
        self._peer_tag = tag
        self._begin(tsn, window)
        self._state = "echoed"
        self._start_timer(chunk(Type.COOKIE_ECHO, cookie), now)

    def _receive_cookie(self, body: bytes, now: float) -> None:
        state, proof = body[: COOKIE.size], body[COOKIE.size :]
        if len(state) < COOKIE.size or not hmac.compare_digest(hmac.digest(self._secret, state, sha256), proof):
            raise ValueError("a cookie that is not ours")
        mine, tag, _, tsn, window, when = COOKIE.unpack(state)
        if mine != self._tag or not 0 <= now - when <= COOKIE_LIFE:
            raise ValueError("an old cookie")
        if self._state == "established":
            if tag != self._peer_tag:  # the peer has begun anew (§5.2.4, case A): so must the layers above
                self._end("restarted by the peer")
                return
        else:
            self._peer_tag = tag
            self._begin(tsn, window)
            self._establish()
        self._control.append(chunk(Type.COOKIE_ACK))

    def _begin(self, tsn: int, window: int) -> None:
        self._cumulative = tsn - 1
        self._peer_window = window

    def _establish(self) -> None:
        self._state = "established"
        self._timer, self._tries = None, 0
        self._events.append(Established())

    def _end(self, reason: str) -> None:
        if self._state != "ended":
            self._state = "ended"
            self._timer = self._t3 = self._sack_at = self._reset = None
            self._waiting.clear()
            self._waiting_size = 0
            self._sent.clear()
            self._resend.clear()
            self._fragments.clear()
            self._ordered.clear()
            self._events.append(Closed(reason))

    # --- acknowledgements (§6.2.1, §7.2) ------------------------------------------------------------------------------

    def _receive_sack(self, body: bytes, now: float) -> None:
        if len(body) < 12:
            raise ValueError(f"SACK of {len(body)} bytes, expected at least 12")
        wire, window, gaps, _ = unpack_from("!LLHH", body)
        if len(body) < 12 + 4 * gaps:
            raise ValueError("SACK shorter than its gap blocks")
        cumulative = unwrap(wire, self._acked_tsn)
        if not self._acked_tsn <= cumulative < self._next_tsn:
            return  # old, or of what was never sent
        full = self._flight + self._max_packet > self._cwnd
        before = self._acked_tsn
        acked = self._take_cumulative(cumulative, now)
        advanced = cumulative > before
        highest = cumulative
        if gaps:
            acked_by_gaps, highest = self._take_gaps(body, gaps, cumulative, now)
            acked += acked_by_gaps
        self._tries = 0
        self._miss(highest)
        if advanced and full and cumulative > self._recover_until:
            self._grow(acked)
        self._peer_window = window
        if self._sent and (self._sent[0].given_up or self._sent[0].acked):
            self._forward = True
        if not self._sent:
            self._t3 = None
        elif advanced:
            self._t3 = now + self._rto

    def _take_cumulative(self, cumulative: int, now: float) -> int:
        acked, sent = 0, self._sent
        while sent and sent[0].tsn <= cumulative:
            acked += self._settle(sent.popleft(), now)
        self._acked_tsn = cumulative
        return acked

    def _take_gaps(self, body: bytes, count: int, cumulative: int, now: float) -> tuple[int, int]:
        """What arrived beyond a gap; returns bytes, and the highest TSN."""
        blocks = [unpack_from("!HH", body, 12 + 4 * number) for number in range(count)]
        acked, highest, block = 0, cumulative, 0
        for one in self._sent:
            offset = one.tsn - cumulative
            while block < count and blocks[block][1] < offset:
                block += 1
            if block == count:
                break
            if blocks[block][0] <= offset:
                acked += self._settle(one, now)
                highest = one.tsn
        return acked, highest

    def _settle(self, one: Outgoing, now: float) -> int:
        """It has arrived; returns its bytes if that is news."""
        if one.acked or one.given_up:
            return 0
        one.acked = True
        if self._timed is not None and one.tsn >= self._timed[0]:
            if one.tsn == self._timed[0] and one.sends == 1:
                self._measure(now - self._timed[1])
            self._timed = None
        if not one.queued:
            self._flight -= one.tail[2]
        return one.tail[2]

    def _measure(self, rtt: float) -> None:
        """§6.3.1."""
        if not self.rtt:
            self.rtt, self._rtt_variation = rtt, rtt / 2
        else:
            self._rtt_variation += (abs(self.rtt - rtt) - self._rtt_variation) / 4
            self.rtt += (rtt - self.rtt) / 8
        self._rto = min(max(self.rtt + 4 * self._rtt_variation, RTO_LEAST), RTO_MOST)

    def _miss(self, highest: int) -> None:
        """Three later ones arrived: it is lost (§7.2.4). The window is halved once per round trip."""
        lost = False
        for one in tuple(self._sent):
            if one.tsn >= highest:
                break
            if one.acked or one.given_up or one.queued:
                continue
            one.missed += 1
            if one.missed >= 3:
                self._lose(one)
                lost = True
        if lost and self._acked_tsn >= self._recover_until:
            self._recover_until = self._next_tsn - 1
            self._ssthresh = max(self._cwnd // 2, LEAST_WINDOW)
            self._cwnd = self._ssthresh
            self._partial_acked = 0

    def _grow(self, acked: int) -> None:
        """Slow start, then congestion avoidance (§7.2.1, §7.2.2)."""
        if self._cwnd <= self._ssthresh:
            self._cwnd += min(acked, self._max_packet)
            return
        self._partial_acked += acked
        if self._partial_acked >= self._cwnd:
            self._partial_acked -= self._cwnd
            self._cwnd += self._max_packet

    # --- data in (§6.2, §6.5, §6.9) -----------------------------------------------------------------------------------

    def _receive_data(self, packet: bytes, at: int, flags: int, size: int, now: float) -> None:
        if size <= 16 or self._state not in {"established", "shutdown"}:
            raise ValueError(f"DATA of {size} bytes in state {self._state}, expected more than 16")
        _, _, _, wire, stream, number, ppid = DATA_HEAD.unpack_from(packet, at)
        tsn = unwrap(wire, self._cumulative)
        if tsn <= self._cumulative or tsn in self._beyond:
            self._packets = 2  # a duplicate: our SACK was lost, so it is repeated at once
            return
        if tsn > self._cumulative + AHEAD or self._held + size > RECEIVE_WINDOW:
            return  # not acknowledged, so it comes again
        if tsn == self._cumulative + 1:
            self._cumulative = tsn
            while self._cumulative + 1 in self._beyond:
                self._cumulative += 1
                self._beyond.remove(self._cumulative)
        else:
            self._beyond.add(tsn)
        payload = packet[at + 16 : at + size]
        if flags & 3 == 3:
            self._deliver(flags, stream, number, ppid, payload)
        else:
            self._fragments[tsn] = (flags, stream, number, ppid, payload)
            self._held += len(payload)
            self._join(tsn)

    def _join(self, tsn: int) -> None:
        """The message of this fragment, if all of them are here (§6.9)."""
        fragments = self._fragments
        first = last = tsn
        while not fragments[first][0] & FIRST:
            first -= 1
            if first not in fragments:
                return
        while not fragments[last][0] & LAST:
            last += 1
            if last not in fragments or fragments[last][0] & FIRST:
                return
        parts = [fragments.pop(one) for one in range(first, last + 1)]
        payload = b"".join(part[4] for part in parts)
        self._held -= len(payload)
        if len(payload) <= self._max_message:
            flags, stream, number, ppid, _ = parts[0]
            self._deliver(flags, stream, number, ppid, payload)

    def _deliver(self, flags: int, stream: int, number: int, ppid: int, payload: bytes) -> None:
        message = Received(stream, ppid, payload)
        if flags & UNORDERED:
            self._events.append(message)
            return
        if stream >= STREAMS:
            return
        waiting = self._ordered.setdefault(stream, {})
        waiting[number] = message
        self._held += len(payload)
        self._release(stream)

    def _release(self, stream: int) -> None:
        waiting = self._ordered.get(stream, {})
        expected = self._expected.get(stream, 0)
        while expected in waiting:
            message = waiting.pop(expected)
            self._held -= len(message.payload)
            self._events.append(message)
            expected = (expected + 1) & 0xFFFF
        self._expected[stream] = expected

    def _receive_forward(self, body: bytes) -> None:
        """RFC 3758 §3.6: the peer has given up what is missing."""
        if len(body) < 4:
            raise ValueError("FORWARD TSN without a TSN")
        tsn = unwrap(unpack_from("!L", body)[0], self._cumulative)
        self._packets = 2
        self._sack_at = 0.0
        if not self._cumulative < tsn <= self._cumulative + AHEAD:
            return
        self._cumulative = tsn
        self._beyond = {one for one in self._beyond if one > tsn}
        while self._cumulative + 1 in self._beyond:
            self._cumulative += 1
            self._beyond.remove(self._cumulative)
        for one in [one for one in self._fragments if one <= tsn]:
            self._held -= len(self._fragments.pop(one)[4])
        for at in range(4, len(body) - 3, 4):
            stream, number = unpack_from("!HH", body, at)
            if stream < STREAMS:
                self._skip(stream, number)

    def _skip(self, stream: int, number: int) -> None:
        """Messages of a stream up to this number will not come; those that are here are delivered."""
        waiting, expected = self._ordered.get(stream, {}), self._expected.get(stream, 0)
        if (number - expected) & 0x8000:
            return  # long past
        for one in sorted(waiting, key=lambda one: (one - expected) & 0xFFFF):
            if (number - one) & 0x8000:
                break
            message = waiting.pop(one)
            self._held -= len(message.payload)
            self._events.append(message)
        self._expected[stream] = (number + 1) & 0xFFFF
        self._release(stream)

    # --- streams (RFC 6525) -------------------------------------------------------------------------------------------

    def _request_reset(self, now: float) -> None:
        if self._reset is not None or not self._resets or self._state != "established":
            return
        streams, self._resets = self._resets, []
        for stream in streams:
            self._numbers.pop(stream, None)
        numbers = pack("!LLL", self._reset_number & 0xFFFFFFFF, self._peer_reset & 0xFFFFFFFF,
                       (self._next_tsn - 1) & 0xFFFFFFFF)  # fmt: skip
        body = numbers + b"".join(pack("!H", stream) for stream in streams)
        request = chunk(Type.RE_CONFIG, parameter(OUTGOING_RESET, body))
        self._reset = (now + self._rto, request)
        self._control.append(request)

    def _receive_reset(self, body: bytes, now: float) -> None:
        found = parameters(body, 0)
        answer = found.get(RESET_ANSWER, b"")
        if len(answer) >= 8 and self._reset and unpack_from("!L", answer)[0] == self._reset_number & 0xFFFFFFFF:
            self._reset = None
            self._reset_number += 1
            self._request_reset(now)
        if OUTGOING_RESET in found and len(found[OUTGOING_RESET]) >= 12:
            self._reset_by_peer(found[OUTGOING_RESET])
        if INCOMING_RESET in found and len(found[INCOMING_RESET]) >= 4:
            body = found[INCOMING_RESET]
            self._control.append(chunk(Type.RE_CONFIG, parameter(RESET_ANSWER, body[:4] + TSN(1))))
            for at in range(4, len(body) - 1, 2):
                self.reset_stream(unpack_from("!H", body, at)[0], now)

    def _reset_by_peer(self, body: bytes) -> None:
        number, _, last = unpack_from("!LLL", body)
        done = unwrap(last, self._cumulative) <= self._cumulative
        if number != self._peer_reset and done:  # else a repetition, or what was sent before is still on its way
            self._peer_reset = number
            streams = tuple(unpack_from("!H", body, at)[0] for at in range(12, len(body) - 1, 2))
            for stream in streams or tuple(self._expected):
                self._expected.pop(stream, None)
                self._ordered.pop(stream, None)
            self._events.append(StreamReset(streams))
        self._control.append(chunk(Type.RE_CONFIG, parameter(RESET_ANSWER, TSN(number) + TSN(1 if done else 6))))


OURS: Final = parameter(PARTIAL, b"") + parameter(SUPPORTED, bytes((Type.FORWARD_TSN, Type.RE_CONFIG)))


def unwrap(wire: int, near: int) -> int:
    """The integer nearest to `near` whose last 32 bits are `wire`."""
    return near + ((wire - near + 0x80000000) & 0xFFFFFFFF) - 0x80000000
