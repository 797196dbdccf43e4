"""The unreliable link in a real Chromium: it is found, used, and when it dies nobody notices but by a longer way."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest
from playwright.async_api import BrowserContext, Page

from browser import chromium, in_chromium
from serving import Log, Serving, serving
from session_server.config import Config
from session_server.links import SideLink
from session_server.transports.datachannel import SOON, DataChannels
from session_server.trust import Route

# Sends a numbered move every 20 ms, and sends back the numbers that it has heard of.
ROOM = """
from session_server import Client, Room, on

class Track(Room):
    tick_rate = 50
    def on_create(self):
        self.moves, self.tick = [], 0
    @on("move")
    def move(self, client: Client, number: int):
        self.moves.append(number)
    def on_tick(self, dt):
        self.tick += 1
        self.broadcast("snapshot", self.tick, reliable=False)
"""
JOIN = """async () => {
    const { session } = await import("/session.js");
    const room = (window.room = await session("track"));
    window.ticks = [];
    room.on("snapshot", (tick) => window.ticks.push(tick));
    let number = 0;
    setInterval(() => room.send("move", ++number, { reliable: false }), 20);
    window.side = () => room.links.find(({ kind }) => kind === "datachannel");
}"""


@pytest.fixture
def site() -> Iterator[Serving]:
    with serving({"track": ROOM, "page.html": "<!doctype html><title>page</title>"}, development=True) as served:
        yield served


@pytest.fixture
def context() -> Iterator[BrowserContext]:
    made = chromium().run(chromium().browser.new_context())
    made.set_default_timeout(8_000)
    yield made
    chromium().run(made.close())


async def join(site: Serving, context: BrowserContext) -> Page:
    page = await context.new_page()
    await page.goto(f"http://localhost:{site.port}/page")
    await page.evaluate(JOIN)
    return page


def track(site: Serving) -> Any:
    return site.server.rooms.rooms["track"].instance


@in_chromium
async def test_what_may_be_lost_goes_by_udp_and_nothing_comes_twice(site: Serving, context: BrowserContext) -> None:
    page = await join(site, context)
    await page.wait_for_function("side()?.active && window.ticks.length > 50")
    # Both directions are trusted: the WebSocket carries no move and no snapshot any more.
    client = site.call(lambda: next(iter(track(site).clients)))
    site.until(lambda: client._side is not None and not client._stream.unreliable)
    more = await page.evaluate("ticks.length + 20")
    await page.wait_for_function("(more) => window.ticks.length > more", arg=more)
    ticks = await page.evaluate("ticks")
    moves = site.call(lambda: list(track(site).moves))
    for numbers in (ticks, moves):
        assert numbers == sorted(set(numbers)), "a copy, or one that was overtaken, reached the room or the page"
        assert len(numbers) > 0.9 * (numbers[-1] - numbers[0])
    links = await page.evaluate("room.links")
    assert [link["kind"] for link in links] == ["websocket", "datachannel"]
    assert links[1]["loss"] < 0.2


@in_chromium
async def test_when_udp_dies_silently_little_is_lost_and_nobody_is_told(site: Serving, context: BrowserContext) -> None:
    page = await join(site, context)
    client = site.call(lambda: next(iter(track(site).clients)))
    site.until(lambda: client._side is not None and not client._stream.unreliable)
    await page.wait_for_function("side()?.active")
    await page.evaluate("window.told = 0; room.on('session:drop', () => window.told++)")

    channels = site.server.channels
    site.call(lambda: (setattr(channels, "_send", lambda *_: None), setattr(channels, "_receive", lambda *_: None)))
    at = site.call(lambda: len(track(site).moves))
    heard = await page.evaluate("ticks.length")
    site.until(lambda: len(track(site).moves) > at + 60)
    await page.wait_for_function("(heard) => ticks.length > heard + 60", arg=heard)

    moves, ticks = site.call(lambda: list(track(site).moves)), await page.evaluate("ticks")
    for numbers, start in ((moves, at), (ticks, heard)):
        pairs = zip(numbers[start - 5 :], numbers[start - 4 :], strict=False)
        lost = max(after - before - 1 for before, after in pairs)
        assert lost <= 25, f"{lost} of 50 per second were lost in a row"  # 300 ms, and 200 for a busy machine
        assert numbers == sorted(set(numbers))
    assert await page.evaluate("told") == 0
    site.until(lambda: client._side is None)  # and after 2 s it is not used any more
    assert site.call(lambda: client._stream.unreliable)


@in_chromium
async def test_where_there_is_no_webrtc_all_goes_by_websocket(site: Serving, context: BrowserContext) -> None:
    page = await context.new_page()
    await page.add_init_script("delete window.RTCPeerConnection")
    await page.goto(f"http://localhost:{site.port}/page")
    await page.evaluate(JOIN)
    await page.wait_for_function("window.ticks.length > 20")
    assert [link["kind"] for link in await page.evaluate("room.links")] == ["websocket"]


@in_chromium
async def test_a_reload_of_the_page_gives_the_old_channel_back(site: Serving, context: BrowserContext) -> None:
    page = await join(site, context)
    site.until(lambda: len(site.server.channels) == 1)
    await page.close()
    site.until(lambda: len(site.server.channels) == 0)
    assert site.call(lambda: site.server.channels._by_address) == {}
    assert len(site.server.channels._per_address) == 0


class Wire:
    """What a side link knows of the server and of its peer, which acknowledges what the test says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.arrived, self.lost, self.acked_at = 0, 0, -inf
        self.max_message_size = 65536
        self.probes = 0
        self.buffered = 0
        self.next_deadline = inf
        self.rests, self.read = 0.0, 0  # until when nobody need look, as it seems; how often that was checked
        self.rooms: Any = None

    def clock(self) -> float:
        return self.now

    def pack_for(self, dialect: Any) -> Any:
        return None

    def rests_until(self, patience: float) -> float:
        return self.rests

    def catch_up(self) -> bool:
        self.read += 1
        return False

    def write(self, channel: Any, blob: bytes) -> None:
        channel.sent(self.now, 1)

    def probe(self, link: Any, now: float) -> bool:
        self.probes += 1
        return True


