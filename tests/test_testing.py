"""The kit that authors test their pieces with."""

from __future__ import annotations

import asyncio
import gc
import random
import re
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from serving import V1, Cut, Peer, serving
from session_server import Client, Refused, Room, User, on
from session_server.calls import FAULTS_LOGGED, TookTooLong
from session_server.protocol import PieceError, unpack_binary
from session_server.testing import RoomTest
from session_server.testing.loop import START, VirtualLoop
from session_server.testing.player import NOTICED_AFTER

FIELD = Path(__file__).parent.parent / "pieces" / "field.py"


class Talk(Room):
    """Whatever is said is said to all; `noise` may be lost."""

    grace = 10.0

    @on("say")
    def say(self, client: Client, content: Any) -> None:
        self.broadcast("said", content)

    @on("noise")
    def noise(self, client: Client, content: Any) -> None:
        self.broadcast("noise", content, reliable=False)

    @on("count")
    def count(self, client: Client) -> int:
        return len(self.clients)

    @on("seat")
    def seat(self, client: Client) -> None:
        raise Refused("all seats are taken")


def test_a_piece_is_played_in_a_few_lines() -> None:
    with RoomTest.piece(FIELD, seed=7) as test:
        ada, bob = test.join("ada"), test.join("bob")
        bob.network(delay=0.1, jitter=0.05, loss=0.2)
        ada.send("move", [0.2, 0.7])
        test.advance(1)
        assert bob.last("snapshot")[str(ada.id)]["pos"] == [0.2, 0.7]
        bob.drop()
        test.advance(3)
        assert bob.id == 2 and test.room.clients[1].away
        bob.back()
        test.advance(1)
        assert bob.id == 2 and not test.room.clients[1].away
        assert test.now == pytest.approx(START + 5)


def test_it_needs_nothing_but_the_package_itself() -> None:
    code = "import sys; from session_server.testing import RoomTest; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "session_server.testing" in loaded
    assert not {"pytest", "aiohttp", "websockets", "OpenSSL", "session_server.server"} & set(loaded)


# --- the same seed, the same run --------------------------------------------------------------------------------------


class Dice(Room):
    tick_rate = 20

    def on_tick(self, dt: float) -> None:
        self.broadcast("eyes", [random.randint(1, 6), self.now], reliable=False)


def evening(seed: int) -> list[Any]:
    random.seed()
    with RoomTest(Dice, seed=seed) as test:
        test.network(delay=0.1, jitter=0.1, loss=0.3, duplicates=0.2)
        ada, bob = test.join("ada"), test.join("bob")
        test.advance(3)
        bob.drop()
        test.advance(1)
        bob.back()
        test.advance(3)
        return [ada.heard_all, bob.heard_all]


def test_the_same_seed_is_the_same_run() -> None:
    assert evening(1) == evening(1)
    assert evening(1) != evening(2)


def test_the_dice_of_the_process_are_left_as_they_were() -> None:
    before = random.getstate()
    with RoomTest(Dice) as test:
        test.join()
        test.advance(1)
        assert random.getstate() != before
    assert random.getstate() == before


# --- faults -----------------------------------------------------------------------------------------------------------


class Faulty(Room):
    """Breaks where its class attribute says."""

    where = ""
    tick_rate = 10
    grace = 0.0

    def breaks(self, where: str) -> None:
        if self.where == where:
            raise ZeroDivisionError(f"in {where}")

    def on_create(self) -> None:
        self.breaks("on_create")
        self.after(0.25, lambda: self.breaks("timer"))

    def on_auth(self, token: str | None, data: Any) -> None:
        self.breaks("on_auth")

    def on_join(self, client: Client) -> None:
        self.breaks("on_join")

    def on_tick(self, dt: float) -> None:
        self.breaks("on_tick")

    def on_leave(self, client: Client, reason: str) -> None:
        self.breaks("on_leave")

    def on_dispose(self) -> None:
        self.breaks("on_dispose")

    @on("say")
    def say(self, client: Client, content: Any) -> None:
        self.breaks("say")

    @on("think")
    async def think(self, client: Client) -> None:
        await asyncio.sleep(0.125)
        self.breaks("think")

    @on("task")
    async def start_task(self, client: Client) -> None:
        async def run() -> None:
            self.breaks("task")

        task = asyncio.create_task(run())
        await asyncio.sleep(0)
        del task


