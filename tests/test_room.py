"""One room, played in memory: who is in, who gets what, and what the author's code can and cannot do to it."""

from __future__ import annotations

import gc
import json
from typing import Any

import msgspec
import pytest

from playing import START, Gate, Player, Playing, Side, sleep
from session_server import Client, Refused, Room, User, on
from session_server.calls import ASYNC_LIMIT, MAX_WAITING
from session_server.clock import Timer
from session_server.pieces import Pieces
from session_server.protocol import Close, PieceError
from session_server.room import PRESENCE_GAP
from session_server.rooms import EMPTY_FOR
from session_server.trust import Route


class Diary(Room):
    """Writes down what it is called for."""

    lines: list[Any]

    def on_create(self) -> None:
        self.lines = ["create"]

    def on_auth(self, token: str | None, data: Any) -> None:
        self.lines.append(("auth", token, data))

    def on_join(self, client: Client) -> None:
        self.lines.append(("join", client.id))

    def on_drop(self, client: Client) -> None:
        self.lines.append(("drop", client.id))

    def on_resume(self, client: Client) -> None:
        self.lines.append(("resume", client.id))

    def on_leave(self, client: Client, reason: str) -> None:
        self.lines.append(("leave", client.id, reason))

    def on_dispose(self) -> None:
        self.lines.append("dispose")


class Talk(Room):
    """Passes everything on, with code of its own beside it."""

    relay = True


# --- hooks ------------------------------------------------------------------------------------------------------------


def test_hooks_are_called_in_the_order_of_a_life() -> None:
    play = Playing({"field": Diary})
    ada = play.join(token="t", data={"hue": 1})
    room = play.room()
    ada.drop()
    play.advance(1)
    ada.resume()
    ada.leave()
    play.advance(61)
    begin, end = ["create", ("auth", "t", {"hue": 1}), ("join", 1)], [("leave", 1, "left"), "dispose"]
    assert room.lines == [*begin, ("drop", 1), ("resume", 1), *end]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (lambda play, ada: ada.leave(), "left"),
        (lambda play, ada: ada.close(), "left"),
        (lambda play, ada: (ada.drop(), play.advance(5.01)), "lost"),
        (lambda play, ada: ada.seat.kick("enough"), "kicked"),
        (lambda play, ada: play.core().expel(ada.seat, Close.POLICY, "over"), "closed"),
    ],
    ids=["session:leave", "clean close", "grace over", "kick", "limit"],
)
def test_on_leave_says_why(how: Any, reason: str) -> None:
    play = Playing({"field": Diary})
    ada = play.join()
    room = play.room()
    how(play, ada)
    assert room.lines[3:] in ([("leave", 1, reason)], [("drop", 1), ("leave", 1, reason)])
    assert (("drop", 1) in room.lines) == (reason == "lost")
    assert room.clients == ()


def test_session_leave_is_answered_with_a_normal_close() -> None:
    play = Playing()
    ada, bob = play.join(), play.join()
    with play.tick():
        bob.send("bye", 1)
        ada.leave()
    assert ada.closed == (Close.NORMAL, "")
    assert ada.heard("bye") == [1], "what was sent before still arrives"


def test_a_room_needs_no_hooks() -> None:
    class Bare(Room):
        pass

    play = Playing({"field": Bare})
    ada = play.join()
    ada.drop()
    ada.resume()
    ada.leave()
    assert play.faults == 0


def test_ids_are_given_from_one_and_never_again() -> None:
    play = Playing({"field": Diary})
    first, second = play.join(), play.join()
    assert (first.id, second.id) == (1, 2)
    second.leave()
    assert play.join().id == 3
    first.leave()
    assert play.join().id == 4, "also not while the room is empty"


def test_on_create_is_called_before_anybody_is_in_and_may_set_up_timers() -> None:
    class Early(Room):
        def on_create(self) -> None:
            assert self.clients == () and self.slug == "field"
            self.beats = 0
            self.every(1, self.beat)

        def beat(self) -> None:
            self.beats += 1

    play = Playing({"field": Early})
    play.join()
    play.advance(3.5)
    assert play.room().beats == 3


@pytest.mark.parametrize("fault", [RuntimeError("broken"), SystemExit(1)])
def test_when_on_create_fails_there_is_no_room_and_nothing_of_it_stays(fault: BaseException) -> None:
    beats: list[int] = []

    class Broken(Room):
        def on_create(self) -> None:
            self.every(1, lambda: beats.append(1))
            raise fault

    held: set[str] = set()
    play = Playing(
        {"field": Broken}, claim=lambda slug: held.add(slug) or 1, release=lambda slug, epoch: held.discard(slug)
    )
    ada = play.join()
    assert ada.closed is not None and ada.closed[0] == Close.FAILED
    assert isinstance(ada.error, PieceError)
    assert "broken" not in ada.closed[1], "its text is for development"
    assert play.rooms.rooms == {} and play.faults == 1
    play.advance(5)
    assert beats == [], "its timers are gone"
    assert held == set(), "nobody owns it"


def test_when_an_async_on_create_fails_the_room_ends_and_the_next_is_made_anew() -> None:
    ran: list[str] = []

    class Late(Room):
        async def on_create(self) -> None:
            await sleep(1)
            if not ran:
                ran.append("broken")
                raise RuntimeError("broken")

        def on_join(self, client: Client) -> None:
            ran.append("join")

        def on_leave(self, client: Client, reason: str) -> None:
            ran.append("leave")

    play = Playing({"field": Late})
    ada = play.join()
    assert ada.closed is None and ran == [], "hooks wait for on_create"
    play.advance(2)
    assert ada.closed is not None and ada.closed[0] == Close.FAILED
    assert play.rooms.rooms == {} and play.faults == 1
    assert ran == ["broken"], "no code runs in a room that was not made"
    bob = play.join()
    play.advance(2)
    assert bob.closed is None and ran == ["broken", "join"]


@pytest.mark.parametrize("fault", [RuntimeError("broken"), SystemExit(1)])
def test_when_the_class_cannot_be_made_nobody_gets_in_and_the_others_live_on(fault: BaseException) -> None:
    class Broken(Room):
        def __init__(self) -> None:
            raise fault

    play = Playing({"broken": Broken, "field": Talk})
    bystander = play.join("field")
    ada = play.join("broken")
    assert ada.closed is not None and ada.closed[0] == Close.FAILED
    assert list(play.rooms.rooms) == ["field"]
    assert bystander.closed is None


# --- on_auth ----------------------------------------------------------------------------------------------------------


class Door(Room):
    """Lets in whom the token names."""

    def on_auth(self, token: str | None, data: Any) -> User | None:
        if token is None:
            raise Refused("no ticket, no dance")
        return User(token, f"@{token}", data) if token != "guest" else None


def test_on_auth_says_who_somebody_is() -> None:
    play = Playing({"field": Door})
    ada, guest = play.join(token="ada", data=7), play.join(token="guest", name="ada")
    assert ada.seat is not None and guest.seat is not None
    assert (ada.seat.user, ada.seat.handle, ada.seat.data) == (User("ada", "@ada", 7), "@ada", 7)
    assert (guest.seat.user, guest.seat.handle, guest.seat.name) == (None, None, "ada")
    play.advance(0.1)
    shown = [(person["user"], person["handle"], person["name"]) for person in ada.people.values()]
    assert shown == [("ada", "@ada", None), (None, None, "ada")]


def test_who_somebody_is_cannot_be_changed_afterwards() -> None:
    """Presence would look for a person that it never met, and nobody could leave any more."""

    class Renames(Room):
        @on("login")
        def login(self, client: Client) -> None:
            client.user = User("ada")  # type: ignore[misc]

    play = Playing({"field": Renames})
    ada, bob = play.join(), play.join()
    ada.send("login")
    play.advance(0.1)
    assert play.faults == 1, "the author is told"
    ada.send("session:leave")
    play.advance(0.1)
    assert [one["id"] for one in bob.people.values()] == [bob.id]


def test_on_auth_keeps_somebody_out_with_its_own_words() -> None:
    play = Playing({"field": Door})
    ada = play.join()
    assert ada.closed == (Close.REFUSED, "no ticket, no dance")
    assert ada.seat is None and ada.heard_all == []
    assert play.faults == 0 and play.refused == {"auth": 1}
    assert play.join(token="ada").id == 1, "no id was spent on the other"


def test_a_verified_token_makes_a_user_unless_on_auth_makes_another() -> None:
    class Renames(Room):
        def on_auth(self, token: str | None, data: Any) -> User | None:
            return User("other") if data == "other" else None

    play = Playing({"field": Renames}, verify=lambda token: User(token, "@verified"))
    ada, other, nobody = play.join(token="ada"), play.join(token="ada", data="other"), play.join()
    users = [player.seat and player.seat.user for player in (ada, other, nobody)]
    assert users == [User("ada", "@verified"), User("other"), None]


def test_a_bad_token_is_refused_before_the_author_is_asked() -> None:
    def verify(token: str) -> User:
        raise Refused("token refused: expired")

    play = Playing({"field": Diary}, verify=verify)
    assert play.join(token="x").closed == (Close.REFUSED, "token refused: expired")
    assert play.room().lines == ["create"]


@pytest.mark.parametrize("answer", ["ada", True, {"id": "ada"}, 7])
def test_on_auth_that_returns_something_else_is_a_fault(answer: Any) -> None:
    class Wrong(Room):
        def on_auth(self, token: str | None, data: Any) -> Any:
            return answer

    play = Playing({"field": Wrong})
    ada = play.join()
    assert ada.closed is not None and ada.closed[0] == Close.FAILED
    assert play.faults == 1 and play.log.entries[-1]["hook"] == "on_auth"


