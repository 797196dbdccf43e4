"""The program as it is started and stopped: one line when ready, one for what cannot work, nobody cut off."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

PROGRAM = str(Path(sys.executable).with_name("session-server"))
PATIENCE = 15.0  # seconds


def environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name != "PORT" and "SESSION_SERVER" not in name}
    return clean | more


@contextmanager
def started(*flags: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The program and its port."""
    command = [PROGRAM, *flags]
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**variables)
    )
    try:
        assert program.stdout is not None
        line = program.stdout.readline()
        match = re.fullmatch(r"session-server is ready on http://localhost:(\d+)\n", line)
        assert match, f"{line!r} {program.stderr.read() if program.stderr else ''}"
        yield program, int(match[1])
    finally:
        if program.poll() is None:
            program.kill()
        program.communicate()


def serve(folder: Path, *flags: str) -> tuple[str, ...]:
    return ("serve", "--host", "127.0.0.1", "--port", "0", "--pieces", str(folder), *flags)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_under_load_lets_all_go_with_1012_and_exits_0(tmp_path: Path, number: signal.Signals) -> None:
    async def talk(port: int, program: subprocess.Popen[str]) -> list[int]:
        everybody = [await connect(f"ws://127.0.0.1:{port}/session/room{n % 25}") for n in range(50)]

        async def chatter(client: object) -> int:
            try:
                while True:
                    await client.send('{"type":"hi"}')  # type: ignore[attr-defined]
                    await client.recv()  # type: ignore[attr-defined]
            except ConnectionClosed as end:
                return end.rcvd.code if end.rcvd is not None else 1006

        chatting = [asyncio.create_task(chatter(client)) for client in everybody]
        await asyncio.sleep(0)
        program.send_signal(number)
        return await asyncio.wait_for(asyncio.gather(*chatting), PATIENCE)

    with started(*serve(tmp_path, "--message-rate", "0", "--byte-rate", "0", "--drain", "3")) as (program, port):
        assert set(asyncio.run(talk(port, program))) == {1012}
        assert program.wait(PATIENCE) == 0
        assert program.stderr is not None
        assert "Traceback" not in program.stderr.read()


def test_port_0_and_the_port_in_the_environment(tmp_path: Path) -> None:
    with started(*serve(tmp_path)) as (_, port):
        assert port > 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    flags = ("serve", "--host", "127.0.0.1", "--pieces", str(tmp_path))
    with started(*flags, PORT=str(number)) as (_, port):
        assert port == number
    with started(*flags, SESSION_SERVER_PORT=str(number)) as (_, port):
        assert port == number


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--port", "99999"], "--port is 99999"),
        (["--engine", "nats://x"], "not yet"),
        (["--workers", "2"], "not yet"),
        (["--pieces", "nowhere"], "--pieces is 'nowhere'"),
        (["--tls-cert", "a.pem"], "--tls-cert and --tls-key"),
        (["--trusted-proxy", "10.0.0.0/99"], "--trusted-proxy"),
        (["--public-url", "ftp://x"], "--public-url"),
        (["--message-size", "-1"], "--message-size"),
    ],
)
def test_a_setting_that_cannot_work_is_one_line_and_exit_code_2(tmp_path: Path, flags: list[str], says: str) -> None:
    done = subprocess.run(
        [PROGRAM, *serve(tmp_path), *flags], capture_output=True, text=True, timeout=PATIENCE, env=environment()
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and says in done.stderr


def test_a_port_in_use_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        flags = serve(tmp_path, "--port", str(taken.getsockname()[1]))
        done = subprocess.run([PROGRAM, *flags], capture_output=True, text=True, timeout=PATIENCE, env=environment())
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "--port 0" in done.stderr


def test_a_broken_piece_stops_serve_and_names_its_line(tmp_path: Path) -> None:
    Path(tmp_path, "broken.py").write_text("from session_server import Room\n\nclass Broken(Room:\n    pass\n")
    done = subprocess.run(
        [PROGRAM, *serve(tmp_path)], capture_output=True, text=True, timeout=PATIENCE, env=environment()
    )
    assert done.returncode == 2
    assert "broken.py:3: SyntaxError" in done.stderr and done.stderr.count("\n") == 1
