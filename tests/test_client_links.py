"""The Python client and a real server: the unreliable link is found, used and lost, and every refusal is told."""

from __future__ import annotations

import asyncio
import math
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_peer import Heard, Peer, at_once, both_loops, in_loop, joining
from serving import V1, Serving, code_of, serving
from session_server import trust
from session_server.client import Message, Room, SessionClosed, handlers, seat, session
from session_server.client.links import DataChannelLink
from session_server.client.outbox import Outbox
from session_server.client.state import Newest
from session_server.rtc import sdp
from session_server.rtc.stun import Credentials
from session_server.trust import Route

RELAYED = "127.0.0.2"  # where datagrams pass the relay on their way to the server
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux answers on all of 127.0.0.0/8")

TRACK = """
from session_server import Client, Room, on

class Track(Room):
    tick_rate = 50
    def on_create(self):
        self.moves, self.tick, self.others = [], 0, []
    @on("move")
    def move(self, client: Client, number: int):
        self.moves.append(number)
    def on_message(self, client, message):
        self.others.append((message.type, message.content, message.reliable))
    def on_tick(self, dt):
        self.tick += 1
        self.broadcast("tick", self.tick, reliable=False)
"""


class Relay:
    """A second address of the server for UDP, which can be cut without a sign."""

    def __init__(self, port: int) -> None:
        self.is_cut = False
        self.loses = 0  # datagrams, the next ones
        self.passed = 0  # datagrams
        self._server = ("127.0.0.1", port)
        self._front = self._socket((RELAYED, port), lambda data, address: self._way(address).sendto(data, self._server))
        self._ways: dict[Any, socket.socket] = {}  # client's address → a socket of its own to the server

    def _socket(self, address: Any, take: Callable[[bytes, Any], object]) -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.setblocking(False)
        one.bind(address)

        def read() -> None:
            data, sender = one.recvfrom(2048)
            if self.loses:
                self.loses -= 1
            elif not self.is_cut:
                self.passed += 1
                take(data, sender)

        asyncio.get_running_loop().add_reader(one, read)
        return one

    def _way(self, client: Any) -> socket.socket:
        if client not in self._ways:
            self._ways[client] = self._socket(("127.0.0.1", 0), lambda data, server: self._front.sendto(data, client))
        return self._ways[client]

    def close(self) -> None:
        for one in (self._front, *self._ways.values()):
            asyncio.get_running_loop().remove_reader(one)
            one.close()


@contextmanager
def relayed(**settings: Any) -> Iterator[tuple[Serving, Relay]]:
    with serving({"track": TRACK}, announce_ip=(RELAYED,), **settings) as site:
        relay = Relay(site.port)
        try:
            yield site, relay
        finally:
            relay.close()


@contextmanager
def moving(room: Room) -> Iterator[list[int]]:
    """Sends a numbered move for each tick that is heard; gives the ticks."""
    ticks: list[int] = []

    async def move(content: Any, message: Message) -> None:
        ticks.append(content)
        await room.send("move", len(ticks), reliable=False)

    off = room.on("tick", move)
    yield ticks
    off()


async def until(room: Room, ready: Callable[[], Any]) -> None:
    """Looks at each message that comes."""
    came = asyncio.Event()
    off = room.on("*", lambda content, message: came.set())
    while not ready():
        came.clear()
        await came.wait()
    off()


def track(site: Serving) -> Any:
    return site.server.rooms.rooms["track"].instance


def moves(site: Serving) -> list[int]:
    return site.call(lambda: list(track(site).moves))


def theirs(site: Serving) -> Route | None:
    """How the server reaches its first client with what may be lost; None without a side link."""
    links = site.call(lambda: track(site).clients[0].links)
    return links[1].route if len(links) > 1 else None


def both_trust(site: Serving, room: Room) -> bool:
    return room._seat.side is not None and room._seat.route is theirs(site) is Route.UNRELIABLE


def is_rising(numbers: list[int]) -> bool:
    return numbers == sorted(set(numbers))


@contextmanager
def on_websocket(room: Room) -> Iterator[list[str]]:
    """The unreliable frames that pass there, both ways, as far as they are text."""
    link = room._seat.outbox.link
    assert link is not None
    passed: list[str] = []
    send, receive = link.send, link.receive

    def note(frame: Any) -> Any:
        if isinstance(frame, str) and '"reliable":false' in frame:
            passed.append(frame)
        return frame

    async def noting_send(frame: Any) -> None:
        await send(note(frame))

    async def noting_receive() -> Any:
        return note(await receive())

    link.send, link.receive = noting_send, noting_receive  # type: ignore[method-assign]
    yield passed