PLACES = ("on_create", "on_auth", "on_join", "on_tick", "timer", "say", "think", "task", "on_leave", "on_dispose")


def play_all(test: RoomTest) -> None:
    ada = test.join("ada")
    ada.send("say", 1)
    ada.ask("think")
    ada.send("task")
    test.advance(1)
    ada.drop()


@pytest.mark.parametrize("where", PLACES)
def test_a_fault_fails_the_test_with_the_pieces_own_traceback(where: str) -> None:
    broken = type("Broken", (Faulty,), {"where": where})
    with pytest.raises(ZeroDivisionError, match=f"in {where}") as caught, RoomTest(broken, seed=3) as test:
        play_all(test)
    frames = traceback.extract_tb(caught.value.__traceback__)
    *_, caller, last = frames
    assert not [frame for frame in frames if Path(frame.filename).name == "calls.py"], "how the server calls it"
    assert last.name == "breaks" and caller.filename == __file__ and caller.line is not None and where in caller.line
    [note] = caught.value.__notes__
    assert "(seed 3)" in note


def test_code_without_a_fault_passes() -> None:
    with RoomTest(Faulty) as test:
        play_all(test)


def test_a_fault_is_raised_when_it_happens_and_the_note_says_where() -> None:
    broken = type("Broken", (Faulty,), {"where": "think"})
    with RoomTest(broken, slug="field") as test:
        ada = test.join("ada")
        ada.ask("think")
        with pytest.raises(ZeroDivisionError) as caught:
            test.advance(60)
        assert test.now == START + 0.125
        assert caught.value.__notes__ == ["in think, room 'field', client 1, after 0.125 s (seed 0)"]
        test.advance(1)
        assert ada.ask("say", 1).value is None, "the room goes on, as it does on a server"


def test_a_fault_is_raised_once() -> None:
    broken = type("Broken", (Faulty,), {"where": "task"})
    with RoomTest(broken) as test:
        ada = test.join("ada")
        with pytest.raises(ZeroDivisionError):
            ada.send("task")
            gc.collect()
            test.advance(0)
        test.advance(1)


def test_no_fault_is_hidden_by_those_before() -> None:
    broken = type("Broken", (Faulty,), {"where": "say"})
    with RoomTest(broken) as test:
        ada = test.join("ada")
        for _ in range(FAULTS_LOGGED):
            with pytest.raises(ZeroDivisionError):
                ada.send("say", 1)
        with pytest.raises(AssertionError, match="1 faults that were not logged"):
            ada.send("say", 1)


def test_what_a_piece_logs_is_kept_and_no_fault() -> None:
    class Logs(Room):
        def on_join(self, client: Client) -> None:
            self.log.info("%s came", client.name, seat=client.id)
            self.log.error("handled", exc_info=ValueError())

    with RoomTest(Logs) as test:
        test.join("ada")
        assert test.log.entries[0] == {"event": "ada came", "room": "logs", "seat": 1}


def test_a_fault_in_a_callback_of_the_loop_is_raised() -> None:
    class Later(Room):
        def on_create(self) -> None:
            asyncio.get_running_loop().call_later(1, self.no_such_thing)

        def no_such_thing(self) -> None:
            raise ZeroDivisionError

    with RoomTest(Later) as test:
        test.join()
        with pytest.raises(ZeroDivisionError):
            test.advance(2)
        assert test.now == START + 1


def test_a_fault_of_the_kit_is_raised_by_the_loop_itself() -> None:
    loop = VirtualLoop(lambda: False)  # type: ignore[abstract]
    loop.call_soon([].pop)
    with pytest.raises(IndexError):
        loop.settle()


