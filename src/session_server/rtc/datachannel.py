"""One remote peer and its data channels: datagrams and `now` in, events and datagrams out. No sockets, no rooms.

ICE (RFC 8445: a lite agent as server, with `ice` as client), consent (RFC 7675), and the data channels themselves (RFC
8831, RFC 8832), above `dtls` and `sctp`. What a peer sends never raises: it is counted, or ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from . import dcep, sctp, sdp, stun
from .dcep import Channel
from .dtls import APPLICATION, OVERHEAD, Certificate, Dtls
from .ice import Checks, Datagram
from .paths import AMPLIFICATION, Path, Paths
from .sdp import Answer
from .stun import Address, Credentials

GECKOS: Final = "geckos.io"  # the label that the clients of that library wait for
MAX_CHANNELS: Final = 16  # that one peer may open
MAX_SENT: Final = 256 * 1024  # bytes of one message that we send, even if the peer takes more
STREAM: Final = 1  # of the channel that the server opens: odd, as the DTLS server's are (RFC 8832 §6)
SHORTEST_WAIT: Final = 0.005  # seconds between two calls of `run`: no layer below can keep a loop busy
SACK_ALONE: Final = sctp.ALONE + OVERHEAD  # bytes of a datagram with one
MAX_UNREAD: Final = 32  # of these that wait to be read
UNREAD_FOR: Final = 1.0  # seconds, at most: what looks like one may be anybody's


@dataclass(frozen=True, slots=True)
class Options:
    """What all peers of one server, or client, have in common."""

    certificate: Certificate
    label: str | None = GECKOS  # of the channel that a server opens; None = it opens none
    protocol: str = ""
    max_message: int = sdp.MAX_MESSAGE_SIZE  # bytes of one message to us, as our SDP announces
    setup: float = 15.0  # seconds until a channel is open, else the peer is given up
    consent: float = 30.0  # seconds without a sign of life after which the peer is gone (RFC 7675 §5.1)
    own_records: bool = True  # False: OpenSSL seals and opens them; for tests


@dataclass(slots=True)
class Opened:
    """A channel can be used, by both sides."""

    stream: int
    label: str
    protocol: str


@dataclass(slots=True)
class Message:
    data: str | bytes
    stream: int


@dataclass(slots=True)
class ChannelClosed:
    """A channel that the peer had opened; the end of ours is the peer's end, and `Closed`."""

    stream: int


@dataclass(slots=True)
class Closed:
    """The last event, exactly once."""

    reason: str


Event = Opened | Message | ChannelClosed | Closed


@dataclass(slots=True)
class Counters:
    """What a peer sent that we did not use, and what could not be sent."""

    stray: int = 0  # datagrams from an address that is not the peer's, or of no protocol that we speak
    bad_stun: int = 0  # no STUN message, or not written by the peer
    bad_message: int = 0  # too long, not UTF-8, unknown identifier, no such channel, broken DCEP
    shed: int = 0  # messages that we did not send: too long, or too many
    held_back: int = 0  # datagrams that were not sent, so as not to flood an unproven address
    moves: int = 0  # changes of address


@dataclass(slots=True)
class Batch:
    """Messages that leave together, made ready once for many peers."""

    packed: bytes  # as `pack` made them
    bundles: Sequence[sctp.Once]  # what may be lost, by the packet
    only: sctp.Bundle | None  # the same, if it is one packet
    count: int  # of these messages
    size: int  # their bytes on the wire
    others: Sequence[sctp.Message]  # what may not be lost, for `Peer.push_reliably`


def number_of(unread: tuple[bytes, float]) -> bytes:
    """Epoch and sequence of a record, as it says itself."""
    return unread[0][3:11]


def pack(data: bytes, is_text: bool, reliable: bool = False) -> bytes:
    """A message for `batch`, alone or joined with others."""
    return b"".join(sctp.blanks(STREAM, *dcep.encode_bytes(data, is_text), ordered=reliable))


def batch(packed: bytes) -> Batch:
    bundles, others = sctp.bundle(packed)
    count, size = sum([one.count for one in bundles]), sum([one.size for one in bundles])
    only = bundles[0] if len(bundles) == 1 else None
    return Batch(packed, bundles, only if isinstance(only, sctp.Bundle) else None, count, size, others)


