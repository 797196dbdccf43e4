"""What a room says, to whom, as whom and how far: groups, tags, further keys, patterns, topics, who is who."""

from __future__ import annotations

from typing import Any

import pytest

from playing import Gate, Player, Playing, Side
from session_server.handlers import Routes, on
from session_server.protocol import Message, PieceError, Raw, Refused, message
from session_server.room import Client, Room, User
from session_server.trust import Route


def told(player: Player) -> list[tuple[str, Any, Any]]:
    heard = [(heard.type, heard.content, heard.id) for heard in player.received]
    player.forget()
    return heard


def quiet(*players: Player) -> None:
    for player in players:
        player.forget()


def in_room(room_class: type[Room], *kinds: str, **settings: Any) -> tuple[Playing, Any, list[Player]]:
    """A room and its players, each `v1` or `classic`."""
    play = Playing({"field": room_class}, **settings)
    players = [play.join("field", classic=kind == "classic") for kind in kinds]
    play.advance(0.1)
    quiet(*players)
    return play, play.room(), players


# --- to whom ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reliable", [True, False])
def test_a_group_is_told_and_nobody_else(reliable: bool) -> None:
    play, room, players = in_room(Room, "v1", "v1", "classic", "classic", "v1")
    group = room.clients[:4]
    with play.tick():
        room.broadcast("all", 0, reliable=reliable)
        room.broadcast("some", 1, group[0], reliable, to=group)
        room.broadcast("all", 2, reliable=reliable)
    whole = [("all", 0, 0), ("some", 1, 0), ("all", 2, 0)]
    assert [told(player) for player in players] == [[whole[0], whole[2]], whole, whole, whole, [whole[0], whole[2]]]


def test_who_is_told_in_a_group_counts_it_and_the_others_do_not() -> None:
    play, room, (ada, bob, eve) = in_room(Room, "v1", "v1", "v1")
    room.broadcast("x", 1, to=room.clients[:2])
    play.settle()
    for player in (ada, bob, eve):
        player.resume()
        assert player.welcome["recovered"] is True


def test_who_has_left_is_told_nothing_by_a_group_that_still_names_it() -> None:
    play, room, (ada, _) = in_room(Room, "v1", "v1")
    group = list(room.clients)
    ada.leave()
    room.broadcast("x", 1, to=group)
    play.settle()
    assert ada.received == [] and play.faults == 0


def test_somebody_of_another_room_is_told_nothing() -> None:
    play = Playing({"field": Room})
    ada, bob = play.join("field:1"), play.join("field:2")
    play.room("field:1").broadcast("x", 1, to=[*play.room("field:1").clients, *play.room("field:2").clients])
    play.settle()
    bob.send("session:ping", {"t": 1})
    assert told(ada) == [("x", 1, 0)] and told(bob) == []


def test_a_message_for_a_group_is_packed_once_per_dialect(monkeypatch: pytest.MonkeyPatch) -> None:
    play, room, players = in_room(Room, *["v1"] * 5, *["classic"] * 5)
    packed: list[Any] = []
    for stream in play.core().outbox.streams:
        pack = stream.pack
        stream.pack = lambda item, pack=pack: packed.append(item) or pack(item)  # type: ignore[misc]
    room.broadcast("x", 1, to=room.clients)
    play.settle()
    assert len(packed) == 2 and all(told(player) == [("x", 1, 0)] for player in players)


def test_what_a_group_may_lose_goes_by_the_side_link() -> None:
    play, room, (ada, _) = in_room(Room, "v1", "v1")

    side = Side(ada, Route.UNRELIABLE)
    room.broadcast("x", 1, reliable=False, to=room.clients)
    play.settle()
    assert side.types() == ["x"] and ada.received == []


# --- as whom, with what -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reliable", [True, False])
@pytest.mark.parametrize(("id", "shown"), [(0, 0), (7, 7), ("development", 0), (None, 0)])
def test_a_message_says_whom_it_is_from_and_tags_are_for_classic_pages(id: Any, shown: Any, reliable: bool) -> None:
    play, room, players = in_room(Room, "v1", "classic")
    room.broadcast("x", 1, reliable=reliable, id=id)
    for client in room.clients:
        client.send("y", 2, reliable, id=id)
    play.settle()
    assert [heard.reliable for heard in players[0].received] == [reliable] * 2
    assert told(players[0]) == [("x", 1, shown), ("y", 2, shown)] and told(players[1]) == [("x", 1, id), ("y", 2, id)]


