"""Words on the wire: messages, dialects, slugs, tickets, close codes, errors. Bytes in, values out.

    SessionError
    ├── ProtocolError      the peer broke the protocol; carries a close code
    ├── LimitExceeded      a limit was reached; carries an HTTP status and a close code
    ├── RoomFull           no seat left in the room
    ├── Refused            the room's author said no
    └── PieceError         the code of a piece cannot be used; names file, line and reason

docs/reference/wire.md is the same for people.
"""

from __future__ import annotations

import hmac
import re
import unicodedata
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import quote, unquote_to_bytes, urlsplit

import msgspec
from msgspec import UNSET, DecodeError, Raw, Struct, UnsetType, ValidationError
from msgspec.json import Decoder, Encoder

SUBPROTOCOL = "session.v1"
MAX_TYPE = 255  # bytes of UTF-8; the binary frame has one byte for the length
MAX_NAME = 64  # characters of what a client calls itself
MAX_DATA = 4096  # bytes of JSON that a client says of itself
MAX_SLUG = 128  # characters
PEOPLE_LISTED = 200  # people; with more there is only a count: a diff per change would cost people × changes
TICKET_LIFE = 60.0  # seconds

encode_json: Final = Encoder().encode
NULL: Final = Raw(b"null")
EMPTY: Final[Mapping[str, Any]] = {}


class Close:
    """Close codes; RFC 6455 §7.4.1 and ours (docs/reference/wire.md, Close codes)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL = 1002
    NOT_MESSAGES = 1003
    NO_STATUS = 1005  # never on the wire: a close frame without a code
    ABNORMAL = 1006  # never on the wire: the connection ended without a close frame
    BAD_TEXT = 1007
    POLICY = 1008
    TOO_LARGE = 1009
    FAILED = 1011
    RESTART = 1012
    FULL = 1013
    KICKED = 4001
    REFUSED = 4401


class SessionError(Exception):
    """Root of what this server raises. `code` is the close code that fits."""

    code: int = Close.POLICY


class ProtocolError(SessionError):
    """A peer sent what it must not send."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class LimitExceeded(SessionError):
    """A limit of the server: `status` before the upgrade, `code` after it; `limit` names it in the counters."""

    def __init__(self, limit: str, status: int, reason: str) -> None:
        super().__init__(reason)
        self.limit = limit
        self.status = status
        self.code = Close.FULL


class RoomFull(SessionError):
    code = Close.FULL


class Refused(SessionError):
    """For authors: raise it in `on_auth` to keep somebody out, in a handler to say no. Not a fault."""

    code = Close.REFUSED


class PieceError(SessionError):
    code = Close.FAILED


# --- messages ---------------------------------------------------------------------------------------------------------


class Message(Struct, gc=False, forbid_unknown_fields=True):
    """One message with JSON content. The content stays unread bytes where the room only relays it.

    `id` is whatever a client wrote until the room stamps it. `reliable` is absent where it is true. `n` numbers what
    may be lost, per sender and type, so that a copy on another link, or a late one, is known (wire.md, Two links).
    """

    type: str
    content: Raw | UnsetType = UNSET
    id: Any = UNSET
    reliable: bool | UnsetType = UNSET
    n: int | UnsetType = UNSET

    @property
    def extra(self) -> Mapping[str, Raw]:
        """Keys beside the envelope, unread; only a classic page's message has any."""
        return EMPTY


class ClassicMessage(Message, gc=False, rename={"reliable": "\0reliable", "n": "\0n"}):
    """A classic envelope has three keys; a classic client's own `reliable` or `n` is a key like any other."""


class Extended(ClassicMessage, gc=False):
    """A message with keys of its own beside the envelope, for classic pages alone (wire.md §4.1)."""

    extra: dict[str, Raw] = {}


class Tagged(Message, gc=False):
    """From the server, under a tag or without an `id`, as classic pages know it; to others simply from the server."""


FOR_CLASSIC: Final = (Extended, Tagged)  # others are sent less


class Beside(Message, gc=False):
    """From the data channel that a classic page has beside its WebSocket. Such a page expects what was sent by one kind
    of wire on that wire alone, and would hear everything twice (docs/decisions/0009)."""


class Binary(Struct, gc=False):
    """One message whose content is bytes."""

    type: str
    content: bytes
    id: int = 0
    reliable: bool | UnsetType = UNSET
    n: int | UnsetType = UNSET


AnyMessage = Message | Binary


