"""geckos.io clients over HTTP and UDP: what they are answered, where they come in, and what the rude ones get."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import inf
from typing import Any

import pytest

from geckos import CONNECTIONS, GeckosPeer, signal, ticket_for
from serving import V1, Serving, serving
from session_server.limits import Bucket
from session_server.protocol import message
from session_server.rtc import sctp_send, sdp
from session_server.signalling import HEADERS, OFFER_LIFE, Offers, as_bytes, as_letters

UNKNOWN = "A" * 24


@pytest.fixture
def site() -> Iterator[Serving]:
    with serving() as served:
        yield served


# --- routes -----------------------------------------------------------------------------------------------------------


def test_an_offer_is_made_as_the_clients_expect_it(site: Serving) -> None:
    answer = signal(site, CONNECTIONS)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    told = answer.json
    assert set(told) == {"userData", "id", "localDescription"} and told["userData"] == {}
    assert re.fullmatch("[A-Za-z0-9]{24}", told["id"])
    assert told["localDescription"]["type"] == "offer"
    offer = sdp.parse_offer(told["localDescription"]["sdp"])
    assert [(one.host, one.port) for one in offer.candidates] == [("127.0.0.1", site.server.channels.port)]
    assert offer.max_message_size == 65536 and offer.setup == "actpass"


def test_the_offer_announces_what_the_room_takes() -> None:
    room = "from session_server import Room\nclass Small(Room):\n    max_message = 1000\n    relay = True"
    with serving({"small": room}) as site:
        offer = signal(site, CONNECTIONS, headers=ticket_for(site, "small")).json["localDescription"]["sdp"]
        assert sdp.parse_offer(offer).max_message_size == 1000


ROUTES = [
    ("OPTIONS", CONNECTIONS, 200),
    ("OPTIONS", "/.wrtc/v2/whatever", 200),
    ("POST", CONNECTIONS, 200),
    ("GET", CONNECTIONS, 404),
    ("PUT", CONNECTIONS, 404),
    ("POST", CONNECTIONS + "/", 404),
    ("POST", CONNECTIONS + "?a=1", 404),
    ("POST", "/x/.wrtc/v2/connections", 405),  # D25: the prefix counts only where the path begins
    ("POST", "/.wrtcXv2/connections", 405),
    ("POST", "/.wrtc/v1/connections", 404),
    ("POST", f"{CONNECTIONS}/{UNKNOWN}/remote-description", 400),  # the body comes first
    ("GET", f"{CONNECTIONS}/{UNKNOWN}/remote-description", 404),
    ("GET", f"{CONNECTIONS}/{UNKNOWN}/additional-candidates", 404),
    ("GET", f"{CONNECTIONS}/short/additional-candidates", 400),
    ("GET", f"{CONNECTIONS}/{UNKNOWN}x/additional-candidates", 400),
    ("GET", f"{CONNECTIONS}/not-of-letters/additional-candidates", 404),
    ("POST", f"{CONNECTIONS}/{UNKNOWN}/close", 200),
    ("POST", f"{CONNECTIONS}/short/close", 400),
    ("POST", f"{CONNECTIONS}/{UNKNOWN}/other", 404),
]


@pytest.mark.parametrize(("method", "path", "status"), ROUTES)
def test_each_route_has_its_status_and_the_headers_of_all(site: Serving, method: str, path: str, status: int) -> None:
    answer = signal(site, path, method=method)
    assert answer.status == status
    if status != 405:  # of another part of the server
        assert {name: answer.headers[name.lower()] for name in HEADERS} == HEADERS
        assert "authorization" in answer.headers["access-control-allow-headers"]
    if answer.headers["content-type"] == "text/plain":
        assert answer.text.startswith(str(status))


def test_named_statuses_say_their_name_and_others_their_number(site: Serving) -> None:
    assert signal(site, CONNECTIONS + "/").text == "404: Not Found"
    assert signal(site, CONNECTIONS, method="OPTIONS").text == "200: OK"
    with serving(peers_per_address=1) as small:
        statuses = [signal(small, CONNECTIONS) for _ in range(3)]
        assert (statuses[-1].status, statuses[-1].text) == (429, "429")


def test_candidates_are_in_the_offer_and_asking_for_more_gives_none(site: Serving) -> None:
    id = signal(site, CONNECTIONS).json["id"]
    for _ in range(2):
        answer = signal(site, f"{CONNECTIONS}/{id}/additional-candidates", method="GET")
        assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"[]", "application/json")


# --- who may ----------------------------------------------------------------------------------------------------------


def test_a_foreign_origin_is_refused_and_can_read_so(site: Serving) -> None:
    answer = signal(site, CONNECTIONS, headers={"Origin": "https://other.example"})
    assert (answer.status, answer.text) == (403, "403: Forbidden")
    assert answer.headers["access-control-allow-origin"] == "*"
    for origin in (f"http://{site.host}", "http://127.0.0.1:1"):
        assert signal(site, CONNECTIONS, headers={"Origin": origin}).status == 200
    with serving(origin=("https://other.example",)) as open:
        assert signal(open, CONNECTIONS, headers={"Origin": "https://other.example"}).status == 200


@pytest.mark.parametrize("ticket", ["x", "x.y", ".", "Bearer x", "\xff", "x" * 5000, "eyJ4IjoxfQ.e30.sig"])
def test_what_is_no_ticket_is_refused(site: Serving, ticket: str) -> None:
    answer = signal(site, CONNECTIONS, headers={"Authorization": ticket})
    assert (answer.status, answer.text) == (401, "401: Unauthorized")


def test_a_ticket_is_good_once_and_for_a_minute(site: Serving) -> None:
    headers = ticket_for(site, "field")
    assert [signal(site, CONNECTIONS, headers=headers).status for _ in range(2)] == [200, 401]
    late = ticket_for(site, "field")
    site.advance(61)
    assert signal(site, CONNECTIONS, headers=late).status == 401


AUTH = """
from session_server import Refused, Room, User