def test_a_time_out_of_the_authors_own_is_what_it_is() -> None:
    class Asks(Room):
        @on("ask")
        async def ask(self, client: Client) -> None:
            async with asyncio.timeout(1):
                await asyncio.sleep(2)

    with pytest.raises(TimeoutError), RoomTest(Asks) as test:
        test.join().ask("ask")
        test.advance(3)


def test_a_call_that_does_not_fit_its_handler_is_raised_too() -> None:
    class Narrow(Room):
        def on_join(self) -> None:  # type: ignore[override]
            ...

    with pytest.raises(TypeError, match="positional argument"), RoomTest(Narrow) as test:
        test.join()


def test_a_class_that_cannot_be_a_room_is_raised() -> None:
    class Odd(Room):
        @on("say")
        def say(self) -> None: ...

    with pytest.raises(PieceError, match="say"), RoomTest(Odd) as test:
        test.join()


def test_a_refusal_is_no_fault() -> None:
    with RoomTest(Talk) as test:
        ada = test.join("ada")
        assert ada.ask("seat").error == {"code": "refused", "reason": "all seats are taken"}


def test_expected_faults_are_collected_and_others_are_raised() -> None:
    broken = type("Broken", (Faulty,), {"where": "say"})
    with RoomTest(broken, expect_faults=(ValueError, ArithmeticError)) as test:
        ada = test.join("ada")
        ada.send("say", 1)
        assert [str(fault) for fault in test.faults] == ["in say"] and ada.errors == ["failed"]
    with pytest.raises(ZeroDivisionError), RoomTest(broken, expect_faults=ValueError) as test:
        test.join("ada").send("say", 1)


def test_a_fault_that_was_expected_and_did_not_happen_fails_the_test() -> None:
    with pytest.raises(AssertionError, match=r"expected a fault of .*ValueError.*, saw none"):  # noqa: SIM117
        with RoomTest(Talk, expect_faults=ValueError) as test:
            test.join("ada").send("say", 1)


def test_what_the_end_brings_about_does_not_hide_why_a_test_failed() -> None:
    broken = type("Broken", (Faulty,), {"where": "on_dispose"})
    with pytest.raises(AssertionError, match="mine") as caught, RoomTest(broken, seed=3) as test:
        test.join("ada")
        test.advance(1.5)
        raise AssertionError("mine")
    assert caught.value.__notes__ == ["after 1.5 s (seed 3)"]


def test_a_room_that_never_comes_to_rest_is_told() -> None:
    class Restless(Room):
        def on_join(self, client: Client) -> None:
            self.after(0, lambda: self.on_join(client))

    with pytest.raises(AssertionError, match="not at rest after"), RoomTest(Restless) as test:
        test.join("ada")


# --- time and async code ----------------------------------------------------------------------------------------------


class Thinker(Room):
    def on_create(self) -> None:
        self.log_of_times: list[float] = []
        self.called = asyncio.Event()

    @on("wait")
    async def wait(self, client: Client, seconds: float) -> float:
        begin = self.now
        await asyncio.sleep(seconds)
        return self.now - begin

    @on("both")
    async def both(self, client: Client) -> list[Any]:
        async with asyncio.TaskGroup() as group:
            slow = group.create_task(self.wait(client, 2))
            quick = group.create_task(asyncio.to_thread(sum, (1, 2)))
        return [slow.result(), quick.result()]

    @on("impatient")
    async def impatient(self, client: Client) -> str:
        try:
            async with asyncio.timeout(1):
                await self.called.wait()
        except TimeoutError:
            return "nobody called"
        return "called"

    @on("fetch")
    async def fetch(self, client: Client) -> None:
        await asyncio.open_connection("localhost", 80)


def test_async_code_runs_on_the_clock_of_the_test() -> None:
    with RoomTest(Thinker) as test:
        ada = test.join()
        reply = ada.ask("wait", 4.0)
        test.advance(3.999)
        assert not reply.done
        test.advance(0.001)
        assert reply.value == 4.0
        reply = ada.ask("both")
        test.advance(2)
        assert reply.value == [2.0, 3]


