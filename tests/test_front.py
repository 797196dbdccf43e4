"""The front of the one port: every request head is judged, upgrades go one way, all else the other, one at a time.

Raw sockets against a running server; where the moment matters, a wire in memory. Hostile heads are rows of
attacks/http.json and attacks/slow.json.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from faults import Wire, trickling
from serving import (
    TEXT,
    V1,
    Answer,
    Log,
    Peer,
    Serving,
    masked,
    read_answers,
    receive,
    request,
    serving,
    upgrade_head,
)
from session_server.config import Config
from session_server.server import ANSWER_WITHIN, HEAD_WITHIN, IDLE_FOR, MAX_BODY, MAX_HEAD, Front, Server

HEALTH = request("/health", {"Host": "localhost"})
PIECES = {"big.js": "x" * 3_000_000, "page.html": "<title>page</title>"}


@pytest.fixture(scope="module", params=["fastest loop", "asyncio's loop"])
def it(request: pytest.FixtureRequest) -> Iterator[Serving]:
    """A loop's transports differ in what they do at the end of a connection."""
    with serving(PIECES, plain=request.param == "asyncio's loop") as served:
        yield served


# --- heads in pieces --------------------------------------------------------------------------------------------------


def with_front(play: Callable[[Server, Wire], Awaitable[None]]) -> None:
    """A front on a wire in memory, behind which aiohttp is real."""

    async def run() -> None:
        server = Server(Config(pieces=str(Path(__file__).parent / "vectors")), Log())
        await server.start([], [])
        wire = Wire()
        front = Front(server)
        wire.set_protocol(front)
        front.connection_made(wire)
        try:
            await play(server, wire)
            assert not server.log.faults and not server.rooms.totals.faults
        finally:
            await server.close()
            wire.tick()

    asyncio.run(run())


async def turns(wire: Wire, count: int = 12) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
        if not wire.lost:
            wire.tick()


def statuses(wire: Wire) -> list[int]:
    return [int(part[:3]) for part in bytes(wire.sent).split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (HEALTH, [200]),
        (b"\r\n\r\n" + HEALTH, [200]),
        (request("/health", {"Host": "a", "Content-Length": "5"}, "POST") + b"hello" + HEALTH, [405, 200]),
        (upgrade_head("/session/field", "localhost"), [101]),
        (HEALTH + upgrade_head("/session/field", "localhost") + masked(TEXT, b'{"type":"x"}'), [200, 101]),
        (request("/x", {"Host": "a", "Transfer-Encoding": "chunked"}, "POST"), [411]),
    ],
)
def test_a_head_may_be_split_anywhere(data: bytes, wanted: list[int]) -> None:
    async def play(server: Server, wire: Wire) -> None:
        for at in range(len(data) + 1):
            fresh = Wire()
            front = Front(server)
            fresh.set_protocol(front)
            front.connection_made(fresh)
            fresh.feed(data[:at])
            await turns(fresh)
            if not fresh.is_closing():
                fresh.feed(data[at:])
            await turns(fresh)
            assert statuses(fresh) == wanted, f"split at {at}: {bytes(fresh.sent)!r}"
            fresh.crash()
            fresh.tick()
        assert not server.fronts - {wire.get_protocol()} and not server.websockets.connections

    with_front(play)


def test_a_head_byte_by_byte_is_a_head() -> None:
    async def play(server: Server, wire: Wire) -> None:
        for byte in HEALTH * 2:
            wire.feed(bytes([byte]))
        await turns(wire)
        assert statuses(wire) == [200, 200]

    with_front(play)


