"""Defects of the server that classic pages know, D1 to D32 of the design's wire.md §7.1: ours has none of them.

Each has a test named after it. D22 to D30 are of geckos.io: tests/test_signalling.py, tests/test_geckos.py.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import session_server
from playing import Pipe, Player, Playing
from serving import CLASSIC, Serving, request, serving
from session_server.geckos import BESIDE
from session_server.protocol import Hello
from session_server.rtc.sctp import messages
from session_server.transports.datachannel import PACK
from test_lobby import CODE, in_field, listed, lobby, page, quiet, watching

WEB = Path(session_server.__file__).parent / "web"


def well(play: Playing, *bystanders: Player) -> None:
    """Nothing is broken: no fault, and the bystanders still hear each other."""
    assert play.faults == 0
    quiet(*bystanders)
    bystanders[0].send("chat", "still here")
    assert all(one.heard("chat") == ["still here"] for one in bystanders)


# --- who hears what ---------------------------------------------------------------------------------------------------


def test_d1_what_is_said_in_a_room_stays_in_it() -> None:
    play = lobby(isolate_classic=True)
    ada, bob, eve = page(play, "field"), page(play, "field"), page(play, "prompt")
    v1 = play.join("chat")
    quiet(eve)
    ada.send("chat", 1)
    page(play, "field").close()
    assert bob.heard("chat") == [1] and eve.heard_all == []
    assert {heard.type.partition(":")[0] for heard in v1.heard_all} <= {"session"}


class Channel:
    """A geckos.io client's data channel, in memory: a page's second wire."""

    kind, dialect, pack, rtt, address, local = "datachannel", BESIDE, PACK[BESIDE], None, "192.0.2.9", "192.0.2.100"

    def __init__(self, play: Playing, slug: str) -> None:
        self.frames: list[Any] = []
        self.play = play
        play.rooms.join(slug, self, Hello(), play.now, self.joined)  # type: ignore[arg-type]
        play.settle()

    def joined(self, client: Any, error: Any) -> None:
        self.client = client

    def write(self, blob: bytes) -> None:
        self.frames += [json.loads(message.payload) for message in messages(blob)]

    def close(self, code: int, reason: str) -> None: ...

    def emit(self, type: str, content: Any) -> None:
        frame = json.dumps({type: content})
        self.client.core.inbox.receive(self.client, BESIDE.decode(frame), len(frame), self.play.now)
        self.play.settle()


@pytest.mark.parametrize("type", ["tv", "slide:code", "udp:audio", "fairy:point", "1v1:move"])
def test_d2_udp_events_of_rooms_do_not_mix(type: str) -> None:
    play = lobby(isolate_classic=True)
    ada, bob, eve = Channel(play, "field"), Channel(play, "field"), Channel(play, "prompt")
    ada.emit(type, '{"x":1}')
    assert bob.frames == [{type: '{"x":1}'}] and eve.frames == []


# --- who one is -------------------------------------------------------------------------------------------------------


def test_d3_what_a_page_says_of_itself_is_no_identity() -> None:
    play = lobby()
    ada, liar = in_field(play, "@ada"), page(play)
    for type in ("login", "udp:identity", "chat", "location:broadcast"):
        liar.send(type, {"user": {"sub": "auth0|ada"}, "handle": "@ada", "slug": "x"})
    liar.send("world:field:join", {"handle": "@ada"})
    assert [client.user for client in play.room("lobby").clients] == [None, None]
    liar.send("world:field:bye", {"handle": "@ada"})
    liar.close()
    assert set(listed(in_field(play, "@bob"))) == {"1", "2"}, "the first is where it was; the second is its own ghost"
    well(play, ada)


# --- input that is not as it should be --------------------------------------------------------------------------------

BAD_FRAMES = (
    "null", "[]", "7", '"a"', "{}", '{"type":null}', '{"type":7}', '{"content":1}', '{"type":""}', "", "{", "\x00",
    '{"type":"world:field:show"}', '{"type":"world:field:hide"}', '{"type":"world:field:show","content":{"a":1}}',
    '{"type":"world:field:move","content":{"pos":1}}', '{"type":"world:field:write"}',
    '{"type":"world:field:write","content":{"text":7}}', '{"type":"world:"}', '{"type":"world::join","content":1}',
    '{"type":"login"}', '{"type":"login","content":"x"}', '{"type":"code"}', '{"type":"code","content":"{"}',
    '{"type":"code","content":"null"}', '{"type":"slide","content":{"codeChannel":{}}}', '{"type":"code-channel:sub"}',
    '{"type":"code-channel:info","content":[]}', '{"type":"scream","content":{}}', '{"type":"location:broadcast"}',
    '{"type":"notepat:midi:publish","content":[]}', '{"type":"notepat:midi:subscribe","content":{"filter":7}}',
    '{"type":"daw:code"}', '{"type":"identify","content":{"type":{}}}', '{"type":"module:request","path":7}',
    '{"type":"world:field:join","content":' + "[" * 900 + "]" * 900 + "}",
    '{"type":"world:field:join","content":{"handle":"@a","x":' + "[" * 900 + "]" * 900 + "}}",
    '{"type":"dev:log","content":' + "[" * 900 + "]" * 900 + "}",
)  # fmt: skip


@pytest.mark.parametrize("development", [True, False])
def test_d4_no_frame_breaks_anything_for_others(development: bool) -> None:
    play = lobby(development=development, code_channels="open")
    ada, bob = in_field(play, "@ada"), in_field(play, "@bob")
    for frame in BAD_FRAMES:
        rogue = page(play)
        rogue.send_frame(frame)
        rogue.close()
        assert play.faults == 0, (frame, play.log.entries)
    well(play, ada, bob)
    assert set(listed(in_field(play, "@eve"))) >= {"1", "2"}


@pytest.mark.parametrize(
    "content", [None, {}, {"handle": None}, {"handle": 7}, {"handle": {}}, {"handle": ""}, [], "@ada"]
)
def test_d5_a_join_without_a_handle_poisons_no_world(content: Any) -> None:
    play = lobby()
    ada, rogue = in_field(play, "@ada"), page(play)
    quiet(ada)
    rogue.send("world:field:join", content)
    assert "world:field:join" not in ada.types()
    rogue.send("world:field:move", {"pos": 1})
    bob = in_field(play, "@bob")
    assert set(listed(bob)) == {"1"}
    rogue.close()
    assert ada.heard("left") == [{"count": 2}]
    well(play, ada, bob)


@pytest.mark.parametrize("name", ["__proto__", "constructor", "toString", "", "a" * 200, "\u202e", "a:b"])
def test_d6_no_name_is_special(name: str) -> None:
    play = lobby(code_channels="open")
    ada, bob = page(play), page(play)
    for player in (ada, bob):
        player.send(f"world:{name}:join", {"handle": "@x", "__proto__": {"polluted": 1}, "constructor": 1})
        player.send("code-channel:sub", name)
        player.send("code-channel:info", name)
    ada.send("code", {"codeChannel": name, "__proto__": {"polluted": 1}})
    assert all(figure == {} for figure in ada.heard(f"world:{name}:list"))
    for figures in bob.heard(f"world:{name}:list"):
        assert figures == {"1": {"handle": "@x", "__proto__": {"polluted": 1}, "constructor": 1}}
    well(play, ada, bob)


@pytest.mark.parametrize("path", ["../../etc/passwd", "lobby.py", "/etc/passwd", "x" * 1000, None, {"a": 1}])
def test_d7_no_file_of_the_server_can_be_read(path: Any) -> None:
    play = lobby()
    ada = page(play)
    quiet(ada)
    ada.send("module:request", path=path, withDeps=True)
    ada.send("module:check", path=path, hash="0" * 16)
    ada.send("module:list")
    assert [heard.type for heard in ada.heard_all] == ["module:error", "module:error", "module:list"]
    shown = "" if path is not None and len(json.dumps(path)) > 512 else path
    assert [heard.extra.get("path") for heard in ada.heard_all] == [shown, shown, None]
    assert ada.heard_all[2].extra == {"modules": []}
    well(play, ada)


# --- over HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site() -> Iterator[Serving]:
    with serving(new_rooms_per_address=0) as served:
        yield served


def status(site: Serving, path: str, method: str = "GET") -> int:
    return site.ask(request(path, {"Host": site.host, "Content-Length": "0"}, method))[0].status


def test_d7_no_module_is_served_by_http(site: Serving) -> None:
    assert {status(site, path) for path in ("/module/lib/disk.mjs", "/module/../../etc/passwd")} <= {400, 404}


def test_d8_building_and_updating_take_a_token(site: Serving) -> None:
    assert status(site, "/build-stream", "POST") == status(site, "/build-status", "POST") == 403
    assert status(site, "/reload", "POST") == status(site, "/jump", "POST") == 403
    assert status(site, "/update", "POST") == 405


def test_d9_nobody_is_shown_to_everybody(site: Serving) -> None:
    with site.join("/", CLASSIC) as ada:
        ada.send("location:broadcast", {"handle": "@ada-of-nowhere", "slug": "prompt"})
        site.settle(ada.sock)
        told = site.get("/status").text + site.get("/metrics").text
    assert "127.0.0.1" not in told and "ada-of-nowhere" not in told and "prompt" not in told
    for path in ("/status-stream", "/socklogs?role=viewer", "/machines?role=viewer", "/profile-stream?handle=a"):
        with site.upgrade(path) as peer:
            assert peer.status == 404, path


def test_d10_size_rate_address_and_pressure_have_limits() -> None:
    with serving(connections_per_address=2) as site:
        with site.join("/", CLASSIC) as ada, site.join("/", CLASSIC):
            with site.upgrade("/") as third:
                assert third.status == 429
            ada.send("chat", "x" * 1_100_000)
            assert ada.closed() == 1009
        assert site.refused["connections_per_address"] == 1
    play = lobby(message_rate=120, message_burst=240)
    ada, bob = page(play), page(play)
    with play.tick():
        for _ in range(500):
            ada.send("chat", 1)
    assert len(bob.heard("chat")) == 240 and play.refused["rate"] == 260
    bob.wire.max_unsent = 10_000  # as a transport has it
    bob.stall()
    for _ in range(20):
        play.advance(1)
        ada.send("chat", "x" * 1000)
    assert bob.wire.closed is not None and bob.wire.closed[0] == 1013
    assert isinstance(bob.wire.down, Pipe)


def test_d11_what_is_kept_is_bounded_and_a_second_channel_replaces_the_first() -> None:
    play = lobby(code_channels="open")
    ada, bob = page(play), watching(play, "first")
    for number in range(200):
        bob.send("code-channel:sub", f"channel {number}")
        ada.send("notepat:midi:publish", {"handle": f"{number}"})
        ada.send("code", {"codeChannel": f"code {number}", "source": "x" * 100_000})
        play.advance(1)
    room = play.room("lobby")
    assert list(room.watching.values()) == ["channel 199"] and len(room.sources) <= 4
    assert sum(len(channel.code or "") for channel in room.channels.values()) <= 4 * 1024 * 1024
    assert room._core.calls._timers and len(room._core.calls._timers) < 400, "subscriptions end"


# --- what never worked ------------------------------------------------------------------------------------------------


def test_d12_late_joiners_get_code_and_channels_are_counted() -> None:
    play = lobby(code_channels="open")
    ada = page(play)
    ada.send("code", CODE)
    ada.send("code-channel:sub", "mine")
    ada.send("code-channel:info", "mine")
    play.advance(0.1)
    assert len(ada.heard("code")) == 1 and ada.heard("code-channel:info") == [{"channel": "mine", "viewers": 1}]


def test_d13_where_people_are_is_known() -> None:
    play = lobby()
    ada, bob = page(play), play.join("lobby")
    ada.send("location:broadcast", {"handle": "@ada", "slug": "painting~1"})
    play.advance(0.1)
    assert (bob.people[1]["name"], bob.people[1]["data"]) == ("@ada", {"slug": "painting~1"})


def test_d14_a_returning_user_is_there_once() -> None:
    play = lobby()
    bob = in_field(play, "@bob")
    in_field(play, "@ada").close()
    in_field(play, "@ada")
    assert bob.heard("world:field:kick") == [{}] and set(listed(in_field(play, "@eve"))) == {"1", "3"}
    play.advance(20)
    assert bob.heard("world:field:kick") == [{}]


def test_d15_screams_and_goodbyes_need_no_other_server() -> None:
    play = lobby()
    ada, bob = page(play), page(play)
    ada.send("login", {"token": "ada's"})
    ada.send("scream", "AAA")
    assert bob.heard("scream") == ["AAA"]
    ada.close()
    assert bob.heard("left") == [{"count": 1}]
    ghost, eve = in_field(play, "@ghost"), in_field(play, "@eve")
    ghost.close()
    eve.close()
    assert bob.types()[-2:] == ["world:field:ghost", "world:field:ghost"]
    play.advance(6)
    assert play.room("lobby").worlds == {} == play.room("lobby").inside
    well(play, bob)


def test_d16_whoever_answers_pings_stays_whoever_does_not_goes(site: Serving) -> None:
    with site.join("/", CLASSIC) as ada, site.join("/", CLASSIC) as mute:
        for _ in range(4):
            site.advance(15)
            ada.send("chat", 1)
            while ada.message()["type"] != "chat":
                pass
            site.settle(ada.sock)
        assert mute.closed() in {0, 1001, 1006}


def test_d17_code_is_a_string_whatever_a_page_sent() -> None:
    play = lobby(code_channels="open")
    ada, bob = page(play), watching(play)
    ada.send("code", CODE)
    ada.send("code", json.dumps(CODE))
    assert [json.loads(content) for content in bob.heard("code")] == [CODE, CODE]


def test_d18_there_is_no_gateway_for_raw_datagrams(site: Serving) -> None:
    """A datagram that asks nothing we know is answered by nothing: no reflection."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", site.port))
        sock.send(b"\x01" + b"\x00" * 8 + b"\xff" + b"a" * 255)
        sock.send(b'{"type":"notepat:midi"}')
        site.call(lambda: None)
        sock.setblocking(False)
        with pytest.raises((BlockingIOError, ConnectionRefusedError)):
            sock.recv(2048)