@pytest.mark.parametrize("late", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize("fault", [RuntimeError("secret"), SystemExit(1)])
def test_on_auth_that_fails_lets_nobody_in(fault: BaseException, late: bool) -> None:
    class Plain(Room):
        def on_auth(self, token: str | None, data: Any) -> Any:
            raise fault

    class Late(Room):
        async def on_auth(self, token: str | None, data: Any) -> Any:
            await sleep(1)
            raise fault

    play = Playing({"field": Late if late else Plain})
    ada = play.join()
    play.advance(2)
    assert ada.closed is not None and ada.closed[0] == Close.FAILED and "secret" not in ada.closed[1]
    assert play.faults == 1 and play.room().clients == ()


class SlowDoor(Room):
    """Looks somebody up before it lets them in."""

    max_clients = 1

    async def on_auth(self, token: str | None, data: Any) -> User | None:
        await sleep(2)
        if token is None:
            raise Refused("unknown")
        return User(token)


def test_an_async_on_auth_seats_when_it_has_spoken() -> None:
    play = Playing({"field": SlowDoor})
    ada = play.join(token="ada")
    assert ada.seat is None and ada.closed is None
    play.advance(2)
    assert ada.seat is not None and ada.seat.user == User("ada")


def test_an_async_on_auth_may_refuse() -> None:
    play = Playing({"field": SlowDoor})
    ada = play.join()
    play.advance(2)
    assert ada.closed == (Close.REFUSED, "unknown")


def test_who_is_judged_while_the_room_fills_finds_it_full() -> None:
    play = Playing({"field": SlowDoor})
    ada, bob = play.join(token="ada"), play.join(token="bob")
    play.advance(2)
    assert ada.seat is not None
    assert bob.closed is not None and bob.closed[0] == Close.FULL


def test_who_goes_while_being_judged_leaves_no_seat_behind() -> None:
    play = Playing({"field": SlowDoor})
    ada = play.join(token="ada")
    ada.drop()
    play.advance(10)
    assert play.room().clients == ()
    assert play.join(token="bob").closed is None


def test_an_on_auth_that_takes_too_long_lets_nobody_in() -> None:
    class Never(Room):
        async def on_auth(self, token: str | None, data: Any) -> None:
            await sleep(1000)

    play = Playing({"field": Never})
    ada = play.join()
    play.advance(ASYNC_LIMIT + 0.1)
    assert ada.closed is not None and ada.closed[0] == Close.FAILED


def test_a_full_room_refuses_the_next_client_and_takes_it_when_a_seat_is_free() -> None:
    class Two(Room):
        max_clients = 2

    play = Playing({"field": Two})
    ada, bob, cy = play.join(), play.join(), play.join()
    assert cy.closed == (Close.FULL, "room 'field' is full: 2 of 2 seats are taken")
    assert play.refused == {"room_full": 1}
    ada.drop()
    assert play.join().closed is not None, "a seat that is kept is taken"
    bob.leave()
    assert play.join().closed is None


# --- handlers, messages, asks -----------------------------------------------------------------------------------------


class Desk(Room):
    """Handlers of each kind."""

    relay = ("cursor", "ink:*")
    server_only = ("score",)

    def on_create(self) -> None:
        self.seen: list[Any] = []

    @on("move")
    def move(self, client: Client, pos: tuple[float, float]) -> None:
        self.seen.append((client.id, pos))
        self.broadcast("moved", pos, exclude=client)

    @on("paint")
    def paint(self, client: Client, pixels: bytes) -> int:
        self.seen.append((client.id, pixels))
        self.broadcast("painted", pixels)
        return len(pixels)

    @on("double")
    def double(self, client: Client, number: int) -> int:
        return 2 * number

    @on("count")
    def count(self, client: Client) -> int:
        return len(self.clients)

    @on("turn")
    def turn(self, client: Client) -> None:
        raise Refused("not your turn")

    @on("crash")
    def crash(self, client: Client) -> None:
        raise KeyError("the secret of the room")

    @on("exit")
    def exit(self, client: Client) -> None:
        raise SystemExit(3)

    @on("odd")
    def odd(self, client: Client) -> Any:
        return object()

    @on("endless")
    def endless(self, client: Client) -> Any:
        ring: list[Any] = []
        ring.append(ring)
        return ring

    @on("whisper")
    def whisper(self, client: Client, to: int) -> None:
        for other in self.clients:
            if other.id == to:
                other.send("whispered", client.id)


def desk(count: int = 2, **settings: Any) -> tuple[Any, ...]:
    play = Playing({"desk": Desk}, **settings)
    players = [play.join("desk") for _ in range(count)]
    play.advance(0.1)
    for player in players:
        player.forget()
    return (play, *players)


def test_a_handler_gets_its_content_validated_and_broadcasts() -> None:
    play, ada, bob = desk()
    ada.send("move", [1, 2.5])
    assert play.room("desk").seen == [(1, (1.0, 2.5))]
    [moved] = bob.received
    assert (moved.type, moved.content, moved.id, moved.reliable) == ("moved", [1.0, 2.5], 0, True)
    assert ada.heard_all == []


def test_content_of_the_wrong_shape_never_reaches_the_handler_and_its_sender_hears_why() -> None:
    play, ada, bob = desk()
    ada.send("move", "left")
    assert play.room("desk").seen == []
    [error] = ada.heard("session:error")
    assert (error["code"], error["type"]) == ("invalid", "move")
    assert error["reason"].startswith("""content of 'move' is "left", expected tuple[float, float]""")
    assert error["reason"].endswith("(room 'desk', client 1)")
    assert bob.heard_all == [] and play.faults == 0 and play.refused == {"invalid": 1}


def test_a_message_to_one_is_heard_by_one() -> None:
    _, ada, bob, cy = desk(3)
    ada.send("whisper", bob.id)
    assert (bob.heard("whispered"), cy.heard_all, ada.heard_all) == ([1], [], [])


def test_bytes_travel_as_bytes() -> None:
    play, ada, bob = desk()
    reason = "content of 'paint' is JSON, expected bytes (room 'desk', client 1)"
    assert ada.ask("paint", "AAAA").error == {"code": "invalid", "reason": reason}
    ada.send("paint", b"\x00\xff")
    assert play.room("desk").seen == [(1, b"\x00\xff")]
    assert bob.heard("painted") == [b"\x00\xff"] == ada.heard("painted")


@pytest.mark.parametrize(
    ("type", "content", "value"),
    [("double", 21, 42), ("count", None, 2), ("count", "ignored", 2), ("move", [1, 2], None)],
)
def test_an_ask_is_answered_with_what_the_handler_returns(type: str, content: Any, value: Any) -> None:
    _, ada, bob = desk()
    reply = ada.ask(type, content)
    assert (reply.value, reply.error) == (value, None)
    assert bob.heard("session:reply") == []


@pytest.mark.parametrize(
    ("type", "code", "counter"),
    [
        ("double", "invalid", "invalid"), ("turn", "refused", None), ("crash", "failed", None),
        ("exit", "failed", None), ("odd", "failed", None), ("endless", "failed", None),
        ("nowhere", "unknown", "unknown"), ("cursor", "unknown", "unknown"),
    ],
)  # fmt: skip
def test_an_ask_that_goes_wrong_says_so_to_its_sender_alone(type: str, code: str, counter: str | None) -> None:
    play, ada, bob = desk()
    reply = ada.ask(type, "no number")
    assert reply.error is not None and reply.error["code"] == code
    assert ada.errors == [], "the reply is the answer, there is no error beside it"
    assert play.refused == ({counter: 1} if counter else {})
    assert play.faults == (code == "failed")
    assert ada.ask("double", 2).value == 4 == bob.ask("double", 2).value, "the room lives on"


@pytest.mark.parametrize(
    ("type", "code"), [("turn", "refused"), ("crash", "failed"), ("exit", "failed"), ("nowhere", "unknown")]
)
def test_a_message_that_goes_wrong_is_an_error_to_its_sender_alone(type: str, code: str) -> None:
    play, ada, bob = desk()
    ada.send(type, 1)
    assert [(error["code"], error["type"]) for error in ada.heard("session:error")] == [(code, type)]
    assert bob.heard_all == [] and play.faults == (code == "failed")


def test_a_refusal_is_the_authors_word_and_a_faults_text_is_for_development_only() -> None:
    for development, told in ((False, False), (True, True)):
        play, ada, _ = desk(development=development)
        ada.send("turn")
        ada.send("crash")
        reasons = [error["reason"] for error in ada.heard("session:error")]
        assert reasons[0] == "not your turn"
        assert ("the secret of the room" in reasons[1]) is told
        [entry] = play.log.entries
        assert (entry["hook"], entry["room"], entry["client"]) == ("crash", "desk", 1)
        assert isinstance(entry["exc_info"], KeyError)


def test_a_fault_in_one_room_touches_no_other() -> None:
    play = Playing({"desk": Desk})
    ada, other = play.join("desk"), play.join("desk~2")
    for _ in range(5):
        ada.send("crash")
    assert other.heard_all[1:] == ada.play.players[1].heard_all[1:]
    assert other.ask("double", 4).value == 8 and other.errors == []


def test_a_fault_that_repeats_is_counted_always_and_logged_sparingly() -> None:
    play, ada, _ = desk()
    for _ in range(200):
        ada.send("crash")
    assert play.faults == 200
    assert 1 <= len(play.log.entries) <= 12
    play.advance(5)
    ada.send("crash")
    assert 2 <= len(play.log.entries) <= 13, "and later ones are logged again"


def test_an_on_auth_that_fails_again_and_again_is_logged_sparingly_too() -> None:
    """Anybody can make it fail as often as they can connect."""

    class Broken(Room):
        def on_auth(self, token: str | None, data: Any) -> None:
            raise RuntimeError("broken")

    play = Playing({"field": Broken})
    for _ in range(200):
        play.join()
    assert play.faults == 200
    assert 1 <= len(play.log.entries) <= 12


class Fragile(msgspec.Struct):
    low: int

    def __post_init__(self) -> None:
        if self.low == 0:
            raise ZeroDivisionError("low")


def test_a_content_class_that_raises_is_contained_too() -> None:
    """Its `__post_init__` is code of the author, which a client can make fail by what it sends."""

    class Checks(Room):
        @on("range")
        def range(self, client: Client, content: Fragile) -> int:
            return content.low

    play = Playing({"field": Checks})
    ada = play.join()
    assert ada.ask("range", {"low": 2}).value == 2
    reply = ada.ask("range", {"low": 0})
    assert reply.error is not None and reply.error["code"] in {"failed", "invalid"}
    assert ada.closed is None


@pytest.mark.parametrize("number", [0, -1, 2**53, 2**63, 10**30])
def test_the_number_of_an_ask_comes_back_as_it_was(number: int) -> None:
    _, ada, _ = desk()
    ada._asks[number] = reply = type(ada.ask("count"))()
    ada.send("session:ask", {"ask": number, "type": "count"})
    assert reply.value == 2


@pytest.mark.parametrize(
    "content",
    [
        {}, {"ask": 1}, {"type": "count"}, {"ask": "1", "type": "count"}, {"ask": 1, "type": ""},
        {"ask": 1.5, "type": "count"}, None, [],
    ],
)  # fmt: skip
def test_a_malformed_ask_is_no_message(content: Any) -> None:
    _, ada, _ = desk()
    ada.send("session:ask", content)
    assert ada.errors == ["malformed"] and ada.closed is None


def test_on_message_hears_of_types_that_nobody_named() -> None:
    class Curious(Room):
        relay = ("cursor",)

        def on_create(self) -> None:
            self.seen: list[Any] = []

        @on("named")
        def named(self, client: Client) -> None: ...
        def on_message(self, client: Client, message: Any) -> Any:
            self.seen.append((client.id, message.type, message.content, message.id, message.reliable is False))
            return "heard"

    play = Playing({"field": Curious})
    ada = play.join()
    for type in ("named", "cursor", "session:mine", "left"):
        ada.send(type, 1)
    assert play.room().seen == []
    ada.send("other", {"a": [1]}, reliable=False)
    ada.send("bytes", b"ab")
    ada.send("empty")
    seen = [(1, "other", {"a": [1]}, 1, True), (1, "bytes", b"ab", 1, False), (1, "empty", None, 1, False)]
    assert play.room().seen == seen
    assert ada.ask("other").value == "heard"


def test_a_message_of_one_that_is_no_json_is_the_authors_fault() -> None:
    class Odd(Room):
        @on("go")
        def go(self, client: Client) -> None:
            self.broadcast("x", object())

    play = Playing({"field": Odd})
    ada, bob = play.join(), play.join()
    ada.send("go")
    assert ada.errors == ["failed"] and play.faults == 1
    bob.drop()
    bob.resume()
    assert bob.welcome["recovered"] is True, "what was never sent is not counted"


# --- async handlers ---------------------------------------------------------------------------------------------------


class Slow(Room):
    """Its `think` takes as long as the test says."""

    relay = ("wave",)
    gates: list[Any]

    def on_create(self) -> None:
        self.gates = []
        self.lines: list[Any] = []
        self.inside = 0

    @on("think")
    async def think(self, client: Client, name: str) -> str:
        self.inside += 1
        assert self.inside == 1, "two handlers at once"
        self.gates.append(Gate())
        self.lines.append(f"{name} begins")
        try:
            value = await self.gates[-1]
        finally:
            self.inside -= 1
        self.lines.append(f"{name} ends")
        return str(value)

    @on("note")
    def note(self, client: Client, name: str) -> str:
        assert self.inside == 0, "a handler while another is under way"
        self.lines.append(name)
        return name

    def on_join(self, client: Client) -> None:
        assert self.inside == 0
        self.lines.append(f"join {client.id}")

    def on_leave(self, client: Client, reason: str) -> None:
        assert self.inside == 0
        self.lines.append(f"leave {client.id}")


def slow() -> tuple[Playing, Player, Player, Slow]:
    play = Playing({"slow": Slow})
    ada, bob = play.join("slow"), play.join("slow")
    play.room("slow").lines.clear()
    return play, ada, bob, play.room("slow")


def test_an_async_handler_answers_when_it_is_done() -> None:
    play, ada, _, room = slow()
    reply = ada.ask("think", "a")
    play.advance(3)
    assert not reply.done
    room.gates[0].open("deep")
    play.settle()
    assert reply.value == "deep"


def test_handlers_of_a_room_never_overlap_and_later_messages_wait_in_order() -> None:
    play, ada, bob, room = slow()
    ada.ask("think", "a")
    bob.send("note", "b")
    ada.ask("think", "c")
    bob.leave()
    cy = play.join("slow")
    cy.send("note", "d")
    assert room.lines == ["a begins"] and play.faults == 0
    room.gates[0].open()
    play.settle()
    assert room.lines == ["a begins", "a ends", "b", "c begins"]
    room.gates[1].open()
    play.settle()
    assert room.lines[4:] == ["c ends", "leave 2", "join 3", "d"] and play.faults == 0


def test_a_room_that_waits_still_relays_greets_and_pings() -> None:
    play, ada, bob, _ = slow()
    ada.ask("think", "a")
    bob.send("wave", 1)
    assert ada.heard("wave") == [1]
    assert bob.ping()["received"] == 1
    assert play.join("slow").welcome["id"] == 3


def test_other_rooms_do_not_wait() -> None:
    play, ada, _, _ = slow()
    ada.ask("think", "a")
    other = play.join("slow~2")
    assert other.ask("note", "x").value == "x"


def test_more_than_a_thousand_waiting_messages_are_refused() -> None:
    play, ada, bob, room = slow()
    ada.ask("think", "a")
    for n in range(MAX_WAITING):
        ada.send("note", str(n))
    assert play.refused == {}
    late = bob.ask("note", "late")
    assert late.error == {"code": "busy", "reason": late.error and late.error["reason"]}
    bob.send("note", "later")
    assert bob.errors == ["busy"] and play.refused == {"busy": 2}
    room.gates[0].open()
    play.settle()
    assert room.lines[2:] == [str(n) for n in range(MAX_WAITING)], "those who waited all come"
    assert bob.ask("note", "again").value == "again"


def test_who_comes_and_goes_is_never_refused_by_a_full_queue() -> None:
    """The author's books would not balance."""
    play, ada, bob, room = slow()
    ada.ask("think", "a")
    for n in range(MAX_WAITING):
        ada.send("note", str(n))
    bob.leave()
    play.join("slow")
    room.gates[0].open()
    play.settle()
    assert room.lines[-2:] == ["leave 2", "join 3"]


def test_an_async_handler_that_takes_too_long_is_ended_and_the_room_goes_on() -> None:
    play, ada, bob, room = slow()
    reply = ada.ask("think", "a")
    waiting = bob.ask("note", "b")
    play.advance(ASYNC_LIMIT - 0.1)
    assert not reply.done and not waiting.done
    play.advance(0.2)
    assert reply.error is not None and reply.error["code"] == "timeout"
    assert waiting.value == "b" and play.faults == 1


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Refused("no"), "refused"),
        (RuntimeError("secret"), "failed"),
        (TimeoutError("of a library of theirs"), "failed"),
        (SystemExit(2), "failed"),
    ],
)
def test_an_async_handler_that_raises_is_an_error_and_the_room_goes_on(fault: BaseException, code: str) -> None:
    play, ada, bob, room = slow()
    reply = ada.ask("think", "a")
    waiting = bob.ask("note", "b")
    room.gates[0].fail(fault)
    play.settle()
    assert reply.error is not None and reply.error["code"] == code
    assert reply.error["reason"] == ("no" if code == "refused" else "the code of the room failed")
    assert waiting.value == "b" and play.faults == (code == "failed")


