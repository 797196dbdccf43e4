"""SCTP above DTLS, for one peer: packets and `now` in, packets and events out. Knows no addresses and no channels.

RFC 9260 (SCTP; sections named § alone), RFC 3758 (what may be lost), RFC 6525 (stream reset), RFC 8831 §5 (what WebRTC
uses of them: one path, no multihoming). Here: the association itself, which packs what `sctp_send` lets leave, hands on
what `sctp_receive` must read, and begins, restarts and ends both.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import inf
from struct import Struct, pack, unpack_from
from typing import Final

from . import sctp_chunks as wire
from .sctp_chunks import ALONE, MAX_CONTENT, is_sack_alone
from .sctp_messages import Bundle, Message, Once, blanks, bundle, messages
from .sctp_receive import LONGEST_SACK, STREAMS, WINDOW, Received, Receiver
from .sctp_send import MAX_RETRANSMITS, RTO_MOST, Sender

__all__ = [
    "ALONE",
    "Association",
    "Bundle",
    "Closed",
    "Established",
    "Event",
    "MAX_CONTENT",
    "Message",
    "Once",
    "Probed",
    "Received",
    "Restarted",
    "StreamReset",
    "blanks",
    "bundle",
    "is_sack_alone",
    "messages",
]

COOKIE_LIFE: Final = 60.0  # seconds (§15)
COOKIE: Final = Struct("!LLLLLLLd")  # both tags, both first TSNs, the peer's window, both tags of before, when
DENIED, PERFORMED, IN_PROGRESS = 2, 1, 6  # results of a stream reset (RFC 6525 §4.4)
MAX_RESETS: Final = 256  # streams in one request


@dataclass(frozen=True, slots=True)
class Established:
    """Messages can be sent."""


@dataclass(frozen=True, slots=True)
class Restarted:
    """The peer has begun anew (§5.2.4.1): it knows nothing of what was before, and what was under way is gone."""


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


Event = Established | Restarted | Received | StreamReset | Probed | Closed


@dataclass(slots=True)
class Repeated:
    """A chunk that is sent until it is answered: of the handshake, of the end, of a stream reset."""

    chunk: bytes
    when: float  # next time
    tries: int = 0


class Association:
    """One association. `receive` never raises on what a peer sends; what is bad is counted in `ignored`."""

    __slots__ = (
        "_acked_at", "_answer", "_arrived", "_control", "_events", "_first_tsn", "_header", "_lost", "_max_message",
        "_nonce", "_packets", "_peer_reset", "_peer_tag", "_random", "_receiver", "_repeated", "_reset",
        "_reset_number", "_resets", "_secret", "_sender", "_state", "_tag", "_to_us", "ignored",
    )  # fmt: skip

    def __init__(self, *, random: Callable[[int], bytes], max_message: int = 65536) -> None:
        """`max_message`: bytes of one message, either way."""
        self._random = random
        self._max_message = max_message
        self._secret = random(32)  # signs cookies
        self._events: list[Event] = []
        self._state = "closed"  # waiting (for INIT ACK), echoed (the cookie), established, shutdown, ended
        self.ignored = 0
        self._control: list[bytes] = []  # chunks that wait for the next packet
        self._answer = b""  # INIT ACK, a whole packet
        self._repeated: Repeated | None = None  # INIT, COOKIE ECHO or SHUTDOWN: T1 and T2 (§15)
        self._nonce = b""
        self._arrived, self._lost, self._acked_at = 0, 0, -inf  # before the last restart
        self._begin(self._number() or 1, self._number(), 0, 0, 0)

    def _begin(self, tag: int, tsn: int, peer_tag: int, peer_tsn: int, window: int) -> None:
        """Both halves from their first TSNs on, with nothing of what was before."""
        self._tag, self._peer_tag = tag, peer_tag  # what the peer must write, and what we must
        self._to_us = wire.Header(tag)
        self._header = wire.Header(peer_tag)
        self._packets = wire.Packets(self._header)
        self._first_tsn = tsn
        self._sender = Sender(tsn, window)
        self._receiver = Receiver(peer_tsn, self._max_message, self._events.append)
        self._reset_number = tsn
        self._reset: Repeated | None = None
        self._resets: set[int] = set()  # streams still to be reset
        self._peer_reset = peer_tsn - 1  # number of the peer's last request

    def _number(self) -> int:
        return int.from_bytes(self._random(4), "big")

    # --- for the layer above ------------------------------------------------------------------------------------------

    @property
    def buffered(self) -> int:
        """Bytes that wait to be sent or acknowledged."""
        return self._sender.buffered

    @property
    def shed(self) -> int:
        """Messages that grew too old while they waited."""
        return self._sender.shed

    @property
    def arrived(self) -> int:
        """Messages that are sent once and have arrived, ever."""
        return self._arrived + self._sender.arrived

    @property
    def lost(self) -> int:
        """Messages that are sent once and were given up, ever."""
        return self._lost + self._sender.lost

    @property
    def acked_at(self) -> float:
        """When something last arrived."""
        return max(self._acked_at, self._sender.acked_at)

    @property
    def sack_at(self) -> float:
        """When a SACK is due, if none leaves before with something else; inf: none is owed."""
        return self._receiver.sack_at

    @property
    def can_wait(self) -> bool:
        """Whether an acknowledgement that comes now can be read later: each says what the ones before it said."""
        return self._sender.can_wait

    @property
    def is_timing(self) -> bool:
        """Whether it is better read before the next message leaves, so that the round trip stays known."""
        return self._sender.is_timing

    @property
    def rtt(self) -> float:
        """Seconds, smoothed; 0: not measured."""
        return self._sender.rtt

    def connect(self, now: float) -> None:
        """Both sides may do so."""
        self._state = "waiting"
        self._repeat(wire.chunk(wire.INIT, self._init(self._tag, self._first_tsn) + OURS), now)

    def send(
        self, stream: int, ppid: int, payload: bytes, *, ordered: bool = True, max_retransmits: int | None = None
    ) -> bool:
        """False if it cannot be taken: too long, too much waits, or there is no association. What may be lost is
        always taken, but may make older messages of this kind be `shed`."""
        if self._state != "established" or not 0 < len(payload) <= self._max_message:
            return False
        return self._sender.send(stream, ppid, payload, ordered, max_retransmits)

    def push(self, items: Sequence[Once], size: int) -> int:
        """Messages that may be lost, in all `size` bytes on the wire; returns how many older ones are shed for them."""
        return self._sender.push(items, size)

    def reset_stream(self, stream: int, now: float) -> None:
        """Closes our side of a stream (RFC 6525 §5.1.2); what waits on it is not sent any more."""
        self._sender.forget(stream)
        self._resets.add(stream)
        self._request_reset(now)

    def probe(self, now: float) -> bytes | None:
        """A packet with a HEARTBEAT: whoever sends its nonce back has received it (§8.3)."""
        if self._state != "established":
            return None
        self._nonce = self._random(16)
        return self._header.packet(wire.chunk(wire.HEARTBEAT, wire.parameter(1, self._nonce)))

    def shutdown(self, now: float) -> None:
        """Ends politely; what waits is not sent any more."""
        if self._state == "established":
            self._state = "shutdown"
            self._sender = Sender(self._sender.next_tsn, 0)
            self._reset = None
            self._repeat(wire.chunk(wire.SHUTDOWN, wire.TSN(self._receiver.cumulative & 0xFFFFFFFF)), now)

    def abort(self, reason: str) -> None:
        """Ends at once; the next `transmit` says so."""
        if self._state not in ("closed", "ended"):
            cause = reason.encode()[:100]
            body = pack("!HH", 12, 4 + len(cause)) + cause  # user-initiated (§3.3.10.12)
            self._control = [wire.chunk(wire.ABORT, body)]
            self._end(reason)

    def take_events(self) -> list[Event]:
        events = self._events.copy()
        self._events.clear()  # which the receiving half has, too
        return events

    # --- packets out --------------------------------------------------------------------------------------------------

    def transmit(self, now: float) -> list[bytes]:
        """What is due: control chunks, a SACK, DATA as far as both windows allow; as few packets as hold them."""
        if not self.is_due:
            return []
        packets, sender = self._packets, self._sender
        if self._control or self._answer or sender.forward_due or self._receiver.sack_at < inf:
            self._transmit_control(packets, now)
        if self._state == "established":
            sender.transmit(packets, now)
        return packets.take()

    def send_at_once(self, item: Bundle, now: float) -> bytes | None:
        """The packet with a bundle, and a SACK if one is due, as far as nothing else waits that would be in it; else
        None, and it is not sent. For an association that has sent something before."""
        owes = self._receiver.sack_at < inf
        if self._control or (owes and item.size > wire.MAX_CONTENT - LONGEST_SACK):
            return None
        content = self._sender.send_at_once(item, now)
        if content is None:
            return None
        return self._header.packet(self._receiver.sack() + content if owes else content)

    @property
    def is_due(self) -> bool:
        """Whether `transmit` has something to send, or a SACK that may wait a little."""
        sender = self._sender
        if self._control or self._answer or sender.forward_due or self._receiver.sack_at < inf:
            return True
        return sender.waits

    def _transmit_control(self, packets: wire.Packets, now: float) -> None:
        """What goes before the data, and a SACK that is due, or that costs nothing since others leave."""
        if self._answer:
            packets.done.append(self._answer)
            self._answer = b""
        due, self._control = self._control, []
        if self._state == "established":
            sack_at = self._receiver.sack_at
            if sack_at <= now or (sack_at < inf and (due or self._sender.waits)):
                due.append(self._receiver.sack())
            if self._sender.forward_due:
                due.append(self._sender.forward())
        for one in due:
            packets.add(one)

    # --- time ---------------------------------------------------------------------------------------------------------

    @property
    def next_deadline(self) -> float:
        """When `run`, or else `transmit`, has something to do."""
        due = min(self._sender.deadline, self._receiver.sack_at)
        for one in (self._repeated, self._reset):
            if one is not None and one.when < due:
                due = one.when
        return due

    def run(self, now: float) -> None:
        """All that is due; `transmit` sends it."""
        for one in (self._repeated, self._reset):
            if one is not None and now >= one.when:
                self._run_repeated(one, now)
        if not self._sender.run(now):
            self._end("the peer does not acknowledge")

    def _run_repeated(self, one: Repeated, now: float) -> None:
        one.tries += 1
        one.when = now + min(self._sender.rto * 2**one.tries, RTO_MOST)
        if one.tries <= MAX_RETRANSMITS:
            self._control.append(one.chunk)
        else:
            self._end("the peer does not answer")

    def _repeat(self, repeated: bytes, now: float) -> None:
        self._repeated = Repeated(repeated, now + self._sender.rto)
        self._control.append(repeated)

    # --- packets in ---------------------------------------------------------------------------------------------------

    def receive(self, packet: bytes, now: float) -> bool:
        """Whether there are events now, or something to send, if only in a moment."""
        if self._state == "ended":
            self.ignored += 1
            return False
        try:
            self._receive_chunks(packet, self._tag if self._to_us.fits(packet) else wire.tag_of(packet), now)
        except ValueError:
            self.ignored += 1
        return bool(self._events) or self.is_due

    def _receive_chunks(self, packet: bytes, tag: int, now: float) -> None:
        at, end = 12, len(packet)
        has_data = has_sack = False
        while at + 4 <= end and self._state != "ended":
            type, flags, size = wire.CHUNK.unpack_from(packet, at)
            if size < 4 or at + size > end:
                raise ValueError(f"chunk of {size} bytes, expected 4 to {end - at}")
            if tag != self._tag and not self._may_come(type, flags, tag, alone=at == 12 and at + size + 4 > end):
                raise ValueError(f"chunk {type} with verification tag {tag:08x}, expected {self._tag:08x}")
            if type == wire.SACK or type == wire.DATA:
                if self._state == "echoed":  # it has our cookie: that it says so is lost, or comes later
                    self._establish()
                if self._state != "established" or (type == wire.SACK and has_sack):
                    raise ValueError(f"chunk {type} in state {self._state}, or a second one")
                if type == wire.SACK:
                    self._sender.receive_sack(packet, at, size, now)
                    has_sack = True
                else:
                    self._receiver.receive_data(packet, at, flags, size)
                    has_data = True
            elif not self._receive_control(type, packet[at + 4 : at + size], tag, now):
                break
            at += size + -size % 4
        if has_data:
            self._receiver.packet_ends(now)

    def _may_come(self, type: int, flags: int, tag: int, alone: bool) -> bool:
        """With a tag that is not ours (§8.5.1)."""
        if type == wire.INIT:
            return tag == 0 and alone
        if type in (wire.ABORT, wire.SHUTDOWN_COMPLETE):
            return tag == self._peer_tag and bool(flags & wire.NO_TAG)
        return type == wire.COOKIE_ECHO  # the cookie tells which

    def _receive_control(self, type: int, body: bytes, tag: int, now: float) -> bool:
        """False: the rest of the packet is not read (§3.2)."""
        match type:
            case wire.FORWARD_TSN:
                self._receiver.receive_forward(body, now)
            case wire.INIT:
                self._receive_init(body, now)
            case wire.INIT_ACK:
                self._receive_init_ack(body, now)
            case wire.COOKIE_ECHO:
                self._receive_cookie(body, tag, now)
            case wire.COOKIE_ACK:
                if self._state == "echoed":
                    self._establish()
            case wire.HEARTBEAT:
                self._control.append(wire.chunk(wire.HEARTBEAT_ACK, body[: wire.MAX_CONTENT - 4]))
            case wire.HEARTBEAT_ACK:
                nonce = wire.parameters(body, 0).get(1, b"")
                if self._nonce and hmac.compare_digest(nonce, self._nonce):
                    self._nonce = b""
                    self._events.append(Probed())
            case wire.RE_CONFIG:
                self._receive_reset(body, now)
            case wire.ABORT:
                self._end("aborted by the peer")
            case wire.SHUTDOWN:
                self._control.append(wire.chunk(wire.SHUTDOWN_ACK))
                self._end("shut down by the peer")
            case wire.SHUTDOWN_ACK:
                self._control.append(wire.chunk(wire.SHUTDOWN_COMPLETE))
                self._end("shut down")
            case wire.SHUTDOWN_COMPLETE:
                self._end("shut down")
            case wire.ERROR:
                pass  # it tells of something that the peer goes on without
            case _:
                self.ignored += 1
                return bool(type & 0x80)
        return True

    # --- the handshake (§5) -------------------------------------------------------------------------------------------

    def _init(self, tag: int, tsn: int) -> bytes:
        return wire.INIT_BODY.pack(tag, WINDOW, STREAMS, STREAMS, tsn)

    def _receive_init(self, body: bytes, now: float) -> None:
        """Answered without keeping anything: all is in the cookie (§5.1.3)."""
        if len(body) < wire.INIT_BODY.size:
            raise ValueError(f"INIT of {len(body)} bytes, expected at least {wire.INIT_BODY.size}")
        tag, window, outbound, inbound, peer_tsn = wire.INIT_BODY.unpack_from(body)
        if not tag or not outbound or not inbound:
            raise ValueError("INIT without a tag or streams")
        mine, tsn, before = self._tag, self._first_tsn, (0, 0)
        if self._state == "established":  # it has restarted: new tags, and proof of what they replace (§5.2.2)
            mine, tsn, before = self._number() or 1, self._number(), (self._tag, self._peer_tag)
        state = COOKIE.pack(mine, tag, tsn, peer_tsn, window, *before, now)
        cookie = state + hmac.digest(self._secret, state, sha256)
        answer = wire.chunk(wire.INIT_ACK, self._init(mine, tsn) + wire.parameter(wire.STATE_COOKIE, cookie) + OURS)
        self._answer = wire.Header(tag).packet(answer)  # a later question replaces it

    def _receive_init_ack(self, body: bytes, now: float) -> None:
        if self._state != "waiting" or len(body) < wire.INIT_BODY.size:
            return
        tag, window, _, _, peer_tsn = wire.INIT_BODY.unpack_from(body)
        cookie = wire.parameters(body, wire.INIT_BODY.size).get(wire.STATE_COOKIE)
        if not tag or cookie is None:
            raise ValueError("INIT ACK without a tag or a cookie")
        self._begin(self._tag, self._first_tsn, tag, peer_tsn, window)
        self._state = "echoed"
        self._repeat(wire.chunk(wire.COOKIE_ECHO, cookie), now)

    def _receive_cookie(self, body: bytes, packet_tag: int, now: float) -> None:
        state, proof = body[: COOKIE.size], body[COOKIE.size :]
        if len(state) < COOKIE.size or not hmac.compare_digest(hmac.digest(self._secret, state, sha256), proof):
            raise ValueError("a cookie that is not ours")
        tag, peer_tag, tsn, peer_tsn, window, tag_before, peer_tag_before, when = COOKIE.unpack(state)
        current = (self._tag, self._peer_tag)
        if self._state == "established" and (tag, peer_tag) == current:  # our COOKIE ACK was lost (§5.2.4, case D)
            self._control.append(wire.chunk(wire.COOKIE_ACK))
            return
        expected = (tag_before, peer_tag_before) == current if self._state == "established" else tag == self._tag
        if packet_tag != tag or not expected or not 0 <= now - when <= COOKIE_LIFE or self._state == "shutdown":
            raise ValueError("an old cookie")
        self._arrived, self._lost, self._acked_at = self.arrived, self.lost, self.acked_at
        self._begin(tag, tsn, peer_tag, peer_tsn, window)
        self._control = [wire.chunk(wire.COOKIE_ACK)]
        if self._state == "established":  # case A: with the data that was under way
            self._events.append(Restarted())
        else:
            self._establish()

    def _establish(self) -> None:
        self._state = "established"
        self._repeated = None
        self._events.append(Established())

    def _end(self, reason: str) -> None:
        if self._state != "ended":
            self._state = "ended"
            self._repeated = None
            self._begin(self._tag, self._first_tsn, self._peer_tag, 0, 0)  # what they held is let go
            self._events.append(Closed(reason))

    # --- streams (RFC 6525) -------------------------------------------------------------------------------------------

    def _request_reset(self, now: float) -> None:
        if self._reset is not None or not self._resets or self._state != "established":
            return
        streams = sorted(self._resets)[:MAX_RESETS]
        self._resets.difference_update(streams)
        numbers = (self._reset_number, self._peer_reset, self._sender.next_tsn - 1)
        body = pack(f"!LLL{len(streams)}H", *(number & 0xFFFFFFFF for number in numbers), *streams)
        request = wire.chunk(wire.RE_CONFIG, wire.parameter(wire.OUTGOING_RESET, body))
        self._reset = Repeated(request, now + self._sender.rto)
        self._control.append(request)

    def _receive_reset(self, body: bytes, now: float) -> None:
        found = wire.parameters(body, 0)
        answer, outgoing = found.get(wire.RESET_ANSWER, b""), found.get(wire.OUTGOING_RESET, b"")
        incoming = found.get(wire.INCOMING_RESET, b"")
        if len(answer) >= 8 and self._reset is not None:
            number, result = unpack_from("!LL", answer)
            if number == self._reset_number & 0xFFFFFFFF and result != IN_PROGRESS:
                self._reset = None
                self._reset_number += 1
                self._request_reset(now)
        if len(outgoing) >= 12:
            self._reset_by_peer(outgoing)
        if len(incoming) >= 4:  # that we reset ours is not for the peer to ask: data channels do not use it (RFC 8831)
            self._answer_reset(incoming[:4], DENIED)

    def _reset_by_peer(self, body: bytes) -> None:
        number, _, last = unpack_from("!LLL", body)
        done = wire.unwrap(last, self._receiver.cumulative) <= self._receiver.cumulative
        if number != self._peer_reset & 0xFFFFFFFF and done:  # else a repetition, or what was sent before is on its way
            self._peer_reset = number
            streams = unpack_from(f"!{(len(body) - 12) // 2}H", body, 12)
            self._receiver.reset(streams)
            self._events.append(StreamReset(streams))
        self._answer_reset(body[:4], PERFORMED if done else IN_PROGRESS)

    def _answer_reset(self, number: bytes, result: int) -> None:
        self._control.append(wire.chunk(wire.RE_CONFIG, wire.parameter(wire.RESET_ANSWER, number + wire.TSN(result))))


EXTENSIONS: Final = bytes((wire.FORWARD_TSN, wire.RE_CONFIG))
OURS: Final = wire.parameter(wire.PARTIAL, b"") + wire.parameter(wire.SUPPORTED, EXTENSIONS)
