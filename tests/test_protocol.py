"""Words on the wire: what is encoded comes back, and bad bytes give ProtocolError and nothing else."""

from __future__ import annotations

import json
import unicodedata
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from session_server import protocol
from session_server.protocol import (
    CLASSIC,
    MAX_DATA,
    MAX_NAME,
    MAX_SLUG,
    MAX_TYPE,
    SERVER_OWNED,
    TICKET_LIFE,
    V1_DIALECT,
    Ask,
    Binary,
    Close,
    Dialect,
    LimitExceeded,
    Message,
    PieceError,
    ProtocolError,
    Refused,
    RoomFull,
    SessionError,
    Tickets,
    check_type,
    compile_patterns,
    connected,
    decode_control,
    decode_hello,
    joined,
    left,
    message,
    origin_allowed,
    pack_binary,
    piece_of,
    slug_from_path,
    slug_from_target,
    slug_to_path,
    unpack_binary,
)

STEADY = settings(derandomize=True, deadline=None, max_examples=150)

DIALECTS = pytest.mark.parametrize("dialect", [CLASSIC, V1_DIALECT], ids=["classic", "v1"])

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
types = texts.filter(lambda text: 0 < len(text.encode()) <= MAX_TYPE)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
json_values: Any = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def refuse_constants(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def strict_json(text: str) -> Any:
    return json.loads(text, parse_constant=refuse_constants)


# --- messages ---------------------------------------------------------------------------------------------------------


@DIALECTS
@given(type=types, content=json_values, id=st.integers(0, 2**31))
@STEADY
def test_a_message_survives_the_wire(dialect: Dialect, type: str, content: Any, id: int) -> None:
    data = dialect.encode(message(type, content, id))
    assert data is not None
    assert strict_json(data.decode()) == {"type": type, "content": content, "id": id}
    found = dialect.decode(data.decode())
    assert (found.type, msgspec.json.decode(found.content), found.id) == (type, content, id)


@DIALECTS
@given(content=json_values, spaces=st.sampled_from(["", " ", "\n\t "]))
@STEADY
def test_content_is_relayed_byte_by_byte(dialect: Dialect, content: Any, spaces: str) -> None:
    written = json.dumps(content, ensure_ascii=False, separators=("," + spaces, ":" + spaces))
    found = dialect.decode(f'{spaces}{{"type":"a","content":{spaces}{written}{spaces}}}')
    found.id = 3
    again = dialect.encode(found)
    assert again is not None and again == f'{{"type":"a","content":{written},"id":3}}'.encode()


@DIALECTS
def test_a_message_without_content_is_relayed_without(dialect: Dialect) -> None:
    found = dialect.decode('{"type":"wave"}')
    found.id = 3
    assert dialect.encode(found) == b'{"type":"wave","id":3}'


NON_MESSAGES = {
    "empty": "",
    "not JSON": "hello",
    "a number": "7",
    "a string": '"hello"',
    "a list": '[{"type":"a"}]',
    "null": "null",
    "no type": '{"content":1}',
    "empty object": "{}",
    "empty type": '{"type":""}',
    "numeric type": '{"type":7}',
    "null type": '{"type":null}',
    "listed type": '{"type":["a"]}',
    "type of 256 letters": json.dumps({"type": "a" * 256}),
    "type of 256 bytes": json.dumps({"type": "é" * 128}),
    "type with a lone surrogate": '{"type":"\\ud800"}',
    "content with a lone surrogate": '{"type":"a","content":"\\ud800"}',
    "content with NaN": '{"type":"a","content":NaN}',
    "content with Infinity": '{"type":"a","content":[-Infinity]}',
    "content with a comma too many": '{"type":"a","content":[1,]}',
    "content with a leading zero": '{"type":"a","content":01}',
    "trailing text": '{"type":"a"} x',
    "two objects": '{"type":"a"}{"type":"b"}',
    "cut off": '{"type":"a"',
    "control character": '{"type":"a\n"}',
    "byte order mark": '\ufeff{"type":"a"}',
    "nested deeply": '{"type":"a","content":' + "[" * 100_000 + "]" * 100_000 + "}",
    "nested deeply, not closed": '{"type":"a","content":' + '{"a":' * 100_000,
    "nested deeply in another key": '{"type":"a","b":' + "[" * 100_000 + "]" * 100_000 + "}",
}


@DIALECTS
@pytest.mark.parametrize("text", NON_MESSAGES.values(), ids=NON_MESSAGES)
def test_what_is_no_message_is_refused(dialect: Dialect, text: str) -> None:
    with pytest.raises(ProtocolError) as refusal:
        dialect.decode(text)
    assert refusal.value.code == Close.NOT_MESSAGES
    assert str(refusal.value).startswith("not a message: ")


@DIALECTS
@pytest.mark.parametrize("type", ["a" * 255, "é" * 127, "😀" * 63])
def test_the_longest_types_are_messages(dialect: Dialect, type: str) -> None:
    assert dialect.decode(json.dumps({"type": type})).type == type


@DIALECTS
@given(st.text() | st.text('{}[]":,\\ typecnid01eE.-+ulfras"'))
@STEADY
def test_any_text_is_a_message_or_a_protocol_error(dialect: Dialect, text: str) -> None:
    try:
        found = dialect.decode(text)
    except ProtocolError:
        return
    assert isinstance(strict_json(text), dict) and found.type == strict_json(text)["type"]


@DIALECTS
@given(st.data())
@STEADY
def test_a_damaged_message_is_a_message_or_a_protocol_error(dialect: Dialect, data: Any) -> None:
    """What is let through is JSON to everybody: one client must not be able to make the others' parsers fail."""
    text = json.dumps({"type": "a", "content": data.draw(json_values), "id": 7})
    at = data.draw(st.integers(0, len(text) - 1))
    text = text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(st.integers(0, 3)) :]
    try:
        found = dialect.decode(text)
    except ProtocolError:
        return
    found.id = 7
    written = dialect.encode(found)
    assert written is not None and isinstance(strict_json(written.decode())["type"], str)


