"""All rooms of a process: who may open one, how long they live, and what holds whatever players and networks do."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from playing import NOTICED_AFTER, Player, Playing, sleep
from session_server import Client, Room, on
from session_server.protocol import Close, LimitExceeded, PieceError
from session_server.rooms import EMPTY_FOR


class Talk(Room):
    relay = True


# --- opening and closing ----------------------------------------------------------------------------------------------


def test_a_room_is_opened_by_the_first_client_and_shared_by_all() -> None:
    play = Playing()
    ada, bob, other = play.join("field"), play.join("field"), play.join("field~2")
    assert list(play.rooms.rooms) == ["field", "field~2"]
    assert (ada.id, bob.id, other.id) == (1, 2, 1)
    assert play.rooms.clients == 3 and [core.slug for core in play.rooms] == ["field", "field~2"]


def test_rooms_of_one_piece_share_its_class_and_nothing_else() -> None:
    class Piece(Room):
        relay = True

    play = Playing({"field": Piece})
    ada, bob = play.join("field~a"), play.join("field:b")
    assert {type(play.room("field~a")), type(play.room("field:b"))} == {Piece}
    ada.send("x", 1)
    assert bob.received == []


@pytest.mark.parametrize("again", [False, True])
def test_an_empty_room_is_disposed_of_after_60_s_unless_somebody_comes(again: bool) -> None:
    assert EMPTY_FOR == 60
    play = Playing()
    play.join().leave()
    room = play.room()
    play.advance(EMPTY_FOR - 0.1)
    assert play.room() is room
    if again:
        assert play.join().id == 2
        play.advance(1000)
        assert play.room() is room
    else:
        play.advance(0.2)
        assert play.rooms.rooms == {}
        assert play.join().id == 1, "another room"


def test_a_kept_seat_keeps_its_room() -> None:
    play = Playing({"field": type("Patient", (Room,), {"grace": 100})})
    ada = play.join()
    ada.drop()
    play.advance(99)
    ada.resume()
    assert ada.welcome["id"] == 1 and ada.welcome["recovered"] is True


def test_a_room_that_only_turned_people_away_is_disposed_of_too() -> None:
    class Shut(Room):
        async def on_auth(self, token: str | None, data: Any) -> None:
            await sleep(1)
            raise RuntimeError("broken")

    play = Playing({"field": Shut})
    play.join()
    play.advance(EMPTY_FOR + 0.1)
    assert play.rooms.rooms == {}


def test_a_room_that_is_disposed_of_while_somebody_is_judged_is_opened_again() -> None:
    class Slow(Room):
        async def on_auth(self, token: str | None, data: Any) -> None:
            await sleep(4)

    play = Playing({"field": Slow})
    ada = play.join()
    first = play.core()
    play.advance(1)
    play.rooms.close(first)
    play.advance(4)
    assert ada.seat is not None and ada.seat.core is play.core() is not first


def test_each_room_is_claimed_and_released_once() -> None:
    claims: list[Any] = []
    play = Playing(
        claim=lambda slug: claims.append(slug) or 7, release=lambda slug, epoch: claims.append((slug, epoch))
    )
    ada = play.join()
    assert ada.welcome["epoch"] == 7
    play.join().leave()
    ada.leave()
    play.advance(EMPTY_FOR + 1)
    play.join("chat")
    assert claims == ["field", ("field", 7), "chat"]


def test_a_piece_that_cannot_be_loaded_lets_nobody_in() -> None:
    play = Playing({"broken": PieceError("broken.py:3: SyntaxError: invalid syntax")})
    with pytest.raises(PieceError):
        play.rooms.class_of("broken")
    assert play.rooms.rooms == {}
    assert play.rooms.class_of("field") is not None


def test_closing_a_room_twice_is_closing_it_once() -> None:
    ends: list[str] = []

    class Ends(Room):
        def on_dispose(self) -> None:
            ends.append(self.slug)

    play = Playing({"field": Ends})
    play.join().leave()
    core = play.core()
    play.rooms.close(core)
    play.rooms.close(core)
    play.advance(EMPTY_FOR + 1)
    assert ends == ["field"]


def test_a_fault_in_on_dispose_ends_no_more_than_its_room() -> None:
    class Breaks(Room):
        def on_dispose(self) -> None:
            raise RuntimeError("broken")

    play = Playing({"field": Breaks})
    other = play.join("chat")
    play.join().leave()
    play.advance(EMPTY_FOR + 1)
    assert list(play.rooms.rooms) == ["chat"] and play.faults == 1
    assert other.ping()["received"] == 0


# --- limits -----------------------------------------------------------------------------------------------------------


def test_no_more_rooms_than_max_rooms() -> None:
    play = Playing(max_rooms=2)
    play.join("a")
    play.join("b")
    with pytest.raises(LimitExceeded) as refusal:
        play.join("c")
    assert (refusal.value.status, refusal.value.code, refusal.value.limit) == (503, Close.FULL, "max_rooms")
    assert play.refused == {"max_rooms": 1}
    play.join("a")  # a room that is open takes more


def test_the_longest_empty_room_makes_place_for_a_new_one() -> None:
    play = Playing(max_rooms=3)
    for slug in ("a", "b", "c"):
        play.join(slug)
    for player, seconds in ((play.players[1], 1), (play.players[0], 1), (play.players[2], 0)):
        player.leave()
        play.advance(seconds)
    play.join("d")
    assert set(play.rooms.rooms) == {"a", "c", "d"}
    play.join("c")
    play.join("e")
    assert set(play.rooms.rooms) == {"c", "d", "e"}


def test_a_room_that_fills_up_between_the_upgrade_and_the_join_is_refused() -> None:
    play = Playing(max_rooms=1)
    with play.tick():
        first, second = play.join("a"), play.join("b")
    assert first.closed is None
    assert second.closed is not None and second.closed[0] == Close.FULL
    assert isinstance(second.error, LimitExceeded)


@pytest.mark.parametrize("most", [1, 4])
def test_one_address_opens_so_many_rooms_a_minute(most: int) -> None:
    play = Playing(new_rooms_per_address=most)
    for n in range(most):
        play.join(f"room {n}", address="2001:db8::1")
    with pytest.raises(LimitExceeded) as refusal:
        play.join("one more", address="2001:db8::2")  # the same /64
    assert (refusal.value.status, refusal.value.limit) == (429, "new_rooms_per_address")
    play.join("room 0", address="2001:db8::1")  # no new room
    play.join("one more", address="2001:db8:0:1::1")
    play.advance(60 / most + 0.01)
    play.join("another", address="2001:db8::1")
    assert play.refused == {"new_rooms_per_address": 1}


def test_no_limits_are_no_limits() -> None:
    play = Playing(max_rooms=0, new_rooms_per_address=0)
    for n in range(300):
        play.join(f"room {n}")
    assert len(play.rooms.rooms) == 300


def test_in_the_turn_of_the_loop_each_room_is_flushed_once() -> None:
    play = Playing()
    players = [play.join(slug) for slug in ("a", "a", "b", "b")]
    play.advance(0.1)
    before = [len(player.wire.written) for player in players]
    with play.tick():
        for player in players * 3:
            player.send("x", 1)
    assert [len(player.wire.written) - n for player, n in zip(players, before, strict=True)] == [1] * 4


# --- whatever happens -------------------------------------------------------------------------------------------------

Seat = tuple[str, int, int]  # slug, epoch (one for each room that ever was), id
SLUGS = ("game", "game~2", "duel", "duel~2", "duel~3")
MAX_ROOMS, MAX_CLIENTS, NEW_ROOMS = 4, 3, 4
SEEDS = 16


class Records:
    """What the rooms' authors saw, told by the rooms themselves."""

    def __init__(self) -> None:
        self.number = 0  # of the last message; each content is unlike all others
        self.addressed: dict[Seat, list[int]] = defaultdict(list)  # reliable messages for a seat, in order
        self.said: dict[Seat, list[int]] = defaultdict(list)  # the numbers a seat's page gave its messages
        self.state: dict[Seat, str] = {}
        self.last_id: Counter[tuple[str, int]] = Counter()
        self.empty_since: dict[tuple[str, int], float] = {}
        self.claimed: Counter[str] = Counter()
        self.open: set[tuple[str, int]] = set()
        self.changed_at = 0.0  # when somebody came, went or dropped


