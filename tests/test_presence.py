"""Who is here: a client that starts from a welcome and applies each diff knows what the room knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from session_server import presence
from session_server.presence import PEOPLE_LISTED, Presence


@dataclass(eq=False)
class Somebody:
    """One client of the room."""

    id: int
    user_id: str | None = None
    name: str | None = None
    data: Any = None
    away: bool = False

    @property
    def handle(self) -> str | None:
        return None if self.user_id is None else f"@{self.user_id}"


class Page:
    """A client's list, from what is on the wire alone."""

    def __init__(self, people: Presence, limit: int) -> None:
        self.limit = limit
        self.people = {person["id"]: person for person in wire(people.listed())}
        self.count = len(people)

    def apply(self, diff: dict[str, Any]) -> None:
        for id in diff.get("leaves", ()):
            self.people.pop(id, None)
        self.people |= {person["id"]: person for person in (*diff.get("joins", ()), *diff.get("updates", ()))}
        self.count = diff["count"]
        if self.count > self.limit:
            self.people.clear()


def wire(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


class PresenceMachine(RuleBasedStateMachine):
    """Clients come, go, drop and change in any order; diffs are told now and then. At most 4 people are listed."""

    LIMIT = 4

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(presence, "PEOPLE_LISTED", self.LIMIT)

    def teardown(self) -> None:
        self.patch.undo()

    @initialize()
    def begin(self) -> None:
        self.presence = Presence()
        self.here: dict[int, Somebody] = {}
        self.ids = 0
        self.pages: dict[int, Page] = {}  # what each client shows
        self.changed = False

    def expected(self) -> list[dict[str, Any]]:
        """The list of people, made anew from all clients."""
        people: dict[Any, list[Somebody]] = {}
        for one in self.here.values():
            people.setdefault(one.id if one.user_id is None else one.user_id, []).append(one)
        return [
            {
                "id": clients[0].id, "ids": [c.id for c in clients], "user": clients[0].user_id,
                "handle": clients[0].handle, "name": clients[0].name, "data": clients[0].data,
                "away": all(c.away for c in clients),
            }
            for clients in people.values()
        ]  # fmt: skip

    @rule(user=st.sampled_from([None, None, "ada", "bob"]), name=st.sampled_from([None, "x", "y"]))
    def join(self, user: str | None, name: str | None) -> None:
        self.ids += 1
        one = self.here[self.ids] = Somebody(self.ids, user, name)
        self.presence.add(one)
        self.pages[one.id] = Page(self.presence, self.LIMIT)
        self.changed = True

    @rule(count=st.integers(2, 4))
    def many_join(self, count: int) -> None:
        for _ in range(count):
            self.join(None, None)

    @precondition(lambda self: self.here)
    @rule(data=st.data(), count=st.integers(1, 3))
    def leave(self, data: Any, count: int) -> None:
        for _ in range(min(count, len(self.here))):
            one = self.here.pop(data.draw(st.sampled_from(sorted(self.here))))
            del self.pages[one.id]
            self.presence.remove(one)
            self.changed = True

    @precondition(lambda self: self.here)
    @rule(data=st.data(), away=st.booleans(), label=st.integers(0, 2))
    def change(self, data: Any, away: bool, label: int) -> None:
        one = self.here[data.draw(st.sampled_from(sorted(self.here)))]
        one.away, one.data = away, {"label": label}
        self.presence.change(one)
        self.changed = True

    @rule()
    def tell(self) -> None:
        """One diff, to all; afterwards each page shows the room."""
        diff = self.presence.diff()
        if diff is not None:
            told = wire(diff)
            assert self.changed, "news although nothing happened"
            for page in self.pages.values():
                page.apply(told)
            if told["count"] > self.LIMIT:
                assert set(told) == {"count"}
            else:
                assert told.get("joins") or told.get("leaves") or told.get("updates"), "a diff without news"
        self.changed = False
        self.agree()

    def agree(self) -> None:
        everybody = {person["id"]: person for person in self.expected()}
        for page in self.pages.values():
            assert page.count == len(everybody)
            assert page.people == (everybody if len(everybody) <= self.LIMIT else {})

    @invariant()
    def the_room_lists_people_not_sockets(self) -> None:
        people = sorted(wire(list(self.presence)), key=lambda person: person["id"])
        assert people == sorted(self.expected(), key=lambda person: person["id"])
        assert len(self.presence) == len(people)
        assert wire(self.presence.listed()) == ([] if len(people) > self.LIMIT else wire(list(self.presence)))


TestPresence = PresenceMachine.TestCase
TestPresence.settings = settings(derandomize=True, deadline=None, max_examples=200, stateful_step_count=25)


def test_clients_of_one_user_are_one_person_known_by_the_lowest_id() -> None:
    people = Presence()
    one, other, guest = Somebody(3, "ada", "phone"), Somebody(5, "ada", "desk"), Somebody(4, None, "ada")
    for somebody in (one, guest, other):
        people.add(somebody)
    assert [(p.id, p.ids, p.user, p.name) for p in people] == [(3, (3, 5), "ada", "phone"), (4, (4,), None, "ada")]
    people.diff()
    people.remove(one)
    diff = people.diff()
    assert diff is not None
    assert diff.leaves == [3] and [(p.id, p.ids, p.name) for p in diff.joins] == [(5, (5,), "desk")]


def test_a_person_is_away_while_all_its_clients_are() -> None:
    people = Presence()
    one, other = Somebody(1, "ada"), Somebody(2, "ada")
    people.add(one)
    people.add(other)
    one.away = True
    people.change(one)
    assert [p.away for p in people] == [False]
    other.away = True
    people.change(other)
    assert [p.away for p in people] == [True]


def test_who_came_and_went_between_two_diffs_is_not_told() -> None:
    people = Presence()
    people.add(Somebody(1))
    people.diff()
    two = Somebody(2)
    people.add(two)
    people.remove(two)
    assert people.diff() is None


def test_who_was_greeted_with_somebody_hears_that_they_went() -> None:
    """Between two diffs one came, another was greeted with both, and the first went again: a page that reloads."""
    people = Presence()
    one, two = Somebody(1), Somebody(2)
    people.add(one)
    people.add(two)
    page = Page(people, PEOPLE_LISTED)
    people.remove(one)
    page.apply(wire(people.diff()))
    assert list(page.people) == [2]


def test_who_was_greeted_in_a_passing_moment_hears_that_it_passed() -> None:
    """For the others nothing changed in the end, but the newcomer's list shows what was true in between."""
    people = Presence()
    one, tab, two = Somebody(1, "ada"), Somebody(2, "ada"), Somebody(3)
    people.add(one)
    people.diff()
    people.add(tab)
    people.add(two)
    page = Page(people, PEOPLE_LISTED)
    assert page.people[1]["ids"] == [1, 2]
    people.remove(tab)
    page.apply(wire(people.diff()))
    assert page.people[1]["ids"] == [1]


def test_a_change_back_is_no_news() -> None:
    people = Presence()
    one = Somebody(1)
    people.add(one)
    people.diff()
    one.away = True
    people.change(one)
    one.away = False
    people.change(one)
    assert people.diff() is None


def test_a_diff_costs_what_changed_not_what_is_there() -> None:
    people = Presence()
    everybody = [Somebody(n) for n in range(1, PEOPLE_LISTED + 1)]
    for one in everybody:
        people.add(one)
    people.diff()
    everybody[7].away = True
    people.change(everybody[7])
    diff = people.diff()
    assert diff is not None
    assert wire(diff) == {"updates": wire([p for p in people if p.id == 8]), "count": PEOPLE_LISTED}


def test_beyond_200_people_only_their_number_is_told_and_below_all_are_listed_again() -> None:
    people = Presence()
    everybody = [Somebody(n) for n in range(1, PEOPLE_LISTED + 3)]
    for one in everybody[:PEOPLE_LISTED]:
        people.add(one)
    assert len((people.diff() or pytest.fail()).joins) == PEOPLE_LISTED == 200
    page = Page(people, PEOPLE_LISTED)
    people.add(everybody[200])
    assert people.listed() == []
    page.apply(wire(people.diff()))
    assert (page.people, page.count) == ({}, 201)
    everybody[0].away = True
    people.change(everybody[0])
    assert people.diff() is None, "no entries, no news"
    people.add(everybody[201])
    assert wire(people.diff()) == {"count": 202}
    people.remove(everybody[5])
    people.remove(everybody[6])
    page.apply(wire(people.diff()))
    assert page.count == len(page.people) == 200
    assert page.people[1]["away"] is True


def test_who_was_greeted_without_a_list_gets_it_as_soon_as_there_is_one() -> None:
    """The room was beyond 200 only between two diffs, but just then somebody was told a number instead of a list."""
    people = Presence()
    everybody = [Somebody(n) for n in range(1, PEOPLE_LISTED + 2)]
    for one in everybody[:PEOPLE_LISTED]:
        people.add(one)
    people.diff()
    people.add(everybody[PEOPLE_LISTED])
    page = Page(people, PEOPLE_LISTED)
    assert page.people == {}
    people.remove(everybody[0])
    page.apply(wire(people.diff()))
    assert len(page.people) == page.count == 200
