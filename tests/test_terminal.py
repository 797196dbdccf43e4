"""`ac-session` in a terminal, in Emacs, in CI, and when the terminal is closed: the same lines, and a clean end."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path

import pytest

from serving import V1, Peer, connect, serving, upgrade_head
from session_server.logs import make_log, takes_colors

PROGRAM = str(Path(sys.executable).with_name("ac-session"))
PATIENCE = 15.0  # seconds
ESCAPE = "\x1b"
ENDLESS = """
from session_server import Room, on

class Endless(Room):
    @on("go")
    def go(self, client):
        client.send("gone")
        self._core.outbox.flush(0)
        while True:
            pass
"""


class Terminal:
    """The program, and all that it has written."""

    def __init__(self, program: subprocess.Popen[bytes], screen: int) -> None:
        self.program, self.screen, self.text = program, screen, ""
        self.port = int(self.reads(r"ready on http://localhost:(\d+)\s")[1])
        self.reads("Stop with Ctrl")

    def reads(self, pattern: str) -> re.Match[str]:
        """Waits until it is written."""
        while not (found := re.search(pattern, self.text)):
            more = b""
            with suppress(OSError):  # EIO: nobody writes to the terminal any more
                more = os.read(self.screen, 65536)
            assert more, f"no {pattern!r} in {self.text!r}"
            self.text += more.decode()
        return found

    def type(self, keys: bytes) -> None:
        os.write(self.screen, keys)

    def ends(self) -> int:
        return self.program.wait(PATIENCE)

    def join(self, room: str) -> Peer:
        sock = connect(self.port)
        sock.sendall(upgrade_head(f"/session/{room}", f"localhost:{self.port}", V1))
        peer = Peer(sock)
        peer.send("session:join", {"name": "Zoë\x1b[2J"})
        peer.until("session:welcome")
        return peer


@contextmanager
def terminal(
    folder: Path, *flags: str, tty: bool = True, before: tuple[str, ...] = (), **variables: str
) -> Iterator[Terminal]:
    """`tty`: it is in the foreground of a terminal of its own, as with a shell; else it writes to a pipe."""
    clean = {name: value for name, value in os.environ.items() if name not in {"PORT", "NO_COLOR"}}
    screen, its = pty.openpty() if tty else os.pipe()
    program = subprocess.Popen(
        [*(["setsid", "-c"] if tty else []), *before, PROGRAM, str(folder), "--port", "0", *flags],
        stdin=its if tty else subprocess.DEVNULL, stdout=its, stderr=its,
        env=clean | {"TERM": "xterm-256color", "XDG_STATE_HOME": str(folder)} | variables,
    )  # fmt: skip
    os.close(its)
    try:
        yield Terminal(program, screen)
    finally:
        with suppress(OSError):
            os.close(screen)
        if program.poll() is None:
            program.kill()
        program.wait()


def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    with terminal(tmp_path) as it, it.join("field") as peer:
        it.type(b"\x03")
        assert peer.closed() == 1012
        peer.close(1012)
        assert it.ends() == 0


def test_ctrl_c_ends_a_piece_that_never_comes_back_and_says_where_it_was(tmp_path: Path) -> None:
    Path(tmp_path, "endless.py").write_text(ENDLESS, encoding="utf-8")
    with terminal(tmp_path) as it, it.join("endless") as peer:
        peer.send("go")
        peer.until("gone")
        it.type(b"\x03")
        it.reads(r"stopped in the middle of.*endless\.py:\d+")
        assert it.ends() in {0, 130}  # uvloop ends the connection by which it came, and goes on to stop


def test_a_closed_terminal_ends_it_too(tmp_path: Path) -> None:
    with terminal(tmp_path) as it, it.join("field") as peer:
        os.close(it.screen)
        assert peer.closed() == 1012
        peer.close(1012)
        assert it.ends() == 0


def ignores_hangup(process: int) -> bool:
    found = re.search(r"^SigIgn:\s*([0-9a-f]+)$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) & 1)


def test_nohup_lets_it_go_on_without_its_terminal(tmp_path: Path) -> None:
    with terminal(tmp_path, tty=False, before=("nohup",)) as it:
        assert ignores_hangup(it.program.pid)  # the server below it has a session of its own, without a terminal
        it.program.send_signal(signal.SIGTERM)
        assert it.ends() == 0


@pytest.mark.parametrize(
    ("tty", "variables"),
    [(True, {}), (True, {"TERM": "dumb", "INSIDE_EMACS": "30.1"}), (True, {"NO_COLOR": "1"}), (False, {"CI": "true"})],
    ids=["terminal", "emacs", "no-color", "pipe"],
)
def test_the_lines_are_the_same_everywhere_and_colored_only_where_that_is_wanted(
    tmp_path: Path, tty: bool, variables: dict[str, str]
) -> None:
    with terminal(tmp_path, "--verbose", tty=tty, **variables) as it:
        with it.join("field") as peer:
            peer.send("session:leave")
            it.reads("left.*reason.*left")
        it.program.send_signal(signal.SIGINT)
        assert it.ends() == 0
        assert (ESCAPE in it.text) is (tty and not variables)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", it.text).replace("\r\n", "\n")
        assert re.search(
            r"^\d\d:\d\d:\d\d \[debug +\] joined +room=field client=1 name=Zoë\[2J link=websocket", plain, re.M
        )
        assert re.search(r"^\d\d:\d\d:\d\d \[debug +\] left +room=field client=1 reason=left *$", plain, re.M)


def test_a_terminal_of_another_encoding_shows_what_it_can(tmp_path: Path) -> None:
    Path(tmp_path, "日本.html").write_text("<title>日本</title>", encoding="utf-8")
    with terminal(tmp_path, tty=False, PYTHONIOENCODING="latin-1") as it:
        assert "/\\u65e5\\u672c\n" in it.text
        it.program.send_signal(signal.SIGTERM)
        assert it.ends() == 0


def test_who_joins_drops_resumes_and_leaves_is_logged_with_room_and_client() -> None:
    with serving() as it:
        with it.join("/session/field", V1, {"name": "ada"}) as peer:
            peer.reset()
        it.until(lambda: any(event == "dropped" for _, event, _ in it.log.entries))
        with it.join("/session/field", V1, {"resume": peer.welcome["resume"]}) as peer:
            peer.send("session:leave")
            peer.closed()
        it.until(lambda: any(event == "left" for _, event, _ in it.log.entries))
        lines = [
            (event, fields["room"], fields["client"]) for level, event, fields in it.log.entries if level == "debug"
        ]
        assert lines == [(event, "field", 1) for event in ("joined", "dropped", "resumed", "left")]


def test_debug_lines_are_for_the_verbose_and_json_is_a_line_each() -> None:
    for verbose in (False, True):
        stream = StringIO()
        log = make_log("json", verbose, stream).bind(room="field")
        log.debug("joined", client=7)
        log.info("piece loaded")
        told = [json.loads(line) for line in stream.getvalue().splitlines()]
        assert [line["event"] for line in told] == (["joined", "piece loaded"] if verbose else ["piece loaded"])
        assert all(line["room"] == "field" for line in told)


class Screen(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "colors"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, False)],
)
def test_colors_are_for_terminals_that_know_them(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], colors: bool
) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert takes_colors(Screen()) is colors
    assert not takes_colors(StringIO())
