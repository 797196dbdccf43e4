"""The Python client against a scripted server (client_peer.py), and its parts without any."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client_peer import LIMIT, Heard, Peer, PeerLink, both_loops, in_loop, joining
from session_server.client import (
    AskRefused,
    Message,
    Person,
    Room,
    SendQueueFull,
    SessionClosed,
    full_jitter,
    handlers,
    links,
    outbox,
    seat,
    session,
    state,
)
from session_server.client.state import Clock, Inbox, Ledger, People
from session_server.client.wire import read_control, read_frame, read_message, session_url

# --- the parts, without I/O -------------------------------------------------------------------------------------------


class Seat:
    """The server's side of wire.md, Resume, between two queues that a drop empties."""

    def __init__(self) -> None:
        self.taken = 0  # counted from this seat
        self.seq = 0  # addressed to this seat
        self.up: deque[str] = deque()
        self.down: deque[int] = deque()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["send", "write", "arrive", "say", "hear", "pong", "drop", "lapse", "give up"])))
def test_nothing_is_lost_or_doubled_on_a_seat_whatever_breaks(steps: list[str]) -> None:
    ledger, seat = Ledger(messages=8), Seat()
    arrived: list[str] = []  # at the server, over all seats
    unwanted: set[str] = set()
    maybe_lost: set[str] = set()
    number, missed, kept = 0, False, []

    def resume() -> None:
        nonlocal missed
        missed = missed or bool(seat.down)
        seat.up.clear()
        seat.down.clear()
        assert (ledger.received == seat.seq) is not missed  # what the server calls `recovered`
        assert ledger.could_be(seat.taken, seat.seq)
        ledger.resume(seat.taken, seat.seq)
        missed = False

    for step in [*steps, "drop", *["write", "arrive"] * 8]:
        if step == "send" and not ledger.full(1):
            number += 1
            kept.append(ledger.keep(str(number), 1))
        elif step == "write" and (found := ledger.next()):
            seat.up.append(str(found.frame))
        elif step == "arrive" and seat.up:
            arrived.append(seat.up.popleft())
            seat.taken += 1
        elif step == "say":
            seat.seq += 1
            seat.down.append(seat.seq)
        elif step == "hear" and seat.down:
            seat.down.popleft()
            ledger.received += 1
        elif step == "pong":
            ledger.cover(seat.taken)
        elif step == "drop":
            resume()
        elif step == "lapse":  # the seat is gone: what was written may be lost, but nothing comes twice
            maybe_lost |= {str(one.frame) for one in kept if one.sent}
            seat, missed = Seat(), False
            ledger.restart(seat.taken, seat.seq)
        elif step == "give up" and kept:
            unwanted.add(str(kept[-1].frame))
            ledger.withdraw(kept[-1])
        assert 0 <= ledger.uncovered <= 8
        assert ledger.unsent >= 0

    everything = [str(n + 1) for n in range(number)]
    assert arrived == sorted(set(arrived), key=int), "once and in order"
    assert set(everything) - unwanted - maybe_lost <= set(arrived), "nothing lost"
    assert ledger.unsent == 0


def test_a_count_that_cannot_be_covers_nothing() -> None:
    ledger = Ledger()
    ledger.keep("a", 1)
    ledger.next()
    ledger.cover(2)
    ledger.cover(-1)
    assert ledger.uncovered == 1
    ledger.cover(1)
    ledger.cover(0)
    assert (ledger.uncovered, ledger.covered) == (0, 1)


def test_the_ledger_is_bounded_by_number_and_by_bytes() -> None:
    ledger = Ledger(messages=2, size=10)
    assert not ledger.full(1000)  # one alone always has room
    ledger.keep("a", 6)
    assert ledger.full(5)
    assert not ledger.full(4)
    ledger.keep("b", 4)
    assert ledger.full(0)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.booleans(), st.booleans())))
def test_the_inbox_is_bounded_and_sheds_unreliable_messages_first(steps: list[tuple[bool, int, bool, bool]]) -> None:
    inbox = Inbox(messages=4, size=20)
    inside: list[Message] = []
    for number, (reliable, size, wait, take) in enumerate(steps):
        message = Message("x", number, 1, reliable)
        done = inbox.put(message, size, wait)
        now = [one for one, _ in inbox._queue]
        gone = [one for one in inside if one not in now]
        assert len(now) <= 4 and sum(size for _, size in inbox._queue) <= 20
        if done:
            assert reliable is False or message in now
        if wait or not done:
            assert not [one for one in gone if one.reliable], "shed although it could wait"
        if any(one.reliable for one in gone):
            assert not [one for one in now if not one.reliable], "a reliable one was shed before an unreliable one"
        inside = now
        if take and inside:
            assert inbox.get() is inside.pop(0)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host/session/field", "ws://host/session/field"),
        ("https://host:8889/session/field", "wss://host:8889/session/field"),
        ("wss://host/session/field~blue", "wss://host/session/field~blue"),
        ("ws://host/session/a b", "ws://host/session/a%20b"),
        ("ws://host/session/käse/ü", "ws://host/session/k%C3%A4se/%C3%BC"),
        ("ws://host/session/k%C3%A4se", "ws://host/session/k%C3%A4se"),
        ("ws://host/session/100%", "ws://host/session/100%25"),
        ("ws://host", "ws://host/"),
    ],
)
def test_a_url_becomes_one_that_a_websocket_takes(url: str, expected: str) -> None:
    assert session_url(url) == expected


