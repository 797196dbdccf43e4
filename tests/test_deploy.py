"""The files of deploy/, read by the programs they are for; skipped, and said so, where a program is not installed."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from browser import chromium, in_chromium
from proxy import DEPLOY, Proxy, caddy, installed
from serving import PATIENCE, PING, PONG, Peer, Serving, masked, serving, upgrade_head
from session_server.config import Config, flags
from session_server.port import bind_udp

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, **more: str) -> str:
    """What it says. Fails with that, unless it exits with 0."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | more, timeout=15, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# --- Caddy ------------------------------------------------------------------------------------------------------------

PIECES = {"field.html": "<!doctype html>field"}


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, Proxy]]:
    """A server whose only trusted proxy is 127.0.0.1, so that a client of 127.0.0.2 can be told from it."""
    with (
        serving(PIECES, trusted_proxy=("127.0.0.1/32",)) as it,
        caddy(it.port, tmp_path_factory.mktemp("caddy")) as proxy,
    ):
        yield it, proxy


@pytest.mark.parametrize("file", ["Caddyfile", "migration.Caddyfile"])
def test_the_caddyfile_is_valid_and_formatted(file: str, tmp_path: Path) -> None:
    program = installed("caddy")
    said = run(program, "validate", "--config", DEPLOY / file, "--adapter", "caddyfile", HOME=str(tmp_path))
    assert "Valid configuration" in said and '"level":"warn"' not in said
    assert run(program, "fmt", DEPLOY / file) == (DEPLOY / file).read_text()


def test_both_servers_side_by_side_each_get_what_is_theirs(tmp_path: Path) -> None:
    names = ("localhost", "udp.localhost")  # this server's, and the former one's
    with ExitStack() as stack:
        it = stack.enter_context(serving(origin=("https://site.example",)))
        places = {"FORMER": f"127.0.0.1:{stack.enter_context(former())}", "CHATS": "http://127.0.0.2:0"}
        proxy = stack.enter_context(caddy(it.port, tmp_path, "migration.Caddyfile", names, **places))
        for target in ("/status-stream", "/module/lib/disk.mjs", "/chat/log", "/machines?role=viewer", "/ff1/cast"):
            assert proxy.ask(target).text == "the former server", target
        for target in ("/health", "/session/field", "/status", "/session/status-stream"):
            assert proxy.ask(target).text != "the former server", target
        with proxy.join("/") as peer:
            assert peer.until("connected")
        cached = {"Content-Length": "0", "Origin": "https://site.example"}  # a page that still knows the former name
        assert proxy.ask("/.wrtc/v2/connections", "POST", cached, names[1]).json["localDescription"]


