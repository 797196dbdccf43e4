"""A session server of which the test writes every line: it does what the script says, right or wrong.

    async with ScriptedPeer() as peer:
        await page.goto(peer.page("field"))       # an empty page, with /session.js beside it
        ...                                       # the page calls session()
        link = await peer.link()                  # its WebSocket
        hello = await link.joins()                # the content of its session:join
        await link.welcome(id=7)
        link.cut()                                # the connection is gone, without a close frame

It counts as wire.md ("Resume") says, and answers pings; both can be overruled.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from time import monotonic
from typing import Any, Self, TypeVar

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

WEB = Path(__file__).parent.parent / "src" / "session_server" / "web"
PATIENCE = 8.0  # seconds that a test waits for something that should happen at once

T = TypeVar("T")


async def soon(work: Awaitable[T]) -> T:
    """What should happen at once. If it does not, the test fails here."""
    try:
        return await asyncio.wait_for(work, PATIENCE)
    except TimeoutError:
        raise AssertionError(f"did not happen within {PATIENCE:g} s") from None


class Link:
    """One WebSocket of a client."""

    def __init__(self, connection: ServerConnection) -> None:
        self.path = connection.request.path if connection.request else ""
        self.taken = 0  # reliable messages and asks received, as told in welcome and pong
        self.pings = 0
        self.answers_pings = True
        self._ahead = 0.0  # seconds, of the machine's clock
        self._connection = connection
        self._frames: asyncio.Queue[Any] = asyncio.Queue()
        self._ended = asyncio.Event()

    @property
    def subprotocol(self) -> str | None:
        return self._connection.subprotocol

    async def run(self) -> None:
        try:
            async for frame in self._connection:
                await self._take(frame)
        except ConnectionClosed:
            pass
        finally:
            self._ended.set()

    async def _take(self, frame: str | bytes) -> None:
        message = json.loads(frame) if isinstance(frame, str) else frame
        if isinstance(message, bytes):
            self.taken += message[0] == 1
        elif message["type"] == "session:ping":
            self.pings += 1
            if self.answers_pings:
                with suppress(ConnectionClosed):  # what came before the close is still to be read
                    await self.pong(message["content"]["t"])
            return
        elif message["type"] == "session:ask" or not message["type"].startswith("session:"):
            self.taken += message.get("reliable") is not False
        self._frames.put_nowait(message)

    async def receives(self) -> Any:
        """The next frame of the client that is no ping: an object, or bytes."""
        return await soon(self._frames.get())

    def has_received(self) -> bool:
        """Something more than was asked for."""
        return not self._frames.empty()

    async def joins(self) -> dict[str, Any]:
        message = await self.receives()
        assert message["type"] == "session:join"
        return dict(message["content"])

    async def welcome(self, id: int = 1, **content: Any) -> None:
        whole = {
            "id": id, "room": "field", "presence": [person(id)], "count": 1, "host": None, "resume": f"token {id}",
            "grace": 5.0, "epoch": 1, "seq": 0, "time": monotonic(), "received": self.taken, "recovered": False,
        }  # fmt: skip
        self.taken = content.get("received", self.taken)
        self._ahead = content.get("time", monotonic()) - monotonic()
        await self.send("session:welcome", whole | content)

    async def pong(self, t: Any, **content: Any) -> None:
        await self.send("session:pong", {"t": t, "time": monotonic() + self._ahead, "received": self.taken} | content)

    async def send(self, type: str, content: Any = None, id: int = 0, **more: Any) -> None:
        await self.send_frame(json.dumps({"type": type, "content": content, "id": id} | more))

    async def send_frame(self, frame: str | bytes) -> None:
        await self._connection.send(frame)

    def stall(self) -> None:
        """Reads nothing until `go_on`."""
        self._connection.transport.pause_reading()

    def go_on(self) -> None:
        self._connection.transport.resume_reading()

    def cut(self) -> None:
        """The connection is gone, without a close frame."""
        self._connection.transport.abort()

    async def close(self, code: int, reason: str = "") -> None:
        await self._connection.close(code, reason)

    async def ends(self) -> int | None:
        """The code with which the client closed."""
        await soon(self._ended.wait())
        return self._connection.close_code

    def has_ended(self) -> bool:
        return self._ended.is_set()


class ScriptedPeer:
    def __init__(self) -> None:
        self.upgrades = 0  # asked for, refused ones too
        self.refuses: int | None = None  # status for every upgrade
        self._links: asyncio.Queue[Link] = asyncio.Queue()
        self._server: Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await serve(
            self._handle,
            "127.0.0.1",
            0,
            process_request=self._answer,
            subprotocols=["session.v1"],  # type: ignore[list-item]
            compression=None,
            ping_interval=None,
            close_timeout=1,
            max_size=None,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        for connection in self._server.connections:
            connection.transport.abort()
        self._server.close()
        await self._server.wait_closed()

    @property
    def host(self) -> str:
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def page(self, path: str = "field") -> str:
        return f"http://{self.host}/{path}"

    async def link(self) -> Link:
        """The next WebSocket that a client opens."""
        return await soon(self._links.get())

    async def seat(self, id: int = 1, **content: Any) -> Link:
        """The next client is welcomed, whatever its join says."""
        link = await self.link()
        await link.joins()
        await link.welcome(id, **content)
        return link

    def has_link(self) -> bool:
        """Somebody connected that was not asked for."""
        return not self._links.empty()

    async def _handle(self, connection: ServerConnection) -> None:
        link = Link(connection)
        self._links.put_nowait(link)
        await link.run()

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        if "Upgrade" in request.headers:
            self.upgrades += 1
            return connection.respond(HTTPStatus(self.refuses), "no\n") if self.refuses else None
        if request.path == "/session.js":
            return _response("text/javascript", (WEB / "session.js").read_bytes())
        return _response("text/html", b"<!doctype html><link rel=icon href=data:,><title>scripted</title>")


def person(id: int, **fields: Any) -> dict[str, Any]:
    return {"id": id, "ids": [id], "user": None, "handle": None, "name": None, "data": None, "away": False} | fields


def _response(kind: str, body: bytes) -> Response:
    headers = Headers({"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"})
    return Response(200, "OK", headers, body)
