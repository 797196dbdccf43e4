"""A client for the doctor: it notes what comes on which wire, and when. It does not reconnect, and hides nothing."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import Any, Final

from .client.links import DataChannelLink, WebSocketLink
from .client.state import Clock
from .client.wire import Frame, Pong, SessionClosed, Welcome, read_control, read_frame, write_frame
from .protocol import Answer, Close

WITHIN: Final = 10.0  # seconds for each step
UDP_WITHIN: Final = 3.0  # seconds for a data channel to open, as in the clients
CANDIDATE: Final = "a=candidate:"
MAX_CANDIDATES: Final = 16  # that are looked at


class Seat:
    """A client that has joined. Use `seated`."""

    def __init__(self, link: WebSocketLink, welcome: Welcome) -> None:
        self.welcome = welcome
        self.closed: SessionClosed | None = None
        self.ended = asyncio.Event()
        self.clock = Clock(time.monotonic)
        self.arrived: dict[int, float] = {}  # number of a datagram → when it came
        self.came = asyncio.Event()  # another one
        self.wanted = range(0)  # numbers; others are not ours
        self._link = link
        self._pong: asyncio.Future[Pong] = asyncio.get_running_loop().create_future()

    async def read(self) -> None:
        try:
            while True:
                found = read_frame(await self._link.receive())
                control = None if found is None else read_control(found)
                if isinstance(control, Pong) and not self._pong.done():
                    self._pong.set_result(control)
        except SessionClosed as error:
            self.closed = error
            self.ended.set()
            if not self._pong.done():
                self._pong.cancel()

    async def say(self, type: str, content: Any = None) -> None:
        await self._link.send(write_frame(type, content))

    async def ping(self) -> float:
        """Seconds of a round trip. Raises TimeoutError, SessionClosed."""
        self._pong = asyncio.get_running_loop().create_future()
        asked = time.monotonic()
        await self.say("session:ping", {"t": asked})
        async with asyncio.timeout(WITHIN):
            await asyncio.wait([self._pong])
        if self._pong.cancelled():
            raise self.closed or SessionClosed(Close.ABNORMAL, "the connection was lost")
        rtt = time.monotonic() - asked
        self.clock.add(self._pong.result().time, rtt)
        return rtt

    @asynccontextmanager
    async def side(self, candidate: str) -> AsyncIterator[DataChannelLink]:
        """A data channel by one line of the offer alone. Raises TimeoutError, OSError, ValueError, SessionClosed."""
        offer = with_only(self.welcome.offer or "", candidate)
        side = DataChannelLink(offer, time.monotonic, self._take)
        try:
            async with asyncio.timeout(UDP_WITHIN):
                await side.bind()
                await self.say("session:answer", Answer(side.answer))
                await side.opened.wait()
            yield side
        finally:
            side.close()

    def _take(self, frame: Frame) -> None:
        found = read_frame(frame)
        if found is not None and found.type == "check" and isinstance(found.n, int) and found.n in self.wanted:
            self.arrived.setdefault(found.n, time.monotonic())
            self.came.set()


@asynccontextmanager
async def seated(url: str, tls: ssl.SSLContext | None, origin: str | None) -> AsyncIterator[Seat]:
    """A client that has joined. Raises SessionClosed, TimeoutError."""
    async with asyncio.timeout(WITHIN):
        link = await WebSocketLink.open(url, tls, origin)
        try:
            await link.send(write_frame("session:join", {"name": "check"}))
            welcome = None
            while welcome is None:
                found = read_frame(await link.receive())
                control = None if found is None else read_control(found)
                welcome = control if isinstance(control, Welcome) else None
        except BaseException:
            await link.abort()
            raise
    seat = Seat(link, welcome)
    reader = asyncio.create_task(seat.read())
    try:
        yield seat
        with suppress(SessionClosed, TimeoutError):
            await seat.say("session:leave")
            async with asyncio.timeout(1.0):
                await seat.ended.wait()
    finally:
        await link.abort()
        await asyncio.wait([reader])


def with_only(offer: str, candidate: str) -> str:
    """SDP in which one address is announced, and no other."""
    lines = offer.splitlines()
    return "\r\n".join([line for line in lines if not line.startswith(CANDIDATE) or line == candidate] + [""])


def candidates_of(offer: str) -> list[tuple[str, str, int]]:
    """Line, IP address and port of each (RFC 8839 §5.1)."""
    found = []
    for line in offer.splitlines():
        fields = line.split(" ")
        with suppress(ValueError, IndexError):
            if line.startswith(CANDIDATE):
                found.append((line, str(ip_address(fields[4])), int(fields[5])))
    return found[:MAX_CANDIDATES]


def has_route(host: str, port: int) -> bool:
    """Whether this computer could send there; nothing is sent."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.connect((host, port))
    except OSError:
        return False
    return True