class Door(Room):
    relay = True
    async def on_auth(self, token, data):
        if self.slug == "door~closed":
            raise Refused("no")
        if self.slug == "door~broken":
            return 7
        return User("ada", "@ada")
"""


def test_on_auth_decides_on_the_first_request_where_the_page_can_see_it() -> None:
    with serving({"door": AUTH}, expect_faults=True) as site:
        status = {
            name: signal(site, CONNECTIONS, headers=ticket_for(site, f"door~{name}")).status
            for name in ("open", "closed", "broken")
        }
        assert status == {"open": 200, "closed": 401, "broken": 500}


def test_the_user_of_on_auth_is_the_client_s() -> None:
    with serving({"door": AUTH}) as site, GeckosPeer(site, ticket_for(site, "door")) as peer:
        peer.open()
        peer.emit("hi")  # it comes while the room still thinks, perhaps
        site.until(lambda: [client.handle for client in room(site, "door").clients] == ["@ada"])
        site.until(lambda: site.server.rooms.totals.messages_in == 1)


SLOW = """
import asyncio
from session_server import Room

class Slow(Room):
    relay = True
    def on_create(self):
        self.asked, self.gate = 0, asyncio.Event()
    async def on_auth(self, token, data):
        self.asked += 1
        if self.asked == 2:  # the second time, when the seat is taken
            await self.gate.wait()
