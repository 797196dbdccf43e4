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

    __slots__ = ("_edits", "_frames", "behind", "dialect", "members", "pack", "reliable", "unreliable")

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
        if not edits:
            for write in tuple(self.members.values()):
                write(blob)
            return len(frames) * len(self.members), len(blob) * len(self.members)
        splice = Splice(frames, blob)
        count = size = plain = 0
        for client, write in tuple(self.members.items()):  # a snapshot, since a first write replaces `write`
            own = edits.get(client)
            if own is None:
                if blob:
                    write(blob)
                    plain += 1
                continue
            data, number = splice.apply(own)
            if data:
                write(data)
                count += number
                size += len(data)
        return count + plain * len(frames), size + plain * len(blob)


class Splice:
    """Common frames, and their join, with the edits of one client after another applied."""

    __slots__ = ("_blob", "_frames", "_offsets")

    def __init__(self, frames: list[bytes], blob: bytes) -> None:
        self._frames = frames
        self._blob = blob
        self._offsets: list[int] = []  # frame i is blob[offsets[i]:offsets[i + 1]]

    def apply(self, edits: list[Edit]) -> tuple[bytes, int]:
        """What the client is sent, and the number of frames in it.

        Its cost grows with the edits, not with the frames: a sender of many messages in one tick is cheap.
        """
        frames, blob = self._frames, self._blob
        start, stop, data = edits[0]
        if len(edits) == 1 and stop - start == len(frames):  # all is replaced: the sender of the only message
            return data, 1 if data else 0
        offsets = self._offsets
        if not offsets:
            offsets = self._offsets = list(accumulate(map(len, frames), initial=0))
        if len(edits) == 1:
            return blob[: offsets[start]] + data + blob[offsets[stop] :], len(frames) - stop + start + bool(data)
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
        parts.append(view[offsets[at] :])
        return b"".join(parts), number + len(frames) - at
