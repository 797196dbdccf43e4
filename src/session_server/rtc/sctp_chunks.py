"""SCTP on the wire: packets, chunks and parameters ↔ bytes. No state.

RFC 9260 §3 (sections named § alone), RFC 3758 §3 (FORWARD TSN), RFC 6525 §3 and §4 (stream reset).
"""

from __future__ import annotations

from struct import Struct, pack, unpack_from
from typing import Final

import google_crc32c
from google_crc32c import extend

assert google_crc32c.implementation == "c", "google-crc32c without its C part is a hundred times slower"

PORT: Final = 5000
MAX_PACKET: Final = 1160  # bytes: with DTLS 1,197 in a datagram
MAX_CONTENT: Final = MAX_PACKET - 12  # bytes of all chunks in a packet
MAX_FRAGMENT: Final = MAX_CONTENT - 16  # bytes of payload in one DATA chunk

DATA, INIT, INIT_ACK, SACK, HEARTBEAT, HEARTBEAT_ACK, ABORT, SHUTDOWN, SHUTDOWN_ACK, ERROR = range(10)
COOKIE_ECHO, COOKIE_ACK, SHUTDOWN_COMPLETE, RE_CONFIG, FORWARD_TSN = 10, 11, 14, 130, 192

LAST, FIRST, UNORDERED, AT_ONCE = 1, 2, 4, 8  # flags of DATA (§3.3.1); the last asks for a SACK without delay
NO_TAG: Final = 1  # flag of ABORT and SHUTDOWN COMPLETE: the tag is the receiver's own (§8.5.1)
STATE_COOKIE, SUPPORTED, PARTIAL = 7, 0x8008, 0xC000  # parameters (§3.3.3, RFC 5061 §4.2.7, RFC 3758 §3.1)
OUTGOING_RESET, INCOMING_RESET, RESET_ANSWER = 13, 14, 16  # parameters of RE-CONFIG (RFC 6525 §4)

START: Final = Struct("!HHL")  # of a packet: ports, verification tag; 4 bytes of checksum follow (§3.1)
CHUNK: Final = Struct("!BBH")  # type, flags, length (§3.2)
TSN: Final = Struct("!L").pack
DATA_TAIL: Final = Struct("!HHL")  # stream, sequence number, payload protocol identifier
DATA_HEAD: Final = Struct("!LHHL")  # the same, with the TSN before them
INIT_BODY: Final = Struct("!LLHHL")  # tag, window, outbound and inbound streams, first TSN (§3.3.2)
SACK_HEAD: Final = Struct("!LLHH")  # cumulative TSN, window, number of gap blocks and of duplicates (§3.3.4)
SACK_ALONE: Final = CHUNK.pack(SACK, 0, 16)  # how one without gaps begins
ALONE: Final = 28  # bytes of a packet with it and nothing else


class Header:
    """The first 12 bytes of all packets with one verification tag."""

    __slots__ = ("_checksum", "_start")

    def __init__(self, tag: int) -> None:
        self._start = START.pack(PORT, PORT, tag)
        self._checksum: int = google_crc32c.value(self._start + bytes(4))

    def packet(self, content: bytes) -> bytes:
        """The checksum is over the packet with zeros in its place, and little endian (§6.8, appendix A)."""
        checksum: int = extend(self._checksum, content)
        return self._start + checksum.to_bytes(4, "little") + content

    def fits(self, packet: bytes) -> bool:
        """Whether this packet begins so, and has the right checksum."""
        if not packet.startswith(self._start):
            return False
        checksum: int = extend(self._checksum, packet[12:])
        return checksum == int.from_bytes(packet[8:12], "little")


class Packets:
    """What is to leave, in as few packets as hold it."""

    __slots__ = ("done", "header", "parts", "room")

    def __init__(self, header: Header) -> None:
        self.header = header
        self.done: list[bytes] = []
        self.parts: list[bytes] = []  # of the packet that is being filled
        self.room = MAX_CONTENT  # bytes left in it

    def add(self, chunks: bytes) -> None:
        """One chunk, or several that leave together."""
        if len(chunks) > self.room:
            self.close()
        self.parts.append(chunks)
        self.room -= len(chunks)

    def close(self) -> None:
        """What comes next is for another packet."""
        if self.parts:
            self.done.append(self.header.packet(b"".join(self.parts)))
            self.parts, self.room = [], MAX_CONTENT

    def take(self) -> list[bytes]:
        self.close()
        done, self.done = self.done, []
        return done


def tag_of(packet: bytes) -> int:
    """The verification tag; raises ValueError if the packet is not for us, or broken."""
    if len(packet) < 16:
        raise ValueError(f"packet of {len(packet)} bytes, expected at least 16")
    tag: int = START.unpack_from(packet)[2]
    if not Header(tag).fits(packet):
        raise ValueError("packet with a wrong port or checksum")
    return tag


def chunk(type: int, body: bytes = b"", flags: int = 0) -> bytes:
    return CHUNK.pack(type, flags, 4 + len(body)) + body + bytes(-len(body) % 4)


def parameter(type: int, body: bytes) -> bytes:
    return pack("!HH", type, 4 + len(body)) + body + bytes(-len(body) % 4)


def parameters(data: bytes, at: int) -> dict[int, bytes]:
    """By type; of several of one type the first. Raises ValueError."""
    found: dict[int, bytes] = {}
    while at + 4 <= len(data):
        type, size = unpack_from("!HH", data, at)
        if size < 4 or at + size > len(data):
            raise ValueError(f"parameter of {size} bytes, expected 4 to {len(data) - at}")
        found.setdefault(type, data[at + 4 : at + size])
        at += size + -size % 4
    return found


def sack(cumulative: int, window: int, gaps: list[list[int]]) -> bytes:
    """`gaps`: first and last TSN of each block that came beyond a gap."""
    if not gaps:
        return SACK_ALONE + SACK_HEAD.pack(cumulative & 0xFFFFFFFF, window, 0, 0)
    blocks = b"".join(pack("!HH", first - cumulative, last - cumulative) for first, last in gaps)
    return chunk(SACK, SACK_HEAD.pack(cumulative & 0xFFFFFFFF, window, len(gaps), 0) + blocks)


def is_sack_alone(packet: bytes) -> bool:
    """A packet with a SACK without gaps and nothing else, as most are that a peer sends which is sent much."""
    return len(packet) == ALONE and packet.startswith(SACK_ALONE, 12)


def unwrap(wire: int, near: int) -> int:
    """The integer nearest to `near` whose last 32 bits are `wire`."""
    return near + ((wire - near + 0x80000000) & 0xFFFFFFFF) - 0x80000000