"""


def test_what_comes_while_on_auth_thinks_is_kept_up_to_a_limit() -> None:
    with serving({"slow": SLOW}) as site, GeckosPeer(site, ticket_for(site, "slow")) as peer:
        peer.open()
        for number in range(5):
            peer.emit("tv", number)
        for _ in range(2):
            peer.say("x" * 40_000)
            peer.until(lambda: peer.peer.buffered == 0)
        site.until(lambda: site.server.rooms.totals.refused["early"] == 1)
        site.call(lambda: room(site, "slow").gate.set())
        peer.until(lambda: len(peer.heard) == 5)
        assert sorted(peer.heard) == [f'{{"tv":{number}}}' for number in range(5)]  # type: ignore[type-var]
        assert site.call(lambda: site.server.rooms.totals.messages_in) == 6


def test_a_full_room_a_raw_room_a_broken_piece_and_a_draining_server_refuse() -> None:
    pieces = {
        "one": "from session_server import Room\nclass One(Room):\n    max_clients = 1\n    relay = True",
        "raw": "from session_server import Room\nclass Raw(Room):\n    raw = True",
        "bad": "syntax error",
    }
    with serving(pieces) as site, site.join("/session/one", V1):
        for slug, status in (("one", 503), ("raw", 403), ("bad", 500)):
            assert signal(site, CONNECTIONS, headers=ticket_for(site, slug)).status == status, slug
        site.call(lambda: setattr(site.server, "draining", True))
        assert signal(site, CONNECTIONS).status == 503


def test_a_full_server_refuses() -> None:
    with serving(max_clients=1) as site, GeckosPeer(site) as peer:
        peer.open()
        assert signal(site, CONNECTIONS).status == 503


# --- in the room ------------------------------------------------------------------------------------------------------


def room(site: Serving, slug: str) -> Any:
    return site.server.rooms.rooms[slug].instance


def test_events_and_raw_messages_reach_the_others_of_the_room_and_nobody_else(site: Serving) -> None:
    with (
        GeckosPeer(site, ticket_for(site, "field")) as ada,
        GeckosPeer(site, ticket_for(site, "field")) as bob,
        GeckosPeer(site) as stranger,
        site.join("/session/field", V1) as page,
    ):
        for peer in (ada, bob, stranger):
            peer.open()
        site.until(lambda: len(room(site, "field").clients) == 3)
        ada.say('{"1v1:move":"{\\"x\\": 0.50}"}')
        ada.say(b"\1\2\3")
        ada.say("plain")
        for frame in ('{"1v1:move":"{\\"x\\": 0.50}"}', b"\1\2\3", '{"rawMessage":"plain"}'):
            bob.hears(frame)
        news = {}
        for _ in range(3):
            found = page.message()
            while isinstance(found, dict) and found["type"].startswith("session:"):
                found = page.message()
            news["bytes" if isinstance(found, bytes) else found["type"]] = found
        assert news["1v1:move"]["content"] == '{"x": 0.50}', "a string stays a string, byte for byte"
        assert news["rawMessage"]["content"] == "plain"
        assert news["bytes"].endswith(b"\1\2\3")
        site.clock.ahead += 2  # now they surely listen
        page.send("say", {"to": "all"})
        for peer in (ada, bob):
            peer.hears('{"say":{"to": "all"}}')
        assert not ada.heard[1:] and not stranger.heard


def test_a_classic_page_hears_a_member_and_not_a_second_wire(site: Serving) -> None:
    with (
        site.join("/session/lobby") as page,
        GeckosPeer(site) as second,
        GeckosPeer(site, ticket_for(site, "lobby")) as member,
    ):
        second.open()
        member.open()
        assert json.loads(page.until("joined")["content"])["text"] == "3 has joined. Connections open: 2"
        second.emit("tv", 1)  # to everyone: it comes back, so what would have reached the page has been sent
        second.hears('{"tv":1}')
        member.hears('{"tv":1}')
        member.emit("tv", 2)
        assert page.until("tv") == {"type": "tv", "content": 2, "id": 3}
        page.send("tv", 3)
        member.hears('{"tv":3}')
        page.send("chat", 4)
        member.hears('{"chat":4}')
        member.emit("tv", 5)
        second.hears('{"tv":5}')
        assert sorted(second.heard) == ['{"tv":1}', '{"tv":2}', '{"tv":5}']
        second.close()
        site.until(lambda: len(room(site, "lobby").clients) == 2)
        member.close()
        assert page.until("left")["content"] == {"count": 1}, "the end of a second wire is nobody's leaving"


def test_a_claimed_identity_is_passed_on_to_nobody(site: Serving) -> None:
    with GeckosPeer(site) as page, GeckosPeer(site) as other:
        page.open()
        other.open()
        page.say('{"udp:identity":"{\\"user\\":{\\"sub\\":\\"auth0|1\\"},\\"handle\\":\\"@ada\\"}"}')
        page.emit("tv", 1)
        other.hears('{"tv":1}')
        assert other.heard == ['{"tv":1}']
        assert site.call(lambda: {client.user for client in room(site, "lobby").clients}) == {None}


def test_server_owned_types_and_control_messages_are_dropped(site: Serving) -> None:
    with GeckosPeer(site) as rude, GeckosPeer(site) as other:
        rude.open()
        other.open()
        for type in ("connected", "reload", "session:ask", "session:leave", "session:answer"):
            rude.emit(type, {"ask": 1, "type": "x", "sdp": "x"})
        rude.emit("tv", 1)
        other.hears('{"tv":1}')
        assert other.heard == ['{"tv":1}']
        assert site.refused["server_owned"] == 5


ECHO = """
from session_server import Client, Room, on

class Echo(Room):
    def on_join(self, client: Client):
        client.send("hello", {"first": True})
    @on("ping")
    def ping(self, client: Client, content: dict | None):
        client.send("pong", content, reliable=False)
    @on("kick")
    def kick(self, client: Client):
        client.kick()
    @on("stop")
    def stop(self, client: Client):
        client.send("stopped")
    @on("flood")
    def flood(self, client: Client):
        for _ in range(1200):
            client.send("flood", "x" * 1000)
    @on("udp:identity")
    def identity(self, client: Client, claim: str):
        client.send("claimed", claim)
    def on_leave(self, client: Client, reason: str):
        self.log.info("has left", reason=reason)