@pytest.mark.parametrize("url", ["field", "ftp://host/session/field", "http:///session/field", "http://h/session/#x"])
def test_a_url_of_nothing_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="url is"):
        session(url)
    with pytest.raises(ValueError, match="Port out of range"):
        session("http://host:65536/session/field")


def test_what_one_says_of_oneself_is_limited_as_on_the_wire() -> None:
    with pytest.raises(ValueError, match="name of 65 characters, expected at most 64"):
        session("ws://host/", name="x" * 65)
    with pytest.raises(ValueError, match="data of 4098 bytes, expected at most 4096"):
        session("ws://host/", data="x" * 4096)
    with pytest.raises(TypeError):
        session("ws://host/", data=object())


def test_delays_grow_to_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 1.0)
    assert [full_jitter(attempt) for attempt in (0, 1, 2, 5, 6, 5000)] == [0.25, 0.5, 1.0, 8.0, 10.0, 10.0]
    monkeypatch.setattr("random.random", lambda: 0.0)
    assert full_jitter(3) == 0.0


def test_which_ends_are_tried_again() -> None:
    again = {code for code in [*range(400, 600), *range(1000, 5000)] if SessionClosed(code, "").comes_back}
    assert again == {408, 425, 429, 500, 502, 503, 504, 1001, 1005, 1006, 1012, 1013, 1014}


def test_the_clock_believes_the_quickest_answer_and_never_goes_back() -> None:
    now = 0.0
    clock = Clock(lambda: now)
    clock.add(100.0, rtt=0.4)
    assert clock.time == pytest.approx(100.2)
    clock.add(100.0, rtt=0.1)  # 100.05 at the same moment
    assert clock.time == pytest.approx(100.2), "it stands still rather than go back"
    now = 1.0
    assert clock.time == pytest.approx(101.05)
    clock.add(5.0, rtt=0.2)  # another server
    assert clock.time == pytest.approx(5.1)


def test_people_come_change_and_go() -> None:
    people = People()
    ada, bob = Person(1, (1,), name="ada"), Person(2, (2,), name="bob")
    assert people.replace([ada], 1) == {"joins": [ada], "leaves": [], "updates": [], "count": 1}
    assert people.apply([ada, bob], [9], 2) == {"joins": [bob], "leaves": [], "updates": [], "count": 2}
    away = Person(2, (2,), name="bob", away=True)
    assert people.apply([away], [1], None) == {"joins": [], "leaves": [1], "updates": [away], "count": 1}
    assert people.listed() == [away]
    assert people.replace([ada], 1) == {"joins": [ada], "leaves": [2], "updates": [], "count": 1}
    people.apply([], [], 201)
    assert (people.listed(), people.count) == ([], 201)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5)


@settings(max_examples=50, deadline=None)
@given(st.text() | st.binary() | JSON.map(json.dumps) | st.dictionaries(st.text(), JSON).map(json.dumps))
def test_no_frame_raises(frame: str | bytes) -> None:
    found = read_frame(frame)
    if found is not None:
        read_control(found)
        message = read_message(found)
        assert message is None or isinstance(message.type, str)


# --- joining ----------------------------------------------------------------------------------------------------------


@both_loops
@in_loop
async def test_a_join_says_who_one_is_and_hears_who_is_here() -> None:
    people = [
        {"id": 7, "ids": [7], "name": "ada"},
        {"id": 8, "ids": [8, 9], "user": "u1", "handle": "@b", "away": True},
    ]
    greeting = {"host": 7, "presence": people, "count": 2, "room": "field~blue", "future": "ignored"}
    async with Peer(greeting) as peer, joining(peer, name="ada", token="secret", data={"hue": 1}) as room:
        link = await peer.link()
        assert link.hello == {"name": "ada", "token": "secret", "data": {"hue": 1}}
        assert peer.upgrades == ["/session/field"]
        assert (room.id, room.slug, room.is_host, room.count) == (7, "field~blue", True, 2)
        assert room.presence == [Person(7, (7,), name="ada"), Person(8, (8, 9), "u1", "@b", away=True)]
        assert [one.kind for one in room.links] == ["websocket"]
        assert room.time >= 100.0
    assert room.links == []


@in_loop
async def test_a_token_is_asked_for_at_each_connect() -> None:
    tokens = iter(["one", "two"])

    async def token() -> str:
        return next(tokens)

    async with Peer() as peer, joining(peer, token=token) as room:
        back = Heard(room, "session:resume")
        link = await peer.link()
        await link.close(1012)
        again = await peer.link()
        await back.until(1)
        assert (link.hello["token"], again.hello["token"]) == ("one", "two")


@in_loop
async def test_a_token_that_cannot_be_had_is_the_programs_error() -> None:
    def token() -> str:
        raise LookupError("no token today")

    async with Peer() as peer:
        with pytest.raises(LookupError, match="no token today"):
            async with joining(peer, token=token):
                pass


