"""UDP datagrams ↔ room messages, by WebRTC data channels. The only file with a UDP socket.

A datagram is given to its peer by what it says (STUN: the user name fragment) or by where it comes from (DTLS). What a
tick brought for a peer leaves in as few datagrams as hold it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from secrets import randbits, token_bytes
from typing import Any, Final

from ..config import Config
from ..limits import Bucket, Tally, network
from ..outbox import Write
from ..protocol import V1_DIALECT, AnyMessage, Binary, Dialect, ProtocolError, message, unpack_binary
from ..room import Client
from ..rooms import Rooms
from ..rtc import datachannel, sdp, stun
from ..rtc.dtls import Certificate
from ..rtc.stun import Address, Credentials
from ..trust import ACK_EVERY, Route, Trust

LABEL: Final = "session"  # of the channel, for our own clients
PER_WAKE_UP: Final = 64  # datagrams read before anything else gets its turn
LARGEST: Final = 2048  # bytes of a datagram that is read
BUFFER: Final = 4 * 1024 * 1024  # bytes of the socket's own buffers
TICK: Final = 0.02  # seconds between two looks at what is due
HANDSHAKES: Final = 100.0  # per second; each costs a millisecond or two
MAX_EARLY: Final = 256  # checks that came before their answer
EARLY_FOR: Final = 2.0  # seconds they are kept
MAX_ANSWER: Final = 16 * 1024  # characters of an SDP answer
TEXT, BINARY = b"\0", b"\1"  # kinds in a blob


def pack(message: AnyMessage) -> bytes:
    """Kind 1 byte, length 4 bytes big endian, the frame: joined frames can be taken apart again (`unpack`)."""
    payload = V1_DIALECT.encode(message)
    return b"%b%b%b" % (BINARY if isinstance(message, Binary) else TEXT, len(payload).to_bytes(4, "big"), payload)


def unpack(blob: bytes) -> Iterator[str | bytes]:
    at = 0
    while at < len(blob):
        end = at + 5 + int.from_bytes(blob[at + 1 : at + 5], "big")
        payload = blob[at + 5 : end]
        yield payload if blob[at : at + 1] == BINARY else payload.decode()
        at = end


class DataChannels:
    """All data channels of a server."""

    def __init__(
        self, config: Config, rooms: Rooms, clock: Callable[[], float], wake: Callable[[float], None], log: Any
    ) -> None:
        """`wake(0.0)` asks for a call of `flush` at the end of this tick."""
        self.rooms = rooms
        self.clock = clock
        self._wake = wake
        self._log = log
        self._secret = token_bytes(32)
        self._options = datachannel.Options(Certificate.new(), label=LABEL, max_message=config.message_size or 65536)
        self._announced = config.announce_ip
        self._sockets: dict[int, socket.socket] = {}  # by family
        self._hosts: list[str] = []  # addresses that the sockets are bound to
        self.port = 0
        self._by_ufrag: dict[str, DataChannel] = {}
        self._by_client: dict[Client, DataChannel] = {}
        self._by_address: dict[Address, DataChannel] = {}
        self._early: dict[str, tuple[float, bytes, Address]] = {}  # ufrag → a check that came before its answer
        self._dirty: set[DataChannel] = set()
        self._handshakes = Bucket(HANDSHAKES, HANDSHAKES)
        self._per_address = Tally(config.peers_per_address)
        self._probe = datachannel.pack(V1_DIALECT.encode(message("session:probe", reliable=False)).decode())
        self._split: tuple[bytes, list[datachannel.Frame]] = (b"", [])
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._by_ufrag)

    # --- the socket ---------------------------------------------------------------------------------------------------

    def listen(self, sockets: list[socket.socket]) -> None:
        """Reads from bound UDP sockets, at most one of each family."""
        self._loop = asyncio.get_running_loop()
        for one in sockets:
            one.setblocking(False)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                one.setsockopt(socket.SOL_SOCKET, option, BUFFER)
            self._sockets[one.family] = one
            self._hosts.append(one.getsockname()[0])
            self.port = one.getsockname()[1]
            self._loop.add_reader(one.fileno(), self._readable, one)

    def close(self) -> None:
        now = self.clock()
        for channel in tuple(self._by_ufrag.values()):
            channel.peer.close(now, "the server stops")
            self._dirty.add(channel)
        self.flush(now)
        for one in self._sockets.values():
            self._loop.remove_reader(one.fileno())
            one.close()
        self._sockets.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _readable(self, source: socket.socket) -> None:
        now = self.clock()
        self.rooms.enter(now)
        for _ in range(PER_WAKE_UP):
            try:
                data, address = source.recvfrom(LARGEST)
            except BlockingIOError:
                break
            except OSError:  # an ICMP message of somebody who is gone
                continue
            self._receive(data, address, now)
        self._wake(0.0)

    def _receive(self, data: bytes, address: Address, now: float) -> None:
        """RFC 7983 §7: the first byte says which protocol it is; 64 and above is left to later transports."""
        first = data[0] if data else 255
        channel = None
        if first <= 3:
            ufrag = stun.ufrag_of(data) or ""
            channel = self._by_ufrag.get(ufrag)
            if channel is None and ufrag:
                self._hold_early(ufrag, data, address, now)
                return
        elif 20 <= first <= 63:
            channel = self._by_address.get(address)
        if channel is None:
            self.rooms.totals.refused["datagram"] += 1
            return
        channel.peer.receive(data, address, now)
        if first <= 3:
            self._follow(channel)
        self._take_events(channel, now)
        self._dirty.add(channel)

    def _hold_early(self, ufrag: str, data: bytes, address: Address, now: float) -> None:
        """A browser's first check overtakes its answer; dropped, it is repeated only 50 ms later."""
        self._early.pop(ufrag, None)
        if len(self._early) >= MAX_EARLY:
            del self._early[next(iter(self._early))]
        self._early[ufrag] = (now, data, address)

    def _follow(self, channel: DataChannel) -> None:
        """The addresses from which this peer may send, after it has shown another one."""
        known = set(channel.peer.addresses)
        for address in channel.addresses - known:
            if self._by_address.get(address) is channel:
                del self._by_address[address]
        for address in known - channel.addresses:
            self._by_address[address] = channel
        channel.addresses = known

    def flush(self, now: float) -> None:
        """Sends what is due to all who have something."""
        dirty, self._dirty = self._dirty, set()
        for channel in dirty:
            for data, address in channel.peer.transmit(now):
                self._send(data, address)
            self._take_events(channel, now)

    def _send(self, data: bytes, address: Address) -> None:
        target = self._sockets.get(socket.AF_INET if len(address) == 2 else socket.AF_INET6)
        try:
            if target is not None:
                target.sendto(data, address)
        except OSError:  # the buffer is full, or the network unreachable: a datagram may be lost
            self.rooms.totals.refused["datagram_unsent"] += 1

    # --- signalling ---------------------------------------------------------------------------------------------------

    def offer(self, client: Client) -> str | None:
        """What invites this client: always the same for its seat, so an offer that nobody answers costs no memory."""
        link = client.links[0] if client.links else None
        if not self._sockets or link is None or link.dialect is not V1_DIALECT:
            return None
        addresses = [(host, self.port) for host in self._candidates(link.local)]
        if not addresses:
            return None
        return sdp.write_offer(
            randbits(62), self._credentials(client), self._options.certificate.fingerprint, addresses,
            self._options.max_message,
        )  # fmt: skip

    def _credentials(self, client: Client) -> Credentials:
        return Credentials.derive(self._secret, f"{client.core.slug}\0{client.core.epoch}\0{client.id}")

    def _candidates(self, local: str) -> list[str]:
        """Where we are reached: as announced, else where this client has reached us."""
        if self._announced:
            return list(self._announced)
        try:
            near = ip_address(local)
        except ValueError:
            return []
        if near.is_loopback:
            return [host for host in ("127.0.0.1", "::1") if self._has_family_of(host)]
        return [local] if self._has_family_of(local) else []

    def _has_family_of(self, host: str) -> bool:
        return (socket.AF_INET6 if ":" in host else socket.AF_INET) in self._sockets

    def answer(self, client: Client, text: str) -> None:
        """A client's answer to its offer; what it had before ends. Raises ValueError."""
        now = self.clock()
        if len(text) > MAX_ANSWER:
            raise ValueError(f"answer of {len(text)} characters, expected at most {MAX_ANSWER}")
        if not self._sockets or not client.links:
            raise ValueError("there are no data channels here")
        parsed = sdp.parse_answer(text)
        credentials = self._credentials(client)
        self.hangup(client)  # what it had before
        address = client.links[0].address
        if not self._handshakes.take(now) or not self._per_address.take(network(address)):
            self.rooms.totals.refused["peers_per_address"] += 1
            raise ValueError("too many data channels")
        peer = datachannel.Peer.serve(self._options, credentials, parsed, token_bytes, now)
        channel = DataChannel(self, client, peer, credentials.ufrag, address)
        self._by_ufrag[credentials.ufrag] = self._by_client[client] = channel
        early = self._early.pop(credentials.ufrag, None)
        if early is not None and now - early[0] < EARLY_FOR:
            self._receive(early[1], early[2], now)
            self._wake(0.0)
        if self._timer is None:
            self._timer = self._loop.call_later(TICK, self._tick)

    def hangup(self, client: Client) -> None:
        """This client's channel ends, open or not; its last datagrams leave with this tick."""
        channel = self._by_client.get(client)
        if channel is not None:
            channel.peer.close(self.clock(), "the WebSocket ended")
            self._dirty.add(channel)
            self._wake(0.0)
            self._forget(channel)

    # --- peers --------------------------------------------------------------------------------------------------------

    def _take_events(self, channel: DataChannel, now: float) -> None:
        for event in channel.peer.take_events():
            match event:
                case datachannel.Message():
                    channel.take(event.data, now)
                case datachannel.Opened():
                    if not channel.is_open:
                        channel.is_open = True
                        channel.route = channel.trust.route(now)
                        channel.client.core.attach(channel.client, channel)
                case datachannel.Closed():
                    self._forget(channel)

    def _forget(self, channel: DataChannel) -> None:
        if self._by_ufrag.get(channel.ufrag) is not channel:
            return
        del self._by_ufrag[channel.ufrag]
        del self._by_client[channel.client]
        for address in channel.addresses:
            if self._by_address.get(address) is channel:
                del self._by_address[address]
        self._per_address.give_back(network(channel.address))
        channel.is_open = False
        channel.client.core.detach(channel.client, channel)

    def _tick(self) -> None:
        """Whose time has come? One timer for all peers."""
        now = self.clock()
        self.rooms.enter(now)
        for channel in tuple(self._by_ufrag.values()):
            if channel.peer.next_deadline <= now:
                channel.peer.run(now)
                self._take_events(channel, now)
                self._dirty.add(channel)
            if channel.is_open:
                channel.look(now)
        self._wake(0.0)
        self._timer = self._loop.call_later(TICK, self._tick) if self._by_ufrag else None

    def push(self, channel: DataChannel, blob: bytes, now: float) -> int:
        """The frames of a blob to one peer; returns how many."""
        if self._split[0] is not blob:  # the same object for all who are sent the same: taken apart once
            self._split = (blob, [datachannel.pack(payload) for payload in unpack(blob)])
        frames = self._split[1]
        sent = sum(channel.peer.push(frame, now) for frame in frames)
        if sent < len(frames):
            self.rooms.totals.refused["shed"] += len(frames) - sent
        self._dirty.add(channel)
        return sent

    def probe(self, channel: DataChannel, now: float) -> None:
        if channel.peer.push(self._probe, now):
            channel.trust.sent(now)
            self._dirty.add(channel)


