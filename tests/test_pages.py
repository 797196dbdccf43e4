"""The example pieces and the server's own pages, as a visitor sees them: a real server, a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, Page, expect

from browser import chromium, in_chromium
from serving import Serving, serving

PIECES = Path(__file__).parent.parent / "pieces"
EXAMPLES = ("field", "chat", "pong")
EXAMPLE_PAGES = {f"{name}.html": Path(PIECES, f"{name}.html").read_text(encoding="utf-8") for name in EXAMPLES}


@pytest.fixture(scope="module")
def site() -> Iterator[Serving]:
    with serving(PIECES, development=True) as served:
        yield served


@pytest.fixture
def context() -> Iterator[BrowserContext]:
    """Windows of one visitor; an error in a page that nobody caught fails the test."""
    errors: list[str] = []
    made = chromium().run(chromium().browser.new_context(viewport={"width": 800, "height": 500}))
    made.set_default_timeout(8_000)
    made.on("weberror", lambda error: errors.append(str(error.error)))
    yield made
    chromium().run(made.close())
    assert errors == []


async def two(context: BrowserContext, url: str) -> tuple[Page, Page]:
    first, second = await context.new_page(), await context.new_page()
    await first.goto(url)
    await second.goto(url)
    return first, second


@in_chromium
async def test_two_windows_of_the_field_see_each_others_cursors_move(site: Serving, context: BrowserContext) -> None:
    ada, bob = await two(context, f"http://localhost:{site.port}/field")
    await expect(ada.locator(".cursor")).to_have_count(1)
    for x, y in ((100, 100), (600, 400)):
        await bob.bring_to_front()
        await bob.mouse.move(x, y)
        await ada.bring_to_front()  # a hidden page draws nothing
        await ada.wait_for_function(
            """([x, y]) => {
                const box = document.querySelector(".cursor").getBoundingClientRect();
                return Math.hypot(box.x - x, box.y - y) < 3;
            }""",
            arg=[x, y],
        )
    await expect(ada.locator("#people")).to_have_text("2 people")
    await bob.close()
    await expect(ada.locator(".cursor")).to_have_count(0)
    await expect(ada.locator("#people")).to_have_text("you are alone")


@in_chromium
async def test_who_is_not_let_in_reads_why(context: BrowserContext) -> None:
    closed = "from session_server import Refused, Room\nclass Closed(Room):\n    def on_auth(self, token, data):\n"
    code = {f"{name}.py": f"{closed}        raise Refused('come back at noon')" for name in EXAMPLES}
    with serving(EXAMPLE_PAGES | code, development=True) as site:
        page = await context.new_page()
        for name in EXAMPLES:
            await page.goto(f"http://localhost:{site.port}/{name}")
            await expect(page.locator("#note")).to_contain_text("come back at noon")


@in_chromium
async def test_fields_of_two_names_are_two_rooms(site: Serving, context: BrowserContext) -> None:
    here, there = await context.new_page(), await context.new_page()
    await here.goto(f"http://localhost:{site.port}/field~here")
    await there.goto(f"http://localhost:{site.port}/field~there")
    await expect(there.locator("#slug")).to_have_text("field~there")
    await expect(there.locator("#people")).to_have_text("you are alone")


@in_chromium
async def test_who_comes_late_to_the_chat_reads_what_was_said(site: Serving, context: BrowserContext) -> None:
    ada = await context.new_page()
    await ada.goto(f"http://localhost:{site.port}/chat")
    await ada.fill("#text", "is <b>anybody</b> there?")
    await ada.press("#text", "Enter")
    await expect(ada.locator("li span")).to_have_text(" is <b>anybody</b> there? ")  # text, not markup
    bob = await context.new_page()
    await bob.goto(f"http://localhost:{site.port}/chat")
    await expect(bob.locator("li span")).to_have_text(" is <b>anybody</b> there? ")
    await bob.fill("#name", "ada")
    await bob.press("#name", "Enter")
    await bob.fill("#text", "I am")
    await bob.press("#text", "Enter")
    await expect(ada.locator("li b").nth(1)).to_have_text("ada")
    await ada.fill("#name", "ada")
    await ada.press("#name", "Enter")
    await expect(ada.locator("#note")).to_have_text("somebody here is called ada already")


@in_chromium
async def test_two_play_pong_and_a_third_watches(site: Serving, context: BrowserContext) -> None:
    ada, bob = await two(context, f"http://localhost:{site.port}/pong")
    await ada.click("#sit")
    await expect(ada.locator("#who")).to_have_text("waiting for somebody to play against")
    await bob.click("#sit")
    await expect(bob.locator("#who")).to_have_text("you play on the right")
    cy = await context.new_page()
    await cy.goto(f"http://localhost:{site.port}/pong")
    await expect(cy.locator("#who")).to_have_text("you are watching")
    await expect(cy.locator("#sit")).to_be_hidden()
    await ada.close()
    await cy.click("#sit")
    await expect(cy.locator("#who")).to_have_text("you play on the left")


@in_chromium
async def test_a_page_says_when_the_connection_is_lost_and_when_it_is_back(context: BrowserContext) -> None:
    with serving(PIECES, development=True) as site:
        page = await context.new_page()
        await page.goto(f"http://localhost:{site.port}/field")
        await expect(page.locator("#people")).to_have_text("you are alone")
        first = await page.evaluate("performance.now()")
        await page.evaluate("""() => {  // the first note may be gone before anybody looks
            const [note, notes] = [document.getElementById("note"), (window.notes = [])];
            new MutationObserver(() => notes.push(note.textContent)).observe(note, { childList: true });
        }""")
        site.call(lambda: [connection.abort() for connection in tuple(site.server.websockets.connections)])
        await page.wait_for_function("notes.length === 2")
        assert await page.evaluate("notes") == ["connection lost, trying again…", ""]
        assert await page.evaluate("performance.now()") > first  # the same page, never loaded anew
        assert site.call(lambda: list(site.server.rooms.rooms["field"].clients)) == [1]  # the same seat, the same id


@in_chromium
async def test_the_development_page_lists_pieces_and_rooms(site: Serving, context: BrowserContext) -> None:
    player, page = await context.new_page(), await context.new_page()
    await player.goto(f"http://localhost:{site.port}/field~<b>bold")
    await expect(player.locator("#people")).to_have_text("you are alone")
    await page.goto(f"http://localhost:{site.port}/")
    await expect(page.locator("#pieces a[href]")).to_have_text(["chat", "field", "pong"])
    await expect(page.locator("#rooms")).to_contain_text("field~<b>bold")
    async with context.expect_page() as opened:
        await page.locator("#pieces button").first.click()
    await (await opened.value).wait_for_url("**/chat")


@in_chromium
async def test_the_production_page_shows_totals_and_no_names(context: BrowserContext) -> None:
    with serving(PIECES, development=False) as site:
        player, page = await context.new_page(), await context.new_page()
        await player.goto(f"http://localhost:{site.port}/field~secret")
        await page.goto(f"http://localhost:{site.port}/")
        await expect(page.locator("#clients")).to_have_text("1")
        assert "secret" not in await page.content()