def test_further_keys_are_for_classic_pages() -> None:
    play, room, (v1, classic) = in_room(Room, "v1", "classic")
    room.broadcast("x", 1, extra={"from": 3, "b": [None]})
    room.broadcast("y", 1, reliable=False, extra={"from": 3})
    play.settle()
    assert classic.only("x").extra == {"from": 3, "b": [None]} and classic.only("y").extra == {"from": 3}
    assert v1.only("x").extra == v1.only("y").extra == {} and not v1.only("y").reliable
    v1.resume()
    assert v1.welcome["recovered"] is True, "what may be lost is not counted"


def test_bytes_have_neither_tag_nor_keys() -> None:
    with pytest.raises(TypeError, match="is bytes, expected JSON"):
        message("x", b"1", "tag")
    with pytest.raises(TypeError, match="is bytes, expected JSON"):
        message("x", b"1", extra={"a": 1})


# --- handlers of patterns ---------------------------------------------------------------------------------------------


class Talk(Room):
    relay = True
    others = ("place:*", "quiet:*")

    def on_create(self) -> None:
        self.calls: list[Any] = []

    @on("place:*:say", relay=True)
    def say(self, client: Client, content: str, place: str) -> None:
        if content == "no":
            raise Refused("no")
        self.calls.append(("say", content, place))

    @on("place:attic:say")
    def say_in_the_attic(self, client: Client, content: str) -> None:
        self.calls.append(("attic", content))

    @on("place:*:*")
    def anything(self, client: Client, content: Any, place: str, rest: str) -> None:
        self.calls.append(("anything", place, rest))

    @on("soft:*")
    def soft(self, client: Client, content: str) -> None:
        self.calls.append(("soft", content))

    @on("loud:*", relay=True, rate=2)
    def loud(self, client: Client) -> None:
        self.calls.append("loud")

    @on("whole")
    def whole(self, client: Client, message: Message) -> None:
        extra = {key: bytes(raw) for key, raw in message.extra.items()}
        self.calls.append((message.type, bytes(message.content), extra))


@pytest.mark.parametrize(
    ("type", "call"),
    [
        ("place:hall:say", ("say", "hi", "hall")), ("place::say", ("say", "hi", "")),
        ("place:attic:say", ("attic", "hi")), ("place:hall:sing", ("anything", "hall", "sing")),
        ("place:a:b:say", ("anything", "a", "b:say")), ("place:*:say", ("say", "hi", "*")), ("loud:a:b", "loud"),
        ("soft:a", ("soft", "hi")),
        ("place:__proto__:say", ("say", "hi", "__proto__")),
    ],
)  # fmt: skip
def test_a_pattern_hears_of_what_its_stars_stand_for(type: str, call: Any) -> None:
    _, room, (ada, _) = in_room(Talk, "v1", "v1")
    ada.send(type, "hi")
    assert room.calls == [call]


@pytest.mark.parametrize(("sender", "type", "back"), [("classic", "place:hall:say", False), ("classic", "loud:1", True),
                                                     ("v1", "loud:1", False)])  # fmt: skip
def test_what_was_seen_goes_on_as_it_came(sender: str, type: str, back: bool) -> None:
    _, room, (ada, bob) = in_room(Talk, sender, "classic")
    ada.send(type, "hi", more=1)
    assert bob.only(type).extra == ({"more": 1} if sender == "classic" else {}) and len(room.calls) == 1
    assert told(bob) == [(type, "hi", 1)] and bool(told(ada)) is back


def test_what_was_refused_or_is_not_as_it_should_be_does_not_go_on() -> None:
    play, room, (ada, bob) = in_room(Talk, "v1", "v1")
    ada.send("place:hall:say", "no")
    ada.send("place:hall:say", 7)
    ada.send("place:hall:sing", "hi")  # handled, and not for others
    assert told(bob) == [] and ada.errors == ["refused", "invalid"] and play.faults == 0
    assert [error["type"] for error in ada.heard("session:error")] == ["place:hall:say"] * 2


