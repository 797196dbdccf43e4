"""The async code of authors: how an awaitable ends, whatever it does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from .calls import TookTooLong


async def outcome(awaitable: Awaitable[Any], seconds: float) -> tuple[Any, BaseException | None]:
    """Its value, or what it raised; TookTooLong after `seconds`. Raises CancelledError only if the task that awaits it
    is cancelled itself: one that comes from what the author waited for is an error like others."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await awaitable, None
    except TimeoutError as caught:
        if not limit.expired():  # one of the author's own
            return None, caught
        late = TookTooLong(f"took longer than {seconds:g} s")
        late.__cause__ = caught.__cause__  # its traceback says what was waited for
        return None, late
    except (Exception, SystemExit) as caught:
        return None, caught
    except asyncio.CancelledError as caught:
        if (task := asyncio.current_task()) is None or task.cancelling():
            raise
        return None, caught
