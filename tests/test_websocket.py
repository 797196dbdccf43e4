"""One WebSocket connection against a wire in memory: the fast lane and the library together are one RFC 6455."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from faults import Wire, delayed, dropping, stalled
from serving import (
    BINARY,
    CLOSE,
    CONTINUATION,
    NO_STATUS,
    PING,
    PONG,
    TEXT,
    V1,
    Log,
    code_of,
    frame_end,
    masked,
    upgrade_head,
)
from session_server import Client, Refused, Room, User, on
from session_server.config import Config
from session_server.rooms import Rooms
from session_server.transports.websocket import (
    CLOSE_WITHIN,
    EXCESS,
    FIRST_PING,
    HIGH_WATER,
    JOIN_WITHIN,
    MAX_UNSENT,
    PING_EVERY,
    Connection,
    WebSockets,
)

UNLIMITED = {"message_rate": 0, "byte_rate": 0, "new_rooms_per_address": 0, "connections_per_address": 0}


class House:
    """Rooms and their WebSockets without a loop: time passes when the test says so."""

    def __init__(self, room: type[Room] | None = None, **more: Any) -> None:
        self.now = 1000.0
        self.room = room
        self.log = Log()
        self.asked: list[tuple[Awaitable[Any], Callable[[Any, BaseException | None], None]]] = []
        self._tokens = 0
        self._due = False
        config = Config(**(UNLIMITED | more))
        self.rooms = Rooms(
            config, self, log=self.log, clock=lambda: self.now, token=self._token, wake=self._wake, spawn=self._spawn
        )
        self.sockets = WebSockets(config, self.rooms, lambda: self.now, self.log, draining=lambda: False)
        self.wires: list[Wire] = []

    def room_class(self, piece: str) -> type[Room] | None:
        return self.room

    def _token(self) -> str:
        self._tokens += 1
        return f"token {self._tokens}"

    def _wake(self, when: float) -> None:
        self._due = True

    def _spawn(
        self, awaitable: Awaitable[Any], seconds: float, done: Callable[[Any, BaseException | None], None]
    ) -> None:
        self.asked.append((awaitable, done))

    def answer(self, value: Any = None, error: BaseException | None = None) -> None:
        """The oldest async handler ends."""
        awaitable, done = self.asked.pop(0)
        awaitable.close()  # type: ignore[attr-defined]
        self.rooms.enter(self.now)
        done(value, error)
        self.turn()

    def open(self, subprotocol: str | None = None, rest: bytes = b"", path: str = "/session/field", **h: str) -> Peer:
        wire = Wire()
        self.wires.append(wire)
        self.sockets.upgrade(wire, upgrade_head(path, "localhost", subprotocol, h), rest)
        self.turn()
        return Peer(self, wire)

    def join(self, **hello: Any) -> Peer:
        """A session.v1 client with a seat."""
        peer = self.open(V1)
        peer.say("session:join", hello)
        peer.welcome = peer.hear("session:welcome")["content"]
        peer.id = peer.welcome["id"]
        return peer

    def turn(self) -> None:
        """Turns of the loop, until nothing happens any more."""
        for _ in range(100_000):
            due = self.rooms.run(self.now)
            busy = [wire.tick() for wire in self.wires if not wire.lost]
            if not any(busy) and (due is None or due > self.now):
                return
        raise AssertionError("the loop does not come to rest")

    def tick(self) -> None:
        """A single turn."""
        self.rooms.run(self.now)
        for wire in self.wires:
            wire.tick()

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + 0.5)
            self.rooms.enter(self.now)
            self.sockets.sweep(self.now)
            self.turn()

    @property
    def refused(self) -> dict[str, int]:
        return dict(self.rooms.totals.refused)

    @property
    def faults(self) -> list[Any]:
        return self.log.faults + [self.rooms.totals.faults] * bool(self.rooms.totals.faults)


@dataclass
class Peer:
    """The other end of a wire. Whatever it reads must be well-formed, and nothing may follow a close frame."""

    house: House
    wire: Wire
    id: int = 0
    welcome: Any = None
    at: int = 0  # what was heard of `sent`

    @property
    def connection(self) -> Connection:
        found = self.wire.get_protocol()
        assert isinstance(found, Connection)
        return found

    def send(self, data: bytes) -> None:
        self.wire.feed(data)
        self.house.turn()

    def say(self, type: str, content: Any = None, **more: Any) -> None:
        self.send(masked(TEXT, json.dumps({"type": type, "content": content, **more}).encode(), b"abcd"))

    def frames(self) -> list[tuple[int, bytes]]:
        """What came since the last call."""
        sent = self.wire.sent
        if self.at == 0:
            assert sent.startswith(b"HTTP/1.1 101 "), bytes(sent[:100])
            self.at = sent.index(b"\r\n\r\n") + 4
        found = []
        while self.at < len(sent) and self.at + frame_end(sent[self.at :]) <= len(sent):
            end = self.at + frame_end(sent[self.at :])
            data = bytes(sent[self.at : end])
            found.append((data[0], data[2 + {126: 2, 127: 8}.get(data[1], 0) :]))
            self.at = end
        first = [frame[0] for frame in found]
        assert set(first) <= {TEXT, BINARY, CLOSE, PING, PONG}
        assert CLOSE not in first[:-1], f"frames behind a close frame: {first}"
        return found

    def messages(self) -> list[Any]:
        return [json.loads(p) if f == TEXT else p for f, p in self.frames() if f in {TEXT, BINARY}]

    def hear(self, type: str) -> Any:
        (found,) = [m for m in self.messages() if m["type"] == type]
        return found

    def code(self) -> int | None:
        """The close code that came, None if none did."""
        return next((code_of(p) for f, p in self.frames() if f == CLOSE), None)


class Echo(Room):
    """Notes and returns every frame."""

    raw = True
    max_message = 200_000

    def on_create(self) -> None:
        self.got: list[str | bytes] = []

    def on_raw(self, client: Client, data: str | bytes) -> None:
        self.got.append(data)


class Talk(Room):
    relay = True


# --- frames in any order, in any pieces -------------------------------------------------------------------------------

Script = list[tuple[str, Any]]

SIZES = st.sampled_from((0, 1, 5, 124, 125, 126, 127, 128, 300, 65535, 65536, 70000))
WORDS = st.one_of(st.text(max_size=8), SIZES.map(lambda n: "x" * n), st.sampled_from(("é" * 63, "😀" * 40)))
BYTES = st.one_of(st.binary(max_size=8), SIZES.map(bytes))
SMALL = st.binary(max_size=125)
STEPS = st.one_of(
    st.tuples(st.just("text"), WORDS),
    st.tuples(st.just("binary"), BYTES),
    st.tuples(st.just("ping"), SMALL),
    st.tuples(st.just("pong"), SMALL),
    st.tuples(st.just("fragments"), st.tuples(WORDS, st.lists(st.integers(0, 400), max_size=4), st.lists(SMALL))),
    st.tuples(st.just("pieces"), st.tuples(BYTES, st.lists(st.integers(0, 400), max_size=4), st.lists(SMALL))),
)


def written(script: Script, mask: bytes) -> tuple[bytes, list[str | bytes], list[bytes]]:
    """Bytes of the frames, messages and pings in them."""
    data, messages, pings = b"", [], []
    for kind, value in script:
        if kind == "text":
            data += masked(TEXT, value.encode(), mask)
            messages.append(value)
        elif kind == "binary":
            data += masked(BINARY, value, mask)
            messages.append(value)
        elif kind in {"ping", "pong"}:
            data += masked(PING if kind == "ping" else PONG, value, mask)
            pings += [value] if kind == "ping" else []
        else:
            whole, cuts, between = value
            payload = whole.encode() if isinstance(whole, str) else whole
            edges = [0, *sorted(min(cut, len(payload)) for cut in cuts), len(payload)]
            parts = [payload[a:b] for a, b in zip(edges, edges[1:], strict=False)]
            for number, part in enumerate(parts):
                opcode = (1 if isinstance(whole, str) else 2) if number == 0 else 0
                data += masked(opcode | (0x80 if number == len(parts) - 1 else 0), part, mask)
                if number < len(parts) - 1:
                    data += b"".join(masked(PING, ping, mask) for ping in between)
                    pings += between
            messages.append(whole)
    return data, messages, pings


def heard(house: House, peer: Peer) -> tuple[list[str | bytes], list[bytes]]:
    """What the room was given, and what pongs came back."""
    assert not house.faults
    return house.rooms.rooms["field"].instance.got, [p for f, p in peer.frames() if f == PONG]


@settings(max_examples=150, deadline=None)
@given(
    script=st.lists(STEPS, max_size=8),
    mask=st.binary(min_size=4, max_size=4),
    cuts=st.lists(st.integers(0, 1000), max_size=12),
    behind_head=st.booleans(),
)
@example(script=[("pong", b""), ("text", "x" * 126)], mask=b"\0\0\0\0", cuts=[1], behind_head=True)
def test_a_stream_gives_the_same_messages_however_it_is_cut(
    script: Script, mask: bytes, cuts: list[int], behind_head: bool
) -> None:
    data, messages, pings = written(script, mask)
    edges = [0, *sorted(cut * len(data) // 1000 for cut in cuts), len(data)]
    parts = [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    house = House(Echo)
    peer = house.open(rest=parts.pop(0) if behind_head else b"")
    for part in parts:
        peer.send(part)
    assert heard(house, peer) == (messages, pings)
    assert peer.connection._rare is None and peer.connection._buffer is None, "an idle connection holds an object"


STREAM: Script = [
    ("text", "ab"),
    ("fragments", ("héllo wörld", [2, 7], [b"p1", b""])),
    ("binary", bytes(130)),
    ("ping", b"p2"),
    ("pieces", (b"\0\1\2", [], [])),
    ("text", "x" * 127),
    ("pong", b"zz"),
    ("text", "😀"),
]


def test_every_place_is_a_place_to_cut() -> None:
    data, messages, pings = written(STREAM, b"\x01\x80\xff\x7f")
    for at in range(len(data) + 1):
        house = House(Echo)
        peer = house.open()
        peer.send(data[:at])
        peer.send(data[at:])
        assert heard(house, peer) == (messages, pings), f"cut at {at}"


def test_byte_by_byte_is_the_same() -> None:
    data, messages, pings = written(STREAM, b"\x01\x80\xff\x7f")
    house = House(Echo)
    peer = house.open()
    for byte in data:
        peer.send(bytes([byte]))
    assert heard(house, peer) == (messages, pings)


def test_long_frames_byte_by_byte_cost_no_more_than_they_should() -> None:
    """A header that is not complete is looked at again, a payload is not."""
    house = House(Echo)
    peer = house.open()
    data = masked(TEXT, b"x" * 70_000) + masked(BINARY, b"y" * 60_000)
    for at in range(0, len(data), 7):
        peer.wire.feed(data[at : at + 7])
    house.turn()
    assert heard(house, peer)[0] == ["x" * 70_000, b"y" * 60_000]


def test_a_backlog_of_many_frames_is_taken_in_turns_and_in_order() -> None:
    house = House(Echo)
    peer, other = house.open(), house.open()
    count = 5000
    peer.wire.feed(b"".join(masked(TEXT, b"%d" % n) for n in range(count)))
    other.wire.feed(masked(TEXT, b"me"))
    house.tick()
    got = house.rooms.rooms["field"].instance.got
    assert "me" in got and len(got) < count, "the others waited for all of it"
    house.turn()
    assert [one for one in got if one != "me"] == [str(n) for n in range(count)]


def test_rare_frames_in_a_backlog_are_taken_in_turns_too() -> None:
    house = House(Echo)
    peer, other = house.open(), house.open()
    count = 1000
    peer.wire.feed(b"".join(masked(0x01, b"%d" % n) + masked(PING) + masked(CONTINUATION) for n in range(count)))
    other.wire.feed(masked(TEXT, b"me"))
    house.tick()
    got = house.rooms.rooms["field"].instance.got
    assert "me" in got and len(got) < count, "the others waited for all of it"
    house.turn()
    assert [one for one in got if one != "me"] == [str(n) for n in range(count)]


# --- hostile bytes ----------------------------------------------------------------------------------------------------

VERDICTS = {None, NO_STATUS, 1000, 1002, 1003, 1007, 1008, 1009}


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400), subprotocol=st.sampled_from((None, V1)), cut=st.integers(0, 400))
def test_no_bytes_are_a_fault_of_the_server(data: bytes, subprotocol: str | None, cut: int) -> None:
    house = House(Talk)
    peer = house.open(subprotocol)
    peer.send(data[:cut])
    peer.send(data[cut:])
    house.pass_time(50)
    assert not house.faults
    code = peer.code()
    assert code in VERDICTS or 3000 <= code < 5000 or data, code
    assert peer.wire.lost, "a connection that says nothing sensible is kept"


HEADS = st.tuples(
    st.integers(0, 255),  # FIN, RSV and opcode
    st.booleans(),  # masked
    st.sampled_from((7, 16, 64)),
    st.one_of(st.binary(max_size=10), st.just(b'{"type":"a"}'), st.sampled_from((125, 126, 4000)).map(bytes)),
    st.one_of(st.none(), st.sampled_from((0, 1, 125, 126, 65536, (1 << 63) - 1, 1 << 63))),
)


def head(first: int, mask: bool, form: int, payload: bytes, claim: int | None) -> bytes:
    size = len(payload) if claim is None else claim
    fits = {7: 125, 16: 65535, 64: (1 << 64) - 1}
    if size > fits[form]:
        form = min(width for width, most in fits.items() if size <= most)
    return masked(first, payload, b"abcd" if mask else None, form, claim)


@settings(max_examples=300, deadline=None)
@given(heads=st.lists(HEADS, min_size=1, max_size=6), subprotocol=st.sampled_from((None, V1)), joins=st.booleans())
def test_no_frames_are_a_fault_of_the_server(
    heads: list[tuple[int, bool, int, bytes, int | None]], subprotocol: str | None, joins: bool
) -> None:
    house = House(Talk)
    bystander = house.open()
    peer = house.join() if joins else house.open(subprotocol)
    for one in heads:
        peer.send(head(*one))
    bystander.say("still here")
    assert any(m["type"] == "still here" for m in bystander.messages())
    peer.frames()
    house.pass_time(2 * PING_EVERY + CLOSE_WITHIN)
    assert not house.faults
    assert peer.wire.lost and not house.sockets.connections - {bystander.connection}


@pytest.mark.parametrize("first", [0x83, TEXT | 0x40])
def test_the_first_broken_frame_ends_the_connection_and_what_follows_is_not_read(first: int) -> None:
    house = House(Echo)
    peer = house.open()
    peer.send(masked(TEXT, b"good") + masked(first) + masked(TEXT, b"late"))
    assert house.rooms.rooms["field"].instance.got == ["good"]
    assert peer.code() == 1002
    assert house.refused["closed_1002"] == 1 and not house.rooms.rooms["field"].clients


def test_a_fault_of_ours_ends_no_more_than_the_connection() -> None:
    house = House(Talk)
    peer, bystander = house.open(), house.open()
    core = house.rooms.rooms["field"]
    inbox, core.inbox = core.inbox, None  # type: ignore[assignment]
    peer.say("x")
    core.inbox = inbox
    assert peer.code() == 1011
    assert len(house.log.faults) == house.rooms.totals.faults == 1
    bystander.say("still here")
    assert any(m["type"] == "still here" for m in bystander.messages())


# --- beginning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subprotocol", [None, V1])
def test_the_101_comes_at_once_even_where_a_room_says_nothing(subprotocol: str | None) -> None:
    peer = House(Echo).open(subprotocol)
    assert peer.wire.sent.startswith(b"HTTP/1.1 101 ")
    assert (b"Sec-WebSocket-Protocol: session.v1" in peer.wire.sent) == (subprotocol is not None)
    assert peer.frames() == []


def test_a_classic_client_is_greeted_in_one_write_with_the_101() -> None:
    peer = House(Talk).open()
    assert [m["type"] for m in peer.messages()] == ["connected"]
    assert peer.wire.writes == 1


def test_who_does_not_join_in_time_is_closed_and_then_cut() -> None:
    house = House(Talk)
    peer = house.open(V1)
    house.pass_time(JOIN_WITHIN - 1)
    assert peer.code() is None
    house.pass_time(2)
    assert peer.code() == 1008 and house.refused["join_timeout"] == 1
    assert not peer.wire.lost
    house.pass_time(CLOSE_WITHIN + 1)
    assert peer.wire.aborted and not house.sockets.connections


def test_a_join_in_half_a_frame_is_no_join() -> None:
    house = House(Talk)
    peer = house.open(V1)
    peer.send(masked(TEXT, b'{"type":"session:join","content":{}}')[:20])
    house.pass_time(JOIN_WITHIN + 1)
    assert peer.code() == 1008


def test_messages_right_behind_the_join_are_taken() -> None:
    house = House(Talk)
    other = house.join()
    join = masked(TEXT, b'{"type":"session:join","content":{}}')
    house.open(V1, rest=join + b"".join(masked(TEXT, b'{"type":"n","content":%d}' % n) for n in range(3)))
    assert [m["content"] for m in other.messages() if m["type"] == "n"] == [0, 1, 2]


class Thinks(Room):
    """Takes its time to let somebody in."""

    relay = True

    async def on_auth(self, token: str | None, data: Any) -> User | None:
        return None


JOIN = masked(TEXT, b'{"type":"session:join","content":{"token":"t"}}')


@pytest.mark.parametrize("behind_head", [True, False])
@pytest.mark.parametrize("fragmented", [True, False])
def test_messages_behind_a_join_that_takes_time_keep_their_order(behind_head: bool, fragmented: bool) -> None:
    house = House(Thinks)
    other = house.open(V1, rest=JOIN)
    house.answer()
    other.frames()

    def numbered(n: int) -> bytes:
        text = b'{"type":"n","content":%d}' % n
        return masked(0x01, text[:5]) + masked(CONTINUATION, text[5:]) if fragmented else masked(TEXT, text)

    first = JOIN + numbered(0) + numbered(1)[:9]
    peer = house.open(V1, rest=first if behind_head else b"")
    if not behind_head:
        peer.send(first)
    assert not peer.wire.is_reading() and peer.frames() == []
    peer.send(numbered(1)[9:] + numbered(2))  # stays in the kernel
    house.answer()
    assert [m["content"] for m in other.messages() if m["type"] == "n"] == [0, 1, 2]
    assert peer.wire.is_reading() and not house.faults


def test_a_classic_client_gets_its_101_before_on_auth_has_thought() -> None:
    house = House(Thinks)
    peer = house.open()
    assert peer.frames() == []
    house.answer()
    assert [m["type"] for m in peer.messages()] == ["connected"]


def test_who_is_refused_after_a_while_hears_why() -> None:
    house = House(Thinks)
    peer = house.open(V1, rest=JOIN + masked(TEXT, b'{"type":"n"}'))
    house.answer(error=Refused("not you"))
    (close,) = [p for f, p in peer.frames() if f == CLOSE]
    assert close == b"\x11\x31not you" and house.refused["auth"] == 1
    peer.send(masked(CLOSE, close[:2]))
    assert peer.wire.lost and not house.sockets.connections


def test_who_is_gone_before_on_auth_has_thought_leaves_no_seat() -> None:
    house = House(Thinks)
    peer = house.open(V1, rest=JOIN)
    peer.wire.crash()
    house.turn()
    house.answer()
    house.pass_time(Thinks.grace + 1)
    assert house.rooms.clients == 0 and not house.sockets.connections and not house.faults


def test_who_is_closed_before_on_auth_has_thought_leaves_no_seat() -> None:
    house = House(Thinks)
    peer = house.open(V1, rest=JOIN)
    peer.connection.expel(1012, "server restarts")
    house.turn()
    assert peer.code() == 1012
    house.answer()
    house.pass_time(Thinks.grace + CLOSE_WITHIN + 1)
    assert house.rooms.clients == 0 and not house.sockets.connections and not house.faults


# --- end --------------------------------------------------------------------------------------------------------------


class Diary(Room):
    """Notes who comes and goes."""

    relay = True
    grace = 3.0

    def on_create(self) -> None:
        self.notes: list[str] = []

    def on_join(self, client: Client) -> None:
        self.notes.append(f"join {client.id}")

    def on_drop(self, client: Client) -> None:
        self.notes.append(f"drop {client.id}")

    def on_resume(self, client: Client) -> None:
        self.notes.append(f"resume {client.id}")

    def on_leave(self, client: Client, reason: str) -> None:
        self.notes.append(f"leave {client.id} {reason}")

    @on("kick")
    def kick(self, client: Client, id: int) -> None:
        for other in self.clients:
            if other.id == id:
                other.send("last word")
                other.kick("enough")


def notes(house: House) -> list[str]:
    return house.rooms.rooms["field"].instance.notes


@pytest.mark.parametrize("payload", [b"", b"\x03\xe8", b"\x03\xe8bye", b"\x0f\xa0"])
def test_a_peer_that_closes_is_answered_and_leaves(payload: bytes) -> None:
    house = House(Diary)
    peer = house.join()
    peer.send(masked(CLOSE, payload))
    (close,) = [p for f, p in peer.frames() if f == CLOSE]
    assert close == payload and peer.wire.lost
    assert notes(house) == ["join 1", "leave 1 left"]
    assert not [reason for reason in house.refused if reason.startswith("closed")]


def test_what_the_room_said_before_stands_before_the_answer_to_a_close() -> None:
    house = House(Talk)
    peer, other = house.open(), house.open()
    peer.frames()
    other.wire.feed(masked(TEXT, b'{"type":"news"}'))
    peer.wire.feed(masked(CLOSE, b"\x03\xe8"))
    house.turn()
    frames = peer.frames()
    assert frames[-1][0] == CLOSE and any(b"news" in payload for _, payload in frames)


def test_a_kicked_client_hears_the_last_word_and_the_connection_ends_when_it_answers() -> None:
    house = House(Diary)
    peer, other = house.join(), house.join()
    other.say("kick", 1)
    frames = peer.frames()
    assert b"last word" in frames[-2][1] and frames[-1] == (CLOSE, b"\x0f\xa1enough")
    assert notes(house)[-1] == "leave 1 kicked"
    assert not peer.wire.lost, "the peer had no time to answer"
    peer.send(masked(CLOSE, b"\x0f\xa1"))
    assert peer.wire.lost and not peer.wire.aborted


def test_a_reason_that_is_no_text_is_no_reason_to_stay() -> None:
    house = House(Diary)
    peer = house.join()
    (client,) = house.rooms.rooms["field"].clients.values()
    client.kick("\ud800" * 200)
    house.turn()
    assert peer.code() == 4001 and not house.rooms.rooms["field"].clients


def test_a_kicked_client_that_does_not_answer_is_cut() -> None:
    house = House(Diary)
    peer, other = house.join(), house.join()
    other.say("kick", 1)
    house.pass_time(CLOSE_WITHIN - 1)
    assert not peer.wire.lost
    house.pass_time(2)
    assert peer.wire.aborted and peer.wire.lost


def test_what_a_kicked_client_goes_on_to_say_reaches_nobody() -> None:
    house = House(Diary)
    peer, other = house.join(), house.join()
    other.say("kick", 1)
    other.frames()
    peer.send(masked(TEXT, b'{"type":"late"}') + masked(0x01, b"{") + masked(CONTINUATION, b"}"))
    assert "late" not in [m["type"] for m in other.messages()]
    peer.send(masked(CLOSE, b"\x0f\xa1"))
    assert peer.wire.lost and not peer.wire.aborted and not house.faults


def test_a_close_is_found_behind_half_a_message_that_was_cut_short_by_a_kick() -> None:
    house = House(Diary)
    peer, other = house.join(), house.join()
    whole = masked(TEXT, b'{"type":"long","content":"' + b"x" * 200 + b'"}')
    peer.send(whole[:50])
    other.say("kick", 1)
    assert peer.code() == 4001
    peer.send(whole[50:] + masked(CLOSE, b"\x0f\xa1"))
    assert peer.wire.lost and not peer.wire.aborted and not house.faults


@pytest.mark.parametrize("fragment", [False, True])
def test_who_goes_on_and_on_behind_our_close_is_cut(fragment: bool) -> None:
    house = House(Diary)
    peer, other = house.join(), house.join()
    other.say("kick", 1)
    more = masked(0x01 if fragment else TEXT, b'{"type":"late"}' * 100)
    for _ in range(EXCESS // len(more) + 2):
        if not peer.wire.lost:
            peer.send(more)
    assert peer.wire.aborted and not house.faults


def test_a_crash_keeps_the_seat_for_a_while() -> None:
    house = House(Diary)
    peer = house.join()
    peer.wire.crash()
    house.turn()
    assert notes(house) == ["join 1", "drop 1"]
    back = house.join(resume=peer.welcome["resume"])
    assert back.id == 1 and back.welcome["recovered"] is True
    back.wire.end()  # a FIN without a close frame is no clean end either
    house.turn()
    assert notes(house)[2:] == ["resume 1", "drop 1"]
    house.pass_time(Diary.grace + 1)
    assert notes(house)[-1] == "leave 1 lost"


def test_an_old_link_is_closed_when_its_seat_is_taken_back() -> None:
    house = House(Diary)
    peer = house.join()
    with dropping(peer.wire):
        back = house.join(resume=peer.welcome["resume"])
        assert back.id == 1
    assert notes(house) == ["join 1", "resume 1"]
    house.pass_time(CLOSE_WITHIN + 1)
    assert peer.wire.lost and notes(house) == ["join 1", "resume 1"], "its end drops the seat that another link has now"
    assert not back.wire.lost


def test_hooks_that_close_others_in_the_middle_of_a_write_leave_clean_wires() -> None:
    """A room throws out everybody as soon as one drops; nothing may follow a close frame (Peer.frames)."""

    class Panic(Talk):
        def on_drop(self, client: Client) -> None:
            for other in self.clients:
                if other is not client:
                    other.kick("panic")

    house = House(Panic)
    slow, peers = house.join(), [house.join() for _ in range(3)]
    with stalled(slow.wire):
        for _ in range(40):
            peers[0].send(masked(TEXT, b'{"type":"x","content":"%s"}' % (b"x" * 60_000)))
    house.turn()
    assert house.refused["slow_consumer"] == 1 and not house.faults
    assert [peer.code() for peer in peers] == [4001] * 3


# --- silence ----------------------------------------------------------------------------------------------------------


def test_a_ping_goes_out_in_time_and_its_pong_is_measured() -> None:
    house = House(Talk)
    peer = house.open()
    peer.frames()
    for due in (FIRST_PING + 1, PING_EVERY - 1):
        peer.connection.rtt = None
        house.pass_time(due)
        assert peer.frames() == [(PING, b"")]
        house.pass_time(0.5)
        peer.send(masked(PONG))
        assert peer.connection.rtt == pytest.approx(1.0, abs=0.6)
    house.pass_time(PING_EVERY)
    assert not peer.wire.lost


def test_who_says_nothing_until_the_next_ping_is_cut() -> None:
    house = House(Talk)
    peer = house.open()
    with dropping(peer.wire):
        house.pass_time(FIRST_PING + PING_EVERY - 1)
        assert not peer.wire.lost
        house.pass_time(2)
    assert peer.wire.aborted and house.refused["silent"] == 1 and not house.sockets.connections


def test_any_byte_is_a_sign_of_life() -> None:
    house = House(Talk)
    peer = house.open()
    for _ in range(10):
        house.pass_time(PING_EVERY - 1)
        peer.say("still here")
    assert not peer.wire.lost


def test_half_a_message_is_no_sign_of_life_for_ever() -> None:
    house = House(Talk)
    peer = house.open()
    for byte in masked(TEXT, b'{"type":"x","content":"' + b"x" * 50):
        if not peer.wire.lost:
            peer.send(bytes([byte]))
            house.pass_time(2)
    assert peer.wire.aborted and house.refused["silent"] == 1


# --- back-pressure ----------------------------------------------------------------------------------------------------


class Firehose(Room):
    grace = 10.0

    @on("go")
    def go(self, client: Client, content: tuple[int, int, bool]) -> None:
        count, size, reliable = content
        for n in range(count):
            self.broadcast("drop", f"{n}:" + "x" * size, exclude=client, reliable=reliable)


def kinds(peer: Peer) -> list[bool]:
    return [m.get("reliable", True) for m in peer.messages() if m["type"] == "drop"]


def test_above_the_high_water_mark_what_may_be_lost_is_shed_and_the_rest_is_kept() -> None:
    house = House(Firehose)
    slow, other, talker = house.join(), house.join(), house.join()
    with stalled(slow.wire):
        talker.say("go", [5, 60_000, False])
        assert len(slow.wire.unsent) > HIGH_WATER
        before = len(slow.wire.unsent)
        talker.say("go", [10, 60_000, False])
        talker.say("go", [2, 60_000, True])
        assert len(slow.wire.unsent) < before + 3 * 60_100, "unreliable messages pile up"
        assert house.refused["shed"] == 10
        other.frames()
    house.turn()
    assert kinds(slow) == [False] * 5 + [True] * 2
    talker.say("go", [1, 10, False])
    assert kinds(slow) == [False], "it has caught up, and is sent what may be lost again"
    assert slow.code() is None


def test_a_slow_client_costs_the_others_nothing() -> None:
    house = House(Firehose)
    slow, other, talker = house.join(), house.join(), house.join()
    with stalled(slow.wire):
        for _ in range(5):
            talker.say("go", [5, 60_000, False])
        assert len(kinds(other)) == 25


@pytest.mark.parametrize("largest", [0, 1_000_000])
def test_a_slow_consumer_is_closed_and_keeps_its_seat(largest: int) -> None:
    class Big(Firehose):
        max_message = largest

    most = max(MAX_UNSENT, 2 * largest)
    house = House(Big)
    slow, talker = house.join(), house.join()
    with stalled(slow.wire):
        while house.refused.get("slow_consumer", 0) == 0:
            talker.say("go", [1, 60_000, True])
            assert len(slow.wire.unsent) <= most + 60_200
        assert len(slow.wire.unsent) > most
        unsent = len(slow.wire.unsent)
        talker.say("go", [10, 60_000, True])
        assert len(slow.wire.unsent) == unsent, "it is sent more than can be"
    slow.wire.flow()
    assert slow.code() == 1013
    back = house.join(resume=slow.welcome["resume"])
    assert back.id == slow.id and back.welcome["recovered"] is False
    house.pass_time(CLOSE_WITHIN + 1)
    assert slow.wire.lost and len(house.rooms.rooms["field"].clients) == 2


def test_a_slow_consumer_that_reads_nothing_more_is_aborted_and_loses_its_seat_in_the_end() -> None:
    house = House(Firehose)
    slow, talker = house.join(), house.join()
    with stalled(slow.wire):
        talker.say("go", [30, 60_000, True])
        house.pass_time(CLOSE_WITHIN + 1)
        assert slow.wire.aborted and slow.wire.lost and not slow.wire.unsent
        for _ in range(3):
            house.pass_time(4)
            talker.say("go", [1, 1, True])
    assert list(house.rooms.rooms["field"].clients) == [talker.id]


def test_a_classic_slow_consumer_has_left() -> None:
    house = House(Firehose)
    slow, talker = house.open(), house.join()
    with stalled(slow.wire):
        talker.say("go", [30, 60_000, True])
    house.turn()
    assert slow.code() == 1013 and list(house.rooms.rooms["field"].clients) == [talker.id]


def test_a_broken_frame_of_a_client_whose_buffer_is_about_to_burst_is_no_fault() -> None:
    """The last news that goes out before the close makes it a slow consumer too."""
    house = House(Firehose)
    slow, talker = house.join(), house.join()
    with stalled(slow.wire):
        while len(slow.wire.unsent) < MAX_UNSENT - 60_200:
            talker.say("go", [1, 60_000, True])
        talker.wire.feed(masked(TEXT, b'{"type":"go","content":[2,60000,true]}'))  # not flushed yet
        slow.wire.feed(masked(0x83))
        house.turn()
        assert not house.faults
    house.turn()
    assert slow.code() in {1002, 1013}


@pytest.mark.parametrize("end", [masked(CLOSE, b"\x03\xe8"), masked(0x83), masked(TEXT, b"\xff")])
def test_a_client_that_does_not_read_can_still_close(end: bytes) -> None:
    house = House(Firehose)
    slow, talker = house.join(), house.join()
    with stalled(slow.wire):
        talker.say("go", [10, 60_000, True])
        slow.send(end)
    house.turn()
    assert slow.code() in {1000, 1002, 1007} and not house.faults
    house.pass_time(CLOSE_WITHIN + 1)
    assert slow.wire.lost and list(house.rooms.rooms["field"].clients) == [talker.id]


def test_pings_of_a_client_that_reads_no_pongs_do_not_pile_up() -> None:
    house = House(Talk)
    peer = house.open()
    with stalled(peer.wire):
        for _ in range(200):
            if not peer.wire.lost:
                peer.send(masked(PING, b"x" * 125) * 100)
            assert len(peer.wire.unsent) <= MAX_UNSENT + 15_000
    assert house.refused["slow_consumer"] == 1


def test_a_wire_with_delay_loses_and_reorders_nothing() -> None:
    house = House(Talk)
    peers = [house.join() for _ in range(4)]
    with delayed(peers[0].wire, 3), delayed(peers[1].wire, 7):
        for n in range(30):
            peers[3].wire.feed(masked(TEXT, b'{"type":"n","content":%d}' % n))
            house.tick()
        for _ in range(10):
            house.tick()
    for peer in peers[:3]:
        assert [m["content"] for m in peer.messages() if m["type"] == "n"] == list(range(30))


@settings(max_examples=100, deadline=None)
@given(
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("say"), st.integers(0, 3), st.booleans(), st.sampled_from((1, 100, 20_000, 60_000))),
            st.tuples(st.just("stall"), st.integers(0, 3)),
            st.tuples(st.just("flow"), st.integers(0, 3)),
            st.tuples(st.just("sip"), st.integers(0, 3)),
            st.tuples(st.just("crash"), st.integers(0, 3)),
            st.tuples(st.just("pass"), st.integers(1, 4)),
        ),
        min_size=5,
        max_size=60,
    )
)
def test_whatever_wires_do_reliable_messages_arrive_in_order_or_the_client_is_closed(
    moves: list[tuple[Any, ...]],
) -> None:
    """Four clients that come back at once under a new id; each numbers what it says."""
    house = House(Talk)
    peers = [house.join() for _ in range(4)]
    said: dict[int, int] = {}
    for kind, who, *more in moves:
        peer = peers[who % 4]
        if kind == "say":
            reliable, size = more
            said[peer.id] = said.get(peer.id, 0) + reliable
            envelope = {} if reliable else {"reliable": False}
            peer.say("n", f"{said[peer.id]}:" + "x" * size, **envelope)
        elif kind == "pass":
            house.pass_time(who)
        else:
            peer.wire.flows = kind == "flow" or (peer.wire.flows and kind != "stall")
            if kind == "sip":
                peer.wire.flow(30_000)
            if kind == "crash":
                peer.wire.crash()
            house.turn()
        for at, one in enumerate(peers):
            if one.wire.lost or not one.connection.client:
                check_order(one)
                peers[at] = house.join()
    for one in peers:
        one.wire.flows = True
    house.turn()
    for one in peers:
        check_order(one)
        assert len(one.wire.unsent) <= MAX_UNSENT + 70_000
    assert not house.faults


def check_order(peer: Peer) -> None:
    last: dict[int, int] = {}
    for message in peer.messages():
        if message["type"] == "n" and message.get("reliable", True):
            number = int(message["content"].partition(":")[0])
            before = last.get(message["id"], number - 1)
            assert number == before + 1, f"{before} of client {message['id']} is followed by {number}"
            last[message["id"]] = number


# --- limits of one connection -----------------------------------------------------------------------------------------


def test_ten_non_messages_are_too_many() -> None:
    house = House(Talk)
    peer = house.join()
    peer.send(masked(TEXT, b"null") * 9)
    assert [m["content"]["code"] for m in peer.messages()].count("malformed") == 9
    peer.send(masked(TEXT, b"null"))
    assert peer.code() == 1003 and house.refused["non_message"] == 10 and house.refused["closed_1003"] == 1


def test_over_a_rate_is_refused_and_after_ten_seconds_closed() -> None:
    house = House(Talk, message_rate=10, message_burst=20)
    peer, other = house.join(), house.join()
    peer.send(masked(TEXT, b'{"type":"x"}') * 50)
    assert house.refused["rate"] == 30
    for _ in range(30):
        house.pass_time(0.5)
        if not peer.wire.lost:
            peer.send(masked(TEXT, b'{"type":"x"}') * 50)
    assert peer.code() == 1008 and house.refused["rate_closed"] == 1
    assert sum(m["type"] == "x" for m in other.messages()) <= 20 + 10 * 15


def test_who_is_over_its_rate_is_not_read_for_a_moment() -> None:
    house = House(Talk, message_rate=10, message_burst=20)
    peer = house.join()
    peer.send(masked(TEXT, b'{"type":"x"}') * 50)
    assert not peer.wire.is_reading()
    house.pass_time(0.5)
    assert peer.wire.is_reading()