def test_what_follows_async_code_happens_when_it_ended() -> None:
    class Door(Room):
        tick_rate = 10
        ticks = 0

        async def on_auth(self, token: str | None, data: Any) -> None:
            await asyncio.sleep(2)

        def on_tick(self, dt: float) -> None:
            self.ticks += 1

    with RoomTest(Door) as test:
        test.join()
        test.advance(2.05)
        assert test.room.ticks == 0
        test.advance(0.1)
        assert test.room.ticks == 1


def test_time_outs_of_authors_are_reached_or_not() -> None:
    with RoomTest(Thinker) as test:
        ada = test.join()
        late, early = ada.ask("impatient"), ada.ask("impatient")
        test.advance(1.5)
        test.room.called.set()
        test.advance(0)
        assert (late.value, early.value) == ("nobody called", "called")


def test_a_handler_that_takes_too_long_is_a_fault() -> None:
    with pytest.raises(TookTooLong, match="took longer than 5 s") as caught, RoomTest(Thinker) as test:
        test.join().ask("wait", 6.0)
        test.advance(10)
    assert "after 5 s" in caught.value.__notes__[0]
    cause = caught.value.__cause__
    assert cause is not None
    assert "await asyncio.sleep(seconds)" in [frame.line for frame in traceback.extract_tb(cause.__traceback__)]


def test_a_loop_that_runs_outside_goes_on() -> None:
    async def play() -> bool:
        outside = asyncio.get_running_loop()
        with RoomTest(Thinker) as test:
            reply = test.join().ask("wait", 1.0)
            test.advance(1)
            assert reply.value == 1.0
        return asyncio.get_running_loop() is outside

    assert asyncio.run(play())
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()


def test_there_is_no_outside_world() -> None:
    with pytest.raises(NotImplementedError), RoomTest(Thinker) as test:
        test.join().ask("fetch")


def test_async_code_that_is_under_way_ends_with_the_test() -> None:
    ended = []

    class Patient(Room):
        @on("wait")
        async def wait(self, client: Client) -> None:
            try:
                await asyncio.sleep(3)
            finally:
                ended.append(self.now - START)

    with RoomTest(Patient) as test:
        test.join().send("wait")
        test.advance(1)
    assert ended == [1.0]


def test_an_hour_of_ticks_passes_tick_by_tick() -> None:
    class Counts(Room):
        tick_rate = 1
        ticks = 0

        def on_tick(self, dt: float) -> None:
            self.ticks += 1

    with RoomTest(Counts) as test:
        test.join()
        test.advance(3600)
        assert test.room.ticks == 3600
        with pytest.raises(ValueError, match="backwards"):
            test.advance(-1)


# --- the network ------------------------------------------------------------------------------------------------------


def test_delay_counts_each_way() -> None:
    with RoomTest(Talk) as test:
        ada, bob = test.join("ada"), test.join("bob")
        ada.network(delay=0.1)
        bob.network(delay=0.2)
        ada.send("say", 1)
        ada.send("noise", 1, reliable=False)
        test.advance(0.299)
        assert ada.heard("said") == ada.heard("noise") == [1] and bob.heard("said") == bob.heard("noise") == []
        test.advance(0.002)
        assert bob.heard("said") == bob.heard("noise") == [1]
        assert bob.only("said").at == pytest.approx(START + 0.3)


@pytest.mark.parametrize("way", ["up", "down"])
def test_only_what_may_be_lost_is_lost_and_the_rest_keeps_its_order(way: str) -> None:
    with RoomTest(Talk) as test:
        ada, bob = test.join("ada"), test.join("bob")
        (ada if way == "up" else bob).network(delay=0.05, jitter=0.05, loss=0.3, duplicates=0.2)
        for n in range(200):
            ada.send("say", n)
            ada.send("noise", n, reliable=False)
            test.advance(0.2)
        test.advance(60)
        noise = bob.heard("noise")
        assert bob.heard("said") == list(range(200))
        assert 100 <= len(noise) <= 180 and noise == sorted(set(noise)), "none twice, none after a later one"
        assert len({round(heard.at - START, 3) for heard in bob.heard_all if heard.type == "said"}) > 50