def side_link() -> tuple[Wire, SideLink[Any]]:
    """Open, and trusted after its first message has arrived."""
    wire, nobody = Wire(), lambda *_: None
    outbox = SimpleNamespace(attach=nobody, rerouted=nobody)
    inbox = SimpleNamespace(receive=nobody, acknowledge=nobody)
    core = SimpleNamespace(outbox=outbox, inbox=inbox, services=SimpleNamespace(linked=nobody))
    client = SimpleNamespace(core=core, links=[SimpleNamespace(rtt=0.05)], was_refused=False)
    link = SideLink[Any](wire, wire, "", "", client)  # type: ignore[arg-type]
    link.opened(wire.now)
    return wire, link


@pytest.mark.parametrize("rate", [1, 5, 60])  # per second
def test_what_the_channel_acknowledges_keeps_it_trusted_and_a_cut_is_seen_at_once(rate: int) -> None:
    """Looked at when that is due and not before, as the transport does."""
    wire, link = side_link()
    cut, sent, due = 110.0, 0, wire.now
    while wire.now < cut or link.route is Route.UNRELIABLE:
        assert wire.now < cut + 1 / rate + 0.3, "more than 300 ms are lost"
        wire.now += 0.01
        if sent - 1 > wire.arrived and wire.now < cut:  # the first was given up in a stall, though it came
            wire.arrived, wire.acked_at = sent - 1, wire.now
        if wire.now >= 100 + sent / rate:
            sent += 1
            link.write(b"move")
            due = min(due, wire.now + SOON)
        if wire.now >= due:
            link.look(wire.now)
            due = link.next_look(wire.now)
        assert not 105 < wire.now < cut or link.route is Route.UNRELIABLE


def test_a_doubt_ends_with_the_acknowledgement_and_not_with_the_next_message() -> None:
    """A browser delays that of a message alone by 200 ms, so that it comes too late each time."""
    wire, link = side_link()
    due = wire.now
    for number in range(1, 20):
        link.write(b"move")
        sent, due = wire.now, min(due, wire.now + SOON)
        while wire.now < sent + 0.8:
            wire.now += 0.01
            if wire.now >= sent + 0.27 and wire.arrived < number:
                wire.arrived, wire.acked_at = number, wire.now
            if wire.now >= due:
                link.look(wire.now)
                due = link.next_look(wire.now)
        assert link.route is Route.UNRELIABLE


def test_a_channel_that_is_not_open_yet_is_looked_at_when_its_peer_wants_that() -> None:
    wire, link = side_link()
    link.is_open = False
    wire.next_deadline = wire.now + 15
    channels = DataChannels(Config(), wire.rooms, wire.clock, lambda when: None, lambda read: read(), Log())
    channels._look(link, wire.now)
    assert link.look_at == wire.next_deadline


def test_a_link_that_is_acknowledged_by_the_looks_of_it_is_not_looked_at_unless_it_owes_an_answer() -> None:
    wire, link = side_link()
    link.is_open = True
    channels = DataChannels(Config(), wire.rooms, wire.clock, lambda when: None, lambda read: read(), Log())
    wire.rests = wire.now + 0.2
    channels._look(link, wire.now)
    assert wire.read == 1  # it is not proven
    link.write(b"move")
    wire.now += 0.11
    wire.arrived, wire.acked_at, wire.rests = 2, wire.now, wire.now + 0.2
    link.look(wire.now)
    channels._look(link, wire.now)
    assert wire.read == 1 and link.look_at == wire.rests
    link.take('{"type":"move","reliable":false}', wire.now)
    channels._look(link, wire.now)
    assert wire.read == 2 and link._received == link._acked == 1
    wire.now = wire.rests
    channels._look(link, wire.now)
    assert wire.read == 3


def test_a_channel_that_opens_is_probed_at_once() -> None:
    wire, link = side_link()
    assert wire.probes == 1
    link.look(wire.now)
    assert wire.probes == 1 and link.trust.silence(wire.now + 0.1) == pytest.approx(0.1)


def test_that_a_client_speaks_proves_nothing_of_the_way_to_it() -> None:
    wire, link = side_link()
    link.write(b"move")
    wire.now += 0.11
    wire.arrived, wire.acked_at = 1, wire.now
    link.look(wire.now)
    assert link.route is Route.UNRELIABLE
    while wire.now < 104.0:  # the way to it is dead, so it acknowledges nothing more
        wire.now += 0.05
        link.take('{"type":"move","reliable":false}', wire.now)
        link.look(wire.now)
    assert wire.probes and link.route is Route.RELIABLE
