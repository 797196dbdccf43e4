"""The controlling side of ICE, as a client of ours needs it. The controlled one is a few lines of `datachannel`.

RFC 8445 (ICE), RFC 7675 (consent). No sockets: what is to be asked and what was answered are values.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

from . import stun
from .sdp import Offer
from .stun import Address, Credentials

Datagram = tuple[bytes, Address]


class Checks:
    """The controlling side of ICE: which of the offered addresses answers, and whether it still does.

    RFC 8445 §6.1.4.2 (pace), §7.2.2, §8.1.1 (nomination), RFC 7675 §5.1 (consent). A check nominates only once an
    address has answered; so the server, which takes the first valid one, is moved at most once.
    """

    PACE: Final = 0.05  # seconds between first checks to different addresses
    FIRST, LAST = 0.25, 2.0  # seconds until a check is repeated: at first, at most
    CONSENT: Final = 5.0  # seconds, ± 20 %
    OUTSTANDING: Final = 64  # transactions that may still be answered

    def __init__(
        self, offer: Offer, local: Credentials, random: Callable[[int], bytes], now: float, priority: int = 0x6EFFFFFF
    ) -> None:
        self._remote, self._local = offer.credentials, local
        self._random = random
        self._tie_breaker = random(8)
        self._priority = priority  # of a peer-reflexive candidate, type preference 110 (§7.1.1)
        self._waiting: list[tuple[float, int, Address]] = [  # when, how many were sent before, to whom
            (now + number * self.PACE, 0, (candidate.host, candidate.port))
            for number, candidate in enumerate(offer.candidates)
        ]
        self._asked: dict[bytes, Address] = {}  # transaction → whom
        self.chosen: Address | None = None

    @property
    def next_deadline(self) -> float:
        return min((when for when, _, _ in self._waiting), default=inf)

    def run(self, now: float) -> list[Datagram]:
        """What is to be asked now."""
        due = [one for one in self._waiting if one[0] <= now]
        self._waiting = [one for one in self._waiting if one[0] > now]
        for _, count, address in due:
            self._waiting.append((now + min(self.FIRST * 2**count, self.LAST), min(count + 1, 8), address))
        return [(self._ask(address), address) for _, _, address in due]

    def _ask(self, address: Address) -> bytes:
        transaction = self._random(12)
        self._asked[transaction] = address
        if len(self._asked) > self.OUTSTANDING:
            del self._asked[next(iter(self._asked))]
        nominate = self.chosen is not None
        return stun.check(
            transaction, self._local.ufrag, self._remote, self._priority, self._tie_breaker, nominate=nominate
        )

    def answered(self, message: stun.Message, address: Address, now: float) -> bool:
        """Whether this is a proven answer, from where the question went (§7.2.5.2.1)."""
        asked = self._asked.get(message.transaction)
        if asked is None or asked[:2] != address[:2] or message.kind != stun.SUCCESS:
            return False
        if not message.is_from(self._remote.password):
            return False
        del self._asked[message.transaction]
        if self.chosen is None:
            self.chosen = address
            self._waiting = [(now, 0, address)]  # nominates at once
        else:
            wait = self.CONSENT * (0.8 + 0.4 * self._random(1)[0] / 255)
            self._waiting = [(now + wait, 0, self.chosen)]
        return True
