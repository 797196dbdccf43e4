"""What travels, as a client sees it: the values that programs are handed, frames in and frames out. No I/O.

What both sides of the wire write alike is in protocol.py; docs/reference/wire.md is the same for people.

    ConnectionError
    ├── SessionClosed      the room is over for this client; carries a close code, or the HTTP status of a refusal
    └── SendQueueFull      too many reliable messages wait for the connection
    AskRefused             the room did not answer; carries its code
"""

from __future__ import annotations

import logging
import re
from typing import Annotated, Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from .. import protocol
from ..protocol import (
    V1_DIALECT,
    Ack,
    AnyMessage,
    Binary,
    ProtocolError,
    check_type,
    decode_control,
    decode_hello,
    encode_json,
    pack_binary,
    unpack_binary,
)

OWN: Final = "session:"  # types of the library; never a peer's

# After any other code the server has made up its mind (wire.md, Close codes). 1005, 1006 and 1014 are not sent by it:
# they are what we or a proxy say of a connection that just ended.
COMES_BACK: Final = frozenset({1001, 1005, 1006, 1012, 1013, 1014})
STATUS_COMES_BACK: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

log = logging.getLogger("session_server.client")

Frame = str | bytes  # of text; binary
Count = Annotated[int, Meta(ge=0)]


# --- errors -----------------------------------------------------------------------------------------------------------


class SessionClosed(ConnectionError):
    """The room is over for this client. `code` is a close code (wire.md), or the HTTP status of an earlier refusal."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason or 'no reason given'} ({code})")
        self.code = code
        self.reason = reason

    @property
    def comes_back(self) -> bool:
        """Whether it is worth to connect again."""
        return self.code in (COMES_BACK if self.code >= 1000 else STATUS_COMES_BACK)


class SendQueueFull(ConnectionError):
    """Too many reliable messages wait for the connection."""


class AskRefused(Exception):
    """The room did not answer. `code` is one of those of `session:error` (wire.md), or `lost` if the seat was."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{reason or 'no reason given'} ({code})")
        self.code = code
        self.reason = reason


# --- what programs are handed -----------------------------------------------------------------------------------------


class Message(Struct, frozen=True):
    """One message of the room: `content` is JSON or bytes, `id` the sender's (0: the server), `reliable` as sent."""

    type: str
    content: Any = None
    id: int = 0
    reliable: bool = True


class Person(Struct, frozen=True):
    """One person; several clients (`ids`, the lowest is `id`) if they share a verified `user`. `user` and `handle` are
    verified or None, `name` and `data` what this one says of itself; `away` while the connection is lost."""

    id: int
    ids: tuple[int, ...] = ()
    user: str | None = None
    handle: str | None = None
    name: str | None = None
    data: Any = None
    away: bool = False


class Link(Struct, frozen=True):
    """A live wire: `websocket`, or `datachannel` for what may be lost. `rtt` in seconds, None until measured; `loss` is
    the share of our messages that is lost, from 0 to 1; `active` whether messages go there."""

    kind: str
    rtt: float | None = None
    loss: float = 0.0
    active: bool = True


# --- what the server says of the seat ---------------------------------------------------------------------------------


class Welcome(Struct):
    id: Annotated[int, Meta(ge=1)]
    room: str
    presence: list[Person] = []
    count: Count | None = None
    host: int | None = None
    resume: str | None = None
    epoch: Any = None
    seq: Count = 0
    time: float = 0.0
    received: Count = 0
    recovered: bool = False
    offer: str | None = None


class PresenceDiff(Struct):
    joins: list[Person] = []
    leaves: list[int] = []
    updates: list[Person] = []
    count: Count | None = None
    host: int | None | UnsetType = UNSET


class Problem(Struct):
    code: str
    reason: str = ""
    type: str | None = None


class Reply(Struct):
    ask: int
    content: Any = None
    error: Problem | None = None


class Pong(Struct):
    t: float
    time: float
    received: Count