def test_what_was_overtaken_is_not_heard() -> None:
    with RoomTest(Talk, seed=4) as test:
        ada, bob = test.join("ada"), test.join("bob")
        bob.network(delay=0.2, jitter=0.2)
        for n in range(100):
            ada.send("noise", n, reliable=False)
            test.advance(0.01)
        test.advance(1)
        assert 5 < len(bob.heard("noise")) < 50 and bob.heard("noise") == sorted(bob.heard("noise"))


def test_bytes_that_may_be_lost_go_by_datagram_too() -> None:
    with RoomTest(type("Any", (Room,), {"relay": True})) as test:
        ada, bob = test.join("ada"), test.join("bob")
        ada.send("ink", b"\x00\xff", reliable=False)
        [ink] = bob.received
        assert (ink.type, ink.content, ink.id, ink.reliable) == ("ink", b"\x00\xff", 1, False)
        ada.network(loss=1)
        ada.send("ink", b"lost", reliable=False)
        test.advance(60)
        assert bob.heard("ink") == [b"\x00\xff"]


def test_without_udp_nothing_is_lost_and_it_comes_by_websocket() -> None:
    with RoomTest(Talk) as test:
        test.network(loss=0.5)
        ada, bob = test.join("ada", udp=False), test.join("bob", udp=False)
        test.advance(30)
        for n in range(50):
            ada.send("noise", n, reliable=False)
        test.advance(600)
        assert bob.heard("noise") == list(range(50))


def test_the_network_of_all_is_that_of_those_who_come_later() -> None:
    with RoomTest(Talk) as test:
        test.network(delay=1)
        ada = test.join("ada")
        with pytest.raises(AssertionError, match=r"<ada in talk: heard nothing> was not welcomed; does the clock"):
            ada.id  # noqa: B018
        test.advance(2)
        assert ada.id == 1
        test.network()
        assert ada.ask("count").value == 1


def test_what_is_said_while_it_is_not_welcomed_yet_arrives_unless_it_may_be_lost() -> None:
    with RoomTest(Talk) as test:
        ada, bob = test.join("ada"), test.join("bob")
        ada.network(delay=0.1)
        ada.back()
        ada.send("say", 1)
        ada.send("noise", 1, reliable=False)
        test.advance(1)
        assert bob.heard("said") == [1] and bob.heard("noise") == []


def test_who_drops_comes_back_to_its_seat_within_grace_and_misses_nothing_it_said() -> None:
    with RoomTest(Talk) as test:
        ada, bob = test.join("ada"), test.join("bob")
        bob.network(delay=0.5)
        bob.send("say", "under way")
        bob.drop()
        test.advance(9)
        bob.network()
        bob.back()
        assert bob.id == 2 and ada.heard("said") == ["under way"]
        bob.send("noise", "heard", reliable=False)
        assert ada.heard("noise") == ["heard"]
        bob.drop()
        test.advance(11)
        bob.back()
        assert bob.id == 3 and set(ada.people) == {1, 3}
        bob.send("noise", "with new numbers", reliable=False)
        assert ada.heard("noise") == ["heard", "with new numbers"] and bob.last("noise") == "with new numbers"


def test_a_room_that_begins_anew_is_heard_from_its_first_message() -> None:
    with RoomTest(Talk) as test:
        ada = test.join("ada")
        for n in range(3):
            ada.send("noise", n, reliable=False)
        ada.drop()
        test.advance(100)
        ada.back()
        ada.send("noise", "anew", reliable=False)
        assert ada.id == 1 and ada.heard("noise") == [0, 1, 2, "anew"]


def test_what_is_no_message_is_told_to_its_sender() -> None:
    with RoomTest(Talk) as test:
        ada = test.join("ada")
        ada.send("x" * 300)
        ada.send("x" * 300, reliable=False)
        ada.send_frame("{")
        assert ada.errors == ["malformed"] * 3