"""


@pytest.fixture
def echo() -> Iterator[Serving]:
    with serving({"echo": ECHO}) as served:
        yield served


def test_a_room_s_code_hears_and_answers(echo: Serving) -> None:
    with GeckosPeer(echo, ticket_for(echo, "echo")) as peer:
        peer.open()
        peer.emit("ping", {"n": 1})
        peer.hears('{"pong":{"n":1}}')
        peer.emit("udp:identity", "hint")  # a room may take the claim for what it is worth
        peer.hears('{"claimed":"hint"}')


def test_what_a_room_says_first_waits_until_the_client_listens(echo: Serving) -> None:
    """wire.md §1.4: what comes before `onConnect` would be lost."""
    with GeckosPeer(echo, ticket_for(echo, "echo")) as quiet, GeckosPeer(echo, ticket_for(echo, "echo")) as lively:
        quiet.open()
        lively.open()
        lively.emit("stop")  # by its first frame it shows that it listens
        lively.hears('{"stopped":null}')
        assert lively.heard == ['{"hello":{"first":true}}', '{"stopped":null}'], "in their order"
        assert not quiet.heard
        echo.clock.ahead += 2
        quiet.hears('{"hello":{"first":true}}')


def test_the_first_frames_of_a_client_are_never_lost(echo: Serving) -> None:
    """D30."""
    for _ in range(5):
        with GeckosPeer(echo, ticket_for(echo, "echo")) as peer:
            peer.until(lambda peer=peer: peer.events)  # type: ignore[misc]
            for number in range(5):
                peer.emit("ping", {"n": number})
            peer.until(lambda peer=peer: len(peer.heard) == 6)  # type: ignore[misc]


def test_a_reliable_message_is_taken_once(echo: Serving) -> None:
    """D28: also with `runs: 1`, and of any number of copies."""
    frame = '{"ping":{"MESSAGE":{"n":%d},"RELIABLE":1,"ID":"%s"}}'
    with GeckosPeer(echo, ticket_for(echo, "echo")) as peer:
        peer.open()
        for number, copies in ((1, 1), (2, 3), (3, 10)):
            for _ in range(copies):
                peer.say(frame % (number, f"id{number}"))
        peer.emit("stop")
        peer.hears('{"stopped":null}')
        assert sorted(text for text in peer.heard if "pong" in str(text)) == [
            f'{{"pong":{{"n":{n}}}}}' for n in (1, 2, 3)
        ]


@pytest.mark.parametrize(
    "frame", ["null", "[]", "{}", "true", '"abc"', "[5,6]", "", b"", '{"":1}', '{"x":{"RELIABLE":1}}']
)
def test_no_frame_ends_more_than_itself(echo: Serving, frame: str | bytes) -> None:
    """D23: one text `null` ended the original."""
    with GeckosPeer(echo, ticket_for(echo, "echo")) as peer:
        peer.open()
        peer.say(frame)
        peer.emit("stop")
        peer.hears('{"stopped":null}')


# --- the end ----------------------------------------------------------------------------------------------------------


def reasons(site: Serving) -> list[Any]:
    return [fields["reason"] for _, event, fields in site.log.entries if event == "has left"]


def test_a_channel_that_closes_has_left_at_once(echo: Serving) -> None:
    with GeckosPeer(echo, ticket_for(echo, "echo")) as peer:
        peer.open()
        echo.until(lambda: len(room(echo, "echo").clients) == 1)
        peer.close()
        echo.until(lambda: reasons(echo) == ["left"])


def test_the_close_request_ends_it_too(echo: Serving) -> None:
    with GeckosPeer(echo, ticket_for(echo, "echo")) as peer:
        peer.open()
        assert signal(echo, f"{CONNECTIONS}/{peer.id}/close").status == 200
        peer.until(lambda: peer.closed)
        assert reasons(echo) == ["left"]
        assert signal(echo, f"{CONNECTIONS}/{peer.id}/close").status == 200


def test_who_falls_silent_is_lost_within_half_a_minute(echo: Serving) -> None:
    with GeckosPeer(echo, ticket_for(echo, "echo")) as peer:
        peer.open()
        echo.until(lambda: len(room(echo, "echo").clients) == 1)
        echo.clock.ahead += 30
        echo.until(lambda: reasons(echo) == ["lost"])


def test_who_is_kicked_sees_the_channel_close(echo: Serving) -> None:
    with GeckosPeer(echo, ticket_for(echo, "echo")) as peer:
        peer.open()
        peer.emit("kick")
        peer.until(lambda: peer.closed)
        assert peer.heard == ['{"hello":{"first":true}}'], "what was sent before still arrives"
        assert reasons(echo) == ["kicked"]
        assert len(echo.server.channels) == 0


# --- rude -------------------------------------------------------------------------------------------------------------

BODIES = [
    b"", b"{}", b"null", b"[]", b"7", b'"x"', b"{", b"\xff", b'{"type":"answer"}', b'{"sdp":"v=0"}', b"[" * 10_000,
    b'{"type":"answer","sdp":""}', b'{"type":"","sdp":"v=0"}', b'{"type":"offer","sdp":"v=0"}', b'{"type":1,"sdp":2}',
    b'{"type":"answer","sdp":"v=0"}', b'{"type":"answer","sdp":"garbage"}', b'{"type":"answer","sdp":"\\u0000"}',
    json.dumps({"type": "answer", "sdp": "v=0\r\n" + "a=x\r\n" * 2000}).encode(),
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_no_body_does_harm_and_the_offer_stays_good(site: Serving, body: bytes) -> None:
    """D22: two of these ended the original."""
    with GeckosPeer(site, answered=False) as peer:
        for _ in range(2):
            assert signal(site, f"{CONNECTIONS}/{peer.id}/remote-description", body).status == 400
        assert len(site.server.channels) == 0
        peer.status = peer.describe().status
        peer.open()


LINES = [
    ("a=setup:active", "a=setup:passive"),
    ("a=fingerprint:sha-256 ", "a=fingerprint:sha-1 "),
    ("a=ice-pwd:", "a=ice-pwd:ä"),
    ("a=ice-ufrag:", "a=ice-ufrag:\x00"),
    ("a=sctp-port:5000", "a=sctp-port:5001"),
    ("m=application 9", "m=application 0"),
    ("m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "m=audio 9 UDP/TLS/RTP/SAVPF 0"),
]


@pytest.mark.parametrize(("line", "instead"), LINES)
def test_an_answer_that_cannot_be_used_is_refused(site: Serving, line: str, instead: str) -> None:
    with GeckosPeer(site, answered=False) as peer:
        good = peer.answer
        assert line in good
        peer.answer = good.replace(line, instead)
        assert peer.describe().status == 400
        offer = {"type": "offer", "sdp": good}
        assert signal(site, f"{CONNECTIONS}/{peer.id}/remote-description", offer).status == 400
        peer.answer = good + "a=candidate:nonsense\r\na=candidate:1 1 UDP 1 999.1.1.1 1 typ host\r\n"
        peer.status = peer.describe().status  # what we do not need is not looked at
        peer.open()


def test_a_body_that_is_too_large_is_not_read(site: Serving) -> None:
    head = {"Content-Length": str(16 * 1024 + 1)}
    id = signal(site, CONNECTIONS).json["id"]
    for path in (CONNECTIONS, f"{CONNECTIONS}/{id}/remote-description"):
        assert signal(site, path, headers=head).status == 413
    assert signal(site, CONNECTIONS, b"x" * 16 * 1024).status == 200, "as much as is allowed, and never looked at"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "x", "application/json; charset=x"]
)
def test_the_content_type_is_not_believed(site: Serving, kind: str) -> None:
    with GeckosPeer(site, answered=False) as peer:
        peer.status = peer.describe({"Content-Type": kind}).status
        peer.open()


def test_an_answer_works_once(site: Serving) -> None:
    with GeckosPeer(site) as peer:
        peer.open()
        assert peer.describe().status == 404
        peer.close()
        site.until(lambda: len(site.server.channels) == 0)
        assert peer.describe().status == 404, "not even when the first channel has gone"
        assert len(site.server.channels) == 0


def test_an_offer_expires(site: Serving) -> None:
    with GeckosPeer(site, answered=False) as late, GeckosPeer(site, answered=False) as early:
        site.advance(OFFER_LIFE - 1)
        assert early.describe().status == 200
        site.advance(2)
        assert late.describe().status == 404
        site.advance(256 - 17)  # the time in an id has one byte
        assert late.describe().status == 404


def test_who_answers_and_then_says_nothing_is_given_up(site: Serving) -> None:
    with GeckosPeer(site):
        assert len(site.server.channels) == 1
        site.clock.ahead += 14
        (channel,) = site.server.channels._by_ufrag.values()
        site.until(lambda: channel.look_at > site.clock())  # it was looked at
        assert len(site.server.channels) == 1
        site.clock.ahead += 2
        site.until(lambda: len(site.server.channels) == 0)


def test_an_answer_from_another_address_is_not_taken() -> None:
    with serving(trusted_proxy=("127.0.0.0/8",)) as site:
        with GeckosPeer(site, {"X-Forwarded-For": "192.0.2.1"}, answered=False) as peer:
            assert peer.describe({"X-Forwarded-For": "192.0.2.2"}).status == 404
            assert peer.describe({"X-Forwarded-For": "192.0.2.1"}).status == 200
        with GeckosPeer(site, {"X-Forwarded-For": "2001:db8::1"}, answered=False) as peer:
            assert peer.describe({"X-Forwarded-For": "2001:db8::2"}).status == 200, "a household has one /64"


def test_offers_that_nobody_answers_leave_nothing_behind() -> None:
    """D24."""
    with serving(peers_per_address=0, max_clients=0) as site:
        state = site.call(lambda: held(site))
        ids = {signal(site, CONNECTIONS).json["id"] for _ in range(100)}
        assert len(ids) == 100
        assert site.call(lambda: held(site)) == state | {"rooms": 1}


def test_channels_that_come_and_go_leave_nothing_behind(site: Serving) -> None:
    state = site.call(lambda: held(site))
    for _ in range(10):
        with GeckosPeer(site) as peer:
            peer.open()
            peer.emit("tv", 1)
            peer.hears('{"tv":1}')
    site.until(lambda: len(site.server.channels) == 0)
    site.advance(31)
    signal(site, CONNECTIONS)  # what was remembered of answers is forgotten with the next
    with GeckosPeer(site) as peer:
        peer.open()
    site.until(lambda: len(site.server.channels) == 0)
    site.until(lambda: held(site)["dirty"] == 0)  # the last datagrams leave
    assert site.call(lambda: held(site)) == state | {"rooms": 1, "spent": 1}


def test_a_calm_channel_is_looked_at_seldom(site: Serving) -> None:
    with GeckosPeer(site) as peer:
        peer.open()
        peer.emit("tv", 1)
        peer.hears('{"tv":1}')
        (channel,) = site.server.channels._by_ufrag.values()
        site.until(lambda: channel.look_at > site.clock() + 1)  # seconds: this peer acknowledges nothing by itself


def test_a_channel_that_has_something_is_looked_at_in_the_next_tick_and_what_has_left_marks_none(site: Serving) -> None:
    with GeckosPeer(site) as peer:
        peer.open()
        channels = site.server.channels
        (channel,) = channels._by_ufrag.values()
        blob = channel.pack(message("tv", 1, reliable=False))

        def write() -> tuple[int, bool]:
            channels.flush(site.clock())
            before = channel.peer._association._sender.next_tsn
            channel.write(blob)
            channels._send_written(site.clock())
            return channel.peer._association._sender.next_tsn - before, channel in channels._dirty

        site.until(lambda: write() == (1, False))  # once the acknowledgement of the channel has been read

        def mark() -> float:
            channel.look_at = inf
            channels.mark(channel)
            channels.flush(site.clock())
            return float(channel.look_at)

        assert site.call(mark) <= site.clock()  # a network of the conditioner has brought it something, for instance


def test_what_a_flush_of_datagrams_brings_about_gets_a_turn(site: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    server = site.server
    monkeypatch.setattr(server.channels, "flush", lambda now: server._wake(0.0))

    def is_due_again() -> bool:
        server._due_now = False
        server._turn()
        return server._due_now

    assert site.call(is_due_again)


def test_what_datagrams_bring_gets_its_turn_at_once_even_if_reading_fails(
    site: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, turns = site.server, 0

    def flush(now: float) -> None:
        nonlocal turns
        turns += 1

    def fails() -> None:
        server._wake(0.0)
        raise RuntimeError("a reader that fails")

    def takes(read: Callable[[], None]) -> int:
        before = turns
        server._turn_after(read)
        return turns - before

    def all_ways() -> None:
        server._turn()
        assert takes(lambda: None) == 0 and takes(lambda: server._wake(0.0)) == 1
        assert not server._due_now and takes(lambda: None) == 0
        before = turns
        with pytest.raises(RuntimeError):
            server._turn_after(fails)
        assert turns == before + 1
        server._wake(0.0)  # a message by WebSocket, in the same round of the loop
        assert server._due_now and takes(lambda: server._wake(0.0)) == 0, "both share the turn that comes"

    monkeypatch.setattr(server.channels, "flush", flush)
    site.call(all_ways)
    site.until(lambda: not server._due_now)


def test_a_turn_looks_round_when_it_is_nearly_time(site: Serving) -> None:
    with GeckosPeer(site) as peer:
        peer.open()
        channels = site.server.channels
        (channel,) = channels._by_ufrag.values()

        def looks(at: float) -> bool:
            """A turn, when a look round is due at this time. It takes the place of the timer's, which waits anew."""
            before, channel.look_at, channels._look_at = channels._timer, 0.0, at
            site.server._turn()
            assert (channels._timer is before) == (before is not None and not before.cancelled())
            return channel.look_at > 0.0

        assert not site.call(lambda: looks(site.clock() + 1))
        assert site.call(lambda: looks(site.clock()))
        assert site.call(lambda: channels._look_at) > site.clock() - 1


