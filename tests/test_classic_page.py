"""Pages of the former platform, unmodified, in Chromium over TLS: two of them meet in `field`, by both wires, straight
at the server and behind Caddy. What their client does is in classic/classic.js."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page

from browser import chromium, in_chromium
from proxy import caddy, free_port
from serving import PATIENCE, Serving, read_answers, request, serving
from test_geckos_clients import bundles

CLASSIC = Path(__file__).parent / "classic"
TOKEN = "an admin's token"


class Site:
    """Where pages are, and the server behind it."""

    def __init__(self, it: Serving, port: int, root: Path, pages: str | None = None) -> None:
        self.it, self.port, self.root = it, port, root
        self.url = f"https://localhost:{port}"
        self.pages = pages or self.url

    @asynccontextmanager
    async def page(self, handle: str, piece: str = "field") -> AsyncIterator[Page]:
        """A page with both wires; leaves when it is closed. An error in it fails the test."""
        context = await chromium().browser.new_context(ignore_https_errors=True)
        page = await context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_default_timeout(8_000)
        await page.goto(f"{self.pages}/classic")
        await page.evaluate(f"play({json.dumps(handle)}, {json.dumps(piece)}) && 0")
        await connected(page)
        try:
            yield page
        finally:
            await context.close()
        assert errors == []

    def post(self, path: str, body: Any) -> int:
        """As a publisher with the admin's token."""
        data = json.dumps(body).encode()
        head = {"Host": f"localhost:{self.port}", "Authorization": f"Bearer {TOKEN}", "Content-Length": str(len(data))}
        context = ssl.create_default_context(cafile=self.root)
        plain = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        with context.wrap_socket(plain, server_hostname="localhost") as sock:
            sock.sendall(request(path, head, "POST") + data)
            return read_answers(sock)[0].status


