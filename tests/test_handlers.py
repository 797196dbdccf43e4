"""From a piece's methods to a table by type: contents by annotation, what is relayed, and what an author gets wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Meta, Raw

from session_server import Client, Refused, Room, on
from session_server.handlers import InvalidContent, Kind, Routes, read_any, where
from session_server.protocol import AnyMessage, Binary, Message, PieceError, message

STEADY = settings(derandomize=True, deadline=None, max_examples=100)


@dataclass
class Step:
    x: float
    y: float = 0.0


class Named(msgspec.Struct):
    name: Annotated[str, Meta(max_length=5)]


class Typed(TypedDict):
    a: int


class Kinds(Room):
    """One handler for each kind of annotation."""

    @on("nothing")
    def nothing(self, client: Client) -> None: ...
    @on("bare")
    def bare(self, client, content) -> None: ...  # type: ignore[no-untyped-def]
    @on("any")
    def any(self, client: Client, content: Any) -> None: ...
    @on("int")
    def int_(self, client: Client, content: int) -> None: ...
    @on("float")
    def float_(self, client: Client, content: float) -> None: ...
    @on("str")
    def str_(self, client: Client, content: str) -> None: ...
    @on("bool")
    def bool_(self, client: Client, content: bool) -> None: ...
    @on("bytes")
    def bytes_(self, client: Client, content: bytes) -> None: ...
    @on("pair")
    def pair(self, client: Client, content: tuple[float, float]) -> None: ...
    @on("list")
    def list_(self, client: Client, content: list[float]) -> None: ...
    @on("nested")
    def nested(self, client: Client, content: list[Any]) -> None: ...
    @on("optional")
    def optional(self, client: Client, content: int | None) -> None: ...
    @on("literal")
    def literal(self, client: Client, content: Literal["left", "right"]) -> None: ...
    @on("dataclass")
    def dataclass_(self, client: Client, content: Step) -> None: ...
    @on("struct")
    def struct(self, client: Client, content: Named) -> None: ...
    @on("typed")
    def typed(self, client: Client, content: Typed) -> None: ...
    @on("default")
    def default(self, client: Client, content: int = 3) -> None: ...
    @on("limited")
    def limited(self, client: Client, content: Annotated[int, Meta(ge=0, le=9)]) -> None: ...


KINDS = Routes(Kinds, Room).handlers


def read(type: str, content: Any) -> Any:
    reader = KINDS[type].read
    assert reader is not None
    return reader(message(type, content))


@pytest.mark.parametrize(
    ("type", "content", "value"),
    [
        ("bare", {"a": [1]}, {"a": [1]}),
        ("any", [1, "a", None], [1, "a", None]),
        ("any", UNSET, None),
        ("int", 7, 7),
        ("float", 7, 7.0),
        ("float", -0.5, -0.5),
        ("str", "é", "é"),
        ("bool", True, True),
        ("bytes", b"\x00\xff", b"\x00\xff"),
        ("bytes", b"", b""),
        ("pair", [1, 2.5], (1.0, 2.5)),
        ("list", [], []),
        ("optional", None, None),
        ("optional", UNSET, None),
        ("literal", "left", "left"),
        ("dataclass", {"x": 1}, Step(1.0)),
        ("dataclass", {"x": 1, "y": 2, "more": 3}, Step(1.0, 2.0)),
        ("struct", {"name": "ada"}, Named("ada")),
        ("typed", {"a": 1}, {"a": 1}),
        ("limited", 9, 9),
        ("default", UNSET, 3),
        ("default", 4, 4),
    ],
)
def test_content_of_the_right_shape_is_read(type: str, content: Any, value: Any) -> None:
    found = read(type, content)
    assert found == value and isinstance(found, value.__class__)


@pytest.mark.parametrize(
    ("type", "content"),
    [
        ("int", "7"), ("int", 1.5), ("int", None), ("int", UNSET), ("int", True), ("int", b"7"), ("int", [7]),
        ("float", "1"), ("float", True), ("float", None), ("str", 7), ("str", None), ("bool", 1), ("bool", "true"),
        ("bytes", "AAAA"), ("bytes", None), ("bytes", UNSET), ("bytes", [1]), ("pair", [1]), ("pair", [1, 2, 3]),
        ("pair", "ab"), ("pair", {"0": 1, "1": 2}), ("list", [1, "2"]), ("list", [None]), ("optional", "x"),
        ("literal", "up"), ("literal", 0), ("dataclass", {}), ("dataclass", {"x": "1"}), ("dataclass", [1, 2]),
        ("struct", {"name": "toolong"}), ("struct", {}), ("struct", None), ("typed", {"a": "1"}), ("typed", {}),
        ("limited", -1), ("limited", 10), ("default", None), ("default", "4"), ("any", b"\x01"), ("bare", b""),
    ],
)  # fmt: skip
def test_content_of_the_wrong_shape_never_reaches_a_handler(type: str, content: Any) -> None:
    with pytest.raises(InvalidContent, match=f"^content of {type!r} is ") as refusal:
        read(type, content)
    assert isinstance(refusal.value, Refused)
    assert "expected" in str(refusal.value)


@pytest.mark.parametrize(
    ("type", "content", "text"),
    [
        ("int", "left", """content of 'int' is "left", expected int"""),
        ("int", UNSET, "content of 'int' is nothing, expected int"),
        ("pair", [1, "b"], """content of 'pair' is [1,"b"], expected tuple[float, float]"""),
        ("bytes", {"a": 1}, "content of 'bytes' is JSON, expected bytes"),
        ("str", b"abc", "content of 'str' is 3 bytes, expected str"),
        ("literal", "up", "content of 'literal' is \"up\", expected Literal['left', 'right']"),
        ("str", list(range(99)), "content of 'str' is [0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,1…, expected str"),
    ],
)
def test_the_error_says_what_was_seen_and_what_was_expected(type: str, content: Any, text: str) -> None:
    with pytest.raises(InvalidContent) as refusal:
        read(type, content)
    assert str(refusal.value).startswith(text)


@pytest.mark.parametrize("content", ["x" * 100_000, ["é" * 50_000], {"x" * 60_000: 1}])
def test_the_error_does_not_repeat_all_of_a_large_content(content: Any) -> None:
    with pytest.raises(InvalidContent) as refusal:
        read("int", content)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("type", ["any", "nested"])
def test_content_nested_too_deeply_is_invalid(type: str) -> None:
    """A relay passes it on unread; only a handler looks inside."""
    reader = KINDS[type].read
    assert reader is not None
    with pytest.raises(InvalidContent) as refusal:
        reader(Message(type, Raw(b"[" * 5000 + b"]" * 5000)))
    assert len(str(refusal.value)) < 300


def test_a_handler_without_content_takes_any() -> None:
    assert KINDS["nothing"].read is None


@given(st.binary(max_size=20) | st.none(), st.sampled_from(sorted(KINDS)))
@STEADY
def test_any_content_is_read_or_invalid(payload: bytes | None, type: str) -> None:
    reader = KINDS[type].read
    if reader is None:
        return
    items: list[AnyMessage] = [Binary(type, payload or b""), message(type, None if payload is None else list(payload))]
    for item in items:
        try:
            reader(item)
        except InvalidContent:
            continue


class Strict(msgspec.Struct):
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")


class Checked(Room):
    @on("range")
    def range(self, client: Client, content: Strict) -> None: ...


def test_a_check_of_the_authors_own_that_says_no_is_invalid_content() -> None:
    reader = Routes(Checked, Room).handlers["range"].read
    assert reader is not None
    assert reader(message("range", {"low": 1, "high": 2})) == Strict(1, 2)
    with pytest.raises(InvalidContent, match="low 3 is above high 2"):
        reader(message("range", {"low": 3, "high": 2}))


def test_on_message_gets_plain_values() -> None:
    assert read_any(message("x", {"a": [1]})) == {"a": [1]}
    assert read_any(message("x")) is None
    assert read_any(message("x", b"ab")) == b"ab"


# --- the table --------------------------------------------------------------------------------------------------------


def test_handlers_are_found_by_type_with_their_rate() -> None:
    class Two(Room):
        @on("a", rate=5)
        @on("b")
        def both(self, client: Client) -> None: ...

    handlers = Routes(Two, Room).handlers
    assert {(h.type, h.name, h.rate) for h in handlers.values()} == {("a", "both", 5), ("b", "both", 0)}


def test_handlers_are_inherited_and_can_be_replaced() -> None:
    class Base(Room):
        @on("a")
        def a(self, client: Client, content: int) -> None: ...
        @on("b")
        def b(self, client: Client) -> None: ...

    class Piece(Base):
        @on("a")
        def a(self, client: Client, content: str) -> None: ...  # type: ignore[override]

    handlers = Routes(Piece, Room).handlers
    assert set(handlers) == {"a", "b"}
    reader = handlers["a"].read
    assert reader is not None and reader(message("a", "x")) == "x"


def test_only_written_hooks_are_called() -> None:
    class Piece(Room):
        def on_join(self, client: Client) -> None: ...
        def on_tick(self, dt: float) -> None: ...

    assert Routes(Piece, Room).overrides == {"on_join", "on_tick"}
    assert Routes(Room, Room).overrides == frozenset()


def error_of(piece: type[Room]) -> str:
    with pytest.raises(PieceError) as error:
        Routes(piece, Room)
    return str(error.value)


def test_two_handlers_for_one_type_are_an_error_that_names_both() -> None:
    class Piece(Room):
        @on("move")
        def first(self, client: Client) -> None: ...
        @on("move")
        def second(self, client: Client) -> None: ...

    assert "two handlers for 'move': first and second" in error_of(Piece)
    assert "test_handlers.py:" in error_of(Piece)


def none(self) -> None: ...  # type: ignore[no-untyped-def]
def three(self, client, one, two) -> None: ...  # type: ignore[no-untyped-def]


@pytest.mark.parametrize("method", [none, three])
def test_a_handler_of_the_wrong_signature_is_an_error_that_names_its_line(method: Any) -> None:
    piece = type("Piece", (Room,), {"move": on("move")(lambda *a: None), "bad": method})
    on("bad")(method)
    text = error_of(piece)
    assert f"test_handlers.py:{method.__code__.co_firstlineno} {method.__name__} takes" in text
    assert "expected (self, client) or (self, client, content)" in text


def unknown_name(self, client: Client, content: Nowhere) -> None: ...  # type: ignore[no-untyped-def, name-defined]  # noqa: F821
def unknown_attribute(self, client: Client, content: msgspec.Nowhere) -> None: ...  # type: ignore[no-untyped-def, name-defined]
def no_type(self, client: Client, content: 7) -> None: ...  # type: ignore[no-untyped-def, valid-type]
def two_objects(self, client: Client, content: Step | Typed) -> None: ...  # type: ignore[no-untyped-def]
def no_code(self, client, content: "list[") -> None: ...  # type: ignore[no-untyped-def, syntax, valid-type]  # noqa: F722


@pytest.mark.parametrize("method", [unknown_name, unknown_attribute, no_type, two_objects, no_code])
def test_an_annotation_that_cannot_be_used_is_an_error_that_names_its_line(method: Any) -> None:
    piece = type("Piece", (Room,), {"bad": on("bad")(method)})
    text = error_of(piece)
    assert f"test_handlers.py:{method.__code__.co_firstlineno} {method.__name__}: " in text
    assert "'content'" in text


@pytest.mark.parametrize("type", ["", "a" * 256])
def test_a_handler_for_a_bad_type_is_refused_at_once(type: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        on(type)


@pytest.mark.parametrize("type", ["left", "session:join", "secret"])
def test_a_handler_that_could_never_be_called_is_an_error(type: str) -> None:
    """Clients may not say these, so the author waits for what will not come."""

    class Piece(Room):
        server_only = ("secret",)

        @on(type)
        def never(self, client: Client) -> None: ...

    assert repr(type) in error_of(Piece)


@pytest.mark.parametrize(
    ("relay", "passed", "kept"),
    [
        ((), [], ["cursor", ""]),
        (False, [], ["cursor"]),
        (True, ["cursor", "a:b:c", "x\n"], []),
        (("cursor",), ["cursor"], ["cursors", "a:cursor"]),
        (("cursor:*",), ["cursor:", "cursor:a:b"], ["cursor", "xcursor:a"]),
        (("world:*:move",), ["world:a:move"], ["world:a:b:move", "world:a:moved"]),
        (("a", "b"), ["a", "b"], ["ab", "c"]),
        (("a.b",), ["a.b"], ["axb"]),
    ],
)
def test_what_a_room_relays(relay: Any, passed: list[str], kept: list[str]) -> None:
    routes = Routes(type("Piece", (Room,), {"relay": relay}), Room)
    assert [type for type in passed + kept if routes.kind(type) is Kind.RELAYED] == passed


def test_what_only_the_server_may_say() -> None:
    class Piece(Room):
        server_only = ("score", "game:*")

    routes = Routes(Piece, Room)
    types = ["score", "game:over", "game:a:b", "scores", "left", "session:x", "move"]
    assert [type for type in types if routes.kind(type) in (Kind.OWNED, Kind.CONTROL)] == [
        "score",
        "game:over",
        "game:a:b",
        "left",
        "session:x",
    ]


@pytest.mark.parametrize("name", ["relay", "server_only"])
def test_one_type_without_its_comma_is_an_error(name: str) -> None:
    """`relay = ("cursor")` is a string, and would relay `c`, `u`, `r`, `s` and `o`."""
    assert name in error_of(type("Piece", (Room,), {name: "cursor"}))


def test_what_clients_invent_is_not_remembered_for_ever() -> None:
    routes = Routes(type("Piece", (Room,), {"relay": ("x",)}), Room)
    for n in range(5000):
        routes.kind(f"type {n}")
    assert routes.kind.cache_info().currsize <= 1024


def test_where_names_file_line_and_method() -> None:
    assert where(Kinds.pair).endswith(" Kinds.pair")
    assert f"test_handlers.py:{Kinds.pair.__code__.co_firstlineno} " in where(Kinds.pair)