@in_loop
async def test_a_token_of_another_kind_is_the_programs_error_too() -> None:
    with pytest.raises(TypeError, match="token is 7, expected a string"):
        session("http://host/session/field", token=7)  # type: ignore[arg-type]
    async with Peer() as peer:
        with pytest.raises(TypeError, match=r"token\(\) is 7, expected a string or None"):
            async with joining(peer, token=lambda: 7):
                pass


@in_loop
async def test_a_refusal_by_on_auth_carries_its_reason() -> None:
    async with Peer(manual=True) as peer:

        async def refuse() -> None:
            await (await peer.link()).close(4401, "not on the list")

        async with asyncio.TaskGroup() as group:
            group.create_task(refuse())
            with pytest.raises(SessionClosed, match="not on the list") as caught:
                async with joining(peer):
                    pass
        assert caught.value.code == 4401


@in_loop
async def test_a_refusal_before_the_upgrade_carries_its_status() -> None:
    async with Peer() as peer:
        peer.refusals = [(403, "this origin may not\n")]
        with pytest.raises(SessionClosed, match="this origin may not") as caught:
            async with joining(peer):
                pass
        assert caught.value.code == 403
        assert len(peer.upgrades) == 1


@in_loop
async def test_a_server_that_is_full_is_asked_again() -> None:
    async with Peer() as peer:
        peer.refusals = [(503, "full"), (429, "too many")]
        async with joining(peer) as room:
            assert room.id == 7
        assert len(peer.upgrades) == 3


@in_loop
async def test_a_server_that_stays_full_is_given_up() -> None:
    async with Peer() as peer:
        peer.refusals = [(503, "full")] * 1000
        with pytest.raises(SessionClosed, match=r"could not join .* within 0.1 s: .*full") as caught:
            async with session(peer.url, open_timeout=0.1, backoff=lambda attempt: 0.01):
                pass
        assert caught.value.code == 503


@in_loop
async def test_nobody_there_is_told_in_plain_words() -> None:
    async with Peer() as peer:
        url = peer.url
    with pytest.raises(
        ConnectionError, match=r"could not join ws://127\.0\.0\.1:\d+/session/field within 0.1 s: .*reached"
    ):
        async with session(url, open_timeout=0.1, backoff=lambda attempt: 0.01):
            pass


@in_loop
async def test_a_refusal_is_told_even_if_the_next_attempt_is_under_way_when_time_is_up() -> None:
    async with Peer(manual=True) as peer:
        room = joining(peer, open_timeout=1.0)
        opening = asyncio.create_task(room.__aenter__())
        await (await peer.link()).close(1013, "full")
        await peer.link()  # which nobody answers
        with pytest.raises(SessionClosed, match="within 1 s: full") as caught:
            await opening
        assert caught.value.code == 1013


@in_loop
async def test_a_server_that_never_welcomes_is_given_up() -> None:
    async with Peer(manual=True) as peer:
        room = joining(peer, open_timeout=0.1)
        with pytest.raises(ConnectionError, match="within 0.1 s: connected, but no welcome came"):
            async with room:
                pass
        with pytest.raises(SessionClosed):
            await room.send("x")


@in_loop
async def test_a_websocket_of_another_kind_is_told_apart() -> None:
    async with Peer() as peer:
        peer.speaks = False
        with pytest.raises(SessionClosed, match=r"does not speak session\.v1"):
            async with joining(peer):
                pass


@in_loop
async def test_a_room_is_joined_once() -> None:
    async with Peer() as peer:
        room = joining(peer)
        with pytest.raises(RuntimeError, match="not joined yet"):
            await room.send("x")
        async with room:
            pass
        with pytest.raises(RuntimeError, match="joined once"):
            async with room:
                pass


# --- messages ---------------------------------------------------------------------------------------------------------


@both_loops
@in_loop
async def test_json_and_bytes_go_both_ways() -> None:
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        heard = Heard(room, "*")
        await room.send("move", {"at": [0.5, "ü"]})
        await room.send("wave")
        await room.send("hint", 1, reliable=False)
        await room.send("paint", b"\x00\xff")
        await room.send("spray", memoryview(b"abc"), reliable=False)
        assert await link.next() == {"type": "move", "content": {"at": [0.5, "ü"]}}
        assert await link.next() == {"type": "wave"}
        assert await link.next() == {"type": "hint", "content": 1, "reliable": False}
        assert await link.next() == b"\x01\x05paint\x00\x00\x00\x00\x00\xff"
        assert await link.next() == b"\x02\x05spray\x00\x00\x00\x00abc"

        await link.say("move", [1, None], id=3)
        await link.say("hint", "x", id=4, reliable=False)
        await link.raw(b"\x01\x05paint\x00\x00\x01\x00\x01\x02")
        await link.raw(b"\x02\x05spray\x00\x00\x00\x09")
        await heard.until(4)
        assert heard.messages == [
            Message("move", [1, None], 3, True),
            Message("hint", "x", 4, False),
            Message("paint", b"\x01\x02", 256, True),
            Message("spray", b"", 9, False),
        ]


