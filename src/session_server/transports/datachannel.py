"""UDP datagrams ↔ room messages, by WebRTC data channels. The only file with a UDP socket.

A datagram is given to its peer by what it says (STUN: the user name fragment) or by where it comes from (DTLS). What a
tick brought for a peer leaves in as few datagrams as hold it. Two kinds of client come this way: ours, who have a
WebSocket and this beside it (`SideLink`), and those of geckos.io, who have nothing else (`GeckosLink`).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from itertools import chain
from math import inf
from secrets import randbits, token_bytes
from typing import Any, Final

from ..config import Config
from ..geckos import BESIDE, MEMBER, Geckos
from ..limits import Bucket, Buckets, Tally, network
from ..links import Channel, GeckosLink, SideLink
from ..protocol import V1_DIALECT, AnyMessage, Binary, Dialect, LimitExceeded, message
from ..room import Client
from ..rooms import Rooms
from ..rtc import datachannel, sdp, stun
from ..rtc.dtls import Certificate
from ..rtc.stun import Address, Credentials
from ..trust import DOUBT_AFTER

LABEL: Final = "session"  # of our own clients' channel
PER_WAKE_UP: Final = 64  # datagrams read before anything else gets its turn
LARGEST: Final = 2048  # bytes of a datagram that is read
IPV4, IPV6 = 2, 4  # parts of an address, as sockets give them
BUFFER: Final = 4 * 1024 * 1024  # bytes of the socket's own buffers
TICK: Final = 0.04  # seconds between two looks at what is due, at most
NEARLY: Final = 0.03  # seconds after one, from when on a turn that is made anyway takes the place of the next
CALM_FOR: Final = DOUBT_AFTER  # seconds after an acknowledgement: until then there is no doubt about a link
SOON: Final = 0.25  # seconds after which something may be due, but for a SACK: no time-out is much shorter
HANDSHAKES: Final = 100.0  # per second; each costs a millisecond or two
ATTEMPTS: Final = 0.25  # per second and address, for each peer that it may have; twice as many as peers at once
MAX_EARLY: Final = 256  # checks that came before their answer
EARLY_FOR: Final = 2.0  # seconds they are kept
OWNED_FOR: Final = 10.0  # seconds that an address stays a silent peer's; browsers ask for consent every 5 (RFC 7675)
MAX_ANSWER: Final = 16 * 1024  # characters of an SDP answer

AnyChannel = Channel[datachannel.Peer]

NOTHING: Final = datachannel.batch(b"")


class DataChannels:
    """All data channels of a server."""

    def __init__(
        self, config: Config, rooms: Rooms, clock: Callable[[], float], wake: Callable[[float], None],
        turn_after: Callable[[Callable[[], None]], None], log: Any,
    ) -> None:  # fmt: skip
        """`wake(0.0)` asks for a call of `flush` at the end of this tick; `turn_after` calls what is handed in, and if
        that asked for one, flushes at once."""
        self.rooms = rooms
        self.clock = clock
        self._wake = wake
        self._turn_after = turn_after
        self._log = log
        self._secret = token_bytes(32)
        self._side = datachannel.Options(Certificate.new(), label=LABEL, max_message=config.message_size or 65536)
        self._geckos = replace(self._side, label=datachannel.GECKOS)
        self.announced: Sequence[str] = config.announce_ip  # where we are reached; else where the request has come
        self._sockets: dict[int, socket.socket] = {}  # by how many parts an address has: IPV4, IPV6
        self._hosts: list[str] = []  # addresses that the sockets are bound to
        self.port = 0
        self._by_ufrag: dict[str, AnyChannel] = {}
        self._by_client: dict[Client, SideLink[datachannel.Peer]] = {}
        self._by_address: dict[Address, AnyChannel] = {}
        self._early: dict[str, tuple[float, bytes, Address]] = {}  # ufrag → a check that came before its answer
        self._dirty: set[AnyChannel] = set()
        self._handshakes = Bucket(HANDSHAKES, HANDSHAKES)
        most = config.peers_per_address
        self._per_address = Tally(most)
        self._attempts = Buckets(ATTEMPTS * most, 2 * most)
        self._probe = datachannel.batch(pack(V1_DIALECT, message("session:probe", reliable=False)) or b"")
        self._written: list[tuple[AnyChannel, bytes]] = []  # what the rooms have for them in this tick
        self._leaving: Iterator[tuple[AnyChannel, bytes]] = iter(())  # of it, what `_send_written` has not come to yet
        self._timer: asyncio.TimerHandle | None = None
        self._look_at = 0.0  # from when on a turn looks round, as it is awake, and the timer waits again

    def __len__(self) -> int:
        return len(self._by_ufrag)

    @property
    def guests(self) -> int:
        """Clients of geckos.io, who have nothing but their channel."""
        return len(self._by_ufrag) - len(self._by_client)

    # --- the socket ---------------------------------------------------------------------------------------------------

    def listen(self, sockets: list[socket.socket]) -> None:
        """Reads from bound UDP sockets, at most one of each family."""
        self._loop = asyncio.get_running_loop()
        for one in sockets:
            one.setblocking(False)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                one.setsockopt(socket.SOL_SOCKET, option, BUFFER)
            self._sockets[len(one.getsockname())] = one
            self._hosts.append(one.getsockname()[0])
            self.port = one.getsockname()[1]
            self._loop.add_reader(one.fileno(), self._turn_after, partial(self._readable, one))

    def close(self) -> None:
        now = self.clock()
        self._send_written(now)
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
        recvfrom, by_address = source.recvfrom, self._by_address
        for _ in range(PER_WAKE_UP):
            try:
                data, address = recvfrom(LARGEST)
            except BlockingIOError:
                break
            except OSError:  # an ICMP message of somebody who is gone
                continue
            if len(data) == datachannel.SACK_ALONE:  # of those who are sent much, nearly all
                channel = by_address.get(address)
                if channel is not None and channel.peer.set_aside(data, now):
                    channel.heard = now
                    continue
            self._receive(data, address, now)
        if self._dirty:  # not after acknowledgements alone
            self._wake(0.0)

    def _receive(self, data: bytes, address: Address, now: float) -> None:
        """RFC 7983 §7: the first byte says which protocol it is; 64 and above is left to later transports."""
        first = data[0] if data else 255
        if first <= 3:
            self._receive_stun(data, address, now)
            return
        channel = self._by_address.get(address) if 20 <= first <= 63 else None
        if channel is None or now < channel.deaf_until:
            self.rooms.totals.refused["datagram" if channel is None else "datagram_over_rate"] += 1
            return
        channel.heard = now
        try:
            if channel.peer.receive(data, address, now):
                self._take_in(channel, now)
        except Exception:
            self._fail(channel)

    def _receive_stun(self, data: bytes, address: Address, now: float) -> None:
        ufrag = stun.ufrag_of(data) or ""
        channel = self._by_ufrag.get(ufrag)
        if channel is None:
            if ufrag:
                self._hold_early(ufrag, data, address, now)
            else:
                self.rooms.totals.refused["datagram"] += 1
            return
        try:
            channel.peer.receive(data, address, now)
            self._follow(channel, now)
            if self._by_address.get(address) is channel:
                channel.heard = now
            self._take_in(channel, now)
        except Exception:
            self._fail(channel)

    def _take_in(self, channel: AnyChannel, now: float) -> None:
        """Something came for it: events, or what is to be answered."""
        self._take_events(channel, now, clean=True)
        self._dirty.add(channel)

    def _fail(self, channel: AnyChannel) -> None:
        """A fault of ours: loud, and ends no more than this channel."""
        self._log.exception("fault in the server", link=channel.kind)
        self.rooms.totals.faults += 1
        if self._forget(channel):
            channel.ended(clean=False)

    def _hold_early(self, ufrag: str, data: bytes, address: Address, now: float) -> None:
        """A browser's first check overtakes its answer; dropped, it is repeated only 50 ms later."""
        self._early.pop(ufrag, None)
        if len(self._early) >= MAX_EARLY:
            del self._early[next(iter(self._early))]
        self._early[ufrag] = (now, data, address)

    def _follow(self, channel: AnyChannel, now: float) -> None:
        """The addresses from which this peer may send, after it has shown another one. What it shows may be forged: an
        address from which another peer is heard stays that one's."""
        known = set(channel.peer.addresses)
        for address in channel.addresses - known:
            if self._by_address.get(address) is channel:
                del self._by_address[address]
        for address in known:
            owner = self._by_address.get(address)
            if owner is None or now - owner.heard > OWNED_FOR:
                self._by_address[address] = channel
        channel.addresses = known

    def flush(self, now: float) -> None:
        """Sends what is due to all who have something."""
        self._send_written(now)
        dirty, self._dirty = self._dirty, set()
        for channel in dirty:
            try:
                for data, address in channel.peer.transmit(now):
                    self._send(data, address)
                channel.look_at = min(channel.look_at, channel.peer.sack_at, now + SOON)  # no other is due sooner
                self._take_events(channel, now)
            except Exception:
                self._fail(channel)

    def _send(self, data: bytes, address: Address) -> None:
        target = self._sockets.get(len(address))
        try:
            if target is not None:
                target.sendto(data, address)
        except OSError:
            self._not_sent()

    def _not_sent(self) -> None:
        """The buffer is full, or the network unreachable: a datagram may be lost."""
        self.rooms.totals.refused["datagram_unsent"] += 1

    # --- signalling ---------------------------------------------------------------------------------------------------

    def offer(self, client: Client) -> str | None:
        """What invites this client to a side link: always the same for its seat, so an offer that nobody answers costs
        no memory."""
        link = client.links[0] if client.links else None
        if link is None or link.dialect is not V1_DIALECT:
            return None
        return self._offer(self._credentials(client), link.local, self._side.max_message)

    def _credentials(self, client: Client) -> Credentials:
        return Credentials.derive(self._secret, f"{client.core.slug}\0{client.core.epoch}\0{client.id}")

    def _offer(self, credentials: Credentials, local: str, largest: int) -> str | None:
        """None if there is no address to offer."""
        addresses = [(host, self.port) for host in self._candidates(local)] if self._sockets else []
        fingerprint = self._side.certificate.fingerprint
        return sdp.write_offer(randbits(62), credentials, fingerprint, addresses, largest) if addresses else None

    def _candidates(self, local: str) -> list[str]:
        """Where we are reached: as announced, else where this client has reached us."""
        if self.announced:
            return list(self.announced)
        try:
            near = ip_address(local)
        except ValueError:
            return []
        if near.is_loopback:
            return [host for host in ("127.0.0.1", "::1") if self._has_family_of(host)]
        return [local] if self._has_family_of(local) else []

    def _has_family_of(self, host: str) -> bool:
        return (IPV6 if ":" in host else IPV4) in self._sockets

    def answer(self, client: Client, text: str) -> None:
        """A client's answer to its offer; what it had before ends. Raises ValueError."""
        if not self._sockets or not client.links:
            raise ValueError("there are no data channels here")
        answer = read_answer(text)
        self.hangup(client)  # what it had before
        address = client.links[0].address
        try:
            self.admit(address)
            credentials = self._credentials(client)
            peer = self._peer(self._side, credentials, answer, address)
        except LimitExceeded as error:
            raise ValueError(str(error)) from None
        link = self._by_client[client] = SideLink(self, peer, credentials.ufrag, address, client)
        self._begin(link)

    def hangup(self, client: Client) -> None:
        """This client's side link ends, open or not; its last datagrams leave with this tick."""
        link = self._by_client.get(client)
        if link is not None:
            self.end(link, "the WebSocket ended")
            link.ended(clean=True)

    def admit(self, address: str) -> None:
        """May this address try to open one more channel? Raises LimitExceeded. A client of geckos.io hears of it only
        when it asks for an offer, so that is when its handshake is counted."""
        key, now = network(address), self.clock()
        if not self._per_address.has_room(key) or not self._attempts.take(key, now):
            raise self._over("peers_per_address", 429, "too many data channels from this address")
        if not self._handshakes.take(now):
            raise self._over("handshakes", 503, f"more than {HANDSHAKES:g} new data channels per second")

    def _over(self, limit: str, status: int, reason: str) -> LimitExceeded:
        self.rooms.totals.refused[limit] += 1
        return LimitExceeded(limit, status, reason)

    def invite(self, id: str, local: str, largest: int) -> str | None:
        """The offer for a client of geckos.io; `local` is our address that it came to, `largest` the most bytes of its
        messages. All in it follows from the id. None if we have no address to offer."""
        return self._offer(
            Credentials.derive(self._secret, id),
            local,
            min(largest or self._geckos.max_message, self._geckos.max_message),
        )

    def accept(self, id: str, text: str, address: str, slug: str, dialect: Geckos) -> None:
        """Its answer; it has a seat in the room of this slug once its channel is open. Raises ValueError or
        LimitExceeded."""
        credentials = Credentials.derive(self._secret, id)
        peer = self._peer(self._geckos, credentials, read_answer(text), address)
        self._begin(GeckosLink(self, peer, credentials.ufrag, address, slug, dialect))

    def dismiss(self, id: str) -> None:
        """It has said that it goes."""
        channel = self._by_ufrag.get(Credentials.derive(self._secret, id).ufrag)
        if channel is not None:
            self.rooms.enter(self.clock())
            self.end(channel, "closed by the client")
            channel.ended(clean=True)

    def _peer(
        self, options: datachannel.Options, credentials: Credentials, answer: sdp.Answer, address: str
    ) -> datachannel.Peer:
        """Raises LimitExceeded."""
        if not self._per_address.take(network(address)):
            raise self._over("peers_per_address", 429, "too many data channels from this address")
        return datachannel.Peer.serve(options, credentials, answer, token_bytes, self.clock())

    def _begin(self, channel: AnyChannel) -> None:
        self._by_ufrag[channel.ufrag] = channel
        early = self._early.pop(channel.ufrag, None)
        now = self.clock()
        if early is not None and now - early[0] < EARLY_FOR:
            self._receive(early[1], early[2], now)
            self._wake(0.0)
        if self._timer is None:
            self._timer = self._loop.call_later(TICK, self._turn_after, self._tick)

    # --- peers --------------------------------------------------------------------------------------------------------

    def _take_events(self, channel: AnyChannel, now: float, clean: bool = False) -> None:
        """`clean`: what ends it now came from the peer, and not from its silence."""
        for event in channel.peer.take_events():
            match event:
                case datachannel.Message():
                    channel.take(event.data, now)
                case datachannel.Opened():
                    if not channel.is_open:
                        channel.is_open = True
                        channel.opened(now)
                case datachannel.Closed():
                    if self._forget(channel):
                        channel.ended(clean)

    def end(self, channel: AnyChannel, reason: str) -> None:
        """After what was sent before; the last datagrams leave with this tick. The channel is not told."""
        now = self.clock()
        self._send_written(now)
        if self._forget(channel):
            for data, address in channel.peer.transmit(now):
                self._send(data, address)
            channel.peer.close(now, reason)
            self.mark(channel)

    def _forget(self, channel: AnyChannel) -> bool:
        """False if that has been done."""
        if self._by_ufrag.get(channel.ufrag) is not channel:
            return False
        del self._by_ufrag[channel.ufrag]
        if isinstance(channel, SideLink):
            del self._by_client[channel.client]
        for address in channel.addresses:
            if self._by_address.get(address) is channel:
                del self._by_address[address]
        self._per_address.give_back(network(channel.address))
        channel.is_open = False
        return True

    # --- time ---------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = self.clock()
        self.rooms.enter(now)
        self._look_round(now)
        if self._dirty:
            self._wake(0.0)

    def awake(self, now: float) -> None:
        """A turn begins that is made anyway: what a look round brings leaves with it."""
        if now >= self._look_at and self._by_ufrag:
            self.rooms.enter(now)
            self._look_round(now)

    def _look_round(self, now: float) -> None:
        """Whose time has come? One timer for all peers."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(TICK, self._turn_after, self._tick) if self._by_ufrag else None
        self._look_at = now + NEARLY
        for channel in [one for one in self._by_ufrag.values() if one.look_at <= now]:
            self._look(channel, now)

    def _look(self, channel: AnyChannel, now: float) -> None:
        try:
            peer = channel.peer
            rests = peer.rests_until(CALM_FOR) if channel.is_calm else 0.0
            if rests > now:
                channel.look_at = rests
                return
            if peer.catch_up() or peer.next_deadline <= now:
                peer.run(now)
                self._take_events(channel, now)
                self._dirty.add(channel)
            if channel.is_open:
                channel.look(now)
            due = channel.next_look(now) if channel.is_open else inf
            # A SACK that is owed may leave with this turn, so one that sends much is not looked at for each.
            channel.look_at = due if channel in self._dirty else min(peer.next_deadline, due)
        except Exception:
            self._fail(channel)

    # --- messages -----------------------------------------------------------------------------------------------------

    def pack_for(self, dialect: Dialect) -> Callable[[Any], bytes | None]:
        return PACK[dialect]

    def write(self, channel: AnyChannel, blob: bytes) -> None:
        if not self._written:
            self._wake(0.0)
        self._written.append((channel, blob))

    def _send_written(self, now: float) -> None:
        """By the shortest way, as all of a room pass here at each tick; most are sent the same blob. If one is given up
        here, others may be too, and ask for the same: it goes on from where this one is, so that order is kept."""
        written, self._written = self._written, []
        self._leaving = chain(self._leaving, written)
        batches: dict[int, datachannel.Batch] = {}  # by the blob that all of a room are sent
        sockets = self._sockets
        last, batch, soon = None, NOTHING, now + SOON
        for channel, blob in self._leaving:
            if blob is not last:
                last = blob
                batch = batches.get(id(blob)) or batches.setdefault(id(blob), datachannel.batch(blob))
            try:
                if batch.others:
                    channel.send_reliably(batch.others, now)
                datagram = channel.peer.send_at_once(batch, now)
                if datagram is None:
                    self._queue(channel, batch, now)
                else:
                    data, address = datagram
                    channel.sent(now, batch.count)
                    if channel.look_at > soon:
                        channel.look_at = soon
                    sockets[len(address)].sendto(data, address)
            except OSError:
                self._not_sent()
            except Exception:
                self._fail(channel)
        self._leaving = iter(())

    def _queue(self, channel: AnyChannel, batch: datachannel.Batch, now: float) -> None:
        """Leaves with what else waits for this peer."""
        if not batch.count:
            return
        sent = channel.peer.push_all(batch, now)
        self.mark(channel)
        if sent != batch.count:
            self.rooms.totals.refused["shed"] += batch.count - sent
        if sent:
            channel.sent(now, sent)

    def mark(self, channel: AnyChannel) -> None:
        """It has something to send, or events."""
        channel.look_at = 0.0
        self._dirty.add(channel)
        self._wake(0.0)

    def probe(self, link: SideLink[datachannel.Peer], now: float) -> bool:
        self.mark(link)
        return link.peer.push_all(self._probe, now) == 1


def pack(dialect: Dialect, item: AnyMessage) -> bytes | None:
    """None if the dialect has no form for it."""
    payload = dialect.encode(item)
    if payload is None:
        return None
    return datachannel.pack(payload, not isinstance(item, Binary), item.reliable is not False)


PACK: Final[dict[Dialect, Callable[[Any], bytes | None]]] = {
    dialect: partial(pack, dialect) for dialect in (V1_DIALECT, MEMBER, BESIDE)
}


def read_answer(text: str) -> sdp.Answer:
    """Raises ValueError."""
    if len(text) > MAX_ANSWER:
        raise ValueError(f"answer of {len(text)} characters, expected at most {MAX_ANSWER}")
    return sdp.parse_answer(text)
