"""What data channels say on SCTP streams: how one is opened, and which kind of message each is. Bytes and values only.

RFC 8832 (DCEP), RFC 8831 §6.6 and §8 (payload protocol identifiers).
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

MAX_LABEL: Final = 1024  # bytes of a channel's label and protocol together

DCEP, TEXT, BINARY, EMPTY_TEXT, EMPTY_BINARY = 50, 51, 53, 56, 57  # payload protocol identifiers (RFC 8831 §8)
DATA_CHANNEL_ACK, DATA_CHANNEL_OPEN = 2, 3  # RFC 8832 §8.2.1
OPEN: Final = Struct("!BBHIHH")  # type, channel type, priority, reliability, label length, protocol length (§5.1)
UNORDERED: Final = 0x80  # of a channel type
RELIABLE, REXMIT, TIMED = 0, 1, 2
PRIORITY: Final = 256  # "normal" (RFC 8831 §6.4); browsers ignore it


@dataclass(slots=True)
class Channel:
    """RFC 8832 §5.1."""

    label: str
    protocol: str = ""
    ordered: bool = False
    max_retransmits: int | None = 0  # None = as often as it takes
    open: bool = False

    def encode(self) -> bytes:
        """DATA_CHANNEL_OPEN."""
        label, protocol = self.label.encode(), self.protocol.encode()
        kind = (0 if self.ordered else UNORDERED) | (RELIABLE if self.max_retransmits is None else REXMIT)
        head = OPEN.pack(DATA_CHANNEL_OPEN, kind, PRIORITY, self.max_retransmits or 0, len(label), len(protocol))
        return head + label + protocol

    @classmethod
    def decode(cls, payload: bytes) -> Channel:
        """Reads a DATA_CHANNEL_OPEN; raises ValueError."""
        if len(payload) < OPEN.size:
            raise ValueError(f"DATA_CHANNEL_OPEN of {len(payload)} bytes, expected at least {OPEN.size}")
        _, kind, _, reliability, label_size, protocol_size = OPEN.unpack_from(payload)
        if label_size + protocol_size > MAX_LABEL:
            raise ValueError(f"label and protocol of {label_size + protocol_size} bytes, expected at most {MAX_LABEL}")
        end = OPEN.size + label_size
        if end + protocol_size != len(payload):
            raise ValueError(f"DATA_CHANNEL_OPEN of {len(payload)} bytes, expected {end + protocol_size}")
        if kind & ~UNORDERED > TIMED:
            raise ValueError(f"channel type {kind:02x}, expected 00 to 02 or 80 to 82")
        # A lifetime in ms is taken as "send it once": what that channel carries is as short-lived.
        retransmits = {RELIABLE: None, REXMIT: reliability}.get(kind & ~UNORDERED, 0)
        label, protocol = payload[OPEN.size : end].decode(), payload[end:].decode()
        return cls(label, protocol, not kind & UNORDERED, retransmits, open=True)


def encode(data: str | bytes) -> tuple[int, bytes]:
    """Its payload protocol identifier and payload."""
    return encode_bytes(data.encode(), True) if isinstance(data, str) else encode_bytes(data, False)


def encode_bytes(data: bytes, is_text: bool) -> tuple[int, bytes]:
    """The same of text as its bytes. An empty message travels as one zero byte (RFC 8831 §6.6)."""
    if data:
        return TEXT if is_text else BINARY, data
    return EMPTY_TEXT if is_text else EMPTY_BINARY, b"\0"


def decode(ppid: int, payload: bytes) -> str | bytes:
    """Raises ValueError."""
    if ppid == TEXT:
        return payload.decode()
    if ppid == BINARY:
        return payload
    if ppid == EMPTY_TEXT:
        return ""
    if ppid == EMPTY_BINARY:
        return b""
    raise ValueError(f"payload protocol identifier {ppid}, expected 50, 51, 53, 56 or 57")
