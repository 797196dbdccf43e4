"""What a room has in hand of a client on a data channel: ours, beside its WebSocket, or one of geckos.io, alone.

Messages only. The channel below, its datagrams and its time are a transport's, which is handed in (`Channels`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any, Final, Generic, Protocol, TypeVar

from .geckos import IDENTITY, RAW, Geckos, Repeats
from .handlers import Kind
from .limits import Bucket
from .outbox import Pack
from .protocol import (
    V1_DIALECT,
    AnyMessage,
    Binary,
    Close,
    Dialect,
    Hello,
    ProtocolError,
    SessionError,
    unpack_binary,
)
from .room import Client
from .rooms import Rooms
from .stream import Write
from .trust import ACK_EVERY, Route, Trust

HEARS_WITHIN: Final = 1.5  # seconds until a geckos.io client surely listens, as far as it has not spoken before
MAX_HELD: Final = 64 * 1024  # bytes kept for or from a geckos.io client that cannot have them yet
COPIES: Final = 10  # that the geckos.io library sends of a reliable message
ASK_AFTER: Final = 0.1  # seconds of waiting, after which a channel is asked for acknowledgements: that costs something
BREATH: Final = 0.02  # seconds in which nothing is read of a client that was over its rate


class Frame(Protocol):
    """A message that must not be lost, made ready once for many peers."""

    @property
    def payload(self) -> bytes: ...


class Peer(Protocol):
    """The other end of a data channel."""

    @property
    def max_message_size(self) -> int:
        """Bytes of one message that it takes."""

    @property
    def buffered(self) -> int:
        """Bytes that wait to be sent or acknowledged."""

    @property
    def arrived(self) -> int:
        """Messages of those that may be lost that it has, ever."""

    @property
    def lost(self) -> int:
        """Messages of the same kind that will not arrive, ever."""

    @property
    def acked_at(self) -> float:
        """When it last said what it has."""

    def push_reliably(self, message: Any) -> bool:
        """False if it cannot be sent, and then it is lost."""


AnyPeer = TypeVar("AnyPeer", bound=Peer)


class Channels(Protocol):
    """The transport."""

    clock: Callable[[], float]
    rooms: Rooms

    def pack_for(self, dialect: Dialect) -> Pack:
        """How a message becomes bytes for `write`, which takes several, joined."""

    def write(self, channel: Any, blob: bytes) -> None:
        """Packed messages, which leave with this tick: those that may be lost at once, of which `Channel.sent` is told,
        the others by `Channel.send_reliably`."""

    def mark(self, channel: Any) -> None:
        """It has something to send, or events."""

    def probe(self, link: Any, now: float) -> bool:
        """Sends `session:probe`."""

    def end(self, channel: Any, reason: str) -> None:
        """Ends it. The channel is not told."""

    def hangup(self, client: Client) -> None:
        """This client's side link ends."""


def size_of(data: str | bytes) -> int:
    """Bytes on the wire."""
    return len(data) if isinstance(data, bytes) or data.isascii() else len(data.encode())


def unwatched(now: float, count: int) -> None:
    """Nobody asks whether it arrives."""


class Channel(Generic[AnyPeer]):
    """One peer's data channel, of either kind of client."""

    __slots__ = (
        "_server", "address", "addresses", "deaf_until", "dialect", "heard", "is_open", "kind", "local", "look_at",
        "pack", "peer", "sent", "ufrag",
    )  # fmt: skip

    def __init__(self, server: Channels, peer: AnyPeer, ufrag: str, address: str, dialect: Dialect) -> None:
        self.kind = "datachannel"
        self.dialect = dialect
        self.address = address
        self.local = ""
        self.pack = server.pack_for(dialect)
        self.peer = peer
        self.ufrag = ufrag
        self.addresses: set[Any] = set()  # from which it may send
        self.deaf_until = 0.0
        self.heard = 0.0  # when something last came from an address that is its own
        self.is_open = False
        self.look_at = 0.0  # when its peer or itself has something to do
        self.sent: Callable[[float, int], None] = unwatched  # now, so many that may be lost have left
        self._server = server

    def rest(self, client: Client, now: float) -> None:
        """Of a client over its rate nothing is read for a while: what it sends costs a look at where it comes from."""
        if client.was_refused:
            client.was_refused = False
            self.deaf_until = now + BREATH

    def opened(self, now: float) -> None:
        """It can be used from now on."""
        raise NotImplementedError

    def take(self, data: str | bytes, now: float) -> None:
        """One message of the peer."""
        raise NotImplementedError

    def send_reliably(self, frames: Sequence[Any], now: float) -> None:
        """What must not be lost."""
        raise NotImplementedError

    def look(self, now: float) -> None:
        """Time has passed."""
        raise NotImplementedError

    def next_look(self, now: float) -> float:
        """When another one is due, if nothing happens before."""
        return inf

    @property
    def is_calm(self) -> bool:
        """Whether nothing waits for a look but the question if the other side still acknowledges."""
        raise NotImplementedError

    def ended(self, clean: bool) -> None:
        """Nothing can be sent or comes any more."""
        raise NotImplementedError