def test_a_fault_in_a_look_does_not_stop_the_timer_of_all(site: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("a look that fails")

    with GeckosPeer(site) as peer:
        peer.open()
        channels = site.server.channels
        (channel,) = channels._by_ufrag.values()

        def goes_on() -> bool:
            before, channel.look_at = channels._timer, 0.0
            assert before is not None
            before.cancel()
            monkeypatch.setattr(channels, "_look", fails)
            with pytest.raises(RuntimeError):
                channels._tick()
            monkeypatch.undo()
            return channels._timer is not before

        assert site.call(goes_on)


def held(site: Serving) -> dict[str, int]:
    channels, signalling = site.server.channels, site.server.signalling
    return {
        "channels": len(channels),
        "early": len(channels._early),
        "addresses": len(channels._by_address) + len(channels._per_address),
        "dirty": len(channels._dirty),
        "spent": len(signalling._offers._spent),
        "used": len(signalling._tickets._used),
        "rooms": len(site.server.rooms.rooms),
    }


def test_a_flood_of_offers_is_refused_and_only_to_its_sender() -> None:
    with serving(peers_per_address=2) as site:
        statuses = [signal(site, CONNECTIONS, headers={"X-Forwarded-For": "192.0.2.1"}).status for _ in range(10)]
        assert statuses == [200] * 4 + [429] * 6
        assert signal(site, CONNECTIONS, headers={"X-Forwarded-For": "192.0.2.2"}).status == 200
        site.advance(4)
        assert signal(site, CONNECTIONS, headers={"X-Forwarded-For": "192.0.2.1"}).status == 200


def test_peers_per_address_are_limited() -> None:
    with serving(peers_per_address=2) as site, GeckosPeer(site) as one, GeckosPeer(site) as two:
        one.open()
        two.open()
        assert signal(site, CONNECTIONS).status == 429
        assert signal(site, CONNECTIONS, headers={"X-Forwarded-For": "192.0.2.2"}).status == 200
        one.close()
        site.until(lambda: len(site.server.channels) == 1)
        assert signal(site, CONNECTIONS).status == 200


def test_handshakes_per_second_are_limited_where_a_page_can_see_it(site: Serving) -> None:
    with GeckosPeer(site, answered=False) as peer:
        site.server.channels._handshakes = slow = Bucket(1 / 20, 1)  # as many as may be, but slower to come back
        assert site.call(lambda: slow.take(site.clock()))
        assert signal(site, CONNECTIONS).status == 503
        peer.status = peer.describe().status  # it was counted before
        peer.open()
        site.clock.ahead += 20
        assert signal(site, CONNECTIONS).status == 200


def test_before_the_handshake_is_over_little_is_sent_to_an_address_that_may_be_forged(site: Serving) -> None:
    """STUN at most as many bytes as came, all together at most three times as many."""
    with GeckosPeer(site) as liar:  # its address is a victim's: nothing that is sent there comes back to it
        sent: dict[bool, int] = {False: 0, True: 0}
        target = ("127.0.0.1", site.server.channels.port)

        def send(data: bytes) -> None:
            liar.sock.sendto(data, target)
            sent[data[0] <= 3] += len(data)

        (check, _), *_ = run(liar)
        for _ in range(3):
            send(check)
        answer, address = liar.sock.recvfrom(2048)
        received = {False: 0, True: len(answer)}
        liar.take(answer, address)
        hello = next(data for data, _ in run(liar) if data[0] == 22)
        send(hello)
        liar.sock.settimeout(0.05)
        for _ in range(12):  # what is repeated must not add up
            site.clock.ahead += 1
            with suppress(TimeoutError):
                while data := liar.sock.recv(2048):
                    received[data[0] <= 3] += len(data)
        assert 0 < received[True] <= sent[True]
        assert received[False] > 0 and sum(received.values()) <= 3 * sum(sent.values())
        site.clock.ahead += 4
        site.until(lambda: len(site.server.channels) == 0)


def run(peer: GeckosPeer) -> list[tuple[bytes, Any]]:
    """What it has to send, as soon as there is something."""
    while True:
        now = time.monotonic()
        peer.peer.run(now)
        if datagrams := peer.peer.transmit(now):
            return datagrams
        time.sleep(max(0.0, peer.peer.next_deadline - now))


@pytest.mark.parametrize("where", ["receive", "transmit", "run"])
def test_a_fault_of_ours_ends_one_channel_and_no_other(where: str) -> None:
    with serving(expect_faults=True) as site, GeckosPeer(site) as unlucky, GeckosPeer(site) as other:
        unlucky.open()
        other.open()
        channel = site.call(lambda: next(iter(site.server.channels._by_ufrag.values())))
        site.call(lambda: setattr(channel, "peer", Broken(channel.peer, where)))
        unlucky.emit("tv", 1)
        site.until(lambda: len(room(site, "lobby").clients) == 1)
        other.emit("tv", 2)
        other.hears('{"tv":2}')
        assert site.faults == 1 and len(site.server.channels) == 1


class Broken:
    """A peer of which one part fails."""

    def __init__(self, peer: Any, where: str) -> None:
        self._peer, self._where = peer, where

    def __getattr__(self, name: str) -> Any:
        if name == self._where:
            raise RuntimeError("broken")
        return float("-inf") if name == "next_deadline" else getattr(self._peer, name)


def test_nobody_takes_the_address_of_another_peer(site: Serving) -> None:
    with GeckosPeer(site) as victim, GeckosPeer(site) as thief:
        victim.open()
        thief.open()
        victim.emit("tv", 1)
        victim.hears('{"tv":1}')
        (check, _), *_ = checks_of(thief)
        channels = site.server.channels
        theirs = victim.sock.getsockname()
        owner = site.call(lambda: channels._by_address[theirs])
        site.call(lambda: channels._receive(check, theirs, site.clock()))  # its own check, with a forged sender
        assert site.call(lambda: channels._by_address[theirs]) is owner
        victim.emit("tv", 2)
        victim.hears('{"tv":2}')
        site.call(lambda: setattr(owner, "heard", site.clock() - 11))  # silent, so perhaps gone: ports are used again
        site.call(lambda: channels._receive(check, theirs, site.clock()))
        assert site.call(lambda: channels._by_address[theirs]) is not owner


def checks_of(peer: GeckosPeer) -> list[tuple[bytes, Any]]:
    """A question for consent, long before its time."""
    checks = peer.peer._checks
    assert checks is not None
    return checks.run(time.monotonic() + 10)


def test_a_slow_consumer_of_reliable_messages_is_let_go(echo: Serving) -> None:
    with GeckosPeer(echo, ticket_for(echo, "echo")) as slow:
        slow.open()
        slow.emit("flood")  # and reads nothing more
        echo.until(lambda: reasons(echo) == ["lost"])
        assert echo.refused["slow_consumer"] == 1 and len(echo.server.channels) == 0


ALL_OR_NONE = """
from session_server import Client, Room, on

class Pair(Room):
    @on("ready")
    def ready(self, client: Client):
        client.send("go")
    def on_leave(self, client: Client, reason: str):
        for other in tuple(self.clients):
            other.kick()
"""


def test_who_is_kicked_since_another_was_let_go_still_gets_what_was_sent_before() -> None:
    with (
        serving({"pair": ALL_OR_NONE}) as site,
        GeckosPeer(site, ticket_for(site, "pair")) as slow,
        GeckosPeer(site, ticket_for(site, "pair")) as other,
    ):
        for peer in (slow, other):
            peer.open()
            peer.emit("ready")
            peer.hears('{"go":null}')
        first = next(iter(site.server.channels._by_ufrag.values()))
        first.peer._association._sender._reliable_size = sctp_send.BUFFER  # as if it had taken nothing for long
        site.call(lambda: room(site, "pair").broadcast("news", 1))
        other.until(lambda: other.closed)
        assert other.heard[-1] == '{"news":1}' and site.refused["slow_consumer"] == 1


def test_who_comes_when_the_last_seat_was_taken_meanwhile_sees_the_channel_close() -> None:
    one = "from session_server import Room\nclass One(Room):\n    max_clients = 1\n    relay = True"
    with (
        serving({"one": one}) as site,
        GeckosPeer(site, ticket_for(site, "one")) as first,
        GeckosPeer(site, ticket_for(site, "one")) as second,
    ):
        first.open()
        second.until(lambda: second.closed)
        assert not first.closed and len(site.server.channels) == 1


def test_when_the_server_stops_the_channels_close() -> None:
    with serving() as site, GeckosPeer(site) as peer:
        peer.open()
        site.call(site.server.channels.close)
        peer.until(lambda: peer.closed)


def test_garbage_on_the_udp_port_is_dropped(site: Serving) -> None:
    with GeckosPeer(site) as peer:
        peer.open()
        target = ("127.0.0.1", site.server.channels.port)
        for data in (
            b"",
            b"\0",
            b"\x16\xfe\xfd",
            b"x" * 1500,
            bytes(2000),
            b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12),
        ):
            peer.sock.sendto(data, target)  # from the address of a peer, too
        peer.emit("tv", 1)
        peer.hears('{"tv":1}')