@pytest.mark.parametrize("value", ["plain", "ring"])
def test_an_async_answer_that_is_not_json_does_not_stop_those_who_wait(value: str) -> None:
    class Odd(Room):
        @on("odd")
        async def odd(self, client: Client) -> Any:
            await sleep(1)
            ring: list[Any] = []
            ring.append(ring)
            return object() if value == "plain" else ring

        @on("note")
        def note(self, client: Client) -> str:
            return "noted"

    play = Playing({"field": Odd})
    ada = play.join()
    odd, waiting = ada.ask("odd"), ada.ask("note")
    play.advance(2)
    assert odd.error is not None and odd.error["code"] == "failed"
    assert waiting.value == "noted"


def test_what_an_async_handler_sends_arrives() -> None:
    class Later(Room):
        @on("go")
        async def go(self, client: Client) -> None:
            self.broadcast("first")
            await sleep(1)
            self.broadcast("second")

    play = Playing({"field": Later})
    ada = play.join()
    ada.send("go")
    assert [m.type for m in ada.received] == ["first"]
    play.advance(1)
    assert [(m.type, m.at) for m in ada.received] == [("first", 1000.0), ("second", 1001.0)]


def test_an_async_handler_sees_the_time_that_passed_while_it_waited() -> None:
    class Later(Room):
        def on_create(self) -> None:
            self.times: list[float] = []

        @on("go")
        async def go(self, client: Client) -> None:
            await sleep(3)
            self.times.append(self.now)
            self.after(1, lambda: self.times.append(self.now))

    play = Playing({"field": Later})
    play.join().send("go")
    play.advance(10)
    assert play.room().times == [1003.0, 1004.0]


def test_waiting_messages_of_somebody_who_was_kicked_harm_nobody() -> None:
    play, ada, bob, room = slow()
    ada.ask("think", "a")
    bob.ask("note", "b")
    assert bob.seat is not None
    bob.seat.kick()
    room.gates[0].open()
    play.settle()
    assert room.lines[2:] == ["b", "leave 2"] and play.faults == 0


# --- timers and ticks -------------------------------------------------------------------------------------------------


class Clockwork(Room):
    tick_rate = 4.0

    def on_create(self) -> None:
        self.beats: list[float] = []
        self.ticks: list[tuple[float, float]] = []

    def on_tick(self, dt: float) -> None:
        self.ticks.append((self.now, dt))

    def beat(self) -> None:
        self.beats.append(self.now)


def clockwork() -> tuple[Playing, Player, Clockwork]:
    play = Playing({"field": Clockwork})
    return play, play.join(), play.room()


def test_after_calls_once() -> None:
    play, _, room = clockwork()
    room.after(1.5, room.beat)
    play.advance(1.4)
    assert room.beats == []
    play.advance(5)
    assert room.beats == [1001.5]