class SideLink(Channel[AnyPeer]):
    """Beside the WebSocket of one of our own clients, for what may be lost: a `room.SideLink` once it is open."""

    __slots__ = ("_acked", "_acked_at", "_received", "client", "route", "trust", "write")

    def __init__(self, server: Channels, peer: AnyPeer, ufrag: str, address: str, client: Client) -> None:
        super().__init__(server, peer, ufrag, address, V1_DIALECT)
        self.client = client
        self.write: Write = partial(server.write, self)
        self.trust = Trust()
        self.sent = self.trust.sent
        self.route = Route.RELIABLE
        self._received = 0  # the client's messages, probes included
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

    @property
    def is_calm(self) -> bool:
        return self.route is Route.UNRELIABLE and self._received == self._acked

    def opened(self, now: float) -> None:
        self.route = self.trust.route(now)
        self.client.core.services.linked(self.client, self)
        self.client.core.outbox.attach(self.client, self)
        self.look(now)  # a probe leaves at once

    def ended(self, clean: bool) -> None:
        self.client.core.outbox.detach(self.client, self)

    def take(self, data: str | bytes, now: float) -> None:
        """It came where things may be lost, whatever it says of itself."""
        if self._received == self._acked:
            self.look_at = min(self.look_at, self._acked_at + ACK_EVERY)
        self._received += 1
        inbox, size = self.client.core.inbox, size_of(data)
        try:
            item = V1_DIALECT.decode(data) if isinstance(data, str) else unpack_binary(data)
        except ProtocolError:
            self._server.rooms.totals.refused["non_message"] += 1
            inbox.admits(self.client, size, now)
        else:
            item.reliable = False
            if item.type != "session:probe":  # other control messages belong on the reliable link
                inbox.receive(self.client, item, size, now)
        self.rest(self.client, now)

    def look(self, now: float) -> None:
        """Tells what was received, keeps the judgement fresh, and follows it. What has arrived is what the channel
        acknowledges itself, and not what the client says: they differ by what was given up and came all the same."""
        if self.trust.silence(now) >= ASK_AFTER:
            self.trust.rtt = self.client.links[0].rtt or 0.0
            self.trust.acked(self.peer.arrived, self.peer.acked_at, self.peer.lost)
        if self._received != self._acked and now - self._acked_at >= ACK_EVERY:
            self._acked, self._acked_at = self._received, now
            self.client.core.inbox.acknowledge(self.client, self._received)
        if self.trust.wants_probe(now) and self._server.probe(self, now):
            self.trust.sent(now)
        route = self.trust.route(now)
        if route is not self.route:
            self.route = route
            self.client.core.outbox.rerouted(self.client)

    def next_look(self, now: float) -> float:
        due = self.trust.next_look(now)
        if self.route is Route.BOTH:  # nobody says when it is acknowledged
            due = min(due, now + ASK_AFTER)
        return due if self._received == self._acked else min(due, self._acked_at + ACK_EVERY)

    def close(self, code: int, reason: str) -> None:
        self._server.hangup(self.client)