def make_piece(records: Records, most: int) -> type[Room]:
    """A room that keeps the books: who was told what, and that each seat lives a life in order."""

    class Piece(Room):
        max_clients = most
        grace = 5.0

        @property
        def key(self) -> tuple[str, int]:
            return self.slug, self._core.epoch

        def seat(self, client: Client) -> Seat:
            return (*self.key, client.id)

        def tell(self, clients: Any) -> int:
            records.number += 1
            for client in clients:
                records.addressed[self.seat(client)].append(records.number)
            return records.number

        def on_create(self) -> None:
            assert self.key not in records.open
            records.open.add(self.key)
            records.empty_since[self.key] = self.now

        def on_join(self, client: Client) -> None:
            assert client.id > records.last_id[self.key], "an id was used before"
            records.last_id[self.key] = client.id
            records.state[self.seat(client)] = "in"
            records.changed_at = self.now
            records.empty_since.pop(self.key, None)
            assert len(self.clients) <= most
            client.send("hello", [*self.key, self.tell([client])])
            self.broadcast("came", [*self.key, self.tell(self.clients)])

        def on_drop(self, client: Client) -> None:
            assert records.state[self.seat(client)] == "in"
            records.state[self.seat(client)] = "away"
            records.changed_at = self.now

        def on_resume(self, client: Client) -> None:
            assert records.state[self.seat(client)] in {"in", "away"}
            records.state[self.seat(client)] = "in"
            records.changed_at = self.now

        def on_leave(self, client: Client, reason: str) -> None:
            state = records.state.pop(self.seat(client))
            records.changed_at = self.now
            assert reason in {"left", "lost", "kicked", "closed"}
            assert (reason == "lost") <= (state == "away")
            self.broadcast("gone", [*self.key, self.tell(self.clients)])
            if not self.clients:
                records.empty_since[self.key] = self.now

        def on_dispose(self) -> None:
            assert not self.clients, "disposed of while somebody had a seat"
            records.open.remove(self.key)

        def on_tick(self, dt: float) -> None:
            assert self.clients

        @on("say")
        def say(self, client: Client, said: tuple[int, str]) -> None:
            number, to = said
            records.said[self.seat(client)].append(number)
            if to == "all":
                self.broadcast("said", [*self.key, self.tell(self.clients)])
            elif to == "others":
                others = [other for other in self.clients if other is not client]
                self.broadcast("said", [*self.key, self.tell(others)], exclude=client)
            elif to == "one":
                first = self.clients[0]
                first.send("said", [*self.key, self.tell([first])])
            elif to == "all bytes":
                self.broadcast("bytes", repr([*self.key, self.tell(self.clients)]).encode())
            else:
                self.broadcast("lossy", [*self.key, self.tell([])], reliable=False)

    return Piece


