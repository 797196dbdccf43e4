"""How long does a player wait for UDP? A real Chromium on loopback, a fresh page each time.

Ours: from the call of `session()` to the first datagram in the page. The peer: from `geckos()` to `onConnect`.
"""

from __future__ import annotations

import atexit
import shutil
import statistics
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING

from bench.contestants import GECKOS, OURS, OURS_GECKOS
from bench.harness import PEERS, BenchError, Figures, Meter, Question, Row, Server, Settings, pinned

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

PAGES = 3  # per run; their median counts
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chromium-headless-shell")
FLAGS = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync")

# The client's modules come from Playwright, the page itself from the server: else Chromium does not let it call there.
LOAD = {
    OURS.name: "async () => { window.session = (await import('/session.js')).session; }",
    "geckos": """async () => {
        const map = document.createElement("script");
        map.type = "importmap";
        map.textContent = JSON.stringify({
          imports: { "@geckos.io/": "/modules/@geckos.io/", "@yandeu/events": "/modules/@yandeu/events/lib/index.js" },
        });
        document.head.append(map);
        window.geckos = (await import("/modules/@geckos.io/client/lib/index.js")).default;
    }""",
}
CONNECT = {
    OURS.name: """() => new Promise((done) => {
        const Connection = RTCPeerConnection;
        let began;
        window.RTCPeerConnection = class extends Connection {
          constructor(...options) {
            super(...options);
            this.addEventListener("datachannel", ({ channel }) => {
              channel.addEventListener("message", () => done(performance.now() - began), { once: true });
            });
          }
        };
        began = performance.now();
        session("bench");
    })""",
    "geckos": """() => new Promise((done) => {
        const began = performance.now();
        const channel = geckos({ url: location.origin, port: null });
        channel.onConnect((error) => done(error ? Infinity : performance.now() - began));
    })""",
}


@cache
def browser(core: int) -> Browser:
    """Started at the first call, on this core, and kept."""
    from playwright.sync_api import sync_playwright

    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        raise BenchError("no Chromium on PATH; scripts/ensure-chromium installs one")
    with pinned(core):
        playwright = sync_playwright().start()
        chromium = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
    atexit.register(playwright.stop)
    atexit.register(chromium.close)
    return chromium


def connect(page: Page, base: str, kind: str) -> float:
    """Milliseconds of one connection from a fresh page."""
    page.goto(f"{base}/health")
    page.route(f"{base}/modules/**", lambda route: route.fulfill(path=PEERS / "node_modules" / module(route)))
    page.evaluate(LOAD[kind])
    page.unroute_all()  # from here on Playwright does not look at what is fetched
    took: float = page.evaluate(CONNECT[kind])
    return took


def module(route: Route) -> str:
    return route.request.url.split("/modules/", 1)[1]


def measure(server: Server, settings: Settings) -> Figures:
    kind = OURS.name if server.name == OURS.name else "geckos"
    chromium = browser(server.cores[1])
    with ExitStack() as contexts, Meter(server) as meter:  # closed after the meter, that it may count what they used
        pages = [contexts.enter_context(chromium.new_context()).new_page() for _ in range(PAGES)]
        times = [connect(page, f"http://127.0.0.1:{server.port}", kind) for page in pages]
    return {"connect_ms": statistics.median(times), "least_ms": min(times), **meter.figures}


QUESTION = Question(
    name="udp-connect",
    title="a page of Chromium connects (geckos: until onConnect; ours: until its first datagram)",
    ours=OURS,
    baseline=GECKOS,
    measure=measure,
    others=(OURS_GECKOS,),
    rows=(
        Row("connect_ms", "connected after", "ms", goal=0.45, at_least=False),
        Row("connect_ms", "the same geckos.io client, of ours", "ms", at_least=False, who=OURS_GECKOS.name),
    ),
    repeats=4,
    loads_generator=True,  # a browser that opens a page uses all of its core
)
