"""Misfortunes, each a `with` block: for peers on real sockets (serving.Peer), and for a wire in memory (Wire).

with stalled_reader(peer):          # reads nothing as long as the block lasts
    ...
with stalled(wire):                 # what the server writes piles up in its own memory
    ...
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

from serving import Peer, masked

# --- real sockets -----------------------------------------------------------------------------------------------------


@contextmanager
def slow_consumer(peer: Peer, bytes_per_second: int) -> Iterator[None]:
    """Reads, but no faster than this; what was read is thrown away."""
    stop = threading.Event()

    def sip() -> None:
        with suppress(OSError):
            while not stop.wait(0.02) and peer.sock.recv(max(1, bytes_per_second // 50)):
                pass

    thread = threading.Thread(target=sip, name="slow consumer")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def stalled_reader(peer: Peer) -> Iterator[None]:
    """Reads nothing, and the kernel keeps as little as it can; goes on reading where it stopped."""
    before = peer.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    try:
        yield
    finally:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, before // 2)  # the kernel doubles what it is told


@contextmanager
def half_closed(peer: Peer) -> Iterator[None]:
    """Says that it will send nothing more, and still reads; gone at the end of the block."""
    peer.sock.shutdown(socket.SHUT_WR)
    try:
        yield
    finally:
        peer.sock.close()


@contextmanager
def reset_mid_frame(peer: Peer, said: bytes = b'{"type":', claim: int = 100) -> Iterator[None]:
    """In the middle of a message at the beginning of the block; crashed, with RST, at its end."""
    peer.send_bytes(masked(0x81, said, claim=claim))
    try:
        yield
    finally:
        peer.reset()


# --- a wire in memory -------------------------------------------------------------------------------------------------


class Wire(asyncio.Transport):
    """A connection's transport whose other end is the test. Nothing happens by itself: `tick` is a turn of the loop.

    `sent` is what the other end could have read, `unsent` what is still in the server's memory.
    """

    def __init__(self, peer: str = "127.0.0.1") -> None:
        super().__init__({"peername": (peer, 50000), "sockname": ("127.0.0.1", 8889)})
        self.sent = bytearray()
        self.unsent = bytearray()
        self.writes = 0  # calls
        self.flows = True  # False: the other end reads nothing
        self.drops = False  # True: what is written vanishes on the way
        self.late = 0  # ticks until what is written arrives
        self.aborted = False
        self.lost = False  # connection_lost was called
        self.paused_writing = False
        self._waiting: deque[bytes] = deque()  # came while nobody read
        self._on_the_way: deque[tuple[int, bytes]] = deque()
        self._ticks = 0
        self._reading = True
        self._closing = False
        self._eof = False
        self._high, self._low = 64 * 1024, 16 * 1024
        self._protocol: Any = None

    # --- the other end ------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """The other end says something."""
        if self._reading and not self._closing and not self._waiting:
            self._protocol.data_received(data)
        else:
            self._waiting.append(data)

    def end(self) -> None:
        """The other end closes its half."""
        self._eof = True

    def crash(self) -> None:
        """The connection is reset."""
        self._closing = True
        self.unsent.clear()

    def flow(self, size: int | None = None) -> None:
        """The other end reads what is unsent, or `size` bytes of it."""
        size = len(self.unsent) if size is None else size
        self._carry(bytes(self.unsent[:size]))
        del self.unsent[:size]
        if self.paused_writing and len(self.unsent) <= self._low and not self._closing:
            self.paused_writing = False
            self._protocol.resume_writing()

    def tick(self) -> bool:
        """One turn of the loop; whether anything happened."""
        self._ticks += 1
        busy = False
        while self._on_the_way and self._on_the_way[0][0] <= self._ticks:
            self.sent += self._on_the_way.popleft()[1]
            busy = True
        if self.flows and self.unsent:
            self.flow()
            busy = True
        while self._waiting and self._reading and not self._closing:
            self._protocol.data_received(self._waiting.popleft())
            busy = True
        if self._eof and not self._closing and not self._waiting:
            self._eof = False
            if not self._protocol.eof_received():
                self.close()
            busy = True
        if self._closing and not self.unsent and not self.lost:
            self.lost = True
            self._protocol.connection_lost(None)
            busy = True
        return busy

    def _carry(self, data: bytes) -> None:
        if self.drops or not data:
            return
        if self.late:
            self._on_the_way.append((self._ticks + self.late, data))
        else:
            self.sent += data

    # --- what asyncio promises ----------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__}")
        self.writes += 1
        if self._closing and not self.unsent:
            return
        if self.flows and not self.unsent:
            self._carry(bytes(data))
            return
        self.unsent += data
        if len(self.unsent) > self._high and not self.paused_writing:
            self.paused_writing = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        self._closing = True
        self._reading = False

    def abort(self) -> None:
        self.aborted = self._closing = True
        self._reading = False
        self.unsent.clear()

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = not self._closing

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return len(self.unsent)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 64 * 1024 if high is None else high
        self._low = self._high // 4 if low is None else low

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast(asyncio.BaseProtocol, self._protocol)


@contextmanager
def stalled(wire: Wire) -> Iterator[None]:
    """The other end reads nothing; at the end of the block it reads on."""
    wire.flows = False
    try:
        yield
    finally:
        wire.flows = True


@contextmanager
def delayed(wire: Wire, ticks: int) -> Iterator[None]:
    """What is written arrives so many turns of the loop later."""
    wire.late = ticks
    try:
        yield
    finally:
        wire.late = 0


@contextmanager
def dropping(wire: Wire) -> Iterator[None]:
    """The network is gone, and neither end is told: what is written vanishes."""
    wire.drops = True
    try:
        yield
    finally:
        wire.drops = False


@contextmanager
def trickling(peer: Peer, data: bytes, seconds: float) -> Iterator[None]:
    """Sends `data` byte by byte, spread over `seconds`, while the block runs."""
    stop = threading.Event()

    def drip() -> None:
        for byte in data:
            if stop.wait(seconds / len(data)):
                return
            peer.send_bytes(bytes([byte]))

    thread = threading.Thread(target=drip, name="trickle")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