@in_loop
async def test_what_cannot_be_sent_is_refused_at_the_call() -> None:
    async with Peer() as peer, joining(peer) as room:
        for type in ("session:kick", "session:", "", "x" * 256):
            with pytest.raises(ValueError, match="type"):
                await room.send(type)
            with pytest.raises(ValueError, match="type"):
                await room.ask(type)
        with pytest.raises(TypeError, match="content of 'x' is neither bytes nor JSON"):
            await room.send("x", object())
        with pytest.raises(TypeError, match="expected JSON"):
            await room.ask("x", b"bytes")
        with pytest.raises(ValueError, match="expected one of session:close"):
            room.on("session:dorp")
        nested: list[Any] = []
        nested.append(nested)
        with pytest.raises(ValueError, match="nested too deeply"):
            await room.send("x", nested)
        with pytest.raises(TypeError, match="expected a string"):
            await room.send(7, 1)  # type: ignore[arg-type]


@both_loops
@in_loop
async def test_the_first_words_of_a_room_are_heard() -> None:
    async with Peer(manual=True) as peer:

        async def greet() -> None:
            link = await peer.link()
            await link.welcome()
            await link.say("list", [1, 2])

        async with asyncio.TaskGroup() as group:
            group.create_task(greet())
            async with joining(peer) as room:
                heard = Heard(room, "list")
                assert await heard.until(1) == [[1, 2]]
                async for message in room:  # though it came before the loop
                    assert message == Message("list", [1, 2])
                    break


@in_loop
async def test_handlers_come_and_go_and_their_faults_stay_theirs(caplog: pytest.LogCaptureFixture) -> None:
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        calls: list[Any] = []
        done = asyncio.Event()

        @room.on("x")
        def broken(content: Any, message: Message) -> None:
            raise LookupError("broken handler")

        @room.on("x")
        async def slow(content: Any, message: Message) -> None:
            await asyncio.sleep(0)
            calls.append(("slow", content))
            if content == 2:
                done.set()
            raise LookupError("broken task")

        off = room.on("x", lambda content, message: calls.append(("quick", content)))
        last = Heard(room, "x")
        await link.say("x", 1)
        await last.until(1)
        off()
        off()
        await link.say("x", 2)
        await done.wait()
        await last.until(2)
        assert calls == [("quick", 1), ("slow", 1), ("slow", 2)]
    assert caplog.text.count("LookupError: broken handler") == caplog.text.count("LookupError: broken task") == 2
    assert "handler of 'x' failed (room 'field')" in caplog.text


HOSTILE: list[str | bytes] = [
    "",
    "null",
    "[]",
    '"x"',
    "{",
    "{}",
    '{"type":1}',
    '{"type":"x","id":"me"}',
    '{"type":"x","reliable":"no"}',
    '{"type":"\\ud800"}',
    '{"type":"x","content":' + "[" * 100_000 + "]" * 100_000 + "}",
    '{"type":"session:unknown","content":{}}',
    '{"type":"session:welcome","content":{"id":99,"room":"other"}}',
    '{"type":"session:welcome","content":"x"}',
    '{"type":"session:presence","content":[]}',
    '{"type":"session:presence","content":{"joins":[{"id":"x"}],"count":5}}',
    '{"type":"session:presence","content":{"count":-1}}',
    '{"type":"session:presence","content":{"leaves":[5,5,7.5]}}',
    '{"type":"session:presence","content":{"count":5},"id":3}',
    '{"type":"session:reply","content":{"ask":1}}',
    '{"type":"session:reply","content":{"ask":"x","error":7}}',
    '{"type":"session:reply"}',
    '{"type":"session:pong","content":{"t":1e308,"time":1e308,"received":12345678901234567890}}',
    '{"type":"session:pong","content":{"t":null}}',
    '{"type":"session:error","content":{"code":404}}',
    '{"type":"session:ack"}',
    '{"type":"session:ack","content":{"received":-1}}',
    '{"type":"session:ack","content":{"received":12345678901234567890123}}',
    '{"type":"session:join","content":{}}',
    '{"type":"x","reliable":false,"n":"1"}',
    '{"type":"x","reliable":false,"n":1e999}',
    '{"type":"session:leave"}',
    b"",
    b"\x01",
    b"\x00\x01x\x00\x00\x00\x00",
    b"\x03\x01x\x00\x00\x00\x00",
    b"\x01\x00\x00\x00\x00\x00",
    b"\x01\xffx\x00\x00\x00\x00",
    b"\x01\x01\xff\x00\x00\x00\x00",
    b"\x01\x0fsession:welcome\x00\x00\x00\x00{}",
]


@both_loops
@in_loop
async def test_no_hostile_frame_hurts() -> None:
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        heard = Heard(room, "*", "session:presence", "session:error", "session:resume", "session:close")
        before = (room.id, room.slug, room.count, room.presence)
        for frame in HOSTILE:
            await link.raw(frame)
            room._seat._take_aside(frame)
        room._seat._take_aside('{"type":"session:presence","content":{"count":5}}')  # belongs on the WebSocket
        await link.say("well", 1)
        assert await heard.until(1) == [1]
        assert (room.id, room.slug, room.count, room.presence) == before
        assert len(room.links) == 1
        await room.send("still here")
        assert await link.next() == {"type": "still here"}
        assert await pong_of(room, link) == 0