@contextmanager
def former() -> Iterator[int]:
    """The port of a server that says only who it is."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said = b"the former server"
            self.send_response(200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_discovery_through_caddy_names_the_proxy(behind: tuple[Serving, Proxy]) -> None:
    _, proxy = behind
    told = proxy.ask("/session/field~blue?service=undefined").json
    assert told["url"] == told["udp"] == f"https://{proxy.host}" and told["state"] == "Ready"
    assert told["session"] == f"wss://{proxy.host}/session/field~blue"
    for path, status in (("/field", 200), ("/session.js", 200), ("/nothing", 404), ("/session/%00", 400)):
        assert proxy.ask(path).status == status, path


def test_a_websocket_through_caddy_plays_and_stays(behind: tuple[Serving, Proxy]) -> None:
    it, proxy = behind
    with proxy.join("/session/field", Origin=f"https://{proxy.host}") as peer:
        assert peer.status == 101 and peer.until("connected")
        for seconds in (4, 15, 15):
            it.advance(seconds)  # the server's ping; without a byte by the next it would be the end
            assert peer.frame() == (PING, b"")
            peer.send_bytes(masked(PONG))
            peer.send("mine", "x" * 30_000)
            assert peer.until("mine")["content"] == "x" * 30_000


def test_caddy_says_whose_address_it_is_and_the_client_cannot(behind: tuple[Serving, Proxy]) -> None:
    """An address counts for limits; who could choose one would have none."""
    _, proxy = behind
    for source in ("127.0.0.2", "127.0.0.3"):
        with proxy.join("/session/field", source, X_Forwarded_For="203.0.113.9", X_Forwarded_Proto="http") as peer:
            assert json.loads(peer.until("connected")["content"])["ip"] == source
    told = proxy.ask("/session/field", headers={"X-Forwarded-Proto": "http", "X-Forwarded-Host": "evil.example"}).json
    assert told["url"] == f"https://{proxy.host}"


def test_who_comes_past_the_proxy_is_not_believed(behind: tuple[Serving, Proxy]) -> None:
    it, _ = behind
    sock = socket.create_connection(("127.0.0.1", it.port), PATIENCE, ("127.0.0.2", 0))
    sock.sendall(upgrade_head("/session/field", it.host, headers={"X-Forwarded-For": "203.0.113.9"}))
    with Peer(sock) as peer:
        assert json.loads(peer.until("connected")["content"])["ip"] == "127.0.0.2"


def test_a_page_of_another_site_is_refused_through_caddy_too(behind: tuple[Serving, Proxy]) -> None:
    _, proxy = behind
    with proxy.join("/session/field", Origin="https://elsewhere.example") as peer:
        assert peer.status == 403


def test_signalling_through_caddy(behind: tuple[Serving, Proxy]) -> None:
    _, proxy = behind
    offer = proxy.ask("/.wrtc/v2/connections", "POST", {"Content-Length": "0"})
    assert offer.status == 200 and offer.json["localDescription"]["type"] == "offer"
    assert offer.headers["access-control-allow-origin"] == "*"


@in_chromium
async def test_a_browser_behind_caddy_has_both_links(behind: tuple[Serving, Proxy]) -> None:
    """TCP by the proxy, with HTTP/2 where it can; UDP beside it, straight to the server."""
    _, proxy = behind
    context = await chromium().browser.new_context(ignore_https_errors=True)
    page = await context.new_page()
    await page.goto(f"https://{proxy.host}/field")
    assert await page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol") == "h2"
    offers = """async (body) => {
        const asked = { method: "POST", headers: { "Content-Type": "application/json" }, body };
        return (await fetch("/.wrtc/v2/connections", asked)).status;
    }"""
    assert [await page.evaluate(offers, body) for body in (None, "{}")] == [200, 200]
    kinds = await page.evaluate("""async () => {
        const { session } = await import("/session.js");
        const room = await session("field");
        while (!room.links.some((link) => link.kind === "datachannel" && link.active))
            await new Promise((resolve) => setTimeout(resolve, 20));
        const kinds = room.links.map((link) => link.kind);
        room.leave();
        return kinds;
    }""")
    await context.close()
    assert sorted(kinds) == ["datachannel", "websocket"]


@pytest.mark.parametrize(
    ("settings", "everywhere"),
    [
        ({"host": "127.0.0.1", "public_url": "https://play.example"}, True),
        ({"host": "localhost", "public_url": "https://play.example"}, True),
        ({"host": "127.0.0.1"}, False),
        ({"host": "127.0.0.1", "public_url": "http://localhost:8889"}, False),
        ({"host": "127.0.0.1", "public_url": "https://play.example", "development": True}, False),
    ],
)
def test_udp_is_open_where_tcp_is_left_to_a_proxy(settings: dict[str, Any], everywhere: bool) -> None:
    """Behind a proxy everybody binds to loopback; with UDP there too, each client would go on by WebSocket, unsaid."""
    sockets = bind_udp(Config(port=0, **settings), 0)
    addresses = {sock.getsockname()[0] for sock in sockets}
    for sock in sockets:
        sock.close()
    assert ("0.0.0.0" in addresses) == everywhere, addresses


# --- systemd, nft, fish, container ------------------------------------------------------------------------------------


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a program that exists on this machine: systemd looks for it."""
    installed("systemd-analyze")
    text = (DEPLOY / "session-server.service").read_text()
    line = "ExecStart=/opt/session-server/venv/bin/session-server serve"
    assert line in text
    file = tmp_path / "session-server.service"
    file.write_text(text.replace(line, f"ExecStart={sys.executable} serve"))
    return file


def test_systemd_reads_the_unit_without_a_word(unit: Path) -> None:
    assert run("systemd-analyze", "verify", unit) == ""