@given(
    content=json_values,
    extra=st.dictionaries(texts.filter(lambda key: key not in {"type", "content", "id", "reliable"}), json_values),
    order=st.randoms(use_true_random=False),
)
@STEADY
def test_extra_keys_survive_among_classic_clients(content: Any, extra: dict[str, Any], order: Any) -> None:
    sent = list({"type": "pond:new", "content": content, "id": "forged", **extra}.items())
    order.shuffle(sent)
    found = CLASSIC.decode(json.dumps(dict(sent)))
    found.id = 5
    written = CLASSIC.encode(found)
    assert written is not None
    assert strict_json(written.decode()) == {"type": "pond:new", "content": content, "id": 5, **extra}


def test_a_classic_message_may_have_its_fields_beside_a_missing_content() -> None:
    """`module:request {path, withDeps}` has them at top level (wire.md §4.2 of the original's clients)."""
    found = CLASSIC.decode('{"type":"module:request","path":"lib/disk.mjs"}')
    found.id = 5
    written = CLASSIC.encode(found)
    assert written is not None
    assert json.loads(written) == {"type": "module:request", "path": "lib/disk.mjs", "id": 5}


def test_extra_keys_of_a_classic_client_do_not_reach_session_v1() -> None:
    """docs/reference/wire.md: other keys are relayed by classic, ignored by session.v1."""
    found = CLASSIC.decode('{"type":"a","content":1,"zoom":2}')
    found.id = 5
    assert json.loads(V1_DIALECT.encode(found) or b"") == {"type": "a", "content": 1, "id": 5}


def test_extra_keys_of_a_session_v1_client_are_ignored() -> None:
    found = V1_DIALECT.decode('{"type":"a","zoom":{"x":1},"content":1,"room":"other"}')
    found.id = 5
    assert json.loads(V1_DIALECT.encode(found) or b"") == {"type": "a", "content": 1, "id": 5}


@pytest.mark.parametrize("reliable", ["0", "null", '"false"', "[]"])
def test_reliable_is_a_boolean_in_session_v1(reliable: str) -> None:
    with pytest.raises(ProtocolError):
        V1_DIALECT.decode(f'{{"type":"a","reliable":{reliable}}}')