class DataChannel:
    """One client's data channel: a `room.SideLink` once it is open."""

    __slots__ = (
        "_acked", "_acked_at", "_received", "_server", "address", "addresses", "client", "dialect", "is_open", "kind",
        "local", "pack", "peer", "route", "trust", "ufrag", "write",
    )  # fmt: skip

    def __init__(self, server: DataChannels, client: Client, peer: datachannel.Peer, ufrag: str, address: str) -> None:
        self.kind = "datachannel"
        self.dialect: Dialect = V1_DIALECT
        self.address = address
        self.local = ""
        self.pack = pack
        self.write: Write = self._write
        self.client = client
        self.peer = peer
        self.ufrag = ufrag
        self.addresses: set[Address] = set()
        self.trust = Trust()
        self.route = Route.RELIABLE
        self.is_open = False
        self._server = server
        self._received = 0  # messages, probes included
        self._acked = 0  # of them, as we have told the client
        self._acked_at = 0.0

    @property
    def rtt(self) -> float | None:
        return self.trust.rtt or None

    @property
    def loss(self) -> float:
        return self.trust.loss

    @property
    def active(self) -> bool:
        return self.route is not Route.RELIABLE

    def _write(self, blob: bytes) -> None:
        now = self._server.clock()
        sent = self._server.push(self, blob, now)
        if sent:
            self.trust.sent(now, sent)

    def take(self, data: str | bytes, now: float) -> None:
        """One message of the client. It came where things may be lost, whatever it says of itself."""
        self._received += 1
        try:
            item = V1_DIALECT.decode(data) if isinstance(data, str) else unpack_binary(data)
        except ProtocolError:
            self._server.rooms.totals.refused["non_message"] += 1
            return
        if item.type.startswith("session:"):  # a probe; other control messages belong on the reliable link
            return
        item.reliable = False
        self.client.core.receive(self.client, item, len(data), now)

    def acked(self, received: int) -> None:
        now = self._server.clock()
        self.trust.rtt = self.client.links[0].rtt or 0.0
        self.trust.acked(received, now)
        self.look(now)

    def look(self, now: float) -> None:
        """Tells what was received, keeps the judgement fresh, and follows it."""
        if self._received != self._acked and now - self._acked_at >= ACK_EVERY:
            self._acked, self._acked_at = self._received, now
            self.client.core.acknowledge(self.client, self._received)
        if self.trust.wants_probe(now):
            self._server.probe(self, now)
        route = self.trust.route(now)
        if route is not self.route:
            self.route = route
            self.client.core.rerouted(self.client)

    def close(self, code: int, reason: str) -> None:
        self._server.hangup(self.client)
