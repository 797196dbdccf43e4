"""Bad networks for those who develop: what a client sends and is sent takes the way that its page, its room or the
server was given. Nothing here is on the way of a client without one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, Final

from .clock import Timer, Timers
from .conditions import Path, read_net
from .outbox import Link
from .room import Client
from .rooms import Rooms

HIGH, LOW = 256 * 1024, 64 * 1024  # bytes under way to a client, at which it is behind, and is not any more
MAX_UNDER_WAY: Final = 1024 * 1024  # bytes under way from a client, above which its socket is not read
MAX_DATAGRAMS: Final = 10_000  # of one peer under way; what is more is lost

Address = Any


class Conditioner:
    """Who has which network: what a client was given counts, else what its room was, else what the server was."""

    def __init__(self, rooms: Rooms, clock: Callable[[], float], log: Any, net: str = "") -> None:
        """`net` as in `read_net`, for all who have no other. Raises ValueError."""
        self._rooms = rooms
        self._clock = clock
        self._log = log
        read_net(net)
        self.net = net
        self.rooms: dict[str, str] = {}  # by slug

    def set_room(self, slug: str, net: str) -> None:
        """For all in it who have none of their own, and who come later. Raises ValueError."""
        read_net(net)
        self.rooms[slug] = net
        if not net:
            del self.rooms[slug]
        core = self._rooms.rooms.get(slug)
        for client in () if core is None else tuple(core.clients.values()):
            self._apply(client)

    def set_client(self, client: Client, net: str) -> None:
        """Raises ValueError."""
        read_net(net)
        client.net = net or None
        self._apply(client)

    def _apply(self, client: Client) -> None:
        for link in client.links:
            self.linked(client, link)
        client.core.outbox.rewire(client)

    def linked(self, client: Client, link: Link) -> None:
        """A link of this client came to be, or its network is another."""
        slug = client.core.slug
        text = client.net or self.rooms.get(slug) or self.net
        try:
            net = read_net(text)
        except ValueError as error:  # of a page's URL
            self._log.warning("no such network", room=slug, client=client.id, error=str(error))
            return
        way: Any = link.peer if link.kind == "datachannel" else link._transport  # type: ignore[attr-defined]
        if isinstance(way, SlowPeer | SlowWire):
            way.up.conditions, way.down.conditions = net.up, net.down
        elif text:
            name = f"{net.seed} {slug} {client.id} {link.kind}"
            up, down = Path(net.up, Random(f"{name} up")), Path(net.down, Random(f"{name} down"))
            self._lead(link, up, down)

    def _lead(self, link: Any, up: Path, down: Path) -> None:
        timers = self._rooms.timers
        if link.kind == "datachannel":
            link.peer = SlowPeer(link.peer, up, down, timers, mark=partial(link._server.mark, link))
        else:
            link.reroute(lambda transport: SlowWire(transport, link, up, down, timers, self._clock))


class Lane:
    """One direction of a reliable link: all arrives, in the order in which it was sent."""

    def __init__(self, path: Path, timers: Timers, clock: Callable[[], float]) -> None:
        self._path, self._timers, self._clock = path, timers, clock
        self._held: deque[tuple[float, int, Callable[[], object]]] = deque()
        self._timer: Timer | None = None
        self.size = 0  # bytes under way

    def send(self, size: int, arrive: Callable[[], object]) -> None:
        when = self._path.reliable(size, self._clock())
        self._held.append((when, size, arrive))  # it may be there before what was sent before, and waits for that
        self.size += size
        if self._timer is None:
            self._timer = self._timers.at(when, self._run)

    def _run(self, now: float) -> None:
        self._timer = None
        while self._held and self._held[0][0] <= now:
            _, size, arrive = self._held.popleft()
            self.size -= size
            arrive()
        if self._held and self._timer is None:
            self._timer = self._timers.at(self._held[0][0], self._run)

    def clear(self) -> None:
        self._held.clear()
        self.size = 0


class SlowWire:
    """Stands between a TCP connection's transport and its protocol, and is to each what the other was."""

    def __init__(
        self, transport: Any, protocol: Any, up: Path, down: Path, timers: Timers, clock: Callable[[], float]
    ) -> None:  # fmt: skip
        self._transport, self._protocol = transport, protocol
        self.up, self.down = up, down
        self._in, self._out = Lane(up, timers, clock), Lane(down, timers, clock)
        self._paused = not transport.is_reading()  # by the protocol
        self._closing = self._lost = self._behind = False
        transport.set_protocol(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    # --- as a transport -----------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._lost or self._closing:
            return
        self._out.send(len(data), partial(self._leave, data))
        if self._out.size > HIGH and not self._behind:
            self._behind = True
            self._protocol.pause_writing()

    def _leave(self, data: bytes) -> None:
        if not self._lost:
            self._transport.write(data)
        if self._behind and self._out.size < LOW and not self._lost:
            self._behind = False
            self._protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return int(self._transport.get_write_buffer_size()) + self._out.size

    def close(self) -> None:
        """After what was written before."""
        self._closing = True
        self._out.send(0, self._transport.close)

    def is_closing(self) -> bool:
        return self._closing or bool(self._transport.is_closing())

    def abort(self) -> None:
        self._closing = True
        self._in.clear()
        self._out.clear()
        self._transport.abort()

    def is_reading(self) -> bool:
        return not self._paused

    def pause_reading(self) -> None:
        self._paused = True
        self._follow()

    def resume_reading(self) -> None:
        self._paused = False
        self._follow()

    def _follow(self) -> None:
        """Reads unless the protocol does not want to, or too much is under way."""
        wanted = not self._paused and self._in.size <= MAX_UNDER_WAY
        if not self._transport.is_closing() and wanted is not self._transport.is_reading():
            (self._transport.resume_reading if wanted else self._transport.pause_reading)()

    # --- as a protocol ------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._in.send(len(data), partial(self._arrive, data))
        self._follow()

    def _arrive(self, data: bytes) -> None:
        self._protocol.data_received(data)
        self._follow()

    def eof_received(self) -> bool:
        self._in.send(0, self._transport.close)
        return self._transport.get_extra_info("sslcontext") is None  # TLS has no half-closed connections

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._out.clear()
        if self._closing:
            self._protocol.connection_lost(error)
        else:  # after what came before
            self._in.send(0, partial(self._protocol.connection_lost, error))

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if not self._behind:
            self._protocol.resume_writing()


class SlowPeer:
    """Stands before the peer of a data channel: datagrams are late, lost, doubled, out of order. Those of STUN, by
    which addresses are found and kept, are not."""

    def __init__(self, peer: Any, up: Path, down: Path, timers: Timers, mark: Callable[[], None]) -> None:
        """`mark()`: it has something to send, or events."""
        self._peer = peer
        self.up, self.down = up, down
        self._timers, self._mark = timers, mark
        self._arrived: list[tuple[bytes, Address]] = []  # to be sent now
        self._count = 0  # datagrams under way

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peer, name)

    def receive(self, datagram: bytes, address: Address, now: float) -> bool:
        if is_stun(datagram):
            self._peer.receive(datagram, address, now)
        else:
            for when in self.up.datagram(len(datagram), now):
                self._hold(when, now, partial(self._peer.receive, datagram, address))
        return True

    def send_at_once(self, batch: Any, now: float) -> None:
        """Nothing takes a way around this one."""

    def transmit(self, now: float) -> list[tuple[bytes, Address]]:
        for datagram, address in self._peer.transmit(now):
            if is_stun(datagram):
                self._arrived.append((datagram, address))
                continue
            for when in self.down.datagram(len(datagram), now):
                self._hold(when, now, partial(self._leave, datagram, address))
        arrived, self._arrived = self._arrived, []
        return arrived

    def _leave(self, datagram: bytes, address: Address, now: float) -> None:
        self._arrived.append((datagram, address))

    def _hold(self, when: float, now: float, arrive: Callable[[float], None]) -> None:
        if when <= now:
            arrive(now)
        elif self._count < MAX_DATAGRAMS:
            self._count += 1
            self._timers.at(when, partial(self._release, arrive))

    def _release(self, arrive: Callable[[float], None], now: float) -> None:
        self._count -= 1
        arrive(now)
        self._mark()


def is_stun(datagram: bytes) -> bool:
    """RFC 7983 §7."""
    return bool(datagram) and datagram[0] <= 3