def test_classic_clients_are_told_nothing_of_reliability() -> None:
    assert CLASSIC.encode(message("a", 1, 5, reliable=False)) == b'{"type":"a","content":1,"id":5}'


def test_only_session_v1_is_sent_binary() -> None:
    binary = message("ink", b"\x00\xff", 5)
    assert CLASSIC.encode(binary) is None
    assert V1_DIALECT.encode(binary) == b"\x01\x03ink\x00\x00\x00\x05\x00\xff"


@pytest.mark.parametrize("content", [b"ab", bytearray(b"ab"), memoryview(b"ab")])
def test_any_kind_of_bytes_becomes_a_binary_message(content: Any) -> None:
    assert message("ink", content) == Binary("ink", b"ab")


@pytest.mark.parametrize("type", ["", "a" * 256, "é" * 128])
def test_the_server_cannot_send_a_bad_type(type: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_type(type)
    with pytest.raises(ValueError, match="expected"):
        message(type, 1)


@pytest.mark.parametrize("content", [object(), {1j: 2}, [print]])
def test_content_that_is_not_json_is_a_type_error(content: Any) -> None:
    with pytest.raises(TypeError):
        message("a", content)


# --- binary frames ----------------------------------------------------------------------------------------------------


@given(type=types, payload=st.binary(max_size=40), id=st.integers(0, 2**32 - 1), reliable=st.booleans())
@STEADY
def test_a_binary_frame_survives_the_wire(type: str, payload: bytes, id: int, reliable: bool) -> None:
    packed = pack_binary(Binary(type, payload, id, UNSET if reliable else False))
    name = type.encode()
    assert packed == bytes((1 if reliable else 2, len(name))) + name + id.to_bytes(4, "big") + payload
    assert unpack_binary(packed) == Binary(type, payload, id, UNSET if reliable else False)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x01", b"\x00\x01a\0\0\0\0", b"\x04\x01a\0\0\0\0", b"\x03\x01a\0\0\0\0\0\0\0", b"\x01\x00\0\0\0\0x",
        b"\x01\x01a\0\0\0", b"\x01\xffabc\0\0\0\0", b"\x01\x01\xff\0\0\0\0", b'{"type":"a"}',
    ],
)  # fmt: skip
def test_a_bad_binary_frame_is_no_message(data: bytes) -> None:
    with pytest.raises(ProtocolError) as refusal:
        unpack_binary(data)
    assert refusal.value.code == Close.NOT_MESSAGES


@given(st.binary(max_size=24) | st.binary(max_size=24).map(lambda data: b"\x01\x02" + data))
@STEADY
def test_any_bytes_are_a_binary_message_or_a_protocol_error(data: bytes) -> None:
    try:
        found = unpack_binary(data)
    except ProtocolError:
        return
    assert pack_binary(found) == data


# --- control messages -------------------------------------------------------------------------------------------------


def hello(content: Any) -> Any:
    return decode_hello(message("session:join", content))


def test_a_hello_may_say_nothing() -> None:
    found = hello({})
    assert (found.name, found.data, found.token, found.resume, found.received) == (None, None, None, None, 0)


def test_a_hello_says_who_comes() -> None:
    found = hello({"name": "ada", "data": {"hue": 3}, "token": "t", "resume": "r", "received": 9, "later": 1})
    assert (found.name, found.data, found.token, found.resume, found.received) == ("ada", {"hue": 3}, "t", "r", 9)


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("  ada ", "ada"), ("a\x00d\x1ba", "ada"), ("\u202eada", "ada"), ("\ue000", None), ("", None), (" \n ", None),
        ("Ж é 😀", "Ж é 😀"), ("x" * MAX_NAME, "x" * MAX_NAME),
    ],
)  # fmt: skip
def test_a_name_has_no_characters_that_act(given_name: str, name: str | None) -> None:
    assert hello({"name": given_name}).name == name


@pytest.mark.parametrize(
    "content",
    [
        {"name": "x" * (MAX_NAME + 1)}, {"data": "x" * (MAX_DATA - 1)}, {"name": 7}, {"token": {}}, {"resume": 1},
        {"received": "3"}, {"received": 1.5}, [], "ada", 7,
    ],
)  # fmt: skip
def test_a_bad_hello_is_a_protocol_error(content: Any) -> None:
    with pytest.raises(ProtocolError):
        hello(content)


