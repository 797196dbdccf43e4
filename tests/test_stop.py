"""The program as it is started and stopped: one line when ready, one for what cannot work, nobody cut off."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from proxy import free_port
from serving import CUT, V1, Cut, Peer, masked, read_answers, request, upgrade_head
from serving import connect as plug
from session_server.cli import main

PROGRAM = str(Path(sys.executable).with_name("session-server"))
PATIENCE = 15.0  # seconds


def environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name != "PORT" and "SESSION_SERVER" not in name}
    return clean | more


@contextmanager
def started(*flags: str, files: int = 0, **variables: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The program and its port; `files`: how many it may open."""
    command = ["prlimit", f"--nofile={files}:{files}", PROGRAM, *flags] if files else [PROGRAM, *flags]
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
    number = free_port()
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


# --- a stop against resistance ----------------------------------------------------------------------------------------


def upgraded(port: int, path: str = "/session/field", subprotocol: str | None = None) -> Peer:
    sock = plug(port)
    try:
        sock.sendall(upgrade_head(path, f"127.0.0.1:{port}", subprotocol))
        return Peer(sock)
    except BaseException:
        sock.close()
        raise


def ended(program: subprocess.Popen[str]) -> str:
    """Waits for a good end; what it said on standard error."""
    _, said = program.communicate(timeout=PATIENCE)
    assert program.returncode == 0, said
    assert "Traceback" not in said and "never awaited" not in said and "destroyed" not in said
    return said


def test_while_it_drains_it_answers_and_lets_nobody_in(tmp_path: Path) -> None:
    with started(*serve(tmp_path, "--drain", "2")) as (program, port), upgraded(port) as deaf:
        deaf.until("connected")  # and never answers a close frame
        with plug(port) as kept:
            program.send_signal(signal.SIGTERM)
            assert deaf.closed() == 1012
            with upgraded(port) as late:
                assert late.status == 503
            kept.sendall(request("/session/field", {"Host": "localhost"}) + request("/health", {"Host": "localhost"}))
            told, health = read_answers(kept, 2)
            assert told.json["state"] == "Draining" and health.status == 200
        ended(program)


def test_who_does_not_answer_is_cut_at_the_deadline(tmp_path: Path) -> None:
    with started(*serve(tmp_path, "--drain", "1")) as (program, port), upgraded(port) as deaf, upgraded(port) as good:
        began = time.monotonic()
        program.send_signal(signal.SIGTERM)
        assert good.closed() == 1012
        good.close(1012)
        assert good.ended() and deaf.ended()
        ended(program)
        assert 0.5 < time.monotonic() - began < 4


def test_a_second_signal_is_in_a_hurry(tmp_path: Path) -> None:
    with started(*serve(tmp_path, "--drain", "60")) as (program, port), upgraded(port) as deaf:
        program.send_signal(signal.SIGINT)
        assert deaf.closed() == 1012
        began = time.monotonic()
        program.send_signal(signal.SIGINT)
        ended(program)
        assert time.monotonic() - began < 5


def test_connections_in_all_states_do_not_hold_up_a_stop(tmp_path: Path) -> None:
    with started(*serve(tmp_path, "--drain", "30")) as (program, port), ExitStack() as stack:
        for part in (b"", b"GET /hea", request("/health", {"Host": "a"}), request("/health", {"Host": "a"}) + b"G"):
            stack.enter_context(plug(port)).sendall(part)
        joining = stack.enter_context(upgraded(port, subprotocol=V1))  # has not said session:join
        half = stack.enter_context(upgraded(port))
        half.send_bytes(masked(0x81, b"{", claim=100))
        began = time.monotonic()
        program.send_signal(signal.SIGTERM)
        assert joining.closed() == half.closed() == 1012
        joining.close(1012)
        half.send_bytes(b" " * 99)  # the rest of the message, without which the close frame would be part of it
        half.close(1012)
        ended(program)
        assert time.monotonic() - began < 6


ROOM = """
from session_server import Room

class Stubborn(Room):
    relay = True

    async def on_message(self, client, message):
        import asyncio
        await asyncio.sleep(3600)

    def on_leave(self, client, reason):
        raise RuntimeError("I will not go")

    def on_dispose(self):
        raise RuntimeError("never")
"""


def test_a_room_cannot_prevent_a_stop(tmp_path: Path) -> None:
    Path(tmp_path, "stubborn.py").write_text(ROOM.replace("relay = True", "relay = ()"), encoding="utf-8")
    with started(*serve(tmp_path, "--drain", "2")) as (program, port):
        with upgraded(port, "/session/stubborn") as one, upgraded(port, "/session/stubborn") as other:
            one.send("think")
            one.send("think")
            other.until("connected")
            program.send_signal(signal.SIGTERM)
            assert one.closed() == other.closed() == 1012
        program.communicate(timeout=PATIENCE)
        assert program.returncode == 0