def test_a_connection_that_vanishes_is_noticed_later() -> None:
    with RoomTest(Talk) as test:
        ada, bob = test.join("ada"), test.join("bob")
        bob.vanish()
        bob.send("say", 1)
        bob.send("noise", 1, reliable=False)
        ada.send("noise", 2, reliable=False)
        test.advance(NOTICED_AFTER - 1)
        assert ada.heard("said") == [] and ada.heard("noise") == [2] and bob.heard("noise") == []
        assert not test.room.clients[1].away
        test.advance(2)
        assert test.room.clients[1].away
        test.advance(10)
        assert len(test.room.clients) == 1


def test_a_page_that_is_closed_has_left_and_one_that_is_kicked_is_told() -> None:
    with RoomTest(Talk) as test:
        ada, bob = test.join("ada"), test.join("bob")
        bob.close()
        assert len(test.room.clients) == 1
        assert ada.client is not None and ada.room is test.room
        ada.client.kick("out")
        test.advance(0)
        assert ada.closed == (4001, "out")


# --- who comes, and where ---------------------------------------------------------------------------------------------


def test_tokens_prove_who_somebody_is() -> None:
    with RoomTest(Talk, users={"secret": User("7", "@ada")}) as test:
        ada, eve, bob = test.join("ada", token="secret"), test.join("eve", token="guessed"), test.join("bob")
        assert ada.client is not None and ada.client.handle == "@ada" and bob.id == 2
        assert eve.closed == (4401, "no user has the token 'guessed'") and eve.client is None


def test_rooms_of_several_pieces_hear_each_other() -> None:
    class Board(Room):
        def on_create(self) -> None:
            self.subscribe("score", lambda score: self.broadcast("score", score))

    class Game(Room):
        @on("win")
        def win(self, client: Client) -> None:
            self.publish("score", [self.slug, client.id])

    with RoomTest({"game": Game, "board": Board}) as test:
        watcher = test.join(slug="board")
        test.join("ada").send("win")
        test.join("bob", slug="game~two").send("win")
        assert watcher.heard("score") == [["game", 1], ["game~two", 1]]


def test_a_room_with_a_name_of_its_own_is_of_its_piece() -> None:
    with RoomTest(Talk, slug="talk~blue") as test:
        ada = test.join("ada")
        ada.send("say", 1)
        assert ada.heard("said") == [1] and test.room.slug == "talk~blue"


def test_settings_are_the_servers() -> None:
    with RoomTest(Talk, message_rate=1, message_burst=1) as test:
        ada = test.join("ada")
        ada.send("say", 1)
        ada.send("say", 2)
        assert ada.heard("said") == [1] and ada.errors == ["rate"]


def test_acts_within_a_tick_happen_at_once() -> None:
    class Writes(Room):
        @on("press")
        def press(self, client: Client) -> None:
            self.broadcast("pressed", [client.id, len(self.clients)])

    with RoomTest(Writes) as test:
        ada, bob = test.join("ada"), test.join("bob")
        with test.tick():
            ada.send("press")
            bob.leave()
            assert ada.heard("pressed") == []
        assert ada.heard("pressed") == [[1, 2]] and bob.closed == (1000, "")


def test_classic_pages_and_raw_rooms_can_be_played() -> None:
    class Echo(Room):
        raw = True

        def on_raw(self, client: Client, data: str | bytes) -> None:
            client.send_raw(data[::-1])

    with RoomTest({"talk": Talk, "echo": Echo}) as test:
        old = test.join(classic=True)
        old.send("say", 1)
        assert old.id == 1 and old.heard("said") == [1]
        raw = test.join(slug="echo")
        raw.send_frame("abc")
        raw.send_frame(b"\x01\x02")
        assert raw.frames == ["cba", b"\x02\x01"]