def test_data_of_a_hello_may_have_4096_bytes() -> None:
    assert hello({"data": "x" * (MAX_DATA - 2)}).data == "x" * (MAX_DATA - 2)


@pytest.mark.parametrize("first", [message("move", {}), message("session:ask", {}), Binary("session:join", b"{}")])
def test_the_first_message_is_a_hello(first: Any) -> None:
    with pytest.raises(ProtocolError, match="expected 'session:join'") as refusal:
        decode_hello(first)
    assert refusal.value.code == Close.POLICY


@given(json_values)
@STEADY
def test_any_control_content_is_read_or_a_protocol_error(content: Any) -> None:
    found = message("session:ask", content)
    assert isinstance(found, Message)
    try:
        ask = decode_control(found, Ask)
    except ProtocolError:
        return
    assert isinstance(ask.ask, int) and isinstance(ask.type, str)


# --- patterns of types ------------------------------------------------------------------------------------------------


def matches(pattern: str, type: str) -> bool:
    """`*` is anything but a colon; the last of a pattern is anything at all if nothing follows it."""
    if pattern.endswith("*"):
        *head, _ = pattern.split("*")
        return any(matches("*".join(head), type[:n]) for n in range(len(type) + 1))
    head, star, tail = pattern.partition("*")
    if not star:
        return type == pattern
    if not type.startswith(head):
        return False
    rest = type[len(head) :]
    ends = [n for n in range(len(rest) + 1) if ":" not in rest[:n]]
    return any(matches(tail, rest[n:]) for n in ends)


@given(st.lists(st.text("ab:*.\n", min_size=1, max_size=6), max_size=3), st.text("ab:.\n", max_size=8))
@example(["world:*:list"], "world:a:list")
@example(["*"], "")
@STEADY
def test_patterns_match_as_documented(patterns: list[str], type: str) -> None:
    expected = any(matches(pattern, type) for pattern in patterns if "**" not in pattern)
    assume(all("**" not in pattern for pattern in patterns))
    assert (compile_patterns(tuple(patterns)).fullmatch(type) is not None) == expected


@pytest.mark.parametrize(
    ("type", "owned"),
    [
        ("connected", True), ("joined", True), ("left", True), ("reload", True), ("session:welcome", True),
        ("session:", True), ("session:a:b", True), ("connected2", False), ("lefty", False), ("session", False),
        ("world:field:list", False), ("left\n", False), ("Joined", False),
    ],
)  # fmt: skip
def test_server_owned_types(type: str, owned: bool) -> None:
    assert (compile_patterns(SERVER_OWNED).fullmatch(type) is not None) is owned


def test_classic_greetings_are_what_existing_pages_parse() -> None:
    """Two contents are JSON strings, one is an object (wire.md, classic)."""
    heard = [json.loads(CLASSIC.encode(m) or b"") for m in (connected(7, "::1", 3), joined(7, 3), left(7, 2))]
    contents = [one.pop("content") for one in heard]
    assert heard == [{"type": "connected", "id": 7}, {"type": "joined", "id": 7}, {"type": "left", "id": 7}]
    assert json.loads(contents[0]) == {"ip": "::1", "playerCount": 3, "id": 7}
    assert json.loads(contents[1]) == {"text": "7 has joined. Connections open: 3"}
    assert contents[2] == {"count": 2}


# --- slugs ------------------------------------------------------------------------------------------------------------


slugs = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=MAX_SLUG)


@given(slugs)
@example("a%b")
@example("100%25")
@example("prompt~hello")
@example("a/@b:c$d?e#f")
@STEADY
def test_a_slug_survives_its_path(slug: str) -> None:
    slug = unicodedata.normalize("NFC", slug)
    assume(len(slug) <= MAX_SLUG and not set(slug) & protocol.BIDI)
    assume(not {"", ".."} & set(slug.split("/")))
    path = slug_to_path(slug)
    assert path.isascii() and path.startswith("/session/")
    assert slug_from_target(path) == slug


