"""Bad networks in development: what a client is sent is late, little by little, lost or doubled, and again the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path as File
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner
from playwright.async_api import Page

from browser import in_chromium, page_fixture  # noqa: F401  (pytest finds the fixture `page` by it)
from serving import V1, Peer, Serving, request, serving
from session_server import cli
from session_server.client import session
from session_server.clock import Timers
from session_server.conditioner import HIGH, LOW, MAX_DATAGRAMS, Lane, SlowPeer, SlowWire
from session_server.conditions import MBIT, PRESETS, Conditions, Net, Path, read_net

DESK = "/status/development"

# --- how a network is written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "net"),
    [
        ("", Net()),
        ("off", Net()),
        ("3g", PRESETS["3g"]),
        ("delay=100", Net(Conditions(delay=0.1), Conditions(delay=0.1))),
        ("loss=5,bandwidth=1000", Net(Conditions(loss=0.05, bandwidth=MBIT), Conditions(loss=0.05, bandwidth=MBIT))),
        ("off,seed=7", Net(seed=7)),
    ],
)
def test_a_network_is_a_name_or_figures(text: str, net: Net) -> None:
    assert read_net(text) == net


def test_figures_replace_those_of_a_name() -> None:
    net = read_net("4g,loss=50,seed=3")
    assert (net.down.loss, net.up.loss, net.seed) == (0.5, 0.5, 3)
    assert (net.down.bandwidth, net.up.bandwidth) == (100 * MBIT, 50 * MBIT)


@pytest.mark.parametrize(
    "text", ["5g", "delay", "delay=", "delay=-1", "delay=x", "loss=101", "3g,4g", "delay=1e9", "=,", "delay=²"]
)
def test_what_is_no_network_is_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected"):
        read_net(text)
    monkeypatch.setattr(cli, "run", lambda settings, ready: pytest.fail("it is served"))
    said = CliRunner().invoke(cli.main, ["dev", "--net", text])
    assert said.exit_code == 2 and said.stderr.count("\n") == 1 and "expected" in said.stderr


def test_the_table_for_readers_is_that_of_the_presets() -> None:
    text = File(__file__).parent.parent.joinpath("docs", "how-to", "develop.md").read_text(encoding="utf-8")
    rows = [
        line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `") and line.count("|") == 9
    ]
    assert [row[0].strip("`") for row in rows] == list(PRESETS)
    for (_, *figures), net in zip(rows, PRESETS.values(), strict=True):
        down, up = net.down, net.up
        jitter = dict.fromkeys(f"{one.jitter * 1000:g}" for one in (down, up))
        shares = [f"{share * 100:g}" for share in (down.loss, down.duplicates, down.reorder)]
        speeds = [f"{one.bandwidth / 125:.0f}" for one in (down, up)]
        assert figures == [f"{down.delay * 1000:g}", ", ".join(jitter), *shares, *speeds]


# --- one direction ----------------------------------------------------------------------------------------------------


class World:
    """Time that is moved on by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers = Timers()
        self.seen: list[tuple[float, Any]] = []

    def path(self, seed: int = 1, **conditions: float) -> Path:
        return Path(Conditions(**conditions), Random(seed))

    def lane(self, **conditions: float) -> Lane:
        return Lane(self.path(**conditions), self.timers, lambda: self.now)

    def note(self, what: Any) -> None:
        self.seen.append((round(self.now, 6), what))

    def until(self, now: float) -> None:
        while (due := self.timers.due) is not None and due <= now:
            self.now = due
            self.timers.run(due)
        self.now = now


def test_a_reliable_link_keeps_the_order_and_loses_nothing() -> None:
    world = World()
    lane = world.lane(delay=0.1, jitter=0.1, loss=0.3)
    for number in range(200):
        world.until(number * 0.01)
        lane.send(10, lambda number=number: world.note(number))  # type: ignore[misc]
    world.until(1000)
    assert [what for _, what in world.seen] == list(range(200))
    assert max(at - number * 0.01 for at, number in world.seen) > 0.3, "what is lost is sent again, later"
    assert lane.size == 0


