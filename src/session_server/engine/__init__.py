"""What joins nodes: who owns a room, and how nodes talk. Seven calls; the in-memory form knows one node.

An engine never blocks and never raises in a room's path.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol


class Claim(NamedTuple):
    """The owner of a room. `epoch` rises with each new owner."""

    node: str
    url: str | None  # None: this node
    epoch: int


class Engine(Protocol):
    def claim(self, slug: str) -> Claim:
        """The owner of a room; this node becomes it if nobody is."""

    def release(self, slug: str, epoch: int) -> None:
        """The room is gone. Ignored if another owner has a higher epoch."""

    def publish(self, subject: str, data: bytes, fresh_for: float | None = None) -> None:
        """To all who subscribed; data older than `fresh_for` seconds is dropped and counted."""

    def subscribe(self, subject: str, deliver: Callable[[bytes], None]) -> Callable[[], None]:
        """Returns a call that ends the subscription."""

    def request(self, subject: str, data: bytes, seconds: float) -> Awaitable[bytes]:
        """One answer of one node. Raises TimeoutError."""

    def nodes(self) -> list[str]:
        """Live nodes, this one included."""

    def on_state(self, call: Callable[[bool], None]) -> None:
        """`call(connected)` whenever that changes."""
