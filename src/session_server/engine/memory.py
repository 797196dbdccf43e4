"""The engine of a single node: it owns every room, and publishing is a call. No sockets, no tasks."""

from __future__ import annotations

from collections.abc import Callable

from . import Claim


class MemoryEngine:
    def __init__(self, node: str, epoch: int, report: Callable[[Exception], None]) -> None:
        """All epochs are above `epoch`: microseconds since 1970 at its start, so that no later process repeats one.
        `report` is told what a subscriber raised."""
        self.node = node
        self._report = report
        self._epochs: dict[str, int] = {}
        self._epoch = epoch  # of the last claim: a room that is opened again begins anew, and a client must see that
        self._subscribers: dict[str, list[Callable[[bytes], None]]] = {}

    def claim(self, slug: str) -> Claim:
        if slug not in self._epochs:
            self._epoch += 1
            self._epochs[slug] = self._epoch
        return Claim(self.node, None, self._epochs[slug])

    def release(self, slug: str, epoch: int) -> None:
        if self._epochs.get(slug) == epoch:
            del self._epochs[slug]

    def publish(self, subject: str, data: bytes, fresh_for: float | None = None) -> None:
        for deliver in tuple(self._subscribers.get(subject, ())):
            try:
                deliver(data)
            except Exception as error:  # publishing never raises in a room's path
                self._report(error)

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