def test_bandwidth_is_a_queue() -> None:
    world = World()
    lane = world.lane(bandwidth=1000)
    for number in range(4):
        lane.send(500, lambda number=number: world.note(number))  # type: ignore[misc]
    assert lane.size == 2000
    world.until(10)
    assert world.seen == [(0.5, 0), (1.0, 1), (1.5, 2), (2.0, 3)]


class FakePeer:
    """A data channel's other end, as the conditioner sees it."""

    def __init__(self, world: World) -> None:
        self.world, self.out = world, list[tuple[bytes, object]]()

    def receive(self, datagram: bytes, address: object, now: float) -> None:
        self.world.note(datagram)

    def transmit(self, now: float) -> list[tuple[bytes, object]]:
        out, self.out = self.out, []
        return out

    def send_at_once(self, batch: object, now: float) -> tuple[bytes, object]:
        return b"a short cut", None


def sent(seed: int = 1, **conditions: float) -> list[tuple[float, Any]]:
    """When each of a hundred datagrams arrives, 10 ms apart, both ways on two peers."""
    world = World()
    peer = FakePeer(world)
    slow: SlowPeer

    def flush() -> None:
        for datagram, _ in slow.transmit(world.now):
            world.note(b"down" + datagram)

    slow = SlowPeer(peer, world.path(seed, **conditions), world.path(seed + 1, **conditions), world.timers, flush)
    for number in range(100):
        world.until(number * 0.01)
        peer.out.append((bytes([20, number]), None))
        flush()
        slow.receive(bytes([20, number]), None, world.now)
    world.until(1000)
    return world.seen


def test_datagrams_are_late_lost_doubled_and_out_of_order_and_a_seed_repeats_it() -> None:
    bad = {"delay": 0.1, "jitter": 0.05, "loss": 0.2, "duplicates": 0.2}
    seen = sent(**bad)
    assert seen == sent(**bad) != sent(seed=5, **bad)
    for way in (True, False):
        numbers = [what[-1] for _, what in seen if what.startswith(b"down") is way]
        assert 60 < len(set(numbers)) < 95 and len(numbers) > len(set(numbers)) and numbers != sorted(numbers)
        assert all(0.049 < at - what[-1] * 0.01 < 0.151 for at, what in seen if what.startswith(b"down") is way)


def test_nothing_takes_a_way_around_it() -> None:
    world = World()
    slow = SlowPeer(FakePeer(world), world.path(delay=0.1), world.path(delay=0.1), world.timers, lambda: None)
    assert slow.send_at_once((), world.now) is None


def test_some_overtake_where_that_is_asked_for() -> None:
    arrivals = {what: at for at, what in sent(delay=0.1, reorder=0.5)}
    waits = {round(at - what[-1] * 0.01, 3) for what, at in arrivals.items()}
    assert waits == {0.0, 0.1}


def test_a_good_network_changes_nothing_and_stun_passes_any() -> None:
    assert [at for at, _ in sent()] == [round(number * 0.01, 6) for number in range(100) for _ in range(2)]
    world = World()
    peer = FakePeer(world)
    slow = SlowPeer(peer, world.path(loss=1), world.path(loss=1), world.timers, lambda: None)
    peer.out = [(b"\1stun", None), (b"\x17data", None)]
    assert slow.transmit(0) == [(b"\1stun", None)]
    slow.receive(b"\1stun", None, 0)
    slow.receive(b"\x17data", None, 0)
    assert world.seen == [(0, b"\1stun")]


def test_datagrams_that_are_too_many_are_lost() -> None:
    world = World()
    slow = SlowPeer(FakePeer(world), world.path(delay=60), world.path(), world.timers, lambda: None)
    for _ in range(MAX_DATAGRAMS + 10):
        slow.receive(b"\x17", None, 0)
    world.until(100)
    assert len(world.seen) == MAX_DATAGRAMS
    slow.receive(b"\x17", None, world.now)
    world.until(200)
    assert len(world.seen) == MAX_DATAGRAMS + 1


# --- a connection between its transport and its protocol --------------------------------------------------------------


