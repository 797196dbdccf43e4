"""What an association sends, made ready once for every peer: DATA chunks to which nothing but TSNs is missing.

RFC 9260 §3.3.1 (DATA), §6.9 (fragments), §6.10 (bundling). A *blank* is a DATA chunk without its TSN, which belongs
behind the first four bytes. Blanks say themselves where they end, so those of several messages are simply joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from struct import Struct
from typing import Final

from .sctp_chunks import CHUNK, DATA, DATA_TAIL, FIRST, LAST, MAX_CONTENT, MAX_FRAGMENT, UNORDERED

WHOLE: Final = DATA << 8 | FIRST | LAST | UNORDERED  # type and flags of a message of one chunk that may be lost
BEFORE: Final = 4  # bytes of a chunk before its TSN

read_chunk = CHUNK.unpack_from
read_kind = Struct("!HH").unpack_from  # the same with type and flags as one number
read_tail = DATA_TAIL.unpack_from


def blanks(stream: int, ppid: int, payload: bytes, ordered: bool = False, number: int = 0) -> list[bytes]:
    """One for each fragment of a message."""
    found = []
    for at in range(0, len(payload), MAX_FRAGMENT):
        part = payload[at : at + MAX_FRAGMENT]
        flags = 0 if ordered else UNORDERED
        flags |= (FIRST if at == 0 else 0) | (LAST if at + MAX_FRAGMENT >= len(payload) else 0)
        head = CHUNK.pack(DATA, flags, 16 + len(part))
        found.append(head + DATA_TAIL.pack(stream, number, ppid) + part + bytes(-len(part) % 4))
    return found


class Message:
    """All that is the same for every peer that it is sent to, made once. An ordered one is for one peer alone."""

    __slots__ = ("blanks", "number", "ordered", "payload", "ppid", "retransmits", "size", "stream")
    count = 1

    def __init__(
        self, stream: int, ppid: int, payload: bytes, ordered: bool = False, retransmits: int | None = 0
    ) -> None:
        """`retransmits` None: as many as it takes."""
        self.stream = stream
        self.ppid = ppid
        self.payload = payload
        self.ordered = ordered
        self.retransmits = retransmits
        self.number = 0  # in its stream, if ordered; known when it leaves, so that none is missing of those shed before
        self.blanks = [] if ordered else self.fragments()
        self.size = len(payload) + -len(payload) % 4 + 16 * -(-len(payload) // MAX_FRAGMENT)  # bytes on the wire

    def fragments(self) -> list[bytes]:
        return blanks(self.stream, self.ppid, self.payload, self.ordered, self.number)


class Bundle:
    """Messages of one chunk each and one stream that are sent once, in one packet. They share its fate: should a peer
    take only some of them, it is as if it took none."""

    __slots__ = ("_join", "_parts", "count", "size", "stream")
    retransmits = 0
    blanks: Sequence[bytes] = ()

    def __init__(self, joined: bytes, sizes: Sequence[int]) -> None:
        """Blanks of chunks of these sizes."""
        self.stream: int = read_tail(joined, BEFORE)[0]
        self.count = len(sizes)
        self.size = sum(sizes)  # bytes on the wire
        split, self._join = layout(tuple(sizes))
        self._parts: list[bytes | int] = [0] * (2 * self.count + 1)  # at odd places are the TSNs
        self._parts[::2] = split(joined)

    def content(self, tsn: int) -> bytes:
        """Its chunks, from this TSN on."""
        count, start = self.count, tsn & 0xFFFFFFFF
        parts, after = self._parts.copy(), start + count
        parts[1::2] = range(start, after) if after <= 1 << 32 else [one & 0xFFFFFFFF for one in range(start, after)]
        return self._join(*parts)


@lru_cache(256)
def layout(sizes: tuple[int, ...]) -> tuple[Callable[[bytes], tuple[bytes, ...]], Callable[..., bytes]]:
    """How blanks of chunks of these sizes are cut where TSNs belong, and how the parts are joined with TSNs between."""
    parts = [f"{size - 4}s" for size in (BEFORE + 4, *sizes[:-1], sizes[-1] - BEFORE)]
    return Struct("".join(parts)).unpack, Struct("!" + "L".join(parts)).pack


Once = Message | Bundle  # what may be lost


def bundle(joined: bytes) -> tuple[list[Once], list[Message]]:
    """Blanks of one stream: in as few packets as hold them what is sent once, in its order, and what is not."""
    found: list[Once] = []
    sizes: list[int] = []
    at, start, end, room = 0, 0, len(joined), MAX_CONTENT
    while at < end:
        kind, size = read_kind(joined, at)
        if kind != WHOLE:
            return sort(joined)
        size += -size % 4
        room -= size
        if room < 0:
            found.append(Bundle(joined[start:at], sizes))
            sizes, start, room = [], at, MAX_CONTENT - size
        sizes.append(size)
        at += size - 4
    if sizes:
        found.append(Bundle(joined[start:] if start else joined, sizes))
    return found, []


def sort(joined: bytes) -> tuple[list[Once], list[Message]]:
    """The same, if something is long or must not be lost."""
    once: list[Once] = []
    others: list[Message] = []
    short: list[bytes] = []

    def close() -> None:
        once.extend(bundle(b"".join(short))[0])
        short.clear()

    for message in messages(joined):
        if message.ordered:
            others.append(message)
        elif len(message.blanks) == 1:
            short.append(message.blanks[0])
        else:
            close()
            once.append(message)
    close()
    return once, others


def messages(joined: bytes) -> Iterator[Message]:
    """What blanks were made of. An ordered one is of those that are repeated until they have arrived."""
    at, parts = 0, []
    while at < len(joined):
        _, flags, size = read_chunk(joined, at)
        parts.append(joined[at + 12 : at + size - 4])
        if flags & LAST:
            stream, ppid = (
                int.from_bytes(joined[at + 4 : at + 6], "big"),
                int.from_bytes(joined[at + 8 : at + 12], "big"),
            )
            ordered = not flags & UNORDERED
            yield Message(stream, ppid, b"".join(parts), ordered, None if ordered else 0)
            parts = []
        at += size + -size % 4 - 4