async def pong_of(room: Room, link: PeerLink) -> int:
    """Lets a pong arrive; returns how many of our messages it left uncovered."""
    out = room._seat.outbox
    await room_until(room, lambda: out._pinged is None and not out._ping_due)
    out.ping()
    await room_until(room, lambda: out._pinged is None and not out._ping_due)
    return room._seat.outbox.ledger.uncovered


async def room_until(room: Room, ready: Callable[[], bool]) -> None:
    while not ready():
        await room._seat.outbox.changed.wait()


@in_loop
async def test_people_and_host_are_followed() -> None:
    async with Peer({"host": 3}) as peer, joining(peer) as room:
        link = await peer.link()
        heard = Heard(room, "session:presence")
        bob = {"id": 8, "ids": [8], "user": None, "handle": None, "name": "bob", "data": {"x": 1}, "away": False}
        await link.say("session:presence", {"joins": [bob], "count": 2})
        await link.say("session:presence", {"joins": [bob], "count": 2})  # no news
        await link.say("session:presence", {"count": 2, "host": 7})
        await link.say("session:presence", {"leaves": [8], "count": 1, "host": None})
        person = Person(8, (8,), name="bob", data={"x": 1})
        assert await heard.until(3) == [
            {"joins": [person], "leaves": [], "updates": [], "count": 2, "host": 3},
            {"joins": [], "leaves": [], "updates": [], "count": 2, "host": 7},
            {"joins": [], "leaves": [8], "updates": [], "count": 1, "host": None},
        ]
        assert (room.count, room.is_host, len(room.presence)) == (1, False, 1)


@in_loop
async def test_the_servers_clock_and_the_round_trip_are_measured() -> None:
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        await pong_of(room, link)
        rtt = room.links[0].rtt
        assert rtt is not None and 0 <= rtt < LIMIT
        assert 200 <= room.time < 200 + LIMIT


@in_loop
async def test_an_error_is_an_event_and_without_handler_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        echo = Heard(room, "echo")
        await link.say("session:error", {"code": "unknown", "reason": "no type 'x' here", "type": "x"})
        await link.say("echo")
        await echo.until(1)
        assert "session:error unknown: no type 'x' here (type 'x', room 'field')" in caplog.text
        heard = Heard(room, "session:error")
        await link.say("session:error", {"code": "busy", "reason": "later"})
        assert await heard.until(1) == [{"code": "busy", "reason": "later", "type": None}]
        assert "busy" not in caplog.text


# --- ask --------------------------------------------------------------------------------------------------------------


@in_loop
async def test_an_ask_is_answered_refused_or_times_out() -> None:
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()

        async def answer() -> None:
            first, second = await link.next(), await link.next()
            assert first == {"type": "session:ask", "content": {"ask": 1, "type": "score", "content": [1]}}
            assert second == {"type": "session:ask", "content": {"ask": 2, "type": "score"}}
            refusal = {"code": "refused", "reason": "not your turn"}
            await link.say("session:reply", {"ask": 2, "error": refusal})
            await link.say("session:reply", {"ask": 3, "content": "nobody asked"})
            await link.say("session:reply", {"ask": 1, "content": {"points": 4}})

        async with asyncio.TaskGroup() as group:
            group.create_task(answer())
            asked = group.create_task(room.ask("score", [1]))
            await asyncio.sleep(0)
            with pytest.raises(AskRefused, match="not your turn") as caught:
                await room.ask("score")
            assert caught.value.code == "refused"
            assert await asked == {"points": 4}
        with pytest.raises(TimeoutError, match="no answer to 'slow' within 0.01 s"):
            await room.ask("slow", timeout=0.01)
        assert not room._seat._asks


@in_loop
async def test_an_ask_that_timed_out_offline_is_not_asked_later() -> None:
    async with Peer(manual=True) as peer:

        async def play() -> None:
            link = await peer.link()
            await link.welcome()
            await link.abort()

        async with asyncio.TaskGroup() as group:
            group.create_task(play())
            async with joining(peer) as room:
                dropped = Heard(room, "session:drop")
                await dropped.until(1)
                with pytest.raises(TimeoutError):
                    await room.ask("late", timeout=0.01)
                await room.send("next")
                again = await peer.link()
                await again.welcome(recovered=True)
                assert await again.next() == {"type": "next"}


@in_loop
async def test_asks_of_a_lost_seat_are_refused_and_those_not_sent_yet_are_asked_on_the_new_one() -> None:
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        peer.greeting = None
        dropped = Heard(room, "session:drop")
        old = asyncio.create_task(room.ask("old"))
        await link.next()
        await link.abort()
        await dropped.until(1)
        new = asyncio.create_task(room.ask("new"))
        again = await peer.link()
        await again.welcome(id=8)
        with pytest.raises(AskRefused, match="the seat was lost") as caught:
            await old
        assert caught.value.code == "lost"
        assert (await again.next())["content"] == {"ask": 2, "type": "new"}
        await again.say("session:reply", {"ask": 2, "content": 5})
        assert await new == 5
        assert room.id == 8


