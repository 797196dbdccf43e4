"""The example pieces, played: part one, their rooms in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from session_server.pieces import Pieces
from session_server.testing import RoomTest

FOLDER = Path(__file__).parent.parent / "pieces"
ODD: list[Any] = [
    None, "", "x" * 9000, 7, -1e308, [], [1], [1, 2], [1, "2"], [None, None], {}, {"a": 1}, True, b"", b"\xff",
]  # fmt: skip


@pytest.fixture
def field() -> Iterator[RoomTest]:
    with RoomTest.piece(FOLDER / "field.py") as test:
        yield test


@pytest.fixture
def chat() -> Iterator[RoomTest]:
    with RoomTest.piece(FOLDER / "chat.py") as test:
        yield test


@pytest.fixture
def pong() -> Iterator[RoomTest]:
    with RoomTest.piece(FOLDER / "pong.py") as test:
        yield test


def test_all_example_pieces_load_and_have_a_page() -> None:
    pieces = Pieces(FOLDER)
    assert pieces.errors() == []
    assert {slug for slug, piece in pieces.table.items() if piece.code and piece.page} >= {"field", "chat", "pong"}


@pytest.mark.parametrize("slug", ["field", "chat", "pong"])
def test_an_example_is_short_enough_to_be_read_as_the_tutorial(slug: str) -> None:
    assert len((FOLDER / f"{slug}.py").read_text().splitlines()) <= 75


@pytest.mark.parametrize("slug", ["field", "chat", "pong"])
def test_an_example_survives_whatever_is_thrown_at_it(slug: str) -> None:
    """Each of its messages with each kind of wrong content, before and after somebody else left."""
    with RoomTest.piece(FOLDER / f"{slug}.py") as test:
        ada, bob = test.join(), test.join()
        types = [*test.rooms.rooms[slug].calls.routes.handlers, "nonsense"]
        for player in (ada, bob):
            for type in types:
                for content in ODD:
                    player.send(type, content)
                    test.advance(0.5)
            test.join().leave()
        test.advance(1)
        assert ada.closed is None
        test.join()


@pytest.mark.parametrize("slug", ["field", "chat", "pong"])
def test_an_example_bears_a_bad_network(slug: str) -> None:
    """Who drops out and comes back again and again keeps its seat and sees everybody."""
    with RoomTest.piece(FOLDER / f"{slug}.py", seed=7) as test:
        test.network(delay=0.1, jitter=0.1, loss=0.3, duplicates=0.1)
        players = [test.join(name) for name in ("ada", "bob", "cy")]
        test.advance(5)
        ids = [player.id for player in players]
        for player in players * 3:
            test.advance(1)
            player.drop()
            test.advance(1.5)
            player.back()
        test.advance(10)
        assert [player.id for player in players] == ids
        for player in players:
            assert {id: person["away"] for id, person in player.people.items()} == {1: False, 2: False, 3: False}


# --- field ------------------------------------------------------------------------------------------------------------


def test_field_shows_everybody_where_everybody_is(field: RoomTest) -> None:
    ada, bob = field.join("ada"), field.join("bob")
    assert bob.heard("list")[0] == {
        "1": {"name": "ada", "pos": [0.5, 0.5]},
        "2": {"name": "bob", "pos": [0.5, 0.5]},
    }
    ada.send("move", [0.1, 0.9], reliable=False)
    field.advance(0.05)
    assert bob.last("snapshot")["1"] == {"name": "ada", "pos": [0.1, 0.9]}
    assert bob.last("snapshot") == ada.last("snapshot")
    assert all(not heard.reliable for heard in bob.heard_all if heard.type == "snapshot")


def test_field_sends_thirty_snapshots_a_second_however_many_moves(field: RoomTest) -> None:
    ada, bob = field.join(), field.join()
    for n in range(60):
        ada.send("move", [n / 60, 0.5], reliable=False)
        field.advance(1 / 60)
    assert 29 <= len(bob.heard("snapshot")) <= 31


def test_field_keeps_everybody_on_the_field(field: RoomTest) -> None:
    ada = field.join()
    for sent, pos in (([-5, 0.5], [0.0, 0.5]), ([2, 99], [1.0, 1.0])):
        ada.send("move", sent)
        field.advance(0.1)
        assert ada.last("snapshot")["1"]["pos"] == pos
    ada.send("move", [0.5])
    assert ada.errors == ["invalid"]


def test_field_counts_waves_and_forgets_who_left(field: RoomTest) -> None:
    ada, bob = field.join(), field.join()
    assert ada.ask("count").value == 2
    ada.send("wave", {"hand": "left"})
    assert bob.heard("wave") == [{"hand": "left"}] and ada.heard("wave") == []
    assert bob.received[-1].id == 1
    ada.leave()
    field.advance(0.05)
    assert set(bob.last("snapshot")) == {"2"} and bob.ask("count").value == 1


def test_field_keeps_the_place_of_who_drops_for_ten_seconds(field: RoomTest) -> None:
    ada, bob = field.join("ada"), field.join()
    ada.send("move", [0.2, 0.3])
    ada.drop()
    field.advance(9)
    assert bob.last("snapshot")["1"]["pos"] == [0.2, 0.3] and bob.people[1]["away"] is True
    ada.back()
    field.advance(0.1)
    assert ada.welcome["id"] == 1 and ada.last("snapshot")["1"]["pos"] == [0.2, 0.3]
    ada.drop()
    field.advance(10.1)
    assert set(bob.last("snapshot")) == {"2"}


# --- chat -------------------------------------------------------------------------------------------------------------


def test_chat_gives_the_history_to_who_comes_late(chat: RoomTest) -> None:
    ada = chat.join("ada")
    assert ada.heard("history") == [[]]
    for text in ("hello", "anybody here?"):
        ada.send("say", text)
    bob = chat.join("bob")
    bob.send("say", "me")
    [history] = bob.heard("history")
    assert [(said["id"], said["name"], said["text"]) for said in history] == [
        (1, "ada", "hello"),
        (1, "ada", "anybody here?"),
    ]
    assert [said["text"] for said in ada.heard("said")] == ["hello", "anybody here?", "me"], "one's own words too"
    assert all(isinstance(said["time"], float) for said in ada.heard("said"))


def test_chat_remembers_the_last_hundred(chat: RoomTest) -> None:
    ada = chat.join()
    for n in range(120):
        ada.send("say", str(n))
        chat.advance(0.25)
    [history] = chat.join().heard("history")
    assert [said["text"] for said in history] == [str(n) for n in range(20, 120)]


@pytest.mark.parametrize(("text", "allowed"), [("x", True), ("x" * 500, True), ("", False), ("x" * 501, False)])
def test_chat_takes_no_empty_and_no_endless_texts(chat: RoomTest, text: str, allowed: bool) -> None:
    ada = chat.join()
    ada.send("say", text)
    assert [said["text"] for said in ada.heard("said")] == ([text] if allowed else [])
    assert ada.errors == ([] if allowed else ["invalid"])


def test_chat_lets_nobody_say_more_than_five_things_a_second(chat: RoomTest) -> None:
    ada, bob = chat.join(), chat.join()
    for n in range(9):
        ada.send("say", str(n))
    assert [said["text"] for said in bob.heard("said")] == ["0", "1", "2", "3", "4"]
    assert set(ada.errors) == {"rate"}


def test_chat_gives_each_a_name_of_their_own(chat: RoomTest) -> None:
    players = [chat.join(name) for name in ("ada", "ada", None, "x" * 60, "x" * 60)]
    for player in players:
        player.send("say", "here")
    names = [said["name"] for said in players[0].heard("said")]
    assert names == ["ada", "ada 2", "guest 3", "x" * 24, "x" * 18 + " 5"]


def test_chat_renames_unless_the_name_is_taken_or_too_long(chat: RoomTest) -> None:
    ada, bob = chat.join("ada"), chat.join("bob")
    assert ada.ask("rename", "countess").value == "countess"
    chat.advance(2)
    taken = bob.ask("rename", "countess")
    assert taken.error == {"code": "refused", "reason": "somebody here is called countess already"}
    chat.advance(2)
    assert bob.ask("rename", "x" * 25).error is not None
    chat.advance(2)
    assert ada.ask("rename", "countess").value == "countess", "one's own name is not taken"
    ada.leave()
    chat.advance(2)
    assert bob.ask("rename", "countess").value == "countess"


# --- pong -------------------------------------------------------------------------------------------------------------


def test_pong_has_two_seats_and_spectators(pong: RoomTest) -> None:
    ada, bob, cy = (pong.join() for _ in range(3))
    assert ada.ask("sit").value == 0 and bob.ask("sit").value == 1
    assert ada.ask("sit").value == 0, "sitting already"
    assert cy.ask("sit").error == {"code": "refused", "reason": "both seats are taken"}
    pong.advance(0.1)
    assert cy.last("state")["seats"] == [1, 2]
    cy.send("paddle", 0.1)
    pong.advance(0.1)
    assert cy.last("state")["paddles"] == [0.3, 0.3], "a spectator moves nothing"


def test_pong_waits_for_two_and_then_serves(pong: RoomTest) -> None:
    ada, bob = pong.join(), pong.join()
    ada.send("sit")
    pong.advance(1)
    assert bob.last("state")["ball"] == [0.5, 0.3]
    bob.send("sit")
    pong.advance(0.5)
    assert bob.last("state")["ball"][0] == pytest.approx(0.75, abs=0.04)


def test_pong_keeps_paddles_on_the_field(pong: RoomTest) -> None:
    ada = pong.join()
    ada.send("sit")
    for sent, y in ((-9, 0.06), (9, 0.54), (0.2, 0.2)):
        ada.send("paddle", sent)
        pong.advance(0.1)
        assert ada.last("state")["paddles"][0] == pytest.approx(y)
    ada.send("paddle", "up")
    assert ada.errors == ["invalid"]


def test_pong_is_played_by_the_server_alone_and_somebody_scores(pong: RoomTest) -> None:
    """Ada follows the ball, Bob stands still: the ball stays on the field, bounces off her, and goes past him."""
    ada, bob = pong.join(), pong.join()
    ada.send("sit")
    bob.send("sit")
    bob.send("paddle", 0.0)
    bounces, before = 0, 1.0
    for _ in range(1200):
        pong.advance(1 / 30)
        x, y = ada.last("state")["ball"]
        assert -0.05 <= x <= 1.05 and -0.001 <= y <= 0.601
        ada.send("paddle", y)
        bounces += before < 0.06 < x < 0.2
        before = x
    score = ada.last("state")["score"]
    assert score[0] >= 1 and score[1] == 0


def test_pong_gives_a_seat_back_and_begins_anew(pong: RoomTest) -> None:
    ada, bob, cy = (pong.join() for _ in range(3))
    ada.send("sit")
    bob.send("sit")
    bob.send("paddle", 0.0)
    ada.send("paddle", 0.3)
    pong.advance(20)
    assert sum(cy.last("state")["score"]) > 0
    bob.leave()
    pong.advance(0.1)
    assert cy.last("state")["seats"] == [1, None] and cy.last("state")["score"] == [0, 0]
    assert cy.ask("sit").value == 1


def test_pong_keeps_a_seat_for_who_drops_and_frees_it_after_grace(pong: RoomTest) -> None:
    ada, bob = pong.join(), pong.join()
    ada.send("sit")
    ada.drop()
    pong.advance(4)
    assert bob.last("state")["seats"] == [1, None]
    pong.advance(2)
    assert bob.last("state")["seats"] == [None, None]
