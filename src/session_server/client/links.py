"""The wires to a server: a WebSocket, and beside it a WebRTC data channel for what may be lost."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from math import inf
from secrets import token_bytes
from ssl import SSLCertVerificationError, SSLContext
from typing import Any, Final, Literal

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Origin, Subprotocol

from ..protocol import SUBPROTOCOL, Close
from ..rtc import datachannel, sdp
from ..rtc.dtls import Certificate
from ..rtc.stun import Address
from ..trust import PROBE_EVERY, Trust
from .wire import Frame, SessionClosed, write_frame

MAX_FRAME = 16 * 1024 * 1024  # bytes; a welcome names up to 200 people with 4 KiB of data each
CLOSE_TIMEOUT = 2.0  # seconds for the server to answer a close frame
CERTIFICATE = 1015  # RFC 6455 §7.4.1: never on the wire
MAX_DATAGRAM_MESSAGE = 256 * 1024  # bytes of one message by data channel, as browsers take them
ANY_ADDRESS: Final = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
PROBE: Final = write_frame("session:probe", reliable=False)


class WebSocketLink:
    """The reliable wire. `open`, `send` and `receive` raise SessionClosed."""

    kind: Literal["websocket"] = "websocket"

    def __init__(self, connection: ClientConnection) -> None:
        self.rtt: float | None = None  # seconds
        self._connection = connection

    @classmethod
    async def open(cls, url: str, ssl: SSLContext | None, origin: str | None = None) -> WebSocketLink:
        """`origin`: what a page of that site would say, `https://host`; None = we are no page."""
        options: dict[str, Any] = {"ssl": ssl} if ssl is not None else {}
        try:
            connection = await connect(
                url,
                origin=None if origin is None else Origin(origin),
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                compression=None,  # the server has none
                open_timeout=None,  # the caller's
                ping_interval=None,  # ours carry counts and the clock
                close_timeout=CLOSE_TIMEOUT,
                max_size=MAX_FRAME,
                **options,
            )
        except InvalidStatus as error:
            text = (error.response.body or b"").decode(errors="replace")
            why = " ".join(text.split())[:200] or error.response.reason_phrase
            raise SessionClosed(error.response.status_code, f"{url} refuses: {why}") from None
        except SSLCertVerificationError as error:
            raise SessionClosed(
                CERTIFICATE, f"the certificate of {url} is not trusted: {error.verify_message}"
            ) from None
        except (OSError, EOFError, ValueError, WebSocketException) as error:  # ValueError: of a bad redirect
            raise SessionClosed(Close.ABNORMAL, f"{url} cannot be reached: {error}") from None
        link = cls(connection)
        if connection.subprotocol != SUBPROTOCOL:
            await link.abort()
            raise SessionClosed(Close.PROTOCOL, f"{url} is a WebSocket, but does not speak {SUBPROTOCOL}")
        return link

    async def send(self, frame: Frame) -> None:
        """Waits while the wire is congested."""
        try:
            await self._connection.send(frame)
        except ConnectionClosed as error:
            raise closed_by(error) from None

    async def receive(self) -> Frame:
        try:
            return await self._connection.recv()
        except ConnectionClosed as error:
            raise closed_by(error) from None

    async def abort(self) -> None:
        """Ends it without a close frame, which would give up the seat."""
        self._connection.transport.abort()
        await self._connection.wait_closed()


def closed_by(error: ConnectionClosed) -> SessionClosed:
    close = error.rcvd or error.sent  # ours, where we found something wrong
    if close is None:
        return SessionClosed(Close.ABNORMAL, "the connection was lost")
    return SessionClosed(close.code, close.reason)


class DataChannelLink(asyncio.DatagramProtocol):
    """The wire for what may be lost, signalled by the WebSocket that it belongs to. Nothing in here raises once it is
    bound: what goes wrong ends it, or shows in its `trust`."""

    kind: Literal["datachannel"] = "datachannel"

    def __init__(self, offer: str, now: Callable[[], float], arrived: Callable[[Frame], None]) -> None:
        """`offer` is the server's, SDP; raises ValueError if it is not usable. `arrived` is called for each message."""
        self.trust = Trust()
        self.opened = asyncio.Event()
        self.ended = asyncio.Event()
        options = datachannel.Options(Certificate.new(), max_message=MAX_DATAGRAM_MESSAGE)
        self._peer, self.answer = datachannel.Peer.join(options, offer, token_bytes, now())
        self._families = {family_of(candidate.host) for candidate in sdp.parse_offer(offer).candidates}
        self._sockets: dict[socket.AddressFamily, asyncio.DatagramTransport] = {}
        self._now = now
        self._arrived = arrived
        self._is_congested = False
        self._turn_handle: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf  # on our clock

    async def bind(self) -> None:
        """A socket of its own for each kind of address that was offered. Raises OSError if there can be none."""
        loop = asyncio.get_running_loop()
        failures: list[OSError] = []
        for family in self._families:
            try:
                made = await loop.create_datagram_endpoint(lambda: self, local_addr=(ANY_ADDRESS[family], 0))
                self._sockets[family] = made[0]
            except OSError as error:  # a computer without IPv6, for instance
                failures.append(error)
        if not self._sockets:
            raise failures[0]
        self._turn()

    def send(self, frame: Frame) -> bool:
        """False if it is larger than the server takes, or too many wait already."""
        now = self._now()
        if not self._peer.send(frame, now):
            return False
        self.trust.sent(now)
        if self._turn_handle is None:  # what a tick sends leaves in as few datagrams as hold it
            self._turn_handle = asyncio.get_running_loop().call_soon(self._turn)
        return True

    async def watch(self) -> None:
        """Until it ends. A probe where nothing came or left for a while shows that it lives, before it is needed."""
        while not self.ended.is_set():
            now = self._now()
            self.trust.route(now)
            if self.trust.wants_probe(now):
                self.send(PROBE)
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_EVERY):
                    await self.ended.wait()

    def close(self) -> None:
        """Tells the server, if it hears us."""
        self.ended.set()
        self._peer.close(self._now())
        self._transmit()
        for handle in (self._turn_handle, self._timer):
            if handle is not None:
                handle.cancel()
        for transport in self._sockets.values():
            transport.close()

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if not self.ended.is_set():
            self._peer.receive(data, addr, self._now())
            self._turn()

    def pause_writing(self) -> None:
        """64 KiB wait for a socket: from here on datagrams are lost, as in any other queue on their way."""
        self._is_congested = True

    def resume_writing(self) -> None:
        self._is_congested = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()

    def _turn(self) -> None:
        """After anything has happened: what is to be sent, what came, when to look again."""
        self._turn_handle = None
        self._transmit()
        for event in self._peer.take_events():
            match event:
                case datachannel.Opened():
                    self.opened.set()
                case datachannel.Message():
                    self.trust.heard_at = self._now()
                    self._arrived(event.data)
                case datachannel.Closed():
                    self.ended.set()
        due = self._peer.next_deadline
        if due < self._timer_at and not self.ended.is_set():
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - self._now()), self._run)

    def _run(self) -> None:
        self._timer, self._timer_at = None, inf
        self._peer.run(self._now())
        self._turn()

    def _transmit(self) -> None:
        for data, address in self._peer.transmit(self._now()):
            transport = self._sockets.get(family_of(address[0]))
            if transport is not None and not transport.is_closing() and not self._is_congested:
                transport.sendto(data, address)


def family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