def test_a_sender_over_its_rate_costs_only_itself() -> None:
    limits = {"message_rate": 10.0, "message_burst": 5.0}
    with serving(**limits) as site, GeckosPeer(site) as rude, GeckosPeer(site) as other:
        rude.open()
        other.open()
        for number in range(10):
            rude.emit("fairy:point", number)
        target = ("127.0.0.1", site.server.channels.port)

        def flood() -> bool:
            rude.emit("fairy:point")
            for _ in range(20):
                rude.sock.sendto(b"\x17" + bytes(50), target)
            return site.server.rooms.totals.refused["datagram_over_rate"] >= 50  # not even decrypted

        rude.until(flood)
        assert site.refused["rate"] >= 1
        other.emit("tv", "still here")
        rude.hears('{"tv":"still here"}')
        other.until(lambda: len(other.heard) >= 5)


def test_copies_beyond_what_the_library_sends_count_as_messages() -> None:
    with serving(message_rate=1, message_burst=2) as site, GeckosPeer(site) as rude:
        rude.open()
        for _ in range(40):  # 20 copies are free
            rude.say('{"fairy:point":{"MESSAGE":1,"RELIABLE":1,"ID":"x"}}')
            rude.step()
        site.until(lambda: site.server.rooms.totals.refused["rate"] >= 1)


