"""The doctor: silent about a healthy server, and for each thing that is broken on purpose the line that names it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from playwright.async_api import Page, expect

from browser import in_chromium, page_fixture  # noqa: F401  (pytest finds the fixture `page` by it)
from client_peer import in_loop
from serving import Serving, serving
from session_server import check, findings, http, probe
from session_server.check import Doctor, Target
from session_server.cli import main
from session_server.findings import Finding, Level, SessionInfo
from session_server.tls import self_signed

ALL = ["tls", "discovery", "cors", "websocket", "round trip", "udp", "datagrams", "geckos", "clock"]
GUARDED = """
from session_server import Refused, Room

class Guarded(Room):
    def on_auth(self, token, data):
        raise Refused("members only")
"""
NAMES = frozenset({"localhost", "127.0.0.1"})


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PINGS", 3)
    monkeypatch.setattr(check, "PING_EVERY", 0.0)
    monkeypatch.setattr(check, "DATAGRAMS", 10)


@pytest.fixture(scope="module")
def site() -> Iterator[Serving]:
    with serving({"guarded": GUARDED}, new_rooms_per_address=0) as served:
        yield served


async def examine(url: str, **options: Any) -> list[Finding]:
    found: list[Finding] = []
    await Doctor(Target.of(url), found.append, **options).run()
    return found


def bad(found: list[Finding]) -> dict[str, str]:
    """What failed, and what was seen."""
    return {finding.check: finding.seen for finding in found if finding.level is Level.FAILED}


def the(found: list[Finding], name: str) -> Finding:
    return next(finding for finding in found if finding.check == name)


# --- a proxy that spoils what passes ----------------------------------------------------------------------------------


@asynccontextmanager
async def spoiled(
    site: Serving,
    request: Callable[[str], str] = lambda head: head,
    answer: Callable[[bytes], bytes] = lambda whole: whole,
    only: str = "",
) -> AsyncIterator[Spoiler]:
    """In front of the server: changes the heads of requests, and whole answers (heads alone of those that upgrade), to
    requests whose first line has `only` in it."""
    spoiler = Spoiler(site.port, request, answer, only)
    server = await asyncio.start_server(spoiler.serve, "127.0.0.1", 0)
    spoiler.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield spoiler
    finally:
        spoiler.cut()
        server.close()


class Spoiler:
    def __init__(self, port: int, request: Callable[[str], str], answer: Callable[[bytes], bytes], only: str) -> None:
        self.url = ""
        self._port, self._request, self._answer, self._only = port, request, answer, only
        self._open: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inward, outward = await asyncio.open_connection("127.0.0.1", self._port)
        self._open |= {writer, outward}
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            applies = self._only in head.partition("\r\n")[0]
            if applies:
                head = self._request(head)
            upgrades = "upgrade:" in head.lower()
            if not upgrades:
                head = re.sub("(?i)connection: .*?\r\n", "", head).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
            outward.write(head.encode("latin-1"))
            onward = asyncio.create_task(pipe(reader, outward))
            whole = await (inward.readuntil(b"\r\n\r\n") if upgrades else inward.read())
            writer.write(self._answer(whole) if applies else whole)
            await pipe(inward, writer)
            onward.cancel()
            await asyncio.wait([onward])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # it was only tried whether anybody listens, or cut
        finally:
            self._open -= {writer, outward}
            writer.transport.abort()
            outward.transport.abort()


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    await writer.drain()


def without(*headers: str) -> Callable[[Any], Any]:
    """Of a head, be it text or bytes."""

    def strip(head: Any) -> Any:
        for name in headers:
            pattern = rf"(?i)\r\n{name}: [^\r]*"
            head = re.sub(pattern.encode(), b"", head) if isinstance(head, bytes) else re.sub(pattern, "", head)
        return head

    return strip


def replying(status: str, body: str) -> Callable[[bytes], bytes]:
    data = body.encode()
    return lambda whole: b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(data), data)


# --- a healthy server -------------------------------------------------------------------------------------------------


@in_loop
async def test_a_healthy_server_gets_a_line_for_each_step_and_no_complaint(site: Serving) -> None:
    found = await examine(f"http://127.0.0.1:{site.port}")
    assert [finding.check for finding in found] == ALL
    assert not bad(found)
    assert all(finding.tried and finding.seen for finding in found)
    assert the(found, "round trip").figures["seconds"] > 0
    assert the(found, "datagrams").figures["loss"] < 1
    assert the(found, "geckos").level is Level.OK


@in_loop
async def test_the_doctor_meets_nobody_and_leaves_nobody_behind(site: Serving) -> None:
    await examine(f"http://127.0.0.1:{site.port}")
    site.until(lambda: not site.server.connections)
    slugs = site.call(lambda: list(site.server.rooms.rooms))
    assert slugs and all(slug.startswith("check~") for slug in slugs if slug != "guarded")


@in_loop
async def test_a_room_that_is_named_is_joined_too(site: Serving) -> None:
    found = await examine(f"http://127.0.0.1:{site.port}/session/caf%C3%A9")
    assert not bad(found)
    assert the(found, "room").seen.startswith("1 there")
    assert "/session/caf%C3%A9:" in f"{the(found, 'discovery').tried}:"


@in_loop
async def test_a_room_that_asks_for_a_token_is_no_fault(site: Serving) -> None:
    found = await examine(f"http://127.0.0.1:{site.port}/session/guarded")
    assert not bad(found)
    assert "token" in the(found, "room").seen


def test_a_room_whose_code_cannot_be_loaded_is_one() -> None:
    with serving({"broken": "1 / 0"}, development=True, expect_faults=True) as site:
        found = asyncio.run(examine(f"http://127.0.0.1:{site.port}/session/broken"))
    assert list(bad(found)) == ["room"]
    assert "log" in the(found, "room").advice


@in_loop
async def test_a_connection_that_stays_open_while_nothing_is_said(
    site: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "IDLE", 0.01)
    found = await examine(f"http://127.0.0.1:{site.port}", long=True)
    assert [finding.check for finding in found] == [*ALL, "idle"]
    assert not bad(found)


# --- faults on purpose ------------------------------------------------------------------------------------------------


@in_loop
async def test_nobody_listens() -> None:
    with socket.socket() as sock:  # bound, and not listening
        sock.bind(("127.0.0.1", 0))
        found = await examine(f"http://127.0.0.1:{sock.getsockname()[1]}")
    assert bad(found) == {"connection": "nobody listens there"}


@in_loop
async def test_a_name_without_an_address() -> None:
    found = await examine(f"http://{'a' * 64}.example")  # no name can be so long, so nobody is asked
    assert bad(found) == {"connection": "the name has no address"}


@pytest.mark.parametrize(
    ("status", "body", "advice"),
    [
        ("502 Bad Gateway", "<h1>nginx</h1>", "does not reach the server"),
        ("404 Not Found", "nothing here", "pass all paths on"),
        ("200 OK", "<!doctype html>", "No session server"),
        ("200 OK", '{"url": 7}', "No session server"),
        ("200 OK", "[" * 60000, "No session server"),
        ("200 OK", "\x1b[2J\x1b]0;mine\x07", "No session server"),
        ("200 OK", '{"url": "http://a", "udp": "http://a", "state": "Full"}', "limits"),
        ("200 OK", '{"url": "http://[", "udp": "", "state": "Ready"}', "--public-url"),
        ("200 OK", '{"url": "ftp://a", "udp": "", "state": "Ready"}', "--public-url"),
    ],
)
def test_discovery_that_says_something_else(site: Serving, status: str, body: str, advice: str) -> None:
    @in_loop
    async def run() -> None:
        async with spoiled(site, answer=replying(status, body), only="GET /session/") as proxy:
            found = await examine(proxy.url)
        assert list(bad(found)) == ["discovery"]
        assert advice in the(found, "discovery").advice
        assert the(found, "discovery").seen.isprintable()
        assert found[-1].level is Level.SKIPPED

    run()


@in_loop
async def test_discovery_names_a_host_where_nobody_is(site: Serving) -> None:
    def elsewhere(whole: bytes) -> bytes:
        told = json.dumps({"url": "http://127.0.0.1:9", "udp": "http://127.0.0.1:9", "state": "Ready"})
        return replying("200 OK\r\nAccess-Control-Allow-Origin: *", told)(whole)

    async with spoiled(site, answer=elsewhere, only="GET /session/") as proxy:
        found = await examine(proxy.url)
    assert the(found, "discovery").seen == "Ready, and sends its clients to 127.0.0.1:9"
    assert "cannot be reached" in bad(found)["websocket"]


@in_loop
async def test_a_static_answer_is_enough_for_discovery(site: Serving) -> None:
    """As a site gives it that keeps the function at its CDN: no ticket, and no `session`."""
    host = f"http://127.0.0.1:{site.port}"
    told = replying(
        "200 OK\r\nAccess-Control-Allow-Origin: *", json.dumps({"url": host, "udp": host, "state": "Ready"})
    )
    async with spoiled(site, answer=told, only="GET /session/") as proxy:
        assert not bad(await examine(proxy.url))


@pytest.mark.parametrize(
    ("header", "only"),
    [
        ("Access-Control-Allow-Origin", "GET /session/"),
        ("Access-Control-Allow-Origin", "/session.js"),
        ("Access-Control-Allow-Headers", "OPTIONS"),
    ],
)
def test_a_header_that_other_sites_need_is_lost(site: Serving, header: str, only: str) -> None:
    @in_loop
    async def run() -> None:
        async with spoiled(site, answer=without(header), only=only) as proxy:
            found = await examine(proxy.url)
        assert list(bad(found)) == ["cors"]
        assert header in bad(found)["cors"]

    run()


@in_loop
async def test_a_proxy_that_eats_the_upgrade(site: Serving) -> None:
    async with spoiled(site, request=without("Upgrade", "Connection"), only="GET /session/") as proxy:
        found = await examine(proxy.url)
    assert list(bad(found)) == ["websocket"]
    assert the(found, "websocket").advice.startswith("Let the proxy pass Upgrade")
    assert found[-1].level is Level.SKIPPED


@in_loop
async def test_a_proxy_that_does_not_pass_signalling_on(site: Serving) -> None:
    async with spoiled(site, answer=replying("404 Not Found", "no such page"), only="/.wrtc/") as proxy:
        found = await examine(proxy.url)
    assert list(bad(found)) == ["cors", "geckos"]
    assert "/.wrtc/" in the(found, "geckos").advice


def test_udp_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "UDP_WITHIN", 0.2)
    monkeypatch.setattr(probe, "UDP_WITHIN", 0.2)
    with serving() as site:
        for one in site.server.channels._sockets.values():
            site.call(lambda one=one: site.loop.remove_reader(one.fileno()))
        found = asyncio.run(examine(f"http://127.0.0.1:{site.port}"))
    assert bad(found) == {"udp": "no answer within 0.2 s"}
    assert "firewall" in the(found, "udp").advice
    assert the(found, "datagrams").level is Level.SKIPPED
    assert the(found, "geckos").level is Level.WARNING


def test_an_announced_address_that_leads_nowhere_beside_one_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "UDP_WITHIN", 1.0)
    with serving(announce_ip=("127.0.0.3", "127.0.0.1")) as site:
        found = asyncio.run(examine(f"http://127.0.0.1:{site.port}"))
    assert not bad(found)
    assert [one.level for one in found if one.check == "udp"] == [Level.WARNING, Level.OK]
    assert the(found, "datagrams").level is not Level.SKIPPED


def test_a_public_server_that_announces_only_private_addresses(site: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str) -> list[str]:
        return ["9.9.9.9"]

    monkeypatch.setattr(check, "resolve", resolve)
    found = asyncio.run(examine(f"http://127.0.0.1:{site.port}"))
    assert list(bad(found)) == ["udp"]
    assert "--announce-ip 9.9.9.9" in found[[one.level for one in found].index(Level.FAILED)].advice


@in_loop
async def test_an_idle_connection_is_cut(site: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Finding] = []
    async with spoiled(site) as proxy:

        def tell(finding: Finding) -> None:
            found.append(finding)
            if finding.check == "clock":  # the last before the silence
                proxy.cut()

        await Doctor(Target.of(proxy.url), tell, long=True).run()
    assert list(bad(found)) == ["idle"]
    assert "proxy_read_timeout" in the(found, "idle").advice


@in_loop
async def test_a_connection_that_is_cut_in_the_middle(site: Serving) -> None:
    found: list[Finding] = []
    async with spoiled(site) as proxy:

        def tell(finding: Finding) -> None:
            found.append(finding)
            if finding.check == "websocket":
                proxy.cut()

        await Doctor(Target.of(proxy.url), tell).run()
    assert list(bad(found)) == ["websocket"]


@pytest.mark.parametrize(("hours", "word"), [(2, "ahead of"), (-2, "behind")])
def test_clocks_that_differ(site: Serving, hours: int, word: str) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=hours), usegmt=True).encode()

    @in_loop
    async def run() -> None:
        async with spoiled(
            site, answer=lambda whole: re.sub(rb"\r\nDate: [^\r]*", b"\r\nDate: " + date, whole)
        ) as proxy:
            found = await examine(proxy.url)
        assert list(bad(found)) == ["clock"]
        assert word in bad(found)["clock"]

    run()


@pytest.mark.parametrize(("listed", "wrong"), [((), ["websocket"]), (("https://page.example",), [])])
def test_whether_the_pages_of_a_site_are_let_in(listed: tuple[str, ...], wrong: list[str]) -> None:
    with serving(origin=listed) as site:
        found = asyncio.run(examine(f"http://127.0.0.1:{site.port}", origin="https://page.example"))
    assert list(bad(found)) == wrong
    assert not wrong or "--origin" in the(found, "websocket").advice


@in_loop
async def test_every_request_says_what_a_page_of_that_site_would_say() -> None:
    heads: list[str] = []

    def note(head: str) -> str:
        heads.append(head)
        return head

    with serving(origin=("https://page.example",)) as site:
        async with spoiled(site, request=note) as proxy:
            await examine(proxy.url, origin="https://page.example")
    assert heads and all("\r\nOrigin: https://page.example\r\n" in head for head in heads)


# --- certificates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "age", "is_trusted", "advice"),
    [
        (NAMES, 0, True, None),
        (NAMES, 0, False, "self-signed"),
        (NAMES, 400, True, "expired"),
        (frozenset({"other.example"}), 0, True, "another"),
    ],
)
def test_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: frozenset[str], age: int, is_trusted: bool,
    advice: str | None,
) -> None:  # fmt: skip
    """Whatever is wrong with it, the rest is examined."""
    file = str(self_signed(tmp_path, names, datetime.now(UTC) - timedelta(days=age)))
    monkeypatch.setenv("SSL_CERT_FILE", file if is_trusted else str(tmp_path / "none"))
    with serving(tls_cert=file, tls_key=file) as site:
        found = asyncio.run(examine(f"https://127.0.0.1:{site.port}"))
    assert [finding.check for finding in found] == ALL
    assert list(bad(found)) == ([] if advice is None else ["tls"])
    assert advice is None or advice in the(found, "tls").advice


@in_loop
async def test_no_tls_where_it_was_asked_for(site: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "WITHIN", 0.2)  # the server waits for the rest of what is no head of a request
    found = await examine(f"https://127.0.0.1:{site.port}")
    assert list(bad(found)) == ["tls"]
    assert "http://" in the(found, "tls").advice


@pytest.mark.parametrize(
    ("days", "life", "level", "seen"),
    [
        (60, 90, Level.OK, "trusted, good for 60 days"),
        (3, 90, Level.WARNING, "trusted, but only good for 3 days"),
        (0.4, 0.5, Level.OK, "trusted, good for 10 hours"),
    ],
)
def test_a_certificate_that_should_have_been_renewed(days: float, life: float, level: Level, seen: str) -> None:
    finding = findings.certificate_life("it", days * 86400, life * 86400)
    assert (finding.level, finding.seen) == (level, seen)


# --- judgements -------------------------------------------------------------------------------------------------------

HTTPS = "https://play.example.org"


@pytest.mark.parametrize(
    ("asked", "told", "level"),
    [
        (HTTPS, (HTTPS, HTTPS, None), Level.OK),
        (HTTPS, (HTTPS, HTTPS, "wss://play.example.org/session/a"), Level.OK),
        (HTTPS, ("https://session.example.org", "https://session.example.org", None), Level.OK),
        (HTTPS, (HTTPS, "https://udp.example.org", None), Level.WARNING),
        (HTTPS, ("http://play.example.org", HTTPS, None), Level.FAILED),
        (HTTPS, (HTTPS, HTTPS, "ws://play.example.org/session/a"), Level.FAILED),
        (HTTPS, ("https://127.0.0.1:8889", "https://127.0.0.1:8889", None), Level.FAILED),
        (HTTPS, ("https://app:8889", "https://app:8889", None), Level.FAILED),
        (HTTPS, ("https://[fd00::1]", "https://[fd00::1]", None), Level.FAILED),
        ("http://localhost:8889", ("http://localhost:8889", "http://localhost:8889", None), Level.OK),
        ("http://127.0.0.1:8889", (HTTPS, HTTPS, None), Level.OK),
        (HTTPS, ("not an address", HTTPS, None), Level.FAILED),
    ],
)
def test_where_discovery_may_send_clients(asked: str, told: tuple[str, str, str | None], level: Level) -> None:
    url, udp, session = told
    finding = findings.judge_discovery("it", asked, SessionInfo(url, udp, "Ready", session))
    assert finding.level is level
    assert bool(finding.advice) == (level is not Level.OK)


@pytest.mark.parametrize(
    ("host", "outcome", "is_public", "is_only", "level"),
    [
        ("203.0.113.7", 0.02, True, False, Level.OK),
        ("10.0.0.7", 0.02, False, False, Level.OK),
        ("10.0.0.7", 0.02, True, False, Level.WARNING),
        ("10.0.0.7", "no answer", True, True, Level.FAILED),
        ("10.0.0.7", "no answer", True, False, Level.WARNING),
        ("fd00::7", None, True, True, Level.SKIPPED),
    ],
)
def test_an_announced_address(
    host: str, outcome: float | str | None, is_public: bool, is_only: bool, level: Level
) -> None:
    if host.startswith("203."):  # documentation addresses count as private
        host = "9.9.9.9"
    assert findings.judge_candidate(host, 8889, outcome, is_public=is_public, is_only=is_only).level is level


@pytest.mark.parametrize(
    ("took", "level"),
    [([0.01] * 100, Level.OK), ([0.01] * 90, Level.WARNING), ([0.01, 0.11] * 50, Level.WARNING), ([], Level.FAILED)],
)
def test_datagrams_that_came(took: list[float], level: Level) -> None:
    finding = findings.judge_datagrams("it", took, 100)
    assert finding.level is level
    assert finding.figures["loss"] == pytest.approx(1 - len(took) / 100)


@pytest.mark.parametrize(
    ("took", "level"), [([0.02] * 9, Level.OK), ([0.4] * 9, Level.WARNING), ([0.02, 0.1] * 5, Level.WARNING)]
)
def test_round_trips_that_players_feel(took: list[float], level: Level) -> None:
    assert findings.judge_round_trips("it", took).level is level


def test_jitter_is_the_mean_step_from_one_to_the_next() -> None:
    assert findings.jitter([1.0, 3.0, 2.0]) == pytest.approx(1.5)
    assert findings.jitter([1.0]) == 0.0


def test_a_date_that_is_none_says_nothing_of_the_clock() -> None:
    assert findings.skew("yesterday", 0.0) is None
    assert findings.skew("Thu, 01 Jan 1970 00:00:10 GMT", 0.0) == pytest.approx(10.5)


@given(st.text())
def test_nothing_that_a_server_says_can_move_the_terminal(text: str) -> None:
    seen = findings.shown(text)
    assert all(one.isprintable() for one in seen) and len(seen) <= 160


@given(st.text() | st.lists(st.sampled_from(["a=candidate:", "a", "1", "::1", "7", " ", "\r\n", "\n"])).map("".join))
def test_no_offer_breaks_the_doctor(offer: str) -> None:
    for line, _, _ in probe.candidates_of(offer):
        assert [line] == [one for one, *_ in probe.candidates_of(probe.with_only(offer, line))][:1]


@in_loop
async def test_what_is_sent_before_the_first_has_come_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "DATAGRAM_EVERY", 0.0)
    came = asyncio.Event()

    class Side:
        frames = 0

        def send(self, frame: Any) -> None:
            self.frames += 1
            if self.frames == 3:
                came.set()

    side: Any = Side()
    assert list(await check.fly(side, range(1, 100), until=came)) == [1, 2, 3]
    assert list(await check.fly(side, range(4, 9))) == [4, 5, 6, 7, 8]


def test_of_too_many_addresses_the_doctor_tries_some() -> None:
    offer = "\r\n".join(f"a=candidate:{n} 1 UDP 1 127.0.0.{n % 250 + 1} 9 typ host" for n in range(1000))
    assert len(probe.candidates_of(offer)) == probe.MAX_CANDIDATES


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["check", *arguments])
    return result.exit_code, result.output


def test_the_command_says_0_for_deploys_when_all_is_well(site: Serving) -> None:
    code, output = run(f"http://127.0.0.1:{site.port}")
    assert code == 0
    assert "0 failed" in output and "discovery" in output


def test_the_command_says_1_when_something_fails_and_what_to_do() -> None:
    code, output = run("http://127.0.0.1:9")
    assert code == 1
    assert "✗ connection" in output and "→ Start the server" in output


def test_the_command_writes_json(site: Serving) -> None:
    code, output = run(f"http://127.0.0.1:{site.port}", "--json")
    told = json.loads(output)
    assert code == 0 and told["ok"] is True
    assert [finding["check"] for finding in told["findings"]] == ALL
    assert set(told["findings"][0]) == {"check", "level", "tried", "seen", "advice", "figures"}


@pytest.mark.parametrize(
    "url",
    [
        "play.example.org",
        "ftp://play.example.org",
        "https://",
        "https://play.example.org/field",
        "https://play.example.org/session/",
        "https://play.example.org/session/..",
        "https://me:secret@play.example.org",
        "https://play.example.org:99999",
        "https://[::1",
    ],
)
def test_the_command_says_2_when_the_url_cannot_be_used(url: str) -> None:
    code, output = run(url)
    assert code == 2
    assert output.startswith("session-server: ") and output.count("\n") == 1


def test_a_site_that_is_none_is_refused(site: Serving) -> None:
    assert run(f"http://127.0.0.1:{site.port}", "--origin", "page.example")[0] == 2


@pytest.mark.parametrize(
    ("url", "base", "slug"),
    [
        ("https://a.example", "https://a.example", None),
        ("wss://a.example/", "https://a.example", None),
        (" http://[::1]:8889/session/a%20b?service=x ", "http://[::1]:8889", "a b"),
    ],
)
def test_what_may_be_examined(url: str, base: str, slug: str | None) -> None:
    assert Target.of(url) == Target(base, slug)


# --- the page ---------------------------------------------------------------------------------------------------------


async def visited(page: Page, site: Serving) -> dict[str, str]:
    """What the page at /check says: each line's name, and how it ended. The last of a name counts."""
    await page.goto(f"http://127.0.0.1:{site.port}/check")
    await expect(page.locator("footer")).to_be_visible(timeout=40_000)
    lines = await page.locator("li").all()
    return {await line.locator("b").inner_text(): await line.get_attribute("class") or "" for line in lines}