def test_a_cancelled_call_does_not_come() -> None:
    play, _, room = clockwork()
    for timer in (room.after(1, room.beat), room.every(1, room.beat)):
        timer.cancel()
        timer.cancel()
    play.advance(5)
    assert room.beats == []


def test_after_zero_comes_in_the_next_turn_not_within_the_call() -> None:
    play, ada, room = clockwork()
    room.after(0, room.beat)
    assert room.beats == []
    play.settle()
    assert room.beats == [1000.0]


def test_every_keeps_its_beat_and_skips_what_it_missed() -> None:
    play, _, room = clockwork()
    room.every(1, room.beat)
    play.advance(2.5)
    assert room.beats == [1001.0, 1002.0]
    play.skip(3.2)  # the process stood still until 1005.7
    assert room.beats[2:] == [1005.7]
    play.advance(2)
    assert room.beats[3:] == [1006.0, 1007.0], "on the old beat, not a second after the late one"


@pytest.mark.parametrize("seconds", [0, -1])
def test_every_needs_a_period(seconds: float) -> None:
    _, _, room = clockwork()
    with pytest.raises(ValueError, match="expected more than 0 seconds"):
        room.every(seconds, room.beat)


def test_a_timer_may_end_itself() -> None:
    play, _, room = clockwork()

    def twice() -> None:
        room.beat()
        if len(room.beats) == 2:
            timer.cancel()

    timer = room.every(1, twice)
    play.advance(5)
    assert len(room.beats) == 2


def test_a_timer_that_fails_is_a_fault_and_the_beat_goes_on() -> None:
    play, ada, room = clockwork()

    def broken() -> None:
        room.beat()
        raise RuntimeError("broken")

    room.every(1, broken)
    play.advance(3)
    assert len(room.beats) == 3 == play.faults
    assert ada.errors == [], "nobody asked for it"


def test_what_a_timer_sends_is_sent_at_once() -> None:
    play, ada, room = clockwork()
    room.after(1, lambda: room.broadcast("bell"))
    play.advance(2)
    assert [m.at for m in ada.received] == [1001.0]


def test_timers_that_are_replaced_again_and_again_cost_nothing() -> None:
    """A turn's deadline, set anew with every move."""
    play, _, room = clockwork()

    def alive() -> int:
        gc.collect()
        return sum(isinstance(thing, Timer) for thing in gc.get_objects())

    timer = room.after(30, room.beat)
    before = alive()
    for _ in range(2000):
        timer.cancel()
        timer = room.after(30, room.beat)
        play.advance(0.05)
    assert alive() < before + 200


def test_the_tick_has_a_fixed_dt_and_a_fixed_beat() -> None:
    play, _, room = clockwork()
    play.advance(1)
    assert room.ticks == [(1000.25, 0.25), (1000.5, 0.25), (1000.75, 0.25), (1001.0, 0.25)]


def test_missed_ticks_are_skipped() -> None:
    play, _, room = clockwork()
    play.advance(0.3)
    play.skip(2.0)  # until 1002.3
    assert room.ticks[1:] == [(1002.3, 0.25)]
    play.advance(0.5)
    assert room.ticks[2:] == [(1002.5, 0.25), (1002.75, 0.25)]


def test_an_empty_room_does_not_tick_and_begins_anew_with_the_next_client() -> None:
    play, ada, room = clockwork()
    play.advance(1)
    ada.leave()
    ticks = len(room.ticks)
    play.advance(5)
    assert len(room.ticks) == ticks
    play.join()
    play.advance(0.5)
    assert len(room.ticks) == ticks + 2


def test_a_room_whose_only_client_is_away_still_ticks() -> None:
    """Somebody has a seat."""
    play, ada, room = clockwork()
    ada.drop()
    play.advance(1)
    assert len(room.ticks) == 4


def test_a_room_that_turns_away_its_first_client_does_not_tick_while_it_is_empty() -> None:
    class Bouncer(Clockwork):
        def on_join(self, client: Client) -> None:
            client.kick("not today")

    play = Playing({"field": Bouncer})
    ada = play.join()
    assert ada.closed == (Close.KICKED, "not today")
    play.advance(2)
    assert play.room().ticks == []


def test_a_tick_is_skipped_while_an_async_handler_is_under_way() -> None:
    class Busy(Clockwork):
        @on("think")
        async def think(self, client: Client) -> None:
            await sleep(1.1)

    play = Playing({"field": Busy})
    ada = play.join()
    ada.send("think")
    play.advance(1.2)
    assert play.room().ticks == []
    play.advance(0.05)
    assert play.room().ticks == [(1001.25, 0.25)]


def test_a_room_without_on_tick_has_no_tick_and_sleeps() -> None:
    class Still(Room):
        tick_rate = 60

    play = Playing({"field": Still})
    play.join()
    play.advance(1)
    assert sleeps(play)


def sleeps(play: Playing) -> bool:
    """Nothing wakes the loop before the room, had it become empty, would be disposed of."""
    due = play.rooms.run(play.now)
    return due is None or due >= START + EMPTY_FOR


def test_a_tick_that_fails_is_a_fault_and_the_next_one_comes() -> None:
    class Broken(Clockwork):
        def on_tick(self, dt: float) -> None:
            super().on_tick(dt)
            raise RuntimeError("broken")

    play = Playing({"field": Broken})
    play.join()
    play.advance(1)
    assert len(play.room().ticks) == 4 == play.faults


def test_the_end_of_a_room_ends_its_timers() -> None:
    play, ada, room = clockwork()
    room.every(1, room.beat)
    ada.leave()
    play.advance(61)
    assert play.rooms.rooms == {}
    beats = len(room.beats)
    play.advance(10)
    assert len(room.beats) == beats
    assert play.rooms.run(play.now) is None


# --- kicks ------------------------------------------------------------------------------------------------------------


def test_a_kick_closes_with_4001_after_what_was_sent_before() -> None:
    class Judge(Room):
        @on("out")
        def out(self, client: Client) -> None:
            client.send("verdict", "guilty")
            client.kick("cheated")
            client.send("too late", 1)
            self.broadcast("news", client.id)

    play = Playing({"field": Judge})
    ada, bob = play.join(), play.join()
    ada.send("out")
    assert ada.closed == (Close.KICKED, "cheated")
    assert [m.type for m in ada.received] == ["verdict"]
    assert bob.heard("news") == [1]
    ada.resume()
    assert ada.welcome["id"] == 3 and ada.welcome["recovered"] is False, "a kick gives the seat up"


def test_somebody_who_is_away_can_be_kicked() -> None:
    play = Playing({"field": Diary})
    ada = play.join()
    ada.drop()
    assert ada.seat is not None
    ada.seat.kick()
    assert play.room().lines[-1] == ("leave", 1, "kicked")
    play.advance(10)
    assert play.room().lines[-1] == ("leave", 1, "kicked")


def test_a_kick_of_oneself_in_on_leave_does_no_harm() -> None:
    class Odd(Room):
        def on_leave(self, client: Client, reason: str) -> None:
            client.kick()
            client.send("bye")

    play = Playing({"field": Odd})
    play.join().leave()
    assert play.faults == 0 and play.room().clients == ()


# --- what is written, and when ----------------------------------------------------------------------------------------


def test_a_tick_is_one_write_for_each_client() -> None:
    play = Playing()
    players = [play.join() for _ in range(4)]
    play.advance(0.1)
    before = [len(player.wire.written) for player in players]
    with play.tick():
        for _ in range(10):
            for player in players:
                player.send("move", player.id)
    assert [len(player.wire.written) - n for player, n in zip(players, before, strict=True)] == [1] * 4
    assert players[0].heard("move") == [2, 3, 4] * 10


def test_flush_ms_gathers_what_several_ticks_brought() -> None:
    class Gathers(Room):
        relay = True
        flush_ms = 8

    play = Playing({"field": Gathers})
    ada, bob = play.join(), play.join()
    play.advance(1)
    bob.forget()
    before = len(bob.wire.written)
    ada.send("a", 0)
    assert bob.heard("a") == [0], "after a quiet time the first is sent at once"
    for n in range(1, 8):
        play.advance(0.001)
        ada.send("a", n)
    assert bob.heard("a") == [0]
    play.advance(0.0011)
    assert bob.heard("a") == list(range(8))
    assert len(bob.wire.written) == before + 2


def test_one_dialect_is_encoded_once_for_all_of_its_clients() -> None:
    play = Playing()
    players = [play.join() for _ in range(5)]
    play.advance(0.1)
    players[0].send("move", [1, 2])
    written = [player.wire.written[-1] for player in players[1:]]
    assert all(data is written[0] for data in written)


# --- who hears what: the table of docs/reference/wire.md --------------------------------------------------------------


def crowd(slug: str, pieces: Any = ()) -> tuple[Playing, dict[str, Player]]:
    play = Playing(pieces)
    players = {
        "v1": play.join(slug), "v1 too": play.join(slug), "classic": play.join(slug, classic=True),
        "classic too": play.join(slug, classic=True),
    }  # fmt: skip
    play.advance(0.1)
    for player in players.values():
        player.forget()
    return play, players


EVERYBODY = {"v1", "v1 too", "classic", "classic too"}


@pytest.mark.parametrize("slug", ["nocode", "lobby"])
@pytest.mark.parametrize(
    ("sender", "type", "reaches_sender"),
    [
        ("classic", "1v1:move", False), ("classic", "squash:move", False), ("classic", "1v1:moved", True),
        ("classic", "1v1:join", True), ("classic", "pond:new", True), ("classic", "chat", True),
        ("v1", "1v1:move", False), ("v1", "pond:new", False), ("v1", "chat", False),
    ],
)  # fmt: skip
def test_who_hears_a_message_in_a_room_without_code_and_in_the_lobby(
    slug: str, sender: str, type: str, reaches_sender: bool
) -> None:
    play, players = crowd(slug, Pieces(None))
    players[sender].send(type, {"x": 1})
    hearers = {name for name, player in players.items() if player.types() == [type]}
    assert hearers == (EVERYBODY if reaches_sender else EVERYBODY - {sender})
    for name in hearers:
        [heard] = players[name].heard_all
        assert (heard.content, heard.id) == ({"x": 1}, players[sender].seat.id)  # type: ignore[union-attr]


