"""From a piece's methods to a table by message type: `@on`, contents checked by annotations, what is relayed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from typing import Any, Final, TypeVar, get_type_hints

import msgspec
from msgspec import UNSET, Struct, UnsetType, structs

from .protocol import (
    NULL,
    SERVER_OWNED,
    AnyMessage,
    Binary,
    Message,
    PieceError,
    Refused,
    check_type,
    compile_patterns,
)

Method = TypeVar("Method", bound=Callable[..., Any])

PLAIN: Final = (bool, int, float, str, list, dict)


class InvalidContent(Refused):
    """The content does not have the shape that the handler's annotation asks for."""


def on(type: str, *, rate: float = 0.0, relay: bool = False) -> Callable[[Method], Method]:
    """Marks a method as the handler of messages of `type`; at most `rate` per second and client (0 = no own limit).

    The method takes `(self, client)` or `(self, client, content)`; the annotation of `content` validates it, or is
    `Message` to have the message itself, its content unread. What it returns answers `room.ask(type)`. With `relay`,
    the message then goes on as it came, unless the method raised.

    `type` may be a pattern, such as `chat:*:say`, whose `*` is anything but a colon, at the end anything: what each
    stands for follows the content, `(self, client, content, place)`, as a string. A name goes before a pattern, and of
    patterns the one that says more.
    """
    check_type(type)

    def mark(method: Method) -> Method:
        method.__dict__.setdefault("__on__", []).append((type, rate, relay))
        return method

    return mark


class Handler(Struct, frozen=True):
    """One `@on` of one class. `name` finds the method on the instance, so a reload needs no new binding."""

    type: str  # or a pattern
    name: str
    rate: float
    read: Callable[[AnyMessage], Any] | None  # None: the method takes no content
    relay: Kind | None = None  # how the message goes on: RELAYED, TO_OTHERS, not at all
    parts: tuple[str, ...] = ()  # what the stars of the pattern stand for, if the method asks


class Kind(Enum):
    """What a room does with a type."""

    CONTROL = "control"  # `session:*`
    OWNED = "owned"  # the server's own: dropped
    HANDLED = "handled"
    RELAYED = "relayed"  # to all; not to its sender, unless the sender's dialect expects that
    TO_OTHERS = "to others"  # never to its sender
    OTHER = "other"  # for on_message, if there is one


class Routes:
    """What a Room class does with each type. Made once per class."""

    def __init__(self, room_class: type, base: type) -> None:
        """Raises PieceError."""
        for name in ("relay", "others", "server_only"):
            if isinstance(getattr(room_class, name), str):
                raise PieceError(f"{name} of {room_class.__name__} is a string, expected a tuple: a comma is missing")
        relay: bool | tuple[str, ...] = room_class.relay  # type: ignore[attr-defined]
        self._relayed = compile_patterns(("*",) if relay is True else relay or ())
        self._others = compile_patterns(room_class.others)  # type: ignore[attr-defined]
        self._owned = compile_patterns((*SERVER_OWNED, *room_class.server_only))  # type: ignore[attr-defined]
        # Types are the clients' to invent, so not all are remembered.
        self.kind = lru_cache(maxsize=1024)(self._kind)
        self.handler = lru_cache(maxsize=1024)(self._handler)
        self.handlers: dict[str, Handler] = {}  # by name or pattern
        for name, method in inspect.getmembers(room_class, callable):
            for type, rate, passes in getattr(method, "__on__", ()):
                self._add(type, rate, passes, name, method)
        patterns = (type for type in self.handlers if "*" in type)
        self._patterns = [(compile_patterns((p,)), p) for p in sorted(patterns, key=said, reverse=True)]
        self.overrides = frozenset(
            name
            for name in dir(base)
            if name.startswith("on_") and getattr(room_class, name) is not getattr(base, name)
        )

    def _add(self, type: str, rate: float, passes: bool, name: str, method: Callable[..., Any]) -> None:
        if type in self.handlers:
            raise PieceError(f"{where(method)}: two handlers for {type!r}: {self.handlers[type].name} and {name}")
        if self._owned.fullmatch(type):
            raise PieceError(f"{where(method)}: clients may not send {type!r}, so it is never called")
        arguments = list(inspect.signature(method).parameters.values())[1:]  # without self
        stars = type.count("*")
        if len(arguments) not in (1, 2, 2 + stars):
            expected = ["(self, client)", "(self, client, content)"] + ["a string for each * after that"] * bool(stars)
            raise PieceError(f"{where(method)} takes {len(arguments)} arguments, expected {' or '.join(expected)}")
        read = reader(method, arguments[1]) if len(arguments) > 1 else None
        parts = ("*",) * stars if len(arguments) > 2 else ()
        self.handlers[type] = Handler(type, name, rate, read, Kind.RELAYED if passes else None, parts)

    def _kind(self, type: str) -> Kind:
        if type.startswith("session:"):
            return Kind.CONTROL
        if self._owned.fullmatch(type):
            return Kind.OWNED
        if self.handler(type) is not None:
            return Kind.HANDLED
        return self._way(type) if self._relayed.fullmatch(type) else Kind.OTHER

    def _way(self, type: str) -> Kind:
        return Kind.TO_OTHERS if self._others.fullmatch(type) else Kind.RELAYED

    def _handler(self, type: str) -> Handler | None:
        """The handler of a type, with what a pattern's stars stand for in it."""
        found = self.handlers.get(type)
        parts: tuple[str, ...] = ()
        if found is None or "*" in type:  # a pattern as a type is a name that nobody handles
            match, pattern = next(
                ((match, pattern) for regex, pattern in self._patterns if (match := regex.fullmatch(type))), (None, "")
            )
            if match is None:
                return None
            found, parts = self.handlers[pattern], match.groups()
        relay = self._way(type) if found.relay is not None else None
        return structs.replace(found, relay=relay, parts=parts if found.parts else ())