def test_what_comes_behind_an_upgrade_is_the_websockets_even_if_it_looks_like_a_request() -> None:
    """Also in the turn of the loop in which an answer before it ends."""

    async def play(server: Server, wire: Wire) -> None:
        front = wire.get_protocol()
        assert isinstance(front, Front)
        answered, front_answered = [], front.answered
        payload = b'{"type":"x","content":"' + HEALTH.replace(b"\r\n", b"\\r\\n") + b'"}'
        frame = masked(TEXT, payload) + masked(TEXT, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = upgrade_head("/session/field", "localhost")
        wire.feed(HEALTH + head[:40])

        def seize() -> None:
            front_answered()
            answered.append(True)
            wire.feed(head[40:] + frame)  # as uvloop does: read before what was called for soon

        server_log = server.new_http  # keeps the real one alive
        Front.answered, before = (lambda self: seize()), Front.answered  # type: ignore[method-assign]
        try:
            await turns(wire)
        finally:
            Front.answered = before  # type: ignore[method-assign]
        await turns(wire)
        assert answered == [True] and server_log is not None
        assert statuses(wire) == [200, 101], bytes(wire.sent)
        assert server.rooms.totals.messages_in == 1

    with_front(play)


# --- one connection, many requests ------------------------------------------------------------------------------------


def test_a_connection_serves_many_requests_one_after_another(it: Serving) -> None:
    with it.tcp() as sock:
        for _ in range(3):
            for target, status in (("/health", 200), ("/session/field", 200), ("/page", 200), ("/nothing", 404)):
                sock.sendall(request(target, {"Host": it.host}))
                assert read_answers(sock)[0].status == status


def test_requests_sent_at_once_are_answered_in_their_order(it: Serving) -> None:
    targets = ["/health", "/page", "/session/a", "/nothing", "/session/%00", "/status"] * 4
    with it.tcp() as sock:
        sock.sendall(b"".join(request(target, {"Host": it.host}) for target in targets))
        found = read_answers(sock, len(targets))
    assert [a.status for a in found] == [200, 200, 200, 404, 400, 200] * 4
    assert [a.json["room"] for a in found if b'"room"' in a.body] == ["a"] * 4


def test_a_large_answer_does_not_mix_with_the_next(it: Serving) -> None:
    with it.tcp(receive_buffer=8192) as sock:
        sock.sendall(request("/big.js", {"Host": it.host}) + HEALTH + request("/big.js", {"Host": it.host}))
        found = read_answers(sock, 3)
    assert [len(a.body) for a in found] == [3_000_000, 3, 3_000_000]


def test_a_body_may_come_late_and_in_pieces(it: Serving) -> None:
    with it.tcp() as sock:
        sock.sendall(request("/health", {"Host": it.host, "Content-Length": "10"}, "POST") + b"he")
        it.settle(sock)
        sock.sendall(b"llo")
        it.settle(sock)
        sock.sendall(b"world" + HEALTH)
        assert [a.status for a in read_answers(sock, 2)] == [405, 200]


def test_a_body_of_the_largest_size_is_taken_and_thrown_away(it: Serving) -> None:
    with it.tcp() as sock:
        sock.sendall(request("/health", {"Host": it.host, "Content-Length": str(MAX_BODY)}, "POST"))
        sock.sendall(bytes(MAX_BODY) + HEALTH)
        assert [a.status for a in read_answers(sock, 2)] == [405, 200]


def test_a_body_that_is_too_large_is_refused_and_its_sender_can_read_that(it: Serving) -> None:
    """It may be in the middle of sending: a connection closed at once would be reset, and the answer lost."""
    size = 3 * MAX_BODY
    with it.tcp() as sock:
        sock.sendall(request("/health", {"Host": it.host, "Content-Length": str(size)}, "POST") + bytes(200_000))
        it.until(lambda: not it.server.fronts)
        assert read_answers(sock)[0].status == 413


@pytest.mark.parametrize("size", [MAX_HEAD, MAX_HEAD + 1])
def test_the_largest_head(it: Serving, size: int) -> None:
    filler = size - len(request("/session/a", {"Host": it.host, "X-A": "", "X-B": ""}))
    head = request("/session/a", {"Host": it.host, "X-A": "a" * (filler // 2), "X-B": "b" * (filler - filler // 2)})
    assert len(head) == size
    assert it.ask(head)[0].status == (431 if size > MAX_HEAD else 400 if filler // 2 > 8190 else 200)


def test_a_server_with_nothing_to_say_says_so(it: Serving) -> None:
    with it.tcp() as sock:
        sock.sendall(request("/favicon.ico", {"Host": it.host}) + HEALTH)
        assert [a.status for a in read_answers(sock, 2)] == [204, 200]


def test_head_has_no_body(it: Serving) -> None:
    with it.tcp() as sock:
        sock.sendall(request("/session/field", {"Host": it.host}, "HEAD"))
        answer = read_answers(sock, head_only=True)[0]
        assert answer.status == 200 and int(answer.headers["content-length"]) > 100
        sock.sendall(HEALTH)
        assert read_answers(sock)[0].text == "ok\n"


def test_http_1_0_is_answered_and_closed(it: Serving) -> None:
    with it.tcp() as sock:
        sock.sendall(request("/health", {"Host": it.host}, version="HTTP/1.0"))
        assert read_answers(sock)[0].status == 200 and receive(sock) == b""


# --- upgrades ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 1, 5])
def test_an_upgrade_may_come_after_requests(it: Serving, before: int) -> None:
    with it.tcp() as sock:
        for _ in range(before):
            sock.sendall(HEALTH)
            assert read_answers(sock)[0].status == 200
        sock.sendall(upgrade_head("/session/field", it.host, V1))
        with Peer(sock) as peer:
            assert peer.status == 101
            peer.send("session:join", {})
            assert peer.until("session:welcome")["content"]["room"] == "field"


def test_messages_may_come_in_the_same_segment_as_the_upgrade(it: Serving) -> None:
    with it.tcp() as sock:
        join = masked(TEXT, b'{"type":"session:join","content":{}}')
        ping = masked(TEXT, b'{"type":"session:ping","content":{"t":7}}')
        sock.sendall(HEALTH + upgrade_head("/session/field", it.host, V1) + join + ping)
        buffer = b""
        while b"session:pong" not in buffer:
            buffer += receive(sock)
        assert buffer.startswith(b"HTTP/1.1 200 OK\r\n") and b"HTTP/1.1 101 " in buffer


def test_a_refused_upgrade_ends_the_connection(it: Serving) -> None:
    with it.tcp() as sock:
        sock.sendall(upgrade_head("/nothing", it.host) + HEALTH)
        answer = read_answers(sock)[0]
        assert answer.status == 404 and answer.headers["connection"] == "close"
        assert answer.headers["content-type"] == "text/plain; charset=utf-8" and answer.text.count("\n") == 1
        assert receive(sock) == b""


def test_a_draining_server_answers_but_lets_nobody_in() -> None:
    with serving() as it:
        it.call(lambda: setattr(it.server, "draining", True))
        with it.upgrade("/session/field") as peer:
            assert peer.status == 503
        assert it.get("/health").status == 200
        told = it.get("/session/field").json
        assert told["state"] == "Draining" and told["retry"] > 0
        assert it.get("/session/field?service=undefined").status == 503
        it.call(lambda: setattr(it.server, "draining", False))


# --- deadlines --------------------------------------------------------------------------------------------------------


def ends(it: Serving, sock: socket.socket, after: float) -> None:
    """The connection is kept until just before `after`, and not beyond."""
    it.settle(sock)
    it.advance(after - 1.5)
    assert it.call(lambda: len(it.server.fronts)) == 1, "cut too early"
    it.advance(3)
    assert receive(sock) == b""
    it.until(lambda: not it.server.fronts)


def test_a_head_must_end_in_time_and_more_of_it_does_not_help(it: Serving) -> None:
    before = it.refused["slow_head"]
    with it.tcp() as sock, trickling(Peerless(sock), b"GET /health HTTP/1.1\r\nX: " + b"a" * 100, 0.5):
        it.settle(sock)
        ends(it, sock, HEAD_WITHIN)
    assert it.refused["slow_head"] == before + 1


def test_a_connection_without_a_request_is_closed_in_the_end(it: Serving) -> None:
    with it.tcp() as sock:
        sock.sendall(HEALTH)
        assert read_answers(sock)[0].status == 200
        ends(it, sock, IDLE_FOR)


def test_an_answer_that_nobody_takes_is_cut(it: Serving) -> None:
    before = it.refused["slow_answer"]
    with it.tcp(receive_buffer=4096) as sock:
        sock.sendall(request("/big.js", {"Host": it.host}))
        it.settle(sock)
        it.advance(ANSWER_WITHIN - 2)
        assert it.call(lambda: len(it.server.fronts)) == 1
        it.advance(4)
        it.until(lambda: not it.server.fronts)
    assert it.refused["slow_answer"] == before + 1


def test_a_websocket_is_not_held_to_the_deadlines_of_requests(it: Serving) -> None:
    with it.join() as peer:
        for _ in range(10):
            it.advance(10, 10)
            peer.send("still here")
            it.settle(peer.sock)
        assert it.call(lambda: len(it.server.websockets.connections)) == 1


class Peerless:
    """A bare socket, for faults.trickling."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send_bytes(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError:
            return


# --- ends -------------------------------------------------------------------------------------------------------------


def test_who_closes_a_half_still_gets_the_answer_and_then_the_connection_ends(it: Serving) -> None:
    for target, size in (("/health", 3), ("/big.js", 3_000_000)):
        with it.tcp() as sock:
            sock.sendall(request(target, {"Host": it.host}))
            sock.shutdown(socket.SHUT_WR)
            assert len(read_answers(sock)[0].body) == size
            assert receive(sock) == b"", "the connection is kept for a client that can send nothing more"
    it.until(lambda: not it.server.fronts)


def test_half_a_request_and_a_half_close_is_the_end(it: Serving) -> None:
    with it.tcp() as sock:
        sock.sendall(HEALTH[:20])
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock) == b""


def test_who_goes_while_answered_leaves_nothing_behind(it: Serving) -> None:
    for _ in range(20):
        with it.tcp(receive_buffer=4096) as sock:
            sock.sendall(request("/big.js", {"Host": it.host}) * 3)
            it.until(partial(it.has_taken, sock))
    it.until(lambda: not it.server.fronts)
    assert it.call(lambda: [len(rota) for rota in (it.server.heads, it.server.idle, it.server.answering)]) == [0, 0, 0]


def test_many_connections_in_all_states_leave_nothing_behind(it: Serving) -> None:
    kept = [it.tcp() for _ in range(60)]
    for number, sock in enumerate(kept):
        part = (b"", HEALTH[:9], HEALTH, HEALTH + b"GET", upgrade_head("/session/a", it.host), HEALTH * 3)[number % 6]
        sock.sendall(part)
    it.settle(*kept)
    for sock in kept:
        sock.close()
    it.until(lambda: not it.server.fronts and not it.server.websockets.connections)
    assert it.call(lambda: [len(rota) for rota in (it.server.heads, it.server.idle, it.server.answering)]) == [0, 0, 0]


def test_a_pipelining_client_that_reads_nothing_is_not_read_for_ever(it: Serving) -> None:
    """What is asked ahead of its turn is kept up to a size, then stays in the kernel."""
    with it.tcp(receive_buffer=4096) as sock:
        sock.settimeout(0.3)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 40_000_000:
                sent += sock.send(request("/big.js", {"Host": it.host}) * 500)
        kept = it.call(lambda: max(len(front._buffer) for front in it.server.fronts))
        assert kept <= MAX_HEAD + 256 * 1024
    it.until(lambda: not it.server.fronts)


def test_who_speaks_tls_to_a_plain_port_is_told_at_once(it: Serving) -> None:
    with it.tcp() as sock, pytest.raises(ssl.SSLError, match="WRONG_VERSION_NUMBER|wrong version number"):
        ssl.create_default_context().wrap_socket(sock, server_hostname="localhost")


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(folder / "cert.pem"), str(folder / "key.pem")


@pytest.mark.parametrize("plain", [False, True])
def test_requests_and_websockets_over_tls(certificate: tuple[str, str], plain: bool) -> None:
    cert, key = certificate
    client = ssl.create_default_context(cafile=cert)
    with serving(PIECES, plain=plain, tls_cert=cert, tls_key=key) as it:
        assert it.server.url == f"https://localhost:{it.port}"
        with client.wrap_socket(it.tcp(), server_hostname="localhost") as sock:
            sock.sendall(request("/session/field", {"Host": f"localhost:{it.port}"}))
            told = read_answers(sock)[0].json
            assert told["url"] == f"https://localhost:{it.port}"
            assert told["session"] == f"wss://localhost:{it.port}/session/field"
            sock.sendall(request("/big.js", {"Host": "localhost"}))
            assert len(read_answers(sock)[0].body) == 3_000_000
            sock.sendall(upgrade_head("/session/field", it.host))
            peer = Peer(sock)
            assert peer.status == 101 and json.loads(peer.until("connected")["content"])["playerCount"] == 1
            peer.send("x" * 200, "y" * 40_000)
            assert peer.until("x" * 200)["content"] == "y" * 40_000
            peer.close(1000)
            assert peer.closed() == 1000 and receive(sock) == b""
        it.until(lambda: not it.server.websockets.connections and not it.server.fronts)


def test_plain_text_on_a_tls_port_and_half_a_handshake_are_dropped(
    certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ten seconds for a handshake are those of a head: shortened here, since no clock of ours drives TLS."""
    cert, key = certificate
    monkeypatch.setattr("session_server.server.HEAD_WITHIN", 0.5)
    with serving(tls_cert=cert, tls_key=key) as it:
        with it.tcp() as sock:
            sock.sendall(HEALTH)
            assert b"HTTP" not in receive(sock)
        with it.tcp() as silent, it.tcp() as half:
            half.sendall(bytes.fromhex("16030100a5010000a10303"))
            silent.settimeout(2)
            half.settimeout(2)
            assert receive(silent) == b"" and receive(half) == b""


def test_answers_are_one_write_each() -> None:
    """Small answers do not wait for an acknowledgement of their head."""

    async def play(server: Server, wire: Wire) -> None:
        wire.feed(HEALTH)
        await turns(wire)
        assert statuses(wire) == [200] and wire.writes <= 2

    with_front(play)


def test_an_answer_says_what_it_is(it: Serving) -> None:
    answer: Answer = it.get("/health")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8" and answer.text == "ok\n"
