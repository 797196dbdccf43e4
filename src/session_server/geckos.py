"""What geckos.io clients (2.x and 3.x) say on their data channel, as a dialect. The channel itself is a transport's.

A text message is an event, `{"name": data}`, or it is raw; a binary one is raw. There is no id, number or time in it.
docs/reference/wire.md (geckos.io clients) is the same for people.
"""

from __future__ import annotations

import re
from typing import Any, Final

from msgspec import UNSET, DecodeError, Raw, Struct, UnsetType
from msgspec.json import Decoder

from .protocol import (
    NULL,
    AnyMessage,
    Beside,
    Binary,
    ClassicMessage,
    Dialect,
    Message,
    check_type,
    encode_json,
    not_a_message,
)

RAW: Final = "rawMessage"  # the event under which the library tells of raw messages
IDENTITY: Final = "udp:identity"  # who a page claims to be: for a room's code as a hint, and never passed on
# The library tells its own events by the same emitter as a peer's: whoever could send these could fake a disconnect, or
# make another's page send (client/src/geckos/bridge). So they are never sent to such a client.
RESERVED: Final = frozenset({
    "connect", "connection", "dataChannelIsOpen", "disconnect", "disconnected", "dropped", "error",
    "receiveFromDataChannel", "sendOverDataChannel",
})  # fmt: skip
TO_OTHERS: Final = frozenset({"fairy:point", RAW})  # all other types: as a classic sender's

INDEX: Final = re.compile(r"0|[1-9][0-9]{0,9}")
MAX_INDEX: Final = 2**32 - 2  # of a JavaScript array
MAX_ID: Final = 64  # characters of a repeated message's id; the library makes 24
REMEMBERED_FOR: Final = 15.0  # seconds, as in the library; it repeats a message for 1.5
MAX_REMEMBERED: Final = 1024  # ids


class _Reliable(Struct):
    """How the library wraps what it sends several times over."""

    MESSAGE: Raw = NULL
    RELIABLE: Any = None
    ID: Any = None


class Geckos(Dialect):
    """`{"event": data}` in text. What is raw has the type `rawMessage`, and a string or bytes as its content."""

    name = "geckos"

    def __init__(self, beside: bool) -> None:
        self.beside = beside
        self._shape: type[Message] = Beside if beside else Message
        self._events = Decoder(dict[str, Raw]).decode
        self._wrapped = Decoder(_Reliable).decode

    def decode(self, text: str) -> Message:
        """A message that may be lost, or, where its sender repeats it, one without `reliable` and with the id of its
        sender's making as `id`. Raises ProtocolError if the event has no name, one of over 255 bytes, or a bad id."""
        try:
            events = self._events(text)
        except (DecodeError, RecursionError, ValueError):
            events = {}
        if not events:  # no JSON, or none that is an event: `{}`, `null`, `[]`, `"a"`, `7`
            return self._shape(RAW, Raw(encode_json(text)), UNSET, False)
        event = first_key(events)
        try:
            check_type(event)
        except ValueError as error:
            raise not_a_message(error) from None
        content = events[event]
        wrapped = self._unwrap(content) if b'"RELIABLE"' in bytes(content) else None
        if wrapped is None:
            return self._shape(event, content, UNSET, False)
        if not isinstance(wrapped.ID, str) or not 0 < len(wrapped.ID) <= MAX_ID:
            raise not_a_message(f"ID of a repeated message, expected a string of 1 to {MAX_ID} characters")
        return self._shape(event, wrapped.MESSAGE, wrapped.ID)

    def _unwrap(self, content: Raw) -> _Reliable | None:
        """None if it only looks like it: the library asks for `RELIABLE === 1`."""
        try:
            found = self._wrapped(content)
        except (DecodeError, RecursionError, ValueError):
            return None
        return found if type(found.RELIABLE) in (int, float) and found.RELIABLE == 1 else None

    def encode(self, message: AnyMessage) -> bytes | None:
        if isinstance(message, Binary):
            return message.content if message.type == RAW else None
        if message.type in RESERVED or (self.beside and isinstance(message, ClassicMessage)):
            return None
        content = b"null" if isinstance(message.content, UnsetType) else bytes(message.content)
        return b"{%b:%b}" % (encode_json(message.type), content)  # a raw string too: alone it could read as an event

    def reaches_sender(self, type: str) -> bool:
        return type not in TO_OTHERS


MEMBER: Final = Geckos(beside=False)  # came with a ticket
BESIDE: Final = Geckos(beside=True)  # came without: a classic page's second wire


def first_key(events: dict[str, Raw]) -> str:
    """As JavaScript orders the keys of an object: those that could index an array first, and rising."""
    numbers = [key for key in events if INDEX.fullmatch(key) and int(key) <= MAX_INDEX]
    return min(numbers, key=int) if numbers else next(iter(events))


class Repeats:
    """Which repeated messages of one client have been taken."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}  # id → when it is forgotten, in that order

    def is_news(self, id: str, now: float) -> bool:
        """Whether this is the first of its copies. Of too many ids the oldest are forgotten before their time."""
        until = self._until
        if until.get(id, now) > now:
            return False
        while until and (len(until) >= MAX_REMEMBERED or next(iter(until.values())) <= now):
            del until[next(iter(until))]
        until[id] = now + REMEMBERED_FOR
        return True
