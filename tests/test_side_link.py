"""The unreliable link in a real Chromium: it is found, used, and when it dies nobody notices but by a longer way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.async_api import BrowserContext, Page

from browser import chromium, in_chromium
from serving import Serving, serving

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
