"""Edits of a piece while people play: in memory, with a folder of real files."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import pytest

from playing import Player, Playing
from session_server.pieces import Pieces
from session_server.reload import Reloader

FIELD = """
    from typing import Any
    from playing import Gate
    from session_server import Client, Refused, Room, on

    class Field(Room):
        keep = ("players",)
        relay = ("wave",)
        tick_rate = {rate}

        def on_create(self) -> Any:
            self.players: dict[int, int] = {{}}
            self.forgotten = self.beats = 0
            self.every(1, self.beat)
            {create}

        def on_reload(self, old: dict[str, Any]) -> Any:
            self.was = old.get("forgotten")
            {reload}

        def beat(self) -> None:
            self.broadcast("beat", {version})

        def on_join(self, client: Client) -> None:
            self.players[client.id] = 0

        @on("step")
        def step(self, client: Client) -> int:
            self.players[client.id] += {version}
            self.forgotten += 1
            return self.players[client.id]

        @on("think")
        async def think(self, client: Client) -> int:
            self.gate = Gate()
            await self.gate
            return {version}

        def on_tick(self, dt: float) -> None:
            self.broadcast("tick", {version})
"""


class Stage:
    """A folder with a piece, a room of it, and two who play."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.path = folder / "field.py"
        self.edits = 0
        self.save(1)
        self.pieces = Pieces(folder)
        assert self.pieces.errors() == []
        self.play = Playing(self.pieces, **settings)
        self.reloader = Reloader(self.pieces, self.play.rooms, self.play.log, tells=True, clock=lambda: self.play.now)
        self.ada, self.bob = self.play.join(), self.play.join()

    def save(self, version: int, create: str = "...", reload: str = "...", rate: int = 0) -> None:
        code = FIELD.format(version=version, create=create, reload=reload, rate=rate)
        self.write(self.path, textwrap.dedent(code))

    def write(self, path: Path, text: str) -> None:
        self.edits += 1
        path.write_text(text)
        os.utime(path, (self.edits, self.edits))

    def reload(self) -> None:
        self.reloader.reload()
        self.play.settle()

    @property
    def room(self) -> Any:
        return self.play.room()

    def faults(self, player: Player) -> list[str | None]:
        return [content["error"] for content in player.heard("session:fault")]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_new_code_runs_with_what_it_keeps_and_nobody_notices(stage: Stage) -> None:
    assert stage.ada.ask("step").value == 1
    old = stage.room
    stage.save(10)
    stage.reload()
    assert stage.room is not old and stage.room.players is old.players
    assert (stage.room.was, stage.room.forgotten) == (1, 0)
    assert stage.ada.ask("step").value == 11
    stage.bob.send("wave")
    assert stage.ada.heard("wave") == [None]
    assert stage.ada.closed is stage.bob.closed is None and len(stage.ada.welcomes) == 1
    assert stage.faults(stage.ada) == [None]


def test_timers_of_the_old_code_do_not_fire_any_more(stage: Stage) -> None:
    stage.play.advance(1.1)
    stage.save(2)
    stage.reload()
    stage.ada.forget()
    stage.play.advance(3)
    assert stage.ada.heard("beat") == [2, 2, 2]


def test_the_rate_of_ticks_is_that_of_the_new_code(stage: Stage) -> None:
    stage.play.advance(2)
    assert stage.ada.heard("tick") == []
    stage.save(2, rate=10)
    stage.reload()
    stage.play.advance(0.95)
    assert stage.ada.heard("tick") == [2] * 9


@pytest.mark.parametrize("hook", ["create", "reload"])
@pytest.mark.parametrize("fault", ["raise RuntimeError('no')", "return missing", "raise SystemExit(1)"])
def test_code_that_cannot_start_is_taken_back(stage: Stage, hook: str, fault: str) -> None:
    old = stage.room
    stage.save(2, **{hook: fault})
    stage.reload()
    assert stage.room is old and stage.ada.ask("step").value == 1
    [told] = stage.faults(stage.bob)
    assert told is not None and told.startswith(f"{stage.path}:")
    stage.play.advance(3)
    assert set(stage.ada.heard("beat")) == {1}, "its timers are gone, the old ones run"
    assert stage.play.join("field~other").ask("step").value == 1, "new rooms are made of the code that works"
    stage.save(3)
    stage.reload()
    assert stage.ada.ask("step").value == 4 and stage.faults(stage.bob)[-1] is None


