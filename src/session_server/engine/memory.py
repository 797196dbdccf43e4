"""The engine of a single node: it owns every room, and publishing is a call. No sockets, no tasks."""

from __future__ import annotations

from collections.abc import Callable

from . import Claim


class MemoryEngine:
    def __init__(self, node: str) -> None:
        self.node = node
        self._epochs: dict[str, int] = {}
        self._subscribers: dict[str, list[Callable[[bytes], None]]] = {}

    def claim(self, slug: str) -> Claim:
        return Claim(self.node, None, self._epochs.setdefault(slug, 1))

    def release(self, slug: str, epoch: int) -> None:
        if self._epochs.get(slug) == epoch:
            del self._epochs[slug]

    def publish(self, subject: str, data: bytes, fresh_for: float | None = None) -> None:
        for deliver in tuple(self._subscribers.get(subject, ())):
            deliver(data)

    def subscribe(self, subject: str, deliver: Callable[[bytes], None]) -> Callable[[], None]:
        self._subscribers.setdefault(subject, []).append(deliver)

        def end() -> None:
            listeners = self._subscribers.get(subject, [])
            if deliver in listeners:
                listeners.remove(deliver)
                if not listeners:
                    del self._subscribers[subject]

        return end

    async def request(self, subject: str, data: bytes, seconds: float) -> bytes:
        """There is no other node to answer."""
        raise TimeoutError(f"nobody answers {subject!r}: this is the only node")

    def nodes(self) -> list[str]:
        return [self.node]

    def on_state(self, call: Callable[[bool], None]) -> None:
        call(True)
