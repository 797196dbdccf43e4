"""The example pieces, played: part one, their rooms in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from playing import Player, Playing
from session_server.pieces import Pieces

FOLDER = Path(__file__).parent.parent / "pieces"


def play_examples() -> Playing:
    return Playing(Pieces(FOLDER))


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
    play = play_examples()
    ada, bob = play.join(slug), play.join(slug)
    types = [*play.core(slug).calls.routes.handlers, "nonsense"]
    contents = [
        None,
        "",
        "x" * 9000,
        7,
        -1e308,
        [],
        [1],
        [1, 2],
        [1, "2"],
        [None, None],
        {},
        {"a": 1},
        True,
        b"",
        b"\xff",
    ]
    for player in (ada, bob):
        for type in types:
            for content in contents:
                player.send(type, content)
                play.advance(0.5)
        play.join(slug).leave()
    play.advance(1)
    assert play.faults == 0, play.log.entries
    assert ada.closed is None
    play.join(slug)
    assert play.faults == 0


# --- field ------------------------------------------------------------------------------------------------------------


def snapshot(player: Player) -> dict[str, dict[str, object]]:
    content: dict[str, dict[str, object]] = player.heard("snapshot")[-1]
    return content


def test_field_shows_everybody_where_everybody_is() -> None:
    play = play_examples()
    ada, bob = play.join("field", "ada"), play.join("field", "bob")
    assert bob.heard("list")[0] == {
        "1": {"name": "ada", "pos": [0.5, 0.5]},
        "2": {"name": "bob", "pos": [0.5, 0.5]},
    }
    ada.send("move", [0.1, 0.9], reliable=False)
    play.advance(0.05)
    assert snapshot(bob)["1"] == {"name": "ada", "pos": [0.1, 0.9]}
    assert snapshot(bob) == snapshot(ada)
    assert all(not heard.reliable for heard in bob.heard_all if heard.type == "snapshot")


def test_field_sends_thirty_snapshots_a_second_however_many_moves() -> None:
    play = play_examples()
    ada, bob = play.join("field"), play.join("field")
    for n in range(60):
        ada.send("move", [n / 60, 0.5], reliable=False)
        play.advance(1 / 60)
    assert 29 <= len(bob.heard("snapshot")) <= 31


def test_field_keeps_everybody_on_the_field() -> None:
    play = play_examples()
    ada = play.join("field")
    for sent, pos in (([-5, 0.5], [0.0, 0.5]), ([2, 99], [1.0, 1.0])):
        ada.send("move", sent)
        play.advance(0.1)
        assert snapshot(ada)["1"]["pos"] == pos
    ada.send("move", [0.5])
    assert ada.errors == ["invalid"]


def test_field_counts_waves_and_forgets_who_left() -> None:
    play = play_examples()
    ada, bob = play.join("field"), play.join("field")
    assert ada.ask("count").value == 2
    ada.send("wave", {"hand": "left"})
    assert bob.heard("wave") == [{"hand": "left"}] and ada.heard("wave") == []
    assert bob.received[-1].id == 1
    ada.leave()
    play.advance(0.05)
    assert set(snapshot(bob)) == {"2"} and bob.ask("count").value == 1


def test_field_keeps_the_place_of_who_drops_for_ten_seconds() -> None:
    play = play_examples()
    ada, bob = play.join("field", "ada"), play.join("field")
    ada.send("move", [0.2, 0.3])
    ada.drop()
    play.advance(9)
    assert snapshot(bob)["1"]["pos"] == [0.2, 0.3] and bob.people[1]["away"] is True
    ada.resume()
    play.advance(0.1)
    assert ada.welcome["id"] == 1 and snapshot(ada)["1"]["pos"] == [0.2, 0.3]
    ada.drop()
    play.advance(10.1)
    assert set(snapshot(bob)) == {"2"}


# --- chat -------------------------------------------------------------------------------------------------------------


def test_chat_gives_the_history_to_who_comes_late() -> None:
    play = play_examples()
    ada = play.join("chat", "ada")
    assert ada.heard("history") == [[]]
    for text in ("hello", "anybody here?"):
        ada.send("say", text)
    bob = play.join("chat", "bob")
    bob.send("say", "me")
    [history] = bob.heard("history")
    assert [(said["id"], said["name"], said["text"]) for said in history] == [
        (1, "ada", "hello"),
        (1, "ada", "anybody here?"),
    ]
    assert [said["text"] for said in ada.heard("said")] == ["hello", "anybody here?", "me"], "one's own words too"
    assert all(isinstance(said["time"], float) for said in ada.heard("said"))


def test_chat_remembers_the_last_hundred() -> None:
    play = play_examples()
    ada = play.join("chat")
    for n in range(120):
        ada.send("say", str(n))
        play.advance(0.25)
    [history] = play.join("chat").heard("history")
    assert [said["text"] for said in history] == [str(n) for n in range(20, 120)]


@pytest.mark.parametrize(("text", "allowed"), [("x", True), ("x" * 500, True), ("", False), ("x" * 501, False)])
def test_chat_takes_no_empty_and_no_endless_texts(text: str, allowed: bool) -> None:
    play = play_examples()
    ada = play.join("chat")
    ada.send("say", text)
    assert [said["text"] for said in ada.heard("said")] == ([text] if allowed else [])
    assert ada.errors == ([] if allowed else ["invalid"])


def test_chat_lets_nobody_say_more_than_five_things_a_second() -> None:
    play = play_examples()
    ada, bob = play.join("chat"), play.join("chat")
    for n in range(9):
        ada.send("say", str(n))
    assert [said["text"] for said in bob.heard("said")] == ["0", "1", "2", "3", "4"]
    assert set(ada.errors) == {"rate"}


def test_chat_gives_each_a_name_of_their_own() -> None:
    play = play_examples()
    players = [play.join("chat", name) for name in ("ada", "ada", None, "x" * 60, "x" * 60)]
    for player in players:
        player.send("say", "here")
    names = [said["name"] for said in players[0].heard("said")]
    assert names == ["ada", "ada 2", "guest 3", "x" * 24, "x" * 18 + " 5"]


def test_chat_renames_unless_the_name_is_taken_or_too_long() -> None:
    play = play_examples()
    ada, bob = play.join("chat", "ada"), play.join("chat", "bob")
    assert ada.ask("rename", "countess").value == "countess"
    play.advance(2)
    taken = bob.ask("rename", "countess")
    assert taken.error == {"code": "refused", "reason": "somebody here is called countess already"}
    play.advance(2)
    assert bob.ask("rename", "x" * 25).error is not None
    play.advance(2)
    assert ada.ask("rename", "countess").value == "countess", "one's own name is not taken"
    ada.leave()
    play.advance(2)
    assert bob.ask("rename", "countess").value == "countess"


# --- pong -------------------------------------------------------------------------------------------------------------


def state(player: Player) -> dict[str, list[float]]:
    content: dict[str, list[float]] = player.heard("state")[-1]
    return content


def test_pong_has_two_seats_and_spectators() -> None:
    play = play_examples()
    ada, bob, cy = (play.join("pong") for _ in range(3))
    assert ada.ask("sit").value == 0 and bob.ask("sit").value == 1
    assert ada.ask("sit").value == 0, "sitting already"
    assert cy.ask("sit").error == {"code": "refused", "reason": "both seats are taken"}
    play.advance(0.1)
    assert state(cy)["seats"] == [1, 2]
    cy.send("paddle", 0.1)
    play.advance(0.1)
    assert state(cy)["paddles"] == [0.3, 0.3], "a spectator moves nothing"


def test_pong_waits_for_two_and_then_serves() -> None:
    play = play_examples()
    ada, bob = play.join("pong"), play.join("pong")
    ada.send("sit")
    play.advance(1)
    assert state(bob)["ball"] == [0.5, 0.3]
    bob.send("sit")
    play.advance(0.5)
    assert state(bob)["ball"][0] == pytest.approx(0.75, abs=0.04)


def test_pong_keeps_paddles_on_the_field() -> None:
    play = play_examples()
    ada = play.join("pong")
    ada.send("sit")
    for sent, y in ((-9, 0.06), (9, 0.54), (0.2, 0.2)):
        ada.send("paddle", sent)
        play.advance(0.1)
        assert state(ada)["paddles"][0] == pytest.approx(y)
    ada.send("paddle", "up")
    assert ada.errors == ["invalid"]


def test_pong_is_played_by_the_server_alone_and_somebody_scores() -> None:
    """Ada follows the ball, Bob stands still: the ball stays on the field, bounces off her, and goes past him."""
    play = play_examples()
    ada, bob = play.join("pong"), play.join("pong")
    ada.send("sit")
    bob.send("sit")
    bob.send("paddle", 0.0)
    bounces, before = 0, 1.0
    for _ in range(1200):
        play.advance(1 / 30)
        x, y = state(ada)["ball"]
        assert -0.05 <= x <= 1.05 and -0.001 <= y <= 0.601
        ada.send("paddle", y)
        bounces += before < 0.06 < x < 0.2
        before = x
    score = state(ada)["score"]
    assert score[0] >= 1 and score[1] == 0
    assert play.faults == 0


def test_pong_gives_a_seat_back_and_begins_anew() -> None:
    play = play_examples()
    ada, bob, cy = (play.join("pong") for _ in range(3))
    ada.send("sit")
    bob.send("sit")
    bob.send("paddle", 0.0)
    ada.send("paddle", 0.3)
    play.advance(20)
    assert sum(state(cy)["score"]) > 0
    bob.leave()
    play.advance(0.1)
    assert state(cy)["seats"] == [1, None] and state(cy)["score"] == [0, 0]
    assert cy.ask("sit").value == 1


def test_pong_keeps_a_seat_for_who_drops_and_frees_it_after_grace() -> None:
    play = play_examples()
    ada, bob = play.join("pong"), play.join("pong")
    ada.send("sit")
    ada.drop()
    play.advance(4)
    assert state(bob)["seats"] == [1, None]
    play.advance(2)
    assert state(bob)["seats"] == [None, None]