class Ends:
    """A transport and a protocol that note what is done to them."""

    def __init__(self, world: World) -> None:
        self.world, self.reading, self.closing = world, True, False

    def set_protocol(self, protocol: SlowWire) -> None: ...
    def is_reading(self) -> bool:
        return self.reading

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> None: ...
    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.closing = True
        self.world.note("close")

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.world.note((name, *args) if args else name)


def wired(**conditions: float) -> tuple[World, SlowWire, Ends]:
    world = World()
    ends = Ends(world)
    wire = SlowWire(ends, ends, world.path(**conditions), world.path(**conditions), world.timers, lambda: world.now)
    return world, wire, ends


def test_an_end_comes_after_what_was_said_before() -> None:
    world, wire, _ = wired(delay=1)
    wire.write(b"bye")
    wire.close()
    assert wire.is_closing()
    wire.write(b"too late")
    world.until(5)
    assert world.seen == [(1, ("write", b"bye")), (1, "close")]


def test_the_peers_end_comes_after_what_it_said_before() -> None:
    world, wire, _ = wired(delay=1)
    wire.data_received(b"bye")
    wire.connection_lost(None)
    wire.write(b"nobody hears it")
    world.until(5)
    assert world.seen == [(1, ("data_received", b"bye")), (1, ("connection_lost", None))]


def test_a_peer_that_closes_its_half_is_closed_when_all_of_it_is_here() -> None:
    world, wire, _ = wired(delay=1)
    wire.data_received(b"bye")
    assert wire.eof_received()
    world.until(5)
    assert world.seen == [(1, ("data_received", b"bye")), (1, "close")]


def test_an_abort_is_at_once() -> None:
    world, wire, _ = wired(delay=1)
    wire.write(b"never")
    wire.data_received(b"never")
    wire.abort()
    wire.connection_lost(None)
    world.until(5)
    assert world.seen == [(0, "abort"), (0, ("connection_lost", None))]


