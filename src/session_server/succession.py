"""One instance of a room's code takes over from another, while people play."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any

from .calls import ASYNC_LIMIT, Calls, Pending, TookTooLong
from .handlers import Routes


class Succession:
    """Made, `on_create`, what `keep` names of the old one, `on_reload`. If any of that fails, all is as before."""

    def __init__(
        self, calls: Calls, make: Callable[[], Any], routes: Routes, keep: tuple[str, ...],
        done: Callable[[BaseException | None], None],
    ) -> None:  # fmt: skip
        """`make()` gives the bare instance; `done` is told why it failed, or None."""
        self._calls = calls
        self._make, self._routes, self._keep = make, routes, keep
        self._done = done

    def run(self) -> Awaitable[None] | None:
        """To be called between two calls (`Calls.after_this`); what is returned must end before the next."""
        calls = self._calls
        self._old, self._old_routes = calls.instance, calls.routes
        self._old_timers: Pending = calls.take_over(self._old, self._old_routes, set())
        try:
            calls.take_over(self._make(), self._routes, set())
            created = calls.instance.on_create()
            reloaded = None if isawaitable(created) else self._inherit()
        except (Exception, SystemExit) as error:
            self._end(error)
            return None
        if isawaitable(created) or isawaitable(reloaded):
            return self._wait(created, reloaded)
        self._end(None)
        return None

    def _inherit(self) -> Any:
        old = {name: value for name, value in vars(self._old).items() if name != "_core"}
        for name in self._keep:
            if name in old:
                setattr(self._calls.instance, name, old[name])
        return self._calls.instance.on_reload(old)

    async def _wait(self, created: Any, reloaded: Any) -> None:
        error: BaseException | None = TookTooLong(f"took longer than {ASYNC_LIMIT:g} s")
        try:
            if isawaitable(created):
                await created
                reloaded = self._inherit()
            if isawaitable(reloaded):
                await reloaded
            error = None
        except (Exception, SystemExit) as raised:
            error = raised
        finally:  # of a cancellation too
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if error is None:
            self._calls.forget(self._old_timers)
        else:
            for timer in self._calls.take_over(self._old, self._old_routes, self._old_timers):
                timer.cancel()
        self._done(error)