def said(pattern: str) -> int:
    """How much a pattern says."""
    return len(pattern) - pattern.count("*")


def reader(method: Callable[..., Any], argument: inspect.Parameter) -> Callable[[AnyMessage], Any]:
    """How the content for `method` is read, by the annotation of its second argument; where a message has none, its
    default counts. Raises PieceError."""
    try:
        shape = get_type_hints(method, include_extras=True).get(argument.name, Any)
        read = READERS[shape] if shape in (bytes, Message) else json_reader(shape)
    except Exception as error:  # evaluating an annotation runs code of the author
        raise PieceError(f"{where(method)}: annotation of {argument.name!r} cannot be used: {error}") from error
    default = argument.default
    if default is inspect.Parameter.empty:
        return read
    return lambda message: default if message.content is UNSET else read(message)


def read_bytes(message: AnyMessage) -> bytes:
    if isinstance(message, Binary):
        return message.content
    raise InvalidContent(f"content of {message.type!r} is JSON, expected bytes")


def read_message(message: AnyMessage) -> Message:
    if isinstance(message, Message):
        return message
    raise InvalidContent(f"content of {message.type!r} is {len(message.content)} bytes, expected JSON")


READERS: Final[dict[type, Callable[[AnyMessage], Any]]] = {bytes: read_bytes, Message: read_message}


def json_reader(shape: Any) -> Callable[[AnyMessage], Any]:
    decode = msgspec.json.Decoder(shape).decode

    def read(message: AnyMessage) -> Any:
        if isinstance(message, Binary):
            raise InvalidContent(
                f"content of {message.type!r} is {len(message.content)} bytes, expected {spoken(shape)}"
            )
        try:
            return decode(NULL if isinstance(message.content, UnsetType) else message.content)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            text = "nothing" if message.content is UNSET else bytes(message.content).decode()
            seen = text if len(text) <= 40 else text[:37] + "…"
            raise InvalidContent(f"content of {message.type!r} is {seen}, expected {spoken(shape)} ({error})") from None

    return read


def read_any(message: AnyMessage) -> Any:
    """For `on_message`: the content as plain Python values."""
    return message.content if isinstance(message, Binary) else read_json(message)


read_json: Final = json_reader(Any)


def spoken(shape: Any) -> str:
    return shape.__name__ if shape in PLAIN else str(shape).replace("typing.", "")


def where(method: Callable[..., Any]) -> str:
    """File, line and name of a piece's method, for its author."""
    method = inspect.unwrap(method)
    code = method.__code__
    return f"{code.co_filename}:{code.co_firstlineno} {method.__qualname__}"
