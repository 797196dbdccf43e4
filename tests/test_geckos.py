"""The framing of geckos.io clients: what a text says, what is sent to them, who hears it, and what is a repetition."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from session_server.geckos import (
    BESIDE,
    MAX_REMEMBERED,
    MEMBER,
    RAW,
    REMEMBERED_FOR,
    RESERVED,
    Repeats,
)
from session_server.protocol import CLASSIC, V1_DIALECT, Binary, Message, ProtocolError, message

EVENTS = [
    ('{"ping":{"n":1}}', "ping", b'{"n":1}'),
    ('{"ping":null}', "ping", b"null"),
    ('{"fairy:point":"{\\"x\\":0.5}"}', "fairy:point", b'"{\\"x\\":0.5}"'),  # a string stays a string
    ('{"ping":1,"pong":2}', "ping", b"1"),
    ('{"b":1,"1":2,"0":3}', "0", b"3"),  # JavaScript puts what looks like an index first
    ('{"b":1,"01":2}', "b", b"1"),
    ('{"b":1,"4294967295":2}', "b", b"1"),
    ('{"a":1,"a":2}', "a", b"2"),
    (' {"a": 1}', "a", b"1"),
    ('{"a":{"RELIABLE":1}', RAW, b'"{\\"a\\":{\\"RELIABLE\\":1}"'),  # a brace is missing
    ('{"a":{"RELIABLE":2,"ID":"x"}}', "a", b'{"RELIABLE":2,"ID":"x"}'),
    ('{"a":{"RELIABLE":true,"ID":"x"}}', "a", b'{"RELIABLE":true,"ID":"x"}'),
    ('{"a":"\\"RELIABLE\\""}', "a", b'"\\"RELIABLE\\""'),
]
RAW_STRINGS = [
    "", "plain", "42", " -7", "3 apples", "{}", "[]", "true", "false", "null", '"abc"', "[5,6]", "NaN", '{"a":NaN}',
    '{"a":Infinity}', '{"a":1} x', "{", "[" * 5000, "\ufeff{}", '{"a":1,}', "{'a':1}",
]  # fmt: skip


@pytest.mark.parametrize(("text", "type", "content"), EVENTS)
def test_a_json_object_is_an_event_and_its_content_stays_as_it_was(text: str, type: str, content: bytes) -> None:
    for dialect in (MEMBER, BESIDE):
        found = dialect.decode(text)
        assert (found.type, bytes(found.content), found.id, found.reliable) == (type, content, UNSET, False)


@pytest.mark.parametrize("text", RAW_STRINGS)
def test_any_other_text_is_raw(text: str) -> None:
    found = MEMBER.decode(text)
    assert (found.type, json.loads(bytes(found.content)), found.reliable) == (RAW, text, False)


def test_a_reliable_message_is_unwrapped_and_known_by_its_id() -> None:
    found = MEMBER.decode('{"rel":{"MESSAGE":{"x":1},"RELIABLE":1,"ID":"Mh71nIrEKNEFYAM1gXcnPXLQ"}}')
    assert (found.type, bytes(found.content), found.id) == ("rel", b'{"x":1}', "Mh71nIrEKNEFYAM1gXcnPXLQ")
    assert found.reliable is UNSET
    assert bytes(MEMBER.decode('{"rel":{"RELIABLE":1.0,"ID":"x"}}').content) == b"null"


@pytest.mark.parametrize(
    "text",
    [
        '{"":1}',
        json.dumps({"x" * 256: 1}),
        '{"rel":{"MESSAGE":1,"RELIABLE":1}}',
        '{"rel":{"MESSAGE":1,"RELIABLE":1,"ID":7}}',
        '{"rel":{"MESSAGE":1,"RELIABLE":1,"ID":""}}',
        json.dumps({"rel": {"RELIABLE": 1, "ID": "x" * 65}}),
    ],
)
def test_what_is_neither_event_nor_raw_is_no_message(text: str) -> None:
    with pytest.raises(ProtocolError, match="expected"):
        MEMBER.decode(text)


@given(st.text())
def test_any_text_is_a_message_or_none(text: str) -> None:
    try:
        found = MEMBER.decode(text)
    except ProtocolError:
        return
    assert found.type and (found.type != RAW or json.loads(bytes(found.content)) is not None)


def test_what_is_sent_is_an_event_with_the_content_unread() -> None:
    assert MEMBER.encode(message("move", "[1, 2]", id=7)) == b'{"move":"[1, 2]"}'
    assert MEMBER.encode(Message("move")) == b'{"move":null}'
    assert MEMBER.encode(message('a"b', 1)) == b'{"a\\"b":1}'
    assert MEMBER.encode(Binary(RAW, b"\1\2")) == b"\1\2"
    assert MEMBER.encode(Binary("move", b"\1\2")) is None, "the library has no events with bytes"


@pytest.mark.parametrize("text", ['{"connect":1}', "null", "plain", "", "7"])
def test_a_raw_string_of_another_client_arrives_as_one_and_as_nothing_else(text: str) -> None:
    """D22, D23: alone, `null` would make the library throw, and an object would be an event of its sender's choice."""
    sent = MEMBER.encode(message(RAW, text))
    assert sent is not None
    assert json.loads(sent) == {RAW: text}
    again = MEMBER.decode(sent.decode())
    assert (again.type, json.loads(bytes(again.content))) == (RAW, text)


