"""A real server for tests, on a loopback port of its own, and clients that speak to it byte by byte.

    with serving(pieces={"echo": SOURCE}, message_rate=0) as it:
        with it.join("/session/field", V1) as peer:
            peer.send("hi")
        assert it.refused["unknown"] == 1

The server runs in a thread; its counters can be read, and its clock can be moved on: nothing here waits for a deadline.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import secrets
import socket
import ssl
import struct
import tempfile
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from websockets.speedups import apply_mask

from session_server.cli import fastest_loop
from session_server.config import Config
from session_server.server import Server

Value = TypeVar("Value")

PATIENCE = 5.0  # seconds that any single step may take before the test fails
V1 = "session.v1"
CLASSIC = None
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A  # with FIN
FIN = 0x80
NO_STATUS = 1005  # a close frame without a code
CUT = 0  # the connection ended without a close frame


class Cut(Exception):
    """The server ended the connection without a close frame."""


class Log:
    """What the server logged: (level, event, fields)."""

    def __init__(self, entries: list[tuple[str, str, dict[str, Any]]] | None = None, **bound: Any) -> None:
        self.entries = [] if entries is None else entries
        self._bound = bound

    def bind(self, **fields: Any) -> Log:
        return Log(self.entries, **self._bound, **fields)

    def __getattr__(self, level: str) -> Callable[..., None]:
        def note(event: str, **fields: Any) -> None:
            self.entries.append((level, event, self._bound | fields))

        return note

    @property
    def faults(self) -> list[tuple[str, str, dict[str, Any]]]:
        return [entry for entry in self.entries if entry[0] in {"error", "exception", "critical"}]


class Clock:
    """Monotonic, and can be moved on."""

    def __init__(self) -> None:
        self.ahead = 0.0  # seconds

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


class Serving:
    """A server that runs in a thread."""

    def __init__(self, config: Config, plain: bool = False) -> None:
        self.config = config
        self._loop_factory = None if plain else fastest_loop()
        self.log = Log()
        self.clock = Clock()
        self.server: Server
        self.loop: asyncio.AbstractEventLoop
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="server")

    def start(self) -> None:
        self._thread.start()
        self._ready.wait(PATIENCE)
        if self._error is not None:
            self._thread.join()
            raise self._error

    def stop(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the server does not stop"

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self._loop_factory) as runner:
                runner.run(self._live())
        except BaseException as error:
            self._error = error
            self._ready.set()

    async def _live(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.server = Server(self.config, self.log)
        self.server.clock = self.server.websockets.clock = self.server._site._clock = self.clock
        self.server.channels.clock = self.server.signalling.clock = self.clock
        await self.server.start()
        self._ready.set()
        await self._stop.wait()
        await self.server.close()

    # --- what happens inside ------------------------------------------------------------------------------------------

    def call(self, ask: Callable[[], Value]) -> Value:
        """Calls in the server's thread."""

        async def run() -> Value:
            return ask()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(PATIENCE)

    def advance(self, seconds: float, step: float = 1.0) -> None:
        """Time passes, in steps as fine as the server's own look at the clock."""
        until = self.clock.ahead + seconds
        while self.clock.ahead < until:
            self.clock.ahead = min(until, self.clock.ahead + step)
            self.call(self._tick)

    def _tick(self) -> None:
        self.server._turn()
        sweep = self.server._sweep()
        asleep = sweep.send(None)  # it sleeps for a second first
        asleep.set_result(None)
        sweep.send(None)
        sweep.close()

    def has_taken(self, sock: socket.socket) -> bool:
        """Whether the server knows of the connection already; the kernel accepts before it does."""
        ours = sock.getsockname()
        held = (*self.server.websockets.connections, *self.server.fronts)
        return any(one._transport.get_extra_info("peername") == ours for one in held)

    def settle(self, *sockets: socket.socket) -> None:
        """Waits until the server has read all that was sent to it, and has answered."""
        deadline = time.monotonic() + PATIENCE
        while (any(map(is_under_way, sockets)) and not self.call(self._holds)) or self.call(self._unread):
            assert time.monotonic() < deadline, f"the server does not read: {self.call(self._state_of_reading)}"
            time.sleep(0.001)
        self.call(lambda: None)

    def _state_of_reading(self) -> list[tuple[str, bool, bool, int]]:
        """Of each connection: what it is, whether it reads, whether it closes, bytes that wait."""
        found = []
        for one in (*self.server.websockets.connections, *self.server.fronts):
            transport = one._transport
            sock = transport.get_extra_info("socket")
            waits = unread(sock.fileno(), termios.FIONREAD) if sock is not None and sock.fileno() >= 0 else -1
            found.append((type(one).__name__, transport.is_reading(), transport.is_closing(), waits))
        return found

    def _holds(self) -> bool:
        """Somebody is over the rate, and not read until time has passed."""
        return any(not connection._transport.is_reading() for connection in self.server.websockets.connections)

    def _unread(self) -> bool:
        transports = [c._transport for c in self.server.websockets.connections]
        transports += [front._transport for front in self.server.fronts]
        return any(
            transport.is_reading() and not transport.is_closing() and unread(found.fileno(), termios.FIONREAD)
            for transport in transports
            if (found := transport.get_extra_info("socket")) is not None and found.fileno() >= 0
        )

    def until(self, true: Callable[[], Any]) -> None:
        """Waits until something is so, looked at in the server's thread."""
        deadline = time.monotonic() + PATIENCE
        while not self.call(true):
            assert time.monotonic() < deadline, "it does not come to that"
            time.sleep(0.002)

    @property
    def refused(self) -> Counter[str]:
        return self.call(lambda: Counter(self.server.rooms.totals.refused))

    @property
    def faults(self) -> int:
        return self.call(lambda: self.server.rooms.totals.faults)

    @property
    def connections(self) -> int:
        return self.call(lambda: len(self.server.websockets.connections))

    # --- clients ------------------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        return self.server.ports[0]

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def tcp(self, receive_buffer: int | None = None) -> socket.socket:
        return connect(self.port, receive_buffer)

    def upgrade(
        self, path: str, subprotocol: str | None = None, headers: Mapping[str, str] | None = None,
        receive_buffer: int | None = None,
    ) -> Peer:  # fmt: skip
        """Asks for a WebSocket; `status` of the peer says with which success."""
        sock = self.tcp(receive_buffer)
        sock.sendall(upgrade_head(path, self.host, subprotocol, headers))
        return Peer(sock)

    def join(
        self, path: str = "/session/field", subprotocol: str | None = None, hello: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None, receive_buffer: int | None = None,
    ) -> Peer:  # fmt: skip
        """A peer that has a seat; its `id` is known."""
        peer = self.upgrade(path, subprotocol, headers, receive_buffer)
        assert peer.status == 101, f"not let in: {peer.status} {peer.refusal}"
        if subprotocol == V1:
            peer.send("session:join", dict(hello or {}))
            peer.welcome = peer.until("session:welcome")["content"]
            peer.id = peer.welcome["id"]
        else:
            peer.welcome = json.loads(peer.until("connected")["content"])
            peer.id = peer.welcome["id"]
        return peer

    def ask(self, request: bytes | str, answers: int = 1) -> list[Answer]:
        """Sends the bytes of one or more requests on a connection of its own, and reads `answers` answers."""
        with self.tcp() as sock:
            sock.sendall(request if isinstance(request, bytes) else request.encode("latin-1"))
            return read_answers(sock, answers)

    def get(self, target: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Answer:
        return self.ask(request(target, {"Host": self.host} | dict(headers or {}), method))[0]


@contextmanager
def serving(
    pieces: Path | str | Mapping[str, str] | None = None,
    expect_faults: bool = False,
    plain: bool = False,
    **settings: Any,
) -> Iterator[Serving]:
    """A running server. `pieces`: a folder, or the files themselves (`{"echo": source}`, `{"page.html": …}`). `plain`:
    on asyncio's own loop, even where uvloop is installed."""
    with tempfile.TemporaryDirectory() as folder:
        if pieces is None or isinstance(pieces, Mapping):
            for name, source in (pieces or {}).items():
                path = Path(folder, name if "." in name else f"{name}.py")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(source, encoding="utf-8")
        settings = {"host": "127.0.0.1", "port": 0, "pieces": str(folder if pieces is None or isinstance(
            pieces, Mapping) else pieces)} | settings  # fmt: skip
        it = Serving(Config(**settings), plain)
        it.start()
        try:
            yield it
            if not expect_faults:
                assert not it.faults and not it.log.faults, f"faults: {it.log.faults}"
        finally:
            it.stop()


def is_under_way(sock: socket.socket) -> bool:
    """Something was sent, and not read yet by a server that still listens."""
    return is_open(sock) and unread(sock.fileno(), termios.TIOCOUTQ) > 0


def is_open(sock: socket.socket) -> bool:
    """Whether the server has neither closed nor reset the connection; what it said before may still be unread."""
    state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state == 1  # TCP_ESTABLISHED of the kernel's tcp_states.h


def unread(fd: int, what: int) -> int:
    with suppress(OSError):
        return int(struct.unpack("i", fcntl.ioctl(fd, what, b"\0" * 4))[0])
    return 0


# --- bytes of HTTP ----------------------------------------------------------------------------------------------------


def connect(port: int, receive_buffer: int | None = None) -> socket.socket:
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.connect(("127.0.0.1", port))
    return sock


def request(target: str, headers: Mapping[str, str], method: str = "GET", version: str = "HTTP/1.1") -> bytes:
    lines = [f"{method} {target} {version}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def upgrade_head(
    path: str, host: str, subprotocol: str | None = None, headers: Mapping[str, str] | None = None
) -> bytes:
    """As a browser asks; `headers` may replace any of it, a value of "" leaves one out."""
    asked = {
        "Host": host,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": subprotocol or "",
    } | dict(headers or {})
    return request(path, {name: value for name, value in asked.items() if value})


class Answer:
    """An HTTP answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers  # names in small letters
        self.body = body

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"<Answer {self.status} {self.body[:80]!r}>"


def read_head(sock: socket.socket, buffer: bytearray) -> tuple[int, dict[str, str]]:
    """Raises Cut if the connection ends before an answer."""
    while b"\r\n\r\n" not in buffer:
        more = receive(sock)
        if not more:
            raise Cut(f"after {bytes(buffer)!r}")
        buffer += more
    head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
    buffer[:] = rest
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers


def read_answers(sock: socket.socket, count: int = 1, head_only: bool = False) -> list[Answer]:
    """The next answers on a connection. Raises Cut if there are less."""
    found: list[Answer] = []
    buffer = bytearray()
    while len(found) < count:
        status, headers = read_head(sock, buffer)
        size = 0 if head_only or status in {101, 204, 304} else int(headers.get("content-length", 0))
        while len(buffer) < size and (more := receive(sock)):
            buffer += more
        found.append(Answer(status, headers, bytes(buffer[:size])))
        del buffer[:size]
    return found


def receive(sock: socket.socket) -> bytes:
    """What there is; nothing once the connection has ended, in whatever way."""
    try:
        return sock.recv(1 << 16)
    except (ConnectionError, ssl.SSLError):
        return b""


# --- bytes of WebSocket -----------------------------------------------------------------------------------------------


def masked(
    first: int, payload: bytes = b"", mask: bytes | None = b"\0\0\0\0", form: int | None = None,
    claim: int | None = None,
) -> bytes:  # fmt: skip
    """A client's frame. `mask` None leaves it unmasked; `form` (7, 16, 64) is the width of the length, by default the
    shortest; `claim` is the length it states."""
    size = len(payload) if claim is None else claim
    form = form or (7 if size < 126 else 16 if size < 65536 else 64)
    bit = 0 if mask is None else 0x80
    if form == 7:
        length = bytes([bit | size])
    elif form == 16:
        length = bytes([bit | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([bit | 127]) + size.to_bytes(8, "big")
    return bytes([first]) + length + (payload if mask is None else mask + apply_mask(payload, mask))


class Peer:
    """A WebSocket client by hand: says what it is told to say, reads strictly. Blocks, at most for PATIENCE."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.id = 0
        self.welcome: dict[str, Any] = {}
        self._buffer = bytearray()
        self.status, self.headers = read_head(sock, self._buffer)
        self.refusal = b"" if self.status == 101 else bytes(self._buffer) + receive(sock)

    # --- out ----------------------------------------------------------------------------------------------------------

    def send(self, type: str, content: Any = None, **more: Any) -> None:
        self.send_text(json.dumps({"type": type, "content": content, **more}))

    def send_text(self, text: str | bytes) -> None:
        payload = text if isinstance(text, bytes) else text.encode()
        self.send_bytes(masked(TEXT, payload, secrets.token_bytes(4)))

    def send_bytes(self, data: bytes) -> None:
        """As it is. A server that has closed meanwhile is no error here: what it said can still be read."""
        with suppress(ConnectionError):
            self.sock.sendall(data)

    def close(self, code: int | None = None) -> None:
        """A closing handshake, begun by us."""
        self.send_bytes(masked(CLOSE, b"" if code is None else code.to_bytes(2, "big")))

    # --- in -----------------------------------------------------------------------------------------------------------

    def take(self) -> None:
        """Takes what has come, to be looked at later: for a peer that sends a lot before it reads."""
        self.sock.setblocking(False)
        with suppress(BlockingIOError):
            while more := receive(self.sock):
                self._buffer += more
        self.sock.settimeout(PATIENCE)

    def frame(self) -> tuple[int, bytes]:
        """The next frame, whole. Raises Cut at the end of the connection."""
        while (end := frame_end(self._buffer)) > len(self._buffer):
            more = receive(self.sock)
            if not more:
                raise Cut(f"after {bytes(self._buffer[:40])!r}")
            self._buffer += more
        data = bytes(self._buffer[:end])
        del self._buffer[:end]
        assert data[0] in {TEXT, BINARY, CLOSE, PING, PONG}, f"first byte of a frame: {data[0]:02x}"
        assert not data[1] & 0x80, "the server must not mask"
        return data[0], data[2 + {126: 2, 127: 8}.get(data[1], 0) :]

    def message(self) -> Any:
        """The next message: what the JSON of a text frame says, or the bytes of a binary one. Pings are answered."""
        while True:
            first, payload = self.frame()
            if first == TEXT:
                return json.loads(payload.decode())
            if first == BINARY:
                return payload
            if first == PING:
                self.send_bytes(masked(PONG, payload))
            if first == CLOSE:
                raise Cut(f"closed with {code_of(payload)} {payload[2:]!r}")

    def until(self, type: str) -> Any:
        """The next message of a type; what comes before it is dropped."""
        while True:
            message = self.message()
            if isinstance(message, dict) and message["type"] == type:
                return message

    def closed(self) -> int:
        """Reads to the end: the close code, NO_STATUS for a close frame without one, CUT if no close frame came."""
        try:
            while True:
                first, payload = self.frame()
                if first == CLOSE:
                    return code_of(payload)
        except Cut:
            return CUT

    def ended(self) -> bool:
        """Whether the server ends the TCP connection."""
        with suppress(TimeoutError):
            while receive(self.sock):
                pass
            return True
        return False

    def quiet(self, seconds: float = 0.05) -> bool:
        """Whether nothing comes for a while."""
        self.sock.settimeout(seconds)
        try:
            more = receive(self.sock)
            self._buffer += more
            return not more and not self._buffer
        except TimeoutError:
            return not self._buffer
        finally:
            self.sock.settimeout(PATIENCE)

    def reset(self) -> None:
        """Ends the TCP connection as a crash does: RST, no FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()


def frame_end(data: bytes | bytearray) -> int:
    """Bytes until the frame that begins here has ended, as far as that can be told."""
    if len(data) < 2:
        return 2
    size, at = data[1] & 0x7F, 2
    if size > 125:
        width = 2 if size == 126 else 8
        if len(data) < 2 + width:
            return 2 + width
        size, at = int.from_bytes(data[2 : 2 + width], "big"), 2 + width
    return at + size


def code_of(payload: bytes) -> int:
    return int.from_bytes(payload[:2], "big") if payload else NO_STATUS