Constants = Callable[[str], None]


@pytest.fixture
def constants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Constants:
    """Serves the page with others: how many messages, and in ms how often, and how long it waits for what."""

    def change(constants: str) -> None:
        usual, page = "[100, 20, 3000, 1000, 5000]", tmp_path / "web" / "check.html"
        shutil.copytree(http.WEB, page.parent)
        text = page.read_text(encoding="utf-8")
        assert usual in text
        page.write_text(text.replace(usual, constants), encoding="utf-8")
        monkeypatch.setattr(http, "WEB", page.parent)

    return change


@pytest.mark.timeout(60)
@in_chromium
async def test_the_page_of_a_healthy_server(site: Serving, page: Page, constants: Constants) -> None:
    """Its messages take longer than it may take to join: that limit once ended the sessions as well."""
    constants("[100, 20, 3000, 1000, 3800]")
    said = await visited(page, site)
    assert [name for name in said if name not in {"messages", "datagrams"}] == [
        "TLS", "discovery", "WebSocket", "signalling", "UDP", "session.js", "clock"
    ]  # fmt: skip
    assert all(level == "ok" for name, level in said.items() if name not in {"messages", "datagrams"})
    assert {said["messages"], said["datagrams"]} <= {"ok", "warning"}, "how fast this computer is, is no question"
    assert await page.locator("#plot circle.UDP").count() > 0
    assert await page.locator("#plot circle[cx=NaN]").count() == 0, "each dot has its place"
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.locator("#copy").click()
    await expect(page.locator("#copy")).to_have_text("Copied")
    assert "ok       discovery: GET http://127.0.0.1" in await page.evaluate("navigator.clipboard.readText()")


@pytest.mark.timeout(60)
@in_chromium
async def test_the_page_where_udp_does_not_arrive(page: Page, constants: Constants) -> None:
    with serving() as site:
        for one in site.server.channels._sockets.values():
            site.call(lambda one=one: site.loop.remove_reader(one.fileno()))
        constants("[20, 20, 500, 1000, 5000]")
        said = await visited(page, site)
        await expect(page.locator("#verdict")).to_have_text("It works, by WebSocket alone.")
    assert said["signalling"] == "ok" and said["UDP"] == said["session.js"] == "warning"
    assert "datagrams" not in said


@pytest.mark.timeout(60)
@in_chromium
async def test_the_page_of_a_server_whose_proxy_eats_the_upgrade(
    site: Serving, page: Page, constants: Constants
) -> None:
    async with spoiled(site, request=without("Upgrade", "Connection"), only="GET /session/") as proxy:
        constants("[20, 20, 500, 1000, 500]")
        await page.goto(f"{proxy.url}/check")
        await expect(page.locator("#verdict")).to_have_text("Something is wrong.", timeout=40_000)
        await expect(page.locator("li.failed b")).to_have_text("WebSocket")
        await expect(page.locator("li.failed em")).to_contain_text("Upgrade")