def test_a_syntax_error_leaves_the_old_code_running_and_is_shown(stage: Stage) -> None:
    stage.write(stage.path, "class Field(:\n")
    stage.reload()
    assert stage.ada.ask("step").value == 1
    assert stage.faults(stage.ada) == [f"{stage.path}:1: SyntaxError: invalid syntax"]


def test_in_production_mistakes_are_not_shown_to_visitors(stage: Stage) -> None:
    stage.reloader._tells = False
    stage.write(stage.path, "class Field(:\n")
    stage.reload()
    assert stage.faults(stage.ada) == []


def test_an_async_handler_ends_on_the_old_code_and_the_new_comes_next(stage: Stage) -> None:
    thought = stage.ada.ask("think")
    old = stage.room
    stage.save(2)
    stage.reload()
    assert stage.room is old
    step = stage.bob.ask("step")
    old.gate.open()
    stage.play.settle()
    assert thought.value == 1 and step.value == 2 and stage.room is not old


def test_of_several_edits_while_it_waits_the_last_counts(stage: Stage) -> None:
    stage.ada.ask("think")
    gate = stage.room.gate
    for version in (2, 3):
        stage.save(version)
        stage.reload()
    gate.open()
    stage.play.settle()
    assert stage.ada.ask("step").value == 3


@pytest.mark.parametrize("fails", [False, True])
def test_an_async_on_create_holds_messages_until_it_has_ended(stage: Stage, fails: bool) -> None:
    old = stage.room
    code = textwrap.dedent(FIELD.format(version=2, create="self.gate = Gate()", reload="...", rate=0))
    code = code.replace("def on_create", "async def on_create").replace(
        "self.gate = Gate()", "self.gate = Gate(); await self.gate"
    )
    stage.write(stage.path, code)
    stage.reload()
    step = stage.ada.ask("step")
    assert not step.done
    if fails:
        stage.room.gate.fail(RuntimeError("no"))
    else:
        stage.room.gate.open()
    stage.play.settle()
    assert step.value == (1 if fails else 2) and (stage.room is old) is fails


def test_two_pieces_at_once_and_rooms_of_one_piece(stage: Stage) -> None:
    other = stage.path.with_name("other.py")
    stage.write(
        other, textwrap.dedent(FIELD.format(version=5, create="...", reload="...", rate=0)).replace("Field", "Other")
    )
    stage.reload()
    there, beside = stage.play.join("other"), stage.play.join("field~beside")
    assert there.ask("step").value == 5
    stage.save(2)
    stage.write(other, other.read_text().replace("+= 5", "+= 7"))
    stage.reload()
    assert [player.ask("step").value for player in (stage.ada, beside, there)] == [2, 2, 12]


def test_a_page_that_was_edited_is_told_to_its_own_visitors_alone(stage: Stage) -> None:
    for name in ("field.html", "other.html"):
        stage.write(stage.path.with_name(name), "<p>")
    stage.reload()
    stranger, classic = stage.play.join("other"), stage.play.join("field", classic=True)
    stage.write(stage.path.with_name("field.html"), "<b>")
    stage.reload()
    assert stage.ada.heard("session:reload") == [{"piece": "field"}] and stranger.heard("session:reload") == []
    [told] = [heard for heard in classic.heard_all if heard.type == "reload"]
    assert (told.content, told.id) == ({"piece": "field"}, "local")
    assert stage.ada.heard("reload") == []


def test_code_that_is_removed_makes_a_relay_and_written_again_a_room(stage: Stage) -> None:
    stage.path.unlink()
    stage.reload()
    stage.bob.send("anything", 1)
    assert stage.ada.heard("anything") == [1]
    stage.save(4)
    stage.reload()
    assert stage.ada.ask("step").error is not None, "nobody has joined this instance"
    assert stage.play.join().ask("step").value == 4


def test_fifty_edits_under_a_thousand_messages_a_second_lose_none(stage: Stage) -> None:
    crowd = [stage.play.join() for _ in range(8)]
    sent = 0
    for version in range(2, 52):
        stage.save(version)
        for player in crowd:
            player.send("wave", sent)
            sent += 1
        if version % 10 == 0:
            stage.ada.ask("think")  # an async handler is under way
        stage.reload()
        for player in crowd:
            player.send("wave", sent)
            sent += 1
        if version % 10 == 0:
            stage.room.gate.open()
        stage.play.advance(0.016)
    assert stage.bob.heard("wave") == list(range(sent)) and sent == 800
    assert stage.pieces.table["field"].version == 51 and stage.ada.ask("step").value == 51
    assert all(player.closed is None and len(player.welcomes) == 1 for player in stage.play.players)