OWNED = ["connected", "joined", "left", "reload", "session:welcome", "session:x"]


@pytest.mark.parametrize("sender", ["classic", "v1"])
@pytest.mark.parametrize("type", [*OWNED, "session:join"])
def test_what_only_the_server_says_is_dropped_and_counted(type: str, sender: str) -> None:
    play, players = crowd("field", {"field": Talk})
    players[sender].send(type, {})
    assert all(player.heard_all == [] for player in players.values())
    assert play.refused == {"server_owned": 1}


@pytest.mark.parametrize("type", ["session:ask", "session:welcome", "left"])
def test_binary_frames_can_forge_nothing_either(type: str) -> None:
    play, players = crowd("field", {"field": Talk})
    players["v1"].send(type, b"{}")
    assert all(player.heard_all == [] for player in players.values())
    assert play.refused == {"server_owned": 1}


@pytest.mark.parametrize("type", ["session:ask", "session:ping", "session:leave"])
def test_controls_of_session_v1_mean_nothing_from_a_classic_client(type: str) -> None:
    play, players = crowd("field", {"field": Desk})
    players["classic"].send(type, {"ask": 1, "type": "count", "t": 1})
    assert players["classic"].closed is None
    assert all(player.heard_all == [] for player in players.values()) and play.refused == {"server_owned": 1}


def test_ids_are_stamped_whatever_a_client_claims() -> None:
    play, players = crowd("nocode")
    players["v1"].send("a", 1, id=99)
    players["classic"].send("a", 1, id={"x": 1})
    players["v1"].send("b", b"x")
    assert [heard.id for heard in players["v1 too"].heard_all] == [1, 3, 1]
    assert [heard.id for heard in players["classic too"].heard_all] == [1, 3]


def test_binary_reaches_session_v1_only() -> None:
    _, players = crowd("nocode")
    players["v1"].send("ink", b"\x00\x01", reliable=False)
    [ink] = players["v1 too"].heard_all
    assert (ink.content, ink.id, ink.reliable) == (b"\x00\x01", 1, False)
    assert players["classic"].heard_all == [] == players["v1"].heard_all


def test_a_relayed_message_says_whether_it_was_sent_reliably() -> None:
    _, players = crowd("nocode")
    players["v1"].send("a", 1, reliable=False)
    players["v1"].send("a", 2)
    players["v1"].send_frame('{"type":"a","content":3,"reliable":true}')
    assert [heard.reliable for heard in players["v1 too"].heard_all] == [False, True, True]
    assert [heard.extra for heard in players["classic"].heard_all] == [{}] * 3
    assert b"true" not in b"".join(players["v1 too"].wire.written[-2:]), "`reliable` is said only where it is false"


def test_extra_keys_of_a_classic_message_reach_classic_clients() -> None:
    _, players = crowd("nocode")
    players["classic"].send("chat", 1, zoom=[2])
    assert players["classic too"].only("chat").extra == {"zoom": [2]}
    assert players["v1"].only("chat").extra == {}


def test_a_classic_message_with_other_keys_and_no_content_is_relayed_too() -> None:
    """`module:request {path}` has its fields at top level."""
    _, players = crowd("nocode")
    players["classic"].send("module:request", path="a.mjs")
    heard = players["classic too"].only("module:request")
    assert (heard.content, heard.extra) == (None, {"path": "a.mjs"})


def test_a_room_with_code_relays_what_it_lists_and_nothing_else() -> None:
    play, players = crowd("desk", {"desk": Desk})
    for name in ("v1", "classic"):
        for type in ("cursor", "ink:a:b", "cursors", "score"):
            players[name].send(type, name)
    assert players["v1 too"].types() == ["cursor", "ink:a:b"] * 2
    assert [error["type"] for error in players["v1"].heard("session:error")] == ["cursors"]
    assert players["classic"].types() == ["cursor", "ink:a:b"] * 2, "it hears itself, but of no errors"
    assert play.refused == {"unknown": 2, "server_owned": 2}


def test_classic_clients_hear_of_each_other_in_their_own_words() -> None:
    play = Playing()
    ada = play.join(classic=True, address="192.0.2.7")
    [connected] = ada.heard_all
    assert (connected.type, connected.id) == ("connected", 1)
    assert json.loads(connected.content) == {"ip": "192.0.2.7", "playerCount": 1, "id": 1}
    bob = play.join(classic=True, address="192.0.2.8")
    cy = play.join()
    assert [(h.type, h.id, json.loads(h.content)) for h in ada.heard_all[1:]] == [
        ("joined", 2, {"text": "2 has joined. Connections open: 2"}),
        ("joined", 3, {"text": "3 has joined. Connections open: 3"}),
    ]
    bob.close()
    assert [(h.type, h.id, h.content) for h in ada.heard_all[3:]] == [("left", 2, {"count": 2})]
    cy.leave()
    assert ada.heard("left") == [{"count": 2}, {"count": 1}]
    assert "192.0.2.7" not in json.dumps([h.content for p in (bob, cy) for h in p.heard_all])


def test_a_classic_client_that_drops_has_left() -> None:
    play = Playing({"field": Diary})
    play.join()
    ada = play.join(classic=True)
    ada.drop()
    assert play.room().lines[-1][:2] == ("leave", 2)
    assert len(play.room().clients) == 1


# --- host -------------------------------------------------------------------------------------------------------------


def test_the_host_is_the_lowest_id_with_a_live_link() -> None:
    play = Playing()
    ada, bob, cy = play.join(), play.join(), play.join()
    play.advance(0.1)
    assert [player.host for player in (ada, bob, cy)] == [1, 1, 1]
    ada.drop()
    play.advance(0.1)
    assert [player.host for player in (bob, cy)] == [2, 2]
    bob.leave()
    play.advance(0.1)
    assert cy.host == 3
    ada.resume()
    play.advance(0.1)
    assert [player.host for player in (ada, cy)] == [1, 1], "who comes back within grace takes the whistle back"
    ada.drop()
    play.advance(10)
    assert cy.host == 3
    assert play.join().welcome["host"] == 3


def test_a_classic_client_can_be_host() -> None:
    play = Playing()
    play.join(classic=True)
    assert play.join().welcome["host"] == 1


@pytest.mark.parametrize("slug", ["field", "lobby"])
def test_a_room_with_code_has_no_host(slug: str) -> None:
    play = Playing({"field": Talk, "lobby": Talk})
    ada, _ = play.join(slug), play.join(slug)
    play.advance(0.1)
    assert ada.welcome["host"] is None and ada.host is None


# --- rates ------------------------------------------------------------------------------------------------------------


def test_over_a_rate_reliable_is_refused_with_an_error_and_unreliable_shed() -> None:
    play = Playing(message_rate=10, message_burst=10)
    ada, bob = play.join(), play.join()
    for n in range(10):
        ada.send("move", n)
    for n in range(10, 15):
        ada.send("move", n, reliable=False)
    assert ada.errors == [] and bob.heard("move") == list(range(10))
    play.advance(2)
    for n in range(20, 35):
        ada.send("move", n)
    assert ada.errors == ["rate"] and ada.heard("session:error")[0]["type"] == "move"
    assert bob.heard("move") == [*range(10), *range(20, 30)]
    assert play.refused == {"rate": 10} and bob.errors == []
    play.advance(2)
    ada.send("move", 99)
    assert bob.heard("move")[-1] == 99 and ada.closed is None


def test_a_refused_reliable_message_is_told_also_after_others_were_shed() -> None:
    play = Playing(message_rate=4, message_burst=4)
    ada = play.join()
    for n in range(4):
        ada.send("move", n)
    ada.send("cursor", 1, reliable=False)
    assert ada.errors == []
    ada.send("move", 4)
    assert ada.errors == ["rate"]


def test_a_byte_rate_counts_bytes() -> None:
    play = Playing(byte_rate=2**20, byte_burst=2**20)
    ada, bob = play.join(), play.join()
    for n in range(20):
        ada.send("blob", str(n) * 60_000)
    assert 8 <= len(bob.heard("blob")) < 20
    assert play.refused["rate"] == 20 - len(bob.heard("blob"))


def test_an_ask_over_the_rate_is_answered() -> None:
    """Else its sender waits for a reply that never comes."""
    play = Playing(message_rate=5, message_burst=5)
    ada = play.join()
    replies = [ada.ask("anything") for _ in range(9)]
    assert all(reply.done for reply in replies)
    assert [reply.error and reply.error["code"] for reply in replies] == ["unknown"] * 5 + ["rate"] * 4


def test_a_classic_client_over_the_rate_hears_nothing_in_a_language_it_does_not_speak() -> None:
    play = Playing(message_rate=4, message_burst=4)
    ada = play.join(classic=True)
    play.advance(1)
    ada.forget()
    for _ in range(6):
        for type in ("session:ping", "session:ask", "session:leave", "chat"):
            ada.send(type, {"t": 1, "ask": 1, "type": "x"})
        play.advance(0.1)
    assert {heard.type for heard in ada.heard_all} <= {"chat"}
    assert play.refused["rate"] > 0 and ada.closed is None


def test_a_ping_over_the_rate_is_answered() -> None:
    """A sender that keeps what is not confirmed would else be stuck when its buffer is full."""
    play = Playing(message_rate=4, message_burst=4)
    ada = play.join()
    for n in range(9):
        ada.send("move", n)
    play.advance(1.1)
    for n in range(9):
        ada.send("move", n, reliable=False)
    assert ada.ping()["received"] == 9


def test_who_is_over_the_rate_may_leave() -> None:
    play = Playing(message_rate=4, message_burst=4)
    ada, bob = play.join(), play.join()
    for n in range(9):
        ada.send("move", n)
    ada.leave()
    assert ada.closed == (Close.NORMAL, "") and len(play.room().clients) == 1 and bob.closed is None


