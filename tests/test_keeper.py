"""The server's own code is edited while people play: another process goes on under the same sockets."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import session_server
from session_server.client import Message, Room, session

PACKAGE = Path(session_server.__file__).parent
PATIENCE = 20.0  # seconds
AC_SESSION = ("-c", "from session_server.cli import ac_session; ac_session()")
FIELD = """
from session_server import Client, Room, on

class Field(Room):
    keep = ("steps",)
    relay = ("wave",)

    def on_create(self) -> None:
        self.steps = {}

    @on("step")
    def step(self, client: Client) -> int:
        self.steps[client.id] = self.steps.get(client.id, 0) + 1
        return self.steps[client.id]
"""


def patiently(test: Callable[[Path], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """A process starts in half a second, on a busy machine in ten."""

    @wraps(test)
    def run(tmp_path: Path) -> None:
        asyncio.run(asyncio.wait_for(test(tmp_path), 4 * PATIENCE))

    return run


class House:
    """A copy of the server's code, which may be edited, and the server that runs from it."""

    def __init__(self, code: Path, program: asyncio.subprocess.Process, url: str) -> None:
        self.code = code
        self.program = program
        self.url = url

    def edit(self, line: str) -> None:
        file = Path(self.code, "session_server", "clock.py")
        file.write_text(file.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")

    def mend(self) -> None:
        shutil.copy(PACKAGE / "clock.py", Path(self.code, "session_server", "clock.py"))

    async def says(self, pattern: str) -> str:
        """Waits for a line on standard error."""
        assert self.program.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while line := (await self.program.stderr.readline()).decode():
                if re.search(pattern, line):
                    return line
        raise AssertionError(f"no line with {pattern}")


@asynccontextmanager
async def house(tmp_path: Path, ends: int = 0) -> AsyncIterator[House]:
    """`ends`: with which code."""
    code, pieces = tmp_path / "code", tmp_path / "pieces"
    shutil.copytree(PACKAGE, code / "session_server")
    pieces.mkdir()
    (pieces / "field.py").write_text(FIELD, encoding="utf-8")
    program = await asyncio.create_subprocess_exec(
        sys.executable, *AC_SESSION, str(pieces), "--port", "0",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(code)},
    )  # fmt: skip
    assert program.stdout is not None
    try:
        ready = re.search(r"http://localhost:\d+", (await program.stdout.readline()).decode())
        assert ready
        yield House(code, program, ready[0])
    finally:
        if program.returncode is None:
            program.send_signal(signal.SIGINT)
        _, said = await asyncio.wait_for(program.communicate(), PATIENCE)
    assert program.returncode == ends, said.decode()


class Player:
    def __init__(self, room: Room) -> None:
        self.room = room
        self.waves: list[int] = []
        self.resumed: asyncio.Queue[bool] = asyncio.Queue()
        room.on("wave", lambda content, message: self.waves.append(content))
        room.on("session:resume", self._resumed)

    def _resumed(self, content: dict[str, bool], message: Message) -> None:
        self.resumed.put_nowait(content["recovered"])


def test_who_keeps_the_sockets_does_without_the_server() -> None:
    """It is started first, so whoever starts `ac-session` waits for all that it imports."""
    code = "import sys, session_server.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert "session_server.keeper" in loaded
    assert {"session_server.server", "session_server.room", "aiohttp", "cryptography"}.isdisjoint(loaded)


@patiently
async def test_those_who_play_keep_their_seats_and_miss_nothing(tmp_path: Path) -> None:
    async with (
        house(tmp_path) as it,
        session(f"{it.url}/session/field") as one,
        session(f"{it.url}/session/field") as two,
    ):
        ada, bob = Player(one), Player(two)
        ids = one.id, two.id
        assert await one.ask("step") == 1
        for n in range(3):
            await one.send("wave", n)
        it.edit("# another line")
        assert await ada.resumed.get() and await bob.resumed.get(), "something was missed"
        assert (one.id, two.id) == ids
        assert await one.ask("step") == 2, "what `keep` names was carried over"
        await one.send("wave", 3)
        await one.ask("step")  # the room has heard the wave, and passed it on before it answers the other
        await two.ask("step")
        assert bob.waves == [0, 1, 2, 3]


@patiently
async def test_a_mistake_in_the_servers_code_waits_to_be_mended(tmp_path: Path) -> None:
    async with house(tmp_path) as it, session(f"{it.url}/session/field") as room:
        player = Player(room)
        it.edit("this is no Python")
        await it.says("started again when its code is edited")
        it.mend()
        await player.resumed.get()
        assert await room.ask("step") == 1


@patiently
async def test_who_keeps_the_sockets_is_killed_and_nobody_stays_behind(tmp_path: Path) -> None:
    async with house(tmp_path, -signal.SIGKILL) as it, session(f"{it.url}/session/field") as room:
        closed = asyncio.Event()
        room.on("session:drop", lambda content, message: closed.set())
        it.program.kill()
        await it.program.wait()
        await closed.wait()