def test_a_stop_before_anybody_came(tmp_path: Path) -> None:
    with started(*serve(tmp_path)) as (program, _):
        program.send_signal(signal.SIGTERM)
        assert ended(program) == ""


# --- a hostile house --------------------------------------------------------------------------------------------------


def is_let_in(port: int) -> bool:
    with upgraded(port) as peer:
        return peer.status == 101


def eventually(true: Callable[[], bool]) -> bool:
    """The end of a connection reaches the server a moment later."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with suppress(Cut, OSError):
            return true()
        time.sleep(0.05)
    return False


def test_a_server_without_files_left_goes_on_serving_and_takes_new_clients_later(tmp_path: Path) -> None:
    with started(*serve(tmp_path, "--drain", "1"), files=40) as (program, port), upgraded(port) as early:
        early.until("connected")
        crowd = [plug(port) for _ in range(80)]
        try:
            for number in range(20):
                early.send("echo", number)
                assert early.until("echo")["content"] == number
        finally:
            for sock in crowd:
                sock.close()
        assert eventually(lambda: is_let_in(port))
        program.send_signal(signal.SIGTERM)
        _, said = program.communicate(timeout=PATIENCE)
        assert program.returncode == 0
        assert said.count("\n") < 100, "a full table of files fills the disk with log lines"


def test_a_log_that_nobody_reads_any_more_does_not_stop_the_server(tmp_path: Path) -> None:
    faulty = "from session_server import Room, on\nclass Faulty(Room):\n    @on('x')\n    def x(self, client): 1 / 0"
    Path(tmp_path, "faulty.py").write_text(faulty, encoding="utf-8")
    with started(*serve(tmp_path)) as (program, port), upgraded(port, "/session/faulty") as peer:
        assert program.stderr is not None and program.stdout is not None
        program.stderr.close()
        program.stdout.close()
        for _ in range(15):
            peer.send("x")
        with plug(port) as sock:
            sock.sendall(request("/status", {"Host": "localhost"}))
            totals = read_answers(sock)[0].json["totals"]
            assert totals["clients"] == 1
        program.send_signal(signal.SIGTERM)
        assert peer.closed() in {1012, CUT}
        peer.close(1012)
        assert program.wait(PATIENCE) == 0
        program.stderr = program.stdout = None


@pytest.mark.parametrize("flags", [["--port", "abc"], ["--log-format", "xml"], ["--nonsense"], ["--drain"], ["stray"]])
def test_a_flag_that_cannot_be_read_is_one_line_too(tmp_path: Path, flags: list[str]) -> None:
    said = CliRunner().invoke(main, [*serve(tmp_path), *flags])
    assert said.exit_code == 2 and said.stdout == ""
    assert said.stderr.count("\n") == 1 and flags[0] in said.stderr


@pytest.mark.parametrize("value", ["abc", "-1", "70000"])
def test_a_bad_port_in_the_environment_is_one_line_too(tmp_path: Path, value: str) -> None:
    said = CliRunner().invoke(main, ["serve", "--pieces", str(tmp_path)], env={"PORT": value})
    assert said.exit_code == 2 and said.stderr.count("\n") == 1 and value in said.stderr


@pytest.mark.parametrize("value", ["inf"])
def test_a_drain_without_an_end_is_refused_or_works(tmp_path: Path, value: str) -> None:
    flags = serve(tmp_path, "--drain", value)
    program = subprocess.Popen([PROGRAM, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert program.stdout is not None
    if program.stdout.readline():
        program.send_signal(signal.SIGTERM)
    _, said = program.communicate(timeout=PATIENCE)
    assert program.returncode in {0, 2} and "Traceback" not in said


def test_development_says_where_to_look(tmp_path: Path) -> None:
    Path(tmp_path, "field.html").write_text("<title>field</title>", encoding="utf-8")
    for command in ([PROGRAM, "dev"], [str(Path(PROGRAM).with_name("ac-session"))]):
        program = subprocess.Popen(
            [*command, str(tmp_path), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert program.stdout is not None
        try:
            match = re.fullmatch(r"session-server is ready on (http://localhost:(\d+))\n", program.stdout.readline())
            assert match and f"{match[1]}/field" in program.stdout.readline()
            for host in ("127.0.0.1", "::1"):
                try:
                    sock = socket.create_connection((host, int(match[2])), 5)
                except OSError:
                    assert host == "::1", "not on loopback"
                    continue
                with sock:
                    sock.sendall(request("/field", {"Host": "localhost"}))
                    assert read_answers(sock)[0].text == "<title>field</title>"
        finally:
            program.send_signal(signal.SIGINT)
            _, said = program.communicate(timeout=PATIENCE)
        assert program.returncode == 0 and "Traceback" not in said
