"""Who is here: people, not sockets. Values only; the room says who came, changed and went, and asks what is new."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from msgspec import UNSET, Struct, UnsetType

from .protocol import PEOPLE_LISTED


class Member(Protocol):
    """What presence reads of a client. The same verified `user` on several clients is one person."""

    @property
    def id(self) -> int: ...
    @property
    def user_id(self) -> str | None: ...
    @property
    def handle(self) -> str | None: ...
    @property
    def name(self) -> str | None: ...
    @property
    def data(self) -> Any: ...
    @property
    def away(self) -> bool: ...


class Person(Struct, frozen=True):
    """One entry of `room.presence`. `ids` are this person's clients, rising; `id` is the first of them."""

    id: int
    ids: tuple[int, ...]
    user: str | None
    handle: str | None
    name: str | None
    data: Any
    away: bool


class PresenceDiff(Struct, omit_defaults=True):
    """What changed since the last diff; `leaves` are ids. Beyond `PEOPLE_LISTED` people all but `count` is left out."""

    joins: list[Person] = []
    leaves: list[int] = []
    updates: list[Person] = []
    count: int | None = None
    host: int | None | UnsetType = UNSET  # only where it changed


class Presence:
    """The people of one room."""

    def __init__(self) -> None:
        self._people: dict[str | int, dict[int, Member]] = {}  # user id, or client id if anonymous → clients by id
        self._changed: set[str | int] = set()
        self._told: dict[str | int, Person] = {}  # as of the last diff
        self._counts = {0}  # of people, as told by the last diff and in welcomes since
        self._shown: dict[str | int, list[Person]] = {}  # what welcomes listed and the last diff did not

    def add(self, member: Member) -> None:
        key = self._key(member)
        self._people.setdefault(key, {})[member.id] = member
        self._changed.add(key)

    def change(self, member: Member) -> None:
        self._changed.add(self._key(member))

    def remove(self, member: Member) -> None:
        key = self._key(member)
        clients = self._people[key]
        del clients[member.id]
        self._changed.add(key)
        if not clients:
            del self._people[key]

    def __len__(self) -> int:
        return len(self._people)

    def __iter__(self) -> Iterator[Person]:
        return (self._person(clients) for clients in self._people.values())

    def listed(self) -> list[Person]:
        """For a welcome: everybody, or nobody if there are too many to list. The next diff goes on from it too."""
        self._counts.add(len(self))
        if len(self) > PEOPLE_LISTED:
            return []
        people = []
        for key, clients in self._people.items():
            person = None if key in self._changed else self._told.get(key)
            if person is None:
                person = self._person(clients)
                self._shown.setdefault(key, []).append(person)
            people.append(person)
        return people

    def diff(self) -> PresenceDiff | None:
        """What changed since the last call, or None. Its cost grows with the changes, not with the room."""
        changed, self._changed = self._changed, set()
        shown, self._shown = self._shown, {}
        count = len(self)
        counts, self._counts = self._counts, {count}
        diff = PresenceDiff(count=count)
        if count > PEOPLE_LISTED:
            self._told = {}
            return diff if counts != {count} else None
        unlisted = max(counts) > PEOPLE_LISTED  # to those who knew only a number, all are new
        for key in changed | set(self._people) if unlisted else changed:
            self._compare(key, diff, shown.get(key, []), unlisted)
        return diff if diff.joins or diff.leaves or diff.updates else None

    def _compare(self, key: str | int, diff: PresenceDiff, known: list[Person], unlisted: bool) -> None:
        """`known`: how welcomes listed this person since the last diff."""
        before = self._told.pop(key, None)
        clients = self._people.get(key)
        now = None if clients is None else self._person(clients)
        if before is not None:
            known.append(before)
        # the first of several clients may have gone: then the person is known by another id now
        diff.leaves.extend(sorted({one.id for one in known} - {now.id if now else 0}))
        if now is None:
            return
        self._told[key] = now
        if before is None or before.id != now.id or unlisted:
            diff.joins.append(now)
        elif any(one != now for one in known):
            diff.updates.append(now)

    @staticmethod
    def _key(member: Member) -> str | int:
        return member.id if member.user_id is None else member.user_id

    @staticmethod
    def _person(clients: dict[int, Member]) -> Person:
        ids = tuple(sorted(clients))
        first = clients[ids[0]]
        away = all(client.away for client in clients.values())
        return Person(first.id, ids, first.user_id, first.handle, first.name, first.data, away)