@pytest.mark.parametrize(
    ("encoded", "slug"),
    [
        ("field", "field"), ("field~blue", "field~blue"), ("a/b", "a/b"), ("a%2Fb", "a/b"), ("%66ield", "field"),
        ("caf%C3%A9", "café"), ("cafe%CC%81", "café"), ("café", "café"), ("%2525", "%25"), ("%20", " "),
        ("a.b", "a.b"), ("...", "..."), ("x" * 128, "x" * 128), ("%F0%9F%98%80" * 128, "😀" * 128),
    ],
)  # fmt: skip
def test_good_slugs(encoded: str, slug: str) -> None:
    assert slug_from_path(encoded) == slug


@pytest.mark.parametrize(
    "encoded",
    [
        "", "x" * 129, "%", "%2", "%zz", "a%ff", "%ED%A0%80", "%C0%AF", "a%00b", "a%0Ab", "%7F", "%C2%85", "%E2%80%AE",
        "\u200f", "..", "a/../b", "%2e%2e/etc", "..%2F..", "a//b", "/a", "a/", "a%2F", "%2F", "\udcff",
    ],
)  # fmt: skip
def test_bad_slugs_are_refused_with_one_plain_line(encoded: str) -> None:
    with pytest.raises(ValueError, match="^slug (has|is) ") as refusal:
        slug_from_path(encoded)
    line = str(refusal.value)
    assert line.isprintable() and len(line) < 100


@given(st.text())
@STEADY
def test_any_path_is_a_slug_or_a_value_error(encoded: str) -> None:
    try:
        slug = slug_from_path(encoded)
    except ValueError:
        return
    assert 1 <= len(slug) <= MAX_SLUG and slug == unicodedata.normalize("NFC", slug)
    assert not {"", ".."} & set(slug.split("/"))
    assert not any(unicodedata.category(c) == "Cc" for c in slug)


@pytest.mark.parametrize(
    ("target", "slug"),
    [
        ("/", "lobby"), ("/?a=1", "lobby"), ("/session/lobby", "lobby"), ("/session/field?token=x", "field"),
        ("/session/a%3Fb", "a?b"), ("/sessions/field", None), ("/session", None), ("/field", None), ("//", None),
        ("", None), ("*", None), ("/Session/field", None), ("http://host/session/field", None),
    ],
)  # fmt: skip
def test_which_targets_name_a_room(target: str, slug: str | None) -> None:
    assert slug_from_target(target) == slug


def test_an_empty_slug_is_bad_not_unknown() -> None:
    with pytest.raises(ValueError, match="0 characters"):
        slug_from_target("/session/")


@pytest.mark.parametrize(
    ("slug", "piece"),
    [("field", "field"), ("field~blue", "field"), ("field:9", "field"), ("a~b:c", "a"), ("a:b~c", "a"), ("~x", "")],
)
def test_the_piece_is_what_stands_before_the_first_mark(slug: str, piece: str) -> None:
    assert piece_of(slug) == piece


# --- origins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "hosts", "listed", "allowed"),
    [
        (None, ("play.example",), (), True),  # no browser
        ("https://play.example", ("play.example",), (), True),
        ("https://play.example", ("play.example:8889",), (), True),
        ("http://localhost:3000", ("localhost:8889",), (), True),
        ("https://PLAY.example", ("play.Example",), (), True),
        ("http://[::1]:80", ("[::1]:8889",), (), True),
        ("https://evil.example", ("play.example",), (), False),
        ("https://play.example.evil", ("play.example",), (), False),
        ("https://evilplay.example", ("play.example",), (), False),
        ("https://play.example@evil.example", ("play.example",), (), False),
        ("https://evil.example", ("play.example",), ("https://evil.example",), True),
        ("https://evil.example:444", ("play.example",), ("https://evil.example",), False),
        ("http://evil.example", ("play.example",), ("https://evil.example",), False),
        ("https://evil.example", ("play.example",), ("*",), True),
        ("null", ("play.example",), (), False),
        ("null", ("play.example",), ("null",), True),
        ("null", ("null",), (), False),
        ("", ("play.example",), (), False),
        ("", ("",), (), False),
        ("https://[", ("play.example",), (), False),
        ("https://play.example", ("[",), (), False),
        ("https://play.example", (), (), False),
        ("https://play.example", ("other.example", "play.example"), (), True),
    ],
)
def test_which_origins_may_join(
    origin: str | None, hosts: tuple[str, ...], listed: tuple[str, ...], allowed: bool
) -> None:
    assert origin_allowed(origin, hosts, listed) is allowed