def message(
    type: str, content: Any = UNSET, id: int | str | None = 0, reliable: bool = True, extra: Mapping[str, Any] = EMPTY
) -> AnyMessage:
    """A message made by the server. `id` is a client's, or 0 for the server; a tag, or None for no `id`, and `extra`,
    keys beside the envelope, are for classic pages. Raises ValueError on a bad type, TypeError on content that is not
    JSON."""
    check_type(type)
    loss = UNSET if reliable else False
    if isinstance(content, bytes | bytearray | memoryview):
        if not isinstance(id, int) or extra:
            raise TypeError(f"content of {type!r} is bytes, expected JSON beside a tag or further keys")
        return Binary(type, bytes(content), id, loss)
    if not isinstance(content, Raw | UnsetType):
        content = Raw(encode_json(content))
    sender = UNSET if id is None else id
    if extra:
        keys = {key: Raw(encode_json(value)) for key, value in extra.items()}
        return Extended(type, content, sender, loss, extra=keys)
    return (Message if isinstance(id, int) else Tagged)(type, content, sender, loss)


def check_type(type: str) -> None:
    if not type:
        raise ValueError("type of a message is empty, expected 1 to 255 bytes")
    if len(type) > MAX_TYPE or (not type.isascii() and len(type.encode()) > MAX_TYPE):
        raise ValueError(f"type of a message has {len(type.encode())} bytes, expected at most {MAX_TYPE}")


def not_a_message(why: object) -> ProtocolError:
    return ProtocolError(Close.NOT_MESSAGES, f"not a message: {why}")


# --- dialects ---------------------------------------------------------------------------------------------------------


class Dialect:
    """How messages are written on one kind of client's wire: CLASSIC and V1 here, two more in geckos.py."""

    name: ClassVar[str]
    beside = False  # its clients are the second wire of somebody who is here already: not announced, not counted

    def __init__(self, shape: type[Message]) -> None:
        self._decode: Callable[[str], Message] = Decoder(shape).decode

    def decode(self, text: str) -> Message:
        """Raises ProtocolError if `text` is not a message: an object with a string `type`."""
        try:
            found = self._decode(text)
            if not 0 < len(found.type) < 64:  # of characters; so many are never too many bytes
                check_type(found.type)
        except ValidationError as error:
            return self._unusual(text, error)
        except (DecodeError, RecursionError, ValueError) as error:
            raise not_a_message(error) from None
        return found

    def _unusual(self, text: str, error: ValidationError) -> Message:
        raise not_a_message(error) from None

    def encode(self, message: AnyMessage) -> bytes | None:
        """The bytes of a text frame (Message) or binary frame (Binary); None if this dialect is never sent such."""
        raise NotImplementedError

    def reaches_sender(self, type: str) -> bool:
        """Whether a message that is merely relayed comes back to whoever sent it, if its room has nothing against it
        (`Room.others`)."""
        return False


class _Fields(Struct):
    """The envelope of a message that has keys beside it."""

    type: str
    content: Raw | UnsetType = UNSET
    id: Any = UNSET


class Classic(Dialect):
    """`{type, content, id}` in text frames, for pages that know nothing of this server (wire.md §4)."""

    name = "classic"

    def _unusual(self, text: str, error: ValidationError) -> Message:
        """Slow path: an object with further keys, or no message."""
        try:
            known = msgspec.json.decode(text, type=_Fields)
            check_type(known.type)
            extra = msgspec.json.decode(text, type=dict[str, Raw])
        except (DecodeError, RecursionError, ValueError) as error:
            raise not_a_message(error) from None
        for key in ("type", "content", "id"):
            extra.pop(key, None)
        return Extended(known.type, known.content, known.id, extra=extra)

    def encode(self, message: AnyMessage) -> bytes | None:
        kind = message.__class__
        if kind is ClassicMessage or (kind is Message and message.reliable is not False):  # as most are
            return encode_json(message)
        if isinstance(message, Binary | Beside):
            return None
        if isinstance(message, Extended):
            keys = {"type": message.type, "content": message.content, **message.extra, "id": message.id}
            return encode_json({key: value for key, value in keys.items() if value is not UNSET})
        if message.reliable is False:  # a word of session.v1
            return encode_json(ClassicMessage(message.type, message.content, message.id))
        return encode_json(message)

    def reaches_sender(self, type: str) -> bool:
        return True


class _Open(Message, gc=False, forbid_unknown_fields=False):
    """Our own envelope: keys that are not known are for a later version, and ignored."""


class V1(Dialect):
    """`session.v1`: the same envelope, `session:*` control messages, binary frames."""

    name = SUBPROTOCOL

    def encode(self, message: AnyMessage) -> bytes:
        if isinstance(message, Binary):
            return pack_binary(message)
        if isinstance(message, FOR_CLASSIC):
            sender = message.id if isinstance(message.id, int) else 0
            return encode_json(Message(message.type, message.content, sender, message.reliable, message.n))
        return encode_json(message)


CLASSIC: Final = Classic(ClassicMessage)
V1_DIALECT: Final = V1(_Open)