Control = Welcome | PresenceDiff | Problem | Reply | Pong | Ack
CONTROLS: Final[dict[str, type[Control]]] = {
    "session:welcome": Welcome,
    "session:presence": PresenceDiff,
    "session:reply": Reply,
    "session:error": Problem,
    "session:pong": Pong,
    "session:ack": Ack,
}


# --- frames in: none raises, whatever comes ---------------------------------------------------------------------------


def read_frame(frame: Frame) -> AnyMessage | None:
    """None for what is no message: a bad one is passed over, whoever is to blame."""
    try:
        found = V1_DIALECT.decode(frame) if isinstance(frame, str) else unpack_binary(frame)
    except ProtocolError as error:
        log.debug("%s", error)
        return None
    if isinstance(found, Binary):  # the library's own types travel as text only
        return None if found.type.startswith(OWN) else found
    if isinstance(found.id, UnsetType):
        found.id = 0
    return found if type(found.id) is int else None


def read_message(found: AnyMessage) -> Message | None:
    """What handlers are called with; None if its content cannot be read."""
    content: Any = None
    if isinstance(found, Binary):
        content = found.content
    elif not isinstance(found.content, UnsetType):
        try:
            content = msgspec.json.decode(found.content)
        except (ValueError, RecursionError) as error:
            log.debug("content of %r: %s", found.type, error)
            return None
    return Message(found.type, content, found.id, found.reliable is not False)


def read_control(found: AnyMessage) -> Control | None:
    """The content of a `session:*` message; None for what we do not know or cannot read."""
    shape = CONTROLS.get(found.type)
    if shape is None or found.id != 0 or isinstance(found, Binary):
        return None
    try:
        return decode_control(found, shape)
    except ProtocolError as error:
        log.debug("%s", error)
        return None


# --- frames out -------------------------------------------------------------------------------------------------------


def write_frame(type: str, content: Any = None, reliable: bool = True, n: int | UnsetType = UNSET) -> Frame:
    """`n` numbers what may go on two links.

    Raises TypeError if `content` is neither bytes nor JSON, ValueError if it is too deep or not Unicode.
    """
    loss = UNSET if reliable else False
    if isinstance(content, bytes | bytearray | memoryview):
        return pack_binary(Binary(type, bytes(content), 0, loss, n))
    try:
        raw = UNSET if content is None else Raw(encode_json(content))
    except TypeError as error:
        raise TypeError(f"content of {type!r} is neither bytes nor JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"content of {type!r} is nested too deeply") from None
    return V1_DIALECT.encode(protocol.Message(type, raw, UNSET, loss, n)).decode()


def check_own_type(type: str) -> None:
    if not isinstance(type, str):
        raise TypeError(f"type is {type!r}, expected a string")
    check_type(type)
    if type.startswith(OWN):
        raise ValueError(f"type is {type!r}, expected none that begins with {OWN!r}")


def greeting(name: str | None, data: Any) -> dict[str, Any]:
    """What one says of oneself in `session:join`. Raises ValueError as the server would refuse it, TypeError if `data`
    is not JSON."""
    said = {key: value for key, value in (("name", name), ("data", data)) if value is not None}
    try:
        decode_hello(protocol.Message("session:join", Raw(encode_json(said))))
    except ProtocolError as error:
        raise ValueError(str(error)) from None
    return said


def session_url(url: str) -> str:
    """http and https become ws and wss; what a path cannot hold is percent-encoded. Raises ValueError."""
    parts = urlsplit(url.strip())
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in {"ws", "wss"} or not parts.hostname or parts.port == 0:  # `port` raises above 65535
        raise ValueError(f"url is {url!r}, expected https://host/session/slug (or http, ws, wss)")
    if parts.fragment:
        raise ValueError(f"url is {url!r}, expected none with a fragment: '#' in a slug is written %23")
    path = quote(re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", parts.path or "/"), safe="/%~:@!$&'()*+,;=")
    return urlunsplit((scheme, parts.netloc, path, parts.query, ""))
