"""`ac-session` as an author uses it: a folder of pieces, an editor, two windows of a browser, and others who play."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from playwright.async_api import BrowserContext, Page, expect

from browser import chromium, in_chromium
from session_server.client import Message, Room, session

PIECES = Path(__file__).parent.parent / "pieces"
PROGRAM = Path(sys.executable).with_name("ac-session")
PATIENCE = 15.0  # seconds


class Author:
    """Somebody with an editor and a terminal."""

    def __init__(self, folder: Path, program: asyncio.subprocess.Process, url: str) -> None:
        self.folder = folder
        self.program = program
        self.url = url
        self.code = Path(folder, "field.py").read_text(encoding="utf-8")

    def save(self, version: int | str) -> None:
        """The field, which says with each tick which version it is."""
        tick = f'    def on_tick(self, dt: float) -> None:\n        self.broadcast("version", {version})\n'
        code = self.code.replace("    def on_tick(self, dt: float) -> None:\n", tick)
        assert code != self.code
        Path(self.folder, "field.py").write_text(code, encoding="utf-8")

    def rename(self, title: str) -> None:
        page = Path(self.folder, "field.html")
        text = page.read_text(encoding="utf-8").replace("<title>field", f"<title>{title}")
        page.write_text(text, encoding="utf-8")

    async def reads(self, pattern: str) -> None:
        """Waits for a line in the terminal."""
        assert self.program.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while not re.search(pattern, (await self.program.stderr.readline()).decode()):
                assert not self.program.stderr.at_eof(), f"no line with {pattern}"


@asynccontextmanager
async def developing(folder: Path) -> AsyncIterator[Author]:
    for name in ("field.py", "field.html"):
        shutil.copy(PIECES / name, folder)
    program = await asyncio.create_subprocess_exec(
        PROGRAM, folder, "--port", "0", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert program.stdout is not None
    try:
        ready = re.search(r"http://localhost:\d+", (await program.stdout.readline()).decode())
        assert ready
        yield Author(folder, program, ready[0])
    finally:
        program.send_signal(signal.SIGINT)
        await asyncio.wait_for(program.communicate(), PATIENCE)
    assert program.returncode == 0


class Player:
    """A Python client in the field, and what it noticed."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.noticed: list[str] = []
        self.versions: list[int] = []
        self.news = asyncio.Event()
        room.on("version", self._hear)
        for event in ("session:drop", "session:resume", "session:close"):
            room.on(event, lambda content, message: self.noticed.append(message.type))

    def _hear(self, version: int, message: Message) -> None:
        if version not in self.versions:
            self.versions.append(version)
            self.news.set()

    async def hears(self, version: int) -> None:
        while version not in self.versions:
            self.news.clear()
            await self.news.wait()


async def windows(stack: AsyncExitStack, url: str) -> list[Page]:
    context: BrowserContext = await chromium().browser.new_context()
    stack.push_async_callback(context.close)
    context.set_default_timeout(PATIENCE * 1000)
    pages = [await context.new_page() for _ in range(2)]
    for page in pages:
        await page.goto(f"{url}/field")
        await expect(page.locator("#people")).to_contain_text(re.compile("people|alone"))
        await page.evaluate("window.same = true")  # gone if the page is loaded again
    return pages


@in_chromium
async def test_twenty_go_on_playing_while_the_code_is_edited_ten_times(tmp_path: Path) -> None:
    async with asyncio.timeout(60), developing(tmp_path) as author, AsyncExitStack() as stack:
        pages = await windows(stack, author.url)
        url = f"{author.url}/session/field"
        players = [Player(await stack.enter_async_context(session(url, name=f"p{n}"))) for n in range(18)]
        ids = [player.room.id for player in players]
        for player in players:
            await player.room.send("move", [0.25, 0.75])
        for version in range(1, 11):
            author.save(version)
            await asyncio.gather(*(player.hears(version) for player in players))
        assert [player.room.id for player in players] == ids
        assert [player.noticed for player in players] == [[]] * 18
        assert players[0].versions == list(range(1, 11))
        for page in pages:
            assert await page.evaluate("window.same"), "the page was loaded again"
            await expect(page.locator("#note")).to_have_text("")
            await expect(page.locator("#people")).to_have_text("20 people")
        late = await stack.enter_async_context(session(url))
        async for message in late:
            if message.type == "snapshot":
                kept = message.content
                break
        assert [kept[str(id)]["pos"] for id in ids] == [[0.25, 0.75]] * 18, "what `keep` names was carried over"


@in_chromium
async def test_a_mistake_is_shown_where_the_author_looks_and_the_old_code_goes_on(tmp_path: Path) -> None:
    async with asyncio.timeout(60), developing(tmp_path) as author, AsyncExitStack() as stack:
        pages = await windows(stack, author.url)
        player = Player(await stack.enter_async_context(session(f"{author.url}/session/field")))
        author.save("1 +")
        line = r"field\.py:\d+: SyntaxError"
        await author.reads(line)
        for page in pages:
            await expect(page.get_by_role("alert")).to_contain_text(re.compile(line))
        assert await player.room.ask("count") == 3
        author.save(2)
        await player.hears(2)
        for page in pages:
            await expect(page.get_by_role("alert")).to_have_count(0)
        assert player.noticed == []


@in_chromium
async def test_a_page_that_is_edited_is_loaded_again(tmp_path: Path) -> None:
    async with asyncio.timeout(60), developing(tmp_path) as author, AsyncExitStack() as stack:
        pages = await windows(stack, author.url)
        author.rename("meadow")
        for window in pages:
            await expect(window).to_have_title("meadow")