# --- drops and resumes ------------------------------------------------------------------------------------------------


@both_loops
@in_loop
async def test_a_message_lost_on_the_way_up_arrives_once() -> None:
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        peer.greeting = None
        events = Heard(room, "session:drop", "session:resume")
        await room.send("a", 1)
        await room.send("b", b"2")
        assert [await link.next(), await link.next()] == [{"type": "a", "content": 1}, b"\x01\x01b\x00\x00\x00\x002"]
        link.deaf = True
        await room.send("c", 3)
        await room.send("gone", reliable=False)
        await room.send("d", 4)
        await link.until(lambda: len(link.frames) == 5)
        await link.abort()

        again = await peer.link()
        assert again.hello == {"resume": "r1", "received": 0}
        await again.welcome(resume="r2", received=2, recovered=True)
        assert [await again.next(), await again.next()] == [{"type": "c", "content": 3}, {"type": "d", "content": 4}]
        await events.until(2)
        assert events.types == ["session:drop", "session:resume"]
        assert events.messages[0].content["code"] == 1006
        assert events.messages[1].content == {"recovered": True}
        await room.send("e", 5)
        assert await again.next() == {"type": "e", "content": 5}
        assert await pong_of(room, again) == 0
        assert again.taken == 5


@in_loop
async def test_a_message_missed_on_the_way_down_is_told_and_counting_goes_on_from_there() -> None:
    async with Peer({"seq": 10}) as peer, joining(peer) as room:
        link = await peer.link()
        peer.greeting = None
        heard, events = Heard(room, "*"), Heard(room, "session:resume")
        await link.say("x", 1)
        await link.say("x", 2, reliable=False)
        await link.raw(b"\x01\x01x\x00\x00\x00\x00")
        await link.raw(b"\x02\x01x\x00\x00\x00\x00")
        await heard.until(4)
        await link.abort()
        again = await peer.link()
        assert again.hello["received"] == 12
        await again.welcome(resume="r2", seq=20, recovered=False)
        assert await events.until(1) == [{"recovered": False}]
        await again.say("x", 3)
        await heard.until(5)
        await again.abort()
        third = await peer.link()
        assert third.hello == {"resume": "r2", "received": 21}
        await third.welcome(seq=21, recovered=True)
        assert await events.until(2) == [{"recovered": False}, {"recovered": True}]


@pytest.mark.parametrize("other", [{"id": 8}, {"epoch": 2}], ids=["new id", "new epoch"])
@in_loop
async def test_on_a_new_seat_only_what_was_never_sent_is_sent(other: dict[str, Any]) -> None:
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        peer.greeting = None
        events = Heard(room, "session:drop", "session:resume")
        await room.send("sent")
        await link.next()
        await link.close(1012, "restart")
        await events.until(1)
        await room.send("queued")
        again = await peer.link()
        await again.welcome(**other, recovered=True)  # what it says of another seat does not count
        assert await again.next() == {"type": "queued"}
        assert await events.until(2) == [{"code": 1012, "reason": "restart"}, {"recovered": False}]
        assert room._seat.outbox.ledger.uncovered == 1


@in_loop
async def test_a_seat_that_forgot_what_it_had_is_another_one() -> None:
    async with Peer({"seq": 5}) as peer, joining(peer) as room:
        link = await peer.link()
        peer.greeting = None
        events = Heard(room, "session:drop", "session:resume")
        await room.send("a")
        await link.next()
        assert await pong_of(room, link) == 0
        await room.send("b")
        await link.next()
        await link.close(1012)
        await events.until(1)
        await room.send("c")
        again = await peer.link()
        await again.welcome(received=0, seq=5, recovered=True)  # same id and epoch, by chance
        assert await again.next() == {"type": "c"}
        assert (await events.until(2))[1] == {"recovered": False}
        await again.abort()
        third = await peer.link()
        await third.welcome(received=1, seq=4, recovered=True)
        assert (await events.until(4))[3] == {"recovered": False}


@in_loop
async def test_people_who_came_and_went_during_a_drop_are_told() -> None:
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        peer.greeting = {"id": 9, "epoch": 2}
        heard = Heard(room, "session:resume", "session:presence")
        await link.close(1001)
        await heard.until(2)
        assert heard.types == ["session:resume", "session:presence"]
        assert heard.messages[1].content == {
            "joins": [Person(9, (9,))], "leaves": [7], "updates": [], "count": 1, "host": None,
        }  # fmt: skip


@in_loop
async def test_the_offline_queue_keeps_reliable_messages_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "SLICE_EVERY", 0.01)
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        peer.greeting = None
        await link.abort()
        await room_until(room, lambda: not room.links)
        assert room.links == []
        await room.send("unreliable", reliable=False)
        for n in range(256):
            await room.send("x", n)
        with pytest.raises(SendQueueFull, match=r"256 messages \(\d+ bytes\) wait for the connection"):
            await room.send("x", 256)
        with pytest.raises(SendQueueFull):
            await room.ask("x")
        again = await peer.link()
        await again.welcome(recovered=True)
        assert [(await again.next())["content"] for _ in range(256)] == list(range(256))
        await room.send("x", 256)
        assert (await again.next())["content"] == 256


