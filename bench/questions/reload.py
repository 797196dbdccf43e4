"""How soon do those who play see an edit of the room's code, and how long do they hear nothing?

The peer does what is usual: `node --watch` restarts a ws server when its file changes, and clients connect again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import time
from pathlib import Path

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from bench.harness import BUILD, PEERS, BenchError, Contestant, Figures, Meter, Question, Row, Server, Settings

CLIENTS = 20
EDITS = 10
RETRY = 0.05  # seconds until a client that was dropped connects again
PATIENCE = 20.0  # seconds

OURS_CODE = """
from session_server import Room

class Bench(Room):
    tick_rate = 30

    def on_tick(self, dt: float) -> None:
        self.broadcast("version", {version})
"""


def folder(port: int) -> Path:
    return BUILD / f"reload-{port}"


def write(port: int, version: int, kind: str) -> None:
    """Saves the code of a version. In place: `node --watch` loses a file that is replaced."""
    place = folder(port)
    place.mkdir(exist_ok=True)
    if kind == OURS.name:
        name, code = "bench.py", OURS_CODE.format(version=version)
    else:
        name, code = "room.mjs", PEERS.joinpath("reload.mjs").read_text().replace("VERSION = 0", f"VERSION = {version}")
    Path(place, name).write_text(code)


def _ours(port: int) -> list[str]:
    write(port, 0, "ours")
    program = str(Path(sys.executable).with_name("session-server"))
    return [program, "dev", str(folder(port)), "--host", "127.0.0.1", "--port", str(port)]


def _node(port: int) -> list[str]:
    write(port, 0, "node")
    with contextlib.suppress(FileExistsError):
        Path(folder(port), "node_modules").symlink_to(PEERS / "node_modules")
    return ["node", "--watch", str(folder(port) / "room.mjs"), str(port)]


OURS = Contestant("ours", _ours)
NODE_WATCH = Contestant("node --watch", _node)


class Player:
    """Listens for ever, over any number of connections."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.version = -1
        self.silence = 0.0  # seconds, the longest
        self.drops = -1
        self.news = asyncio.Event()
        self._heard_at: float | None = None

    async def play(self) -> None:
        while True:
            self.drops += 1
            with contextlib.suppress(OSError, WebSocketException):
                async with connect(self.url) as socket:
                    async for frame in socket:
                        self._hear(json.loads(frame))
            await asyncio.sleep(RETRY)

    def _hear(self, message: dict[str, object]) -> None:
        if message["type"] != "version":
            return
        now = time.monotonic()
        self.silence = max(self.silence, now - (self._heard_at or now))
        self._heard_at = now
        if message["content"] != self.version:
            self.version = int(str(message["content"]))
            self.news.set()

    async def sees(self, version: int) -> None:
        while self.version != version:
            self.news.clear()
            await self.news.wait()


async def edit(server: Server) -> Figures:
    players = [Player(f"ws://127.0.0.1:{server.port}/session/bench") for _ in range(CLIENTS)]
    tasks = [asyncio.create_task(player.play()) for player in players]
    seen = []
    try:
        async with asyncio.timeout(PATIENCE * EDITS):
            await asyncio.gather(*(player.sees(0) for player in players))
            for version in range(1, EDITS + 1):
                await asyncio.sleep(0.3)
                began = time.monotonic()
                write(server.port, version, server.name)
                await asyncio.gather(*(player.sees(version) for player in players))
                seen.append(time.monotonic() - began)
    except TimeoutError:
        raise BenchError(f"{server.name}: not all saw version {len(seen) + 1} within {PATIENCE:g} s") from None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "seen_ms": statistics.median(seen) * 1000,
        "silence_ms": max(player.silence for player in players) * 1000,
        "drops": float(sum(player.drops for player in players)),
    }


def measure(server: Server, settings: Settings) -> Figures:
    with Meter(server) as meter:
        figures = asyncio.run(edit(server))
    return figures | meter.figures


QUESTION = Question(
    name="reload",
    title=f"{EDITS} edits of the code of a room of {CLIENTS} that ticks at 30 Hz",
    ours=OURS,
    baseline=NODE_WATCH,
    measure=measure,
    rows=(
        Row("seen_ms", "saved, then seen by all after", "ms", at_least=False),
        Row("silence_ms", "the longest silence anybody heard", "ms", at_least=False),
        Row("drops", "connections lost", "", at_least=False),
    ),
    repeats=2,
    loads_generator=True,  # next to nothing runs here; a waking client is all
)
