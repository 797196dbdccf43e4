"""Another process goes on with the rooms of this one: in memory, as if the connections had dropped in between."""

from __future__ import annotations

from typing import Any

import pytest

from playing import Player, Playing
from session_server import Client, Room, on
from session_server.handover import pack, unpack


class Field(Room):
    keep = ("players", "shape", "odd")
    relay = ("wave", "move")
    tick_rate = 2

    def on_create(self) -> None:
        self.players: dict[int, list[float]] = {}
        self.shape = {"size": (3, 4)}
        self.odd: Any = None
        self.left: list[tuple[int, str]] = []
        self.was: dict[str, Any] = {}

    def on_reload(self, old: dict[str, Any]) -> None:
        self.was = old

    def on_join(self, client: Client) -> None:
        self.players[client.id] = [0.0, 0.0]

    def on_leave(self, client: Client, reason: str) -> None:
        self.left.append((client.id, reason))

    @on("step")
    def step(self, client: Client) -> list[float]:
        self.players[client.id][0] += 1
        return self.players[client.id]

    def on_tick(self, dt: float) -> None:
        self.broadcast("tick", len(self.players))


def handed_over(play: Playing, room: Any = Field, lost: tuple[Player, ...] = ()) -> Playing:
    """The same rooms in another process, and everybody but those who are `lost` back in it."""
    data = pack(play.rooms)
    fresh = Playing({"field": room})
    fresh.now = play.now
    fresh.rooms.enter(fresh.now)
    unpack(fresh.rooms, data, fresh.log)
    for player in play.players:
        if player not in lost:
            player.drop()
            player.play = fresh
            fresh.players.append(player)
            player.resume()
    return fresh


def test_everybody_has_the_same_seat_and_nothing_was_missed() -> None:
    play = Playing({"field": Field})
    ada, bob = play.join(name="ada"), play.join(name="bob", data={"color": "red"})
    ids = ada.id, bob.id
    for n in range(3):
        ada.send("wave", n)
    assert ada.ask("step").value == [1.0, 0.0]
    fresh = handed_over(play)
    assert (ada.id, bob.id) == ids
    assert ada.welcome["recovered"] and bob.welcome["recovered"]
    assert ada.ask("step").value == [2.0, 0.0], "what `keep` names goes on"
    ada.send("wave", 3)
    assert bob.heard("wave") == [0, 1, 2, 3]
    assert {person["name"]: person["data"] for person in bob.people.values()} == {"ada": None, "bob": {"color": "red"}}
    assert fresh.join().id == 3, "an id is never given twice"
    assert fresh.room().was["shape"] == {"size": [3, 4]}
    ada.forget()
    fresh.advance(1.1)
    assert ada.heard("tick") == [3, 3]


def test_who_missed_something_is_told_so() -> None:
    play = Playing({"field": Field})
    ada, bob = play.join(), play.join()
    bob.stall()
    ada.send("wave", 0)
    handed_over(play)
    assert ada.welcome["recovered"] and not bob.welcome["recovered"]


def test_what_may_be_lost_is_numbered_on() -> None:
    play = Playing({"field": Field})
    ada, bob = play.join(), play.join()
    for n in range(1, 4):
        ada.send("move", n, reliable=False, n=n)
    handed_over(play)
    ada.send("move", "late", reliable=False, n=2)
    ada.send("move", "new", reliable=False, n=4)
    assert bob.heard("move") == [1, 2, 3, "new"]


def test_who_does_not_come_back_leaves_after_grace() -> None:
    play = Playing({"field": Field})
    ada, bob, classic = play.join(), play.join(), play.join(classic=True)
    fresh = handed_over(play, lost=(bob, classic))
    fresh.advance(Field.grace + 0.1)
    assert sorted(fresh.room().left) == [(2, "lost"), (3, "lost")]
    assert set(ada.people) == {1}


def test_what_cannot_be_written_is_left_behind_with_a_word() -> None:
    play = Playing({"field": Field})
    ada = play.join()
    ring: list[Any] = []
    ring.append(ring)
    play.room().odd = ring
    fresh = handed_over(play)
    assert [entry["attribute"] for entry in play.log.entries] == ["odd"]
    assert fresh.room().odd is None and ada.welcome["recovered"]


@pytest.mark.parametrize("fault", [RuntimeError("no"), SystemExit(1)])
def test_a_room_whose_code_cannot_start_is_left_out_and_its_clients_come_as_new_ones(fault: BaseException) -> None:
    class Broken(Field):
        broken = True

        def on_create(self) -> None:
            super().on_create()
            if Broken.broken:
                raise fault

    play = Playing({"field": Field})
    ada = play.join()
    data = pack(play.rooms)
    fresh = Playing({"field": Broken})
    unpack(fresh.rooms, data, fresh.log)
    assert fresh.rooms.rooms == {} and fresh.faults == 1
    Broken.broken = False
    ada.drop()
    ada.play = fresh
    ada.resume()
    assert not ada.welcome["recovered"] and ada.ask("step").value == [1.0, 0.0]


def test_an_empty_room_is_not_carried() -> None:
    play = Playing({"field": Field})
    play.join().leave()
    fresh = Playing({"field": Field})
    unpack(fresh.rooms, pack(play.rooms), fresh.log)
    assert fresh.rooms.rooms == {}
