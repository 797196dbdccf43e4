"""What a room sends: to whom, on which of their links, and when. No sockets: transports hand in links."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from msgspec import UNSET, UnsetType

from .limits import Bucket, Meter
from .protocol import V1_DIALECT, AnyMessage, Dialect, message
from .services import Services
from .stream import Stream, Write
from .trust import Route

Pack = Callable[[Any], bytes | None]
Frames = dict[Pack, bytes | None]  # one message, by how it was packed

MAX_NUMBERED: Final = 256  # types per client whose numbers are remembered


class Link(Protocol):
    """A client's live wire, as a transport hands it in."""

    kind: str  # the transport's name
    dialect: Dialect
    address: str  # as seen through trusted proxies; for limits and the client itself, never for others

    @property
    def local(self) -> str:
        """Our own address that it came to."""

    @property
    def rtt(self) -> float | None:
        """Seconds, or None as long as nothing was measured."""

    @property
    def pack(self) -> Pack:
        """How a message becomes bytes. The same function for all links of one kind and dialect."""

    @property
    def write(self) -> Write:
        """Takes bytes at once, without blocking or raising."""

    def close(self, code: int, reason: str) -> None:
        """Closes the wire; no callback follows."""


class SideLink(Link, Protocol):
    """A link for what may be lost, beside the reliable one. Its transport judges how far it is trusted."""

    @property
    def route(self) -> Route: ...


class Seat:
    """What the room keeps of a client below what authors see: its links, what travels on each, what it may send."""

    __slots__ = (
        "_behind", "_link", "_meter", "_numbers", "_offset", "_rates", "_resume", "_resume_before", "_side",
        "_side_link", "_stream", "_taken", "id", "was_refused",
    )  # fmt: skip

    def __init__(self, id: int, meter: Meter) -> None:
        self.id = id
        self.was_refused = False  # by a rate, since its transport last looked
        self._link: Link | None = None
        self._side_link: SideLink | None = None
        self._stream: Stream[Seat, Any] | None = None
        self._side: Stream[Seat, Any] | None = None  # of the side link
        self._behind = False  # its buffer is full
        self._meter = meter
        self._rates: dict[str, Bucket] | None = None  # by message type, where a handler has a rate
        self._numbers: dict[str, int] | None = None
        self._offset = 0  # Outbox.seq
        self._taken = 0  # reliable messages received from this seat
        self._resume = self._resume_before = ""  # the tokens by which it may come back

    def is_news(self, item: AnyMessage) -> bool:
        """What may be lost and carries a number is taken once, and not after a later one: it may have come on both
        links, and links overtake each other."""
        if isinstance(item.n, UnsetType):
            return True
        numbers = self.numbers()
        if item.n <= numbers.get(item.type, -1):
            return False
        numbers[item.type] = item.n
        return True

    def numbers(self) -> dict[str, int]:
        """The last number by type, of this client's messages that may be lost. Types are the clients' to invent, so
        there are at most MAX_NUMBERED."""
        if self._numbers is None:
            self._numbers = {}
        if len(self._numbers) > MAX_NUMBERED:
            del self._numbers[next(iter(self._numbers))]
        return self._numbers

    @property
    def links(self) -> tuple[Link, ...]:
        return tuple(link for link in (self._link, self._side_link) if link is not None)


class Problem:
    """Why a message was not handled: the content of `session:error`, or of a failed ask."""

    __slots__ = ("code", "reason")

    def __init__(self, code: str, reason: str) -> None:
        self.code, self.reason = code, reason

    @property
    def content(self) -> dict[str, Any]:
        return {"code": self.code, "reason": self.reason}