def pack_binary(message: Binary) -> bytes:
    """Offset 0: 1 byte, 0x01 reliable, 0x02 unreliable, 0x03 unreliable and numbered; 1: length of the type; the type;
    sender's id, 4 bytes big endian; with 0x03 its number, 4 bytes big endian; the payload."""
    type = message.type.encode()
    sender = message.id.to_bytes(4, "big")
    if message.reliable is not False:
        return b"\x01%c%b%b%b" % (len(type), type, sender, message.content)
    if isinstance(message.n, UnsetType):
        return b"\x02%c%b%b%b" % (len(type), type, sender, message.content)
    return b"\x03%c%b%b%b%b" % (len(type), type, sender, (message.n & 0xFFFFFFFF).to_bytes(4, "big"), message.content)


def unpack_binary(data: bytes) -> Binary:
    """The inverse. Raises ProtocolError. The id in it is a claim: the room writes its own."""
    if len(data) < 2 or data[0] not in (1, 2, 3):
        raise not_a_message(f"binary frame begins {data[:2].hex()!r}, expected 01, 02 or 03 and a length")
    sender = 2 + data[1]
    body = sender + (8 if data[0] == 3 else 4)
    if data[1] == 0 or len(data) < body:
        raise not_a_message(f"binary frame of {len(data)} bytes, expected at least {max(body, 7)}")
    try:
        type = data[2:sender].decode()
    except UnicodeDecodeError as error:
        raise not_a_message(error) from None
    loss = UNSET if data[0] == 1 else False
    number = int.from_bytes(data[sender + 4 : body], "big") if data[0] == 3 else UNSET
    return Binary(type, data[body:], int.from_bytes(data[sender : sender + 4], "big"), loss, number)


# --- what clients may not say -----------------------------------------------------------------------------------------