@pytest.mark.parametrize("type", sorted(RESERVED))
def test_the_library_s_own_events_cannot_be_faked(type: str) -> None:
    """D28."""
    assert MEMBER.encode(message(type, 1)) is None


def test_a_page_with_both_wires_hears_nothing_twice() -> None:
    by_channel, by_socket = BESIDE.decode('{"tv":1}'), CLASSIC.decode('{"type":"tv","content":1}')
    assert CLASSIC.encode(by_channel) is None and BESIDE.encode(by_socket) is None
    assert CLASSIC.encode(CLASSIC.decode('{"type":"tv","x":1}')) is not None
    for dialect in (V1_DIALECT, MEMBER, BESIDE):
        assert dialect.encode(by_channel) is not None
    for dialect in (V1_DIALECT, MEMBER, CLASSIC):
        assert dialect.encode(by_socket) is not None
    assert BESIDE.encode(message("tv", 1)) is not None, "the room's own go by both"


def test_classic_clients_hear_of_a_member_as_of_anybody() -> None:
    found = MEMBER.decode('{"1v1:move":"{}"}')
    found.id = 4
    assert json.loads(CLASSIC.encode(found) or b"") == {"type": "1v1:move", "content": "{}", "id": 4}


@pytest.mark.parametrize(
    ("type", "everyone"),
    [
        ("tv", True), ("slide:code", True), ("udp:audio", True), ("pond:new", True), ("fairy:point", False),
        (RAW, False),
    ],
)  # fmt: skip
def test_who_hears_a_relayed_event(type: str, everyone: bool) -> None:
    assert MEMBER.reaches_sender(type) is BESIDE.reaches_sender(type) is everyone


def test_a_repetition_is_known_for_15_seconds() -> None:
    repeats = Repeats()
    assert [repeats.is_news("a", now) for now in (0.0, 0.15, 14.9, 15.0)] == [True, False, False, True]
    assert repeats.is_news("b", 15.0)


def test_of_too_many_ids_the_oldest_are_forgotten() -> None:
    repeats = Repeats()
    for number in range(10 * MAX_REMEMBERED):
        assert repeats.is_news(str(number), number / MAX_REMEMBERED)
    assert len(repeats._until) == MAX_REMEMBERED
    assert not repeats.is_news(str(10 * MAX_REMEMBERED - 1), 10.0)
    assert repeats.is_news("late", 10.0 + 2 * REMEMBERED_FOR) and len(repeats._until) == 1
