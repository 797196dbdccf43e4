"""For the tests of the Python client: how they run, and a server whose every word is the test's (`Peer`), which speaks
docs/reference/wire.md."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from session_server.client import Message, Room, session

SUBPROTOCOL = Subprotocol("session.v1")
LIMIT = 10.0  # seconds for one test


def new_uvloop() -> asyncio.AbstractEventLoop:
    uvloop = pytest.importorskip("uvloop")
    return uvloop.new_event_loop()


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs an async test in a loop of its own and looks for tasks that it left behind."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def main() -> None:
            async with asyncio.timeout(LIMIT):
                await test(*args, **kwargs)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left

        with asyncio.Runner(loop_factory=kwargs.pop("loop", None)) as runner:
            runner.run(main())

    return run


def both_loops(run: Callable[..., None]) -> Callable[..., None]:
    def each(loop: Any) -> None:
        run(loop=loop)

    each.__name__ = run.__name__
    return pytest.mark.parametrize("loop", [None, new_uvloop], ids=["asyncio", "uvloop"])(each)


def at_once(attempt: int) -> float:
    return 0.0


def joining(peer: Peer, **options: Any) -> Room:
    return session(peer.url, backoff=at_once, **options)


class Heard:
    """What handlers were called with; `of` a type, in order."""

    def __init__(self, room: Room, *types: str) -> None:
        self.messages: list[Message] = []
        self._more = asyncio.Event()
        for type in types:
            room.on(type, self._hear)

    def _hear(self, content: Any, message: Message) -> None:
        self.messages.append(message)
        self._more.set()

    async def until(self, count: int) -> list[Any]:
        while len(self.messages) < count:
            self._more.clear()
            await self._more.wait()
        return [message.content for message in self.messages]

    @property
    def types(self) -> list[str]:
        return [message.type for message in self.messages]


class PeerLink:
    """One client's connection, from its `session:join` on."""

    def __init__(self, connection: ServerConnection, hello: dict[str, Any]) -> None:
        self.hello = hello  # content of session:join
        self.taken = 0  # reliable messages, as a server counts them
        self.deaf = False  # what comes from now on counts as lost on the way
        self.answers_pings = True
        self.pings = 0
        self.ended = asyncio.Event()
        self.came = asyncio.Condition()  # notified at every frame
        self.frames: list[Any] = []  # all that came but pings: objects of text frames, bytes of binary ones
        self._read = 0
        self._connection = connection

    async def welcome(self, **content: Any) -> None:
        """A plausible welcome, changed by `content`."""
        id = content.get("id", 7)
        person = {"id": id, "ids": [id], "user": None, "handle": None, "name": None, "data": None, "away": False}
        standard = {
            "id": id, "room": "field", "presence": [person], "count": 1, "host": None, "resume": "r1", "grace": 5.0,
            "epoch": 1, "seq": 0, "time": 100.0, "received": 0, "recovered": False,
        }  # fmt: skip
        self.taken = content.get("received", 0)
        await self.say("session:welcome", standard | content)

    async def say(self, type: str, content: Any = None, id: int = 0, **more: Any) -> None:
        await self.raw(json.dumps({"type": type, "content": content, "id": id, **more}))

    async def raw(self, frame: str | bytes) -> None:
        await self._connection.send(frame)

    async def next(self) -> Any:
        """The next frame that is no ping."""
        async with self.came:
            await self.came.wait_for(lambda: len(self.frames) > self._read)
        self._read += 1
        return self.frames[self._read - 1]

    async def until(self, ready: Callable[[], bool]) -> None:
        """Waits for frames until `ready()`."""
        async with self.came:
            await self.came.wait_for(ready)

    async def close(self, code: int, reason: str = "") -> None:
        await self._connection.close(code, reason)
        await self.ended.wait()

    async def abort(self) -> None:
        """As when a cable is cut: no close frame."""
        self._connection.transport.abort()
        await self.ended.wait()

    async def serve(self) -> None:
        try:
            async for data in self._connection:
                frame = json.loads(data) if isinstance(data, str) else data
                await self._take(frame)
        except ConnectionClosed:
            pass
        finally:
            self.ended.set()

    async def _take(self, frame: Any) -> None:
        control = isinstance(frame, dict) and frame["type"].startswith("session:")
        type = frame["type"] if control else None
        if not self.deaf and not (control and type != "session:ask"):
            self.taken += frame[0] == 1 if isinstance(frame, bytes) else frame.get("reliable") is not False
        if type == "session:ping":
            self.pings += 1
            if self.answers_pings:
                t = frame["content"]["t"]
                await self.say("session:pong", {"t": t, "time": 200.0, "received": self.taken})
        else:
            self.frames.append(frame)
        async with self.came:
            self.came.notify_all()
        if type == "session:leave":
            await self._connection.close(1000)


class Peer:
    """Listens on a free port. `greeting` is what every join is welcomed with; None leaves that to the test."""

    def __init__(self, greeting: dict[str, Any] | None = None, manual: bool = False) -> None:
        self.greeting = None if manual else greeting or {}
        self.refusals: list[tuple[int, str]] = []  # status and text for the next upgrades
        self.speaks = True  # session.v1
        self.upgrades: list[str] = []  # targets of the requests that came
        self._links: asyncio.Queue[PeerLink] = asyncio.Queue()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/session/field"

    async def link(self) -> PeerLink:
        """The next one that joined."""
        return await self._links.get()

    async def __aenter__(self) -> Peer:
        self._server = await serve(
            self._serve,
            "127.0.0.1",
            0,
            select_subprotocol=self._select,
            process_request=self._judge,
            ping_interval=None,
            compression=None,
            close_timeout=1,
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        await self._server.wait_closed()

    def _select(self, connection: ServerConnection, offered: Any) -> Subprotocol | None:
        return SUBPROTOCOL if self.speaks and SUBPROTOCOL in offered else None

    def _judge(self, connection: ServerConnection, request: Request) -> Response | None:
        self.upgrades.append(request.path)
        if not self.refusals:
            return None
        status, text = self.refusals.pop(0)
        body = text.encode()
        headers = Headers({"Content-Length": str(len(body)), "Content-Type": "text/plain"})
        return Response(status, "Refused", headers, body)

    async def _serve(self, connection: ServerConnection) -> None:
        try:
            first = json.loads(await connection.recv())
        except ConnectionClosed:
            return
        assert first["type"] == "session:join", first
        link = PeerLink(connection, first["content"])
        if self.greeting is not None:
            await link.welcome(**self.greeting)
        self._links.put_nowait(link)
        await link.serve()