@contextmanager
def judged(doubt_after: float, demote_after: float = 60.0, trust_again: float = 60.0) -> Iterator[None]:
    """By other times than in earnest, on both sides."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trust, "DOUBT_AFTER", doubt_after)
        patch.setattr(trust, "DEMOTE_AFTER", demote_after)
        patch.setattr(trust, "TRUST_AGAIN", trust_again)
        yield


# --- the channel ------------------------------------------------------------------------------------------------------


@both_loops
@in_loop
async def test_what_may_be_lost_goes_by_udp_both_ways_and_nothing_comes_twice() -> None:
    with serving({"track": TRACK}) as site, judged(doubt_after=60.0):
        async with session(f"http://{site.host}/session/track") as room:
            with moving(room) as ticks:
                await until(room, lambda: both_trust(site, room))
                with on_websocket(room) as passed:
                    await room.ask("move", 0)  # what was under way by WebSocket has come
                    passed.clear()
                    start, before = len(ticks), len(moves(site))
                    await until(room, lambda: len(ticks) > start + 20 and len(moves(site)) > before + 20)
                assert not passed, "it went by WebSocket, too"
            websocket, side = room.links
            assert (websocket.kind, websocket.loss, websocket.active) == ("websocket", 0.0, True)
            assert (side.kind, side.active, side.rtt) == ("datachannel", True, websocket.rtt)
            assert 0 <= side.loss < 1
            assert is_rising(ticks) and is_rising([number for number in moves(site) if number])
        assert room.links == []
        site.until(lambda: len(site.server.channels) == 0)  # it went with its client


@on_linux
@in_loop
async def test_when_udp_dies_silently_messages_go_on_and_later_udp_is_trusted_again() -> None:
    with relayed() as (site, relay), judged(doubt_after=0.1, demote_after=0.5, trust_again=0.5):
        async with session(f"http://{site.host}/session/track") as room:
            events = Heard(room, "session:drop", "session:error", "session:close")
            with moving(room) as ticks:
                await until(room, lambda: both_trust(site, room))
                assert relay.passed > 0

                relay.is_cut = True
                await until(room, lambda: not room.links[1].active and theirs(site) is Route.RELIABLE)
                sent, told = len(ticks) + 1, site.call(lambda: track(site).tick) + 1
                await until(room, lambda: ticks[-1] > told + 20 and moves(site)[-1] > sent + 20)
                heard = moves(site)
                assert [tick for tick in ticks if tick >= told] == list(range(told, ticks[-1] + 1)), "one is lost"
                assert [move for move in heard if move >= sent] == list(range(sent, heard[-1] + 1)), "one is lost"

                relay.is_cut = False
                await until(room, lambda: both_trust(site, room))
                more = len(ticks)
                await until(room, lambda: len(ticks) > more + 5)
            assert is_rising(ticks) and is_rising(moves(site))
            assert events.types == []


@on_linux
@in_loop
async def test_a_channel_opens_though_its_first_datagrams_are_lost() -> None:
    with relayed() as (site, relay):
        relay.loses = 1
        async with session(f"http://{site.host}/session/track") as room:
            await until(room, lambda: room.links[1:])
            assert relay.loses == 0


@in_loop
async def test_a_channel_that_ends_alone_is_replaced_and_meanwhile_all_goes_by_websocket() -> None:
    with serving({"track": TRACK}) as site, pytest.MonkeyPatch.context() as patch:
        patch.setattr(seat, "SIDE_AGAIN", 0.2)
        async with session(f"http://{site.host}/session/track") as room:
            events = Heard(room, "session:drop", "session:error")
            with moving(room) as ticks:
                await until(room, lambda: both_trust(site, room))
                first = room._seat.side
                site.call(lambda: track(site).clients[0].links[1].close(1000, "for a while"))
                await until(room, lambda: room._seat.side is not first)
                assert [link.kind for link in room.links] == ["websocket"]
                start, before = len(ticks), len(moves(site))
                await until(room, lambda: len(ticks) > start + 5 and len(moves(site)) > before + 5)
                await until(room, lambda: both_trust(site, room))
            assert is_rising(ticks) and is_rising(moves(site))
            assert events.types == []


@in_loop
async def test_in_doubt_both_links_are_used_and_the_room_takes_one_copy() -> None:
    with serving({"track": TRACK}) as site, judged(doubt_after=0.0):
        async with session(f"http://{site.host}/session/track") as room:
            with moving(room) as ticks, on_websocket(room) as passed:
                await until(room, lambda: room.links[1:] and theirs(site) is not None)
                side = room._seat.side
                assert side is not None
                by_udp, arrived = [], side._arrived
                side._arrived = lambda frame: (by_udp.append(frame), arrived(frame))  # type: ignore[func-returns-value]
                passed.clear()
                start = len(ticks)
                await until(room, lambda: len(ticks) > start + 20)
                assert len(by_udp) > 10 and len(passed) > 20
            assert is_rising(ticks) and is_rising(moves(site))


@in_loop
async def test_who_says_nothing_proves_by_probes_that_udp_works() -> None:
    with serving({"track": TRACK.replace("tick_rate = 50", "tick_rate = 0")}, message_rate=0) as site:
        async with session(f"http://{site.host}/session/track") as room:
            while not both_trust(site, room):
                await room.ask("move", 1)


@in_loop
async def test_between_two_programs_a_message_that_may_be_lost_says_so() -> None:
    """The room has no code; `by_udp` are those that came there."""
    with serving() as site, judged(doubt_after=60.0):
        url = f"http://{site.host}/session/plaza"
        async with session(url) as ada, session(url) as bob:
            heard, by_udp = Heard(bob, "wave", "photo"), Heard(ada, "echo")
            n = 0
            while not by_udp.messages:
                n += 1
                await ada.send("wave", n, reliable=False)
                await ada.send("photo", bytes([n % 256]), reliable=False)
                await asyncio.sleep(0.005)
                if all(room._seat.side is not None for room in (ada, bob)) and ada._seat.route is Route.UNRELIABLE:
                    await bob.send("echo", reliable=False)
            assert by_udp.messages[0] == Message("echo", None, bob.id, False)
            waves = [message for message in heard.messages if message.type == "wave"]
            photos = [message for message in heard.messages if message.type == "photo"]
            assert waves and all(one == Message("wave", one.content, ada.id, False) for one in waves)
            assert photos and all(one == Message("photo", one.content, ada.id, False) for one in photos)
            assert is_rising([one.content for one in waves])
            assert len(photos) <= n and len(heard.messages) <= 2 * n


@in_loop
async def test_a_room_with_code_is_told_that_a_message_may_have_been_lost() -> None:
    with serving({"track": TRACK}) as site, judged(doubt_after=60.0):
        async with session(f"http://{site.host}/session/track") as room:
            await until(room, lambda: both_trust(site, room))
            await room.send("sure", 1)
            await room.send("maybe", 2, reliable=False)
            others = await site_until(site, room, lambda: track(site).others, 2)
            assert sorted(others) == [("maybe", 2, False), ("sure", 1, True)]


async def site_until(site: Serving, room: Room, ask: Callable[[], list[Any]], count: int) -> list[Any]:
    await until(room, lambda: site.call(lambda: len(ask())) >= count)
    return site.call(lambda: list(ask()))


@in_loop
async def test_what_a_data_channel_does_not_take_goes_by_websocket() -> None:
    """The server announces 2,000 bytes; the room takes more."""
    with serving({"track": TRACK.replace("tick_rate", "max_message = 65536; tick_rate")}, message_size=2000) as site:
        async with session(f"http://{site.host}/session/track") as room:
            await until(room, lambda: both_trust(site, room))
            await room.send("large", "x" * 5000, reliable=False)
            assert await site_until(site, room, lambda: track(site).others, 1) == [("large", "x" * 5000, False)]


@in_loop
async def test_after_a_drop_there_is_a_new_channel_and_an_old_number_does_not_hide_new_messages() -> None:
    with serving({"track": TRACK}) as site:
        async with session(f"http://{site.host}/session/track", backoff=at_once) as room:
            back = Heard(room, "session:resume")
            with moving(room) as ticks:
                await until(room, lambda: both_trust(site, room))
                first = room._seat.side
                link = room._seat.outbox.link
                assert link is not None
                link._connection.transport.abort()
                assert await back.until(1) == [{"recovered": True}]
                await until(room, lambda: both_trust(site, room))
                assert room._seat.side is not first
                start, before = len(ticks), len(moves(site))
                await until(room, lambda: len(ticks) > start + 5 and len(moves(site)) > before + 5)
            assert is_rising(ticks) and is_rising(moves(site))


@in_loop
async def test_a_server_that_refuses_a_channel_is_none_of_the_programs_business() -> None:
    with serving({"track": TRACK}, peers_per_address=1) as site:
        url = f"http://{site.host}/session/track"
        async with session(url) as one:
            await until(one, lambda: one.links[1:])
            async with session(url) as two:
                errors = Heard(two, "session:error")
                await until(two, lambda: site.call(lambda: site.server.rooms.totals.refused["answer"]))
                await two.ask("move", 1)  # what the server said before it has come
                assert [link.kind for link in two.links] == ["websocket"] and errors.messages == []


# --- a server's every word is the test's ------------------------------------------------------------------------------


def offer_of_nobody() -> str:
    """Leads to a port of loopback at which nobody answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    return sdp.write_offer(1, Credentials("ufrag", "p" * 22), bytes(32), [("127.0.0.1", port)], 65536)