def flood(play: Playing, player: Player, per_second: int, seconds: float) -> float | None:
    """Sends so many; returns after how many seconds the server closed."""
    begin = play.now
    for n in range(int(seconds * per_second)):
        if player.closed is not None:
            return play.now - begin
        player.send("move", n, reliable=n % 2 == 0)
        play.advance(1 / per_second)
    return None


def test_who_is_over_a_rate_for_ten_seconds_is_closed() -> None:
    play = Playing({"field": type("Both", (Diary,), {"relay": True})}, message_rate=20, message_burst=20)
    ada, bob = play.join(), play.join()
    after = flood(play, ada, 50, 30)
    assert after is not None and 10 <= after <= 12
    assert ada.closed is not None and ada.closed[0] == Close.POLICY
    assert play.room().lines[-1] == ("leave", 1, "closed")
    assert play.refused["rate_closed"] == 1 and bob.closed is None
    ada.resume()
    assert ada.welcome["id"] == 3, "there is no seat to come back to"


def test_who_floods_for_less_than_ten_seconds_at_a_time_is_not_closed() -> None:
    play = Playing(message_rate=20, message_burst=20)
    ada = play.join()
    for _ in range(4):
        assert flood(play, ada, 50, 8) is None
        play.advance(3)
    assert ada.closed is None


def test_copies_and_late_ones_count_too() -> None:
    """What carries an old number is dropped, but not for free."""
    play = Playing(message_rate=10, message_burst=10)
    ada, bob = play.join(), play.join()
    for _ in range(30):
        ada.send("cursor", 1, reliable=False, n=7)
    assert bob.heard("cursor") == [1]
    assert play.refused == {"rate": 20}


def test_exactly_the_rate_is_never_refused() -> None:
    play = Playing(message_rate=32, message_burst=2)
    ada = play.join()
    assert flood(play, ada, 32, 20) is None
    assert play.refused == {}


def test_a_handlers_rate_is_for_each_client_and_type() -> None:
    class Rated(Room):
        @on("say", rate=3)
        def say(self, client: Client, text: str) -> None:
            self.broadcast("said", text)

        @on("free")
        def free(self, client: Client) -> None: ...

    play = Playing({"field": Rated})
    ada, bob = play.join(), play.join()
    play.advance(0.5)
    for n in range(5):
        ada.send("say", str(n))
    ada.send("say", "lost", reliable=False)
    reply = ada.ask("say", "asked")
    bob.send("say", "bob")
    ada.send("free")
    assert bob.heard("said") == ["0", "1", "2", "bob"]
    assert ada.errors == ["rate", "rate"] and reply.error is not None and reply.error["code"] == "rate"
    assert play.refused == {"type_rate": 4}
    play.advance(1)
    ada.send("say", "again")
    assert bob.heard("said")[-1] == "again"


def test_refused_messages_count_as_received_so_nobody_sends_them_again() -> None:
    play = Playing(message_rate=5, message_burst=5)
    ada, bob = play.join(), play.join()
    for n in range(12):
        ada.send("move", n)
    play.advance(2)
    ada.drop()
    ada.resume()
    assert ada.welcome["received"] == 12
    play.advance(2)
    assert bob.heard("move") == [0, 1, 2, 3, 4]


def test_no_limit_on_the_size_of_a_message_is_no_limit_on_bytes_at_once() -> None:
    """`--message-size 0` means none, not that nothing may be sent."""
    play = Playing(message_size=0, byte_rate=262144)
    ada, bob = play.join(), play.join()
    ada.send("move", [1, 2])
    assert bob.heard("move") == [[1, 2]]


def test_the_largest_message_of_a_room_passes_its_byte_rate() -> None:
    """design.md: --byte-burst ≥ the largest `max_message`, also where the operator chose it before the piece came."""

    class Large(Room):
        relay = True
        max_message = 4 * 2**20

    play = Playing({"field": Large}, byte_rate=262144, byte_burst=2**20)
    ada, bob = play.join(), play.join()
    ada.send("source", "x" * 2**21)
    assert [len(content) for content in bob.heard("source")] == [2**21]


# --- raw rooms --------------------------------------------------------------------------------------------------------


class Echo(Room):
    raw = True

    def on_raw(self, client: Client, data: str | bytes) -> None:
        if data == "crash":
            raise RuntimeError("crash")
        client.send_raw(data)


def test_a_raw_room_gets_every_frame_and_says_nothing_by_itself() -> None:
    play = Playing({"echo": Echo})
    ada, bob = play.join("echo"), play.join("echo")
    play.advance(1)
    assert ada.frames == [] and bob.frames == []
    for data in ("hello", "", "{not json", b"\x00\xff", b"", '{"type":"session:leave"}'):
        ada.send_frame(data)
    assert ada.frames == ["hello", "", "{not json", b"\x00\xff", b"", '{"type":"session:leave"}']
    assert bob.frames == []


def test_a_fault_in_a_raw_room_is_contained() -> None:
    play = Playing({"echo": Echo})
    ada = play.join("echo")
    ada.send_frame("crash")
    ada.send_frame("on")
    assert ada.frames == ["on"] and play.faults == 1


def test_a_raw_room_keeps_to_the_rates() -> None:
    play = Playing({"echo": Echo}, message_rate=5, message_burst=5)
    ada = play.join("echo")
    for n in range(9):
        ada.send_frame(str(n))
    assert ada.frames == ["0", "1", "2", "3", "4"] and play.refused == {"rate": 4}


# --- drop and resume --------------------------------------------------------------------------------------------------


def test_a_resume_takes_the_same_seat_back() -> None:
    play = Playing({"field": Diary})
    ada, bob = play.join(name="ada", data=7), play.join()
    play.advance(0.1)
    seat = ada.seat
    ada.drop()
    play.advance(0.1)
    assert bob.people[1]["away"] is True
    play.advance(4)
    ada.resume()
    assert ada.seat is seat and ada.welcome["id"] == 1 and ada.welcome["recovered"] is True
    anonymous = {"user": None, "handle": None, "away": False}
    assert ada.welcome["presence"][0] == {"id": 1, "ids": [1], "name": "ada", "data": 7, **anonymous}
    play.advance(0.1)
    assert bob.people[1]["away"] is False
    play.advance(100)
    assert play.room().lines[-1] == ("resume", 1), "the old deadline is forgotten"


def test_the_token_rotates_and_an_old_one_makes_a_new_seat() -> None:
    play = Playing()
    ada, _ = play.join(), play.join()
    first = ada.resume_token
    ada.drop()
    ada.resume()
    assert ada.resume_token != first and ada.welcome["id"] == 1
    ada.send("hello", 1)
    ada.drop()
    ada.resume_token = first
    ada.resume()
    assert ada.welcome["id"] == 3 and ada.welcome["recovered"] is False


@pytest.mark.parametrize("token", ["", "nonsense", "0" * 32])
def test_an_unknown_token_makes_a_first_join(token: str) -> None:
    play = Playing()
    ada = play.join()
    ada.drop()
    ada.resume_token = token
    ada.resume()
    assert (ada.welcome["id"], ada.welcome["recovered"], ada.welcome["seq"]) == (2, False, 0)


def test_a_token_is_good_in_its_own_room_only() -> None:
    play = Playing()
    ada, bob = play.join("a"), play.join("b")
    bob.resume_token = ada.resume_token
    bob.drop()
    bob.resume()
    assert bob.welcome["room"] == "b" and bob.welcome["id"] == 2
    assert ada.closed is None


def test_after_grace_the_seat_is_gone_and_a_resume_makes_a_new_one() -> None:
    play = Playing({"field": Diary})
    ada, bob = play.join(), play.join()
    ada.drop()
    play.advance(4.9)
    assert len(play.room().clients) == 2
    play.advance(0.2)
    assert play.room().lines[-1] == ("leave", 1, "lost")
    ada.resume()
    assert ada.welcome["id"] == 3 and ada.welcome["recovered"] is False
    play.advance(0.1)
    assert sorted(bob.people) == [2, 3]


@pytest.mark.parametrize("grace", [0, 0.5, 30])
def test_a_room_chooses_its_grace(grace: float) -> None:
    play = Playing({"field": type("Room", (Diary,), {"grace": grace})})
    ada, _ = play.join(), play.join()
    assert ada.welcome["grace"] == grace
    ada.drop()
    if grace:
        play.advance(grace - 0.1)
        assert play.room().lines[-1] == ("drop", 1)
    play.advance(0.2)
    assert play.room().lines[-1] == ("leave", 1, "lost")
    assert (("drop", 1) in play.room().lines) is bool(grace)


def test_a_resume_takes_the_seat_from_a_link_that_only_seemed_alive() -> None:
    play = Playing({"field": type("Both", (Diary,), {"relay": True})})
    ada, bob = play.join(), play.join()
    half_open = ada.wire
    ada.vanish()
    bob.send("into the void", 1)
    play.advance(20)
    ada.resume()
    assert half_open.closed is not None and half_open.closed[0] == Close.GOING_AWAY
    assert ada.welcome["id"] == 1 and ada.welcome["recovered"] is False and ada.closed is None
    bob.send("hello", 2)
    assert ada.heard("hello") == [2]
    assert play.room().lines[-1] == ("resume", 1)
    play.advance(60)
    assert len(play.room().clients) == 2


def test_a_link_that_only_seems_alive_drops_when_the_server_notices() -> None:
    play = Playing({"field": Diary})
    play.join().vanish()
    play.advance(29)
    assert play.room().lines[-1] == ("join", 1)
    play.advance(2)
    assert play.room().lines[-1] == ("drop", 1)


def test_the_end_of_the_old_link_after_a_resume_changes_nothing() -> None:
    play = Playing({"field": Diary})
    ada = play.join()
    half_open, seat = ada.wire, ada.seat
    ada.vanish()
    ada.resume()
    assert seat is not None
    seat.core.drop(seat, half_open, clean=False)
    seat.core.drop(seat, half_open, clean=True)
    play.advance(10)
    assert play.room().clients == (seat,)


