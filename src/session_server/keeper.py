"""While the server itself is written: one process keeps the sockets, another serves, and is replaced when its code was
edited. Clients come back by themselves within a second, to the same seats; what `keep` names is carried over.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import sysconfig
import tempfile
from asyncio.subprocess import Process
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

from watchfiles import PythonFilter, awatch

from .config import Config
from .port import bind_udp

INHERITED: Final = "SESSION_SERVER_INHERITED"  # three lists of file descriptors: TCP, UDP; and the rooms, a pipe
HAND_OVER: Final = signal.SIGUSR1
PROGRAMS: Final = frozenset({"ac-session", "session-server", "-c"})
PACKAGE: Final = Path(__file__).parent


def is_written_here() -> bool:
    """The server runs from a checkout, so its own code may be edited, and by a command that can be run once more: a
    test that calls it would begin itself again."""
    return Path(sys.argv[0]).name in PROGRAMS and not PACKAGE.is_relative_to(sysconfig.get_paths()["purelib"])


class Inherited:
    """What the process that serves is handed by the one that keeps."""

    def __init__(self, sockets: list[socket.socket], datagrams: list[socket.socket], rooms: IO[bytes], life: int):
        self.sockets, self.datagrams = sockets, datagrams
        self.life = life  # a pipe: readable once the keeper has gone
        self._rooms = rooms

    @classmethod
    def here(cls) -> Inherited | None:
        """None: this process has no keeper."""
        text = os.environ.pop(INHERITED, None)
        if text is None:
            return None
        tcp, udp, (rooms, life) = ([int(number) for number in part.split(",") if number] for part in text.split(" "))
        return cls(opened(tcp), opened(udp), os.fdopen(rooms, "r+b"), life)

    def take_rooms(self) -> bytes:
        self._rooms.seek(0)
        data = self._rooms.read()
        self._rooms.seek(0)
        self._rooms.truncate()
        return data

    def obey(self, stop: Callable[[], None], hand_over: Callable[[], None]) -> None:
        """What is done when the keeper has gone, and when it wants another process to go on."""
        loop = asyncio.get_running_loop()

        def gone() -> None:
            loop.remove_reader(self.life)
            stop()

        loop.add_reader(self.life, gone)
        loop.add_signal_handler(HAND_OVER, hand_over)

    def leave_rooms(self, data: bytes) -> None:
        self._rooms.write(data)
        self._rooms.flush()


def opened(descriptors: Iterable[int]) -> list[socket.socket]:
    return [socket.socket(fileno=descriptor) for descriptor in descriptors]


class Keeper:
    """Holds the sockets as long as there is anybody to serve on them."""

    def __init__(self, config: Config, sockets: list[socket.socket], log: Any) -> None:
        """Raises ConfigError."""
        self._sockets = sockets
        self._datagrams = bind_udp(config, sockets[0].getsockname()[1])
        self._rooms = tempfile.TemporaryFile()  # noqa: SIM115  (as long as this process)
        self._log = log
        self._child: Process | None = None
        self._stopping = False

    async def run(self) -> int:
        """Until the server ends by itself, or is told to; its exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup goes on
                loop.add_signal_handler(number, self._stop)
        edits = awatch(PACKAGE, watch_filter=PythonFilter(), step=30, rust_timeout=1000)
        served = False  # the first must come up by itself
        life, held = os.pipe()
        try:
            while True:
                edited = asyncio.ensure_future(anext(edits))
                child = self._child = await self._start(life)
                ended = asyncio.create_task(child.wait())
                await asyncio.wait({edited, ended}, return_when=asyncio.FIRST_COMPLETED)
                if ended.done() and (self._stopping or not served or not child.returncode):
                    edited.cancel()
                    return max(child.returncode or 0, 0)  # it may have been stopped before it could say how
                if ended.done():
                    self._log.error("the server cannot go on; it is started again when its code is edited")
                    await edited
                else:
                    self._log.info("the server's own code was edited: another process goes on")
                    child.send_signal(HAND_OVER)
                    await ended
                served = True
        finally:
            os.close(life)
            os.close(held)

    async def _start(self, life: int) -> Process:
        tcp, udp = ([one.fileno() for one in some] for some in (self._sockets, self._datagrams))
        rooms = self._rooms.fileno()
        text = " ".join(",".join(map(str, part)) for part in (tcp, udp, (rooms, life)))
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *sys.orig_argv[1:],
            env=os.environ | {INHERITED: text},
            pass_fds=(*tcp, *udp, rooms, life),
            start_new_session=True,  # a terminal's Ctrl+C reaches us alone, and we pass it on
        )

    def _stop(self) -> None:
        self._stopping = True
        if self._child is not None:
            with suppress(ProcessLookupError):
                self._child.terminate()
