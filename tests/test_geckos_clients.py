"""The clients of geckos.io as npm gives them: three versions in a real Chromium, and one in Node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, Route, TimeoutError

from browser import in_chromium, page_fixture  # noqa: F401
from serving import PATIENCE, Serving, serving

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "geckos"
VERSIONS = ("2.1.8", "2.3.2", "3.1.0")

ROOM = """
from session_server import Client, Message, Room, on

class Echo(Room):
    relay = ("1v1:move", "fairy:point", "tv")
    def on_create(self):
        self.pings, self.raw, self.reasons = [], [], []
    def on_join(self, client: Client):
        client.send("hello", {"first": True})
    @on("ping")
    def ping(self, client: Client, content: dict | None):
        self.pings.append(content)
        client.send("pong", content)
    def on_message(self, client: Client, message: Message):
        self.raw.append(message.content)
        client.send("rawMessage", message.content)
    @on("many")
    def many(self, client: Client):
        for number in range(200):
            client.send("number", number)
    def on_leave(self, client: Client, reason: str):
        self.reasons.append(reason)
"""

# `connect(options)` gives a channel as soon as `onConnect` was called, with all that came in `channel.log`.
PAGE = """async (version) => {
    const { geckos } = await import(`/geckos-${version}.js`);
    window.ticket = async (slug) => (await (await fetch("/session/" + slug)).json()).ticket;
    window.connect = (options, inside = () => {}) => new Promise((resolve) => {
        const channel = geckos({ port: Number(location.port), ...options });
        channel.log = [];
        channel.onConnect((error) => {
            if (error) return resolve({ error: { name: error.name, status: error.status } });
            for (const name of ["hello", "pong", "number", "tv", "1v1:move", "fairy:point", "say"])
                channel.on(name, (content) => channel.log.push([name, content]));
            channel.onRaw((data) =>
                channel.log.push(["raw", data instanceof ArrayBuffer ? [...new Uint8Array(data)] : data]));
            channel.onDisconnect(() => channel.log.push(["disconnect"]));
            inside(channel);
            resolve(channel);
        });
    });
    const pc = window.RTCPeerConnection;
    window.channels = [];
    window.RTCPeerConnection = class extends pc {
        constructor(...all) {
            super(...all);
            this.addEventListener("datachannel", ({ channel }) => window.channels.push(channel));
        }
    };
}"""


@cache
def bundles() -> dict[str, str]:
    """The clients as scripts for a page, and Node's in CACHE."""
    done = subprocess.run([ROOT / "scripts" / "ensure-geckos"], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"the geckos.io clients cannot be installed: {done.stderr}", pytrace=False)
    return {name: (CACHE / name).read_text(encoding="utf-8") for name in (f"geckos-{one}.js" for one in VERSIONS)}


@pytest.fixture
def site() -> Iterator[Serving]:
    page = {"page.html": "<!doctype html><title>page</title>", "echo": ROOM}
    with serving(page | bundles()) as served:
        yield served


async def opened(page: Page, site: Serving, version: str = "3.1.0", host: str = "127.0.0.1") -> None:
    await page.goto(f"http://{host}:{site.port}/page")
    await page.evaluate(PAGE, version)


async def heard(page: Page, count: int, channel: str = "channel") -> list[Any]:
    """What a channel has heard, once there is so much of it."""
    with suppress(TimeoutError):
        await page.wait_for_function(f"{channel}.log.length >= {count}")
    log: list[Any] = await page.evaluate(f"{channel}.log")
    return log


def room(site: Serving, slug: str = "echo") -> Any:
    return site.server.rooms.rooms[slug].instance


@pytest.mark.parametrize("version", VERSIONS)
@in_chromium
async def test_a_client_connects_talks_and_closes(site: Serving, page: Page, version: str) -> None:
    await opened(page, site, version)
    await page.evaluate("""async () => {
        window.channel = await connect({ authorization: await ticket("echo") }, (channel) => {
            for (let n = 1; n <= 5; n++) channel.emit("ping", { n });  // D30: the first frames
            channel.emit("ping");
            for (const runs of [1, 3, 4]) channel.emit("ping", { runs }, { reliable: true, interval: 5, runs });
            channel.raw.emit("plain");
            channel.raw.emit("");
            channel.raw.emit(new Uint8Array([1, 2, 3]));
            channel.raw.emit(new Uint16Array([1, 256, 513]));  // D27
            channel.raw.emit({ a: 1 });
        });
    }""")
    log = await heard(page, 15)
    assert sorted(map(str, log)) == sorted(
        map(
            str,
            [
                ["hello", {"first": True}],
                *(["pong", {"n": n}] for n in range(1, 6)),
                ["pong", None],
                *(["pong", {"runs": runs}] for runs in (1, 3, 4)),
                ["raw", "plain"], ["raw", ""], ["raw", [1, 2, 3]], ["raw", [1, 0, 0, 1, 1, 2]], ["raw", {"a": 1}],
            ],
        )
    )  # fmt: skip
    made = await page.evaluate("""() => channels.map(({ id, label, protocol, ordered, maxRetransmits, negotiated }) =>
        ({ id, label, protocol, ordered, maxRetransmits, negotiated }))""")
    assert made == [
        {"id": 1, "label": "geckos.io", "protocol": "", "ordered": False, "maxRetransmits": 0, "negotiated": False}
    ]
    told = await page.evaluate("({ data: channel.userData, most: channel.maxMessageSize, id: channel.id })")
    assert told["data"] == {} and told["most"] == 65536 and len(told["id"]) == 24
    assert site.call(lambda: len(room(site).pings)) == 9, "of each reliable message one"
    await page.evaluate("channel.close()")
    site.until(lambda: room(site).reasons == ["left"])
    await page.wait_for_function("channel.log.at(-1)[0] === 'disconnect'")


