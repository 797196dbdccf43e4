"""session.js in a real Chromium, against a server that does exactly what the test says (scripted_peer.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.async_api import Page

from browser import chromium, in_chromium, page_fixture  # noqa: F401
from scripted_peer import Link, ScriptedPeer, person, soon

# Joins; afterwards `hear(type)` gives what came of a type, in order, whether it came before or after.
JOIN = """async ([slug, options]) => {
    const { session } = await import("/session.js");
    const events = [], waiting = [];
    const match = () => {
        for (const waiter of [...waiting]) {
            const found = events.findIndex(({ type }) => type === waiter.type);
            if (found < 0) continue;
            waiting.splice(waiting.indexOf(waiter), 1);
            waiter.resolve(events.splice(found, 1)[0]);
        }
    };
    const take = (content, { from, reliable, type }) => {
        events.push({ type, content: content instanceof Uint8Array ? [...content] : content, from, reliable });
        match();
    };
    window.hear = (type) => new Promise((resolve) => { waiting.push({ type, resolve }); match(); });
    window.heard = () => events.map(({ type }) => type);
    window.failure = (promise) => promise.then(
        () => { throw new Error("expected a failure"); },
        ({ name, message, code, reason }) => ({ name, message, code, reason }));
    window.thrown = (call) => { try { call(); } catch (error) { return String(error); } };
    window.joining = session(slug ?? undefined, options).then((room) => {
        window.room = room;
        for (const own of ["presence", "drop", "resume", "close", "error"]) room.on("session:" + own, take);
        room.on("*", take);
        return room;
    });
    window.joining.catch(() => {});
}"""


@pytest.fixture
def peer() -> Iterator[ScriptedPeer]:
    peer = ScriptedPeer()
    chromium().run(peer.__aenter__())
    yield peer
    chromium().run(peer.__aexit__())


async def js(page: Page, expression: str, argument: Any = None) -> Any:
    return await soon(page.evaluate(expression, argument))


async def hear(page: Page, type: str) -> Any:
    """The content of the next message or event of this type."""
    return (await js(page, "hear", type))["content"]


async def start(page: Page, peer: ScriptedPeer, slug: str | None = None, path: str = "field", **options: Any) -> None:
    await page.goto(peer.page(path))
    await js(page, JOIN, [slug, options])


async def join(page: Page, peer: ScriptedPeer, **welcome: Any) -> Link:
    await start(page, peer)
    link = await peer.seat(**welcome)
    await js(page, "joining.then(() => {})")
    return link


async def quiet(page: Page, peer: ScriptedPeer, link: Link) -> None:
    """All that the page has sent on this link is here: a marker has come, and nothing before it."""
    await js(page, "room.send('marker')")
    assert await link.receives() == {"type": "marker"}


async def stop_the_clock(page: Page) -> None:
    """From here on only `page.clock` moves the timers of the page."""
    await page.clock.install(time=0)
    await page.clock.pause_at(1)


# --- joining ----------------------------------------------------------------------------------------------------------


@in_chromium
async def test_a_page_joins_its_own_slug_and_says_who_it_is(page: Page, peer: ScriptedPeer) -> None:
    await start(page, peer, path="caf%C3%A9~1", name="ada", data={"colour": 3}, token="secret")
    link = await peer.link()
    assert link.path == "/session/caf%C3%A9~1"
    assert link.subprotocol == "session.v1"
    assert await link.joins() == {"name": "ada", "data": {"colour": 3}, "token": "secret"}
    people = [person(3, name="eve"), person(7, name="ada")]
    await link.welcome(7, room="café~1", presence=people, count=2, host=7, time=1000.0)
    room = await js(page, "joining.then(({ id, slug, isHost, presence, count, time, links }) => "
                          "({ id, slug, isHost, presence, count, time, links }))")  # fmt: skip
    assert (room["id"], room["slug"], room["isHost"], room["count"]) == (7, "café~1", True, 2)
    assert room["presence"] == people
    assert 1000 <= room["time"] < 1001
    assert [link["kind"] for link in room["links"]] == ["websocket"]
    assert await js(page, "Object.isFrozen(room.presence) && Object.isFrozen(room.presence[0])")


@in_chromium
async def test_a_slug_is_on_the_server_of_session_js_and_a_url_anywhere(page: Page, peer: ScriptedPeer) -> None:
    async with ScriptedPeer() as other:
        await start(page, peer, "a/b c")
        assert (await peer.link()).path == "/session/a/b%20c"
        await start(page, peer, f"http://{other.host}/session/b#here")
        assert (await other.link()).path == "/session/b"
        await start(page, peer, f"ws://{other.host}/session/c")
        assert (await other.link()).path == "/session/c"


@in_chromium
async def test_a_slug_that_a_url_would_change_is_refused(page: Page, peer: ScriptedPeer) -> None:
    for slug in ("", "..", "a/../b", ".", "/b/./c"):
        await start(page, peer, slug)
        assert (await js(page, "failure(joining)"))["message"].startswith(f"slug is '{slug}', expected")
    assert peer.upgrades == 0


@in_chromium
async def test_a_refusal_rejects_with_code_and_reason(page: Page, peer: ScriptedPeer) -> None:
    for code, reason in ((4401, "who are you?"), (1008, "name of 90 characters")):
        await start(page, peer)
        await (await peer.link()).close(code, reason)
        failure = await js(page, "failure(joining)")
        assert (failure["name"], failure["code"], failure["reason"]) == ("SessionError", code, reason)


@in_chromium
async def test_a_full_room_is_tried_until_there_is_a_seat(page: Page, peer: ScriptedPeer) -> None:
    await start(page, peer)
    for _ in range(3):
        await (await peer.link()).close(1013, "full")
    await peer.seat()
    assert await js(page, "joining.then(() => room.id)") == 1


@in_chromium
async def test_a_server_that_admits_nobody_is_tried_for_ten_seconds(page: Page, peer: ScriptedPeer) -> None:
    await stop_the_clock(page)
    peer.refuses = 503
    await start(page, peer)
    while peer.upgrades < 3:
        await page.clock.run_for(500)
    await page.clock.run_for(10_000)
    failure = await js(page, "failure(joining)")
    assert failure["code"] == "unreachable"
    assert failure["message"].startswith(f"no answer from ws://{peer.host}/session/field for 10 s: it is down")


@in_chromium
async def test_a_signal_ends_the_join_or_the_stay(page: Page, peer: ScriptedPeer) -> None:
    await page.goto(peer.page())
    await js(
        page, f"async () => {{ window.stop = new AbortController(); await ({JOIN})([null, {{signal: stop.signal}}]) }}"
    )
    await (await peer.link()).joins()
    await js(page, "stop.abort(new Error('enough'))")
    assert (await js(page, "failure(joining)"))["message"] == "enough"

    await js(
        page, f"async () => {{ window.stop = new AbortController(); await ({JOIN})([null, {{signal: stop.signal}}]) }}"
    )
    link = await peer.seat()
    await js(page, "joining.then(() => stop.abort())")
    assert (await link.receives())["type"] == "session:leave"
    assert await hear(page, "session:close") == {"code": 1000, "reason": "left"}


@in_chromium
async def test_a_token_function_is_called_at_each_connect(page: Page, peer: ScriptedPeer) -> None:
    await page.goto(peer.page())
    await js(page, f"() => {{ let n = 0; return ({JOIN})([null, {{ token: async () => `token ${{++n}}` }}]) }}")
    link = await peer.link()
    assert (await link.joins())["token"] == "token 1"
    await link.welcome()
    link.cut()
    assert (await (await peer.link()).joins())["token"] == "token 2"


# --- messages ---------------------------------------------------------------------------------------------------------


@in_chromium
async def test_messages_arrive_with_sender_and_reliability(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    await link.send("say", {"text": "hi"}, id=4)
    await link.send("move", [1, 2], id=5, reliable=False)
    assert await js(page, "hear('say')") == {"type": "say", "content": {"text": "hi"}, "from": 4, "reliable": True}
    assert await js(page, "hear('move')") == {"type": "move", "content": [1, 2], "from": 5, "reliable": False}


@in_chromium
async def test_listeners_come_and_go_and_do_not_disturb_each_other(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    await js(page, """() => {
        window.calls = [];
        addEventListener("error", (event) => { calls.push(event.error.message); event.preventDefault(); });
        const off = room.on("say", () => { calls.push("gone"); });
        room.once("say", (content) => { calls.push("once " + content); });
        room.on("say", () => { throw new Error("mine alone"); });
        room.on("say", window.named = (content) => { calls.push("on " + content); });
        off();
    }""")  # fmt: skip
    await link.send("say", 1)
    await link.send("say", 2)
    await hear(page, "say")
    await hear(page, "say")
    assert await js(page, "calls") == ["once 1", "mine alone", "on 1", "mine alone", "on 2"]
    await js(page, "room.off('say', named)")
    await link.send("say", 3)
    await hear(page, "say")
    assert (await js(page, "calls"))[5:] == ["mine alone"]


@in_chromium
async def test_what_is_sent_is_on_the_wire_as_documented(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    await js(page, """() => {
        room.send("nothing");
        room.send("null", null);
        room.send("move", [0.5, 1], { reliable: false });
        room.send("half", "cut \\ud83d and \\\\ud83d whole");
        room.send("é", new Uint8Array([1, 2, 3]));
        room.send("f", new Float32Array([1]).buffer, { reliable: false });
        room.send("part", new DataView(new Uint8Array([7, 8, 9]).buffer, 1, 1));
    }""")  # fmt: skip
    assert [await link.receives() for _ in range(7)] == [
        {"type": "nothing"},
        {"type": "null", "content": None},
        {"type": "move", "content": [0.5, 1], "reliable": False},
        {"type": "half", "content": "cut \ufffd and \\ud83d whole"},
        b"\x01\x02\xc3\xa9\0\0\0\0\x01\x02\x03",
        b"\x02\x01f\0\0\0\0\0\0\x80\x3f",
        b"\x01\x04part\0\0\0\0\x08",
    ]


@in_chromium
async def test_binary_messages_arrive_as_bytes(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    await link.send_frame(b"\x02\x02\xc3\xa9\x00\x00\x01\x02\x05\x06")
    assert await js(page, "hear('é')") == {"type": "é", "content": [5, 6], "from": 258, "reliable": False}
    await link.send_frame(b"\x01\x01x\xff\xff\xff\xff")
    assert await js(page, "hear('x')") == {"type": "x", "content": [], "from": 2**32 - 1, "reliable": True}


@in_chromium
async def test_what_cannot_be_sent_is_refused_with_what_was_seen(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    refused = {
        "room.send(7)": "type is '7', expected a non-empty string",
        "room.send('')": "type is '', expected a non-empty string",
        "room.send('é'.repeat(128))": "type of 256 bytes, expected at most 255",
        "room.send('session:leave')": "type is 'session:leave', expected none that begins with 'session:'",
        "room.send('x', () => 1)": "content of 'x' is of type function, expected JSON or bytes",
        "room.send('x', NaN)": "content of 'x' is 'NaN', expected JSON or bytes",
        "room.send('x', 1n)": "content of 'x' is not JSON: Do not know how to serialize a BigInt",
        "room.on('x', 1)": "listener of 'x' is '1', expected a function",
    }
    for call, message in refused.items():
        assert await js(page, f"thrown(() => {call})") == f"TypeError: {message}"
    assert "bytes, expected JSON" in (await js(page, "failure(room.ask('x', new Uint8Array(1)))"))["message"]
    await quiet(page, peer, link)


@in_chromium
async def test_unreliable_messages_are_shed_while_the_link_is_congested(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    link.stall()
    await js(page, """() => {
        room.send("big", "x".repeat(24_000_000));
        room.send("move", 1, { reliable: false });
        room.send("small");
    }""")  # fmt: skip
    link.go_on()
    assert [(await link.receives())["type"] for _ in range(2)] == ["big", "small"]


# --- asking -----------------------------------------------------------------------------------------------------------


@in_chromium
async def test_an_ask_is_answered_or_refused(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    await js(page, "window.asked = [room.ask('score'), failure(room.ask('sit', { seat: 1 }))]; 0")
    first, second = await link.receives(), await link.receives()
    assert first == {"type": "session:ask", "content": {"ask": 1, "type": "score"}}
    assert second == {"type": "session:ask", "content": {"ask": 2, "type": "sit", "content": {"seat": 1}}}
    await link.send("session:reply", {"ask": 2, "error": {"code": "refused", "reason": "taken"}})
    await link.send("session:reply", {"ask": 1, "content": 42})
    await link.send("session:reply", {"ask": 1, "content": 43})
    answer, refusal = await js(page, "Promise.all(asked)")
    assert answer == 42
    assert (refusal["code"], refusal["message"]) == ("refused", "taken")


@in_chromium
async def test_an_ask_without_an_answer_ends(page: Page, peer: ScriptedPeer) -> None:
    await stop_the_clock(page)
    link = await join(page, peer)
    await js(page, "window.asked = ['one', 'two'].map((type) => failure(room.ask(type))); 0")
    await link.receives()
    await page.clock.run_for(9_900)
    await js(page, "window.late = failure(room.ask('three')); 0")
    await page.clock.run_for(200)
    failure = (await js(page, "Promise.all(asked)"))[1]
    assert (failure["code"], failure["message"]) == ("timeout", "no answer to 'two' within 10000 ms")
    await link.close(4001, "kicked")
    assert (await js(page, "late"))["code"] == "closed"


@in_chromium
async def test_an_ask_that_ended_while_offline_is_not_asked_later(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    peer.refuses = 503
    link.cut()
    await hear(page, "session:drop")
    assert (await js(page, "failure(room.ask('now', 1, { timeout: 50 }))"))["code"] == "timeout"
    await js(page, "window.later = room.ask('later'); 0")
    peer.refuses = None
    link = await peer.seat()
    assert (await link.receives())["content"] == {"ask": 2, "type": "later"}
    await link.send("session:reply", {"ask": 2, "content": "yes"})
    assert await js(page, "later") == "yes"


# --- dropping and resuming --------------------------------------------------------------------------------------------


@in_chromium
async def test_what_was_lost_on_the_way_up_is_sent_again_once(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    await js(page, "for (const type of ['a', 'b', 'c']) room.send(type); room.send('d', new Uint8Array([4]))")
    for _ in range(4):
        await link.receives()
    link.cut()
    assert await hear(page, "session:drop") == {"code": 1006, "reason": ""}

    link = await peer.link()
    assert await link.joins() == {"resume": "token 1", "received": 0}
    await link.welcome(received=1, recovered=True, resume="token 2")  # as if b, c and d had been lost
    assert await hear(page, "session:resume") == {"recovered": True}
    assert [await link.receives() for _ in range(3)] == [{"type": "b"}, {"type": "c"}, b"\x01\x01d\0\0\0\0\x04"]
    await quiet(page, peer, link)  # all five taken now

    link.cut()
    link = await peer.link()
    assert (await link.joins())["resume"] == "token 2"
    await link.welcome(received=5, recovered=True)
    assert await hear(page, "session:resume") == {"recovered": True}
    await quiet(page, peer, link)


@in_chromium
async def test_a_pong_covers_what_was_sent(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    link.answers_pings = False
    # More than half of what is kept: the page asks for a count, and goes on sending without losing any.
    await js(page, "for (let n = 0; n < 200; n++) room.send('n', n)")
    for _ in range(200):
        await link.receives()
    await link.pong(0, received=190)
    await js(page, "for (let n = 200; n < 400; n++) room.send('n', n)")
    for _ in range(200):
        await link.receives()
    link.cut()
    link = await peer.seat(received=398, recovered=True)
    assert await hear(page, "session:resume") == {"recovered": True}
    assert [(await link.receives())["content"] for _ in range(2)] == [398, 399]
    await quiet(page, peer, link)


@in_chromium
async def test_a_loss_that_can_not_be_made_good_is_told(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    link.answers_pings = False
    await js(page, "for (let n = 0; n < 257; n++) room.send('n', n)")
    for _ in range(257):
        await link.receives()
    link.cut()
    link = await peer.seat(received=0, recovered=True)
    assert await hear(page, "session:resume") == {"recovered": False}  # 256 are kept, the first was not
    assert (await link.receives())["content"] == 1


@in_chromium
async def test_what_was_missed_on_the_way_down_is_told_and_counted(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer, seq=10)
    await link.send("a")
    await link.send("b", reliable=False)
    await link.send_frame(b"\x01\x01c\0\0\0\0")
    await link.send_frame(b"\x02\x01d\0\0\0\0")
    await link.send("session:presence", {"count": 2})
    await link.send("session:future", {"count": 2})
    await hear(page, "session:presence")
    await hear(page, "d")
    link.cut()
    link = await peer.link()
    assert (await link.joins())["received"] == 12  # a and c
    await link.welcome(seq=15, recovered=False)
    assert await hear(page, "session:resume") == {"recovered": False}
    await link.send("e")
    await hear(page, "e")
    link.cut()
    assert (await (await peer.link()).joins())["received"] == 16


@in_chromium
async def test_what_is_sent_while_offline_waits_in_order(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    peer.refuses = 503
    link.cut()
    await hear(page, "session:drop")
    assert await js(page, "room.links") == []
    await js(page, "for (let n = 0; n < 256; n++) { room.send('n', n); room.send('lost', n, { reliable: false }); }")
    full = await js(page, "thrown(() => room.send('n', 256))")
    assert full.startswith("SessionError: 256 messages of 6546 bytes wait for the connection, expected at most 256")
    peer.refuses = None
    link = await peer.seat(recovered=True)
    await hear(page, "session:resume")
    await js(page, "room.send('last')")  # behind all that waits, though there is a link now
    assert [await link.receives() for _ in range(256)] == [{"type": "n", "content": n} for n in range(256)]
    assert await link.receives() == {"type": "last"}


@in_chromium
async def test_the_queue_is_bounded_in_bytes_too(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    peer.refuses = 503
    link.cut()
    await hear(page, "session:drop")
    await js(page, "room.send('a', 'x'.repeat(1_000_000))")
    assert "1 messages of 1000025 bytes" in await js(page, "thrown(() => room.send('b', 'x'.repeat(100_000)))")


@in_chromium
async def test_a_new_seat_gets_what_waited_and_not_what_may_have_arrived(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    await js(page, "room.send('sent'); window.asked = failure(room.ask('asked')); 0")
    await link.receives()
    await link.receives()
    peer.refuses = 503
    link.cut()
    await hear(page, "session:drop")
    await js(page, "room.send('waited'); window.waiting = room.ask('waiting'); 0")
    peer.refuses = None
    link = await peer.link()
    await link.joins()
    await link.welcome(9, received=0)
    assert await hear(page, "session:resume") == {"recovered": False}
    assert await js(page, "room.id") == 9
    assert (await js(page, "asked"))["code"] == "lost"
    assert await link.receives() == {"type": "waited"}
    assert (await link.receives())["content"] == {"ask": 2, "type": "waiting"}
    await link.send("session:reply", {"ask": 2, "content": True})
    assert await js(page, "waiting") is True
    await quiet(page, peer, link)


@in_chromium
async def test_the_same_id_after_a_restart_is_not_the_same_seat(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    await js(page, "room.send('sent')")
    await link.receives()
    await link.close(1012, "restart")
    link = await peer.seat(epoch=2)
    assert await hear(page, "session:resume") == {"recovered": False}
    await quiet(page, peer, link)


@in_chromium
async def test_codes_that_ask_to_come_back(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    for code in (1001, 1012, 1013):
        await link.close(code, "later")
        assert await hear(page, "session:drop") == {"code": code, "reason": "later"}
        link = await peer.seat()
        await hear(page, "session:resume")


@in_chromium
async def test_codes_after_which_nobody_comes_back(page: Page, peer: ScriptedPeer) -> None:
    await stop_the_clock(page)
    for code in (1000, 1002, 1003, 1007, 1008, 1009, 1011, 4001, 4401, 4999):
        link = await join(page, peer)
        await link.close(code, "no more")
        assert await hear(page, "session:close") == {"code": code, "reason": "no more"}
        await page.clock.run_for(60_000)
        assert await js(page, "heard()") == []
        assert not peer.has_link()
        assert await js(page, "thrown(() => room.send('x'))") == "SessionError: the session is closed"
        assert await js(page, "room.send('x', 1, { reliable: false })") is None


@in_chromium
async def test_leaving_says_so_and_is_final(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    await js(page, "room.send('last'); room.leave(); room.leave()")
    assert [await link.receives() for _ in range(2)] == [{"type": "last"}, {"type": "session:leave"}]
    assert await link.ends() == 1000
    assert await hear(page, "session:close") == {"code": 1000, "reason": "left"}
    assert await js(page, "heard()") == []
    assert (await js(page, "failure(room.ask('x'))"))["code"] == "closed"


# --- signs of life ----------------------------------------------------------------------------------------------------


@in_chromium
async def test_a_silent_link_is_replaced_and_closed_only_after_the_resume(page: Page, peer: ScriptedPeer) -> None:
    await stop_the_clock(page)
    await start(page, peer)
    link = await peer.link()
    link.answers_pings = False
    await link.joins()
    await link.welcome()
    await js(page, "joining.then(() => {})")
    await page.clock.run_for(9_900)
    assert not peer.has_link()
    await page.clock.run_for(200)
    assert await hear(page, "session:drop") == {"code": 1006, "reason": "no sign of life"}
    assert link.pings == 2
    await page.clock.run_for(250)
    second = await peer.link()
    assert (await second.joins())["resume"] == "token 1"
    assert not link.has_ended()  # a farewell now would cost the seat
    await second.welcome(recovered=True)
    assert await link.ends() == 1000
    assert await hear(page, "session:resume") == {"recovered": True}


@in_chromium
async def test_a_throttled_tab_keeps_its_link(page: Page, peer: ScriptedPeer) -> None:
    await stop_the_clock(page)
    link = await join(page, peer)
    for minute in range(5):
        await page.clock.fast_forward(60_000)  # each timer that is due fires once
        await link.send("tick", minute)
        assert await hear(page, "tick") == minute
    assert link.pings == 6
    assert await js(page, "heard()") == []
    assert not peer.has_link()


@in_chromium
async def test_any_byte_is_a_sign_of_life(page: Page, peer: ScriptedPeer) -> None:
    await stop_the_clock(page)
    link = await join(page, peer)
    link.answers_pings = False
    for n in range(5):
        await page.clock.run_for(5_000)
        await link.send("tick", n)
        await hear(page, "tick")
    assert not peer.has_link()


@in_chromium
async def test_the_round_trip_is_measured(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    await link.send("x")  # behind the pong
    await hear(page, "x")
    assert await js(page, "room.links.map(({ kind, rtt }) => kind === 'websocket' && rtt >= 0 && rtt < 1000)") == [True]


@in_chromium
async def test_the_clock_follows_the_quickest_answer_and_never_goes_back(page: Page, peer: ScriptedPeer) -> None:
    await stop_the_clock(page)
    await start(page, peer)
    link = await peer.link()
    link.answers_pings = False
    await link.joins()
    await link.welcome(time=500.0)
    assert await js(page, "joining.then(() => room.time)") == 500.0  # the clock stands: the round trip took no time

    async def pong(rtt: int, time: float) -> float:
        now = await js(page, "performance.now()")
        await link.pong(now - rtt, time=time)
        await link.send("x")
        await hear(page, "x")
        return float(await js(page, "room.time"))

    assert await pong(400, 500.3) == 500.0  # a slow answer counts for little
    assert await pong(0, 499.5) == 500.0  # as quick as the first, and no more believed
    await page.clock.run_for(1_000)
    assert await pong(2, 501.2) == 501.0
    assert await pong(0, 20.0) == 20.0  # not the same clock any more


@in_chromium
async def test_online_tries_at_once(page: Page, peer: ScriptedPeer) -> None:
    await stop_the_clock(page)
    link = await join(page, peer)
    await js(page, "Object.defineProperty(navigator, 'onLine', { value: false, configurable: true }); 0")
    link.cut()
    await hear(page, "session:drop")
    await page.clock.run_for(9_900)
    assert not peer.has_link()
    await js(page, "Object.defineProperty(navigator, 'onLine', { value: true }); dispatchEvent(new Event('online'))")
    await peer.seat(recovered=True)
    assert await hear(page, "session:resume") == {"recovered": True}


@in_chromium
async def test_attempts_back_off(page: Page, peer: ScriptedPeer) -> None:
    await stop_the_clock(page)
    await page.add_init_script("""{
        Math.random = () => 1;
        window.WebSocket = class extends WebSocket {
            closed = new Promise((resolve) => { this.addEventListener("close", resolve); });
            constructor(...given) { super(...given); window.socket = this; }
        };
    }""")
    link = await join(page, peer)
    peer.refuses = 503
    link.cut()
    await hear(page, "session:drop")
    for delay in (250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000):
        before = peer.upgrades
        await js(page, "window.last = socket; 0")
        await page.clock.run_for(delay - 1)
        assert await js(page, "socket === last")
        await page.clock.run_for(1)
        assert await js(page, "socket !== last")
        await js(page, "socket.closed.then(() => {})")
        assert peer.upgrades == before + 1


@in_chromium
async def test_a_page_that_goes_leaves(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    await page.goto("about:blank")
    assert (await link.receives())["type"] == "session:leave"
    assert await link.ends() is not None


@in_chromium
async def test_a_page_out_of_the_cache_joins_again(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    await js(page, "dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    assert (await link.receives())["type"] == "session:leave"
    assert await link.ends() == 1000
    assert (await hear(page, "session:drop"))["code"] == 1000
    await js(page, "dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    link = await peer.link()
    assert "resume" not in await link.joins()
    await link.welcome(2)
    assert await hear(page, "session:resume") == {"recovered": False}
    assert await js(page, "room.id") == 2


# --- presence ---------------------------------------------------------------------------------------------------------


@in_chromium
async def test_presence_follows_the_diffs(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer, presence=[person(1), person(2)], count=2)
    diff = {"joins": [person(1), person(3)], "leaves": [2, 8], "updates": [], "count": 2, "host": 1}
    await link.send("session:presence", diff)
    told = {"joins": [person(3)], "leaves": [2], "updates": [person(1)], "count": 2}  # of 1 and 8 it knew better
    assert await hear(page, "session:presence") == told
    assert await js(page, "room.presence.map(({ id }) => id)") == [1, 3]
    assert await js(page, "room.isHost") is True
    await link.send("session:presence", {"count": 201})
    await hear(page, "session:presence")
    assert await js(page, "[room.presence, room.count]") == [[], 201]
    await link.send("session:presence", {"joins": [person(1), person(4)], "count": 2})
    assert [one["id"] for one in (await hear(page, "session:presence"))["joins"]] == [1, 4]


@in_chromium
async def test_a_resume_tells_who_came_and_went_meanwhile(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer, presence=[person(1), person(2)], count=2)
    link.cut()
    await peer.seat(presence=[person(1), person(3)], count=2)
    diff = await hear(page, "session:presence")
    assert ([one["id"] for one in diff["joins"]], diff["leaves"], diff["count"]) == ([3], [2], 2)


# --- hostile and newer servers ----------------------------------------------------------------------------------------

HOSTILE: tuple[str | bytes, ...] = (
    "", "x", "null", "[]", '"text"', "7", "{}", '{"type":7}', '{"type":null}', '{"content":1}', '{"type":"x"',
    "[" * 100_000, '{"type":"session:presence","content":' + "[" * 5_000 + "]" * 5_000 + "}",
    b"", b"\x01", b"\x03\x01x\0\0\0\0", b"\x01\x00\0\0\0\0", b"\x01\x05x\0\0\0\0", b"\x01\x01\xff\0\0\0\0",
    b"\x01\x01x\0\0\0", b"\x01\x0csession:drop\0\0\0\0",
)  # fmt: skip
ODD_CONTENTS = (
    None, 1, "x", [], {}, {"toString": 1}, {"id": -1}, {"ask": {}, "error": 1}, {"error": None},
    {"code": {"toString": 1}}, {"joins": 1, "leaves": 1, "updates": 1, "count": "x"},
    {"joins": [None, 1, {"id": "x"}], "leaves": [None, {}]},
    {"t": {}, "time": "x", "received": -5}, {"t": 1e999}, {"received": 1.5},
)  # fmt: skip


@in_chromium
async def test_a_hostile_server_harms_nothing(page: Page, peer: ScriptedPeer) -> None:
    await start(page, peer)
    link = await peer.link()
    await link.joins()
    frames = list(HOSTILE)
    for type in ("welcome", "presence", "reply", "pong", "error", "ask", "offer", ""):
        frames += [json.dumps({"type": f"session:{type}", "content": content}) for content in ODD_CONTENTS]
    for frame in frames:
        await link.send_frame(frame)
    await link.welcome()
    await js(page, "joining.then(() => {})")
    for frame in frames:
        await link.send_frame(frame)
    await link.welcome(66)  # a second one
    await link.send("still", "here")
    assert await hear(page, "still") == "here"
    assert await js(page, "[room.id, room.presence.length, Number.isFinite(room.time)]") == [1, 1, True]
    link.cut()
    assert (await (await peer.link()).joins())["received"] == 1


@in_chromium
async def test_a_browser_that_makes_no_data_channel_joins_all_the_same(page: Page, peer: ScriptedPeer) -> None:
    await page.add_init_script("window.RTCPeerConnection = class { constructor() { throw new Error('forbidden'); } }")
    await join(page, peer, offer="v=0")
    assert [link["kind"] for link in await js(page, "room.links")] == ["websocket"]


@in_chromium
async def test_errors_are_heard_but_those_of_the_data_channel(page: Page, peer: ScriptedPeer) -> None:
    link = await join(page, peer)
    await link.send("session:error", {"code": "invalid", "reason": "full", "type": "session:answer"})  # is not heard
    await link.send("session:error", {"code": "invalid", "reason": "2 numbers", "type": "move"})
    assert await hear(page, "session:error") == {"code": "invalid", "reason": "2 numbers", "type": "move"}


@in_chromium
async def test_an_error_that_nobody_hears_is_in_the_console(page: Page, peer: ScriptedPeer) -> None:
    # Asked for before the page is there: the browser tells nothing of a console until it knows that somebody listens.
    async with page.expect_console_message(lambda message: message.text.startswith("session.js")) as message:
        await start(page, peer)
        link = await peer.link()
        await link.joins()
        await link.send("session:error", {"code": "malformed", "reason": "no join"})
    assert (await message.value).text == "session.js: malformed: no join"