def test_a_message_that_is_too_large_is_dropped() -> None:
    small = "from session_server import Room\nclass Small(Room):\n    max_message = 100\n    relay = True"
    with serving({"small": small}) as site, GeckosPeer(site, ticket_for(site, "small")) as peer:
        peer.open()
        peer.peer.max_message_size = 1 << 20  # it does not care what we announce
        peer.say(b"x" * 101)
        peer.emit("tv", 1)
        peer.hears('{"tv":1}')
        assert site.refused["too_large"] == 1


# --- ids --------------------------------------------------------------------------------------------------------------


def test_an_id_holds_what_it_was_made_for() -> None:
    offers = Offers(b"secret")
    id = offers.issue(7 << 32 | 5, True, "192.0.2.1", 1000.7)
    found = offers.read(id, "192.0.2.1", 1015.0)
    assert (found.epoch, found.beside, len(id)) == (5, True, 24)
    for changed in (
        id[::-1],
        "A" * 24,
        "z" * 24,
        *(id[:at] + ("A" if id[at] != "A" else "B") + id[at + 1 :] for at in range(24)),
    ):
        with pytest.raises(ValueError):
            offers.read(changed, "192.0.2.1", 1001.0)
    with pytest.raises(ValueError):
        Offers(b"other").read(id, "192.0.2.1", 1001.0)
    assert as_letters(as_bytes(id)) == id


def test_what_is_remembered_of_answers_is_forgotten() -> None:
    offers = Offers(b"secret")
    for now in range(200):
        id = offers.issue(1, False, "192.0.2.1", float(now))
        offers.unspent(id, "192.0.2.1", float(now))
        offers.spend(id, float(now))
        assert len(offers._spent) <= 2 * OFFER_LIFE + 2