def test_a_message_goes_on_when_its_async_handler_has_ended() -> None:
    class Slow(Room):
        @on("x", relay=True)
        async def x(self, client: Client) -> None:
            self.gate = Gate()
            await self.gate

    play, room, (ada, bob) = in_room(Slow, "v1", "v1")
    ada.send("x", 1)
    assert told(bob) == []
    room.gate.open()
    play.settle()
    assert told(bob) == [("x", 1, 1)]


def test_a_rate_is_of_the_pattern_not_of_each_type_that_clients_invent() -> None:
    play, room, (ada, _) = in_room(Talk, "v1", "v1")
    for number in range(10):
        ada.send(f"loud:{number}")
    assert room.calls == ["loud"] * 2 and play.refused == {"type_rate": 8}
    assert len(ada.seat._rates or {}) == 1  # type: ignore[union-attr]


def test_a_handler_can_have_the_message_itself() -> None:
    play, room, (ada, bob) = in_room(Talk, "classic", "v1")
    ada.send("whole", {"a": 1}, path="x")
    bob.send("whole", b"bytes")
    assert room.calls == [("whole", b'{"a": 1}', {"path": b'"x"'})] and bob.errors == ["invalid"] and play.faults == 0


def test_a_handler_of_a_pattern_takes_all_parts_or_none() -> None:

    class Few(Room):
        @on("a:*:*")
        def few(self, client: Client, content: Any, one: str) -> None: ...

    with pytest.raises(PieceError, match=r"takes 3 arguments.*a string for each \*"):
        Routes(Few, Room)


# --- beyond the room --------------------------------------------------------------------------------------------------


class Listening(Room):
    def on_create(self) -> None:
        self.heard: list[Any] = []
        self.subscription = self.subscribe("news", self.hear)

    def hear(self, content: Any) -> None:
        assert not getattr(self, "inside", False), "calls of a room do not overlap"
        self.heard.append(content)

    def tell(self, content: Any) -> None:
        self.inside = True
        self.publish("news", content)
        self.inside = False


def test_a_topic_is_heard_in_all_rooms_that_subscribed() -> None:
    play = Playing({"field": Listening, "deaf": Room})
    for slug in ("field", "field:2", "deaf"):
        play.join(slug)
    play.room().tell({"a": [1]})
    play.settle()
    assert play.room().heard == play.room("field:2").heard == [{"a": [1]}]
    play.room().publish("other", 1)
    play.room("deaf").publish("news", 2)
    play.settle()
    assert play.room().heard == [{"a": [1]}, 2]


def test_a_subscription_ends_when_it_is_cancelled_or_its_room_is() -> None:
    play = Playing({"field": Listening})
    play.join("field:1")
    play.join("field:2").leave()
    play.join("field:3")
    one, two = play.room("field:1"), play.room("field:2")
    one.subscription.cancel()
    one.subscription.cancel()
    play.advance(61)
    play.room("field:3").tell(1)
    play.settle()
    assert "field:2" not in play.rooms.rooms and one.heard == two.heard == [] and play.room("field:3").heard == [1]


def test_what_was_said_before_the_end_of_a_subscription_is_not_heard_after_it() -> None:
    play = Playing({"field": Listening})
    play.join("field")
    room = play.room()
    room.publish("news", 1)
    room.subscription.cancel()
    play.settle()
    assert room.heard == []


def test_other_code_for_a_room_listens_once() -> None:
    play = Playing({"field": Listening})
    play.join("field")
    play.rooms.swap(play.core(), type("Newer", (Listening,), {}), lambda error: None)
    play.settle()
    play.room().tell(1)
    play.settle()
    assert play.room().heard == [1]


def test_a_fault_in_a_subscriber_ends_in_its_room() -> None:
    class Broken(Listening):
        def hear(self, content: Any) -> None:
            raise RuntimeError("broken")

    play = Playing({"field": Listening, "broken": Broken})
    play.join("field")
    play.join("broken")
    play.room().tell(1)
    play.settle()
    assert play.room().heard == [1] and play.faults == 1


