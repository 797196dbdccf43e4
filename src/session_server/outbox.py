"""What the clients of one room are sent at the end of a tick: framed once, joined once, one write per client.

No sockets: a transport hands in how a message becomes bytes (`pack`) and, per client, where they go (`write`).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Generic, TypeVar

Item = TypeVar("Item")  # what is sent: a message, or a raw room's str or bytes
Client = TypeVar("Client")  # anything hashable

Write = Callable[[bytes], object]
Edit = tuple[int, int, bytes]  # (start, stop, data): this client is sent `data` instead of frames[start:stop]


class Stream(Generic[Client, Item]):
    """Clients of a room that are sent the same, up to a few exceptions.

    A sender is left out of its own message, one client is greeted, another joined in the middle of the tick: such
    exceptions are kept as edits beside the common frames, so all others share one `bytes`.
    """

    __slots__ = ("_edits", "_frames", "dialect", "members", "pack", "unreliable")

    def __init__(self, pack: Callable[[Item], bytes | None], dialect: object, unreliable: bool) -> None:
        self.pack = pack
        self.dialect = dialect
        self.unreliable = unreliable  # False: its clients are behind; what may be lost is shed
        self.members: dict[Client, Write] = {}
        self._frames: list[bytes] = []
        self._edits: dict[Client, list[Edit]] = {}

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
        if frame is None:
            return
        frames = self._frames
        frames.append(frame)
        if exclude is not None and exclude in self.members:
            count = len(frames)
            self._edit(exclude, (count - 1, count, b""))

    def insert(self, client: Client, item: Item) -> None:
        """To this client alone, in its place among what all are sent."""
        frame = self.pack(item)
        if frame is not None:
            count = len(self._frames)
            self._edit(client, (count, count, frame))

    def _edit(self, client: Client, edit: Edit) -> None:
        edits = self._edits.get(client)
        if edits is None:
            self._edits[client] = [edit]
        else:
            edits.append(edit)

    def flush(self) -> tuple[int, int]:
        """One write per client; returns frames and bytes written, over all clients."""
        frames, edits = self._frames, self._edits
        if not frames and not edits:
            return 0, 0
        self._frames, self._edits = [], {}
        blob = frames[0] if len(frames) == 1 else b"".join(frames)
        offsets = list(accumulate(map(len, frames), initial=0)) if edits else []
        count = size = 0
        # A snapshot: a write can fill a buffer, and its owner then moves to another stream at once.
        for client, write in tuple(self.members.items()):
            data, number = blob, len(frames)
            if edits and client in edits:
                data, number = spliced(blob, offsets, edits[client])
            if data:
                write(data)
                count += number
                size += len(data)
        return count, size


def spliced(blob: bytes, offsets: list[int], edits: list[Edit]) -> tuple[bytes, int]:
    """`blob` with `edits` applied, and the number of frames in it; frame i is blob[offsets[i]:offsets[i + 1]].

    Its cost grows with the edits, not with the frames: a sender of many messages in one tick is cheap.
    """
    view = memoryview(blob)
    parts: list[bytes | memoryview] = []
    number = at = 0
    for start, stop, data in edits:
        if start > at:
            parts.append(view[offsets[at] : offsets[start]])
            number += start - at
        if data:
            parts.append(data)
            number += 1
        at = stop
    last = len(offsets) - 1
    if last > at:
        parts.append(view[offsets[at] :])
        number += last - at
    return b"".join(parts), number