# --- tickets ----------------------------------------------------------------------------------------------------------


def tickets(secret: bytes = b"s" * 32) -> Tickets:
    return Tickets(secret)


@given(slugs.map(lambda slug: unicodedata.normalize("NFC", slug)), st.floats(0, 1e9))
@STEADY
def test_a_ticket_names_its_room(slug: str, now: float) -> None:
    office = tickets()
    ticket = office.issue(slug, now)
    assert ticket.isascii() and " " not in ticket
    assert office.redeem(ticket, "datachannel", now + TICKET_LIFE - 0.01) == slug


def test_a_ticket_expires() -> None:
    office = tickets()
    ticket = office.issue("field", 100.0)
    with pytest.raises(ValueError, match="expired"):
        office.redeem(ticket, "datachannel", 100.0 + TICKET_LIFE + 0.01)


def test_a_ticket_is_good_once_for_each_kind_of_link() -> None:
    office = tickets()
    ticket = office.issue("field", 0.0)
    assert office.redeem(ticket, "datachannel", 1.0) == "field"
    assert office.redeem(ticket, "websocket", 1.0) == "field"
    for kind in ("datachannel", "websocket"):
        with pytest.raises(ValueError, match="used before"):
            office.redeem(ticket, kind, 59.0)
    assert office.redeem(office.issue("field", 0.0), "datachannel", 1.0) == "field"


def test_a_used_ticket_stays_used_until_it_expires_whatever_others_do() -> None:
    office = tickets()
    ticket = office.issue("field", 0.0)
    office.redeem(ticket, "datachannel", 0.0)
    for second in range(0, 60):
        office.redeem(office.issue("chat", float(second)), "datachannel", float(second))
        with pytest.raises(ValueError, match="used before"):
            office.redeem(ticket, "datachannel", float(second))
    assert len(office._used) <= 62  # and what has expired is forgotten
    office.redeem(office.issue("chat", 1000.0), "datachannel", 1000.0)
    assert len(office._used) == 1


def test_a_ticket_of_another_server_is_refused() -> None:
    with pytest.raises(ValueError, match="not ours"):
        tickets().redeem(tickets(b"t" * 32).issue("field", 0.0), "datachannel", 1.0)


def test_a_ticket_cannot_be_changed() -> None:
    office = tickets()
    ticket = office.issue("field", 0.0)
    body, _, signature = ticket.partition(".")
    plain = urlsafe_b64decode(body + "=" * (-len(body) % 4)).replace(b"field", b"chess")
    forged = urlsafe_b64encode(plain).rstrip(b"=").decode()
    changed = [ticket[:at] + ("A" if ticket[at] != "A" else "B") + ticket[at + 1 :] for at in range(len(ticket))]
    for bad in (
        *changed,
        f"{forged}.{signature}",
        ticket + "=",
        ticket + ".",
        body,
        f"{body}.",
        f".{signature}",
        "",
        ".",
    ):
        with pytest.raises(ValueError, match="not ours"):
            office.redeem(bad, "datachannel", 1.0)
    assert office.redeem(ticket, "datachannel", 1.0) == "field"


@given(st.text(max_size=60))
@STEADY
def test_any_ticket_is_a_slug_or_a_value_error(ticket: str) -> None:
    with pytest.raises(ValueError):
        tickets().redeem(ticket, "datachannel", 0.0)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_each_error_knows_its_close_code() -> None:
    errors: list[SessionError] = [
        ProtocolError(Close.BAD_TEXT, "x"), LimitExceeded("max_rooms", 503, "x"), RoomFull("x"), Refused("x"),
        PieceError("x"),
    ]  # fmt: skip
    assert [error.code for error in errors] == [1007, 1013, 1013, 4401, 1011]
    assert all(str(error) == "x" for error in errors)