class Peer:
    """One remote peer, from the moment its answer (or, on the client side, the offer) is known.

    Whoever has the socket calls `receive` for each datagram and `run` at `next_deadline`, and after either, or after
    `send`, takes `take_events` and sends what `transmit` returns. `state` is "new", "open" or "closed".
    """

    __slots__ = (
        "_association", "_channels", "_checks", "_dtls", "_events", "_fingerprint", "_heard", "_hurry",
        "_local", "_main", "_moved", "_options", "_out", "_paths", "_ran", "_random", "_setup_until",
        "_short_way", "_unread", "counters", "max_message_size", "state",
    )  # fmt: skip

    def __init__(
        self,
        options: Options,
        local: Credentials,
        remote: Answer,
        random: Callable[[int], bytes],
        now: float,
        checks: Checks | None = None,
    ) -> None:
        """Use `serve` or `join`. With `checks` it is the client: ICE-controlling, active in DTLS and SCTP."""
        self._options = options
        self._local = local
        self._random = random
        self._checks = checks
        self._fingerprint = remote.fingerprint
        self._dtls: Dtls | None = None
        self._association: sctp.Association | None = None
        self._channels: dict[int, Channel] = {}  # stream → its channel
        self._main: int | None = None  # stream of the channel that `send` uses
        self._paths = Paths()
        # While that channel is open, and as `push` needs it: what makes packets, and datagrams, and where they go.
        self._short_way: tuple[sctp.Association, Callable[[bytes], bytes], Address] | None = None
        self._unread: list[tuple[bytes, float]] = []  # acknowledgements, by their looks, and when they came
        self._hurry = False  # one of them is the end of a measurement: it is read before the next message leaves
        self._moved = False  # to another address, in the middle of the handshake: so that proves none
        self._heard = now  # when the peer last proved to be there
        self._ran = now - SHORTEST_WAIT
        self._setup_until = now + options.setup
        self._events: list[Event] = []
        self._out: list[Datagram] = []  # besides what `_dtls` has
        self.max_message_size = remote.max_message_size  # bytes of one message that the peer takes
        self.counters = Counters()
        self.state = "new"

    @classmethod
    def serve(
        cls, options: Options, local: Credentials, answer: Answer, random: Callable[[int], bytes], now: float
    ) -> Peer:
        """The server's side of a peer that has answered our offer. `local`: what that offer said."""
        return cls(options, local, answer, random, now)

    @classmethod
    def join(cls, options: Options, offer: str, random: Callable[[int], bytes], now: float) -> tuple[Peer, str]:
        """The client's side, and the answer that the server must get; raises SdpError."""
        remote = sdp.parse_offer(offer)
        local = Credentials.new(random)
        session = int.from_bytes(random(8), "big") >> 1
        answer = sdp.write_answer(session, local, options.certificate.fingerprint, options.max_message)
        return cls(options, local, remote, random, now, Checks(remote, local, random, now)), answer

    # What comes in

    def receive(self, datagram: bytes, address: Address, now: float) -> bool:
        """Any bytes from anywhere. False: there are no events, and `transmit` has nothing to send, now or in a moment:
        as after nearly every acknowledgement."""
        if len(datagram) == SACK_ALONE and self.set_aside(datagram, now):
            return False
        if self.state == "closed":
            return False
        path = self._paths.by_address.get(address)
        first = datagram[0] if datagram else 255
        if path is not None and 20 <= first <= 63:  # RFC 7983 §7
            return self._receive_dtls(datagram, path, now)
        if first <= 3:
            self._receive_stun(datagram, address, now)
            return True
        self.counters.stray += 1
        return False

    def set_aside(self, datagram: bytes, now: float) -> bool:
        """Of SACK_ALONE bytes, from one of `addresses`: whether it may be read later, or never, should a newer one say
        the same. Nothing waits for it, as for most."""
        way, unread = self._short_way, self._unread
        if way is None or datagram[0] != APPLICATION or len(unread) >= MAX_UNREAD or not way[0].can_wait:
            return False
        unread.append((datagram, now))
        self._hurry = way[0].is_timing
        return True

    def rests_until(self, patience: float) -> float:
        """Until when `run` need not be called, nor anybody ask what has arrived: by the looks of it, it acknowledged
        something less than `patience` seconds ago. 0: that is not so."""
        unread = self._unread
        return min(unread[-1][1] + patience, unread[0][1] + UNREAD_FOR) if unread else 0.0

    def _receive_stun(self, datagram: bytes, address: Address, now: float) -> None:
        try:
            message = stun.parse(datagram)
        except stun.StunError:
            self.counters.bad_stun += 1
            return
        if self._checks is not None:
            self._receive_answer(self._checks, message, address, now)
        elif message.kind == stun.REQUEST:
            self._receive_check(message, address, now)

    def _receive_answer(self, checks: Checks, message: stun.Message, address: Address, now: float) -> None:
        """Client: an address of the server works, or still does."""
        if not checks.answered(message, address, now):
            self.counters.bad_stun += 1
            return
        self._heard = now
        paths = self._paths
        path = paths.by_address.get(address)
        if path is None:
            path = paths.by_address[address] = Path(address, now, proven=True)
        if paths.current is None:
            paths.current = path
            self._start(now).start(now)
        self._out += checks.run(now)  # the nomination

    def _receive_check(self, message: stun.Message, address: Address, now: float) -> None:
        """Server: a check, or a question for consent (RFC 8445 §7.3, RFC 8489 §9.1.3)."""
        if stun.USERNAME not in message.attributes or not message.integrity_at:
            self._refuse(message, address, stun.BAD_REQUEST)
        elif message.ufrag != self._local.ufrag or not message.is_from(self._local.password):
            self._refuse(message, address, stun.UNAUTHENTICATED)
        elif message.unknown:
            self._refuse(message, address, stun.UNKNOWN_ATTRIBUTE, self._local.password)
        elif stun.ICE_CONTROLLED in message.attributes:  # so would we be: a lite agent never controls a full one
            self._refuse(message, address, stun.ROLE_CONFLICT, self._local.password)
        else:
            self._heard = now
            path = self._paths.hear(address, len(message.data), now)
            answer = stun.success(message, address, self._local.password)
            if len(answer) <= len(message.data):  # else it lacks what each ICE agent must say (RFC 8445 §7.1)
                path.credit -= len(answer)
                self._out.append((answer, address))
            if stun.USE_CANDIDATE in message.attributes or self._paths.current is None:
                self._use(path, now)

    def _refuse(self, message: stun.Message, address: Address, code: int, password: str | None = None) -> None:
        self.counters.bad_stun += 1
        answer = stun.refusal(message, code, password)
        if answer is not None:
            self._out.append((answer, address))

    # Which address we send to

    def _use(self, path: Path, now: float) -> None:
        """The peer wants our datagrams there."""
        paths = self._paths
        if path is paths.target:
            return
        if path is paths.current:  # it has thought better of it
            paths.forget_target()
        elif paths.may_switch(path, self._is_connected):
            self._switch(path)
        else:
            self._aim(path, now)

    def _switch(self, path: Path) -> None:
        self.counters.moves += self._paths.current is not None
        if self._dtls is not None and self._dtls.state == "handshaking":
            self._moved = True
        self._paths.switch(path)
        self._find_short_way()

    def _aim(self, path: Path, now: float) -> None:
        self._paths.aim(path)
        self._probe(now)

    def _probe(self, now: float) -> None:
        """A heartbeat with a nonce to the new address, and nothing else until it was answered."""
        dtls, association = self._dtls, self._association
        if dtls is None or association is None:
            self._paths.forget_target()
            return
        path = self._paths.next_probe(now)
        packet = None if path is None else association.probe(now)
        if path is not None and packet is not None:
            self._spend(path, [dtls.seal(packet)])

    def _spend(self, path: Path, datagrams: Sequence[bytes]) -> None:
        """To an address that may not be the peer's. In the handshake they are the last flight again, or the next one:
        the older is of no use."""
        self._out += path.spend(datagrams, keep=self._is_connected)
        self.counters.held_back += bool(path.held)

    # DTLS

    @property
    def _is_connected(self) -> bool:
        return self._dtls is not None and self._dtls.state == "connected"

    def _start(self, now: float) -> Dtls:
        client = self._checks is not None
        self._dtls = Dtls(self._options.certificate, self._fingerprint, client, self._options.own_records)
        return self._dtls

    def catch_up(self) -> bool:
        """Reads what could wait; returns the same as `receive`. The newest first, by the number of its record: if that
        is an acknowledgement, it says all that those before it said, and they are dropped as if they were lost."""
        unread, self._unread, self._hurry = self._unread, [], False
        something, dtls = False, self._dtls
        for datagram, at in sorted(unread, key=number_of, reverse=True):
            assert dtls is not None
            packets = dtls.receive(datagram, at)
            something |= self._receive_packets(dtls, packets, at)
            if packets and sctp.is_sack_alone(packets[0]):
                break
        return something

    def _receive_dtls(self, datagram: bytes, path: Path, now: float) -> bool:
        dtls = self._dtls
        if self._association is None or dtls is None or not path.proven:
            self._receive_early(datagram, path, now)
            return True
        if not self._unread:
            return self._receive_packets(dtls, dtls.receive(datagram, now), now)
        if len(datagram) == SACK_ALONE:
            self._unread.append((datagram, now))
            return self.catch_up()
        something = self.catch_up()
        return self._receive_packets(dtls, dtls.receive(datagram, now), now) or something

    def _receive_packets(self, dtls: Dtls, packets: Sequence[bytes], now: float) -> bool:
        """What came in one datagram."""
        association = self._association
        if association is None:
            return True
        something = not packets  # forged, empty, of the handshake, or the end
        for packet in packets:
            self._heard = now
            if association.receive(packet, now):
                self._collect(now)
                something = True
        if dtls.state != "connected":
            self._end(dtls.reason)
            return True
        return something

    def _receive_early(self, datagram: bytes, path: Path, now: float) -> None:
        """In the handshake, or from an address that is not proven."""
        path.credit += AMPLIFICATION * len(datagram)
        dtls = self._dtls or self._start(now)
        if dtls.state in ("new", "handshaking") and path is not self._paths.current:
            self._switch(path)  # answered where it came from: that is the pair which the peer has chosen
        packets = dtls.receive(datagram, now)
        if dtls.state == "connected" and self._association is None:
            self._connected(path, now)
        if self._association is not None:
            for packet in packets:
                self._heard = now
                self._association.receive(packet, now)
            self._collect(now)
        if dtls.state in ("failed", "closed"):
            self._end(dtls.reason)

    def _connected(self, path: Path, now: float) -> None:
        """The handshake is over: whoever got all of its flights at one address hears us there."""
        if not self._moved:
            path.proven = True
        most = max(self._options.max_message, min(self.max_message_size, MAX_SENT))
        self._association = sctp.Association(random=self._random, max_message=most)
        self._association.connect(now)  # both sides do: a round trip less, and a lost INIT is not missed

    # SCTP and the channels

    def _collect(self, now: float) -> None:
        """What the association has to say."""
        association = self._association
        assert association is not None
        for event in association.take_events():
            if self.state == "closed":
                return
            match event:
                case sctp.Received():
                    self._receive_message(event.stream, event.ppid, event.payload, now)
                case sctp.Established():
                    self._established(association, now)
                case sctp.Restarted():
                    self._restarted(association, now)
                case sctp.StreamReset():
                    self._receive_reset(association, event.streams, now)
                case sctp.Probed():
                    self._probed()
                case sctp.Closed():
                    self.close(now, event.reason)

    def _established(self, association: sctp.Association, now: float) -> None:
        label = self._options.label
        path = self._paths.current
        if path is not None and not path.proven:
            self._aim(path, now)
        if self._checks is None and label is not None and STREAM not in self._channels:
            channel = self._channels[STREAM] = Channel(label, self._options.protocol)
            self._main = STREAM
            association.send(STREAM, dcep.DCEP, channel.encode())

    def _restarted(self, association: sctp.Association, now: float) -> None:
        """The peer has forgotten all channels (RFC 9260 §5.2.4.1): its own are closed, and ours is offered again."""
        closed = [stream for stream in self._channels if stream != STREAM or self._checks is not None]
        self._channels.clear()
        self._main = None
        self._find_short_way()
        self._events += [ChannelClosed(stream) for stream in closed]
        self._established(association, now)

    def _probed(self) -> None:
        """The new address hears us."""
        path = self._paths.prove()
        if path is not None:
            if path is not self._paths.current:
                self._switch(path)
            self._find_short_way()

    def _receive_message(self, stream: int, ppid: int, payload: bytes, now: float) -> None:
        if ppid == dcep.DCEP:
            self._receive_dcep(stream, payload, now)
            return
        channel = self._channels.get(stream)
        if channel is None or len(payload) > self._options.max_message:
            self.counters.bad_message += 1
            return
        if not channel.open:  # it came before, or with, the acknowledgement, which says no more than it does
            self._opened(stream, channel)
        try:
            self._events.append(Message(dcep.decode(ppid, payload), stream))
        except ValueError:
            self.counters.bad_message += 1

    def _receive_dcep(self, stream: int, payload: bytes, now: float) -> None:
        channel = self._channels.get(stream)
        if payload[:1] == b"\2":
            if channel is not None and not channel.open:
                self._opened(stream, channel)
            return
        mine = (self._checks is None) == bool(stream % 2)  # opened by the DTLS server: odd (RFC 8832 §6)
        if payload[:1] != b"\3" or channel is not None or mine or len(self._channels) >= MAX_CHANNELS:
            self.counters.bad_message += 1
            return
        try:
            channel = Channel.decode(payload)
        except ValueError:
            self.counters.bad_message += 1
            return
        assert self._association is not None
        self._channels[stream] = channel
        self._association.send(stream, dcep.DCEP, b"\2")
        if self._main is None:
            self._main = stream
        self._opened(stream, channel)

    def _opened(self, stream: int, channel: Channel) -> None:
        channel.open = True
        if self.state == "new":
            self.state = "open"
        self._find_short_way()
        self._events.append(Opened(stream, channel.label, channel.protocol))

    def _find_short_way(self) -> None:
        channel, path = self._channels.get(STREAM), self._paths.current
        dtls, association = self._dtls, self._association
        self._short_way = None
        if channel is None or path is None or dtls is None or association is None:
            return
        fits = channel.open and not channel.ordered and channel.max_retransmits == 0 and self._main == STREAM
        if fits and path.proven and self.max_message_size >= sctp.MAX_CONTENT:
            self._short_way = (association, dtls.sealer, path.address)

    def _receive_reset(self, association: sctp.Association, streams: Sequence[int], now: float) -> None:
        """A channel is closed by resetting its streams, both ways (RFC 8831 §6.7)."""
        for stream in streams or tuple(self._channels):
            if self._channels.pop(stream, None) is None:
                continue
            association.reset_stream(stream, now)
            if stream == self._main:
                self.close(now, "channel closed by the peer")
                return
            self._events.append(ChannelClosed(stream))

    # What goes out

    def send(self, data: str | bytes, now: float, stream: int | None = None) -> bool:
        """One message, on the main channel or another open one; False if it cannot be sent, and then it is lost."""
        ppid, payload = dcep.encode(data)
        return self._send(ppid, payload, self._main if stream is None else stream)

    def _send(self, ppid: int, payload: bytes, stream: int | None) -> bool:
        channel = None if stream is None else self._channels.get(stream)
        association = self._association
        if channel is None or not channel.open or association is None or stream is None:
            return False
        shed = association.shed
        sent = len(payload) <= self.max_message_size and association.send(
            stream, ppid, payload, ordered=channel.ordered, max_retransmits=channel.max_retransmits
        )
        self.counters.shed += association.shed - shed + (not sent)
        return sent

    def push_reliably(self, message: sctp.Message) -> bool:
        """One of `Batch.others`, on the channel that the server opened: repeated until it has arrived, and in order,
        whatever the channel is, as SCTP leaves that to the sender of each message. False if it cannot be sent."""
        association = self._association
        if association is None or self.state != "open" or len(message.payload) > self.max_message_size:
            return False
        return association.send(STREAM, message.ppid, message.payload)

    def push_all(self, batch: Batch, now: float) -> int:
        """All of a batch that may be lost; returns by how many more messages are on their way, older ones that were
        shed for them subtracted: so that over time the sum is what left."""
        if self._short_way is None or batch.size > self.max_message_size:
            once = [one for one in sctp.messages(batch.packed) if not one.ordered]
            return sum([self._send(one.ppid, one.payload, self._main) for one in once])
        shed = self._short_way[0].push(batch.bundles, batch.size)
        self.counters.shed += shed
        return batch.count - shed

    def send_at_once(self, batch: Batch, now: float) -> Datagram | None:
        """What is to be sent now for a batch, as far as it is one datagram and nothing waits that would be in it. Else
        None, and nothing is sent: it is for `push_all`."""
        if self._short_way is None or batch.only is None:
            return None
        association, seal, address = self._short_way
        if self._hurry and not self._reads():
            return None
        packet = association.send_at_once(batch.only, now)
        if packet is None and self._unread and self._reads():  # they make room in the window
            packet = association.send_at_once(batch.only, now)
        return None if packet is None else (seal(packet), address)

    def _reads(self) -> bool:
        """What could wait until now. Is the short way still there, and nobody to be told anything first?"""
        self.catch_up()
        return self._short_way is not None and not self._events

    def transmit(self, now: float) -> list[Datagram]:
        """What is to be sent now; all messages since the last call in as few datagrams as hold them."""
        dtls, path = self._dtls, self._paths.current
        if self._unread:
            self.catch_up()
        if dtls is not None and path is not None:
            datagrams = dtls.take_datagrams()
            if self._association is not None:
                for packet in self._association.transmit(now):
                    datagrams.append(dtls.seal(packet))
            if path.proven:
                if path.held:  # until it was
                    datagrams, path.held = path.held + datagrams, []
                address = path.address
                self._out += [(datagram, address) for datagram in datagrams]
            else:
                self._spend(path, datagrams)
        out, self._out = self._out, []
        return out

    def take_events(self) -> list[Event]:
        events = self._events
        self._events = []
        return events

    # Time

    @property
    def next_deadline(self) -> float:
        """When `run` has something to do."""
        if self.state == "closed":
            return inf
        due = self._heard + self._options.consent
        if self._paths.probe_at < due:
            due = self._paths.probe_at
        if self.state == "new":
            due = min(due, self._setup_until)
        if self._association is not None:
            due = min(due, self._association.next_deadline)
        elif self._dtls is not None and self._dtls.next_deadline is not None:
            due = min(due, self._dtls.next_deadline)
        if self._checks is not None:
            due = min(due, self._checks.next_deadline)
        soonest = self._ran + SHORTEST_WAIT
        return due if due > soonest else soonest

    def run(self, now: float) -> None:
        """All that is due."""
        self._ran = now
        if self._unread:
            self.catch_up()
        if self.state == "closed":
            return
        if self.state == "new" and now >= self._setup_until:
            self.close(now, f"no channel was open after {self._options.setup:g} s")
        elif now >= self._heard + self._options.consent:
            self.close(now, f"not heard of for {self._options.consent:g} s")
        else:
            self._run(now)

    def _run(self, now: float) -> None:
        if self._checks is not None:
            self._out += self._checks.run(now)
        if now >= self._paths.probe_at:
            self._probe(now)
        dtls = self._dtls
        if dtls is not None:
            dtls.run(now)
            if dtls.state == "failed":
                self._end(dtls.reason)
        if self._association is not None:
            self._association.run(now)
            self._collect(now)

    # The end

    def close(self, now: float, reason: str = "closed by us") -> None:
        """Tells the peer: ABORT of SCTP, close_notify of DTLS; `transmit` once more sends them."""
        if self.state == "closed":
            return
        dtls, association = self._dtls, self._association
        if dtls is not None and dtls.state == "connected" and association is not None:
            association.abort(reason)
            for packet in association.transmit(now):
                dtls.send(packet)
        if dtls is not None:
            dtls.close()
        self._end(reason)

    def _end(self, reason: str) -> None:
        if self.state != "closed":
            self.state = "closed"
            self._association = self._short_way = None
            self._unread.clear()
            self._events.append(Closed(reason))

    @property
    def addresses(self) -> Sequence[Address]:
        """All from which the peer may send; they change when it sends a STUN message."""
        return tuple(self._paths.by_address)

    @property
    def address(self) -> Address | None:
        """Where we send."""
        return self._paths.current.address if self._paths.current is not None else None

    @property
    def buffered(self) -> int:
        """Bytes that wait to be sent or acknowledged."""
        return self._association.buffered if self._association is not None else 0

    @property
    def sack_at(self) -> float:
        """When an acknowledgement must leave, if none does before beside something else."""
        return self._association.sack_at if self._association is not None else inf

    @property
    def arrived(self) -> int:
        """Messages that are sent once and that the peer has acknowledged, ever."""
        return self._association.arrived if self._association is not None else 0

    @property
    def lost(self) -> int:
        """Messages that were sent once and given up, ever. One that arrives all the same has come too late."""
        return self._association.lost if self._association is not None else 0

    @property
    def acked_at(self) -> float:
        """When it last acknowledged something."""
        return self._association.acked_at if self._association is not None else -inf