@in_chromium
async def test_two_clients_hear_each_other_as_the_policy_says(site: Serving, page: Page) -> None:
    await opened(page, site)
    await page.evaluate("""async () => {
        window.ada = await connect({});
        window.bob = await connect({});
    }""")
    site.until(lambda: len(room(site, "lobby").clients) == 2)  # the server knows, too, that their channels are open
    await page.evaluate("""() => {
        ada.emit("fairy:point", JSON.stringify({ x: 0.5 }));
        ada.emit("tv", JSON.stringify(1));
        ada.emit("sendOverDataChannel", { data: { tv: "faked" } });  // D28: an event of the library itself
        ada.emit("disconnect", "faked");
        bob.raw.emit(new Float32Array([1]));
    }""")
    assert sorted(await heard(page, 2, "ada")) == [["raw", [0, 0, 128, 63]], ["tv", "1"]]
    assert sorted(await heard(page, 2, "bob")) == [["fairy:point", '{"x":0.5}'], ["tv", "1"]]


@in_chromium
async def test_reliable_messages_of_a_room_come_all_and_in_order(site: Serving, page: Page) -> None:
    """By SCTP, on the channel that loses what is unreliable: the library hears no copies and needs no ids."""
    await opened(page, site)
    await page.evaluate("""async () => {
        window.channel = await connect({ authorization: await ticket("echo") }, (one) => one.emit("many"));
    }""")
    assert await heard(page, 201) == [
        ["hello", {"first": True}], *(["number", number] for number in range(200))
    ]  # fmt: skip


@in_chromium
async def test_what_a_room_says_first_is_heard_although_the_answer_s_answer_is_late(site: Serving, page: Page) -> None:
    """The library listens only once the POST of its answer has returned (wire.md §1.4)."""
    await opened(page, site)

    async def late(route: Route) -> None:
        answer = await route.fetch()
        site.until(lambda: len(room(site).clients) == 1)  # the channel is open, and the room has said hello
        await route.fulfill(response=answer)

    await page.route("**/remote-description", late)
    await page.evaluate("""async () => {
        window.channel = await connect({ authorization: await ticket("echo") });
    }""")
    assert await page.evaluate("channel.log") == []
    assert await heard(page, 1) == [["hello", {"first": True}]]


@in_chromium
async def test_whoever_is_not_let_in_is_told_the_status(site: Serving, page: Page) -> None:
    await opened(page, site)
    assert await page.evaluate("connect({ authorization: 'no ticket' })") == {"error": {"name": "Error", "status": 401}}
    await page.goto(f"http://localhost:{site.port}/page")
    await page.evaluate(PAGE, "3.1.0")
    foreign = await page.evaluate("connect({ url: 'http://127.0.0.1', authorization: 'x' })")
    assert foreign == {"error": {"name": "Error", "status": 403}}, "cross-origin, with a preflight for each request"


@in_chromium
async def test_from_another_origin_that_may(page: Page) -> None:
    with serving({"page.html": "<!doctype html><title>page</title>"} | bundles(), origin=("*",)) as site:
        await opened(page, site, host="localhost")
        ticket = site.get("/session/lobby").json["ticket"]
        await page.evaluate(
            """async (authorization) => {
                window.channel = await connect({ url: "http://127.0.0.1", authorization });
                channel.emit("tv", 1, { reliable: true });
            }""",
            ticket,
        )
        assert await heard(page, 1) == [["tv", 1]]


@pytest.mark.parametrize("percent", [5, 20])
def test_on_a_net_that_loses_datagrams_as_much_is_lost_and_no_more(percent: int) -> None:
    """For real: a client in Node, in a network namespace whose firewall drops UDP at random."""
    bundles()
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "ip", "nft"))):
        pytest.skip("a network namespace that loses datagrams needs root, unshare, ip and nft")
    if subprocess.run(["unshare", "--net", "nft", "list", "ruleset"], capture_output=True).returncode:
        pytest.skip("the kernel gives no network namespace with nft here")
    script = ROOT / "tests" / "geckos" / "lossy.py"
    command = ["unshare", "--net", sys.executable, script, str(percent), "200"]
    paths = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, timeout=18, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    heard = json.loads(done.stdout)
    assert heard["number"] == [*range(10, 201, 10)], "what is reliable comes, once and in order"
    for type in ("snapshot", "move"):
        assert len(heard[type]) == len(set(heard[type])), "nothing comes twice"
        share = len(heard[type]) / 200
        assert 1 - percent / 100 - 0.15 < share < 1, f"{share:.0%} of {type} came, {percent} % were dropped"


def test_a_client_in_node(site: Serving) -> None:
    node = shutil.which("node")
    assert node is not None
    ticket = site.get("/session/echo").json["ticket"]
    command = [node, ROOT / "tests" / "geckos" / "node.mjs", CACHE, "http://127.0.0.1", str(site.port), ticket]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            said = [json.loads(process.stdout.readline()) for _ in range(6)]
            assert said[0] == {"connected": True}
            assert sorted(map(str, said[1:])) == sorted(
                map(str, [{"hello": {"first": True}}, {"pong": {"n": 1}}, {"pong": {"n": 2}}, {"raw": "plain"},
                          {"raw": [1, 2, 3]}])
            )  # fmt: skip
            process.stdin.write("close\n")
            process.stdin.flush()
            site.until(lambda: room(site).reasons == ["left"])
            process.wait(PATIENCE)
        finally:
            process.kill()
    assert site.call(lambda: room(site).pings) == [{"n": 1}, {"n": 2}]
