"""The program's own code, called for what comes."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final

from .wire import OWN, Message, log

EVENTS: Final = frozenset({"session:presence", "session:drop", "session:resume", "session:close", "session:error"})
MAX_HANDLING = 1024  # async handlers under way, above which nothing more is read

Handler = Callable[[Any, Message], Any]


def check_heard_type(type: str) -> None:
    """Raises ValueError for an event that there is not."""
    if type.startswith(OWN) and type not in EVENTS:
        raise ValueError(f"type is {type!r}, expected one of {', '.join(sorted(EVENTS))}")


class Handlers:
    """Who wants to hear what. A plain function runs at once, an async one as a task; what either raises is logged."""

    def __init__(self, slug: str, freed: Callable[[], None]) -> None:
        """`slug` is for the log; `freed` is called when an async handler has ended."""
        self.slug = slug
        self._by_type: dict[str, list[Handler]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._freed = freed

    def __contains__(self, type: str) -> bool:
        return bool(self._by_type.get(type))

    @property
    def busy(self) -> bool:
        return len(self._running) >= MAX_HANDLING

    def add(self, type: str, fn: Handler) -> Callable[[], None]:
        """Returns a callable that undoes it."""
        handlers = self._by_type.setdefault(type, [])
        handlers.append(fn)

        def off() -> None:
            if fn in handlers:
                handlers.remove(fn)

        return off

    def emit(self, type: str, content: dict[str, Any]) -> None:
        """An event of the library."""
        self.call(Message(type, content))

    def call(self, message: Message) -> None:
        handlers = self._by_type.get(message.type, [])
        if "*" in self._by_type and not message.type.startswith(OWN):
            handlers = handlers + self._by_type["*"]
        for fn in tuple(handlers):
            try:
                result = fn(message.content, message)
            except Exception:
                log.exception("handler of %r failed (room %r)", message.type, self.slug)
                continue
            if result is not None and inspect.isawaitable(result):
                task = asyncio.create_task(self._watch(message.type, result), name=message.type)
                self._running.add(task)
                task.add_done_callback(self._ended)

    async def _watch(self, type: str, handler: Awaitable[Any]) -> None:
        try:
            await handler
        except Exception:
            log.exception("handler of %r failed (room %r)", type, self.slug)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._freed()

    async def stop(self, patience: float) -> None:
        """Ends them; those of `session:close` may finish, for `patience` seconds."""
        closing = {task for task in self._running if task.get_name() == "session:close"}
        for task in self._running - closing:
            task.cancel()
        try:
            if closing:
                await asyncio.wait(closing, timeout=patience)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