@in_loop
async def test_the_offline_queue_is_bounded_in_bytes(caplog: pytest.LogCaptureFixture) -> None:
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        peer.greeting = None
        await link.abort()
        await room_until(room, lambda: not room.links)
        await room.send("big", b"x" * 1024 * 1000)
        with pytest.raises(SendQueueFull, match="no room for 102407 bytes more"):
            await room.send("x", b"x" * 1024 * 100)
    assert "1 messages were never sent (room 'field')" in caplog.text


@in_loop
async def test_a_backlog_goes_in_slices_below_the_servers_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[int] = []
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        peer.greeting = None
        await link.abort()
        await room_until(room, lambda: not room.links)
        for n in range(130):
            await room.send("x", n)
        again = await peer.link()
        sleep = asyncio.sleep

        async def pause(seconds: float) -> None:
            if seconds != outbox.SLICE_EVERY:
                return await sleep(seconds)
            pauses.append(room._seat.outbox.ledger.sent)
            await sleep(0)

        monkeypatch.setattr(asyncio, "sleep", pause)
        await again.welcome(recovered=True)
        for _ in range(130):
            await again.next()
    assert pauses == [60, 120]


async def say_more(room: Room, count: int) -> None:
    for n in range(count):
        await room.send("more", n)


@in_loop
async def test_a_busy_sender_waits_for_the_server_and_asks_it_early(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        await link.until(lambda: link.pings == 1)
        link.answers_pings = False
        for n in range(256):
            await room.send("x", n)
        await link.until(lambda: link.pings >= 2)
        waiting = asyncio.create_task(room.send("x", 256))
        await link.until(lambda: len(link.frames) == 256)
        assert not waiting.done()
        await link.say("session:pong", {"t": 0, "time": 0, "received": 200})
        await waiting
        assert room._seat.outbox.ledger.uncovered == 57

        monkeypatch.setattr(outbox, "PING_AGAIN", 0.01)
        pings = link.pings
        waiting = asyncio.create_task(say_more(room, 256 - 57 + 1))
        await link.until(lambda: link.pings >= pings + 2)
        await link.say("session:pong", {"t": 0, "time": 0, "received": 257})
        await waiting

        monkeypatch.setattr(outbox, "COVER_TIMEOUT", 0.01)
        with pytest.raises(SendQueueFull, match="wait for the server"):
            for n in range(256):
                await room.send("x", n)


@in_loop
async def test_a_link_without_a_sign_of_life_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seat, "HEARTBEAT", 0.02)
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        link.answers_pings = False
        events = Heard(room, "session:resume")
        again = await peer.link()
        assert again.hello["resume"] == "r1"
        await events.until(1)
        await link.ended.wait()


@in_loop
async def test_each_kind_of_end_waits_as_long_as_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []

    def backoff(attempt: int) -> float:
        attempts.append(attempt)
        return 0.0

    async with Peer() as peer, session(peer.url, backoff=backoff) as room:
        events = Heard(room, "session:resume")
        for n, code in enumerate([1012, 1001, 1013], start=1):
            await (await peer.link()).close(code)
            await events.until(n)
        assert attempts == [0, 1, 2]  # in a row, as none of these links lived long
        monkeypatch.setattr(seat, "SETTLED", -1.0)
        await (await peer.link()).close(1012)
        await events.until(4)
        await (await peer.link()).close(1013)
        await events.until(5)
        assert attempts[3:] == [0, 2]


# --- the end ----------------------------------------------------------------------------------------------------------


@both_loops
@in_loop
async def test_a_kick_ends_all_that_waits() -> None:
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        heard = Heard(room, "session:close")
        asked = asyncio.create_task(room.ask("score"))
        await link.next()
        await link.say("x", 1)
        await link.close(4001, "too loud")
        messages = []
        with pytest.raises(SessionClosed, match="too loud") as caught:
            async for message in room:
                messages.append(message.content)  # noqa: PERF401 (the iteration ends by an exception)
        assert (caught.value.code, messages) == (4001, [1])
        assert await heard.until(1) == [{"code": 4001, "reason": "too loud"}]
        for call in (asked, room.send("x"), room.ask("x")):
            with pytest.raises(SessionClosed, match="too loud"):
                await call
        assert len(peer.upgrades) == 1


@in_loop
async def test_leaving_sends_what_was_sent_before_and_ends_the_iteration() -> None:
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        heard = Heard(room, "session:close")

        async def goodbye() -> None:
            await room.send("bye")
            await room.leave()
            await room.leave()

        async with asyncio.TaskGroup() as group:
            group.create_task(goodbye())
            messages = [message async for message in room]
        assert messages == []
        assert await heard.until(1) == [{"code": 1000, "reason": "left"}]
        assert [await link.next(), await link.next()] == [{"type": "bye"}, {"type": "session:leave"}]
        await link.ended.wait()


@in_loop
async def test_a_clean_close_by_the_server_ends_the_iteration() -> None:
    async with Peer() as peer, joining(peer) as room:
        await (await peer.link()).close(1000)
        assert [message async for message in room] == []