def compile_patterns(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """One expression for type patterns such as `chat:*:say`; `*` is anything but a colon, at the end anything, and a
    group of the expression."""

    def one(pattern: str) -> str:
        head, star, tail = re.escape(pattern).replace(r"\*", "([^:]*)").rpartition("([^:]*)")
        return head + ("(.*)" if star and not tail else star + tail)

    return re.compile("|".join(one(p) for p in patterns) or r"(?!)", re.DOTALL)


SERVER_OWNED: Final = ("connected", "joined", "left", "reload", "session:*")


# --- classic greetings ------------------------------------------------------------------------------------------------


def as_string(content: dict[str, Any]) -> str:
    """A content that is itself JSON, in a string: what `JSON.stringify` gives."""
    return encode_json(content).decode()


def connected(id: int, address: str, count: int) -> AnyMessage:
    """First to oneself. The content is a JSON *string*: the page throws on an object. `id` inside is for its log."""
    return message("connected", as_string({"ip": address, "playerCount": count, "id": id}), id)


def joined(id: int, count: int) -> AnyMessage:
    """To the others; a JSON *string* too."""
    return message("joined", as_string({"text": f"{id} has joined. Connections open: {count}"}), id)


def left(id: int, count: int) -> AnyMessage:
    """To the others; an *object*: older pages need it, newer take both."""
    return message("left", {"count": count}, id)


# --- session.v1 control messages --------------------------------------------------------------------------------------


Control = TypeVar("Control", bound=Struct)


class Hello(Struct):
    """`session:join`, the first message of a client."""

    name: str | None = None
    data: Any = None
    token: str | None = None
    resume: str | None = None
    received: int = 0
    net: str | None = None  # the bad network that its page wants to try, in development


class Ask(Struct):
    """`session:ask`."""

    ask: int
    type: str
    content: Raw | UnsetType = UNSET


class Answer(Struct):
    """`session:answer`: the answer to the offer of the welcome."""

    sdp: str


class Ack(Struct):
    """`session:ack` of a server: so many messages have been received on the side link, in all."""

    received: int


class Ping(Struct):
    """`session:ping`."""

    t: Raw = NULL


MAX_NESTED = 32


def nested(value: Any, most: int = MAX_NESTED + 1) -> int:
    """How deep a JSON value is nested, counted up to `most`."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 0 if most == 0 else 1 + max((nested(one, most - 1) for one in inner), default=0)


def decode_hello(found: AnyMessage) -> Hello:
    """The first message of a `session.v1` client. Raises ProtocolError."""
    if found.type != "session:join" or isinstance(found, Binary):
        raise ProtocolError(Close.POLICY, f"first message is {found.type[:40]!r}, expected 'session:join'")
    hello = decode_control(found, Hello)
    if hello.name is not None:
        if len(hello.name) > MAX_NAME:
            raise ProtocolError(Close.POLICY, f"name of {len(hello.name)} characters, expected at most {MAX_NAME}")
        hello.name = "".join(c for c in hello.name if unicodedata.category(c)[0] != "C").strip() or None
    hello.net = hello.net[:MAX_NAME] if hello.net else None
    if nested(hello.data) > MAX_NESTED:
        raise ProtocolError(Close.POLICY, f"data is nested more than {MAX_NESTED} deep")
    size = len(encode_json(hello.data))
    if size > MAX_DATA:
        raise ProtocolError(Close.POLICY, f"data of {size} bytes, expected at most {MAX_DATA}")
    return hello


def decode_control(found: Message, shape: type[Control]) -> Control:
    """The content of a `session:*` message. Raises ProtocolError."""
    try:
        return msgspec.json.decode(NULL if isinstance(found.content, UnsetType) else found.content, type=shape)
    except (DecodeError, RecursionError, ValueError) as error:
        raise not_a_message(f"content of {found.type!r}: {error}") from None


# --- slugs and tickets ------------------------------------------------------------------------------------------------

BIDI: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
LOBBY: Final = "lobby"


@lru_cache(maxsize=4096)
def slug_from_path(encoded: str) -> str:
    """The slug in what follows `/session/` of a request target. Raises ValueError with a line for the sender.

    Decoded once and brought to NFC, so that one room has one name. A slug never becomes a file's path.
    """
    if re.search(r"%(?![0-9A-Fa-f]{2})", encoded):
        raise ValueError("slug has a % that is not followed by two hex digits")
    try:
        slug = unicodedata.normalize("NFC", unquote_to_bytes(encoded.encode("utf-8", "surrogateescape")).decode())
    except UnicodeDecodeError:
        raise ValueError("slug is not UTF-8") from None
    if not 1 <= len(slug) <= MAX_SLUG:
        raise ValueError(f"slug has {len(slug)} characters, expected 1 to {MAX_SLUG}")
    if any(c in BIDI or unicodedata.category(c) == "Cc" for c in slug):
        raise ValueError("slug has a control character")
    if any(segment in {"", ".."} for segment in slug.split("/")):
        raise ValueError("slug has an empty or .. segment")
    return slug


def slug_from_target(target: str) -> str | None:
    """The slug of a request target that joins or asks for a room; None if it is some other path. Raises ValueError."""
    path = target.partition("?")[0]
    if path == "/":
        return LOBBY
    return slug_from_path(path.removeprefix("/session/")) if path.startswith("/session/") else None


@lru_cache(maxsize=4096)
def slug_to_path(slug: str) -> str:
    return "/session/" + quote(slug, safe="/~:@!$&'()*+,;=")


def origin_allowed(origin: str | None, hosts: tuple[str, ...], listed: tuple[str, ...]) -> bool:
    """May a page of this origin join? Its hostname is one of the server's own `hosts`, or the origin is listed.

    No Origin means no browser; a page with an opaque one says `null`.
    """
    if origin is None or "*" in listed or origin in listed:
        return True
    try:
        name = urlsplit(origin).hostname
        return name is not None and name in {urlsplit(f"//{host}").hostname for host in hosts}
    except ValueError:
        return False


def piece_of(slug: str) -> str:
    """The piece is the part before the first `~` or `:` (as in the page, disk.mjs)."""
    return slug.partition("~")[0].partition(":")[0]


class Tickets:
    """A ticket names a room for a client that can carry one string (geckos.io `authorization`). It grants nothing else.

    Layout, base64url without padding: slug in UTF-8, NUL, expiry in decimal seconds of `now`, NUL, a number that makes
    it unlike all others; then a dot and the HMAC-SHA256 of all before it.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._issued = 0
        self._used: dict[tuple[str, str], float] = {}  # (kind of link, signature) → expiry

    def issue(self, slug: str, now: float) -> str:
        self._issued += 1
        body = urlsafe_b64encode(f"{slug}\0{now + TICKET_LIFE:.3f}\0{self._issued}".encode()).rstrip(b"=")
        return f"{body.decode()}.{self._sign(body)}"

    def redeem(self, ticket: str, kind: str, now: float) -> str:
        """The slug; once per kind of link. Raises ValueError."""
        body, _, signature = ticket.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(body.encode()).encode()):
            raise ValueError("ticket is not ours")
        slug, expiry, _ = urlsafe_b64decode(body + "=" * (-len(body) % 4)).decode().split("\0")
        if now > float(expiry):
            raise ValueError("ticket has expired")
        self._used = {key: until for key, until in self._used.items() if until >= now}
        if (kind, signature) in self._used:
            raise ValueError("ticket was used before")
        self._used[kind, signature] = float(expiry)
        return slug

    def _sign(self, body: bytes) -> str:
        return urlsafe_b64encode(hmac.digest(self._secret, body, "sha256")).rstrip(b"=").decode()