class Page:
    """What a player's page can check by itself, and against the books: every reliable message exactly once, in order,
    or it learned that something was missed."""

    def __init__(self, player: Player, world: World) -> None:
        self.player = player
        self.records = world.records
        self.counts = world.counts
        self.read = 0  # of what the player heard
        self.seat: Seat | None = None
        self.place = 0  # in what was addressed to the seat
        self.numbers = 0
        self.lossy: set[int] = set()

    def check(self) -> None:
        for heard in self.player.heard_all[self.read :]:
            if heard.type == "session:welcome":
                self.welcome(heard.content)
            elif not heard.type.startswith("session:"):
                content = eval(heard.content) if heard.type == "bytes" else heard.content
                self.message(content, heard.reliable)
        self.read = len(self.player.heard_all)

    def welcome(self, content: dict[str, Any]) -> None:
        seat = (content["room"], content["epoch"], content["id"])
        if seat == self.seat:
            missed = content["seq"] != self.place
            assert content["recovered"] is not missed, "recovered says exactly whether something was missed"
            self.counts["missed" if missed else "recovered"] += 1
        else:
            self.counts["new"] += 1
            assert content["recovered"] is False and content["seq"] == 0 == content["received"]
        self.seat, self.place = seat, content["seq"]

    def message(self, content: list[Any], reliable: bool) -> None:
        assert self.seat is not None
        slug, epoch, number = content
        assert (slug, epoch) == self.seat[:2], "a message of another room"
        self.counts["message" if reliable else "lossy"] += 1
        if reliable:
            addressed = self.records.addressed[self.seat]
            assert self.place < len(addressed) and addressed[self.place] == number, "doubled, missing or out of order"
            self.place += 1
        else:
            assert number not in self.lossy
            self.lossy.add(number)

    @property
    def connected(self) -> bool:
        return self.player.wire.client is not None and not self.player.wire.up.cut