@in_loop
async def test_an_exception_leaves_the_room_and_stays_what_it_is() -> None:
    async with Peer() as peer:
        with pytest.raises(KeyError, match="mine"):
            async with joining(peer):
                link = await peer.link()
                raise KeyError("mine")
        assert await link.next() == {"type": "session:leave"}


@in_loop
async def test_leaving_while_connecting_ends_at_once() -> None:
    async with Peer() as peer:
        async with joining(peer) as room:
            link = await peer.link()
            peer.greeting = None
            await link.abort()
            await peer.link()  # is not welcomed
            await room.leave()
        with pytest.raises(SessionClosed):
            await room.send("x")


@in_loop
async def test_leaving_a_server_that_does_not_answer_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seat, "CLOSE_TIMEOUT", 0.05)
    async with Peer() as peer:
        async with joining(peer) as room:
            link = await peer.link()
            link._connection.transport.pause_reading()
        assert room._seat.end is not None and room._seat.end.code == 1000
        link._connection.transport.resume_reading()


@in_loop
async def test_an_async_handler_may_leave_and_one_of_the_close_may_finish() -> None:
    finished: list[str] = []
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()

        @room.on("stop")
        async def stop(content: Any, message: Message) -> None:
            await room.leave()
            finished.append("stop")

        @room.on("forever")
        async def forever(content: Any, message: Message) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                finished.append("cancelled")

        @room.on("session:close")
        async def closed(content: Any, message: Message) -> None:
            await asyncio.sleep(0.01)
            finished.append("close")

        await link.say("forever")
        await link.say("stop")
        assert [message.type async for message in room] == ["forever", "stop"]
        await room_tick()
    assert sorted(finished) == ["cancelled", "close", "stop"]


async def room_tick() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


# --- async for --------------------------------------------------------------------------------------------------------


@in_loop
async def test_an_iteration_goes_on_where_the_last_one_broke_off_and_over_drops() -> None:
    async with Peer({"seq": 3}) as peer, joining(peer) as room:
        link = await peer.link()
        for n in range(3):
            await link.say("x", n)
        async for message in room:
            assert message.content == 0
            break
        await link.close(1012)
        again = await peer.link()
        await again.say("session:presence", {"count": 9})  # is none of the room's messages
        await again.say("x", 3)
        contents = []
        async for message in room:
            contents.append(message.content)
            if message.content == 3:
                break
        assert contents == [1, 2, 3]


@in_loop
async def test_without_an_iteration_nothing_stalls_and_the_newest_are_kept() -> None:
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        heard = Heard(room, "x")
        for n in range(state.INBOX_MESSAGES + 100):
            await link.say("x", n)
        await heard.until(state.INBOX_MESSAGES + 100)
        async for message in room:
            assert message.content == 100
            break
        assert await pong_of(room, link) == 0


def pause_of(room: Room) -> asyncio.Event:
    """Set once the room has stopped reading."""
    paused, pause = asyncio.Event(), room._seat._pause

    async def tell() -> None:
        paused.set()
        await pause()

    room._seat._pause = tell  # type: ignore[method-assign]
    return paused


async def say_many(link: PeerLink, count: int) -> None:
    for n in range(count):
        await link.say("x", n)


@in_loop
async def test_an_iteration_that_does_not_keep_up_holds_the_server_back() -> None:
    count = state.INBOX_MESSAGES + 100
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        heard = Heard(room, "x")
        paused = pause_of(room)
        iterator = aiter(room)
        await say_many(link, count)
        await paused.wait()
        assert len(room._seat.inbox) == state.INBOX_MESSAGES
        assert len(heard.messages) == state.INBOX_MESSAGES + 1
        assert [(await anext(iterator)).content for _ in range(10)] == list(range(10))
        del iterator  # as `break` does: nobody waits any more
        await heard.until(count)


@in_loop
async def test_leaving_in_the_middle_of_a_stalled_iteration_is_quick() -> None:
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        paused = pause_of(room)
        sending = asyncio.create_task(say_many(link, state.INBOX_MESSAGES + 10))
        async for _ in room:
            await sending
            await paused.wait()
            before = asyncio.get_running_loop().time()
            await room.leave()
            assert asyncio.get_running_loop().time() - before < links.CLOSE_TIMEOUT / 2
            break
        await link.ended.wait()


@in_loop
async def test_slow_async_handlers_hold_the_server_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "MAX_HANDLING", 3)
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        paused = pause_of(room)
        gate, all_started = asyncio.Event(), asyncio.Event()
        started: list[int] = []

        @room.on("x")
        async def slow(content: Any, message: Message) -> None:
            started.append(content)
            if len(started) == 6:
                all_started.set()
            await gate.wait()

        await say_many(link, 6)
        await paused.wait()
        await room_tick()
        assert started == [0, 1, 2]
        gate.set()
        await all_started.wait()


@in_loop
async def test_two_rooms_share_nothing() -> None:
    async with Peer() as peer, joining(peer) as one:
        first = await peer.link()
        async with joining(peer, name="two") as two:
            second = await peer.link()
            await first.close(4001)
            with pytest.raises(SessionClosed):
                async for _ in one:
                    pass
            await two.send("x")
            assert await second.next() == {"type": "x"}