class Outbox:
    """What one room sends: to whom, on which of their links, and when it is written."""

    __slots__ = (
        "_deferred", "_dirty", "_flushed_at", "_flushing", "_services", "flush_after", "numbers", "seats", "streams",
        "total",
    )  # fmt: skip

    def __init__(self, services: Services, seats: Mapping[int, Seat], flush_after: float) -> None:
        """`seats`: the room's own, by id; `flush_after`: seconds between two flushes, 0 = at the end of each tick."""
        self.seats = seats
        self.streams: list[Stream[Seat, Any]] = []
        self._services = services
        self.flush_after = flush_after
        self._dirty = False
        self._flushed_at = float("-inf")
        self._flushing = False
        self._deferred: list[Callable[[], None]] = []  # what a write brought about: a full buffer, a slow consumer
        self.total = 0  # counted messages broadcast so far
        self.numbers: dict[str, int] = {}  # by type, of the room's own messages that may be lost

    # --- who is sent what, on which link ------------------------------------------------------------------------------

    def count_from_here(self, client: Seat) -> None:
        """A new seat: what was sent before is none of its."""
        client._offset = -self.total

    def postpone(self, call: Callable[[], None]) -> bool:
        """Whether a flush is under way: then the call follows it. It must not find a room half flushed."""
        if self._flushing:
            self._deferred.append(call)
        return self._flushing

    def rewire(self, client: Seat) -> None:
        """The link's `write` is another function now."""
        if client._stream is not None and client._link is not None:
            client._stream.members[client] = client._link.write

    def congested(self, client: Seat, behind: bool) -> None:
        """A link's buffer filled (what may be lost is shed for it now) or drained."""
        if not self.postpone(lambda: self.congested(client, behind)):
            client._behind = behind
            self.place(client)

    def attach(self, client: Seat, link: SideLink) -> None:
        """A second link for what may be lost. It is used as far as its `route` says."""
        if not self.postpone(lambda: self.attach(client, link)) and client._link is not None:
            client._side_link = link
            self.place(client)

    def detach(self, client: Seat, link: SideLink) -> None:
        if not self.postpone(lambda: self.detach(client, link)) and client._side_link is link:
            client._side_link = None
            self.place(client)

    def rerouted(self, client: Seat) -> None:
        """The `route` of a side link changed."""
        if not self.postpone(lambda: self.rerouted(client)):
            self.place(client)

    def place(self, client: Seat) -> None:
        """Into the streams of those who are sent the same, by what this client's links can take now."""
        link, side = client._link, client._side_link
        if link is not None and client._stream is not None:
            self._write_out((client._stream, client._side))
        route = Route.RELIABLE if side is None else side.route
        unreliable = not client._behind and route is not Route.UNRELIABLE
        client._stream = self._move(client, client._stream, link, True, unreliable, client._behind)
        client._side = self._move(client, client._side, None if route is Route.RELIABLE else side, False, True, False)
        self._catch_up()

    def _move(
        self, client: Seat, old: Stream[Seat, Any] | None, link: Link | None, reliable: bool, unreliable: bool,
        behind: bool,
    ) -> Stream[Seat, Any] | None:  # fmt: skip
        """From one stream to another; what is pending is written first, so order is kept."""
        if old is not None:
            old.remove(client)
            if not old.members:
                self.streams.remove(old)
        if link is None:
            return None
        for stream in self.streams:
            takes = (stream.reliable, stream.unreliable, stream.behind)
            if stream.pack is link.pack and takes == (reliable, unreliable, behind):
                break
        else:
            stream = Stream(link.pack, link.dialect, reliable, unreliable, behind)
            self.streams.append(stream)
        stream.add(client, link.write)
        return stream

    # --- out ----------------------------------------------------------------------------------------------------------

    def seq(self, client: Seat) -> int:
        """Reliable messages addressed to this seat so far, dropped or not: all broadcasts, less those it was left out
        of, plus those to it alone."""
        return self.total + client._offset

    def broadcast(self, item: AnyMessage, exclude: Seat | None = None) -> None:
        """To all but `exclude`, each on the links that take such a message now."""
        if item.reliable is not False:
            self.total += 1
            if exclude is not None:
                exclude._offset -= 1
            for stream in self.streams:
                if stream.reliable:
                    stream.push(item, exclude)
        else:
            self._number(item)
            for stream in self.streams:
                if stream.unreliable:
                    stream.push(item, exclude)
                elif stream.behind:
                    self._services.totals.refused["shed"] += len(stream.members)
        if not self._dirty:
            self._flush_later()

    def multicast(self, item: AnyMessage, group: Iterable[Seat], exclude: Seat | None = None) -> None:
        """To those of a group who have a seat here, packed once for each stream."""
        frames: Frames = {}
        for client in group:
            if client is not exclude and self.seats.get(client.id) is client:
                self.send(client, item, frames)

    def send(self, client: Seat, item: AnyMessage | str | bytes, frames: Frames | None = None) -> None:
        """To one; to nobody if it is away. `frames`: as it was packed for others."""
        if isinstance(item, str | bytes) or item.reliable is not False:
            client._offset += 1
            self._insert(client._stream, client, item, frames)
            return
        self._number(item)
        for stream in (client._stream, client._side):
            if stream is not None and stream.unreliable:
                self._insert(stream, client, item, frames)
        if client._behind:
            self._services.totals.refused["shed"] += 1

    def control(self, client: Seat, item: AnyMessage) -> None:
        """To one client, outside of what it counts."""
        self._insert(client._stream, client, item)

    def announce(self, dialect: Dialect, item: AnyMessage, exclude: Seat | None = None) -> None:
        """To all who speak a dialect, outside of what they count."""
        for stream in self.streams:
            if stream.dialect is dialect and stream.reliable:
                stream.push(item, exclude)
                self._flush_later()

    def speaks(self, dialect: Dialect) -> bool:
        """Whether anybody here does."""
        return any(stream.dialect is dialect for stream in self.streams)

    def answer(self, client: Seat, type: str | None, ask: int | None, value: Any, problem: Problem | None) -> None:
        """The reply to an ask, or `session:error` about a message of `type`; other dialects know neither."""
        if client._link is None or client._link.dialect is not V1_DIALECT:
            return
        if ask is not None:
            told = {"ask": ask, "content": value} if problem is None else {"ask": ask, "error": problem.content}
            self.control(client, message("session:reply", told))
        elif problem is not None:
            self.control(client, message("session:error", problem.content | ({"type": type} if type else {})))

    def _insert(
        self, stream: Stream[Seat, Any] | None, client: Seat, item: AnyMessage | str | bytes,
        frames: Frames | None = None,
    ) -> None:  # fmt: skip
        if stream is None:
            return
        if frames is None:
            stream.insert(client, item)
        else:
            if stream.pack not in frames:
                frames[stream.pack] = stream.pack(item)
            stream.insert_frame(client, frames[stream.pack])
        self._flush_later()

    def _number(self, item: AnyMessage) -> None:
        """What may be lost is numbered where somebody has two links."""
        if item.n is UNSET and any(not stream.reliable for stream in self.streams):
            sender = self.seats.get(item.id)
            numbers = self.numbers if sender is None else sender.numbers()
            item.n = numbers[item.type] = numbers.get(item.type, 0) + 1

    def _flush_later(self) -> None:
        if self._dirty:
            return
        self._dirty = True
        due = self._flushed_at + self.flush_after
        if self.flush_after and due > self._services.now:
            self._services.timers.at(due, self.flush)
        else:
            self._services.flush_later(self)

    def flush(self, now: float) -> None:
        """What this tick brought, one write per client."""
        self._dirty = False
        self._flushed_at = now
        self._write_out(self.streams)
        self._catch_up()

    def _write_out(self, streams: Iterable[Stream[Seat, Any] | None]) -> None:
        """What a write brings about waits: it must not find a room half flushed, or a client half moved."""
        totals = self._services.totals
        self._flushing = True
        try:
            for stream in streams:
                if stream is not None:
                    count, size = stream.flush()
                    totals.messages_out += count
                    totals.bytes_out += size
        finally:
            self._flushing = False

    def _catch_up(self) -> None:
        while self._deferred and not self._flushing:
            self._deferred.pop(0)()