def test_a_room_that_waits_keeps_only_so_many_publications() -> None:
    class Slow(Listening):
        async def on_join(self, client: Client) -> None:
            self.gate = Gate()
            await self.gate

    play = Playing({"field": Slow})
    play.join("field")
    for number in range(1500):
        play.room().publish("news", number)
    play.settle()
    play.room().gate.open()
    play.settle()
    assert play.room().heard == list(range(1000)) and play.refused == {"busy": 500}


# --- who is who -------------------------------------------------------------------------------------------------------


def test_who_proves_later_who_it_is_is_that_person() -> None:
    play, room, (ada, also_ada, bob) = in_room(Room, "v1", "v1", "v1")
    user = User("u1", "ada")
    room.clients[0].identify(user)
    play.advance(0.1)
    assert (bob.people[1]["user"], bob.people[1]["handle"], bob.count) == ("u1", "ada", 3)
    room.clients[1].identify(user)
    play.advance(0.1)
    assert sorted(bob.people) == [1, 3] and bob.people[1]["ids"] == [1, 2] and bob.count == 2
    ada.leave()
    also_ada.leave()
    play.advance(0.1)
    assert sorted(bob.people) == [3] and play.faults == 0


def test_what_a_client_says_of_itself_can_change() -> None:
    play, room, (_, bob) = in_room(Room, "v1", "v1")
    room.clients[0].introduce("ada", {"at": "field"})
    play.advance(0.1)
    assert (bob.people[1]["name"], bob.people[1]["data"], bob.people[1]["user"]) == ("ada", {"at": "field"}, None)


def test_who_has_left_or_is_a_second_wire_does_not_come_back_by_it() -> None:
    play, room, (ada, bob) = in_room(Room, "v1", "v1")
    client = room.clients[0]
    ada.leave()
    client.identify(User("u1"))
    client.introduce("ghost")
    play.advance(0.1)
    assert sorted(bob.people) == [2] and len(room.presence) == 1


def test_a_room_verifies_tokens_as_the_server_does() -> None:
    def verify(token: str) -> User | None:
        if token != "good":
            raise Refused("bad")
        return User("u1")

    _, room, _ = in_room(Room, "v1", verify=verify)
    assert room.verify("good") == User("u1") and room.config.development is False
    with pytest.raises(Refused):
        room.verify("bad")


def test_who_lingers_leaves_classic_pages_unsaid() -> None:
    class Ghostly(Room):
        def on_leave(self, client: Client, reason: str) -> None:
            client.lingers = client.id == 1
            self.broadcast("gone", reason, id=client.id)

    play, _, (ada, bob, classic, v1) = in_room(Ghostly, "classic", "classic", "classic", "v1")
    ada.close()
    assert told(classic) == [("gone", "left", 1)]
    play.advance(0.1)
    assert sorted(v1.people) == [2, 3, 4], "presence says it as ever"
    bob.close()
    assert told(classic) == [("gone", "left", 2), ("left", {"count": 2}, 2)]


# --- posts ------------------------------------------------------------------------------------------------------------


def test_a_posted_message_is_the_rooms_or_everybodys() -> None:
    class Choosy(Room):
        def on_create(self) -> None:
            self.posts: list[Message] = []

        def on_post(self, message: Message) -> None:
            self.posts.append(message)

    play = Playing({"field": Room, "choosy": Choosy, "raw": type("Raw", (Room,), {"raw": True})})
    ada, bob = play.join("field", classic=True), play.join("choosy")
    ada.forget()
    for slug in ("field", "choosy", "new"):
        play.rooms.post(slug, Message("x", Raw(b"[1]"), "press"), play.now)
    play.settle()
    assert told(ada) == [("x", [1], "press")] and told(bob) == []
    assert play.room("choosy").posts == [Message("x", [1], "press")]  # type: ignore[arg-type]
    assert "new" in play.rooms.rooms
    with pytest.raises(Refused, match="protocol of its own"):
        play.rooms.post("raw", Message("x"), play.now)
    play.advance(61)
    assert "new" not in play.rooms.rooms