@both_loops
@in_loop
async def test_a_channel_that_does_not_open_is_tried_again_and_messages_do_not_wait_for_it() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seat, "SIDE_WITHIN", 0.05)
        patch.setattr(seat, "SIDE_AGAIN", 0.01)
        async with Peer({"offer": offer_of_nobody()}) as peer, joining(peer) as room:
            link = await peer.link()
            await room.send("move", 1, reliable=False)
            for _ in range(2):
                await link.until(lambda: any(frame["type"] == "session:answer" for frame in link.frames))
                answer = next(frame for frame in link.frames if frame["type"] == "session:answer")
                assert sdp.parse_answer(answer["content"]["sdp"]).setup == "active"
                link.frames.remove(answer)
            assert link.frames == [{"type": "move", "content": 1, "reliable": False, "n": 1}]
            assert [one.kind for one in room.links] == ["websocket"]


@in_loop
@pytest.mark.parametrize("offer", ["nonsense", "v=0\r\n", "x" * 100_000, offer_of_nobody().replace("127.0.0.1", "me")])
async def test_an_offer_that_makes_no_sense_is_left_alone(offer: str) -> None:
    async with Peer({"offer": offer}) as peer, joining(peer) as room:
        link = await peer.link()
        await room.send("move", b"x", reliable=False)
        assert await link.next() == b"\x03\x04move\x00\x00\x00\x00\x00\x00\x00\x01x"
        await link.say("session:ack", {"received": 1})
        await link.say("session:ack", {"received": -1})
        await link.say("well", 1)
        assert (await anext(aiter(room))).type == "well"