def test_no_queue_grows_without_end() -> None:
    world, wire, ends = wired(bandwidth=LOW)
    while wire.get_write_buffer_size() <= HIGH:
        wire.write(bytes(LOW // 4))
    assert world.seen == [(0, "pause_writing")]
    world.until(30)
    assert world.seen[-1][1] != "pause_writing" and "resume_writing" in [what for _, what in world.seen]
    world, wire, ends = wired(bandwidth=LOW)
    while ends.reading:
        wire.data_received(bytes(LOW))
    assert wire.is_reading(), "the protocol wants to"
    world.until(1000)
    assert ends.reading
    wire.pause_reading()
    assert not ends.reading and not wire.is_reading()


# --- a server ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def site() -> Iterator[Serving]:
    with serving({}, development=True) as served:
        yield served


def shown(site: Serving) -> Any:
    return site.get(DESK, {"Host": "localhost"}).json


def command(site: Serving, **what: Any) -> int:
    body = json.dumps(what).encode()
    headers = {"Host": "localhost", "Content-Length": str(len(body)), "X-Token": shown(site)["token"]}
    return site.ask(request(DESK, headers, "POST") + body)[0].status


def is_slow(site: Serving, room: str, id: int) -> Net | None:
    """The network of a client's WebSocket."""

    def look() -> Net | None:
        client = site.server.rooms.rooms[room].clients[id]
        wire = client.links[0]._transport  # type: ignore[attr-defined]
        assert client._stream is not None
        assert getattr(client._stream.members[client], "__self__", None) is wire, "what it is sent goes another way"
        return Net(wire.down.conditions, wire.up.conditions) if isinstance(wire, SlowWire) else None

    return site.call(look)


def talks(site: Serving, *peers: Peer) -> bool:
    """What one says, the other hears."""
    one, other = peers
    one.send("hi", 7)
    return bool(other.until("hi")["content"] == 7)


def test_without_one_nothing_is_in_the_way(site: Serving) -> None:
    with site.join("/session/field", V1) as peer:
        assert is_slow(site, "field", peer.id) is None


def test_a_page_may_ask_for_one_in_its_url_and_the_page_of_the_author_gives_them(site: Serving) -> None:
    with site.join("/session/field", V1, {"net": "delay=20"}) as ada, site.join("/session/field", V1) as bob:
        assert is_slow(site, "field", ada.id) == read_net("delay=20") and is_slow(site, "field", bob.id) is None
        assert command(site, do="net", room="field", net="delay=10") == 200
        assert is_slow(site, "field", bob.id) == read_net("delay=10")
        assert is_slow(site, "field", ada.id) == read_net("delay=20"), "its own counts more"
        assert command(site, do="net", room="field", client=ada.id, net="3g,loss=0,delay=1,jitter=0") == 200
        assert talks(site, ada, bob) and talks(site, bob, ada)
        (room,) = shown(site)["rooms"]
        assert room["net"] == "delay=10" and room["clients"][0]["net"] == "3g,loss=0,delay=1,jitter=0"
        with site.join("/session/field", V1) as cy:
            assert is_slow(site, "field", cy.id) == read_net("delay=10"), "who comes later has it, too"
        for what in ({"client": ada.id}, {}):
            assert command(site, do="net", room="field", net="", **what) == 200
        assert is_slow(site, "field", ada.id) == is_slow(site, "field", bob.id) == Net()
        assert talks(site, ada, bob)
        assert command(site, do="net", room="field", net="5g") == 400
        assert command(site, do="net", room="field", client=99, net="3g") == 400


def test_a_network_that_does_not_exist_is_said_in_the_log(site: Serving) -> None:
    with site.join("/session/field", V1, {"net": "5g"}) as peer:
        assert is_slow(site, "field", peer.id) is None
        assert [event for level, event, _ in site.log.entries if level == "warning"] == ["no such network"]


def test_all_have_that_of_the_command_line_and_leave_as_ever() -> None:
    with serving({}, development=True, net="delay=5") as it, it.join("/session/field") as classic:
        with it.join("/session/field", V1) as peer:
            assert is_slow(it, "field", peer.id) == read_net("delay=5")
            assert talks(it, peer, classic)
            peer.close(1000)
            assert peer.closed() == 1000
        it.until(lambda: len(it.server.rooms.rooms["field"].clients) == 1)
        left = [fields["reason"] for _, event, fields in it.log.entries if event == "left"]
        assert left == ["left"]


def test_in_production_nobody_gets_one() -> None:
    with serving({}) as it, it.join("/session/field", V1, {"net": "delay=20"}) as peer:
        assert is_slow(it, "field", peer.id) is None


def test_a_data_channel_loses_and_nothing_reliable_is_lost() -> None:
    async def play(port: int) -> tuple[int, int]:
        url = f"http://localhost:{port}/session/field"
        async with asyncio.timeout(15), session(url) as ada, session(url) as bob:
            for room in (ada, bob):
                while not any(link.kind == "datachannel" and link.active for link in room.links):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            heard: dict[bool, int] = {True: 0, False: 0}
            done = asyncio.Event()

            def hear(content: Any, message: Any) -> None:
                heard[message.reliable] += 1
                if content == "last":
                    done.set()

            bob.on("m", hear)
            for number in range(100):
                await ada.send("m", number, reliable=False)
                await ada.send("m", number)
                await asyncio.sleep(0.005)
            await ada.send("m", "last")
            await done.wait()
            return heard[True], heard[False]

    with serving({}, development=True, net="loss=20", message_rate=0.0) as it:
        reliable, unreliable = asyncio.run(play(it.port))
        assert reliable == 101
        assert 30 < unreliable < 100


FIELD = """<!doctype html><title>field</title><script type="module">
import { session } from "/session.js";
window.room = await session("field");
</script>"""


@in_chromium
async def test_a_page_tries_the_network_that_its_url_names(page: Page) -> None:
    with serving({"field.html": FIELD}, development=True) as it:
        await page.goto(f"http://localhost:{it.port}/field?net=delay=40")
        await page.wait_for_function("window.room?.id === 1")
        assert is_slow(it, "field", 1) == read_net("delay=40")
        await page.wait_for_function("room.links[0].rtt >= 0.07")  # two ways of 40 ms, but for the clock's grain