class World:
    """Five rooms (four at once, three seats each), their players, and every misfortune of a network."""

    def __init__(self, seed: int) -> None:
        self.records = Records()
        self.released: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()  # what happened, to see that enough did
        piece = make_piece(self.records, MAX_CLIENTS)
        quick = type("Quick", (piece,), {"tick_rate": 10, "flush_ms": 20})
        self.play = Playing(
            {"game": piece, "duel": quick},
            seed=seed,
            claim=self._claim,
            release=lambda slug, epoch: self.released.update([slug]),
            max_rooms=MAX_ROOMS,
            new_rooms_per_address=NEW_ROOMS,
        )
        self.pages: list[Page] = []
        self._openings: dict[str, deque[float]] = defaultdict(deque)

    def _claim(self, slug: str) -> int:
        self.records.claimed[slug] += 1
        return self.records.claimed[slug]

    # acts

    def join(self, slug: str, address: str) -> None:
        self._admitted(slug, address, lambda: self.pages.append(Page(self.play.join(slug, address=address), self)))

    def resume(self, page: Page) -> None:
        player = page.player
        if not self._admitted(player.slug, player.address, player.resume):
            self.pages.remove(page)

    def _admitted(self, slug: str, address: str, come: Callable[[], object]) -> bool:
        """Somebody comes, and is let through to the join exactly if the limits say so."""
        play, recent = self.play, self._openings[address]
        while recent and recent[0] < play.now - 60:
            recent.popleft()
        new = slug not in play.rooms.rooms
        full = len(play.rooms.rooms) >= MAX_ROOMS and all(core.clients for core in play.rooms)
        try:
            come()
        except LimitExceeded as refusal:
            self.counts[refusal.limit] += 1
            assert new, "an open room needs no place for another"
            if refusal.status == 503:
                assert full
            else:
                assert refusal.status == 429 and len(recent) >= NEW_ROOMS
            return False
        assert not (new and full)
        if new:
            recent.append(play.now)
            assert len(recent) <= 2 * NEW_ROOMS
        return True

    def say(self, page: Page, to: str, count: int) -> None:
        with self.play.tick():
            for _ in range(count):
                page.numbers += 1
                page.player.send("say", [page.numbers, to])

    def suffer(self, page: Page, how: str) -> None:
        player = page.player
        if how == "kick":
            assert player.seat is not None
            player.seat.kick()
            self.play.settle()
        elif how == "stall":
            player.stall()
            player.wire.high_water, player.wire.max_unsent = 300, 900
        elif how == "release":
            player.release()
        else:
            getattr(player, how)()

    def weather(self, most: float) -> None:
        self.play.network(delay=most / 2, jitter=most / 2)

    def wait(self, seconds: float) -> None:
        self.play.advance(seconds)

    def calm(self) -> None:
        """When the network is well again, everybody who is connected has everything and sees everybody."""
        self.weather(0.0)
        for page in self.pages:
            if page.player.wire.down.stalled:
                page.player.release()
        self.play.advance(2)
        while self.play.now - self.records.changed_at < 0.2:  # a seat ran out just now
            self.play.advance(0.2)
        self.check()
        for page in self.pages:
            if not page.connected:
                continue
            assert page.seat is not None
            assert page.place == len(self.records.addressed[page.seat]), "something is missing"
            core = self.play.core(page.player.slug)
            away = {client.id: client.away for client in core.clients.values()}
            assert {id: person["away"] for id, person in page.player.people.items()} == away
            assert page.player.count == len(away)

    # what always holds

    def check(self) -> None:
        play, records = self.play, self.records
        for page in self.pages:
            page.check()
        for said in records.said.values():
            assert said == sorted(set(said)), "a client's messages in order, none twice"
        assert play.faults == 0, play.log.entries
        assert len(play.rooms.rooms) <= MAX_ROOMS
        keys = {(core.slug, core.epoch) for core in play.rooms}
        assert keys == records.open
        assert sum(records.claimed.values()) - sum(self.released.values()) == len(keys)
        for key, since in records.empty_since.items():
            assert key not in records.open or play.now - since <= EMPTY_FOR, "an empty room is kept for too long"
        for core in play.rooms:
            assert len(core.clients) <= MAX_CLIENTS
            seats = {seat[2]: state for seat, state in records.state.items() if seat[:2] == (core.slug, core.epoch)}
            assert seats == {id: "away" if client.away else "in" for id, client in core.clients.items()}
            assert len(core.resumable) <= 2 * len(core.clients)

    def end(self) -> None:
        """All go; nothing stays."""
        self.calm()
        for page in self.pages:
            page.player.vanish()
        self.wait(NOTICED_AFTER + 6)
        self.wait(EMPTY_FOR + 6)
        self.check()
        assert self.play.rooms.rooms == {} and len(self.play.rooms.timers) == 0