class GeckosLink(Channel[AnyPeer]):
    """A client of geckos.io: a `room.Link`, the only one it has.

    What its room calls reliable is repeated by SCTP; what it sends as reliable comes several times, with an id. It
    calls `onConnect`, and listens, only when the answer to its answer has come as well, which may take longer than the
    channel: until it has spoken, or surely listens, what is reliable is held.
    """

    __slots__ = ("_client", "_copies", "_early", "_gone", "_held", "_hears_at", "_repeats", "_slug", "rtt", "write")

    def __init__(self, server: Channels, peer: AnyPeer, ufrag: str, address: str, slug: str, dialect: Geckos) -> None:
        super().__init__(server, peer, ufrag, address, dialect)
        config = server.rooms.config
        self.rtt: float | None = None
        self.write: Write = partial(server.write, self)
        self._slug = slug
        self._client: Client | None = None
        self._gone = False  # it was closed; no seat is for it any more
        self._early: list[str | bytes] = []  # what came while an async on_auth thought about it
        self._held: list[Frame] | None = []
        self._hears_at = inf
        self._repeats = Repeats()
        self._copies = Bucket(COPIES * config.message_rate, COPIES * config.message_burst)

    def opened(self, now: float) -> None:
        self._hears_at = now + HEARS_WITHIN
        self._server.rooms.join(self._slug, self, Hello(), now, self._joined)

    def _joined(self, client: Client | None, error: SessionError | None) -> None:
        """The outcome of a join."""
        if client is None:  # the room let it in when it came, but has filled since
            self.close(Close.REFUSED, str(error))
        elif self._gone:
            client.core.drop(client, self, clean=False)
        else:
            self._client = client
            early, self._early = self._early, []
            for data in early:
                self.take(data, self._server.clock())

    def ended(self, clean: bool) -> None:
        self._gone = True
        client, self._client = self._client, None
        if client is not None:
            client.core.drop(client, self, clean)

    def close(self, code: int, reason: str) -> None:
        """There are no close codes here: it sees that the channel has closed."""
        self._gone, self._client = True, None
        self._server.end(self, reason)

    # --- in -----------------------------------------------------------------------------------------------------------

    def take(self, data: str | bytes, now: float) -> None:
        client, size = self._client, size_of(data)
        refused = self._server.rooms.totals.refused
        if client is None:
            if not self._gone and sum(map(len, self._early)) + size + 64 * len(self._early) < MAX_HELD:
                self._early.append(data)
            else:
                refused["early"] += 1
            return
        self._listens()
        if 0 < client.core.max_message < size:
            refused["too_large"] += 1
            return
        try:
            item = self._read(client, data, size, now)
        except ProtocolError:
            refused["non_message"] += 1
            client.core.inbox.admits(client, size, now)
        else:
            if item is not None:
                client.core.inbox.receive(client, item, size, now)
        self.rest(client, now)

    def _read(self, client: Client, data: str | bytes, size: int, now: float) -> AnyMessage | None:
        """None if there is nothing in it for the room. Raises ProtocolError."""
        if isinstance(data, bytes):
            return Binary(RAW, data, reliable=False)
        item = self.dialect.decode(data)
        if item.type == IDENTITY and client.core.calls.routes.kind(IDENTITY) is Kind.RELAYED:
            client.core.inbox.admits(client, size, now)  # a claim, with a user's id in it: nobody else's business
            return None
        if item.reliable is not False and not self._repeats.is_news(item.id, now):
            if not self._copies.take(now):  # copies are part of the library, but not so many
                client.core.inbox.admits(client, size, now)
            return None
        return item

    # --- out ----------------------------------------------------------------------------------------------------------

    def send_reliably(self, frames: Sequence[Frame], now: float) -> None:
        shed = 0
        for frame in frames:
            if len(frame.payload) > self.peer.max_message_size:
                sent = False
            elif self._held is None:
                sent = self._push(frame)
            else:
                sent = True
                self._held.append(frame)
            shed += not sent
        if shed:
            self._server.rooms.totals.refused["shed"] += shed
        if self._held is not None and sum(len(frame.payload) for frame in self._held) > MAX_HELD:
            self._listens()

    def _push(self, frame: Frame) -> bool:
        """What must not be lost; a client that does not take it is let go."""
        client = self._client
        sent = self.peer.push_reliably(frame)
        self._server.mark(self)
        if not sent and client is not None:
            self._server.rooms.totals.refused["slow_consumer"] += 1
            client.core.drop(client, self, clean=False)
            self.close(Close.FULL, f"slow consumer: {self.peer.buffered} bytes unsent")
        return sent

    def _listens(self) -> None:
        """It hears: what was held for it leaves."""
        held, self._held = self._held, None
        for frame in held or ():
            self._push(frame)

    def look(self, now: float) -> None:
        if self._held is not None and now >= self._hears_at:
            self._listens()

    def next_look(self, now: float) -> float:
        return inf if self._held is None else self._hears_at

    @property
    def is_calm(self) -> bool:
        return self._held is None
