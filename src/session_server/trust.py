"""Whether an unreliable link is alive, judged by acknowledgements alone: a data channel can die while it says "open".

One `Trust` per direction, at the sender. No clock: `now` is an argument, seconds.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

DOUBT_AFTER: Final = 0.25  # seconds without an acknowledgement (or 4 × rtt): from here on, both links
DEMOTE_AFTER: Final = 2.0  # seconds: from here on, the reliable link alone
TRUST_AGAIN: Final = 30.0  # seconds after which the unreliable link gets another chance
ACK_EVERY: Final = 0.1  # seconds between a server's acknowledgements while datagrams flow (docs/decisions/0006)
PROBE_EVERY: Final = 1.0  # seconds without a message (clients: either way) until a probe keeps the judgement fresh


class Route(Enum):
    """Where what may be lost is sent."""

    RELIABLE = "reliable"  # there is no other link, or it is not trusted
    BOTH = "both"  # not proven yet, or in doubt
    UNRELIABLE = "unreliable"


class Trust:
    """Starts unproven: both links until the first acknowledgement."""

    __slots__ = (
        "_acked", "_acked_lately", "_judged", "_proven", "_rejected_until", "_sent", "_sent_at", "_sent_before",
        "_sent_lately", "_waits_since", "heard_at", "loss", "rtt",
    )  # fmt: skip

    def __init__(self) -> None:
        self._sent = 0  # messages, ever
        self._sent_at = self._sent_before = 0.0  # the last one, and the one before
        self._acked = 0  # of them, by the last acknowledgement
        self._judged = 0  # of how many was known then what became of them
        self._sent_lately = self._acked_lately = 0.0
        self._waits_since: float | None = None  # when the first message after the last acknowledgement was sent
        self._proven = False
        self._rejected_until = 0.0
        self.heard_at = 0.0  # clients: when the last message came on this link
        self.rtt = 0.0  # seconds, measured on the reliable link: the path is the same
        self.loss = 0.0  # share, smoothed

    def sent(self, now: float, count: int = 1) -> None:
        self._sent += count
        self._sent_before, self._sent_at = self._sent_at, now
        if self._waits_since is None:
            self._waits_since = now

    def acked(self, received: int, at: float, lost: int | None = None) -> None:
        """The other side has received so many messages in all; `at`: when it said so. It cannot have received more than
        were sent, or fewer than before: such a claim is ignored. `lost`: so many will not arrive; None: nobody knows,
        so what has not arrived counts, that under way included."""
        if not self._acked < received <= self._sent:
            return
        # Of late, each acknowledgement counting a fifth less than the next. Not share by share: what comes with the
        # next one instead would count as lost, and never as found.
        judged = self._sent if lost is None else received + lost
        self._sent_lately += judged - self._judged - 0.2 * self._sent_lately
        self._acked_lately += received - self._acked - 0.2 * self._acked_lately
        self.loss = max(0.0, 1 - self._acked_lately / self._sent_lately) if self._sent_lately else 0.0
        self._acked, self._judged = received, judged
        self._proven = at >= self._rejected_until  # else it is of a time before the doubt, and proves nothing of now
        # What was under way may be lost, and that is no sign of death: what was sent since counts. If that is more than
        # one, it began about then.
        self._waits_since = None
        if self._sent_at > at:
            self._waits_since = self._sent_at if self._sent_before <= at else at

    def silence(self, now: float) -> float:
        """Seconds that an acknowledgement has been waited for."""
        return 0.0 if self._waits_since is None else now - self._waits_since

    def route(self, now: float) -> Route:
        """Also notes when trust is lost, and when it may be earned again."""
        if now < self._rejected_until:
            return Route.RELIABLE
        silent = self.silence(now)
        if silent >= DEMOTE_AFTER:
            self._rejected_until = now + TRUST_AGAIN
            self._proven, self._waits_since = False, None
            return Route.RELIABLE
        if not self._proven or silent >= max(DOUBT_AFTER, 4 * self.rtt):
            return Route.BOTH
        return Route.UNRELIABLE

    def wants_probe(self, now: float) -> bool:
        """Nothing was sent for a while, and the link is not rejected: a probe shows whether it lives. A proven one is
        not asked while it speaks: a server sends that way only as long as our acknowledgements reach it. That a client
        does says nothing of the way to it: it goes by what the server tells it on the WebSocket."""
        return now >= self._rejected_until and now >= self._probe_at

    @property
    def _probe_at(self) -> float:
        return (max(self._sent_at, self.heard_at) if self._proven else self._sent_at) + PROBE_EVERY

    def next_look(self, now: float) -> float:
        """When `route` may be another one, or a probe wanted, if until then nothing is sent or acknowledged."""
        if now < self._rejected_until:
            return self._rejected_until
        probe = self._probe_at
        if self._waits_since is None:
            return probe
        doubt, end = self._waits_since + max(DOUBT_AFTER, 4 * self.rtt), self._waits_since + DEMOTE_AFTER
        return min(probe, doubt if now < doubt < end else end)
