"""A real Chromium for the tests: one for the whole run, a fresh context for each test.

    from browser import in_chromium, page_fixture  # noqa: F401  (pytest finds the fixture `page` by it)

    @in_chromium
    async def test_a_page_says_hello(page: Page) -> None: ...

Everything asynchronous runs on one loop in a thread of its own. Playwright's synchronous interface would leave a
running loop behind in the main thread, and other tests could not call `asyncio.run` any more.
"""

from __future__ import annotations

import asyncio
import atexit
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import cache, wraps
from threading import Thread
from typing import Any, ParamSpec, TypeVar

import pytest
from playwright.async_api import Browser, BrowserContext, Page, Playwright, async_playwright

# First the one without a window to draw: the same engine, but a page costs a quarter of the processor's time.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

P = ParamSpec("P")
T = TypeVar("T")


class Chromium:
    """The browser and the loop it is driven from."""

    browser: Browser
    _playwright: Playwright

    def __init__(self, path: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="chromium", daemon=True)
        self._thread.start()
        self.run(self._launch(path))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """From another thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _launch(self, path: str) -> None:
        self._playwright = await async_playwright().start()
        self.browser = await self._playwright.chromium.launch(executable_path=path, args=FLAGS)

    async def _quit(self) -> None:
        await self.browser.close()
        await self._playwright.stop()

    def close(self) -> None:
        self.run(self._quit())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@cache
def chromium() -> Chromium:
    """The one of this run; started by the first who asks."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.fail("no Chromium on PATH; scripts/ensure-chromium (part of make test) installs one", pytrace=False)
    one = Chromium(path)
    atexit.register(one.close)
    return one


def in_chromium(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """For a test that is `async def`: runs it on Chromium's loop. Fixtures are passed as ever."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        chromium().run(test(*args, **kwargs))

    return run


@pytest.fixture(scope="session", name="chromium")
def chromium_fixture() -> Chromium:
    return chromium()


@pytest.fixture(name="page")
def page_fixture() -> Iterator[Page]:
    """An empty page in a context of its own. The test fails if the page had an error that nobody caught."""
    errors: list[str] = []
    context = chromium().run(_new_context())
    page = chromium().run(_call(context.new_page))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(8_000)
    yield page
    chromium().run(_call(context.close))
    assert errors == getattr(page, "expected_errors", [])


async def _new_context() -> BrowserContext:
    return await chromium().browser.new_context()


async def _call(function: Callable[[], Awaitable[T]]) -> T:
    return await function()
