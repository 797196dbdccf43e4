"""The development page: what an author sees there, and that nobody else does."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.async_api import BrowserContext, Page, expect

from browser import chromium, in_chromium
from serving import V1, Log, Serving, request, serving
from session_server.client import session
from session_server.desk import MAX_ITEMS, MAX_NODES, MAX_TEXT, Painter
from session_server.logs import MAX_LINES, MAX_TRACES, Tail

DESK = "/status/development"
COUNTER = """
from session_server import Room, on

class Counter(Room):
    def on_create(self):
        self.total = 0
        self.people = {}

    def on_join(self, client):
        self.people[client.id] = client

    @on("add")
    def add(self, client, amount: int):
        self.total += amount

    @on("fail")
    def fail(self, client):
        raise KeyError("the missing key")
"""
PAGE = "<!doctype html><title>counter</title><p>counts</p>"


@pytest.fixture(scope="module")
def site() -> Iterator[Serving]:
    with serving({"counter": COUNTER, "counter.html": PAGE}, development=True, expect_faults=True) as served:
        yield served


@pytest.fixture
def context() -> Iterator[BrowserContext]:
    errors: list[str] = []
    made = chromium().run(chromium().browser.new_context(viewport={"width": 1200, "height": 800}))
    made.set_default_timeout(8_000)
    made.on("weberror", lambda error: errors.append(str(error.error)))
    yield made
    chromium().run(made.close())
    assert errors == []


def shown(site: Serving, query: str = "") -> Any:
    return site.get(DESK + query, {"Host": f"localhost:{site.port}"}).json


def post(site: Serving, body: bytes | str, **headers: str) -> int:
    data = body if isinstance(body, bytes) else body.encode()
    own = {"Host": f"localhost:{site.port}", "Content-Length": str(len(data)), "X-Token": shown(site)["token"]}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return site.ask(request(DESK, own | named, "POST") + data)[0].status


# --- who may see it, and who may not ----------------------------------------------------------------------------------

STRANGERS = (
    {"Host": "rebound.example"},
    {"Host": "localhost.example"},
    {"Origin": "https://evil.example"},
    {"Origin": "http://localhost:1"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"X-Forwarded-For": "192.0.2.1"},
)


@pytest.mark.parametrize("headers", STRANGERS, ids=lambda headers: str(*headers.values()))
def test_a_page_elsewhere_neither_reads_nor_controls_it(site: Serving, headers: dict[str, str]) -> None:
    own = {"Host": f"localhost:{site.port}"}
    assert site.get(DESK, own | headers).status == 404
    assert "rooms" not in site.get("/status", own | headers).json
    with site.join("/session/counter", V1) as peer:
        names = {name.replace("-", "_"): value for name, value in headers.items()}
        assert post(site, json.dumps({"room": "counter", "do": "cut", "client": peer.id}), **names) == 403
        assert not site.call(lambda: site.server.rooms.rooms["counter"].clients[peer.id].away)


def test_no_other_origin_is_let_in_by_its_headers(site: Serving) -> None:
    own = {"Host": f"localhost:{site.port}"}
    told = site.get(DESK, own | {"Sec-Fetch-Site": "same-origin"})
    assert told.status == 200 and "access-control-allow-origin" not in told.headers
    assert told.headers["cache-control"] == "no-store"
    assert told.headers["cross-origin-resource-policy"] == "same-origin"
    page = site.get("/", own)
    assert page.headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    preflight = site.get(DESK, own | {"Origin": "https://evil.example"}, "OPTIONS")
    assert "POST" not in preflight.headers["access-control-allow-methods"]
    assert "access-control-allow-headers" not in preflight.headers


def test_a_command_takes_the_token_of_this_start(site: Serving) -> None:
    with site.join("/session/counter", V1) as peer:
        body = json.dumps({"room": "counter", "do": "cut", "client": peer.id})
        for token in ("", "x", "\xff", shown(site)["token"] + "x"):
            assert post(site, body, X_Token=token) == 403
        with serving({}, development=True) as other:
            assert post(site, body, X_Token=shown(other)["token"]) == 403
        assert post(site, body) == 200


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "{",
        '{"room":"counter"}',
        '{"do":"cut","room":"counter","client":"1"}',
        '{"do":"cut","room":"counter","client":99}',
        b"\xff",
    ],
)
def test_a_command_that_cannot_be_read_is_refused(site: Serving, body: str | bytes) -> None:
    assert post(site, body) == 400


@pytest.mark.parametrize("after", ["-1", "x", "1e3", "9" * 30, "²"])
def test_a_line_that_is_no_number_is_refused(site: Serving, after: str) -> None:
    query = "".join(f"%{byte:02x}" for byte in after.encode())
    assert site.get(f"{DESK}?after={query}", {"Host": "localhost"}).status == 400


def test_in_production_it_is_not_there() -> None:
    with serving({"counter": COUNTER}, admin_token="t" * 40) as it:
        own = {"Host": "localhost", "Authorization": f"Bearer {'t' * 40}"}
        assert it.get(DESK, own).status == 404
        assert it.ask(request(DESK, own | {"X-Token": ""}, "POST"))[0].status == 405
        assert "development" not in it.get("/", own).text


# --- what it shows ----------------------------------------------------------------------------------------------------


def test_rooms_clients_and_links_are_shown(site: Serving) -> None:
    with site.join("/session/counter~here", V1, {"name": "ada"}) as ada, site.join("/session/counter~here") as bob:
        (room,) = [one for one in shown(site)["rooms"] if one["slug"] == "counter~here"]
        assert (room["code"], room["version"], room["count"]) == ("Counter", 1, 2)
        told = {client["id"]: client for client in room["clients"]}
        assert told[ada.id]["name"] == "ada" and not told[ada.id]["away"]
        assert [(link["kind"], link["dialect"]) for link in told[ada.id]["links"]] == [("websocket", "session.v1")]
        assert told[bob.id]["links"][0]["dialect"] == "classic"


def test_a_link_that_is_cut_is_a_drop_and_its_client_may_come_back(site: Serving) -> None:
    with site.join("/session/counter~cut", V1) as peer:
        assert post(site, json.dumps({"room": "counter~cut", "do": "cut", "client": peer.id})) == 200
        assert peer.closed() == 1001
        (room,) = [one for one in shown(site)["rooms"] if one["slug"] == "counter~cut"]
        assert room["clients"][0]["away"]
        with site.join("/session/counter~cut", V1, {"resume": peer.welcome["resume"]}) as back:
            assert back.id == peer.id


def test_the_state_of_one_room_is_shown(site: Serving) -> None:
    with site.join("/session/counter~state", V1) as peer:
        peer.send("add", 5)
        site.settle(peer.sock)
        state = dict(shown(site, "?room=counter~state")["inspected"]["attributes"])
        assert state["total"] == ["is", 5]
        assert state["people"] == ["map", [["1", ["repr", "<Client counter~state#1>"]]], 1, "dict"]
        assert "_core" not in state
    assert shown(site, "?room=nowhere")["inspected"] is None


@dataclass
class Point:
    x: int
    y: object


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "portrait"),
    [
        (1.5, ["is", 1.5]),
        (True, ["is", True]),
        (2**60, ["repr", str(2**60)]),
        (float("nan"), ["repr", "nan"]),
        (b"\0", ["repr", "b'\\x00'"]),
        ({(1, 2): None}, ["map", [["(1, 2)", ["is", None]]], 1, "dict"]),
        (deque([1]), ["list", [[None, ["is", 1]]], 1, "deque"]),
        (Point(1, "a"), ["map", [["x", ["is", 1]], ["y", ["is", "a"]]], 2, "Point"]),
        (Rude(), ["repr", "<Rude whose repr fails: RuntimeError>"]),
    ],
)
def test_json_is_shown_as_it_is_and_all_else_as_python_shows_it(value: object, portrait: object) -> None:
    assert Painter().portray(value) == portrait


def test_a_portrait_is_small_whatever_it_is_of() -> None:
    endless: list[object] = []
    endless.append(endless)
    wide = {n: [list(range(1000))] * 1000 for n in range(1000)}
    for value in (endless, wide, "x" * 10**6, {"k" * 10**6: Rude()}, [["y" * 10**5] * 200] * 200):
        portrait = json.dumps(Painter().portray(value))
        assert len(portrait) < MAX_NODES * (MAX_TEXT + 100)
    kind, children, count, _ = Painter().portray(list(range(1000)))
    assert (kind, len(children), count) == ("list", MAX_ITEMS, 1000)


# --- the log ----------------------------------------------------------------------------------------------------------


def test_the_tail_keeps_the_last_lines_and_passes_all_on() -> None:
    behind = Log()
    log = Tail(behind)
    room = log.bind(room="field")
    for number in range(MAX_LINES + 5):
        room.debug("joined", client=number, name=None)
    lines = log.kept.after(0)["lines"]
    assert len(lines) == MAX_LINES and len(behind.entries) == MAX_LINES + 5
    assert lines[-1]["fields"] == {"room": "field", "client": str(MAX_LINES + 4)}
    assert lines[0]["number"] == 6
    assert [line["number"] for line in log.kept.after(MAX_LINES + 4)["lines"]] == [MAX_LINES + 5]


def test_tracebacks_stay_when_many_lines_follow_and_are_no_more_than_a_few() -> None:
    log = Tail(Log())
    try:
        raise ValueError("odd")
    except ValueError as error:
        log.error("fault", exc_info=error)
        log.exception("fault in the server")
    for _ in range(2 * MAX_LINES):
        log.info("x" * 10**5)
    errors = log.kept.after(0)["errors"]
    assert [error["trace"].splitlines()[-1] for error in errors] == ["ValueError: odd"] * 2
    assert "trace" not in log.kept.after(0)["lines"][0]
    for _ in range(2 * MAX_TRACES):
        log.error("fault", exc_info=RuntimeError("y" * 10**6))
    assert len(log.kept.after(0)["errors"]) == MAX_TRACES
    assert len(json.dumps(log.kept.after(0))) < 10**6


# --- in a browser -----------------------------------------------------------------------------------------------------


async def development(site: Serving, context: BrowserContext) -> Page:
    page = await context.new_page()
    await page.goto(f"http://localhost:{site.port}/")
    await expect(page.locator("#state")).to_have_text("development")
    return page


@in_chromium
async def test_an_author_sees_who_is_here_what_they_do_and_what_failed(site: Serving, context: BrowserContext) -> None:
    page = await development(site, context)
    async with session(f"http://localhost:{site.port}/session/counter~%3Cb%3Ebold", name="<i>ada</i>") as room:
        card = page.locator(".room", has=page.get_by_text("counter~<b>bold", exact=True))
        await expect(card.locator("tbody td").nth(1)).to_have_text("<i>ada</i> ")
        await expect(card).to_contain_text("Counter · version 1")
        await expect(page.locator("#lines")).to_contain_text("joined room=counter~<b>bold client=1 name=<i>ada</i>")
        await card.get_by_role("button", name="state").click()
        await expect(card.locator(".state")).to_contain_text("total: 0")
        await room.send("add", 7)
        await expect(card.locator(".state")).to_contain_text("total: 7")
        await room.send("fail")
        await expect(page.locator("#errors summary").first).to_contain_text("KeyError: 'the missing key'")
        await page.locator("#errors summary").first.click()
        await expect(page.locator("#errors pre").first).to_contain_text('raise KeyError("the missing key")')
        await expect(page.locator("#figures .bad")).to_have_text("1 fault")
        await card.locator("tbody select").select_option("3g")
        await expect(card.locator("tbody select")).to_have_value("3g")
        await card.locator(".row select").select_option("wifi")
        await expect(card.locator(".row select")).to_have_value("wifi")
        assert site.call(lambda: site.server.rooms.rooms[room.slug].clients[1].net) == "3g"
        await card.locator("tbody select").select_option("")
        await card.get_by_role("button", name="cut").click()
        await expect(page.locator("#lines")).to_contain_text("resumed room=counter~<b>bold client=1")
        assert room.id == 1


@in_chromium
async def test_one_click_opens_a_piece_twice(site: Serving, context: BrowserContext) -> None:
    page = await development(site, context)
    both = asyncio.Event()
    opened: list[Page] = []

    def note(one: Page) -> None:
        opened.append(one)
        if len(opened) == 2:
            both.set()

    context.on("page", note)
    await page.locator(".row", has_text="counter").get_by_role("button", name="open twice").click()
    await asyncio.wait_for(both.wait(), 8)
    for one in opened:
        await expect(one.locator("p")).to_have_text("counts")


@in_chromium
async def test_where_a_browser_opens_one_window_only_that_one_shows_it_twice(
    site: Serving, context: BrowserContext
) -> None:
    await context.add_init_script(
        "{ const real = open; let count = 0; window.open = (...a) => (count++ ? null : real(...a)); }"
    )
    page = await development(site, context)
    async with context.expect_page() as opened:
        await page.locator(".row", has_text="counter").get_by_role("button", name="open twice").click()
    both = await opened.value
    await expect(both.locator("iframe")).to_have_count(2)
    for frame in (0, 1):
        await expect(both.frame_locator("iframe").nth(frame).locator("p")).to_have_text("counts")


@in_chromium
async def test_a_page_of_another_port_can_neither_read_nor_frame_nor_control_it(
    site: Serving, context: BrowserContext
) -> None:
    with serving({"evil.html": "<title>evil</title><iframe></iframe>"}, development=True) as elsewhere:
        page = await context.new_page()
        await page.goto(f"http://localhost:{elsewhere.port}/evil")
        url = f"http://localhost:{site.port}"
        read = "url => fetch(url).then(a => a.text(), () => 'no')"
        assert "token" not in await page.evaluate(read, url + DESK)
        assert 'rooms":[' not in await page.evaluate(read, url + "/status")
        post = "{ method: 'POST', body: '{}', headers: { 'X-Token': 'x' } }"
        ask = f"url => fetch(url, {post}).then(() => 'yes', () => 'no')"
        assert await page.evaluate(ask, url + DESK) == "no"
        await page.evaluate("url => { document.querySelector('iframe').src = url }", url + "/")
        await expect(page.frame_locator("iframe").locator("#pieces")).to_have_count(0)
