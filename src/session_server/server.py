"""Wires the floors: listeners, the front protocol of each TCP connection, timers, tasks, the stop."""

from __future__ import annotations

import asyncio
import gc
import re
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from msgspec import MsgspecError

from .addresses import announced, out_of_reach
from .clock import Rota
from .conditioner import Conditioner
from .config import Config, ConfigError
from .desk import Desk
from .engine.memory import MemoryEngine
from .handover import pack, unpack
from .http import Site
from .logs import Tail
from .outbox import Link
from .pieces import Pieces
from .port import bind, bind_udp
from .protocol import Close, Tickets
from .reload import Reloader
from .rfc6455 import refusal
from .room import Client
from .rooms import Rooms
from .signalling import Signalling
from .tasks import outcome
from .tls import certificate
from .tokens import Verifier
from .transports.datachannel import DataChannels
from .transports.websocket import WebSockets

MAX_HEAD: Final = 16 * 1024  # bytes of a request head, and of what is read ahead of its turn
MAX_BODY: Final = 1024 * 1024  # bytes
HEAD_WITHIN: Final = 10.0  # seconds for a request head
IDLE_FOR: Final = 75.0  # seconds a connection is kept for a next request
ANSWER_WITHIN: Final = 60.0  # seconds for an answer to be taken
GC_THRESHOLDS: Final = (20_000, 50, 100)  # clients are long-lived: looking through all of them for cycles is dear
HEAD_END: Final = b"\r\n\r\n"
TLS_HELLO: Final = b"\x16"  # first byte of a handshake record (RFC 8446 §5.1)
REQUEST_LINE: Final = re.compile(rb"[!-~]+ [!-\xff]+ HTTP/1\.[01]\r\n")
CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)")
WANTS_WEBSOCKET: Final = re.compile(rb"\r\nupgrade:[^\r\n]*websocket")  # in a head of small letters