@pytest.mark.parametrize(
    "content", [None, {}, {"handle": "@a", "targetX": "NaN"}, "[", {"targetX": [], "targetY": None}]
)
def test_d19_bad_input_for_a_game_is_only_passed_on(content: Any) -> None:
    play = lobby()
    ada, bob = page(play), page(play)
    ada.send("duel:input", content)
    assert bob.heard("duel:input") == [content]
    well(play, ada, bob)


def test_d20_no_page_of_ours_carries_credentials() -> None:
    found = [path for path in WEB.rglob("*") if path.is_file()]
    assert found
    for path in found:
        source = path.read_text(encoding="utf-8")
        assert "turn:" not in source and "iceTransportPolicy" not in source and "credential:" not in source, path


def test_d21_joining_a_world_logs_no_roster() -> None:
    play = lobby()
    for number in range(20):
        in_field(play, f"@handle-{number}")
    assert "@handle" not in repr(play.log.entries)


def test_d31_who_leaves_is_gone_however_the_handle_is_written() -> None:
    play = lobby()
    bob = in_field(play, "@bob")
    for handle in ("@ADA", "@Ada", "Ada", "ada"):
        in_field(play, handle).close()
    play.advance(6)
    assert set(listed(in_field(play, "@eve"))) == {"1"}
    well(play, bob)


def test_d32_there_are_no_profile_events_to_post(site: Serving) -> None:
    assert status(site, "/profile-event", "POST") == 405