class Sleeper:
    """A peer that only wants to be woken."""

    def __init__(self) -> None:
        self.next_deadline = time.monotonic() + 3600
        self.woken = asyncio.Event()

    def run(self, now: float) -> None:
        self.next_deadline = math.inf
        self.woken.set()

    def transmit(self, now: float) -> list[Any]:
        return []

    def take_events(self) -> list[Any]:
        return []

    def close(self, now: float) -> None: ...


@in_loop
async def test_a_deadline_that_comes_nearer_is_met() -> None:
    side = DataChannelLink(offer_of_nobody(), time.monotonic, lambda frame: None)
    side._peer = sleeper = Sleeper()  # type: ignore[assignment]
    side._turn()
    sleeper.next_deadline = time.monotonic()
    side._turn()
    await sleeper.woken.wait()
    side.close()


@in_loop
async def test_word_of_a_channel_that_is_gone_is_not_said_on_the_next_link() -> None:
    box = Outbox(lambda: 0.0, lambda: None)
    box.say("session:answer", {"sdp": "1"})
    box.say("session:answer", {"sdp": "2"})
    assert box._next_control() == '{"type":"session:answer","content":{"sdp":"2"}}'
    assert box._next_control() is None
    box.say("session:answer", {"sdp": ""})
    box.end()
    assert box._next_control() is None