@pytest.fixture(params=["direct", "isolated", "caddy"])
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """`direct`: pages are at a host of their own, which sends them here, as with a CDN. `isolated`: a room per slug."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    pieces = {"classic.html": "page.html", "classic.js": "classic.js"}
    files = {name: (CLASSIC / file).read_text(encoding="utf-8") for name, file in pieces.items()}
    files["geckos.js"] = bundles()["geckos-3.1.0.js"]
    with ExitStack() as stack:
        if request.param == "caddy":
            it = stack.enter_context(serving(files, admin_token=TOKEN))
            proxy = stack.enter_context(caddy(it.port, tmp_path))
            yield Site(it, proxy.port, proxy.root)
            return
        settings: dict[str, Any] = {"admin_token": TOKEN, "tls": "self-signed"}
        own = tmp_path / "session-server" / "localhost.pem"
        if request.param == "isolated":
            it = stack.enter_context(serving(files, **settings, isolate_classic=True))
            yield Site(it, it.port, own)
            return
        port = free_port()
        it = stack.enter_context(serving(**settings, origin=(f"http://127.0.0.1:{port}",)))
        stack.enter_context(serving(files, port=port, public_url=f"https://localhost:{it.port}"))
        yield Site(it, it.port, own, f"http://127.0.0.1:{port}")


async def connected(page: Page) -> int:
    """Its id, once both wires are there."""
    await page.wait_for_function("page.id && page.open")
    id: int = await page.evaluate("page.id")
    return id


async def told(page: Page, type: str) -> list[Any]:
    """[id, content] of the first such message that the piece was told, and was not asked for before."""
    await page.wait_for_function(f"page.log.some((told) => told[1] === '{type}')")
    id, _, content = await page.evaluate(f"page.log.splice(page.log.findIndex((told) => told[1] === '{type}'), 1)[0]")
    return [id, content]


async def send(page: Page, type: str, content: Any) -> None:
    await page.evaluate("([type, content]) => page.send(type, content)", [type, content])


def figure(handle: str) -> dict[str, Any]:
    return {"handle": handle, "pos": {"x": 1.5, "y": 2}, "face": handle[1]}


@in_chromium
async def test_two_pages_walk_write_and_come_back(site: Site) -> None:
    async with site.page("@ada") as ada, site.page("@bob") as bob:
        first, second = await connected(ada), await connected(bob)
        assert 1 <= first != second >= 1
        await send(ada, "world:field:join", figure("@ada"))
        assert await told(ada, "world:field:list") == [first, {}]
        await send(bob, "world:field:join", figure("@bob"))
        assert await told(bob, "world:field:list") == [second, {str(first): figure("@ada")}]
        assert await told(ada, "world:field:join") == [second, figure("@bob")]
        await send(bob, "world:field:move", {"pos": {"x": 3, "y": 4}})
        assert await told(ada, "world:field:move") == [second, {"pos": {"x": 3, "y": 4}}]
        await send(bob, "world:field:write", "hello")
        assert await told(ada, "world:field:write") == await told(bob, "world:field:write") == [second, "hello"]

        await bob.evaluate("page.load('prompt')")
        assert await told(ada, "world:field:ghost") == [second, {}]
        assert await told(ada, "world:field:slug") == [second, {"handle": "@bob", "slug": "prompt"}]
        await connected(bob)
        await bob.evaluate("page.load('field')")
        again = await connected(bob)
        await send(bob, "world:field:join", figure("@bob"))
        assert await told(ada, "world:field:kick") == [second, {}]
        assert await told(ada, "world:field:join") == [again, figure("@bob")]
        assert await told(bob, "world:field:list") == [again, {str(first): figure("@ada")}]
        assert again not in (first, second)

        await bob.evaluate("page.leave()")
        assert await told(ada, "world:field:ghost") == [again, {}]
        site.it.advance(5.5)
        assert await told(ada, "world:field:kick") == [again, {}]
        assert await ada.evaluate("page.log") == []


@in_chromium
async def test_two_pages_hear_each_other_by_udp(site: Site) -> None:
    async with site.page("@ada") as ada, site.page("@bob") as bob:
        await bob.evaluate("page.emit('1v1:move', { x: [1, 2] })")
        await bob.evaluate("page.emit('tv', 'to all')")
        await ada.wait_for_function("page.udp.length === 2")
        await bob.wait_for_function("page.udp.length === 1")
        assert sorted(await ada.evaluate("page.udp")) == [["1v1:move", {"x": [1, 2]}], ["tv", "to all"]]
        assert await bob.evaluate("page.udp") == [["tv", "to all"]]


@in_chromium
async def test_code_that_is_pushed_runs_in_pages_that_watch_and_others_code_does_not(site: Site) -> None:
    async with site.page("@ada") as ada, site.page("@bob", "prompt") as bob:
        await ada.evaluate("page.watch('studio')")
        await send(ada, "code-channel:info", "studio")
        assert (await told(ada, "code-channel:info"))[1] == {"channel": "studio", "viewers": 1}
        pushed = {"codeChannel": "studio", "piece": "field", "source": "first"}
        assert site.post("/session/lobby/messages", {"type": "code", "content": pushed}) == 200
        await ada.wait_for_function("page.ran.length === 1")
        await bob.evaluate("page.watch('studio')")
        await bob.wait_for_function("page.ran.length === 1")
        await send(bob, "code", pushed | {"source": "a stranger's"})
        await send(bob, "code-channel:info", "studio")
        assert (await told(bob, "code-channel:info"))[1]["viewers"] == 2
        assert site.post("/session/lobby/messages", {"type": "code", "content": pushed | {"source": "second"}}) == 200
        await ada.wait_for_function("page.ran.length === 2")
        assert await ada.evaluate("page.ran") == ["first", "second"]


BOTH_WAYS = pytest.mark.parametrize("site", ["direct", "caddy"], indirect=True)


@BOTH_WAYS
@in_chromium
async def test_a_page_whose_connection_breaks_is_back_by_itself(site: Site) -> None:
    async with site.page("@ada") as ada:
        site.it.call(lambda: [connection.abort() for connection in tuple(site.it.server.websockets.connections)])
        await ada.wait_for_function("page.connections === 2")
        await send(ada, "pond:new", [1])
        assert (await told(ada, "pond:new"))[1] == [1], "to its sender too"


@BOTH_WAYS
def test_the_doctor_finds_nothing(site: Site) -> None:
    doctor = "from session_server.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", doctor, "check", f"{site.url}/session/field"],
        env=os.environ | {"SSL_CERT_FILE": str(site.root)}, capture_output=True, text=True, timeout=15,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