def test_the_unit_is_hardened(unit: Path) -> None:
    said = run("systemd-analyze", "security", "--offline=true", unit)
    exposure = re.search(r"Overall exposure level for session-server.service: ([\d.]+)", said)
    assert exposure and float(exposure[1]) < 2, said[-200:]  # of 10; a unit without any of it has 9.6


def test_the_units_settings_are_settings() -> None:
    lines = (DEPLOY / "session-server.service").read_text().splitlines()
    settings = dict(
        line.removeprefix("Environment=SESSION_SERVER_").split("=", 1) for line in lines if "=SESSION_" in line
    )
    assert settings.keys() <= {name.upper() for name, *_ in flags()}
    config = Config(**{name.lower(): value for name, value in settings.items()})
    stop, files = (int(line.partition("=")[2]) for line in lines if line.startswith(("TimeoutStopSec", "LimitNOFILE")))
    assert stop > config.drain and files > config.max_clients


def test_the_firewall_rules_are_rules() -> None:
    program = installed("nft")
    if os.geteuid() != 0:
        pytest.skip("nft looks at rules only as root")
    rules = (DEPLOY / "firewall.nft").read_text()
    table = (
        f"table inet filter {{\nchain input {{\ntype filter hook input priority filter; policy drop;\n{rules}}}\n}}\n"
    )
    done = subprocess.run([program, "-c", "-f", "-"], input=table, capture_output=True, text=True)
    if "Operation not permitted" in done.stderr:
        pytest.skip("nft may not look at rules on this machine")
    assert done.returncode == 0, done.stderr
    assert "udp dport 8889 accept" in rules


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A clone of session-server whose ac-session says how it was called."""
    program = tmp_path / ".venv" / "bin" / "ac-session"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$*|$SESSION_SERVER_PIECES|$SESSION_SERVER_TLS"\nexit 7\n')
    program.chmod(0o755)
    return tmp_path


def fish(command: str, **environment: str) -> str:
    program = installed("fish")
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    script = f"source {DEPLOY / 'ac-session.fish'}; {command}; echo $status"
    done = subprocess.run(
        [program, "--no-config", "-c", script], capture_output=True, text=True, env=keep | environment, timeout=15
    )
    return done.stdout + done.stderr


def test_the_fish_function_runs_ac_session_here_with_tls(home: Path) -> None:
    run(installed("fish"), "-n", DEPLOY / "ac-session.fish")
    own = {"SESSION_SERVER_HOME": str(home)}
    assert fish("ac-session", **own) == f"|{home}/pieces|self-signed\n7\n"
    assert fish("ac-session mine --lan", **own) == f"mine --lan|{home}/pieces|self-signed\n7\n"
    assert fish("ac-session", **own, SESSION_SERVER_PIECES="/p", INSIDE_EMACS="29.1") == "|/p|self-signed\n7\n"
    assert fish("ac-session", **own, SESSION_SERVER_TLS_CERT="a.pem") == f"|{home}/pieces|\n7\n"


def test_the_fish_function_says_what_is_missing(home: Path) -> None:
    said = fish("ac-session", SESSION_SERVER_HOME=str(home / "nowhere"))
    assert "set SESSION_SERVER_HOME" in said and "2" in said.splitlines()


def test_the_container_file_copies_what_is_there() -> None:
    """The rest of it is untested, as it says: no engine runs here."""
    text = (DEPLOY / "Containerfile").read_text()
    assert text.startswith("# UNTESTED")
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source


# --- the guides -------------------------------------------------------------------------------------------------------

GUIDES = [ROOT / "docs" / "how-to" / name for name in ("deploy.md", "migrate.md")]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_each_file_that_a_guide_names_exists(guide: Path) -> None:
    named = re.findall(r"`((?:src|deploy|docs|tests)/[\w/.~-]+)`", guide.read_text(encoding="utf-8"))
    assert len(named) > 5
    assert not [name for name in named if not (ROOT / name).exists()]


def test_each_message_that_the_guide_says_is_served_is_known_where_it_says() -> None:
    rows = re.findall(r"^\| (`.+) \| served \| `(src/[\w/.]+)`", GUIDES[1].read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 10
    for types, file in rows:
        code = (ROOT / file).read_text(encoding="utf-8")
        for type in re.findall(r"`([^`]+)`", types):
            known = f'"{type.replace("{piece}", "*")}"' in code
            assert known or type == "content.user.sub", f"{type}, {file}"