@in_loop
async def test_a_copy_and_one_that_was_overtaken_are_not_heard() -> None:
    async with Peer() as peer, joining(peer) as room:
        link = await peer.link()
        heard = Heard(room, "move", "photo", "end")
        for n in (5, 5, 4, 6):
            await link.say("move", n, id=1, reliable=False, n=n)
        await link.say("move", 5.5, id=2, reliable=False, n=5)  # another sender
        await link.raw(b"\x03\x05photo\0\0\0\1\0\0\0\1a")
        await link.raw(b"\x03\x05photo\0\0\0\1\0\0\0\1a")
        await link.say("move", "sure", id=1, n=1)  # a reliable one has no number
        await link.say("move", "bare", id=1, reliable=False)
        await link.say("end")
        assert await heard.until(7) == [5, 6, 5.5, b"a", "sure", "bare", None]
        await link.close(1012)
        again = await peer.link()  # another server, perhaps
        await again.say("move", 1, id=1, reliable=False, n=1)
        assert (await heard.until(8))[7] == 1


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from("ab"), st.integers(0, 9))))
def test_numbers_rise_per_sender_and_type(messages: list[tuple[int, str, int]]) -> None:
    newest = Newest()
    seen: dict[tuple[int, str], list[int]] = {}
    for sender, type, number in messages:
        before = seen.setdefault((sender, type), [-1])
        assert newest.is_news(sender, type, number) == (number > max(before))
        before.append(number)


def test_the_numbers_of_at_most_4096_senders_and_types_are_remembered() -> None:
    newest = Newest()
    for sender in range(5000):
        newest.is_news(sender, "x", 1)
    assert len(newest._last) == 4096
    assert newest.is_news(0, "x", 1) and not newest.is_news(4999, "x", 1)


@in_loop
async def test_a_program_that_does_not_keep_up_loses_what_comes_by_udp() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, "MAX_HANDLING", 2)
        async with Peer() as peer, joining(peer) as room:
            await peer.link()
            gate = asyncio.Event()
            started: list[Message] = []

            @room.on("move")
            async def slow(content: Any, message: Message) -> None:
                started.append(message)
                await gate.wait()

            for n in range(5):
                room._seat._take_aside(f'{{"type":"move","content":{n},"id":1}}')
            await asyncio.sleep(0)
            assert started == [Message("move", 0, 1, False), Message("move", 1, 1, False)], "whatever they say"
            assert room._seat.outbox.ledger.received == 0
            gate.set()


# --- refusals ---------------------------------------------------------------------------------------------------------

DOORS = {
    "small": "from session_server import Room\nclass Small(Room):\n    max_clients = 1\n",
    "door": "from session_server import *\nclass Door(Room):\n    def on_auth(self, *said): raise Refused('not you')\n",
    "broken": "from session_server import Room\nclass Broken(Room:\n",
    "failing": "from session_server import Room\nclass Failing(Room):\n    def on_create(self): 1 / 0\n",
}


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("/session/small", 1013, "within 1 s: room 'small' is full: 1 of 1 seats are taken"),
        ("/session/door", 4401, "not you"),
        ("/session/broken", 1011, "the code of this piece cannot be used"),
        ("/session/failing", 1011, "the code of the room failed"),
        ("/session/a//b", 400, "refuses: slug has an empty or .. segment"),
        ("/elsewhere", 404, r"refuses: no room here, expected /session/\{slug\}"),
    ],
)
@in_loop
async def test_a_first_join_that_is_refused_says_why(path: str, code: int, words: str) -> None:
    with serving(DOORS, expect_faults=True) as site:
        async with session(f"http://{site.host}/session/small"):
            with pytest.raises(SessionClosed, match=words) as caught:
                async with session(f"http://{site.host}{path}", open_timeout=1.0):
                    pass
            assert caught.value.code == code


@pytest.mark.parametrize(
    ("limit", "code", "words"),
    [("connections_per_address", 429, "too many connections"), ("max_clients", 503, "no more are taken")],
)
@in_loop
async def test_a_server_that_has_no_room_says_so(limit: str, code: int, words: str) -> None:
    with serving(**{limit: 1}) as site:
        async with session(f"http://{site.host}/session/plaza"):
            with pytest.raises(SessionClosed, match=words) as caught:
                async with session(f"http://{site.host}/session/plaza", open_timeout=0.2):
                    pass
            assert caught.value.code == code


def test_a_refusal_ends_the_tcp_connection_as_soon_as_both_have_closed() -> None:
    with serving(DOORS) as site, site.upgrade("/session/broken", V1) as peer:
        _, payload = peer.frame()
        peer.close(code_of(payload))
        assert peer.ended()


# --- the page about it ------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "how-to" / "python-client.md").read_text(encoding="utf-8")


def test_the_programs_on_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    programs = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with serving(ROOT / "pieces") as site:
        for program in programs:
            exec(program.replace("localhost:8889", site.host), {})
    said = capsys.readouterr().out
    assert len(programs) == 4 and "I am 1 of 1 in chat" in said and "players: 1" in said and "datachannel" in said
