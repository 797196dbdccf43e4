"""The WebSocket protocol as values: request heads and frames, bytes in, bytes out. No sockets, no rooms.

Heads and frames of the usual form are read by a few lines of our own. Whatever is unusual goes to `websockets`, which
knows all of RFC 6455, and says what is wrong with it (docs/decisions/0003).
"""

from __future__ import annotations

import re
from base64 import b64encode
from codecs import getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1
from http import HTTPStatus
from typing import Final

from websockets.exceptions import InvalidHandshake
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import SERVER, Protocol, State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from .protocol import SUBPROTOCOL, Close, ProtocolError

TEXT, BINARY, CLOSE, PING, PONG = 0x81, 0x82, 0x88, 0x89, 0x8A  # first byte of a whole frame: FIN and opcode (§5.2)
HEADERS: Final = {first: [bytes((first, size)) for size in range(126)] for first in (TEXT, BINARY, PONG)}
SMALLEST_FRAGMENT: Final = 16  # bytes on average: a message in smaller ones, or in 1,024, is refused

# The form that browsers and libraries write: no folded, repeated or odd header, nothing but ASCII.
USUAL: Final = re.compile(rb"GET (/[!-~]*) HTTP/1\.1\r\n((?:[A-Za-z0-9-]+:[ -~]*\r\n){4,64})\r\n")
KEY: Final = re.compile(r"[A-Za-z0-9+/]{22}==")
GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # §1.3
ACCEPTED: Final = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: %s\r\n%s\r\n"
)


@dataclass(slots=True)
class Opening:
    """What a request head asks, and the answer: of status 101 if nothing outside the protocol speaks against it."""

    status: int
    answer: bytes
    target: str = ""
    host: str = ""
    origin: str | None = None
    forwarded: Sequence[str] = ()  # values of X-Forwarded-For
    subprotocol: bool = False  # session.v1 was offered, and is accepted