def test_both_sides_count_the_reliable_messages() -> None:
    play = Playing()
    ada, bob = play.join(), play.join()
    for n in range(5):
        bob.send("a", n)
        bob.send("b", n, reliable=False)
        bob.send("c", bytes([n]))
        ada.send("d", n)
        ada.ask("e", n)
    assert ada.counted == 10
    ada.drop()
    ada.resume()
    assert (ada.welcome["seq"], ada.welcome["recovered"], ada.welcome["received"]) == (10, True, 10)
    assert ada.ping()["received"] == 10
    assert bob.ping()["received"] == 10


@pytest.mark.parametrize(
    ("missed", "recovered"),
    [
        (lambda ada, bob, room: None, True),
        (lambda ada, bob, room: bob.send("a", 1, reliable=False), True),
        (lambda ada, bob, room: bob.send("b", b"x", reliable=False), True),
        (lambda ada, bob, room: bob.ping(), True),
        (lambda ada, bob, room: room.broadcast("x", exclude=ada.seat), True),
        (lambda ada, bob, room: bob.seat.send("x"), True),
        (lambda ada, bob, room: bob.send("a", 1), False),
        (lambda ada, bob, room: bob.send("b", b"x"), False),
        (lambda ada, bob, room: room.broadcast("x"), False),
        (lambda ada, bob, room: room.broadcast("x", exclude=bob.seat), False),
        (lambda ada, bob, room: ada.seat.send("x"), False),
        (lambda ada, bob, room: (room.broadcast("x"), ada.seat.send("y")), False),
    ],
)
def test_recovered_says_exactly_whether_something_was_missed(missed: Any, recovered: bool) -> None:
    play = Playing({"field": Talk})
    ada, bob = play.join(), play.join()
    bob.send("before", 1)
    ada.drop()
    missed(ada, bob, play.room())
    play.advance(1)
    ada.resume()
    assert ada.welcome["recovered"] is recovered
    bob.send("after", 1)
    ada.drop()
    ada.resume()
    assert ada.welcome["recovered"] is True, "the count goes on from the welcome's seq"


def test_what_was_lost_on_the_way_is_missed_too() -> None:
    play = Playing()
    ada, bob = play.join(), play.join()
    ada.stall()
    bob.send("a", 1)
    ada.drop()
    ada.resume()
    assert ada.welcome["recovered"] is False


def test_what_waits_for_the_end_of_the_tick_when_a_link_drops_is_missed() -> None:
    play = Playing()
    ada = play.join()
    with play.tick():
        play.room().broadcast("a")
        ada.wire.lost()
    ada.resume()
    assert ada.heard("a") == [] and ada.welcome["recovered"] is False


@pytest.mark.parametrize("received", [-1, 0, 2, 10**30])
def test_a_wrong_count_is_not_recovered(received: int) -> None:
    play = Playing()
    ada, bob = play.join(), play.join()
    bob.send("a", 1)
    ada.drop()
    ada.counted = received
    ada.resume()
    assert ada.welcome["recovered"] is False and ada.counted == 1


def test_what_a_client_sent_into_a_dying_link_is_sent_again_once() -> None:
    class Keeps(Room):
        def on_create(self) -> None:
            self.seen: list[int] = []

        @on("n")
        def n(self, client: Client, number: int) -> None:
            self.seen.append(number)

    play = Playing({"field": Keeps})
    ada = play.join()
    for n in range(3):
        ada.send("n", n)
    ada.vanish()
    for n in range(3, 6):
        ada.send("n", n)
    asked = ada.ask("n", 6)
    assert play.room().seen == [0, 1, 2]
    ada.resume()
    ada.drop()
    ada.resume()
    assert play.room().seen == [0, 1, 2, 3, 4, 5, 6] and asked.done


def test_a_first_join_counts_from_nothing_however_old_the_room_is() -> None:
    play = Playing()
    ada = play.join()
    play.join()
    for n in range(20):
        ada.send("a", n)
    cy = play.join()
    assert (cy.welcome["seq"], cy.welcome["received"]) == (0, 0)
    ada.send("a", 1)
    cy.drop()
    cy.resume()
    assert cy.welcome["recovered"] is True and cy.welcome["seq"] == 1


def test_a_join_in_the_middle_of_a_tick_hears_what_comes_after_it_and_counts_that() -> None:
    class Greets(Room):
        relay = True

        def on_join(self, client: Client) -> None:
            client.send("hello", client.id)
            self.broadcast("news", client.id)

    play = Playing({"field": Greets})
    ada = play.join()
    with play.tick():
        ada.send("before", 1)
        bob = play.join()
        ada.send("after", 1)
    assert bob.types()[:1] == ["session:welcome"]
    assert [m.type for m in bob.received][:2] == ["hello", "news"] and "before" not in [m.type for m in bob.received][
        2:
    ]
    bob.drop()
    bob.resume()
    assert bob.welcome["recovered"] is True


def test_a_resume_that_never_reached_the_client_can_be_tried_again() -> None:
    """The link that carried the resume died before the welcome with the next token came."""
    play = Playing()
    ada, _ = play.join(), play.join()
    ada.drop()
    with play.tick():
        ada.resume()
        ada.wire.down.drop()
    play.advance(1)
    ada.resume()
    assert ada.welcome["id"] == 1


# --- presence ---------------------------------------------------------------------------------------------------------


def test_presence_is_told_at_most_every_50_ms_and_never_late() -> None:
    play = Playing()
    watcher = play.join()
    play.advance(1)
    watcher.forget()
    for n in range(40):
        player = play.join()
        if n % 3 == 0:
            player.leave()
        play.advance(0.013)
    play.advance(0.05)
    times = [heard.at for heard in watcher.heard_all if heard.type == "session:presence"]
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert min(gaps) >= PRESENCE_GAP - 1e-9 and max(gaps) < 2 * PRESENCE_GAP
    assert watcher.count == len(watcher.people) == len(play.room().clients)
    play.advance(10)
    assert len(times) == len(watcher.heard("session:presence")), "silence when nothing changes"


def test_the_welcome_lists_everybody_the_newcomer_included() -> None:
    play = Playing({"field": Door})
    play.join(token="ada", name="phone")
    play.join(token="ada", name="desk")
    bob = play.join(token="guest")
    people = [(p["id"], p["ids"], p["user"], p["name"]) for p in bob.welcome["presence"]]
    assert people == [(1, [1, 2], "ada", "phone"), (3, [3], None, None)]
    assert bob.welcome["count"] == 2
    assert [p.id for p in play.room().presence] == [1, 3]


def test_beyond_200_people_there_is_only_a_count() -> None:
    play = Playing()
    first = play.join()
    for _ in range(199):
        play.join()
    play.advance(0.1)
    assert first.count == 200 == len(first.people)
    last = play.join()
    play.advance(0.1)
    assert (last.welcome["presence"], last.welcome["count"]) == ([], 201)
    assert first.heard("session:presence")[-1] == {"count": 201}
    last.leave()
    play.advance(0.1)
    assert first.count == 200 == len(first.people)


def test_a_room_of_classic_clients_has_no_timers_for_presence() -> None:
    play = Playing()
    play.join(classic=True)
    play.join(classic=True)
    play.advance(1)
    assert sleeps(play)
    ada = play.join()
    assert sorted(p["id"] for p in ada.welcome["presence"]) == [1, 2, 3]


# --- links that are behind --------------------------------------------------------------------------------------------


def test_for_a_link_that_is_behind_what_may_be_lost_is_shed_and_the_rest_kept_in_order() -> None:
    play = Playing()
    ada, bob, cy = play.join(), play.join(), play.join()
    bob.congest()
    for n in range(5):
        ada.send("a", n)
        ada.send("b", n, reliable=False)
    assert [m.type for m in bob.received] == ["a"] * 5
    assert [m.type for m in cy.received] == ["a", "b"] * 5
    assert play.refused == {"shed": 5}, "each limit has a counter"
    bob.congest(False)
    ada.send("b", 9, reliable=False)
    assert bob.heard("b") == [9]
    bob.drop()
    bob.resume()
    assert bob.welcome["recovered"] is True, "what was shed was not promised"


def test_order_is_kept_while_a_link_falls_behind_and_catches_up_within_a_tick() -> None:
    play = Playing()
    ada, bob = play.join(), play.join()
    with play.tick():
        ada.send("a", 0)
        play.soon(lambda: bob.wire.congest(True))
        ada.send("a", 1)
        ada.send("a", 2, reliable=False)
        play.soon(lambda: bob.wire.congest(False))
        ada.send("a", 3)
    assert bob.heard("a")[0] == 0
    reliable = [m.content for m in bob.received if m.reliable]
    assert reliable == [0, 1, 3]


def test_a_private_message_that_may_be_lost_is_shed_too() -> None:
    play = Playing({"field": Talk})
    ada = play.join()
    ada.congest()
    assert ada.seat is not None
    ada.seat.send("x", 1, reliable=False)
    ada.seat.send("y", 1)
    play.settle()
    assert [m.type for m in ada.received] == ["y"] and play.refused == {"shed": 1}


def test_a_write_that_fills_the_buffer_moves_its_client_in_the_middle_of_the_flush() -> None:
    """As an asyncio transport tells it: pause_writing is called within write."""
    play = Playing()
    ada, bob, cy = play.join(), play.join(), play.join()
    play.advance(0.1)
    bob.wire.high_water = 100
    bob.stall()
    with play.tick():
        ada.send("big", "x" * 200)
        ada.send("small", 1)
    assert bob.wire.behind
    ada.send("lost", 1, reliable=False)
    ada.send("kept", 1)
    bob.release()
    assert [m.type for m in bob.received] == ["big", "small", "kept"]
    assert [m.type for m in cy.received] == ["big", "small", "lost", "kept"]