ADDRESSES = ("192.0.2.1", "192.0.2.2")
AUDIENCES = ("all", "all", "others", "one", "all bytes", "lossy")
MISFORTUNES = ("drop", "drop", "vanish", "close", "leave", "stall", "stall", "release", "kick")
DELAYS = (0.0, 0.0, 0.1, 1.0)
WAITS = (0.01, 0.03, 0.125, 1.0, 4.0, 6.0)

pages = st.integers(0, 99)  # which of them, counted round


class RoomsMachine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 9), slugs=st.lists(st.sampled_from(SLUGS[:2]), min_size=2, max_size=4))
    def begin(self, seed: int, slugs: list[str]) -> None:
        self.world = World(seed)
        for number, slug in enumerate(slugs):
            self.world.join(slug, ADDRESSES[number % 2])

    def page(self, number: int) -> Page:
        return self.world.pages[number % len(self.world.pages)]

    @rule(slug=st.sampled_from(SLUGS), address=st.sampled_from(ADDRESSES))
    def join(self, slug: str, address: str) -> None:
        self.world.join(slug, address)

    @precondition(lambda self: self.world.pages)
    @rule(page=pages, to=st.sampled_from(AUDIENCES), count=st.integers(1, 5))
    def say(self, page: int, to: str, count: int) -> None:
        self.world.say(self.page(page), to, count)

    @precondition(lambda self: any(page.connected for page in self.world.pages))
    @rule(page=pages, how=st.sampled_from(MISFORTUNES))
    def suffer(self, page: int, how: str) -> None:
        connected = [page for page in self.world.pages if page.connected]
        self.world.suffer(connected[page % len(connected)], how)

    @precondition(lambda self: self.world.pages)
    @rule(page=pages, seconds=st.sampled_from([0.0, 0.0, 1.0, 6.0]), to=st.sampled_from(AUDIENCES))
    def drop_and_resume(self, page: int, seconds: float, to: str) -> None:
        """The commonest misfortune, with something said meanwhile."""
        here = self.page(page)
        if here.connected:
            here.player.drop()
        self.world.say(self.page(page + 1), to, 1)
        self.world.wait(seconds)
        self.world.resume(here)

    @rule(most=st.sampled_from(DELAYS))
    def weather(self, most: float) -> None:
        self.world.weather(most)

    @rule(seconds=st.sampled_from([*WAITS, EMPTY_FOR + 6]))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @rule()
    def calm(self) -> None:
        self.world.calm()

    @invariant()
    def hold(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.end()


TestRooms = RoomsMachine.TestCase
# A failure is not made smaller: that takes minutes here. The acts are printed, and each is one line.
TestRooms.settings = settings(
    derandomize=True, deadline=None, max_examples=100, stateful_step_count=40, phases=[Phase.generate]
)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_long_evening_with_many_players(seed: int) -> None:
    """The same acts, hundreds of them in a row: what only builds up in time. A failure names its seed."""
    world, random = World(seed), Random(seed)
    for _ in range(400):
        connected = [page for page in world.pages if page.connected]
        lost = [page for page in world.pages if not page.connected]
        act = random.choices(
            ["join", "say", "suffer", "resume", "weather", "wait", "long", "calm"], [8, 30, 8, 14, 3, 30, 0.3, 3]
        )[0]
        if act == "join" and len(world.pages) < 14:
            world.join(random.choice(SLUGS), random.choice(ADDRESSES))
        elif act == "say" and connected:
            world.say(random.choice(connected), random.choice(AUDIENCES), random.randint(1, 5))
        elif act == "suffer" and connected:
            world.suffer(random.choice(connected), random.choice(MISFORTUNES))
        elif act == "resume" and world.pages:
            world.resume(random.choice(lost or world.pages))
        elif act == "weather":
            world.weather(random.choice(DELAYS))
        elif act in {"wait", "long"}:
            world.wait(random.choice(WAITS) if act == "wait" else EMPTY_FOR + 6)
        elif act == "calm":
            world.calm()
        world.check()
    world.end()
    assert world.counts["message"] >= 200 and world.counts["lossy"] >= 10, "a dull evening"
    assert world.counts["new"] >= 10 and world.counts["recovered"] + world.counts["missed"] >= 2, "a dull evening"
