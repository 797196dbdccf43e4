"""The addresses of one peer: from which it sends, at which it hears us, and to which we send. No crypto, no sockets.

Nobody can aim our datagrams at a stranger. An address counts as the peer's only once it has shown that it hears us: by
the handshake, or by a nonce that came back. Until then it is sent at most three times the bytes that came from it (the
measure of RFC 9000 §8.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

from .ice import Datagram
from .stun import Address

AMPLIFICATION: Final = 3  # bytes to an unproven address per byte from it
MAX_PATHS: Final = 8  # addresses of one peer
MAX_HELD: Final = 8  # datagrams that wait for an unproven address to send more
PROBES: Final = 5  # heartbeats to a new address, after which it must ask again
PROBE_TIMEOUT: Final = 0.5  # seconds until the second, and then twice as long each time


@dataclass(slots=True, eq=False)
class Path:
    """An address from which the peer has sent a proven STUN message."""

    address: Address
    heard: float  # when it last did
    proven: bool = False  # it hears us
    credit: int = 0  # bytes that may still be sent there while it is not proven
    held: list[bytes] = field(default_factory=list)  # what waits for credit

    def spend(self, datagrams: Sequence[bytes], keep: bool) -> list[Datagram]:
        """What may be sent to an address that may not be the peer's: of these, after what waited before if `keep`."""
        if datagrams:
            self.held = [*(self.held if keep else ()), *datagrams][-MAX_HELD:]
        sent: list[Datagram] = []
        while self.held and len(self.held[0]) <= self.credit:
            datagram = self.held.pop(0)
            self.credit -= len(datagram)
            sent.append((datagram, self.address))
        return sent


class Paths:
    """All of a peer."""

    __slots__ = ("_probes", "by_address", "current", "probe_at", "target")

    def __init__(self) -> None:
        self.by_address: dict[Address, Path] = {}
        self.current: Path | None = None  # where we send
        self.target: Path | None = None  # where we want to send, once it is proven
        self.probe_at = inf  # when it is asked again
        self._probes = 0  # times that it was

    def hear(self, address: Address, size: int, now: float) -> Path:
        """The path of an address that proved to know our password, with so many bytes; of too many the least used is
        forgotten."""
        path = self.by_address.get(address)
        if path is None:
            if len(self.by_address) >= MAX_PATHS:
                others = [path for path in self.by_address.values() if path not in (self.current, self.target)]
                del self.by_address[min(others, key=lambda path: path.heard).address]
            path = self.by_address[address] = Path(address, now)
        path.heard = now
        path.credit += AMPLIFICATION * size
        return path

    def may_switch(self, path: Path, is_connected: bool) -> bool:
        """The peer wants our datagrams there: may they go now? It must be proven first if another was, or if the
        handshake is over."""
        return self.current is None or path.proven or not (self.current.proven or is_connected)

    def switch(self, path: Path) -> None:
        self.current = path
        if path is self.target:
            self.forget_target()

    def aim(self, path: Path) -> None:
        """This one is to be proven."""
        self.target, self._probes = path, 0

    def forget_target(self) -> None:
        self.target, self.probe_at = None, inf

    def next_probe(self, now: float) -> Path | None:
        """Where to ask now, by something that must come back; None: nowhere, or it has been asked often enough."""
        if self.target is None or self._probes >= PROBES:
            self.forget_target()
            return None
        self.probe_at = now + PROBE_TIMEOUT * 2**self._probes
        self._probes += 1
        return self.target

    def prove(self) -> Path | None:
        """It came back: the target hears us. None if there is none any more."""
        path = self.target
        if path is not None:
            path.proven = True
            self.forget_target()
        return path