def read_usual(head: bytes) -> Opening | None:
    """A head of the usual form; None sends it to `read_any`."""
    match = USUAL.fullmatch(head)
    if match is None:
        return None
    headers: dict[str, str] = {}
    for line in match[2][:-2].decode("ascii").split("\r\n"):
        name, _, value = line.partition(":")
        name = name.lower()
        if name in headers:
            return None
        headers[name] = value.strip()
    key = headers.get("sec-websocket-key", "")
    if (
        headers.get("upgrade", "").lower() != "websocket"
        or "upgrade" not in tokens(headers.get("connection", "").lower())
        or headers.get("sec-websocket-version") != "13"
        or not KEY.fullmatch(key)
        or "host" not in headers
        or "content-length" in headers
        or "transfer-encoding" in headers
    ):
        return None
    ours = SUBPROTOCOL in tokens(headers.get("sec-websocket-protocol", ""))
    accept = b64encode(sha1(key.encode() + GUID).digest()).decode()
    answer = ACCEPTED % (accept, f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n" if ours else "")
    forwarded = (headers["x-forwarded-for"],) if "x-forwarded-for" in headers else ()
    return Opening(101, answer.encode(), match[1].decode(), headers["host"], headers.get("origin"), forwarded, ours)


def tokens(value: str) -> list[str]:
    return [token.strip() for token in value.split(",")]


def read_any(head: bytes) -> Opening:
    """Any head, by the library; its answer says what is wrong."""
    handshake = ServerProtocol(select_subprotocol=choose_subprotocol)
    handshake.receive_data(head)
    events = handshake.events_received()
    if not events or not isinstance(events[0], Request):
        return refusal(400, f"bad request: {handshake.handshake_exc or handshake.parser_exc}")
    request = events[0]
    headers = request.headers
    if len(headers.get_all("Host")) != 1 or len(headers.get_all("Origin")) > 1:
        return refusal(400, "expected one Host header, and at most one Origin")  # RFC 9112 §3.2
    if headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers:
        return refusal(400, "expected no body")
    if headers.get("Sec-WebSocket-Version", "13") != "13":
        return refusal(426, "expected version 13 of the WebSocket protocol")  # §4.4
    response = handshake.accept(request)
    if response.status_code != 101:
        reason = handshake.handshake_exc
        status = 426 if response.status_code == 426 else 400
        return refusal(status, str(reason) if isinstance(reason, InvalidHandshake) else "bad request")
    handshake.send_response(response)
    return Opening(
        101,
        b"".join(handshake.data_to_send()),
        request.path,
        headers["Host"],
        headers.get("Origin"),
        headers.get_all("X-Forwarded-For"),
        handshake.subprotocol is not None,
    )


def choose_subprotocol(handshake: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Ours if it is offered; a client that offers none, or others, speaks classic."""
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None


def refusal(status: int, line: str) -> Opening:
    """An answer that ends the connection."""
    body = f"{line}\n".encode()
    more = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" if status == 426 else ""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n"
    )
    return Opening(status, head.encode() + body)


def frame(first: int, payload: bytes) -> bytes:
    """An unmasked frame, as a server sends it: first byte, then the length in 1, 3 or 9 bytes (RFC 6455 §5.2)."""
    size = len(payload)
    if size < 126:
        return HEADERS[first][size] + payload
    if size < 65536:
        return b"%c\x7e%b%b" % (first, size.to_bytes(2, "big"), payload)
    return b"%c\x7f%b%b" % (first, size.to_bytes(8, "big"), payload)


class RareFrames:
    """What the fast lane does not take, on the library's protocol object: fragments, pings, closes, faults."""

    __slots__ = ("_count", "_decoder", "_first", "_most", "_parts", "left", "protocol")

    def __init__(self, limit: int) -> None:
        self.protocol = Protocol(SERVER, state=State.OPEN, max_size=limit)
        self.left = 0  # bytes until the next frame begins
        self._most = max(1024, limit // SMALLEST_FRAGMENT)
        self._first = 0  # TEXT or BINARY while a fragmented message is open
        self._parts: list[bytes] = []
        self._count = 0
        self._decoder = getincrementaldecoder("utf-8")()

    @property
    def done(self) -> bool:
        """Nothing is open: the connection can go without this object."""
        return self._first == 0 and self.open

    @property
    def open(self) -> bool:
        """No close frame was sent or received."""
        return self.protocol.state is State.OPEN

    def feed(self, chunk: bytes) -> list[tuple[int, bytes]]:
        """Bytes of one frame, all or a part; returns the messages that it completed."""
        self.left -= len(chunk)
        self.protocol.receive_data(chunk)
        found: list[tuple[int, bytes]] = []
        for event in self.protocol.events_received():
            if isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._gather(event, found)
        return found

    def _gather(self, event: Frame, found: list[tuple[int, bytes]]) -> None:
        """Joins fragments (RFC 6455 §5.4). Text is checked as it comes: bad UTF-8 fails at its first bad fragment."""
        if event.opcode is not Opcode.CONT:
            self._first = TEXT if event.opcode is Opcode.TEXT else BINARY
            self._parts, self._count = [], 0
            self._decoder.reset()
        self._count += 1
        payload = bytes(event.data)
        if payload:
            self._parts.append(payload)
        if self._count > self._most:
            self.protocol.fail(CloseCode.POLICY_VIOLATION, f"message in more than {self._most} fragments")
        elif self._first == TEXT and not self._is_text(payload, event.fin):
            self.protocol.fail(CloseCode.INVALID_DATA, "text is not UTF-8")
        elif event.fin:
            found.append((self._first, b"".join(self._parts)))
            self._first, self._parts = 0, []

    def _is_text(self, payload: bytes, final: bool) -> bool:
        try:
            self._decoder.decode(payload, final)
        except UnicodeDecodeError:
            return False
        return True


def frame_size(data: bytes) -> int | None:
    """Bytes of the frame that begins here, header included; None if the header is not complete (§5.2).

    Raises ProtocolError on a length that is not written in its shortest form, which the library lets pass.
    """
    if len(data) < 2:
        return None
    mask = 4 if data[1] & 0x80 else 0
    size = data[1] & 0x7F
    if size < 126:
        return 2 + mask + size
    width = 2 if size == 126 else 8
    if len(data) < 2 + width:
        return None
    size = int.from_bytes(data[2 : 2 + width], "big")
    if size < 126 or (width == 8 and size < 65536):
        raise ProtocolError(Close.PROTOCOL, f"length of {size} in {width} bytes, expected the shortest form")
    return 2 + width + mask + size
