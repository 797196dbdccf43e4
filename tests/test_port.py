"""Who has the port: a stale development server of one's own makes room, a stranger's is never touched."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proxy import free_port
from serving import connect

AC_SESSION = (sys.executable, "-c", "from session_server.cli import ac_session; ac_session()")
PATIENCE = 60.0  # seconds; for a busy machine


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder and pieces of its own; real ac-sessions on this machine are not looked at."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "pieces").mkdir()
    return tmp_path


def start(home: Path, port: int) -> subprocess.Popen[str]:
    command = [*AC_SESSION, str(home / "pieces"), "--host", "127.0.0.1", "--port", str(port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def running(home: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    program = start(home, port)
    try:
        assert program.stdout is not None
        assert program.stdout.readline().startswith("session-server is ready on ")
        yield program
    finally:
        if program.poll() is None:
            program.send_signal(signal.SIGINT)
        program.communicate(timeout=PATIENCE)


def test_a_stale_ac_session_is_asked_to_stop_and_replaced(home: Path) -> None:
    port = free_port()
    with running(home, port) as stale:
        with running(home, port) as fresh:
            assert stale.wait(PATIENCE) == 0, "it was asked, not killed"
            connect(port).close()
            assert fresh.poll() is None
        assert fresh.stderr is not None


@pytest.mark.parametrize("claims", [False, True])
def test_a_stranger_on_the_port_is_never_touched(home: Path, claims: bool) -> None:
    """Not even if an old run file names it: nobody holds its lock."""
    listening = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"
    command = [sys.executable, "-c", f"{listening}; sys.stdin.read()"]
    stranger = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert stranger.stdin is not None and stranger.stdout is not None
    with stranger.stdin, stranger.stdout:
        port = int(stranger.stdout.readline())
        if claims:
            (home / "session-server").mkdir()
            (home / "session-server" / f"ac-session-{port}").write_text(str(stranger.pid))
        program = start(home, port)
        _, said = program.communicate(timeout=PATIENCE)
        assert program.returncode == 2
        assert re.fullmatch(
            rf"session-server: --port {port} is in use by \S+ \(process {stranger.pid}\); stop it, or let `--port 0` "
            "choose a free one\n",
            said,
        )
        assert stranger.poll() is None
    assert stranger.wait(PATIENCE) == 0


def test_a_stale_ac_session_that_does_not_stop_is_left_alone(home: Path) -> None:
    port = free_port()
    with running(home, port) as stale:
        os.kill(stale.pid, signal.SIGSTOP)
        try:
            program = start(home, port)
            _, said = program.communicate(timeout=PATIENCE)
            assert program.returncode == 2
            assert f"(process {stale.pid}) is on port {port}: asking it to stop" in said
            assert "--port 0" in said and stale.poll() is None
        finally:
            os.kill(stale.pid, signal.SIGCONT)


def test_a_port_that_the_system_chooses_is_nobodys(home: Path) -> None:
    with running(home, 0) as one, running(home, 0) as other:
        assert one.poll() is None and other.poll() is None
    assert not list((home).glob("session-server/ac-session-*"))
