"""Join a room from Python: `async with session(url) as room`. One background task per room, which survives any number
of links; no thread, no global state.

The room that programs hold is here. Below it, each importing only what stands before it: `wire` (what travels), `state`
(what is counted and remembered, no I/O), `links` (the wires), `outbox` (what leaves), `handlers` (whom a message
reaches), `seat` (a place in a room, over drops and resumes). How to use it: docs/how-to/python-client.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from ssl import SSLContext
from types import TracebackType
from typing import Any, TypeVar, overload

from ..protocol import Close
from ..trust import Route
from .handlers import Handler, check_heard_type
from .links import CLOSE_TIMEOUT
from .seat import How, Seat, Token, full_jitter
from .wire import (
    AskRefused,
    Link,
    Message,
    Person,
    SendQueueFull,
    SessionClosed,
    check_own_type,
    greeting,
    session_url,
    write_frame,
)

__all__ = [
    "AskRefused",
    "Link",
    "Message",
    "Person",
    "Room",
    "SendQueueFull",
    "SessionClosed",
    "full_jitter",
    "session",
]

HandlerT = TypeVar("HandlerT", bound=Handler)


def session(
    url: str,
    name: str | None = None,
    token: Token | None = None,
    data: Any = None,
    *,
    open_timeout: float = 10.0,
    ssl: SSLContext | None = None,
    backoff: Callable[[int], float] = full_jitter,
) -> Room:
    """The room at `url`, `https://host/session/slug`, to be joined with `async with`.

    `name` (at most 64 characters) and `data` (JSON of at most 4096 bytes) are what this client says of itself. `token`
    proves who it is to the room's `on_auth`; a callable, sync or async, is called at each connect, so that it can
    renew it. Joining is tried for `open_timeout` seconds; then, or when refused, it raises SessionClosed or another
    ConnectionError. `ssl` replaces the default TLS settings. `backoff` gives the seconds before the nth attempt of
    a row (from 0) to connect again.
    """
    if not (token is None or isinstance(token, str) or callable(token)):
        raise TypeError(f"token is {token!r}, expected a string, or a callable that returns one")
    return Room(How(session_url(url), greeting(name, data), token, open_timeout, ssl, backoff))


class Room:
    """A room that one has joined, or lost, or left. All of it belongs to one event loop."""

    def __init__(self, how: How) -> None:
        """Use `session`."""
        self._how = how
        self._seat = Seat(how)
        self._runner: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return self._how.url

    @property
    def id(self) -> int:
        """0 before the first join; another number after a resume that failed."""
        return self._seat.id

    @property
    def slug(self) -> str:
        return self._seat.slug

    @property
    def is_host(self) -> bool:
        """In a room without code: whether this client is the one that plays referee."""
        return self.id != 0 and self._seat.host == self.id

    @property
    def time(self) -> float:
        """The server's clock in seconds. Monotonic: compare it with times in messages, not with a calendar."""
        return self._seat.clock.time

    @property
    def presence(self) -> list[Person]:
        """The people here, oneself included. Empty beyond 200 people, where only `count` is known."""
        return self._seat.people.listed()

    @property
    def count(self) -> int:
        return self._seat.people.count

    @property
    def links(self) -> list[Link]:
        """The live wires to the server; none while the connection is lost."""
        link, side = self._seat.outbox.link, self._seat.side
        if link is None:
            return []
        if side is None:
            return [Link(link.kind, link.rtt)]
        active = self._seat.route is not Route.RELIABLE
        return [Link(link.kind, link.rtt), Link(side.kind, link.rtt, side.trust.loss, active)]

    @overload
    def on(self, type: str) -> Callable[[HandlerT], HandlerT]: ...
    @overload
    def on(self, type: str, fn: Handler) -> Callable[[], None]: ...

    def on(self, type: str, fn: Handler | None = None) -> Any:
        """Calls `fn(content, message)` for each message of this type, `"*"` for each of any type but `session:*`.

        Returns a callable that undoes it; without `fn` it is a decorator. A plain function runs at once, an async one
        as a task. An exception in it is logged and stops nothing else.
        """
        check_heard_type(type)
        if fn is None:
            return lambda decorated: (self.on(type, decorated), decorated)[1]
        return self._seat.handlers.add(type, fn)

    async def send(self, type: str, content: Any = None, reliable: bool = True) -> None:
        """Sends a message to the room; `content` is JSON or bytes. Returns once it is written.

        A reliable message arrives, once and in order; while the connection is lost it waits in a queue of 256 messages
        or 1 MiB, beyond which SendQueueFull is raised. With `reliable=False` it may be lost: what is worth nothing
        later (a position) goes so, by UDP where UDP is proven to work. Raises SessionClosed after the end of the room.
        """
        check_own_type(type)
        seat, outbox = self._seat, self._seat.outbox
        seat.check_open()
        if reliable:
            kept = await outbox.keep(write_frame(type, content))
            while outbox.link is not None and not kept.sent and seat.end is None:
                await outbox.changed.wait()
        else:
            seat.send_unreliable(type, content)
            await asyncio.sleep(0)  # a loop of such sends lets others run, too

    async def ask(self, type: str, content: Any = None, timeout: float = 10.0) -> Any:  # noqa: ASYNC109 (JS has it, too)
        """Asks the room's code and returns its answer.

        Raises AskRefused if the room refuses, TimeoutError if no answer came within `timeout` seconds.
        """
        check_own_type(type)
        if isinstance(content, bytes | bytearray | memoryview):
            raise TypeError(f"content of ask {type!r} is bytes, expected JSON")
        self._seat.check_open()
        asked = {"type": type} if content is None else {"type": type, "content": content}
        try:
            async with asyncio.timeout(timeout):
                return await self._seat.ask(lambda number: write_frame("session:ask", {"ask": number, **asked}))
        except TimeoutError:
            raise TimeoutError(f"no answer to {type!r} within {timeout:g} s") from None

    async def leave(self) -> None:
        """Gives up the seat at once. What was sent before still arrives. Leaving twice is once."""
        if self._runner is None:
            return
        await self._seat.leave()
        self._runner.cancel()
        await asyncio.wait([self._runner])

    def __aiter__(self) -> AsyncIterator[Message]:
        """Messages of the room, in order; `session:*` only through `on`.

        While an `async for` runs, at most 1024 messages or 1 MiB wait for it. Beyond that unreliable ones are shed;
        if that is not enough nothing more is read, answers to `ask` included, until the program catches up. While
        none runs the newest that fit are kept for the next. Ends when the room was left or closed with 1000; raises
        SessionClosed when it ended otherwise.
        """
        return Messages(self._seat)

    async def __aenter__(self) -> Room:
        if self._runner is not None:
            raise RuntimeError("a session is joined once; call session() again for another")
        seat = self._seat
        self._runner = asyncio.create_task(seat.run(), name=f"session {self.slug}")
        try:
            async with asyncio.timeout(self._how.open_timeout):
                while not seat.id and seat.end is None:
                    await seat.outbox.changed.wait()
        except TimeoutError:
            seat.finish(SessionClosed(Close.ABNORMAL, "could not be joined"))
            await self._stop()
            raise self._not_joined() from None
        except BaseException:
            seat.finish(SessionClosed(Close.NORMAL, "left"))
            await self._stop()
            raise
        if seat.end is not None:
            await self._stop()
            seat.check_open()
        # The last thing: whatever the body does before its first await is done before the first message is handled.
        seat.entered.set()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.leave()
        finally:
            await self._stop()

    def _not_joined(self) -> ConnectionError:
        """The first join took too long."""
        failure = self._seat.failure
        why = "no answer" if failure is None else failure.reason
        text = f"could not join {self.url} within {self._how.open_timeout:g} s: {why}"
        if failure is None or failure.code == Close.ABNORMAL:
            return ConnectionError(text)
        return SessionClosed(failure.code, text)

    async def _stop(self) -> None:
        """Ends all tasks. Handlers of `session:close` may finish, for a while."""
        assert self._runner is not None
        self._runner.cancel()
        try:
            await self._seat.handlers.stop(CLOSE_TIMEOUT)
        finally:
            await asyncio.wait([self._runner])
        if not self._runner.cancelled() and (error := self._runner.exception()):
            raise error


class Messages(AsyncIterator[Message]):
    """What `async for` holds. While one lives the room waits for it; several share the messages."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        seat.iterating += 1

    async def __anext__(self) -> Message:
        seat = self._seat
        while not seat.inbox:
            if seat.end is not None and seat.end.code == Close.NORMAL:
                raise StopAsyncIteration
            seat.check_open()
            await seat.arrived.wait()
        message = seat.inbox.get()
        seat.space.notify()
        return message

    def __del__(self) -> None:
        self._seat.iterating -= 1
        self._seat.space.notify()
