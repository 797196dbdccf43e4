"""What all rooms of a process share, handed in by the floors above. No sockets, no tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from .clock import Timers
from .config import Config


@dataclass(slots=True)
class Totals:
    """What happened since the start. `refused` counts by reason, a closed list of words."""

    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    joins: int = 0
    faults: int = 0
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Services:
    """What all rooms share. The callables are handed in by the floor above."""

    config: Config
    timers: Timers
    totals: Totals
    log: Any
    token: Callable[[], str]  # an unguessable string
    spawn: Callable[[Awaitable[Any], float, Callable[[Any, BaseException | None], None]], None]
    flush_later: Callable[[Any], None]  # what has a `flush(now)`, at the end of this tick
    emptied: Callable[[Any, float], None]  # a room, whose last seat was given up
    close: Callable[[Any], None]  # a room that must not go on
    offer: Callable[[Any], str | None]  # SDP that invites this client to a side link; None if there are none here
    answer: Callable[[Any, str], None]  # its answer. Raises ValueError
    hangup: Callable[[Any], None]  # its reliable link ended, and with it what was signalled there
    verify: Callable[[str], Any]  # the user of a token, None if tokens are not checked here. Raises Refused
    publish: Callable[[str, bytes], None]  # to all rooms, of all nodes, that have subscribed to a topic
    subscribe: Callable[[str, Callable[[bytes], None]], Callable[[], None]]  # what is returned ends it
    clock: Callable[[], float]  # for authors: an async handler goes on long after the call began that it answers
    linked: Callable[[Any, Any], None] = lambda client, link: None  # a client has a new link, nothing was sent on it
    now: float = 0.0  # seconds, monotonic: when the call under way began