class Front(asyncio.Protocol):
    """One TCP connection as long as it speaks HTTP. Judges every request head: an upgrade goes to the WebSocket
    transport, all else to aiohttp, one request at a time (docs/decisions/0004)."""

    __slots__ = ("_body", "_buffer", "_busy", "_ended", "_http", "_server", "_transport")

    def __init__(self, server: Server) -> None:
        self._server = server
        self._buffer = bytearray()
        self._body = 0  # bytes of the request's body still to come
        self._busy = False  # a request is being answered
        self._ended = False  # the client sends nothing more
        self._http: asyncio.Protocol | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self._server.fronts.add(self)
        self._server.heads.add(self, self._server.clock())

    def data_received(self, data: bytes) -> None:
        if not self._buffer and not self._busy:
            self._server.idle.discard(self)
            self._server.heads.start(self, self._server.clock())
        self._buffer += data
        self._advance()

    def _advance(self) -> None:
        """Passes on what is due; stops at a head that is not complete, or whose turn has not come."""
        if self._body and self._http is not None:
            chunk = bytes(self._buffer[: self._body])
            del self._buffer[: self._body]
            self._body -= len(chunk)
            self._http.data_received(chunk)
        if self._busy or self._transport.is_closing():
            if len(self._buffer) > MAX_HEAD:
                self._transport.pause_reading()
            return
        while self._buffer.startswith(b"\r\n"):  # RFC 9112 §2.2: empty lines before a request are ignored
            del self._buffer[:2]
        end = self._buffer.find(HEAD_END) + len(HEAD_END)
        if self._buffer.startswith(TLS_HELLO):  # answered at once, the client's library says what it means
            self._refuse(400, "expected HTTP, saw a TLS handshake: there is no TLS on this port")
        elif end > MAX_HEAD or (end < len(HEAD_END) and len(self._buffer) > MAX_HEAD):
            self._refuse(431, f"head of more than {MAX_HEAD} bytes")
        elif end >= len(HEAD_END):
            head = bytes(self._buffer[:end])
            del self._buffer[:end]
            self._judge(head)
        elif self._ended:
            self._transport.close()

    def _judge(self, head: bytes) -> None:
        self._server.heads.discard(self)
        if not REQUEST_LINE.match(head):
            self._refuse(400, "expected a request line of HTTP/1.1")
            return
        headers = head.lower()
        if WANTS_WEBSOCKET.search(headers):
            self._upgrade(head)
            return
        if b"\r\ntransfer-encoding" in headers:
            self._refuse(411, "expected a body with Content-Length, saw Transfer-Encoding")
            return
        lengths = set(CONTENT_LENGTH.findall(headers)) if b"content-length" in headers else {b"0"}
        length = lengths.pop() if lengths else b"0"
        if lengths or not length.isdigit() or len(length) > 20:
            self._refuse(400, "Content-Length is no single number")
        elif int(length) > MAX_BODY:
            self._refuse(413, f"body of {int(length)} bytes, expected at most {MAX_BODY}")
        else:
            self._pass_on(head, int(length))

    def _pass_on(self, head: bytes, length: int) -> None:
        self._busy = True
        self._body = length
        self._server.answering.add(self, self._server.clock())
        if self._http is None:
            self._http = self._server.new_http()
            self._http.connection_made(self._transport)
        self._http.data_received(head)
        if self._body:
            self._advance()
        if len(self._buffer) > MAX_HEAD:
            self._transport.pause_reading()

    def answered(self) -> None:
        """The answer has been written; on to the next request, if there is one."""
        self._busy = False
        self._server.answering.discard(self)
        self._server.idle.add(self, self._server.clock())
        if self._buffer or self._ended:
            self._server.heads.add(self, self._server.clock())
            asyncio.get_running_loop().call_soon(self._advance)
        room = len(self._buffer) <= MAX_HEAD
        if room and not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()

    def _upgrade(self, head: bytes) -> None:
        """Hands the connection over; it may have served HTTP before."""
        if self._http is not None:
            self._http.transport = None  # type: ignore[attr-defined]  # aiohttp closes what it owns when it is let go
            self._http.connection_lost(None)
            self._http = None
        self._leave()
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._busy = True  # nothing that comes later is for us
        self._server.websockets.upgrade(self._transport, head, rest)

    def _refuse(self, status: int, line: str) -> None:
        """Answers by itself and ends the connection: what follows cannot be told apart any more."""
        self._server.rooms.totals.refused[f"http_{status}"] += 1
        self._transport.write(refusal(status, line).answer)
        self._transport.close()

    def cut(self) -> None:
        self._transport.abort()

    def _leave(self) -> None:
        server = self._server
        server.fronts.discard(self)
        for rota in (server.heads, server.idle, server.answering):
            rota.discard(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._leave()
        if self._http is not None:
            self._http.connection_lost(error)

    def eof_received(self) -> bool:
        self._ended = True
        return self._busy  # a client may close its half and still wait for the answer

    def pause_writing(self) -> None:
        if self._http is not None:
            self._http.pause_writing()

    def resume_writing(self) -> None:
        if self._http is not None:
            self._http.resume_writing()


class Answered(AbstractAccessLogger):
    """How aiohttp says that an answer is complete: it would log it now."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        front = request.transport.get_protocol() if request.transport is not None else None
        if isinstance(front, Front):
            front.answered()


class Server:
    """One process: its listeners, rooms and links."""

    def __init__(self, config: Config, log: Any, pieces: Pieces | None = None) -> None:
        """Raises ConfigError. `pieces` is found in `config.pieces` if it is not handed in."""
        self.config = config
        if config.development:
            log = Tail(log)
        self.log = log
        self.clock: Callable[[], float] = time.monotonic
        self.pieces = pieces if pieces is not None else Pieces(folder_of(config))
        engine = MemoryEngine(
            config.node, time.time_ns() // 1000, lambda error: log.error("fault in a subscriber", exc_info=error)
        )
        self.verifier = Verifier(config, log)
        self._linked: Callable[[Client, Link], None] = lambda client, link: None
        self.rooms = Rooms(
            config,
            self.pieces,
            log=log,
            clock=lambda: self.clock(),
            token=partial(secrets.token_urlsafe, 16),
            wake=self._wake,
            spawn=self._spawn,
            verify=self.verifier.verify,
            publish=lambda topic, data: engine.publish(f"topic:{topic}", data),
            subscribe=lambda topic, deliver: engine.subscribe(f"topic:{topic}", deliver),
            offer=lambda client: self.channels.offer(client),
            answer=lambda client, sdp: self.channels.answer(client, sdp),
            hangup=lambda client: self.channels.hangup(client),
            claim=lambda slug: engine.claim(slug).epoch,
            release=engine.release,
            linked=lambda client, link: self._linked(client, link),
        )
        self.reloader = Reloader(self.pieces, self.rooms, log, tells=config.development, clock=lambda: self.clock())
        self.websockets = WebSockets(config, self.rooms, self.clock, log, draining=lambda: self.draining)
        self.channels = DataChannels(config, self.rooms, self.clock, self._wake, self._turn_after, log)
        self.draining = False
        self.fronts: set[Front] = set()
        self.heads: Rota[Front] = Rota(HEAD_WITHIN)
        self.idle: Rota[Front] = Rota(IDLE_FOR)
        self.answering: Rota[Front] = Rota(ANSWER_WITHIN)
        self.ports: list[int] = []
        tickets = Tickets(secrets.token_bytes(32))
        self.signalling = Signalling(config, self.rooms, tickets, self.channels, clock=self.clock, state=self._state)
        self._site = Site(
            config,
            self.rooms,
            self.pieces,
            tickets,
            clock=self.clock,
            state=self._state,
            connections=lambda: self.connections,
            signal=self.signalling.answer,
            desk=self._desk(log) if config.development else None,
        )
        self._listeners: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._due_now = self._reading = self._running = False
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0

    def _desk(self, log: Any) -> Desk:
        """The development page, and bad networks for whoever develops."""
        conditioner = Conditioner(self.rooms, lambda: self.clock(), log, self.config.net)
        self._linked = conditioner.linked
        return Desk(self.rooms, self.pieces, conditioner, log.kept.after, secrets.token_urlsafe())

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(
        self, sockets: list[socket.socket] | None = None, datagrams: list[socket.socket] | None = None,
        rooms: bytes = b"",
    ) -> None:  # fmt: skip
        """Listens, on TCP `sockets` and UDP `datagrams` if they are handed in, and goes on with `rooms` of another
        process. Raises ConfigError."""
        self._loop = asyncio.get_running_loop()
        http = web.Server(self._site.answer, access_log_class=Answered, keepalive_timeout=IDLE_FOR * 10)
        self.new_http: Callable[[], asyncio.Protocol] = http
        self._certificate = certificate(self.config, self.log)
        tls = self._certificate.context if self._certificate else None
        await self.verifier.start()
        if rooms:
            self._inherit(rooms)
        for listener in sockets if sockets is not None else bind(self.config):
            self._listeners.append(
                await self._loop.create_server(
                    lambda: Front(self),
                    sock=listener,
                    backlog=4096,
                    ssl=tls,
                    ssl_handshake_timeout=HEAD_WITHIN if tls else None,
                )
            )
            self.ports.append(listener.getsockname()[1])
        self.channels.listen(bind_udp(self.config, self.ports[0]) if datagrams is None else datagrams)
        self.channels.announced = await announced(self.config, self.log)
        private = out_of_reach(self.config, self.channels.announced)
        if private:
            self.log.warning(
                "UDP is announced only where nobody outside can reach it, see --announce-ip", at=[*private]
            )
        self.run(self._sweep())
        gc.collect()
        gc.freeze()  # what is here now stays: the collector need not look at it again
        gc.set_threshold(*GC_THRESHOLDS)

    async def serve(self, ready: Callable[[str], None]) -> None:
        """Runs until it is told to stop; `ready(url)` is called once it serves."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.stop)
        if not self.config.development:
            self._loop.add_signal_handler(signal.SIGHUP, self.reload)
        elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup: goes on without its terminal
            self._loop.add_signal_handler(signal.SIGHUP, self.stop)
        ready(self.url)
        if self.config.tls:
            self.log.info("self-signed certificate: open this URL once in each browser and accept it", url=self.url)
        await self._stop.wait()
        await self.drain()

    def reload(self) -> None:
        """Edited pieces take over, in rooms that are open too."""
        try:
            self.reloader.reload()
        except Exception:
            self.rooms.totals.faults += 1
            self.log.exception("fault in the server")

    def _inherit(self, rooms: bytes) -> None:
        self.rooms.enter(self.clock())
        try:
            unpack(self.rooms, rooms, self.log)
        except MsgspecError as error:  # other code has written it
            self.log.warning("rooms of the process before cannot be taken over", error=str(error))

    def hand_over(self, leave: Callable[[bytes], None]) -> None:
        """Another process goes on: `leave` is given the rooms, clients are told to come back, and this one ends."""
        for listener in self._listeners:  # who comes now waits for the other
            listener.close()
        for core in self.rooms:
            core.outbox.flush(self.clock())
        leave(pack(self.rooms))
        for core in self.rooms:
            core.calls.busy = True  # no code of a piece runs here any more
        self.stop()

    def stop(self) -> None:
        """Asks for a drain; the second time, for a quick one."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    async def drain(self) -> None:
        """No new joins; clients are let go in slices within `config.drain` seconds, at once in development."""
        self.draining = True
        count = len(self.websockets.connections)
        if count:
            self.log.info("draining", clients=count, seconds=self.config.drain)
        letting_go = self._loop.create_task(self.websockets.drain(Close.RESTART, "server restarts", self.config.drain))
        hurried = self._loop.create_task(self._hurry.wait())
        await asyncio.wait({letting_go, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not letting_go.done():
            letting_go.cancel()
        await self.close()

    async def close(self) -> None:
        """Ends everything now."""
        for listener in self._listeners:
            listener.close()
        self.channels.close()
        for connection in tuple(self.websockets.connections):
            connection.abort()
        for front in tuple(self.fronts):
            front.cut()
        for core in tuple(self.rooms):
            self.rooms.close(core)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._alarm is not None:
            self._alarm.cancel()
        await asyncio.sleep(0)  # lets the aborted connections say so

    @property
    def url(self) -> str:
        if self.config.public_url and not self.config.development:
            return self.config.public_url
        host = self.config.host
        name = "localhost" if host in {None, "127.0.0.1", "::1", "0.0.0.0", "::"} else host
        return f"{self.config.scheme}://{f'[{name}]' if ':' in str(name) else name}:{self.ports[0]}"

    def _state(self) -> str:
        if self.draining:
            return "Draining"
        most = self.config.max_clients
        return "Full" if most and self.connections >= most else "Ready"

    @property
    def connections(self) -> int:
        """WebSockets, and the channels of those who have nothing else."""
        return len(self.websockets.connections) + self.channels.guests

    # --- time and tasks -----------------------------------------------------------------------------------------------

    def _wake(self, when: float) -> None:
        """The rooms want to run at `when`; 0.0 is the end of this tick."""
        if self._running:
            return  # they are asked afterwards
        if when <= self.clock():
            if not self._due_now:
                self._due_now = True
                if not self._reading:
                    self._loop.call_soon(self._turn)
        else:
            self._set_alarm(when)

    def _turn_after(self, read: Callable[[], None]) -> None:
        """For a transport whose one socket brings what many peers send: the turn that this asks for follows at once.
        Another round of the loop costs an idle process, with cold caches, as much as a few messages."""
        scheduled = self._due_now
        self._reading = True
        try:
            read()
        finally:
            self._reading = False
            if self._due_now and not scheduled:
                self._turn()

    def _turn(self) -> None:
        """One turn of the rooms: what is due, then one write per client."""
        self._due_now, self._running = False, True
        try:
            now = self.clock()
            self.channels.awake(now)
            due = self.rooms.run(now)
            self._running = False  # what a datagram brings about now is for another turn
            self.channels.flush(now)
        except Exception:
            self.rooms.totals.faults += 1
            self.log.exception("fault in the server")
            due = self.clock() + 0.1
        finally:
            self._running = False
        if due is not None:
            self._wake(due)

    def _set_alarm(self, when: float) -> None:
        if self._alarm is not None:
            if self._alarm_at <= when and not self._alarm.cancelled():
                return
            self._alarm.cancel()
        self._alarm_at = when
        self._alarm = self._loop.call_later(max(when - self.clock(), 0.001), self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._turn()

    async def _sweep(self) -> None:
        """Once a second: who is late?"""
        refused = self.rooms.totals.refused
        while True:
            await asyncio.sleep(1)
            now = self.clock()
            self.rooms.enter(now)
            for front in self.heads.due(now):
                refused["slow_head"] += 1
                front.cut()
            for front in self.answering.due(now):
                refused["slow_answer"] += 1
                front.cut()
            for front in self.idle.due(now):
                front.cut()
            self.websockets.sweep(now)
            if self._certificate is not None:
                self._certificate.refresh()

    def _spawn(
        self, awaitable: Awaitable[Any], seconds: float, done: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Runs a room's async handler; `done` is told its value or its error, but not when the server ends."""

        async def run() -> None:
            ended = await outcome(awaitable, seconds)
            self.rooms.enter(self.clock())
            done(*ended)

        self.run(run())

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Beside everything else, until it ends or the server does."""
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.rooms.totals.faults += 1
            self.log.error("fault in the server", exc_info=task.exception())


def folder_of(config: Config) -> Path:
    folder = Path(config.pieces)
    if not folder.is_dir():
        raise ConfigError(f"--pieces is {config.pieces!r}, expected a folder")
    return folder