def test_a_post_reaches_the_room() -> None:
    with RoomTest(Talk) as test:
        ada = test.join("ada")
        test.post("news", {"at": 12})
        assert ada.last("news") == {"at": 12}


# --- edits ------------------------------------------------------------------------------------------------------------


class Counter(Room):
    keep = ("total",)

    def on_create(self) -> None:
        self.total = 0

    @on("add")
    def add(self, client: Client) -> int:
        self.total += 1
        return self.total


def test_an_edit_keeps_what_keep_names_and_nobody_is_dropped() -> None:
    class Twice(Counter):
        @on("add")
        def add(self, client: Client) -> int:
            self.total += 2
            return self.total

    with RoomTest(Counter, slug="counter~one") as test:
        ada = test.join("ada")
        assert ada.ask("add").value == 1
        test.reload(Twice)
        assert ada.ask("add").value == 3 and ada.closed is None and ada.id == 1
        assert test.join("bob", slug="counter~two").ask("add").value == 2


def test_an_edit_that_fails_is_raised_and_the_old_code_goes_on() -> None:
    class Wrong(Counter):
        def on_reload(self, old: dict[str, Any]) -> None:
            raise KeyError("x")

    with RoomTest(Counter) as test:
        ada = test.join("ada")
        with pytest.raises(KeyError) as caught:
            test.reload(Wrong)
        assert "in a task or a reload" in caught.value.__notes__[0]
        assert ada.ask("add").value == 1 and type(test.room) is Counter
        assert type(test.join(slug="counter~two").room) is Counter


def test_a_file_is_loaded_as_the_server_loads_it_and_again_when_it_was_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "counter.py"
    (tmp_path / "_step.py").write_text("STEP = 1\n")
    code = (
        "from _step import STEP\nfrom session_server import Client, Room, on\n\nclass Counter(Room):\n"
        "    keep = ('total',)\n    total = 0\n\n    @on('add')\n    def add(self, client: Client) -> int:\n"
        "        self.total += STEP\n        return self.total\n"
    )
    file.write_text(code)
    with RoomTest.piece("counter.py") as test:
        ada = test.join("ada")
        assert ada.ask("add").value == 1
        (tmp_path / "_step.py").write_text("STEP = 10\n")
        test.reload()
        assert ada.ask("add").value == 11
        file.write_text(code.replace("self.total\n", "self.totl\n"))
        test.reload()
        with pytest.raises(AttributeError) as caught:
            ada.ask("add")
        assert traceback.extract_tb(caught.value.__traceback__)[-1].filename == str(file)
        file.write_text("class Counter(Room:\n")
        with pytest.raises(PieceError, match=r"counter.py:1: SyntaxError"):
            test.reload()


# --- what is heard in memory is what is heard from a server -----------------------------------------------------------

MIXED = """
from session_server import Client, Refused, Room, on

class Mixed(Room):
    relay = ("wave",)
    def on_join(self, client: Client):
        client.send("hello", [client.name, len(self.clients)])
    @on("once", rate=0.001)
    def once(self, client: Client):
        client.send("heard once")
    @on("say")
    def say(self, client: Client, words: int):
        self.broadcast("said", words)
        client.send("ink", bytes([words % 256]))
    @on("seat")
    async def seat(self, client: Client) -> int:
        if client.id != 1:
            raise Refused("it is taken")
        return client.id
    @on("kick")
    def kick(self, client: Client, id: int):
        next(one for one in self.clients if one.id == id).kick("out")
"""
SCRIPT: tuple[tuple[int, str, Any], ...] = (  # who, type, content
    (0, "say", 1), (1, "say", 2), (0, "say", "one"), (0, "say", None), (1, "nonsense", [1]), (0, "wave", {"hand": 1}),
    (1, "session:welcome", {}), (0, "session:ask", {"ask": 1, "type": "seat"}), (0, "x" * 300, 1),
    (1, "session:ask", {"ask": 1, "type": "seat"}), (1, "session:ask", {"ask": 2, "type": "say", "content": []}),
    (1, "session:ask", {}), (0, "once", None), (0, "once", None), (0, "kick", 2),
)  # fmt: skip
OF_ITS_OWN = {
    "session:welcome",
    "session:presence",
    "session:pong",
}  # what holds times and tokens, or comes when it may


