"""The wires to a server."""

from __future__ import annotations

from ssl import SSLCertVerificationError, SSLContext
from typing import Any, Literal

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from ..protocol import SUBPROTOCOL, Close
from .wire import Frame, SessionClosed

MAX_FRAME = 16 * 1024 * 1024  # bytes; a welcome names up to 200 people with 4 KiB of data each
CLOSE_TIMEOUT = 2.0  # seconds for the server to answer a close frame
CERTIFICATE = 1015  # RFC 6455 §7.4.1: never on the wire


class WebSocketLink:
    """One wire to the server. A data channel will be another class with the same names. All raise SessionClosed."""

    kind: Literal["websocket"] = "websocket"

    def __init__(self, connection: ClientConnection) -> None:
        self.rtt: float | None = None  # seconds
        self._connection = connection

    @classmethod
    async def open(cls, url: str, ssl: SSLContext | None) -> WebSocketLink:
        options: dict[str, Any] = {"ssl": ssl} if ssl is not None else {}
        try:
            connection = await connect(
                url,
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