@pytest.mark.parametrize("others", [0, 1])
def test_a_link_that_catches_up_and_at_once_falls_behind_again_is_in_one_stream(others: int) -> None:
    """What waited is written when a link has caught up; that write can fill its buffer again."""
    play = Playing({"field": Talk})
    bob = play.join()
    for _ in range(others):
        play.join().congest()
    play.advance(0.1)
    bob.congest()
    bob.wire.high_water = 100
    bob.stall()
    with play.tick():
        play.room().broadcast("big", "x" * 200)
        play.soon(lambda: bob.wire.congest(False))
    assert bob.wire.behind
    play.room().broadcast("next", 1)
    play.room().broadcast("lost", 1, reliable=False)
    bob.release()
    play.settle()
    assert [m.type for m in bob.received] == ["big", "next"]


def test_a_slow_consumer_is_closed_within_the_flush_and_its_seat_runs_out_by_itself() -> None:
    """Nothing else happens in the room afterwards: the loop must still be told of the deadline that the flush set."""
    play = Playing({"field": type("Both", (Diary,), {"relay": True})})
    ada, bob = play.join(), play.join()
    play.advance(0.1)
    bob.wire.max_unsent = 100
    bob.stall()
    ada.send("big", "x" * 200)
    assert bob.wire.closed is not None and bob.wire.closed[0] == Close.FULL
    assert play.room().lines[-1] == ("drop", 2)
    play.advance(0.1)
    assert ada.people[2]["away"] is True
    play.advance(5)
    assert play.room().lines[-1] == ("leave", 2, "lost")
    assert sorted(ada.people) == [1]


def test_a_slow_consumer_comes_back_for_its_seat() -> None:
    play = Playing()
    ada, bob = play.join(), play.join()
    bob.wire.max_unsent = 100
    bob.stall()
    ada.send("big", "x" * 200)
    ada.send("more", 1)
    bob.resume()
    assert bob.welcome["id"] == 2 and bob.welcome["recovered"] is False
    ada.send("on", 1)
    assert bob.heard("on") == [1]


def test_a_slow_consumer_that_is_found_out_while_it_catches_up_is_written_nothing_more() -> None:
    play = Playing({"field": Talk})
    ada, bob = play.join(), play.join()
    play.advance(0.1)
    bob.congest()
    bob.wire.max_unsent = 100
    bob.stall()
    with play.tick():
        play.room().broadcast("big", "x" * 200)
        play.soon(lambda: bob.wire.congest(False))
    play.room().broadcast("next", 1)  # the wire asserts that nothing is written after its close
    play.settle()
    assert bob.wire.closed is not None and bob.wire.closed[0] == Close.FULL
    assert ada.heard("next") == [1]


def test_a_hook_called_by_a_flush_may_kick_and_keeps_the_order_of_the_others() -> None:
    class Referee(Room):
        relay = True

        def on_drop(self, client: Client) -> None:
            self.broadcast("over", client.id)
            for other in self.clients:
                if other is not client and other.id == 3:
                    other.kick("the game is over")

    play = Playing({"field": Referee})
    ada, bob, cy, dot = (play.join() for _ in range(4))
    play.advance(0.1)
    bob.wire.max_unsent = 100
    bob.stall()
    ada.send("big", "x" * 200)
    assert cy.closed == (Close.KICKED, "the game is over")
    assert [m.type for m in cy.received] == ["big", "over"] == [m.type for m in dot.received]


# --- two links --------------------------------------------------------------------------------------------------------


def two_links(route: Route) -> tuple[Playing, Player, Player, Side]:
    """Ada has a second link for what may be lost; Bob talks."""
    play = Playing({"field": Talk})
    ada, bob = play.join(), play.join()
    play.advance(0.1)
    side = Side(ada, route)
    ada.forget()
    return play, ada, bob, side


@pytest.mark.parametrize(
    ("route", "on_wire", "on_side"),
    [(Route.RELIABLE, True, False), (Route.BOTH, True, True), (Route.UNRELIABLE, False, True)],
)
def test_what_may_be_lost_goes_where_the_side_link_is_trusted(route: Route, on_wire: bool, on_side: bool) -> None:
    play, ada, bob, side = two_links(route)
    bob.send("a", 1)
    bob.send("b", 2, reliable=False)
    bob.send("c", b"3", reliable=False)
    play.room().broadcast("d", 4, reliable=False)
    assert ada.seat is not None
    ada.seat.send("e", 5, reliable=False)
    ada.seat.send("f", 6)
    play.settle()
    lossy = ["b", "c", "d", "e"]
    assert [m.type for m in ada.received] == (["a", *lossy, "f"] if on_wire else ["a", "f"])
    assert side.types() == (lossy if on_side else [])
    assert play.rooms.totals.refused.total() == 0, "nothing was shed"


def test_a_copy_on_the_other_link_has_the_same_number() -> None:
    play, ada, bob, side = two_links(Route.BOTH)
    for n in range(3):
        bob.send("b", n, reliable=False)
        play.room().broadcast("d", n, reliable=False)
        bob.send("c", bytes([n]), reliable=False)
    numbers = [(m.type, m.extra["n"]) for m in side.heard]
    assert numbers == [(m.type, m.extra["n"]) for m in ada.received]
    assert {type: [n for t, n in numbers if t == type] for type in "bcd"} == dict.fromkeys("bcd", [1, 2, 3])


def test_a_number_that_its_sender_gave_is_kept() -> None:
    _, ada, bob, side = two_links(Route.BOTH)
    for n in (5, 9):
        bob.send("b", n, reliable=False, n=n)
    assert [m.extra["n"] for m in side.heard] == [5, 9] == [m.extra["n"] for m in ada.received]


def test_the_librarys_own_messages_go_by_the_reliable_link_alone() -> None:
    play, ada, _, side = two_links(Route.UNRELIABLE)
    play.join()
    play.advance(0.1)
    ada.ping()
    ada.ask("nowhere")
    ada.send_frame("nonsense")
    assert {"session:presence", "session:pong", "session:reply", "session:error"} <= set(ada.types())
    assert side.types() == []


def test_reliable_and_unreliable_are_each_in_order_while_trust_comes_and_goes() -> None:
    play, ada, bob, side = two_links(Route.BOTH)
    for n, route in enumerate([Route.UNRELIABLE, Route.RELIABLE, Route.BOTH, Route.UNRELIABLE, Route.BOTH] * 3):
        with play.tick():
            bob.send("a", n)
            bob.send("b", n, reliable=False)
            play.soon(lambda route=route: side.trust(route))
            bob.send("a", n + 0.5)
            bob.send("b", n + 0.5, reliable=False)
    everything = [n / 2 for n in range(30)]
    assert ada.heard("a") == everything
    assert sorted({*ada.heard("b"), *[m.content for m in side.heard]}) == everything, "none was lost in the change"
    assert ada.heard("b") == sorted(ada.heard("b"))
    assert [m.content for m in side.heard] == sorted(m.content for m in side.heard)


def test_without_its_side_link_all_goes_by_the_reliable_one_again() -> None:
    _, ada, bob, side = two_links(Route.UNRELIABLE)
    side.detach()
    bob.send("b", 1, reliable=False)
    assert ada.heard("b") == [1] and side.heard == []
    assert ada.seat is not None and [link.kind for link in ada.seat.links] == ["memory"]


def test_a_drop_ends_the_side_link_too() -> None:
    _, ada, bob, side = two_links(Route.UNRELIABLE)
    ada.drop()
    bob.send("b", 1, reliable=False)
    assert side.heard == [] and ada.seat is not None and ada.seat.links == ()
    ada.resume()
    bob.send("b", 2, reliable=False)
    assert ada.heard("b") == [2] and side.heard == []


def test_what_came_on_both_links_is_taken_once_and_what_came_late_not_at_all() -> None:
    _, ada, bob, _ = two_links(Route.RELIABLE)
    for n in (1, 1, 2, 4, 3, 4, 5):
        ada.send("b", n, reliable=False, n=n)
    ada.send("other", 1, reliable=False, n=1)
    ada.send("b", "plain", reliable=False)
    ada.send("b", "reliable", n=1)
    assert bob.heard("b") == [1, 2, 4, 5, "plain", "reliable"] and bob.heard("other") == [1]


def test_what_a_client_says_that_it_has_received_decides_nothing() -> None:
    _, ada, bob, side = two_links(Route.BOTH)
    for received in (7, "x"):
        ada.send("session:ack", {"received": received})
    bob.send("b", 1, reliable=False)
    assert ada.errors == [] and ada.heard("b") == [1] == [m.content for m in side.heard]


# --- what strangers send ----------------------------------------------------------------------------------------------


def test_what_is_no_message_costs_only_its_sender() -> None:
    play = Playing()
    ada, bob = play.join(), play.join()
    for frame in ("", "{", "[]", '{"type":7}', b"", b"\x05", '{"type":"a","content":NaN}'):
        ada.send_frame(frame)
    assert ada.errors == ["malformed"] * 7
    assert bob.received == [] and bob.errors == []


@pytest.mark.parametrize("depth", [30, 400, 700, 800, 850, 880, 900, 910, 920, 930, 940, 950, 1000, 2000])
def test_what_a_client_says_of_itself_cannot_stop_the_greeting_of_others(depth: int) -> None:
    """Data nested so deeply that it can just be read, but not be written from within one more call."""
    play = Playing()
    bystander = play.join()
    data = "[" * depth + "]" * depth
    hello = play.join("elsewhere")  # a player whose hello we can choose
    hello.vanish()
    wire = hello.wire = type(hello.wire)(play, hello, "field", bystander.wire.dialect, bystander.wire.pack, "192.0.2.9")
    wire.up.put(f'{{"type":"session:join","content":{{"data":{data}}}}}', 2 * depth)
    play.settle()
    play.advance(0.1)
    later = play.join()
    play.advance(0.1)
    assert later.welcome["id"] in {2, 3}
    assert bystander.count == len(play.room().clients)
    if play.room().clients[-2].data is None:
        assert wire.closed is not None


def test_large_numbers_do_not_stop_anybody() -> None:
    play = Playing()
    ada = play.join(data=[10**30, -(10**400), 1.5e300])
    bob = play.join(data={"x": 2**64})
    ada.send("a", 10**40)
    assert bob.heard("a") == [10**40]
    assert bob.welcome["presence"][0]["data"] == [10**30, -(10**400), 1.5e300]