def heard_in_memory(file: Path) -> list[Any]:
    with RoomTest.piece(file) as test:
        players = [test.join(name, udp=False) for name in ("ada", "bob")]
        for who, type, content in SCRIPT:
            players[who].send(type, content)
        test.advance(0)
        assert players[1].closed == (4001, "out")
        return [
            [(heard.type, heard.content, heard.id) for heard in player.heard_all if heard.type not in OF_ITS_OWN]
            for player in players
        ]


def heard_from_a_server(file: Path) -> list[Any]:
    path = "/session/mixed"
    with serving(file.parent) as site, site.upgrade(path, V1) as ada, site.upgrade(path, V1) as bob:
        peers = (ada, bob)
        for peer, name in zip(peers, ("ada", "bob"), strict=True):
            peer.send("session:join", {"name": name})
            site.settle(peer.sock)
        for who, type, content in SCRIPT:
            peers[who].send(type, content)
            site.settle(peers[who].sock)
        peers[0].send("session:ping", {"t": 0})
        return [until_the_end(peer) for peer in peers]


def until_the_end(peer: Peer) -> list[Any]:
    """All messages before the pong, or the close."""
    heard: list[Any] = []
    with suppress(Cut):
        while True:
            message = peer.message()
            if isinstance(message, bytes):
                binary = unpack_binary(message)
                heard.append((binary.type, binary.content, binary.id))
            elif message["type"] == "session:pong":
                break
            elif message["type"] not in OF_ITS_OWN:
                heard.append((message["type"], message.get("content"), message.get("id")))
    return heard


def test_players_hear_what_a_server_would_say(tmp_path: Path) -> None:
    file = tmp_path / "mixed.py"
    file.write_text(MIXED)
    ada, bob = heard_in_memory(file)
    assert [ada, bob] == heard_from_a_server(file)
    assert len(ada) == 10 and {type for type, _, _ in bob} >= {"hello", "said", "ink", "wave", "session:error"}


# --- the page about it ------------------------------------------------------------------------------------------------


def test_the_programs_on_the_page_run(tmp_path: Path) -> None:
    page = (FIELD.parent.parent / "docs" / "how-to" / "test-a-piece.md").read_text(encoding="utf-8")
    for name, program in re.findall(r'```python title="(.*?)"\n(.*?)```', page, re.DOTALL):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        with file.open("a", encoding="utf-8") as written:
            written.write(program)
    run = subprocess.run([sys.executable, "-m", "pytest", "-q"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0 and "7 passed" in run.stdout, run.stdout


# --- what tests are told ----------------------------------------------------------------------------------------------


def test_what_was_not_heard_is_told_with_what_was() -> None:
    with RoomTest(Talk) as test:
        ada = test.join("ada")
        for _ in range(2):
            ada.send("say", 1)
        with pytest.raises(
            AssertionError, match=r"no 'shout' came to <ada in talk: heard session:welcome × 1, .*said × 2>"
        ):
            ada.last("shout")
        with pytest.raises(AssertionError, match=r"2 messages 'said' came to .*, expected 1"):
            ada.only("said")
        with pytest.raises(AssertionError, match=r"ask\('seat'\) was answered with the error .*all seats are taken"):
            ada.ask("seat").value  # noqa: B018
        ada.network(delay=1)
        with pytest.raises(AssertionError, match=r"ask\('count'\) is not answered yet"):
            ada.ask("count").value  # noqa: B018
        ada.forget()
        assert ada.types() == []


def test_a_room_is_there_from_the_first_join_on() -> None:
    with RoomTest(Talk) as test:
        with pytest.raises(AssertionError, match="it begins with the first join"):
            test.room  # noqa: B018
        with pytest.raises(AssertionError, match=r"RoomTest.piece\(file\)"):
            test.reload()
