"""The classic lobby: what existing pages say to it, and what they are told (wire.md of the design, §4)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from playing import Player, Playing
from session_server.pieces import Pieces
from session_server.pieces._code import MAX_KEPT
from session_server.pieces._studio import MAX_SOURCES
from session_server.pieces._worlds import MAX_ENTRY, MAX_GHOSTS, MAX_POS, MAX_SHOWING, MAX_TEXT, MAX_WORLDS
from session_server.protocol import Message, Refused
from session_server.room import User

PIECES = Pieces(None)
ADA = User("auth0|ada", "ada", {"sub": "auth0|ada"})
CODER = User("auth0|eve", "eve", {"sub": "auth0|eve", "code": ["mine"]})
TOKENS = {"ada's": ADA, "eve's": CODER}


def verify(token: str) -> User | None:
    if token not in TOKENS:
        raise Refused("token refused")
    return TOKENS[token]


def lobby(**settings: Any) -> Playing:
    return Playing(PIECES, verify=verify, **settings)


def page(play: Playing, slug: str = "lobby") -> Player:
    return play.join(slug, classic=True)


def in_field(play: Playing, handle: str, slug: str = "lobby") -> Player:
    """A page that stands in the world of `field`."""
    player = page(play, slug)
    player.send("world:field:join", {"handle": handle, "pos": {"x": 0}, "face": "😀"})
    return player


def told(player: Player) -> list[tuple[str, Any, Any]]:
    """What it was told since `forget`: type, content, id."""
    heard = [(heard.type, heard.content, heard.id) for heard in player.heard_all]
    player.forget()
    return heard


def quiet(*players: Player) -> None:
    for player in players:
        player.forget()


def listed(player: Player) -> Any:
    return player.heard("world:field:list")[-1]


# --- coming and going -------------------------------------------------------------------------------------------------


def test_greetings_are_strings_and_goodbyes_objects() -> None:
    play = lobby()
    ada, bob = page(play), page(play)
    [own] = told(bob)
    assert (own[0], json.loads(own[1]), own[2]) == ("connected", {"ip": bob.address, "playerCount": 2, "id": 2}, 2)
    assert told(ada)[1] == ("joined", '{"text":"2 has joined. Connections open: 2"}', 2)
    bob.close()
    assert told(ada) == [("left", {"count": 1}, 2)]


@pytest.mark.parametrize("type", ["pond:new", "1v1:join", "1v1:state", "chat", "worlds", "code-channel", "vscode"])
def test_a_type_that_nobody_names_goes_to_everyone(type: str) -> None:
    play = lobby()
    ada, bob = page(play), page(play)
    quiet(ada, bob)
    ada.send(type, {"x": 1}, more=2)
    assert told(ada) == told(bob) == [(type, {"x": 1}, ada.seat.id)]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "type",
    ["1v1:move", "squash:move", "world:field:move", "world:field:write:clear", "world:field:mood", "world:a:leave"],
)
def test_these_types_go_to_the_others(type: str) -> None:
    play = lobby()
    ada, bob = page(play), page(play)
    quiet(ada, bob)
    ada.send(type, {"x": 1}, more=2)
    assert told(ada) == [] and bob.only(type).extra == {"more": 2} and told(bob) == [(type, {"x": 1}, 1)]


@pytest.mark.parametrize(
    "type",
    [
        "world:field:list", "world:field:ghost", "world:field:kick", "world::slug", "reload", "connected", "jump",
        "vscode-extension:reload", "dev:identity", "build:log", "notepat:midi",
    ],
)  # fmt: skip
def test_what_the_server_says_cannot_be_forged(type: str) -> None:
    play = lobby()
    ada, bob = page(play), page(play)
    quiet(ada, bob)
    ada.send(type, {})
    assert told(ada) == told(bob) == [] and play.refused == {"server_owned": 1}


# --- worlds -----------------------------------------------------------------------------------------------------------


def test_who_joins_a_world_is_listed_the_others_and_shown_to_them() -> None:
    play = lobby()
    ada = in_field(play, "@ada")
    assert listed(ada) == {}, "without itself"
    ada.send("world:field:move", {"pos": {"x": 5, "y": 1.5}})
    ada.send("world:field:show", {"piece": "x"})
    quiet(ada)
    bob = in_field(play, "@bob")
    assert listed(bob) == {"1": {"handle": "@ada", "pos": {"x": 5, "y": 1.5}, "face": "😀", "showing": {"piece": "x"}}}
    assert told(ada)[1:] == [("world:field:join", {"handle": "@bob", "pos": {"x": 0}, "face": "😀"}, 2)]
    quiet(bob)
    ada.send("world:field:hide")
    assert [heard.type for heard in bob.heard_all] == ["world:field:hide"]
    assert listed(in_field(play, "@eve"))["1"]["showing"] is None


def test_who_joins_again_is_not_listed_to_itself() -> None:
    play = lobby()
    ada = in_field(play, "@ada")
    ada.send("world:field:join", {"handle": "@ada", "again": True})
    assert ada.heard("world:field:list") == [{}, {}]
    assert listed(in_field(play, "@bob")) == {"1": {"handle": "@ada", "again": True}}


def test_joining_has_a_rate() -> None:
    play = lobby()
    ada = page(play)
    for _ in range(10):
        ada.send("world:field:join", {"handle": "@ada"})
    assert len(ada.heard("world:field:list")) == 2 and play.refused == {"type_rate": 8}


@pytest.mark.parametrize("depth", range(860, 1000, 2))
def test_however_deep_a_join_is_nested_the_next_is_listed_what_there_is(depth: int) -> None:
    play = lobby()
    ada, bob = page(play), page(play)
    nested = "[" * depth + "]" * depth
    ada.send_frame(f'{{"type":"world:field:join","content":{{"handle":"@a","x":{nested}}}}}')
    entered = bool(ada.heard("world:field:list"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json, "loads", lambda text: {"type": "list", "content": text})  # ours would not read so deep
        bob.send_frame('{"type":"world:field:join","content":{"handle":"@b"}}')
    assert play.faults == 0 and any(nested.encode() in data for data in bob.wire.written) == entered


def test_worlds_are_independent() -> None:
    play = lobby()
    ada = in_field(play, "@ada")
    bob = page(play)
    bob.send("world:horizon:join", {"handle": "@bob"})
    assert bob.heard("world:horizon:list") == [{}] and set(play.room("lobby").worlds) == {"field", "horizon"}
    ada.close()
    bob.close()
    assert play.room("lobby").worlds == play.room("lobby").inside == {}


def test_a_move_is_passed_on_as_it_came() -> None:
    play = lobby()
    ada, bob = page(play), page(play)
    quiet(ada, bob)
    ada.send_frame('{"type":"world:field:move","content":{"pos":{"x":1.0,"y":2e0}, "z":[]},"more":1}')
    assert bob.wire.written[-1].endswith(
        b'{"type":"world:field:move","content":{"pos":{"x":1.0,"y":2e0}, "z":[]},"more":1,"id":1}'
    )


@pytest.mark.parametrize("content", ["darn it", {"text": "darn it"}])
def test_what_is_written_is_filtered_and_comes_to_everyone(content: Any) -> None:
    play = lobby()
    ada, bob = in_field(play, "@ada"), in_field(play, "@bob")
    play.room("lobby").clean = lambda text: text.replace("darn", "****")
    quiet(ada, bob)
    ada.send("world:field:write", content)
    clean = json.loads(json.dumps(content).replace("darn", "****"))
    assert told(ada) == told(bob) == [("world:field:write", clean, 1)]
    ada.send("world:laer-klokken:write", content)
    assert told(bob) == [("world:laer-klokken:write", content, 1)]


# --- ghosts -----------------------------------------------------------------------------------------------------------


def test_a_handle_that_goes_is_a_ghost_for_five_seconds() -> None:
    play = lobby()
    ada, bob = in_field(play, "@ada"), in_field(play, "@bob")
    quiet(bob)
    ada.close()
    assert told(bob) == [("world:field:ghost", {}, 1)], "and no `left`: pages would remove it"
    eve = in_field(play, "@eve")
    assert listed(eve)["1"]["ghost"] is True
    quiet(bob)
    play.advance(4.9)
    assert told(bob) == []
    play.advance(0.2)
    assert told(bob) == [("world:field:kick", {}, 1)]
    assert set(listed(in_field(play, "@dan"))) == {"2", "3"}


@pytest.mark.parametrize("handle", ["nub", "ada"])
def test_who_has_no_handle_simply_leaves(handle: str) -> None:
    play = lobby()
    ada, bob = in_field(play, handle), in_field(play, "@bob")
    quiet(bob)
    ada.close()
    assert told(bob) == [("left", {"count": 1}, 1)]


def test_who_was_alone_in_its_world_simply_leaves() -> None:
    play = lobby()
    ada, bob = in_field(play, "@ada"), page(play)
    quiet(bob)
    ada.close()
    assert told(bob) == [("left", {"count": 1}, 1)] and play.room("lobby").worlds == {}


def test_who_was_kicked_leaves_no_ghost() -> None:
    play = lobby()
    ada, bob = in_field(play, "@ada"), in_field(play, "@bob")
    quiet(bob)
    ada.seat.kick()  # type: ignore[union-attr]
    play.settle()
    assert told(bob) == [("left", {"count": 1}, 1)]


def test_who_comes_back_is_there_once() -> None:
    play = lobby()
    ada, bob = in_field(play, "@ada"), in_field(play, "@bob")
    ada.close()
    quiet(bob)
    back = in_field(play, "@ada")
    assert set(listed(back)) == {"2"} and back.heard("world:field:kick") == []
    assert [(type, id) for type, _, id in told(bob)] == [
        ("joined", 3), ("world:field:kick", 1), ("world:field:join", 3),
    ]  # fmt: skip
    play.advance(10)
    assert told(bob) == [] and play.faults == 0, "the kick of the timer would be the second"


def test_a_second_page_of_the_same_handle_takes_nothing_from_the_first() -> None:
    play = lobby()
    ada = in_field(play, "@ada")
    quiet(ada)
    other = in_field(play, "@ada")
    assert set(listed(other)) == {"1"} and [type for type, _, _ in told(ada)] == ["joined", "world:field:join"]


def test_a_ghost_is_shown_as_long_as_its_handle_is_about_and_says_where() -> None:
    play = lobby()
    ada, bob = in_field(play, "@ada"), in_field(play, "@bob")
    ada.close()
    elsewhere = page(play)
    quiet(bob)
    elsewhere.send("location:broadcast", {"handle": "@ada", "slug": "prompt~hi"})
    assert told(bob) == [("world:field:slug", {"handle": "@ada", "slug": "prompt~hi"}, 1)]
    for _ in range(4):
        play.advance(2.5)
        elsewhere.send("location:broadcast", {"handle": "@ada", "slug": "*keep-alive*"})
    assert told(bob) == []
    elsewhere.close()
    quiet(bob)
    play.advance(5.1)
    assert told(bob) == [("world:field:kick", {}, 1)]


@pytest.mark.parametrize("slug", ["field", "horizon", "horizon~x", "field:2"])
def test_a_ghost_goes_at_once_when_its_handle_is_in_a_world_again(slug: str) -> None:
    play = lobby()
    ada, bob = in_field(play, "@ada"), in_field(play, "@bob")
    ada.close()
    quiet(bob)
    page(play).send("location:broadcast", {"handle": "@ada", "slug": slug})
    assert [type for type, _, _ in told(bob)] == ["joined", "world:field:kick"]


def test_the_ghost_of_a_verified_user_listens_to_that_user_alone() -> None:
    play = lobby()
    ada, bob = page(play), in_field(play, "@bob")
    ada.send("login", {"token": "ada's", "user": {"sub": "anything"}})
    ada.send("world:field:join", {"handle": "@ada"})
    ada.close()
    quiet(bob)
    liar = in_field(play, "@ada")
    liar.send("location:broadcast", {"handle": "@ada", "slug": "prompt"})
    assert set(listed(liar)) == {"1", "2"}, "the ghost stays"
    assert "world:field:slug" not in bob.types() and "world:field:kick" not in bob.types()
    back = page(play)
    back.send("login", {"token": "ada's"})
    back.send("location:broadcast", {"handle": "@ada", "slug": "prompt"})
    assert bob.heard("world:field:slug") == [{"handle": "@ada", "slug": "prompt"}]
    back.send("world:field:join", {"handle": "@ada"})
    assert bob.only("world:field:kick").id == 1


def test_where_a_handle_is_crosses_rooms() -> None:
    play = lobby(isolate_classic=True)
    ada, bob = in_field(play, "@ada", "field"), in_field(play, "@bob", "field")
    ada.close()
    quiet(bob)
    page(play, "prompt").send("location:broadcast", {"handle": "@ada", "slug": "prompt"})
    assert told(bob) == [("world:field:slug", {"handle": "@ada", "slug": "prompt"}, 1)]


def test_a_lobby_that_takes_over_from_another_has_its_people_and_no_ghosts() -> None:
    play = lobby()
    ada, bob = in_field(play, "@ada"), in_field(play, "@bob")
    bob.send("code-channel:sub", "chan")
    ada.close()
    quiet(bob)
    problems: list[Any] = []
    play.rooms.swap(play.core("lobby"), type(play.room("lobby")), problems.append)
    play.settle()
    assert problems == [None] and told(bob) == [("world:field:kick", {}, 1)]
    play.rooms.post("lobby", Message("code", b'{"codeChannel":"chan"}', "redis"), play.now)  # type: ignore[arg-type]
    play.advance(10)
    assert told(bob) == [("code", '{"codeChannel":"chan"}', "development")]
    assert set(listed(in_field(play, "@eve"))) == {"2"} and play.faults == 0


# --- code channels ----------------------------------------------------------------------------------------------------

CODE = {"codeChannel": "mine", "piece": "x", "source": "// <ü>"}


def watching(play: Playing, channel: str = "mine", slug: str = "lobby") -> Player:
    player = page(play, slug)
    player.send("code-channel:sub", channel)
    player.forget()
    return player


def test_code_comes_to_those_who_watch_the_channel_as_a_string_that_pages_run() -> None:
    play = lobby(code_channels="open")
    ada, bob, eve = page(play), watching(play), watching(play, "other")
    ada.send("code", CODE)
    assert json.loads(bob.only("code").content) == CODE and bob.only("code").id == "development"
    assert "code" not in ada.types() + eve.types()


def test_late_joiners_are_sent_the_last_code_of_their_channel() -> None:
    play = lobby(code_channels="open")
    ada = page(play)
    ada.send("code", CODE)
    ada.send("code", CODE | {"source": "2"})
    ada.send("code", CODE | {"codeChannel": "other"})
    bob = page(play)
    bob.send("code-channel:sub", "mine")
    assert [json.loads(content)["source"] for content in bob.heard("code")] == ["2"]
    assert bob.only("code").id == "development"


def test_whoever_may_not_push_code_cannot_make_pages_run_it() -> None:
    play = lobby()  # production: --code-channels token
    ada, bob = page(play), watching(play)
    ada.send("code", CODE)
    assert [(type, json.loads(content), id) for type, content, id in told(bob)] == [("code", CODE, "code-channel")]
    late = page(play)
    late.send("code-channel:sub", "mine")
    assert late.heard("code") == [], "nor is it kept"


@pytest.mark.parametrize(("token", "channel", "may"), [("ada's", "mine", False), ("eve's", "mine", True),
                                                       ("eve's", "other", False)])  # fmt: skip
def test_a_verified_claim_lets_push(token: str, channel: str, may: bool) -> None:
    play = lobby(code_channels="token")
    ada, bob = page(play), watching(play, channel)
    ada.send("login", {"token": token})
    ada.send("code", CODE | {"codeChannel": channel})
    assert bob.only("code").id == ("development" if may else "code-channel")


def test_a_publisher_with_the_admin_token_may_push_even_before_anybody_watches() -> None:
    play = lobby()
    content = json.dumps(CODE).encode()
    play.rooms.post("lobby", Message("code", content, 0), play.now)  # type: ignore[arg-type]
    play.settle()
    bob = page(play)
    bob.send("code-channel:sub", "mine")
    assert json.loads(bob.only("code").content) == CODE and bob.only("code").id == "development"


def test_a_page_watches_one_channel() -> None:
    play = lobby(code_channels="open")
    ada, bob = page(play), watching(play, "one")
    bob.send("code-channel:sub", "two")
    ada.send("code", CODE | {"codeChannel": "one"})
    ada.send("slide", {"codeChannel": "two", "v": 1})
    assert [(type, id) for type, _, id in told(bob)] == [("slide", "code-channel")]


@pytest.mark.parametrize("type", ["slide", "audio"])
def test_slides_and_audio_are_for_the_channel_and_not_kept(type: str) -> None:
    play = lobby()
    ada, bob, eve = page(play), watching(play), page(play)
    quiet(ada, eve)
    ada.send(type, {"codeChannel": "mine", "v": [1.5]})
    assert bob.only(type).content == {"codeChannel": "mine", "v": [1.5]} and bob.only(type).id == "code-channel"
    assert eve.heard_all == [] and watching(play).heard_all == []


@pytest.mark.parametrize("type", ["code", "slide", "audio"])
def test_without_a_channel_they_are_like_any_type(type: str) -> None:
    play = lobby(code_channels="open")
    ada, bob = page(play), page(play)
    quiet(ada, bob)
    ada.send(type, {"piece": "x"})
    assert told(ada) == told(bob) == [(type, {"piece": "x"}, 1)], "an id, so no page runs it"


def test_how_many_watch_a_channel() -> None:
    play = lobby()
    ada = page(play)
    watching(play), watching(play), watching(play, "other")
    quiet(ada)
    ada.send("code-channel:info", "mine")
    play.advance(0.1)
    assert told(ada) == [("code-channel:info", {"channel": "mine", "viewers": 2}, 0)]


def test_code_channels_cross_rooms() -> None:
    play = lobby(isolate_classic=True, code_channels="open")
    ada, bob = page(play, "prompt"), watching(play, slug="field")
    ada.send("code", CODE)
    assert json.loads(bob.only("code").content) == CODE and bob.only("code").id == "development"
    late = page(play, "horizon")
    late.send("code-channel:sub", "mine")
    assert json.loads(late.only("code").content) == CODE, "the last code, from another room"
    bob.forget()
    ada.send("code-channel:info", "mine")
    play.advance(0.1)
    assert ada.heard("code-channel:info") == [{"channel": "mine", "viewers": 2}] and bob.heard_all == []


def test_viewers_are_counted_over_all_rooms_as_they_are_now() -> None:
    play = lobby(isolate_classic=True)
    ada, bob, eve = page(play, "prompt"), watching(play, slug="field"), watching(play, slug="horizon")

    def counted(*askers: Player) -> list[int]:
        quiet(*askers)
        play.advance(1)
        with play.tick():
            for asker in askers:
                asker.send("code-channel:info", "mine")
        play.advance(0.1)
        return [asker.only("code-channel:info").content["viewers"] for asker in askers]

    assert counted(ada) == [2]
    assert counted(bob, ada, eve) == [2, 2, 2]
    bob.close()
    assert counted(ada) == [1] and counted(eve) == [1]
    eve.close()
    assert counted(ada) == [0] and play.room("prompt").channels == {}


def test_of_too_much_code_the_oldest_goes() -> None:
    play = lobby(code_channels="open")
    ada = page(play)
    for name in ("first", *map(str, range(MAX_KEPT - 1)), "first", "one more"):
        ada.send("code", {"codeChannel": name})
        play.advance(0.2)
    assert "first" in play.room("lobby").channels and "0" not in play.room("lobby").channels


def test_a_channel_that_nobody_needs_is_forgotten() -> None:
    play = lobby()
    ada, bob = page(play), watching(play)
    ada.send("slide", {"codeChannel": "x" * 20})
    ada.send("code-channel:info", "y")
    play.advance(0.1)
    bob.close()
    assert play.room("lobby").channels == {} == play.room("lobby").watching


# --- who and where ----------------------------------------------------------------------------------------------------


def test_presence_shows_where_pages_are() -> None:
    play = lobby()
    ada, bob = page(play), play.join("lobby", name="bob")
    ada.send("location:broadcast", {"handle": "@ada", "slug": "prompt~x", "user": {"sub": "secret"}})
    play.advance(0.1)
    assert bob.people[1]["name"] == "@ada" and bob.people[1]["data"] == {"slug": "prompt~x"}
    assert bob.people[1]["handle"] is bob.people[1]["user"] is None, "a claim proves nothing"
    ada.send("location:broadcast", {"handle": "@ada", "slug": "*keep-alive*"})
    ada.send("location:broadcast", {"handle": "@\u202eada", "slug": "prompt"})
    play.advance(0.1)
    assert bob.people[1]["name"] == "@ada" and bob.people[1]["data"] == {"slug": "prompt~x"}
    assert "location:broadcast" not in bob.types()


def test_who_logs_in_with_a_token_is_a_user_and_others_are_not() -> None:
    play = lobby()
    ada, liar, bob = page(play), page(play), play.join("lobby", name="bob")
    ada.send("login", {"token": "ada's"})
    liar.send("login", {"user": {"sub": "auth0|ada", "handle": "ada"}})
    liar.send("login", {"token": "forged"})
    play.advance(0.1)
    assert {id: person["user"] for id, person in bob.people.items()} == {1: "auth0|ada", 2: None, 3: None}
    assert bob.people[1]["handle"] == "ada" and "login" not in bob.types() and play.faults == 0


def test_a_scream_of_a_user_is_heard_in_every_room() -> None:
    play = lobby(isolate_classic=True)
    ada, bob = page(play, "prompt"), page(play, "field")
    quiet(ada, bob)
    ada.send("scream", "hello?")
    assert told(bob) == []
    ada.send("login", {"token": "ada's"})
    play.advance(10)
    play.room("prompt").clean = lambda text: text.replace("darn", "****")
    ada.send("scream", "darn!")
    assert told(ada) == told(bob) == [("scream", "****!", "screamer")]


def test_screams_are_rare() -> None:
    play = lobby(development=True)
    ada, bob = page(play), page(play)
    for _ in range(5):
        ada.send("scream", "a")
    bob.send("scream", "b")
    assert bob.heard("scream") == ["a"]
    play.advance(11)
    bob.send("scream", "b")
    assert bob.heard("scream") == ["a", "b"]


@pytest.mark.parametrize("type", ["login", "logout:broadcast:subscribe", "location:broadcast", "identify", "dev:log"])
def test_these_are_nobody_elses_business(type: str) -> None:
    play = lobby()
    ada, bob = page(play), page(play)
    quiet(ada, bob)
    ada.send(type, {"handle": "@ada", "slug": "prompt", "type": "vscode", "user": {"sub": "auth0|ada"}})
    assert told(ada) == told(bob) == []


# --- development ------------------------------------------------------------------------------------------------------


def test_in_development_a_page_has_a_letter_and_its_log_is_ours() -> None:
    play = lobby(development=True)
    ada = page(play)
    assert ada.types() == ["connected", "dev:identity"] and ada.only("dev:identity").id == "dev"
    identity = ada.only("dev:identity").content
    assert (identity["letter"], identity["connectionId"], identity["mode"]) == ("A", 1, "LAN Dev")
    ada.send("dev:log", {"level": "warn", "args": ["x" * 10_000]})
    [entry] = play.log.entries
    assert entry["event"] == "dev:log" and entry["client"] == 1 and len(entry["content"]) <= 2000
    bob = page(lobby())
    assert bob.types() == ["connected"], "not in production"


def test_an_editor_hears_of_jumps() -> None:
    play = lobby(development=True)
    ada, bob = page(play), page(play)
    ada.send("identify", {"type": "vscode"})
    assert ada.only("identified").content == {"type": "vscode", "id": 1}
    quiet(ada, bob)
    play.room("lobby").publish("everybody", {"type": "jump", "content": {"piece": "x"}, "id": "pieces"})
    play.settle()
    assert told(ada) == [("vscode:jump", {"piece": "x"}, "vscode"), ("jump", {"piece": "x"}, "pieces")]
    assert told(bob) == [("jump", {"piece": "x"}, "pieces")]


# --- instruments ------------------------------------------------------------------------------------------------------

NOTE = {
    "event": "on",
    "note": 60,
    "velocity": 0.5,
    "channel": 0,
    "handle": "@Ada",
    "machineId": "m1",
    "piece": "notepat",
}


@pytest.mark.parametrize(
    ("wanted", "hears"),
    [
        ({"all": True}, True), ({"handle": "@ADA"}, True), ({"filter": {"handle": "ada"}}, True),
        ({"machineId": "m1"}, True), ({"handle": "ada", "machineId": "m2"}, False), ({"handle": "bob"}, False),
        ({}, False),
    ],
)  # fmt: skip
def test_notes_come_to_those_who_asked_for_them(wanted: dict[str, Any], hears: bool) -> None:
    play = lobby()
    ada, bob, eve = page(play), page(play), page(play)
    bob.send("notepat:midi:subscribe", wanted)
    assert [heard.id for heard in bob.heard_all[-2:]] == ["midi-relay", "midi-relay"]
    assert bob.only("notepat:midi:sources").content == {"sources": []}
    quiet(ada, bob, eve)
    ada.send("notepat:midi:publish", NOTE)
    expected = {"type": "notepat:midi", **NOTE, "handle": "ada", "ts": None}
    assert told(bob) == ([("notepat:midi", expected, "midi-relay")] if hears else [])
    assert ada.heard_all == eve.heard_all == []


def test_what_comes_by_a_data_channel_is_json_in_a_string() -> None:
    play = lobby()
    ada, bob = page(play), page(play)
    bob.send("notepat:midi:subscribe", '{"filter":{"handle":"ada"}}')
    for content in (json.dumps(NOTE), "{", "null", "7", '{"note":"x"}'):
        ada.send("notepat:midi:publish", content)
    assert len(bob.heard("notepat:midi")) == 1 and play.faults == 0


def test_instruments_are_listed_for_twenty_seconds() -> None:
    play = lobby()
    ada, bob = page(play), page(play)
    ada.send("notepat:midi:heartbeat", NOTE)
    for handles in (["ada"], []):
        bob.send("notepat:midi:sources")
        assert [one["handle"] for one in bob.heard("notepat:midi:sources")[-1]["sources"]] == handles
        play.advance(20.5)
    bob.send("notepat:midi:unsubscribe")
    assert bob.only("notepat:midi:unsubscribed").content is True


def test_devices_that_joined_play_the_same_code() -> None:
    play = lobby()
    ada, bob, eve = page(play), page(play), page(play)
    bob.send("daw:join")
    assert bob.only("daw:joined").content == {"id": 2} and bob.only("daw:joined").id is None
    quiet(ada, bob, eve)
    ada.send("daw:code", {"source": "x"})
    assert (bob.only("daw:code").content, bob.only("daw:code").extra) == ({"source": "x"}, {"from": 1})
    assert ada.heard_all == eve.heard_all == []


# --- what a client can make the lobby remember ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type", "content"),
    [
        ("world:field:join", {"handle": "@ada", "x": "x" * MAX_ENTRY}),
        ("world:field:join", {"handle": "@" + "a" * 64}),
        ("world:field:move", {"pos": "x" * MAX_POS}),
        ("world:field:show", "x" * MAX_SHOWING),
        ("world:field:write", "x" * (MAX_TEXT + 1)),
        ("code-channel:sub", "x" * 129),
        ("location:broadcast", {"handle": "@ada", "slug": "x" * 129}),
        ("notepat:midi:publish", {"handle": "x" * 65}),
        ("scream", "x" * 501),
    ],
)
def test_too_much_is_neither_kept_nor_passed_on(type: str, content: Any) -> None:
    play = lobby(development=True)
    ada, bob = in_field(play, "@ada"), in_field(play, "@bob")
    before = json.dumps(play.room("lobby").worlds["field"][1].shown, default=lambda raw: bytes(raw).decode())
    quiet(ada, bob)
    ada.send(type, content)
    assert told(ada) == told(bob) == [] and play.faults == 0
    after = json.dumps(play.room("lobby").worlds["field"][1].shown, default=lambda raw: bytes(raw).decode())
    assert after == before


def test_a_client_is_in_few_worlds() -> None:
    play = lobby()
    ada = page(play)
    for number in range(20):
        ada.send(f"world:{number}:join", {"handle": "@ada"})
        play.advance(1)
    assert len(play.room("lobby").worlds) == MAX_WORLDS


def test_there_are_only_so_many_ghosts() -> None:
    play = lobby(connections_per_address=0)
    in_field(play, "@bob")
    for number in range(MAX_GHOSTS + 5):
        in_field(play, f"@{number}").close()
    assert len(play.room("lobby").worlds["field"]) == 1 + MAX_GHOSTS
    play.advance(6)
    assert len(play.room("lobby").worlds["field"]) == 1 and play.room("lobby")._ghosts == 0


def test_only_so_much_code_is_kept() -> None:
    play = lobby(code_channels="open")
    ada = page(play)
    for number in range(MAX_KEPT + 10):
        ada.send("code", {"codeChannel": str(number)})
        play.advance(0.2)
    assert list(play.room("lobby").channels) == [str(number) for number in range(10, MAX_KEPT + 10)]
    for number in range(10):
        ada.send("code", {"codeChannel": str(number), "source": "x" * 1_000_000})
        play.advance(0.2)
    assert list(play.room("lobby").channels) == ["6", "7", "8", "9"]


def test_only_so_many_instruments_are_listed() -> None:
    play = lobby()
    ada = page(play)
    for number in range(10):
        ada.send("notepat:midi:publish", NOTE | {"machineId": str(number)})
    assert [machine for _, machine in play.room("lobby").sources] == ["6", "7", "8", "9"]
    bob = page(play)
    bob.send("notepat:midi:publish", NOTE | {"machineId": "9", "piece": "stolen"})
    assert play.room("lobby").sources["ada", "9"].client == 1, "a name that is in use is not taken over"
    play.advance(21)
    bob.send("notepat:midi:publish", NOTE | {"machineId": "9"})
    assert play.room("lobby").sources["ada", "9"].client == 2
    for number in range(MAX_SOURCES + 10):
        page(play).send("notepat:midi:heartbeat", NOTE | {"handle": str(number)})
    assert len(play.room("lobby").sources) == MAX_SOURCES


def test_nothing_is_kept_of_who_has_left() -> None:
    play = lobby(development=True)
    ada = in_field(play, "nub")
    ada.send("identify", {"type": "vscode"})
    ada.send("daw:join")
    ada.send("notepat:midi:subscribe", {"all": True})
    ada.send("notepat:midi:publish", NOTE)
    ada.send("code-channel:sub", "mine")
    ada.close()
    left = {name: value for name, value in vars(play.room("lobby")).items() if value and isinstance(value, dict)}
    assert left == {}


# --- a lobby of one's own ---------------------------------------------------------------------------------------------


def test_a_lobby_can_be_changed_as_the_reference_shows(tmp_path: Path) -> None:
    reference = (Path(__file__).parent.parent / "docs" / "reference" / "wire.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(from session_server\.pieces import lobby\n.*?)```", reference, re.DOTALL)
    (tmp_path / "lobby.py").write_text(code, encoding="utf-8")
    pieces = Pieces(tmp_path)
    assert pieces.errors() == []
    play = Playing(pieces)
    ada, bob = in_field(play, "@ada"), in_field(play, "@bob")
    ada.send("world:field:write", "darn")
    assert bob.heard("world:field:write") == ["****"] and play.faults == 0


# --- rooms of their own -----------------------------------------------------------------------------------------------


def test_with_isolate_classic_a_slug_without_code_is_a_lobby_of_its_own() -> None:
    play = lobby(isolate_classic=True)
    ada, bob, eve = in_field(play, "@ada", "field"), in_field(play, "@bob", "field"), page(play, "prompt")
    assert (
        set(listed(bob)) == {"1"}
        and eve.types() == ["connected"]
        and json.loads(eve.heard("connected")[0])["playerCount"] == 1
    )
    ada.send("chat", 1)
    assert eve.types() == ["connected"] and bob.heard("chat") == [1]
    v1 = play.join("field")
    play.advance(0.1)
    assert v1.host == 1, "and has a host, as any room without code"


def test_pages_of_both_dialects_share_a_world() -> None:
    play = lobby()
    ada, bob = in_field(play, "@ada"), play.join("lobby", name="bob")
    bob.send("world:field:join", {"handle": "@bob"})
    assert listed(bob) == {"1": {"handle": "@ada", "pos": {"x": 0}, "face": "😀"}}
    ada.send("world:field:move", {"pos": 1})
    bob.send("world:field:move", {"pos": 2})
    assert bob.heard("world:field:move") == [{"pos": 1}] and ada.heard("world:field:move") == [{"pos": 2}]
