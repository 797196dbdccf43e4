"""What several clients of a room are sent at the end of a tick: framed once, joined once, one write per client.

No sockets: a transport hands in how a message becomes bytes (`pack`) and, per client, where they go (`write`).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from operator import itemgetter
from typing import Generic, TypeVar

Item = TypeVar("Item")  # what is sent: a message, or a raw room's str or bytes
Client = TypeVar("Client")  # anything hashable

Write = Callable[[bytes], object]
Edit = tuple[int, int, bytes]  # (start, stop, data): this client is sent `data` instead of frames[start:stop]

PLACE = itemgetter(0, 1)


class Stream(Generic[Client, Item]):
    """Clients of a room that are sent the same, up to a few exceptions.

    A sender is left out of its own message, one client is greeted, another joined in the middle of the tick: such
    exceptions are kept as edits beside the common frames, so all others share one `bytes`.
    """

    __slots__ = ("_edits", "_frames", "_left_out", "behind", "dialect", "members", "pack", "reliable", "unreliable")

    def __init__(
        self, pack: Callable[[Item], bytes | None], dialect: object, reliable: bool = True, unreliable: bool = True,
        behind: bool = False,
    ) -> None:  # fmt: skip
        """`reliable` and `unreliable`: which messages its clients are sent on this link; `behind`: their buffers are
        full, so what may be lost is shed."""
        self.pack = pack
        self.dialect = dialect
        self.reliable = reliable
        self.unreliable = unreliable
        self.behind = behind
        self.members: dict[Client, Write] = {}
        self._frames: list[bytes] = []
        self._left_out: list[Client | None] = []  # per frame: its sender, who is not sent it
        self._edits: dict[Client, list[Edit]] = {}  # the rarer exceptions

    def add(self, client: Client, write: Write) -> None:
        """From now on; what was pushed before in this tick is not for this client."""
        self.members[client] = write
        self._edits[client] = [(0, len(self._frames), b"")]

    def remove(self, client: Client) -> None:
        """What is pending for this client is forgotten."""
        self.members.pop(client, None)
        self._edits.pop(client, None)

    def push(self, item: Item, exclude: Client | None = None) -> None:
        """To all but `exclude`; nothing happens if the dialect has no form for it."""
        frame = self.pack(item)
        if frame is not None:
            self._frames.append(frame)
            self._left_out.append(exclude)

    def insert(self, client: Client, item: Item) -> None:
        """To this client alone, in its place among what all are sent."""
        self.insert_frame(client, self.pack(item))

    def insert_frame(self, client: Client, frame: bytes | None) -> None:
        """The same, of what is packed already."""
        if frame is not None:
            count = len(self._frames)
            self._edits.setdefault(client, []).append((count, count, frame))

    def flush(self) -> tuple[int, int]:
        """One write per client; returns frames and bytes written, over all clients."""
        frames, left_out, edits = self._frames, self._left_out, self._edits
        if not frames and not edits:
            return 0, 0
        self._frames, self._left_out, self._edits = [], [], {}
        # A snapshot, since a first write replaces `write`.
        members = tuple(self.members.items())
        if len(frames) == 1 and not edits:
            frame, out = frames[0], left_out[0]
            for client, write in members:
                if client is not out:
                    write(frame)
            count = len(members) - (out in self.members)
            return count, count * len(frame)
        blob = b"".join(frames)
        plain = None if edits else self._without_own(blob, frames, left_out)
        own, difference = plain or self._edited(blob, frames, left_out, edits)
        for client, write in members:
            data = own.get(client, blob)
            if data:
                write(data)
        size = len(blob) * (len(members) - len(own)) + sum(map(len, own.values()))
        return len(frames) * len(members) + difference, size

    def _without_own(
        self, blob: bytes, frames: list[bytes], left_out: list[Client | None]
    ) -> tuple[dict[Client, bytes], int] | None:
        """What the senders of this tick are sent instead of `blob`, and by how many frames that differs over all. None:
        one has sent twice. Nearly every tick is of this kind."""
        own: dict[Client, bytes] = {}
        stop = 0
        for frame, out in zip(frames, left_out, strict=True):
            start, stop = stop, stop + len(frame)
            if out is not None and out in self.members:
                if out in own:
                    return None
                own[out] = blob[:start] + blob[stop:]
        return own, -len(own)

    def _edited(
        self, blob: bytes, frames: list[bytes], left_out: list[Client | None], edits: dict[Client, list[Edit]]
    ) -> tuple[dict[Client, bytes], int]:
        """The same, with all kinds of exceptions."""
        for at, out in enumerate(left_out):
            if out is not None:
                edits.setdefault(out, []).append((at, at + 1, b""))
        offsets = list(accumulate(map(len, frames), initial=0))
        own: dict[Client, bytes] = {}
        difference = 0
        for client, changes in edits.items():
            if client in self.members:
                own[client], count = spliced(blob, offsets, changes)
                difference += count - len(frames)
        return own, difference


def spliced(blob: bytes, offsets: list[int], edits: list[Edit]) -> tuple[bytes, int]:
    """`blob` with `edits` applied, and the number of frames in it; frame i is blob[offsets[i]:offsets[i + 1]].

    Its cost grows with the edits, not with the frames: a sender of many messages in one tick is cheap.
    """
    view = memoryview(blob)
    parts: list[bytes | memoryview] = []
    number = at = 0
    for start, stop, data in sorted(edits, key=PLACE):  # stable: inserts at one place keep their order
        if start > at:
            parts.append(view[offsets[at] : offsets[start]])
            number += start - at
        if data:
            parts.append(data)
            number += 1
        at = max(at, stop)
    parts.append(view[offsets[at] :])
    return b"".join(parts), number + len(offsets) - 1 - at
